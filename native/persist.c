/* Write-back, fence and streaming copy for persistent memory.
 *
 * x86-64: CLWB, CLFLUSHOPT or CLFLUSH, chosen by CPUID (leaf 7, EBX bits 24 and 23; leaf 1, EDX
 * bit 19), ordered by SFENCE. arm64: DC CVAP where the kernel reports it (HWCAP_DCPOP), ordered by
 * DSB SY. Anywhere else pl_pwb_supported() is 0 for every kind and the caller refuses.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

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
static void flush_raw(int kind, char *at, size_t n)
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

/* Completes what this processor has stored and flushed, and nothing of other processors. */
void pl_fence(void) { _mm_sfence(); }

/* Store a whole aligned line past the cache: it needs no write-back, only a fence. */
static inline void copy_line(int kind, char *to, const char *from)
{
    (void)kind;
    for (unsigned i = 0; i < LINE; i += 16)
        _mm_stream_si128((__m128i *)(to + i), _mm_loadu_si128((const __m128i *)(from + i)));
}

/* Copy whole lines with non-temporal stores; what comes before and after them goes through the cache
 * and is written back with `kind`. All of it is durable after pl_fence(). */
static void copy_raw(int kind, char *to, const char *from, size_t n)
{
    size_t head = (LINE - ((uintptr_t)to & (LINE - 1))) & (LINE - 1);
    if (head > n)
        head = n;
    memcpy(to, from, head);
    flush_raw(kind, to, head);
    to += head, from += head, n -= head;
    for (; n >= LINE; to += LINE, from += LINE, n -= LINE)
        copy_line(kind, to, from);
    memcpy(to, from, n);
    flush_raw(kind, to, n);
}

#else
#if defined(__aarch64__)
#include <sys/auxv.h>
#ifndef HWCAP_DCPOP
#define HWCAP_DCPOP (1 << 16)
#endif
int pl_pwb_supported(int kind) { return kind == PWB_DCCVAP && (getauxval(AT_HWCAP) & HWCAP_DCPOP); }

static void flush_raw(int kind, char *at, size_t n)
{
    char *p = (char *)((uintptr_t)at & ~(uintptr_t)(LINE - 1)), *end = at + n;
    (void)kind;
    if (n == 0)
        return;
    for (; p < end; p += LINE) /* "sys #3, c7, c12, #1" is DC CVAP, which old assemblers lack */
        __asm__ volatile("sys #3, c7, c12, #1, %0" ::"r"(p) : "memory");
}

/* Not DSB ST: a clean to the point of persistence is complete only after a DSB "applying to both
 * reads and writes", run by the processor that ran the clean (Arm Architecture Reference Manual, DDI
 * 0487, D7.5.9.15, "Ordering and completion of Data Cache Clean to Point of Persistence"). Linux
 * ends its own cleans of persistent memory with DSB SY (arch/arm64/mm/cache.S). */
void pl_fence(void) { __asm__ volatile("dsb sy" ::: "memory"); }
#else
int pl_pwb_supported(int kind) { (void)kind; return 0; }
static void flush_raw(int kind, char *at, size_t n) { (void)kind, (void)at, (void)n; }
void pl_fence(void) { __sync_synchronize(); }
#endif
static void copy_raw(int kind, char *to, const char *from, size_t n)
{
    memcpy(to, from, n);
    flush_raw(kind, to, n);
}
static inline void copy_line(int kind, char *to, const char *from) { copy_raw(kind, to, from, LINE); }
#endif

/* Copy bulk bytes out of the medium, as four streams in parallel: one alone does not use the full
 * bandwidth of the memory. */
static void fetch_raw(char *to, const char *from, size_t n)
{
    size_t quarter = n / 4 & ~(size_t)(LINE - 1);
    for (size_t i = 0; i < quarter; i += LINE)
        for (size_t stream = 0; stream < 4; stream++) {
            __builtin_prefetch(from + stream * quarter + i + 8 * LINE, 0);
            memcpy(to + stream * quarter + i, from + stream * quarter + i, LINE);
        }
    memcpy(to + 4 * quarter, from + 4 * quarter, n - 4 * quarter);
}

/* Copy n pieces of private memory, one behind the other, to `to`: the one at from[i] has sizes[i] bytes. */
void pl_gather(char *to, const uint64_t *from, const uint64_t *sizes, size_t n)
{
    for (size_t i = 0; i < n; to += sizes[i], i++)
        memcpy(to, (const void *)(uintptr_t)from[i], sizes[i]);
}

/* msync(2); returns 0 or errno. `at` must be aligned to the machine's page. */
int pl_msync(char *at, size_t n) { return msync(at, n, MS_SYNC) == 0 ? 0 : errno; }

/* One aligned 8-byte store: on both architectures it is never torn, in the medium either. */
static void store_word_raw(char *at, uint64_t word) { __atomic_store_n((uint64_t *)at, word, __ATOMIC_RELEASE); }

/* The file system's magic number (statfs(2)), or -errno. */
long pl_fs_magic(int fd)
{
    struct statfs s;
    return fstatfs(fd, &s) == 0 ? (long)s.f_type : -(long)errno;
}

/* Access to a mapped file that was cut short, or whose disk fails, raises SIGBUS. The functions that
 * access the medium are guarded: they return EFAULT instead. Any other SIGBUS is passed on to the
 * handler that was installed before. */
static __thread sigjmp_buf guard;
static __thread volatile sig_atomic_t guarded;
static struct sigaction before;

static void on_fault(int number, siginfo_t *info, void *context)
{
    if (guarded) {
        guarded = 0;
        siglongjmp(guard, 1);
    }
    if (before.sa_flags & SA_SIGINFO)
        before.sa_sigaction(number, info, context);
    else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN)
        signal(number, SIG_DFL); /* the instruction runs again, and its fault ends the process */
    else
        before.sa_handler(number);
}

/* Install the handler; returns 0 or errno. SA_NODEFER, so that the signal is not left blocked by the
 * jump out of the handler. */
int pl_guard(void)
{
    struct sigaction now, ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    if (sigaction(SIGBUS, NULL, &now) != 0)
        return errno;
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_fault)
        return 0;
    before = now;
    return sigaction(SIGBUS, &ours, NULL) == 0 ? 0 : errno;
}

#define GUARDED(call)                                                                              \
    do {                                                                                           \
        if (sigsetjmp(guard, 0))                                                                   \
            return EFAULT;                                                                         \
        guarded = 1;                                                                               \
        call;                                                                                      \
        guarded = 0;                                                                               \
        return 0;                                                                                  \
    } while (0)

/* Each returns 0, or EFAULT if the file has become shorter than its mapping. */
int pl_flush(int kind, char *at, size_t n) { GUARDED(flush_raw(kind, at, n)); }
int pl_copy(int kind, char *to, const char *from, size_t n) { GUARDED(copy_raw(kind, to, from, n)); }
int pl_fetch(char *to, const char *from, size_t n) { GUARDED(fetch_raw(to, from, n)); }
int pl_store(char *to, const char *from, size_t n) { GUARDED(memcpy(to, from, n)); }
int pl_store_word(char *at, uint64_t word) { GUARDED(store_word_raw(at, word)); }
