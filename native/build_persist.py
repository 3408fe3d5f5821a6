"""Builds plinius.pm._persist (cffi API mode: calls release the interpreter lock).

It is made of persist.c, which belongs to the trusted core, and of lists.c, which only the
persistent structures use.
"""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

ffibuilder = FFI()
ffibuilder.cdef(
    """
    int pl_pwb_supported(int kind);
    int pl_flush(int kind, char *at, size_t n);
    void pl_fence(void);
    int pl_copy(int kind, char *to, const char *from, size_t n);
    int pl_store(char *to, const char *from, size_t n);
    int pl_fetch(char *to, const char *from, size_t n);
    void pl_gather(char *to, const uint64_t *from, const uint64_t *sizes, size_t n);
    int pl_read_words(const char *base, const int64_t *offsets, uint64_t *words, size_t n);
    int pl_store_words(char *base, const int64_t *offsets, const uint64_t *words, size_t n);
    int pl_swap_words(char *base, const int64_t *a, const int64_t *b, size_t n);
    int pl_flush_lines(int kind, char *base, const int64_t *lines, size_t n);
    int pl_copy_lines(int kind, char *to, const char *from, const int64_t *lines, size_t n);
    int pl_msync(char *at, size_t n);
    int pl_store_word(char *at, uint64_t word);
    long pl_fs_magic(int fd);
    int pl_guard(void);
    """
)
ffibuilder.set_source(
    "plinius.pm._persist",
    "\n".join((HERE / name).read_text(encoding="utf-8") for name in ("persist.c", "lists.c")),
    extra_compile_args=["-O2", "-Wall", "-Wextra"],
)
