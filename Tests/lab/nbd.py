"""For groups about target nbd: NBD servers, the client's part of the negotiation, and a server that does wrong.
`# files: Tests/lab/devices.py Tests/lab/clients.py Tests/lab/nbd.py`, then `from nbd import *`."""
import array
import socket
import struct
import threading

from clients import *
from devices import *

# From the document of the NBD protocol.
OPTION_MAGIC, REPLY_MAGIC = 0x49484156454F5054, 0x3E889045565A9
OPT_GO, INFO_EXPORT, INFO_BLOCK_SIZE, REP_ACK, REP_INFO = 7, 0, 3, 1, 3
REQUEST_MAGIC, SIMPLE_REPLY_MAGIC = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_ZEROES, MULTI_CONN = 1, 2, 4, 8, 32, 64, 256
FLAG_FUA, FLAG_NO_HOLE = 1, 2


class Closed(Exception):
    pass


def exactly(link, count):
    """So many bytes of a socket."""
    data = b""
    while len(data) < count:
        some = link.recv(count - len(data))
        if not some:
            raise Closed(f"the other side closed after {len(data)} of {count} bytes")
        data += some
    return data


# --- the client's part ------------------------------------------------------------------------------------------------


def dial(address):
    """A connected socket: `address` is a path, or (host, port)."""
    link = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET, socket.SOCK_STREAM)
    link.settimeout(20 * PATIENCE)
    link.connect(address)
    return link


def negotiate(link, export=""):
    """HELLO and GO: what was agreed on. The connection is then in its transmission phase, with simple replies."""
    assert exactly(link, 16) == b"NBDMAGICIHAVEOPT", "no NBD server of today"
    flags = struct.unpack(">H", exactly(link, 2))[0]
    link.sendall(struct.pack(">I", flags & 3))
    name = export.encode()
    data = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, INFO_BLOCK_SIZE)
    link.sendall(struct.pack(">QII", OPTION_MAGIC, OPT_GO, len(data)) + data)
    agreed = {"minimum": 1, "preferred": 4096, "maximum": 32 << 20}
    while True:
        magic, _, kind, length = struct.unpack(">QIII", exactly(link, 20))
        data = exactly(link, length)
        assert magic == REPLY_MAGIC and kind in (REP_ACK, REP_INFO), f"the server refuses: {kind:#x} {data!r}"
        if kind == REP_ACK:
            return agreed
        if struct.unpack(">H", data[:2])[0] == INFO_EXPORT:
            agreed["size"], agreed["flags"] = struct.unpack(">QH", data[2:12])
        elif struct.unpack(">H", data[:2])[0] == INFO_BLOCK_SIZE:
            agreed["minimum"], agreed["preferred"], agreed["maximum"] = struct.unpack(">III", data[2:14])


def lock(link):
    """As the worker wants it: blocking, and nobody can change what is filtered any more."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, 44, 1)
    return link


def nbd_options(agreed, **more):
    block = max(512, agreed["minimum"])
    return {
        "size": str(agreed["size"] // block * block), "block-size": str(block), "export-flags": str(agreed["flags"]),
        "minimum-block": str(agreed["minimum"]), "preferred-block": str(max(512, agreed["preferred"])),
        "maximum-block": str(agreed["maximum"]), **more,
    }  # fmt: skip


def hand_over(method, parameters, links):
    """A call in which the broker asks for sockets, of which it gets as many as it says; the last reply."""
    with Varlink(timeout=60) as broker:
        broker.send("io.ubd.Broker." + method, parameters, more=True)
        reply = broker.receive()
        if not reply or not reply.get("continues"):
            return reply
        files = array.array("i", [lock(link).fileno() for link in links[: reply["parameters"]["files"]]])
        with socket.socket(fileno=broker.files.pop()) as parking:
            parking.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        return broker.receive()


def nbd_request(agreed, connections, options=None, **parameters):
    return add_request("nbd", queues=connections, options=nbd_options(agreed, **(options or {})), **parameters)


def nbd_reply(links, agreed, user="alice", options=None, **parameters):
    """Adds a device on connections in transmission phase; the last reply of the call."""
    return in_child(user, hand_over, "Add", nbd_request(agreed, len(links), options, **parameters), links)


@contextlib.contextmanager
def nbd_device(address, connections=1, user="alice", export="", options=None, **parameters):
    """A device behind a server, for the length of a `with`."""
    links = [dial(address) for _ in range(connections)]
    agreed = [negotiate(link, export) for link in links][0]
    reply = nbd_reply(links, agreed, user, options, **parameters)
    for link in links:
        link.close()
    assert "device" in reply.get("parameters", {}), f"no device: {reply}"
    disk = reply["parameters"]["device"] | {"agreed": agreed}
    try:
        yield disk
    except BaseException:
        run("ubd", "del", "-n", disk["id"], "--force")
        raise
    must("ubd", "del", "-n", disk["id"], user=user)


# --- servers ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def server(*command, socket_path):
    """A server's process, once it listens; killed at the end."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(socket_path)
    log = open("/run/lab/nbd-server.log", "ab")
    process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        there = eventually(20, lambda: process.poll() is not None or listens(socket_path))
        assert there and process.poll() is None, "no server: " + open("/run/lab/nbd-server.log").read()[-1000:]
        os.chmod(socket_path, 0o666)
        yield process
    finally:
        process.kill()
        process.wait()


def nbdkit(*arguments, path="/run/lab/nbdkit.sock"):
    return server("nbdkit", "-f", "-U", path, *arguments, socket_path=path)


def qemu_nbd(file, *arguments, path="/run/lab/qemu-nbd.sock"):
    return server("qemu-nbd", "-t", "-e", "4", "-k", path, *arguments, file, socket_path=path)


# --- a server that does wrong -----------------------------------------------------------------------------------------


class HostileServer(threading.Thread):
    """The other end of one connection, already in its transmission phase: memory of `size` bytes, and one wrong thing.

    `wrong(server, cookie, data)` returns the bytes that answer the first read of sector 8; everything else is answered as it
    should be. `fed`: bytes that are sent in pieces of that size. What is no request it takes without an answer, up to the end
    of the connection: that is in `nonsense`. However it ends, its own end of the connection is closed then. `tcp`: by TCP, not
    by a pair of Unix sockets."""

    def __init__(self, wrong=None, size=1 << 20, fed=None, tcp=False):
        super().__init__(daemon=True)
        if tcp:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                self.near = socket.create_connection(listening.getsockname())
                self.far = listening.accept()[0]
        else:
            self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.wrong, self.memory, self.fed, self.cookies, self.nonsense = wrong, bytearray(size), fed, [], b""
        self.agreed = {
            "size": size, "flags": HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_ZEROES | MULTI_CONN,
            "minimum": 1, "preferred": 4096, "maximum": 32 << 20,
        }  # fmt: skip

    def say(self, data):
        for at in range(0, len(data), self.fed or len(data) or 1):
            self.far.sendall(data[at : at + (self.fed or len(data))])

    def run(self):
        with self.far, contextlib.suppress(Closed, OSError):
            while True:
                head = exactly(self.far, 28)
                magic, _, command, cookie, offset, length = struct.unpack(">IHHQQI", head)
                if magic != REQUEST_MAGIC:
                    self.nonsense = head
                    while some := self.far.recv(1 << 16):
                        self.nonsense += some
                    break
                data = exactly(self.far, length) if command == WRITE else b""
                if command == DISCONNECT:
                    break
                self.cookies.append(cookie)
                if command == WRITE:
                    self.memory[offset : offset + length] = data
                elif command in (TRIM, WRITE_ZEROES):
                    self.memory[offset : offset + length] = bytes(length)
                answer = bytes(self.memory[offset : offset + length]) if command == READ else b""
                if self.wrong and command == READ and offset == 8 * 512:
                    self.say(self.wrong(self, cookie, answer))
                else:
                    self.say(simple_reply(cookie) + answer)


def simple_reply(cookie, error=0, magic=SIMPLE_REPLY_MAGIC):
    return struct.pack(">IIQ", magic, error, cookie)


# What a server can do wrong: each field once, and the ways to say too much, too little or nothing.
WRONGS = {
    "another magic": lambda server, cookie, data: simple_reply(cookie, magic=0x67446699) + data,
    "a structured reply": lambda server, cookie, data: struct.pack(">IHHQI", 0x668E33EF, 1, 1, cookie, 8 + len(data)) + bytes(8) + data,
    "a request": lambda server, cookie, data: struct.pack(">IHHQQI", REQUEST_MAGIC, 0, 0, cookie, 0, 512),
    "cookie 0": lambda server, cookie, data: simple_reply(0) + data,
    "the cookie of a tag that does not exist": lambda server, cookie, data: simple_reply(cookie | 0xFFFF) + data,
    "the cookie of another tag": lambda server, cookie, data: simple_reply(cookie ^ 1) + data,
    "the cookie of an earlier request": lambda server, cookie, data: simple_reply(server.cookies[0]) + data,
    "the cookie of a later request": lambda server, cookie, data: simple_reply(cookie + (1 << 16)) + data,
    "its bytes in the wrong order": lambda server, cookie, data: struct.pack("<IIQ", SIMPLE_REPLY_MAGIC, 0, cookie) + data,
    "its reply twice": lambda server, cookie, data: 2 * (simple_reply(cookie) + data),
    "more data than was asked for": lambda server, cookie, data: simple_reply(cookie) + 2 * data,
    "data after an error": lambda server, cookie, data: simple_reply(cookie, error=5) + data,
    "endless zeros": lambda server, cookie, data: bytes(4 << 20),
    "text": lambda server, cookie, data: b"HTTP/1.1 400 Bad Request\r\n\r\n",
}
