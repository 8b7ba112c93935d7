/* Another ublk server, such as ubd must live beside: as root, without a sandbox, a null device of 1 MiB in copy mode.
 *     foreign-ublk add ID      ADD_DEV only: the number is taken, there is no disk
 *     foreign-ublk del ID      DEL_DEV
 *     foreign-ublk serve ID    adds and serves /dev/ublkbID until its standard input ends, then deletes it
 * Says "ready" when that is done. Written from the kernel's Documentation/block/ublk.rst and include/uapi/linux/ublk_cmd.h.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct control_command {
    uint32_t device;
    uint16_t queue, length;
    uint64_t address, data;
    uint16_t path_length, pad;
    uint32_t reserved;
};
struct device_info {
    uint16_t queues, depth, state, pad0;
    uint32_t max_io_bytes, device;
    int32_t server_pid;
    uint32_t pad1;
    uint64_t flags, server_flags;
    uint32_t owner_uid, owner_gid;
    uint64_t reserved[2];
};
struct basic_parameters {
    uint32_t length, types;
    uint32_t attributes;
    uint8_t logical_shift, physical_shift, optimal_shift, minimum_shift;
    uint32_t max_sectors, chunk_sectors;
    uint64_t device_sectors, virtual_boundary;
};
struct io_command {
    uint16_t queue, tag;
    int32_t result;
    uint64_t address;
};
struct io_descriptor {
    uint32_t operation, sectors;
    uint64_t start, address;
};
#define CONTROL(nr) _IOWR('u', nr, struct control_command)
#define IO(nr) _IOWR('u', nr, struct io_command)
enum { ADD_DEV = 4, DEL_DEV = 5, START_DEV = 6, STOP_DEV = 7, SET_PARAMS = 8, FETCH = 0x20, COMMIT_AND_FETCH = 0x21 };
enum { DEPTH = 8, IO_BYTES = 128 << 10 };

struct ring {
    int fd;
    unsigned entry_size, mask;
    atomic_uint *submission_tail, *completion_head, *completion_tail;
    unsigned char *entries;
    struct io_uring_cqe *completions;
    unsigned completion_mask, pending;
};

static struct ring make_ring(unsigned flags) {
    struct io_uring_params p = {.flags = flags};
    struct ring r = {.fd = (int)syscall(SYS_io_uring_setup, DEPTH, &p)};
    if (r.fd < 0) err(1, "io_uring_setup");
    size_t size = p.sq_off.array + p.sq_entries * sizeof(unsigned);
    size_t other = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    unsigned char *shared =
        mmap(NULL, size > other ? size : other, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, IORING_OFF_SQ_RING);
    r.entry_size = flags & IORING_SETUP_SQE128 ? 128 : 64;
    r.entries = mmap(NULL, p.sq_entries * r.entry_size, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, IORING_OFF_SQES);
    if (shared == MAP_FAILED || r.entries == MAP_FAILED) err(1, "mmap a ring");
    r.mask = p.sq_entries - 1;
    r.completion_mask = p.cq_entries - 1;
    r.submission_tail = (atomic_uint *)(shared + p.sq_off.tail);
    r.completion_head = (atomic_uint *)(shared + p.cq_off.head);
    r.completion_tail = (atomic_uint *)(shared + p.cq_off.tail);
    r.completions = (struct io_uring_cqe *)(shared + p.cq_off.cqes);
    for (unsigned i = 0; i < p.sq_entries; i++) ((unsigned *)(shared + p.sq_off.array))[i] = i;
    return r;
}

static void push(struct ring *r, int file, unsigned operation, uint64_t user, const void *command, size_t size) {
    unsigned tail = atomic_load(r->submission_tail);
    unsigned char *raw = r->entries + (tail & r->mask) * r->entry_size;
    memset(raw, 0, r->entry_size);
    struct io_uring_sqe *entry = (struct io_uring_sqe *)raw;
    entry->opcode = IORING_OP_URING_CMD;
    entry->fd = file;
    entry->off = operation;
    entry->user_data = user;
    memcpy(raw + 48, command, size);
    atomic_store(r->submission_tail, tail + 1);
    r->pending++;
}

struct completion {
    uint64_t user;
    int result;
};

static struct completion wait_for_one(struct ring *r) {
    unsigned head = atomic_load(r->completion_head);
    while (head == atomic_load(r->completion_tail)) {
        long done = syscall(SYS_io_uring_enter, r->fd, r->pending, 1, IORING_ENTER_GETEVENTS, NULL, 0);
        if (done < 0 && errno != EINTR) err(1, "io_uring_enter");
        if (done > 0) r->pending -= (unsigned)done;
    }
    const struct io_uring_cqe *entry = &r->completions[head & r->completion_mask];
    struct completion completion = {entry->user_data, entry->res};
    atomic_store(r->completion_head, head + 1);
    return completion;
}

static struct ring control_ring;
static int control_file;
static uint32_t device;

static int control(int operation, const char *name, void *buffer, size_t size, uint64_t data) {
    struct control_command command = {
        .device = device, .queue = UINT16_MAX, .length = (uint16_t)size, .address = (uintptr_t)buffer, .data = data};
    push(&control_ring, control_file, CONTROL(operation), 0, &command, sizeof command);
    int result = wait_for_one(&control_ring).result;
    if (result < 0) errx(1, "%s: %s", name, strerror(-result));
    return result;
}

static void *serve(void *path) {
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) err(1, "%s", (char *)path);
    struct ring ring = make_ring(0);
    const struct io_descriptor *descriptors = mmap(NULL, 4096, PROT_READ, MAP_SHARED | MAP_POPULATE, file, 0);
    unsigned char *buffers = mmap(NULL, DEPTH * IO_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (descriptors == MAP_FAILED || buffers == MAP_FAILED) err(1, "mmap");
    for (unsigned tag = 0; tag < DEPTH; tag++) {
        struct io_command command = {0, (uint16_t)tag, -1, (uintptr_t)(buffers + tag * IO_BYTES)};
        push(&ring, file, IO(FETCH), tag, &command, sizeof command);
    }
    for (;;) {
        struct completion entry = wait_for_one(&ring);
        unsigned tag = (unsigned)entry.user;
        if (entry.result != 0) return NULL; /* the device is being stopped */
        int bytes = (int)(descriptors[tag].sectors << 9);
        struct io_command command = {0, (uint16_t)tag, bytes, (uintptr_t)(buffers + tag * IO_BYTES)};
        push(&ring, file, IO(COMMIT_AND_FETCH), tag, &command, sizeof command);
    }
}

static void serve_until_input_ends(void) {
    static char path[32];
    snprintf(path, sizeof path, "/dev/ublkc%u", device);
    struct basic_parameters parameters = {
        .length = sizeof parameters, .types = 1, .logical_shift = 9, .physical_shift = 12, .optimal_shift = 12,
        .minimum_shift = 9, .max_sectors = IO_BYTES >> 9, .device_sectors = 2048};
    control(SET_PARAMS, "SET_PARAMS", &parameters, sizeof parameters, 0);
    pthread_t thread;
    if (pthread_create(&thread, NULL, serve, path)) errx(1, "pthread_create");
    control(START_DEV, "START_DEV", NULL, 0, (uint64_t)getpid());
    puts("ready");
    fflush(stdout);
    while (getchar() != EOF) {
    }
    control(STOP_DEV, "STOP_DEV", NULL, 0, 0);
}

int main(int count, char **arguments) {
    if (count != 3) errx(2, "usage: foreign-ublk add|del|serve ID");
    const char *what = arguments[1];
    device = (uint32_t)strtoul(arguments[2], NULL, 10);
    control_file = open("/dev/ublk-control", O_RDWR | O_CLOEXEC);
    if (control_file < 0) err(1, "/dev/ublk-control");
    control_ring = make_ring(IORING_SETUP_SQE128);
    if (strcmp(what, "del") != 0) {
        struct device_info info = {.queues = 1, .depth = DEPTH, .max_io_bytes = IO_BYTES, .device = device};
        control(ADD_DEV, "ADD_DEV", &info, sizeof info, 0);
    }
    if (strcmp(what, "serve") == 0) serve_until_input_ends();
    /* A server that still has the character device open would make DEL_DEV wait for it, so the process ends first. */
    if (strcmp(what, "serve") == 0) {
        execl("/proc/self/exe", arguments[0], "del", arguments[2], NULL);
        err(1, "exec");
    }
    if (strcmp(what, "del") == 0) control(DEL_DEV, "DEL_DEV", NULL, 0, 0);
    puts("ready");
    return 0;
}
