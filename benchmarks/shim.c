/* A preload library that takes the cost of mapping data stacks out of a benchmark.
 *
 * CPython maps 16 KiB for the data stack of each fresh greenlet and unmaps it when the greenlet
 * ends; on most machines that is the largest part of a short greenlet's life. With this library
 * preloaded, private anonymous mappings of exactly that size come from one reserved range and
 * go back to a free list, for every contender alike. The chunks are handed out again as they
 * are, not zeroed: CPython writes a data stack before it reads it. Everything else goes to the
 * kernel. May be called by any thread; owns the range for the life of the process.
 */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CHUNK = 16 * 1024, CHUNKS = 4096 };

static atomic_flag lock = ATOMIC_FLAG_INIT;
static char *range;
static size_t fresh;
static size_t n_kept;
static void *kept[CHUNKS];
static unsigned long reused;

__attribute__((visibility("default"))) unsigned long
bench_chunks_reused(void)
{
    return reused;
}

static void *
map(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
    return (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, off);
}

static void *
chunk_take(void)
{
    void *chunk = NULL;

    while (atomic_flag_test_and_set_explicit(&lock, memory_order_acquire))
        ;
    if (range == NULL) {
        void *got = map(NULL, (size_t)CHUNK * CHUNKS, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (got != MAP_FAILED)
            range = got;
    }
    if (n_kept > 0) {
        chunk = kept[--n_kept];
        reused++;
    }
    else if (range != NULL && fresh < CHUNKS) {
        chunk = range + CHUNK * fresh++;
    }
    atomic_flag_clear_explicit(&lock, memory_order_release);
    return chunk;
}

/* The name that callers built with 64-bit file offsets use. */
void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t off)
    __attribute__((alias("mmap"), visibility("default")));

__attribute__((visibility("default"))) void *
mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
    if (len == CHUNK && addr == NULL && fd == -1 && prot == (PROT_READ | PROT_WRITE) &&
        flags == (MAP_PRIVATE | MAP_ANONYMOUS)) {
        void *chunk = chunk_take();
        if (chunk != NULL)
            return chunk;
    }
    return map(addr, len, prot, flags, fd, off);
}

__attribute__((visibility("default"))) int
munmap(void *addr, size_t len)
{
    uintptr_t at = (uintptr_t)addr, low = (uintptr_t)range;

    if (range == NULL || at < low || at >= low + (size_t)CHUNK * CHUNKS)
        return (int)syscall(SYS_munmap, addr, len);
    while (atomic_flag_test_and_set_explicit(&lock, memory_order_acquire))
        ;
    kept[n_kept++] = addr;
    atomic_flag_clear_explicit(&lock, memory_order_release);
    return 0;
}
