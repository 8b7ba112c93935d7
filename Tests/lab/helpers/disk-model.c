/* Reads, writes, discards, zeroes and flushes a block device at random, many requests at a time, and compares every block
 * that it reads with a model in memory.
 *
 * usage: disk-model [-d DEPTH] [-n REQUESTS] [-b BLOCK] [-s SEED] [-u] [-x] [-f FILE [-o OFFSET]] DEVICE
 *   -d  requests at a time (threads); the disk's blocks are theirs in small turns, so that they meet in every page
 *   -n  requests altogether      -b  bytes of a block: all offsets and sizes are multiples of it
 *   -u  discarded blocks may have any content; without it they must be zeros
 *   -x  discards nothing: for a disk that takes no discard
 *   -f  in the end compares what lies in the backing file, from OFFSET on, too
 * Prints one JSON object with the number of requests of each kind. Exit status 1: a block was wrong, and which; 2: a call
 * failed. The memory of reads is full of 0xee before, begins anywhere in a page at a multiple of 512, and is in two parts. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ZEROS = 0, UNKNOWN = UINT32_MAX };
enum { READ, WRITE, FORCED, DISCARD, ZERO_KEEP, ZERO_FREE, FLUSH, KINDS };
static const char *const names[KINDS] = {"read", "write", "forcedWrite", "discard", "zeroesAllocated", "zeroes", "flush"};
/* How often each, of 100. */
static const int shares[KINDS] = {32, 34, 4, 10, 9, 9, 2};

static int disk;
static uint32_t block = 512, *model;
static uint64_t seed, blocks, file_offset;
static unsigned depth = 1;
/* Blocks of one thread in a row: an odd number, so that its neighbours' blocks lie in the same pages. */
static uint64_t chunk;
static uint64_t requests = 1000;
static int discards_are_unknown, no_discards;
static atomic_ullong counts[KINDS], bytes_read;

static void __attribute__((noreturn, format(printf, 2, 3))) fail(int status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    flockfile(stderr);
    fprintf(stderr, "disk-model (seed %" PRIu64 "): ", seed);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    _exit(status);
}

static uint64_t mix(uint64_t value) {
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

static uint64_t next(uint64_t *state) { return mix(*state += 0x9e3779b97f4a7c15u); }

/* The content of a block in its `stamp`th version: the first two words name both. */
static void fill(uint64_t *words, uint64_t number, uint32_t stamp) {
    if (stamp == ZEROS) {
        memset(words, 0, block);
        return;
    }
    uint64_t start = mix(number << 32 ^ stamp ^ seed) | 1;
    words[0] = number;
    words[1] = stamp;
    for (uint32_t at = 2; at < block / 8; at++) words[at] = start * (at | 1);
}

static void compare(const char *bytes, uint64_t first, uint64_t count, const char *where) {
    uint64_t wanted[4096 / 8];
    for (uint64_t at = 0; at < count; at++) {
        uint32_t stamp = model[first + at];
        const char *found = bytes + at * block;
        if (stamp == UNKNOWN) {
            /* Any content, but not what lay in the reader's memory. */
            static const uint64_t old = 0xeeeeeeeeeeeeeeeeu;
            for (uint32_t word = 0; word < block; word += 8)
                if (!memcmp(found + word, &old, 8)) fail(1, "%s: block %" PRIu64 " was not filled", where, first + at);
            continue;
        }
        fill(wanted, first + at, stamp);
        if (!memcmp(found, wanted, block)) continue;
        uint32_t byte = 0;
        while (found[byte] == ((char *)wanted)[byte]) byte++;
        uint64_t head[2];
        memcpy(head, found, 16);
        fail(1, "%s: block %" PRIu64 " of %u bytes is wrong from its byte %u on: version %u is wanted, it begins with %016" PRIx64
                " %016" PRIx64 " (read of %" PRIu64 " blocks from %" PRIu64 ")",
             where, first + at, block, byte, stamp, head[0], head[1], count, first);
    }
}

static void check_call(const char *what, long result, uint64_t wanted, uint64_t first, uint64_t count) {
    if (result < 0) fail(2, "%s of %" PRIu64 " blocks from %" PRIu64 ": %s", what, count, first, strerror(errno));
    if ((uint64_t)result != wanted) fail(2, "%s of %" PRIu64 " blocks from %" PRIu64 ": %ld bytes", what, count, first, result);
}

static char *memory_of_thread(void) {
    char *memory = mmap(NULL, chunk * block + 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail(2, "mmap: %s", strerror(errno));
    return memory;
}

static int pick(uint64_t number) {
    int kind = 0;
    for (int left = number % 100; left >= shares[kind]; kind++) left -= shares[kind];
    return kind;
}

static void perform(int kind, uint64_t first, uint64_t count, char *memory, uint64_t random, uint32_t stamp) {
    off_t offset = first * block;
    size_t size = count * block;
    char *start = memory + (random % 8) * 512;
    /* Two parts, each of whole blocks. */
    size_t cut = random / 8 % count * block;
    struct iovec parts[2] = {{start, cut}, {start + cut, size - cut}};
    struct iovec *vector = cut ? parts : parts + 1;
    uint64_t range[2] = {offset, size};
    switch (kind) {
    case READ:
        memset(start, 0xee, size);
        check_call(names[kind], preadv2(disk, vector, cut ? 2 : 1, offset, 0), size, first, count);
        compare(start, first, count, "device");
        atomic_fetch_add(&bytes_read, size);
        break;
    case WRITE:
    case FORCED:
        for (uint64_t at = 0; at < count; at++) fill((uint64_t *)(start + at * block), first + at, stamp);
        check_call(names[kind], pwritev2(disk, vector, cut ? 2 : 1, offset, kind == FORCED ? RWF_DSYNC : 0), size, first, count);
        break;
    case DISCARD: check_call(names[kind], ioctl(disk, BLKDISCARD, range), 0, first, count); break;
    case ZERO_KEEP: check_call(names[kind], ioctl(disk, BLKZEROOUT, range), 0, first, count); break;
    case ZERO_FREE:
        if (fallocate(disk, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size) == 0) break;
        /* Not every device below has that without writing. */
        if (errno != EOPNOTSUPP) check_call(names[kind], -1, 0, first, count);
        check_call(names[kind], ioctl(disk, BLKZEROOUT, range), 0, first, count);
        break;
    case FLUSH: check_call(names[kind], fdatasync(disk), 0, first, count); return;
    }
    if (kind == READ) return;
    uint32_t now = kind == WRITE || kind == FORCED ? stamp : kind == DISCARD && discards_are_unknown ? UNKNOWN : ZEROS;
    for (uint64_t at = 0; at < count; at++) model[first + at] = now;
}

static void *work(void *argument) {
    unsigned number = (uintptr_t)argument;
    uint64_t state = seed ^ (uint64_t)number << 40;
    char *memory = memory_of_thread();
    uint64_t mine = requests / depth + (number < requests % depth);
    uint64_t chunks = blocks / chunk, turns = (chunks + depth - 1 - number) / depth;
    for (uint32_t done = 0; done < mine; done++) {
        uint64_t base = (next(&state) % turns * depth + number) * chunk;
        uint64_t from = next(&state) % chunk, left = chunk - from;
        /* Small ones mostly, and often all that is left of the chunk. */
        uint64_t count = next(&state) % 3 == 0 ? left : 1 + next(&state) % (left < 16 ? left : 16);
        /* The rarest is one in fifty: the first thread begins with one of each, so that no run is without. */
        uint64_t draw = next(&state);
        int kind = number == 0 && done < KINDS ? (int)done : pick(draw);
        if (kind == DISCARD && no_discards) kind = WRITE;
        perform(kind, base + from, count, memory, next(&state), done + 1);
        atomic_fetch_add(&counts[kind], 1);
    }
    return NULL;
}

static void compare_all(int file, uint64_t offset, const char *where) {
    uint64_t at_once = (1 << 20) / block;
    char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail(2, "mmap: %s", strerror(errno));
    for (uint64_t first = 0; first < blocks; first += at_once) {
        uint64_t count = blocks - first < at_once ? blocks - first : at_once;
        memset(memory, 0xee, count * block);
        check_call(where, pread(file, memory, count * block, offset + first * block), count * block, first, count);
        compare(memory, first, count, where);
    }
}

int main(int count, char **arguments) {
    const char *path = NULL;
    for (int option; (option = getopt(count, arguments, "d:n:b:s:uxf:o:")) != -1;) switch (option) {
        case 'd': depth = atoi(optarg); break;
        case 'n': requests = strtoull(optarg, NULL, 0); break;
        case 'b': block = atoi(optarg); break;
        case 's': seed = strtoull(optarg, NULL, 0); break;
        case 'u': discards_are_unknown = 1; break;
        case 'x': no_discards = 1; break;
        case 'f': path = optarg; break;
        case 'o': file_offset = strtoull(optarg, NULL, 0); break;
        default: fail(2, "usage: disk-model [-d DEPTH] [-n REQUESTS] [-b BLOCK] [-s SEED] [-u] [-x] [-f FILE [-o OFFSET]] DEVICE");
        }
    if (optind + 1 != count || !depth || block < 512 || block > 4096) fail(2, "one device, a depth, and blocks of 512 to 4096 bytes");
    disk = open(arguments[optind], O_RDWR | O_DIRECT | O_EXCL);
    uint64_t bytes;
    if (disk < 0 || ioctl(disk, BLKGETSIZE64, &bytes)) fail(2, "%s: %s", arguments[optind], strerror(errno));
    blocks = bytes / block;
    chunk = (64 << 10) / block + 1;
    if (blocks / chunk < depth) fail(2, "%s is too small for %u requests at a time", arguments[optind], depth);
    model = malloc(blocks * sizeof *model);
    if (!model) fail(2, "no memory for a model of %" PRIu64 " blocks", blocks);
    /* Nothing is known of what is there; all of it is read in the end. */
    for (uint64_t at = 0; at < blocks; at++) model[at] = UNKNOWN;

    pthread_t threads[depth];
    for (unsigned number = 0; number < depth; number++)
        if (pthread_create(&threads[number], NULL, work, (void *)(uintptr_t)number)) fail(2, "no thread");
    for (unsigned number = 0; number < depth; number++) pthread_join(threads[number], NULL);

    compare_all(disk, 0, "device");
    if (path) {
        int file = open(path, O_RDONLY);
        if (file < 0 || fsync(disk)) fail(2, "%s: %s", path, strerror(errno));
        compare_all(file, file_offset, "backing file");
    }
    printf("{\"bytesRead\": %llu", atomic_load(&bytes_read));
    for (int kind = 0; kind < KINDS; kind++) printf(", \"%s\": %llu", names[kind], atomic_load(&counts[kind]));
    puts("}");
}
