"""FUSE servers for the lab: one file each, over the raw protocol (linux/fuse.h)."""
import contextlib
import ctypes
import errno
import mmap
import os
import signal
import stat
import struct
import threading

LOOKUP, GETATTR, SETATTR, OPEN, RELEASE, INIT = 1, 3, 4, 14, 18, 26
# A flag of INIT: the kernel keeps what is written, and the file's times, and tells the server when the file is closed.
WRITEBACK_CACHE = 1 << 16
READ, WRITE, STATFS, FSYNC, FALLOCATE = 15, 16, 17, 20, 43
# RELEASE, FORGET, INTERRUPT, BATCH_FORGET.
NOT_WAITED_FOR = (RELEASE, 2, 36, 42)
NAMES = {READ: "read", WRITE: "write", FSYNC: "fsync", FALLOCATE: "fallocate"}
SIZE = 1 << 20


def mount(folder):
    """Mounts a FUSE file system for everybody; its server's end."""
    os.makedirs(folder, exist_ok=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"test", folder.encode(), b"fuse", 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount of a FUSE file system")
    return device


class SilentFuse:
    """Mounted at `folder`, for everybody; the file is `folder`/file. It answers what it takes to open the file, and then
    nothing: it takes every other request and keeps it, and whoever waits for that answer cannot even be killed. With `opens`
    only reads and writes stay unanswered, so that a device can be made of the file."""

    def __init__(self, folder, opens=False, silent=(READ, WRITE), flags=0):
        """`silent`: what stays unanswered with `opens`. `flags`: of the answer to INIT."""
        self.folder, self.path, self.opens = folder, f"{folder}/file", opens
        self.silent, self.flags = silent, flags
        device = mount(folder)
        self.count = mmap.mmap(-1, 8)
        self.server = os.fork()
        if self.server == 0:
            self._serve(device)
        os.close(device)
        self.connection = f"/sys/fs/fuse/connections/{os.minor(os.stat(folder).st_dev)}"

    @property
    def kept(self):
        """How many requests it has taken and kept. Who waits for one that it has not taken yet can be killed."""
        return int.from_bytes(self.count[:8], "little")

    def abort(self):
        """Ends the connection: everybody who waits gets an error."""
        with open(f"{self.connection}/abort", "w") as file:
            file.write("1")

    def end(self):
        os.kill(self.server, signal.SIGKILL)
        os.waitpid(self.server, 0)
        ctypes.CDLL(None).umount2(self.folder.encode(), 2)

    def _serve(self, device):
        while True:
            try:
                request = os.read(device, 1 << 17)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                os._exit(0)
            _, operation, unique, node = struct.unpack_from("<IIQQ", request)
            body = self._answer(operation, node)
            if body:
                os.write(device, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)
            elif self.opens and operation not in self.silent:
                # As a server does that has no such function. (FORGET gets no answer, and an answer to it does no harm.)
                with contextlib.suppress(OSError):
                    os.write(device, struct.pack("<IiQ", 16, 0 if operation == RELEASE else -errno.ENOSYS, unique))
            elif operation not in NOT_WAITED_FOR:
                self.count[:8] = (self.kept + 1).to_bytes(8, "little")

    def _answer(self, operation, node):
        def attributes(number):
            return attributes_of(number, SIZE)

        if operation == INIT:
            return struct.pack("<IIIIHHIIHH8I", 7, 31, 0, self.flags, 12, 9, 65536, 1, 0, 0, *[0] * 8)
        if operation == LOOKUP:
            return struct.pack("<QQQQII", 2, 1, 1000, 1000, 0, 0) + attributes(2)
        if operation == GETATTR:
            return struct.pack("<QII", 1000, 0, 0) + attributes(node)
        if operation == OPEN:
            return struct.pack("<QII", 1, 0, 0)
        if operation == STATFS and self.opens:
            return struct.pack("<5Q10I", 0, 0, 0, 1, 1, 4096, 255, 4096, *[0] * 7)
        return None


def attributes_of(node, size):
    """struct fuse_attr."""
    mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o666
    return struct.pack("<6Q3I7I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


class ServingFuse:
    """Mounted at `folder`, for everybody: serves the file `folder`/file from memory (`data`), writes down what is asked of it
    (`log`: name, offset and size of each read, write, fsync and fallocate), and does it wrong when it is told to (`faults`).

    `cached`: the kernel keeps pages of it; otherwise each read and write comes here as it is, and so do their short ends.
    """

    def __init__(self, folder, size, cached=False):
        self.folder, self.path, self.data = folder, f"{folder}/file", bytearray(size)
        self.log, self.faults, self.held, self.cached = [], {}, [], cached
        self.lock = threading.Lock()
        self.device = mount(folder)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def fail(self, name, number, times=1):
        """The next `times` operations of that name end with that errno."""
        self.faults[name] = [("error", number)] * times

    def shorten(self, name, size, times=1):
        """The next `times` reads or writes do `size` bytes at most."""
        self.faults[name] = [("short", size)] * times

    def hold(self, name):
        """Operations of that name are taken and not answered until `release`."""
        self.faults[name] = [("hold", 0)] * 1000

    def release(self):
        with self.lock:
            self.faults.clear()
            held, self.held = self.held, []
        for unique, operation, request in held:
            self._reply(unique, self._perform(operation, request, None))

    def asked(self, name):
        """How often that was asked for since the log was cleared."""
        return sum(entry[0] == name for entry in self.log)

    def end(self):
        self.release()
        ctypes.CDLL(None).umount2(self.folder.encode(), 2)
        # The read of a server whose file system is gone ends with ENODEV, once nobody has the file open any more.
        self.thread.join(10)
        return not self.thread.is_alive()

    def _serve(self):
        while True:
            try:
                request = os.read(self.device, (1 << 20) + (1 << 17))
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                os.close(self.device)
                return
            _, operation, unique, node = struct.unpack_from("<IIQQ", request)
            # FORGET, INTERRUPT and BATCH_FORGET want no answer.
            if operation in (2, 36, 42):
                continue
            fault = None
            if name := NAMES.get(operation):
                self.log.append((name, *self._range(operation, request)))
                with self.lock:
                    fault = self.faults[name].pop(0) if self.faults.get(name) else None
                    if fault and fault[0] == "hold":
                        self.held.append((unique, operation, request))
                        continue
                self._reply(unique, self._perform(operation, request, fault))
            else:
                self._reply(unique, self._describe(operation, node))

    @staticmethod
    def _range(operation, request):
        if operation == FSYNC:
            return 0, 0
        offset, size = struct.unpack_from("<QQ" if operation == FALLOCATE else "<QI", request, 48)
        return offset, size

    def _reply(self, unique, body):
        error, body = (-body, b"") if isinstance(body, int) else (0, body)
        os.write(self.device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)

    def _perform(self, operation, request, fault):
        """The answer's body, or an errno."""
        if fault and fault[0] == "error":
            return fault[1]
        offset, size = self._range(operation, request)
        if fault and fault[0] == "short":
            size = min(size, fault[1])
        if operation == READ:
            return bytes(self.data[offset : offset + size])
        if operation == WRITE:
            self.data[offset : offset + size] = request[80 : 80 + size]
            return struct.pack("<II", size, 0)
        if operation == FALLOCATE:
            self.data[offset : offset + size] = bytes(size)
        return b""

    def _describe(self, operation, node):
        if operation == INIT:
            # ASYNC_READ, BIG_WRITES and MAX_PAGES: requests of a megabyte.
            flags = 1 << 0 | 1 << 5 | 1 << 22
            return struct.pack("<IIIIHHIIHH8I", 7, 31, 0, flags, 64, 48, 1 << 20, 1, 256, 0, *[0] * 8)
        if operation == LOOKUP:
            return struct.pack("<QQQQII", 2, 1, 1000, 1000, 0, 0) + attributes_of(2, len(self.data))
        if operation == GETATTR:
            return struct.pack("<QII", 1000, 0, 0) + attributes_of(node, len(self.data))
        if operation == OPEN:
            return struct.pack("<QII", 1, 0 if self.cached else 1, 0)
        if operation == STATFS:
            return struct.pack("<5Q4I6I", 1 << 20, 1 << 19, 1 << 19, 2, 0, 4096, 255, 4096, *[0] * 7)
        # RELEASE and FLUSH.
        return b"" if operation in (18, 25) else errno.ENOSYS
