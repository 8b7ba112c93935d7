"""Plans for a worker of target nbd (escape.py), and what it can try on its sockets."""
from escape import *
from nbd import HostileServer, lock, nbd_options
from ring_attempts import *


class Connected(Planted):
    """As for a worker without a file: the plan is written into its memory. It has one connection, to a server of ours."""

    target = "nbd"

    def __init__(self, *arguments, tcp=False, **more):
        super().__init__(*arguments, **more)
        self.server = HostileServer(tcp=tcp)
        self.server.start()
        self.files = [lock(self.server.near).fileno()]
        self.parameters = {"options": nbd_options(self.server.agreed)}

    def __exit__(self, *more):
        super().__exit__(*more)
        self.server.near.close()


SOCKET_ALLOWED = {"READV", "WRITEV"}
# struct iovec, struct msghdr with one, and a control message that would pass descriptor 8 on.
VECTOR, MESSAGE, CONTROL, OPTION = 3072, 3136, 3264, 3328
SOCKET_DATA = {
    VECTOR: struct.pack("<QQ", at(2048), 16),
    MESSAGE: struct.pack("<QI4xQQQQI4x", 0, 0, at(VECTOR), 1, at(CONTROL), 24, 0),
    CONTROL: struct.pack("<QiiI4x", 20, 1, 1, 8),
    OPTION: struct.pack("<I", 1),
}
# What an operation would need to do harm with a connected socket, in slot 0.
SOCKET_ARGUMENTS = {
    "SENDMSG": dict(address=at(MESSAGE), length=1), "RECVMSG": dict(address=at(MESSAGE), length=1),
    "SENDMSG_ZC": dict(address=at(MESSAGE), length=1), "SEND": dict(address=at(2048), length=16),
    "SEND_ZC": dict(address=at(2048), length=16), "RECV": dict(address=at(2048), length=16),
    "CONNECT": dict(address=at(128), offset=16), "BIND": dict(address=at(128), offset=16), "LISTEN": dict(length=1),
    "SHUTDOWN": dict(length=2), "ACCEPT": {}, "WRITE": dict(address=at(2048), length=16), "FIXED_FD_INSTALL": {},
    "SPLICE": dict(length=16), "SOCKET": dict(fd=1, offset=1), "POLL_ADD": dict(operation_flags=1),
}  # fmt: skip


def on_sockets():
    """Every operation, on the socket itself, that is not one of the two that its ring may do; and those with another flag, on
    another file, or on one that is not fixed."""
    attempts = {}
    for name, number in OPERATIONS.items():
        if name not in SOCKET_ALLOWED:
            arguments = {"fd": 0} | ARGUMENTS.get(name, {}) | SOCKET_ARGUMENTS.get(name, {})
            attempts[f"{name} on its socket"] = entry(number, **arguments)
    # SOCKET_URING_OP_SETSOCKOPT of SO_LOCK_FILTER, SO_SNDBUF, SO_PASSCRED (linux/io_uring.h).
    for name, level, option in (("SO_LOCK_FILTER", 1, 44), ("SO_SNDBUF", 1, 7), ("SO_PASSCRED", 1, 16), ("SO_ATTACH_FILTER", 1, 26)):
        attempts[f"URING_CMD: setsockopt {name}"] = entry(
            URING_CMD, fd=0, offset=3, address=level | option << 32, file_index=4, payload=(at(OPTION), 0))  # fmt: skip
    for name in sorted(SOCKET_ALLOWED):
        number, where = OPERATIONS[name], dict(address=at(VECTOR), length=1)
        attempts[f"{name} of a socket that is not fixed"] = entry(number, 0, fd=8, **where)
        attempts[f"{name} of the control socket"] = entry(number, 0, fd=3, **where)
        for flag, bit in FLAGS.items():
            attempts[f"{name} with the {flag} flag"] = entry(number, FIXED_FILE | bit, fd=0, **where)
        attempts[f"{name} into a buffer that the kernel chooses"] = entry(number, FIXED_FILE | BUFFER_SELECT, fd=0, **where)
    attempts |= {f"operation {number}": entry(number, fd=0) for number in range(58, 256)}
    return attempts


def on_other_files():
    """The two allowed operations where there is no socket."""
    attempts = {}
    for name in sorted(SOCKET_ALLOWED):
        number, where = OPERATIONS[name], dict(address=at(VECTOR), length=1)
        for slot in (1, 2, 3, 8, 77, 1 << 20, -1):
            attempts[f"{name} of file {slot} of the socket's ring"] = entry(number, fd=slot, **where)
        attempts[f"{name} of its socket at an offset"] = entry(number, fd=0, offset=4096, **where)
        attempts[f"{name} with a kernel's address"] = entry(number, fd=0, address=KERNEL_ADDRESS, length=1)
    return attempts
