// busy-reader PATH COUNT: reads 4 KiB COUNT times, one after the other, and computes while each is under way: it looks for
// the completion every 20 us and never waits in the kernel. So whoever serves the disk runs only when the scheduler lets it
// preempt us, or on another processor. fio's thinktime does not do that. Prints microseconds, as JSON.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, BLOCKS = 8192 };

static double microseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

static double read_while_computing(aio_context_t context, int file, void *buffer, long number) {
    struct iocb request = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = file, .aio_buf = (unsigned long)buffer, .aio_nbytes = BLOCK};
    request.aio_offset = number * 7919 % BLOCKS * BLOCK;
    struct iocb *requests[] = {&request};
    double begin = microseconds();
    if (syscall(SYS_io_submit, context, 1, requests) != 1) err(1, "io_submit");
    for (;;) {
        for (double from = microseconds(); microseconds() - from < 20;) {}
        struct io_event event;
        struct timespec none = {0};
        long got = syscall(SYS_io_getevents, context, 0, 1, &event, &none);
        if (got < 0) err(1, "io_getevents");
        if (got == 0) continue;
        if (event.res != BLOCK) errx(1, "read %lld bytes instead of %d", (long long)event.res, BLOCK);
        return microseconds() - begin;
    }
}

static int by_size(const void *left, const void *right) {
    double difference = *(const double *)left - *(const double *)right;
    return (difference > 0) - (difference < 0);
}

int main(int argc, char **argv) {
    if (argc != 3) errx(2, "usage: busy-reader PATH COUNT");
    long count = atol(argv[2]);
    int file = open(argv[1], O_RDONLY | O_DIRECT);
    if (file < 0) err(1, "%s", argv[1]);
    aio_context_t context = 0;
    if (syscall(SYS_io_setup, 1, &context)) err(1, "io_setup");
    void *buffer = aligned_alloc(BLOCK, BLOCK);
    double *took = calloc(count, sizeof *took), sum = 0;
    if (!buffer || !took) err(1, "memory");
    for (long number = 0; number < count; number++) sum += took[number] = read_while_computing(context, file, buffer, number);
    qsort(took, count, sizeof *took, by_size);
    printf("{\"mean\": %.1f, \"p50\": %.1f, \"p99\": %.1f}\n", sum / count, took[count / 2], took[count * 99 / 100]);
}
