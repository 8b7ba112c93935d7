"""What a worker that was taken over can try in its rings (Tests/lab/groups/escape-rings), as lists for escape.py."""
import re

from escape import *

# IORING_OP_* of linux/io_uring.h, up to Linux 7.3.
OPERATIONS = {
    "NOP": 0, "READV": 1, "WRITEV": 2, "FSYNC": 3, "READ_FIXED": 4, "WRITE_FIXED": 5, "POLL_ADD": 6, "POLL_REMOVE": 7,
    "SYNC_FILE_RANGE": 8, "SENDMSG": 9, "RECVMSG": 10, "TIMEOUT": 11, "TIMEOUT_REMOVE": 12, "ACCEPT": 13, "ASYNC_CANCEL": 14,
    "LINK_TIMEOUT": 15, "CONNECT": 16, "FALLOCATE": 17, "OPENAT": 18, "CLOSE": 19, "FILES_UPDATE": 20, "STATX": 21,
    "READ": 22, "WRITE": 23, "FADVISE": 24, "MADVISE": 25, "SEND": 26, "RECV": 27, "OPENAT2": 28, "EPOLL_CTL": 29,
    "SPLICE": 30, "PROVIDE_BUFFERS": 31, "REMOVE_BUFFERS": 32, "TEE": 33, "SHUTDOWN": 34, "RENAMEAT": 35, "UNLINKAT": 36,
    "MKDIRAT": 37, "SYMLINKAT": 38, "LINKAT": 39, "MSG_RING": 40, "FSETXATTR": 41, "SETXATTR": 42, "FGETXATTR": 43,
    "GETXATTR": 44, "SOCKET": 45, "URING_CMD": 46, "SEND_ZC": 47, "SENDMSG_ZC": 48, "READ_MULTISHOT": 49, "WAITID": 50,
    "FUTEX_WAIT": 51, "FUTEX_WAKE": 52, "FUTEX_WAITV": 53, "FIXED_FD_INSTALL": 54, "FTRUNCATE": 55, "BIND": 56, "LISTEN": 57,
}  # fmt: skip
FSYNC, FALLOCATE, READ, WRITE, URING_CMD = (OPERATIONS[name] for name in ("FSYNC", "FALLOCATE", "READ", "WRITE", "URING_CMD"))
# Arguments with which an operation that were let through would do something, or fail with another error than EACCES.
ARGUMENTS = {
    "OPENAT": dict(fd=-100, address=at(0)),
    "OPENAT2": dict(fd=-100, address=at(0), offset=at(320), length=24),
    "STATX": dict(fd=-100, address=at(0), offset=at(2048)),
    "SOCKET": dict(fd=2, offset=1),
    "CONNECT": dict(address=at(128), offset=16),
    "TIMEOUT": dict(fd=-1, address=at(256), length=1),
    "FILES_UPDATE": dict(fd=-1, address=at(1024), length=1, offset=77),
    "PROVIDE_BUFFERS": dict(fd=1, address=at(2048), length=64),
    "MADVISE": dict(fd=-1, address=at(0), length=4096),
    "CLOSE": dict(fd=77),
    "FTRUNCATE": dict(offset=1 << 20),
}
FLAGS = {"DRAIN": 1 << 1, "LINK": LINK, "HARDLINK": 1 << 3, "ASYNC": ASYNC, "CQE_SKIP": 1 << 6}


# A regular file's rings have not got it although the policy's text has: LoopOpen.swift.
NOT_FOR_FILES = {FALLOCATE}


def policy_allows(target, mode):
    """What the ring policy of a target lets a device of that mode do with a regular file, from its text: numbers of operations."""
    parts = {"copy": {"copy"}, "zero-copy": {"zero-copy"}, "batch": {"copy", "batch"}, "batch-zero-copy": {"zero-copy", "batch"}}[mode]

    def lines(name):
        with open(f"/usr/share/ubd/policy/rings/{name}") as file:
            for line in file:
                words = line.split("#")[0].split()
                if words[:1] == ["@include"]:
                    yield from lines(words[1])
                elif words:
                    yield words

    found = set()
    for words in lines(f"{target}.ring"):
        if words[0] == "in":
            if words[1] not in parts:
                continue
            words = words[2:]
        if words[0] == "op":
            found.add(OPERATIONS[words[1]])
    return found - NOT_FOR_FILES


def forbidden(target, mode):
    """Entries that the seal must refuse, by name."""
    allowed, attempts = policy_allows(target, mode), {}
    for name, number in OPERATIONS.items():
        if number not in allowed:
            attempts[name] = entry(number, FIXED_FILE, **ARGUMENTS.get(name, {}))
        attempts[f"{name} without a fixed file"] = entry(number, 0, **ARGUMENTS.get(name, {}))
    attempts["READ of a file that is not fixed"] = entry(READ, 0, fd=8, address=at(2048), length=512)
    attempts["READ of the control socket"] = entry(READ, 0, fd=3, address=at(2048), length=1)
    attempts["URING_CMD on a file that is not fixed"] = entry(URING_CMD, 0, fd=4, offset=0xDEAD)
    for name, flag in FLAGS.items():
        attempts[f"an allowed operation with the {name} flag"] = entry(min(allowed), FIXED_FILE | flag)
    if "batch" not in mode:
        attempts["READ into a buffer that the kernel chooses"] = entry(READ, FIXED_FILE | BUFFER_SELECT, length=512)
    # Operations that no kernel of the lab knows: refused by the seal or as unknown.
    attempts |= {f"operation {number}": entry(number) for number in range(58, 256)}
    return attempts


# --- the driver's commands --------------------------------------------------------------------------------------------


def encoded(number, direction=3, size=16, kind=ord("u")):
    return direction << 30 | size << 16 | kind << 8 | number


FETCH, COMMIT, NEED_GET_DATA, REGISTER_BUFFER, UNREGISTER_BUFFER, PREPARE_MANY, COMMIT_MANY, FETCH_MANY = (encoded(number) for number in range(0x20, 0x28))
KERNEL_ADDRESS = 0xFFFF888000000000


def request(queue, tag, result=0, address=None):
    """struct ublksrv_io_cmd: the payload of a queue's command."""
    return (queue | tag << 16 | (result & 0xFFFFFFFF) << 32, at(8192) if address is None else address)


def command(number, payload=(0, 0), fd=0, **more):
    return entry(URING_CMD, FIXED_FILE, fd=fd, offset=number, payload=payload, **more)


def commands():
    """URING_CMDs that the seal lets through, so that the driver must refuse them: of another queue's server, for tags
    that are not given, and such as belong to /dev/ublk-control, to sockets and to other drivers."""
    attempts = {}
    numbers = {"FETCH": 0x20, "COMMIT": 0x21, "NEED_GET_DATA": 0x22, "REGISTER_IO_BUF": 0x23, "UNREGISTER_IO_BUF": 0x24}
    for name, number in numbers.items():
        for queue, tag in ((0, 0), (0, 1), (0, 0xFFFF), (1, 0), (0xFFFF, 0xFFFF)):
            attempts[f"{name} of queue {queue}, tag {tag}"] = command(encoded(number), request(queue, tag))
            attempts[f"{name} of queue {queue}, tag {tag}, by its old number"] = command(number, request(queue, tag))
    for number in (0x25, 0x26, 0x27, *range(0x28, 0x30)):
        attempts[f"queue command {number:#x}"] = command(encoded(number), request(0, 0))
    for name, number in (("PREP_IO_CMDS", 0x25), ("COMMIT_IO_CMDS", 0x26)):
        for queue, flags, count, size in ((0, 2, 1, 16), (0, 0, 1, 8), (9, 2, 1, 16), (0, 2, 0xFFFF, 16), (0, 0xFFFF, 1, 8)):
            payload = (queue | flags << 16 | count << 32 | size << 48, 0)
            attempts[f"{name} of queue {queue}, flags {flags:#x}, {count} of {size} bytes"] = command(encoded(number), payload, address=at(2048), length=count * size & 0xFFFFFFFF)
    for number in range(1, 0x1A):
        # struct ublksrv_ctrl_cmd does not fit a small entry; its head (device, queue) lies where the payload is.
        attempts[f"control command {number:#x}"] = command(encoded(number, 3, 32), (0xFFFF << 32, 0))
        attempts[f"control command {number:#x} that reads"] = command(encoded(number, 2, 32), (0xFFFF << 32, at(8192)))
        attempts[f"control command {number:#x} by its old number"] = command(number, (0xFFFF << 32, at(8192)))
    for name, number in {"a block device's discard": 0x1200, "an NVMe command": 0xC0484E80, "no command": 0xFFFFFFFF}.items():
        attempts[f"a URING_CMD for {name}"] = command(number)
    for number in range(4):
        attempts[f"a URING_CMD for a socket, {number}"] = command(number)
    for slot in (1, 2, 3, 4, 77, 0x7FFFFFFF, -1):
        attempts[f"a FETCH on file {slot} of the ring's table"] = command(FETCH, request(0, 0), fd=slot)
    return attempts


def files(target, mode):
    """Allowed operations where they must not lead: the driver's node, slots that are empty, past the end that
    RLIMIT_FSIZE sets, memory that is not the worker's."""
    attempts, past = {}, 1 << 20
    if target in ("loop", "crypt", "fault"):
        attempts["FSYNC of /dev/ublkcN"] = entry(FSYNC, fd=0)
        attempts["FSYNC of an empty slot"] = entry(FSYNC, fd=5)
    for name, number in (("READ", READ), ("WRITE", WRITE), ("READ_FIXED", 4), ("WRITE_FIXED", 5)):
        if number not in policy_allows(target, mode):
            continue
        fixed = number in (4, 5)
        where = dict(address=0 if fixed else at(2048), length=512)
        for what, slot in (("/dev/ublkcN", 0), ("an empty slot", 5), ("no slot", 1 << 20)):
            attempts[f"{name} of {what}"] = entry(number, fd=slot, **where)
            attempts[f"{name} of {what}, where the driver keeps requests"] = entry(number, fd=slot, offset=0x80000000, **where)
        attempts[f"{name} with a kernel's address"] = entry(number, fd=1, address=KERNEL_ADDRESS, length=512)
        attempts[f"{name} with buffer 0xffff"] = entry(number, fd=1, index=0xFFFF, **where) if fixed else entry(number, fd=1, address=1 << 46, length=512)
        if not fixed:
            attempts[f"{name} at a negative offset"] = entry(number, fd=1, offset=(1 << 64) - 512, **where)
        if target == "overlay" and number in (WRITE, 5):
            attempts[f"{name} of the base"] = entry(number, fd=2, **where)
    if WRITE in policy_allows(target, mode):
        attempts["WRITE past the end of the file"] = entry(WRITE, fd=1, offset=past, address=at(2048), length=512)
        attempts["WRITE far past the end of the file"] = entry(WRITE, fd=1, offset=1 << 40, address=at(2048), length=512)
    return attempts


# Of linux/falloc.h, and what would be done past the end of a file of 1 MiB, or to its end.
FALLOCATE_MODES = {
    "allocate": 0, "KEEP_SIZE": 1, "PUNCH_HOLE": 2, "PUNCH_HOLE|KEEP_SIZE": 3, "COLLAPSE_RANGE": 8, "ZERO_RANGE": 0x10,
    "ZERO_RANGE|KEEP_SIZE": 0x11, "INSERT_RANGE": 0x20, "UNSHARE_RANGE": 0x40, "UNSHARE_RANGE|KEEP_SIZE": 0x41, "WRITE_ZEROES": 0x80,
}  # fmt: skip


def modes(past=1 << 20):
    """FALLOCATE in each mode: past the end, across it, and on the file's first bytes."""
    attempts = {}
    for name, mode in FALLOCATE_MODES.items():
        attempts[f"FALLOCATE ({name}) past the end"] = entry(FALLOCATE, fd=1, offset=past, address=64 << 20, length=mode)
        attempts[f"FALLOCATE ({name}) across the end"] = entry(FALLOCATE, fd=1, offset=0, address=64 << 20, length=mode)
        attempts[f"FALLOCATE ({name}) at the beginning"] = entry(FALLOCATE, fd=1, offset=0, address=64 << 10, length=mode)
        attempts[f"FALLOCATE ({name}) on /dev/ublkcN"] = entry(FALLOCATE, fd=0, offset=0, address=4096, length=mode)
    return attempts


def ranges(past=1 << 20):
    """What the thread that does ranges may call (policy/seccomp/target-loop.policy), past the end of the file."""
    return {
        "fallocate of a hole past the end": call(285, 8, 3, past, 64 << 20),
        "fallocate of a hole across the end": call(285, 8, 3, past - 4096, 64 << 20),
        "pwrite64 past the end": call(18, 8, at(2048), 512, past),
        "pwrite64 across the end": call(18, 8, at(2048), 1024, past - 512),
        "pwrite64 far past the end": call(18, 8, at(2048), 512, 1 << 40),
    }


# --- registrations ----------------------------------------------------------------------------------------------------

REGISTER = 427
QUERY = 35


def blind():
    """Registrations that need no ring (-1): each of 0 to 63, with nothing and with something to read."""
    attempts = {}
    for number in range(64):
        # QUERY only tells what the kernel knows.
        if number != QUERY:
            attempts[f"io_uring_register -1, {number}"] = call(REGISTER, -1, number, 0, 0)
            attempts[f"io_uring_register -1, {number}, with arguments"] = call(REGISTER, -1, number, at(2048), 1)
    return attempts
