"""For groups about TLS: certificates, keys, and a server of NBD over TLS that says things between its records of data.
`# files: … Tests/lab/nbd.py Tests/lab/tls.py`"""
import ctypes
import ctypes.util

from nbd import *

# From gnutls/gnutls.h.
SERVER, CRD_PSK = 1, 4
ALERT_WARNING, USER_CANCELED, SHUT_WR = 1, 90, 1
OPT_STARTTLS, ERR_UNSUPPORTED = 5, 1 << 31 | 1
KEY = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"


def openssl(*arguments):
    must("openssl", *arguments)


def make_authority(folder, name="ca"):
    """An authority's certificate and key in a folder, as ca-cert.pem and ca-key.pem."""
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/openssl.conf", "w") as file:
        file.write("[req]\ndistinguished_name = name\n[name]\n")
    _make(folder, name, [], ["basicConstraints=critical,CA:true", "keyUsage=critical,keyCertSign"])


def _make(folder, name, signer, extensions):
    openssl("req", "-x509", "-config", f"{folder}/openssl.conf", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
        "-keyout", f"{folder}/{name}-key.pem", "-out", f"{folder}/{name}-cert.pem", "-subj", f"/CN={name}", *signer,
        *(word for extension in extensions for word in ("-addext", extension)))  # fmt: skip


def make_certificate(folder, name, *extensions):
    """One that the folder's authority has signed, as NAME-cert.pem and NAME-key.pem."""
    signer = ["-CA", f"{folder}/ca-cert.pem", "-CAkey", f"{folder}/ca-key.pem"]
    _make(folder, name, signer, ["basicConstraints=critical,CA:false", "keyUsage=digitalSignature", *extensions])


class GnuTLSServer(threading.Thread):
    """NBD over TLS 1.3 with a shared key, from memory, for one client after another. On its first connection it says something that is no
    data after so many requests: `between` is a function of a session. When the client ends that connection the server is still at work
    for half a second before it closes; `early` are the connections that were made meanwhile."""

    library = None

    def __init__(self, port, keys, between, after=5, size=1 << 20):
        super().__init__(daemon=True)
        self.between, self.after, self.memory = between, after, bytearray(size)
        self.said, self.connections, self.problem = None, 0, ""
        self.early, self.at_work = 0, False
        if GnuTLSServer.library is None:
            GnuTLSServer.library = ctypes.CDLL("libgnutls.so.30")
            GnuTLSServer.library.gnutls_record_send.restype = GnuTLSServer.library.gnutls_record_recv.restype = ctypes.c_ssize_t
        self.credentials, self.tickets = ctypes.c_void_p(), Datum()
        self.call("psk_allocate_server_credentials", ctypes.byref(self.credentials))
        self.call("psk_set_server_credentials_file", self.credentials, keys.encode())
        self.call("session_ticket_key_generate", ctypes.byref(self.tickets))
        self.listener = socket.create_server(("127.0.0.1", port))
        self.start()

    def call(self, name, *arguments):
        result = getattr(self.library, "gnutls_" + name)(*arguments)
        assert result >= 0, f"gnutls_{name}: {result}"
        return result

    def run(self):
        while True:
            try:
                link, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            self.early += self.at_work
            threading.Thread(target=self._serve, args=(link, self.connections == 1), daemon=True).start()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _serve(self, link, first):
        try:
            with link:
                session = self._secure(link)
                self._negotiate(session)
                self.at_work = first
                try:
                    self._transmit(session, first)
                finally:
                    if first:
                        time.sleep(0.5)
                        self.at_work = False
        except (Closed, OSError):
            pass
        except Exception as error:
            self.problem = repr(error)

    def _secure(self, link):
        link.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        exactly(link, 4)
        _, option, length = struct.unpack(">QII", exactly(link, 16))
        exactly(link, length)
        assert option == OPT_STARTTLS, f"option {option} comes first"
        link.sendall(struct.pack(">QIII", REPLY_MAGIC, option, REP_ACK, 0))
        session = ctypes.c_void_p()
        self.call("init", ctypes.byref(session), SERVER)
        self.call("session_ticket_enable_server", session, ctypes.byref(self.tickets))
        self.call("priority_set_direct", session, b"NORMAL:-VERS-ALL:+VERS-TLS1.3:+ECDHE-PSK:+DHE-PSK:+PSK", None)
        self.call("credentials_set", session, CRD_PSK, self.credentials)
        self.library.gnutls_transport_set_int2(session, link.fileno(), link.fileno())
        while (result := self.library.gnutls_handshake(session)) < 0:
            assert not self.library.gnutls_error_is_fatal(result), f"handshake: {result}"
        return session

    def _exactly(self, session, count):
        data, buffer = b"", ctypes.create_string_buffer(1 << 16)
        while len(data) < count:
            got = self.library.gnutls_record_recv(session, buffer, ctypes.c_size_t(min(count - len(data), len(buffer))))
            if got <= 0:
                raise Closed(got)
            data += buffer.raw[:got]
        return data

    def _say(self, session, data):
        while data:
            sent = self.library.gnutls_record_send(session, bytes(data), ctypes.c_size_t(len(data)))
            if sent < 0:
                raise Closed(sent)
            data = data[sent:]

    def _negotiate(self, session):
        while True:
            _, option, length = struct.unpack(">QII", self._exactly(session, 16))
            self._exactly(session, length)
            if option == OPT_GO:
                break
            self._say(session, struct.pack(">QIII", REPLY_MAGIC, option, ERR_UNSUPPORTED, 0))
        flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA
        self._say(session, struct.pack(">QIIIHQH", REPLY_MAGIC, option, REP_INFO, 12, INFO_EXPORT, len(self.memory), flags))
        self._say(session, struct.pack(">QIII", REPLY_MAGIC, option, REP_ACK, 0))

    def _transmit(self, session, first):
        requests = 0
        while True:
            _, _, command, cookie, offset, length = struct.unpack(">IHHQQI", self._exactly(session, 28))
            if command == DISCONNECT:
                return
            data = self._exactly(session, length) if command == WRITE else b""
            requests += 1
            if first and requests == self.after:
                self.said = self.between(self.library, session)
            if command == WRITE:
                self.memory[offset : offset + length] = data
            answer = bytes(self.memory[offset : offset + length]) if command == READ else b""
            self._say(session, simple_reply(cookie) + answer)


class Datum(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_uint)]


# What is no data: handshake messages and alerts.
BETWEEN = {
    "a session ticket": lambda library, session: library.gnutls_session_ticket_send(session, 1, 0),
    "a change of its key": lambda library, session: library.gnutls_session_key_update(session, 0),
    "a warning": lambda library, session: library.gnutls_alert_send(session, ALERT_WARNING, USER_CANCELED),
    "the end of the session": lambda library, session: library.gnutls_bye(session, SHUT_WR),
}
