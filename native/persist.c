/* Write-back, fence and streaming copy for persistent memory.
 *
 * x86-64: CLWB, CLFLUSHOPT or CLFLUSH, chosen by CPUID (leaf 7, EBX bits 24 and 23; leaf 1, EDX
 * bit 19), ordered by SFENCE. arm64: DC CVAP where the kernel reports it (HWCAP_DCPOP), ordered by
 * DSB ST. Anywhere else pl_pwb_supported() is 0 for every kind and the caller refuses.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>

enum { PWB_CLFLUSH = 1, PWB_CLFLUSHOPT = 2, PWB_CLWB = 3, PWB_DCCVAP = 4 };
#define LINE 64u

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

int pl_pwb_supported(int kind)
{
    unsigned a, b, c, d;
    if (kind == PWB_CLFLUSH)
        return __get_cpuid(1, &a, &b, &c, &d) && (d >> 19 & 1);
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    if (kind == PWB_CLFLUSHOPT)
        return b >> 23 & 1;
    return kind == PWB_CLWB && (b >> 24 & 1);
}

__attribute__((target("clwb"))) static void wb_clwb(char *p, char *end)
{
    for (; p < end; p += LINE)
        _mm_clwb(p);
}
__attribute__((target("clflushopt"))) static void wb_clflushopt(char *p, char *end)
{
    for (; p < end; p += LINE)
        _mm_clflushopt(p);
}
static void wb_clflush(char *p, char *end)
{
    for (; p < end; p += LINE)
        _mm_clflush(p);
}

/* Write back every cache line that [at, at+n) touches; the start is aligned down so that the last
 * line is never missed. */
void pl_flush(int kind, char *at, size_t n)
{
    char *p = (char *)((uintptr_t)at & ~(uintptr_t)(LINE - 1)), *end = at + n;
    if (n == 0)
        return;
    if (kind == PWB_CLWB)
        wb_clwb(p, end);
    else if (kind == PWB_CLFLUSHOPT)
        wb_clflushopt(p, end);
    else
        wb_clflush(p, end);
}

void pl_fence(void) { _mm_sfence(); }

/* Copy with non-temporal stores where whole lines allow it; head and tail go through the cache and
 * are written back with `kind`. After pl_fence() all of it is persistent. */
void pl_copy(int kind, char *to, const char *from, size_t n)
{
    size_t head = (LINE - ((uintptr_t)to & (LINE - 1))) & (LINE - 1);
    if (head > n)
        head = n;
    memcpy(to, from, head);
    pl_flush(kind, to, head);
    to += head, from += head, n -= head;
    for (; n >= LINE; to += LINE, from += LINE, n -= LINE)
        for (unsigned i = 0; i < LINE; i += 16)
            _mm_stream_si128((__m128i *)(to + i), _mm_loadu_si128((const __m128i *)(from + i)));
    memcpy(to, from, n);
    pl_flush(kind, to, n);
}

#else
#if defined(__aarch64__)
#include <sys/auxv.h>
#ifndef HWCAP_DCPOP
#define HWCAP_DCPOP (1 << 16)
#endif
int pl_pwb_supported(int kind) { return kind == PWB_DCCVAP && (getauxval(AT_HWCAP) & HWCAP_DCPOP); }

void pl_flush(int kind, char *at, size_t n)
{
    char *p = (char *)((uintptr_t)at & ~(uintptr_t)(LINE - 1)), *end = at + n;
    (void)kind;
    if (n == 0)
        return;
    for (; p < end; p += LINE) /* "sys #3, c7, c12, #1" is DC CVAP, which old assemblers lack */
        __asm__ volatile("sys #3, c7, c12, #1, %0" ::"r"(p) : "memory");
}
void pl_fence(void) { __asm__ volatile("dsb st" ::: "memory"); }
#else
int pl_pwb_supported(int kind) { (void)kind; return 0; }
void pl_flush(int kind, char *at, size_t n) { (void)kind, (void)at, (void)n; }
void pl_fence(void) { __sync_synchronize(); }
#endif
void pl_copy(int kind, char *to, const char *from, size_t n)
{
    memcpy(to, from, n);
    pl_flush(kind, to, n);
}
#endif

/* The three below take lists, so that one call from Python does the work of thousands. Their
 * callers have checked every offset. AHEAD: the cache misses of that many items overlap. */
#define AHEAD 16

/* Store words[i], 8 bytes, at base + offsets[i] (multiples of 8), in order: the last one stays. */
void pl_store_words(char *base, const int64_t *offsets, const uint64_t *words, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (i + AHEAD < n)
            __builtin_prefetch(base + offsets[i + AHEAD], 1);
        __atomic_store_n((uint64_t *)(base + offsets[i]), words[i], __ATOMIC_RELAXED);
    }
}

/* Write back the cache lines number lines[i] of `base`. */
void pl_flush_lines(int kind, char *base, const int64_t *lines, size_t n)
{
    for (size_t i = 0; i < n; i++)
        pl_flush(kind, base + lines[i] * LINE, LINE);
}

/* pl_copy() the lines number lines[i] of `from` to the same lines of `to`. */
void pl_copy_lines(int kind, char *to, const char *from, const int64_t *lines, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (i + AHEAD < n)
            __builtin_prefetch(from + lines[i + AHEAD] * LINE, 0);
        pl_copy(kind, to + lines[i] * LINE, from + lines[i] * LINE, LINE);
    }
}

/* 0, or the errno of msync(2). `at` must be page-aligned. */
int pl_msync(char *at, size_t n) { return msync(at, n, MS_SYNC) == 0 ? 0 : errno; }

/* One aligned 8-byte store: on both architectures it reaches the medium whole or not at all. */
void pl_store_word(char *at, uint64_t word) { __atomic_store_n((uint64_t *)at, word, __ATOMIC_RELEASE); }

/* The file system's magic number (statfs(2)), or -errno. */
long pl_fs_magic(int fd)
{
    struct statfs s;
    return fstatfs(fd, &s) == 0 ? (long)s.f_type : -(long)errno;
}
