"""A FUSE server for the lab: one file, over the raw protocol (linux/fuse.h). It answers what it takes to open the file, and
then nothing: it takes every other request and keeps it, and whoever waits for that answer cannot even be killed."""
import contextlib
import ctypes
import errno
import os
import signal
import stat
import struct

LOOKUP, GETATTR, OPEN, READ, WRITE, STATFS, RELEASE, INIT = 1, 3, 14, 15, 16, 17, 18, 26
SIZE = 1 << 20


class SilentFuse:
    """Mounted at `folder`, for everybody; the file is `folder`/file. With `opens` only reads and writes stay unanswered, so that
    a device can be made of the file."""

    def __init__(self, folder, opens=False):
        self.folder, self.path, self.opens = folder, f"{folder}/file", opens
        os.makedirs(folder, exist_ok=True)
        device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"silent", folder.encode(), b"fuse", 0, options.encode()) != 0:
            raise OSError(ctypes.get_errno(), "mount of a FUSE file system")
        self.server = os.fork()
        if self.server == 0:
            self._serve(device)
        os.close(device)
        self.connection = f"/sys/fs/fuse/connections/{os.minor(os.stat(folder).st_dev)}"

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
            elif self.opens and operation not in (READ, WRITE):
                # As a server does that has no such function. (FORGET gets no answer, and an answer to it does no harm.)
                with contextlib.suppress(OSError):
                    os.write(device, struct.pack("<IiQ", 16, 0 if operation == RELEASE else -errno.ENOSYS, unique))

    def _answer(self, operation, node):
        def attributes(number):
            mode = stat.S_IFDIR | 0o755 if number == 1 else stat.S_IFREG | 0o666
            return struct.pack("<6Q3I7I", number, SIZE, SIZE // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

        if operation == INIT:
            return struct.pack("<IIIIHHIIHH8I", 7, 31, 0, 0, 12, 9, 65536, 1, 0, 0, *[0] * 8)
        if operation == LOOKUP:
            return struct.pack("<QQQQII", 2, 1, 1000, 1000, 0, 0) + attributes(2)
        if operation == GETATTR:
            return struct.pack("<QII", 1000, 0, 0) + attributes(node)
        if operation == OPEN:
            return struct.pack("<QII", 1, 0, 0)
        if operation == STATFS and self.opens:
            return struct.pack("<5Q10I", 0, 0, 0, 1, 1, 4096, 255, 4096, *[0] * 7)
        return None
