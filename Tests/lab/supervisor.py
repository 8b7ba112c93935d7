"""A supervisor of a program's system calls (seccomp_unotify(2)): lets them through, until it is told to let one fail.
`# files: Tests/lab/supervisor.py`, then `from supervisor import *`. x86_64.
"""
import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import threading

CHDIR, MOUNT, UMOUNT2, PIVOT_ROOT, PRCTL, PRLIMIT64, UNSHARE = 80, 165, 166, 155, 157, 302, 272
SETGROUPS, SETRESGID, SETRESUID, CAPSET = 116, 119, 117, 126
OPENAT, CLOSE_RANGE, EXECVEAT, RT_SIGPROCMASK = 257, 436, 322, 14

SECCOMP, SET_MODE_FILTER, NEW_LISTENER = 317, 1, 1 << 3
ALLOW, USER_NOTIF = 0x7FFF0000, 0x7FC00000
RECEIVE, SEND, CONTINUE = 0xC0502100, 0xC0182101, 1


def _statement(code, value, yes=0, no=0):
    return struct.pack("<HBBI", code, yes, no, value)


class Supervisor:
    def __init__(self, numbers):
        """Of the system calls with these numbers."""
        self.numbers = sorted(set(numbers))
        self.receiver, self.sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.armed, self.done, self.thread, self.listener = None, False, None, -1
        self.lock = threading.Lock()

    def begin(self):
        """In the child that becomes the program."""
        code = _statement(0x20, 0)  # the call's number
        code += b"".join(_statement(0x15, number, len(self.numbers) - index, 0) for index, number in enumerate(self.numbers))
        code += _statement(0x06, ALLOW) + _statement(0x06, USER_NOTIF)
        text = ctypes.create_string_buffer(code)
        program = struct.pack("<H6xQ", len(code) // 8, ctypes.addressof(text))
        libc = ctypes.CDLL(None, use_errno=True)
        listener = libc.syscall(SECCOMP, SET_MODE_FILTER, NEW_LISTENER, ctypes.c_char_p(program))
        if listener == -1:
            raise OSError(ctypes.get_errno(), "seccomp")
        # The listener closes on exec; the copy in this message stays.
        socket.send_fds(self.sender, [b"l"], [listener])

    def watch(self):
        """In the parent, before the program starts, which waits at the first such call until it is heard."""
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def arm(self, number, arguments, error):
        """The next such call with these arguments (position to value) fails with that errno; 0: is pretended to have worked."""
        with self.lock:
            self.armed, self.done = (number, arguments, error), False

    def _answer(self, number, arguments):
        """(value, error, flags)"""
        with self.lock:
            if self.armed and number == self.armed[0] and all(arguments[at] == value for at, value in self.armed[1].items()):
                error, self.armed, self.done = self.armed[2], None, True
                return 0, -error, 0
        return 0, 0, CONTINUE

    def _run(self):
        _, (self.listener,), _, _ = socket.recv_fds(self.receiver, 1, 1)
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        while True:
            if any(event & select.POLLHUP for _, event in poll.poll()):
                return
            notification = bytearray(80)
            try:
                fcntl.ioctl(self.listener, RECEIVE, notification)
                number, pid, _, call = struct.unpack_from("<QIIi", notification)
                value, error, flags = self._answer(call, struct.unpack_from("<6Q", notification, 32))
                fcntl.ioctl(self.listener, SEND, bytearray(struct.pack("<QqiI", number, value, error, flags)))
            except OSError as failure:
                # The caller may have died in the meantime.
                if failure.errno not in (errno.ENOENT, errno.EINTR):
                    raise

    def end(self):
        self.thread.join(10)
        os.close(self.listener)
        self.receiver.close()
        self.sender.close()
