/* Many words or lines in one call, for the persistent structures: a call from Python for each is slow.
 * This file is compiled together with persist.c, behind it, and uses its instructions and its guard.
 */

/* The callers have checked every offset. AHEAD: how many items ahead memory is prefetched. */
#define AHEAD 16

/* words[i] = the 8 bytes at base + offsets[i] (multiples of 8). */
static void read_words_raw(const char *base, const int64_t *offsets, uint64_t *words, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (i + AHEAD < n)
            __builtin_prefetch(base + offsets[i + AHEAD], 0);
        words[i] = __atomic_load_n((const uint64_t *)(base + offsets[i]), __ATOMIC_RELAXED);
    }
}

/* Store words[i], 8 bytes, at base + offsets[i] (multiples of 8), in order: of several at one offset the
 * last one stays. */
static void store_words_raw(char *base, const int64_t *offsets, const uint64_t *words, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (i + AHEAD < n)
            __builtin_prefetch(base + offsets[i + AHEAD], 1);
        __atomic_store_n((uint64_t *)(base + offsets[i]), words[i], __ATOMIC_RELAXED);
    }
}

/* Exchange the words at a[i] and b[i], in order, so an offset may occur more than once. */
static void swap_words_raw(char *base, const int64_t *a, const int64_t *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (i + AHEAD < n) {
            __builtin_prefetch(base + a[i + AHEAD], 1);
            __builtin_prefetch(base + b[i + AHEAD], 1);
        }
        uint64_t *x = (uint64_t *)(base + a[i]), *y = (uint64_t *)(base + b[i]), was = *x;
        __atomic_store_n(x, *y, __ATOMIC_RELAXED);
        __atomic_store_n(y, was, __ATOMIC_RELAXED);
    }
}

/* Write back the cache lines with the numbers lines[i], counted from `base`. */
static void flush_lines_raw(int kind, char *base, const int64_t *lines, size_t n)
{
    for (size_t i = 0; i < n; i++)
        flush_raw(kind, base + lines[i] * LINE, LINE);
}

/* Copy the lines with the numbers lines[i], counted from `from`, to the same lines of `to`. */
static void copy_lines_raw(int kind, char *to, const char *from, const int64_t *lines, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (i + AHEAD < n)
            __builtin_prefetch(from + lines[i + AHEAD] * LINE, 0);
        copy_line(kind, to + lines[i] * LINE, from + lines[i] * LINE);
    }
}

/* Each returns 0, or EFAULT if the file has become shorter than its mapping. */
int pl_read_words(const char *base, const int64_t *offsets, uint64_t *words, size_t n)
{
    GUARDED(read_words_raw(base, offsets, words, n));
}
int pl_store_words(char *base, const int64_t *offsets, const uint64_t *words, size_t n)
{
    GUARDED(store_words_raw(base, offsets, words, n));
}
int pl_swap_words(char *base, const int64_t *a, const int64_t *b, size_t n)
{
    GUARDED(swap_words_raw(base, a, b, n));
}
int pl_flush_lines(int kind, char *base, const int64_t *lines, size_t n)
{
    GUARDED(flush_lines_raw(kind, base, lines, n));
}
int pl_copy_lines(int kind, char *to, const char *from, const int64_t *lines, size_t n)
{
    GUARDED(copy_lines_raw(kind, to, from, lines, n));
}
