"""A ublk device whose server is the worker without any wall: as root, without namespaces, limits, Landlock, filters, or a seal
on its rings. This plays the broker's part for it, so that a benchmark can tell what the walls cost; nothing of it is installed.
"""
import ctypes
import mmap
import os
import socket
import struct
import subprocess

CONTROL = "/dev/ublk-control"
WORKER = "/job/ubd-bare-worker"
SETUP, ENTER = 425, 426
SQE128 = 1 << 10
# struct ublksrv_ctrl_cmd and the commands' numbers: linux/ublk_cmd.h.
ADD, DELETE, START, STOP, SET_PARAMETERS = 4, 5, 6, 7, 8
ZERO_COPY, AUTO_BUFFERS, BATCH = 1 << 0, 1 << 11, 1 << 15
FLAGS = {"copy": 0, "zero-copy": ZERO_COPY | AUTO_BUFFERS, "batch": BATCH, "batch-zero-copy": BATCH | ZERO_COPY | AUTO_BUFFERS}
# LaunchMessage.Flags (Sources/Shared/WorkerProtocol).
LAUNCH_FLAGS = {"copy": 0, "zero-copy": 1 << 5, "batch": 1 << 6, "batch-zero-copy": 1 << 5 | 1 << 6}
TARGETS = {"null": 1, "loop": 2}
GEOMETRY, SEALED = 0x55425701, 0x55425702

libc = ctypes.CDLL(None, use_errno=True)


def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Driver:
    """/dev/ublk-control, one command at a time."""

    def __init__(self):
        parameters = (ctypes.c_uint32 * 30)()
        parameters[2] = SQE128
        self.ring = call(SETUP, 4, ctypes.byref(parameters))
        words = list(parameters)
        self.tail, self.array = words[11], words[16]
        self.head_of_completions, self.completions = words[20], words[25]
        self.mask = words[0] - 1
        self.completion_mask = words[1] - 1
        self.rings = mmap.mmap(self.ring, max(self.completions + 16 * words[1], self.array + 4 * words[0]), offset=0)
        self.entries = mmap.mmap(self.ring, 128 * words[0], offset=0x10000000)
        self.file = os.open(CONTROL, os.O_RDWR)

    def command(self, number, device, buffer=None, data=0):
        address = ctypes.addressof(buffer) if buffer else 0
        size = ctypes.sizeof(buffer) if buffer else 0
        operation = 0xC0207500 | number
        control = struct.pack("<IHHQQHHI", device, 0xFFFF, size, address, data, 0, 0, 0)
        tail = struct.unpack_from("<I", self.rings, self.tail)[0]
        slot = tail & self.mask
        # URING_CMD; the command's number lies in the offset's field, its own 80 bytes from byte 48 on.
        entry = struct.pack("<BBHiQQIIQQ", 46, 0, 0, self.file, operation, 0, 0, 0, 0, 0) + control
        self.entries[slot * 128 : (slot + 1) * 128] = entry.ljust(128, b"\0")
        struct.pack_into("<I", self.rings, self.array + 4 * slot, slot)
        struct.pack_into("<I", self.rings, self.tail, (tail + 1) & 0xFFFFFFFF)
        call(ENTER, self.ring, 1, 1, 1, None, 0)
        head = struct.unpack_from("<I", self.rings, self.head_of_completions)[0]
        _, result, _ = struct.unpack_from("<QiI", self.rings, self.completions + 16 * (head & self.completion_mask))
        struct.pack_into("<I", self.rings, self.head_of_completions, (head + 1) & 0xFFFFFFFF)
        if result < 0:
            raise OSError(-result, f"ublk command {number}: {os.strerror(-result)}")


def device_info(device, depth, io_bytes, flags):
    # struct ublksrv_ctrl_dev_info
    info = struct.pack("<HHHHIIiIQQIIQQ", 1, depth, 0, 0, io_bytes, device, 0, 0, flags, 0, 0, 0, 0, 0)
    return ctypes.create_string_buffer(info, len(info))


def parameters(geometry, io_bytes, zero_copy):
    """What the broker makes of a worker's geometry (DiskParameters.make)."""
    size, logical, physical, attributes, discard, most_discard, most_zeroes = geometry
    shift = physical.bit_length() - 1
    # The broker tells the kernel of the cache and of FUA; the other bits of a geometry are its own.
    kernel_attributes = attributes & 0b1111
    data = bytearray(152)
    struct.pack_into("<II", data, 0, 152, 1 | 2 | (1 << 4 if zero_copy else 0))
    struct.pack_into("<IBBBBIIQQ", data, 8, kernel_attributes, logical.bit_length() - 1, shift, shift, shift, io_bytes >> 9, 0, size >> 9, 0)
    struct.pack_into("<IIIIHH", data, 40, 0, max(discard, logical), most_discard, most_zeroes, 1, 0)
    if zero_copy:
        struct.pack_into("<I", data, 108, 511)
    return ctypes.create_string_buffer(bytes(data), 152)


class BareDevice:
    """The device from `with` to its end; `path` is its node."""

    def __init__(self, target, mode, depth, io_bytes, file=None, device=9):
        self.target, self.mode, self.depth, self.io_bytes, self.file, self.device = target, mode, depth, io_bytes, file, device
        self.path, self.driver = f"/dev/ublkb{device}", Driver()

    def __enter__(self):
        self.driver.command(ADD, self.device, device_info(self.device, self.depth, self.io_bytes, FLAGS[self.mode]))
        self.control, worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._launch(worker_end)
        kind, *geometry = struct.unpack_from("<IQIIIIII", self._hear(GEOMETRY))
        zero_copy = "zero-copy" in self.mode
        self.driver.command(SET_PARAMETERS, self.device, parameters(geometry, self.io_bytes, zero_copy))
        self.control.send(struct.pack("<IHH", 0x55424402, 0, 0))
        self._hear(SEALED)
        self.driver.command(START, self.device, data=self.process.pid)
        return self

    def __exit__(self, *_):
        self.driver.command(STOP, self.device)
        self.process.wait(30)
        self.driver.command(DELETE, self.device)

    def _hear(self, kind):
        self.control.settimeout(60)
        message = self.control.recv(4096)
        if struct.unpack_from("<I", message)[0] != kind:
            raise RuntimeError(f"the bare worker failed: {message!r}")
        return message

    def _launch(self, worker_end):
        parking, parked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if self.file:
            # As `ubd add` opens them (Sources/ubd/Devices/BackingFile.swift), for a file on tmpfs.
            files = [os.open(self.file, os.O_RDWR), os.open(self.file, os.O_RDWR | os.O_DIRECT | os.O_NONBLOCK)]
            socket.send_fds(parking, [b"f"], files)
        statistics = os.memfd_create("statistics")
        os.ftruncate(statistics, 1 << 20)
        bundle = os.memfd_create("bundle")
        # Walls that nobody builds, but well formed: one instruction, one operation each.
        os.write(bundle, struct.pack("<IHHBBBB2B2Q", 0x55424453, 1, 1, 1, 1, 0, 0, 0, 0, 0x7FFF000000000006, 0x7FFF000000000006))
        launch = struct.pack(
            "<IIHHIIIQQ", 0x55424401, TARGETS[self.target], 1, self.depth, self.io_bytes, LAUNCH_FLAGS[self.mode], 0, 0, 0
        )
        socket.send_fds(self.control, [launch], [parked.fileno(), self.control.fileno(), statistics, bundle])
        # The worker's descriptors have fixed numbers, and the kernel takes the opener of /dev/ublkcN for the server.
        script = f"exec 0</dev/zero 1>/dev/null 2>&1 3<&{worker_end.fileno()} 4<>/dev/ublkc{self.device}"
        closing = "".join(f" {fd}<&-" for fd in range(5, 64))
        self.process = subprocess.Popen(["bash", "-c", f"{script}; exec {WORKER}{closing}"], pass_fds=[worker_end.fileno()], start_new_session=True)
        self.sockets = parking, worker_end
