"""A client of `ubd provide`, and what systemd does for it."""
from devices import *

INTERFACE = "io.systemd.StorageProvider."
PLACE = "/run/lab/provide"
# What systemd does for each connection (sd_listen_fds(3)).
ACTIVATED = "export LISTEN_PID=$$ LISTEN_FDS=1 HOME=/home/$0 XDG_RUNTIME_DIR=/run/user/$(id -u); exec ubd provide"


class Client(Varlink):
    """A connection to a provider of `user`, who is also at this end of it, or `peer`."""

    def __init__(self, user="alice", peer=None):
        self.listener = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(PLACE)
        self.listener.bind(PLACE)
        os.chmod(PLACE, 0o666)
        self.listener.listen(1)
        self.socket = socket.socket(socket.AF_UNIX)
        # SO_PEERCRED is of who connects.
        connected_as(peer or user, self.socket)
        accepted, _ = self.listener.accept()
        self.program = subprocess.Popen(as_user(user, "sh", "-c", ACTIVATED, user), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                        close_fds=False, preexec_fn=lambda: os.dup2(accepted.fileno(), 3, inheritable=True))  # fmt: skip
        accepted.close()
        self.socket.settimeout(30 * PATIENCE)
        self.buffer, self.files = b"", []

    def close(self):
        super().close()
        self.listener.close()
        self.status = self.program.wait(20 * PATIENCE)
        self.said = self.program.stderr.read()

    def acquire(self, name, **parameters):
        return self.call(INTERFACE + "Acquire", {"name": name, **parameters})

    def refused(self, method, parameters):
        """The error's name without its interface."""
        try:
            return f"no error: {self.call(INTERFACE + method, parameters)}"
        except VarlinkError as error:
            return error.name.removeprefix(INTERFACE)

    def volumes(self, **parameters):
        self.send(INTERFACE + "ListVolumes", parameters, more=True)
        found = []
        while True:
            reply = self.receive()
            assert "error" not in reply, reply
            found.append(reply["parameters"])
            if not reply.get("continues"):
                return found


def connected_as(user, end):
    entry, own = pwd.getpwnam(user), os.geteuid()
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        end.connect(PLACE)
    finally:
        os.seteuid(own)
        os.setegid(0)
