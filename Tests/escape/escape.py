"""Plans for ubd-escape (Tests/escape/ubd-escape), which is a worker until it tries what the plan says.

A plan lies in the backing file of a loop device (Plan.swift has the layout), or is written into the memory of a worker
that has no file, and holds any number of attempts of one kind: system calls by number, submission entries for a ring, or
operations of io_uring_register. A list of attempts is a dictionary from a name to what `call`, `entry` or a number give; a
new attempt is a new line there.
"""
import contextlib
import errno
import fcntl
import glob
import os
import re
import select
import struct

from lib import *

PROGRAM = "/job/ubd-escape"
ADDRESS = 0x1000_0000_0000
RECORDS, TRIGGER, SCRATCH, RESULTS = 32, 32 << 10, 36 << 10, 64 << 10
NEVER, SETUP, SEALED, LIVE, END_BEFORE_FETCH, END_HALF_FETCHED, END_FETCHED, RINGED, ALONE = range(9)
CALLS, ENTRIES, REGISTRATIONS, NEW_RING, SOCKET_ENTRIES, SOCKET_REGISTRATIONS = 1, 2, 3, 4, 5, 6
VERDICTS = "/job/out/verdicts"
LANDLOCK, SETUP_FILTER, LOOP_FILTER, RING_SEAL, RING_REPORT, RESTRICTIONS = (1 << bit for bit in range(6))
PENDING = 1 << 40
FIXED_FILE, LINK, ASYNC, BUFFER_SELECT = 1 << 0, 1 << 2, 1 << 4, 1 << 5

# What attempts can point to, by its place in the plan's scratch memory, which has 28 KiB.
DATA = {
    0: b"/nothing\0",
    32: b"/\0",
    64: b"/proc/self/status\0",
    128: struct.pack("=HHI8x", 2, 0x5000, 0x0100007F),  # sockaddr_in 127.0.0.1:80
    192: struct.pack("<HH4xQ", 1, 0, ADDRESS + SCRATCH),  # sock_fprog
    256: struct.pack("<qq", 3600, 0),  # one hour
    320: struct.pack("<QQQ", 0, 0, 0),  # open_how, msghdr and whatever is zeros
    512: b"\0" * 128,
    704: struct.pack("<III", 0, 0, 1 << 1).ljust(120, b"\0"),  # io_uring_params with SQPOLL
    1024: struct.pack("<ii", -1, -1),  # files of a table
    2048: b"\0" * 1024,
}


def at(offset):
    """The address of some data in the worker."""
    return ADDRESS + SCRATCH + offset


def call(number, *arguments):
    """A system call."""
    arguments = [argument & (1 << 64) - 1 for argument in arguments]
    return struct.pack("<8Q", number, *(arguments + [0] * 7)[:7])


def entry(operation, flags=FIXED_FILE, fd=1, offset=0, address=0, length=0, operation_flags=0, file_index=0, index=0, payload=(0, 0)):
    """A submission entry; with FIXED_FILE, file 0 is /dev/ublkcN and 1 the backing file. `payload`: a URING_CMD's."""
    head = struct.pack("<BBHiQQIIQHHI", operation, flags, 0, fd, offset, address, length, operation_flags, 0, index, 0, file_index)
    return head + struct.pack("<QQ", *payload)


def plan(attempts, kind, moment, omit, early=0, data={}):
    """A plan's bytes, up to where the results are."""
    image = bytearray(RESULTS)
    struct.pack_into("<8sIIIII", image, 0, b"ubd-escp", moment, omit, kind, len(attempts), early)
    for index, record in enumerate(attempts):
        record = struct.pack("<Q56x", record) if isinstance(record, int) else record
        assert RECORDS + 64 * index + 64 <= TRIGGER, "too many attempts for one plan"
        image[RECORDS + 64 * index : RECORDS + 64 * index + 64] = record
    for offset, content in (DATA | data).items():
        assert SCRATCH + offset + len(content) <= RESULTS, "too much data for one plan"
        image[SCRATCH + offset : SCRATCH + offset + len(content)] = content
    return bytes(image)


class Plan:
    """A plan and what came of it; `file` is where it lies."""

    # What the device is added with beside what the test says; files that are parked although the plan lies elsewhere.
    parameters, files = {}, ()

    def change(self, moment):
        """What the next worker is to do."""
        os.pwrite(self.file, struct.pack("<I", moment), self.start + 8)

    def trigger(self):
        os.pwrite(self.file, b"\1", self.start + TRIGGER)

    @property
    def progress(self):
        """0: nothing was tried, 1: the attempts have begun, 2: all have come back; None: the plan went with its worker."""
        words = os.pread(self.file, 16, self.start + RESULTS)
        return sum(struct.unpack("<qq", words)) if words else None

    def results(self):
        return struct.unpack(f"<{self.count}q", os.pread(self.file, 8 * self.count, self.start + RESULTS + 16))

    def __enter__(self):
        return self


class Image(Plan):
    """A backing file with a plan in it."""

    start, target = 0, "loop"

    def __init__(self, name, attempts=(), *, kind=CALLS, moment=NEVER, omit=0, early=0, data={}, folder="/run/lab"):
        self.path = f"{folder}/{name}.img"
        self.count = len(attempts)
        self.file = self.made()
        os.ftruncate(self.file, 1 << 20)
        os.pwrite(self.file, plan(attempts, kind, moment, omit, early, data), 0)

    def made(self):
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def __exit__(self, *_):
        os.close(self.file)
        os.unlink(self.path)


class Memory(Image):
    """A plan in the memory of a memory disk, sealed as ubd seals it."""

    target, parameters = "memory", {"options": {"size": str(1 << 20)}}

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)

    def made(self):
        return os.memfd_create("plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)

    def __exit__(self, *_):
        os.close(self.file)


class Encrypted(Image):
    """The same as the file of an encrypted volume: its key is parked behind it."""

    target, parameters = "crypt", {"options": {"block-size": "4096"}}

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.key = os.memfd_create("ubd-key", os.MFD_CLOEXEC)
        os.write(self.key, bytes(range(64)))
        self.files = [self.file, self.key]

    def __exit__(self, *more):
        super().__exit__(*more)
        os.close(self.key)


class Faulty(Image):
    """The same as the file of a device that fails on purpose: its control file is parked behind it."""

    target, parameters = "fault", {}

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        # Of the size that FaultControl.bytes says.
        self.control = os.memfd_create("ubd-control", os.MFD_CLOEXEC)
        os.ftruncate(self.control, 8192 + 2048 * 64)
        self.files = [self.file, self.control]

    def __exit__(self, *more):
        super().__exit__(*more)
        os.close(self.control)


class Layered(Image):
    """The same as the layer of an overlay: its map and its base, which begins as the plan does, are parked behind it."""

    target, parameters = "overlay", {"options": {"size": str(1 << 20), "layer-kind": "scratch"}}

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        map = os.memfd_create("ubd-map", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(map, 4096)
        fcntl.fcntl(map, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        with open(f"{self.path}.base", "wb") as base:
            base.write(b"ubd-escp".ljust(1 << 20, b"b"))
        self.files = [self.file, map, os.open(f"{self.path}.base", os.O_RDONLY)]

    def __exit__(self, *more):
        with open(f"{self.path}.base", "rb") as base:
            assert base.read() == b"ubd-escp".ljust(1 << 20, b"b"), "the base was written"
        super().__exit__(*more)
        os.unlink(f"{self.path}.base")
        for file in self.files[1:]:
            os.close(file)


class Planted(Plan):
    """A plan that is written into the memory of a worker without a file, when it waits for one."""

    start, target = ADDRESS, "null"

    def __init__(self, _, attempts=(), *, kind=CALLS, moment=NEVER, omit=0, early=0, data={}):
        self.count, self.file = len(attempts), None
        self.plan = plan(attempts, kind, moment, omit, early, data)

    def plant(self, before):
        """`before`: the workers that there were."""

        def written():
            for pid in set(worker_processes()) - set(before):
                with contextlib.suppress(OSError):
                    file = os.open(f"/proc/{pid}/mem", os.O_RDWR)
                    # The worker goes on when the first eight bytes are there.
                    if os.pwrite(file, self.plan[8:], ADDRESS + 8) and os.pwrite(file, self.plan[:8], ADDRESS):
                        self.file = file
                        return True
                    os.close(file)
            return False

        assert eventually(10, written), "no worker without a file waits for a plan"

    def __exit__(self, *_):
        if self.file:
            os.close(self.file)


PLANS = {"loop": Image, "null": Planted, "memory": Memory, "crypt": Encrypted, "overlay": Layered, "fault": Faulty}


def add(image=None, target=None, link=None, mode="copy", **parameters):
    """Adds a device as root, without the CLI; returns it. Raises VarlinkError. mode=None: the best."""
    target = target or getattr(image, "target", "loop")
    parameters = getattr(image, "parameters", {}) | parameters
    if mode:
        parameters["mode"] = mode
    before = worker_processes() if isinstance(image, Planted) else ()
    with link or Varlink() as link:
        link.send("io.ubd.Broker.Add", {"target": target, **parameters}, more=True)
        planted = isinstance(image, Planted)
        if planted and not image.files:
            image.plant(before)
        reply = link.receive()
        if image and (not planted or image.files) and reply and "error" not in reply:
            parking = socket.socket(fileno=link.files.pop())
            with parking:
                socket.send_fds(parking, [b"f"], getattr(image, "files", ()) or [image if isinstance(image, int) else image.file])
            if planted:
                image.plant(before)
            reply = link.receive()
        if reply is None:
            raise EOFError("the broker closed the connection")
        if "error" in reply:
            raise VarlinkError(reply)
        return reply["parameters"]["device"]


def verdict(success, where, name, outcome):
    """One attempt's, in the file that a run leaves (.build/lab/runs/KERNEL/GROUP/ATTEMPT/files/verdicts)."""
    os.makedirs(os.path.dirname(VERDICTS), exist_ok=True)
    with open(VERDICTS, "a") as file:
        file.write(f"{'SUCCESS' if success else 'refused'}: {where}: {name}: {outcome}\n")


def say(result):
    if result == PENDING:
        return "it was taken"
    return f"-{errno.errorcode.get(-result, -result)}" if result < 0 else str(result)


def refusal(image, **parameters):
    """The message with which an add fails; None when it does not (the device is deleted again)."""
    try:
        device = add(image, **parameters)
    except VarlinkError as error:
        return error.parameters["message"]
    delete(device["id"])
    return None


def delete(number, force=True):
    with Varlink() as link:
        link.call("io.ubd.Broker.Delete", {"id": number, "force": force})


def listed(number):
    with Varlink() as link:
        return link.call("io.ubd.Broker.List", {"id": number})["devices"][0]


class KernelLog:
    """What the kernel says from now on."""

    def __init__(self):
        self.file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self.file, 0, os.SEEK_END)

    def lines(self):
        found = []
        while True:
            try:
                found.append(os.read(self.file, 8192).decode(errors="replace"))
            except BlockingIOError:
                return found
            except BrokenPipeError:
                continue

    def killing_calls(self):
        """Numbers of the system calls for which seccomp has killed workers since the last time."""
        found = []
        for line in self.lines():
            match = re.search(r"type=1326 .* uid=(\d+) .* sig=31 .* syscall=(\d+) ", line)
            if match and int(match[1]) >= 0x70000000:
                found.append(int(match[2]))
        return found


def worker_processes():
    """Pids of all processes with a worker's uid."""
    found = []
    for status in glob.glob("/proc/[0-9]*/status"):
        with contextlib.suppress(OSError):
            if re.search(r"^Uid:\t18790\d{5}", open(status).read(), re.M):
                found.append(int(status.split("/")[2]))
    return found
