"""For groups about devices of connections: a keeper in Python, which does what ubd's own does, and no more.
`# files: Tests/lab/devices.py Tests/lab/clients.py Tests/lab/load.py Tests/lab/nbd.py Tests/lab/keeper.py`"""
import select

from load import *
from nbd import *


class Keeper:
    """A process of alice's that adds a device behind a server, and brings it fresh connections whenever it waits for some, until it is
    gone. `kept=False`: it only adds it."""

    def __init__(self, address, connections=2, kept=True, options=None, **parameters):
        self.address, self.connections, self.options = address, connections, options
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(reader)
                become("alice")
                reply = self._add(parameters)
                os.write(writer, json.dumps(reply).encode())
                os.close(writer)
                if kept and "error" not in reply:
                    self._keep(reply["parameters"]["device"])
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            reply = json.loads(pipe.read())
        assert "device" in reply.get("parameters", {}), f"no device: {reply}"
        self.disk = reply["parameters"]["device"]
        if kept:
            there = eventually(10, lambda: listed(self.disk["id"]).get("keeper") == self.pid)
            assert there, f"it is not listed as the keeper: {listed(self.disk['id'])}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        run("ubd", "del", "-n", self.disk["id"], "--force")
        self.end()

    def end(self):
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = None

    # What follows runs in the process of alice's.

    def _dial(self):
        self.links = [dial(self.address) for _ in range(self.connections)]
        return [negotiate(link) for link in self.links][0]

    def _add(self, parameters):
        agreed = self._dial()
        reply = hand_over("Add", nbd_request(agreed, self.connections, self.options, **parameters), self.links)
        if "error" not in reply:
            self.connections = reply["parameters"]["device"]["queues"]
        return reply

    def _keep(self, disk):
        while True:
            with contextlib.suppress(OSError, EOFError), Varlink(timeout=3600) as broker:
                broker.send("io.ubd.Broker.Monitor", {"ids": [disk["id"]], "keep": True}, more=True)
                self._watch(broker, disk)
            # The broker is gone: another one may come.
            time.sleep(0.05)

    def _watch(self, broker, disk):
        waits = False
        while True:
            # Between two tries it hears whether the device still waits.
            if not waits or broker.buffer or select.select([broker.socket], [], [], 0.02)[0]:
                reply = broker.receive()
                if reply is None:
                    return
                change = reply.get("parameters", {}).get("change")
                if "error" in reply or change and (change["state"] == "gone" or change["generation"] != disk["generation"]):
                    os._exit(0)
                waits = change["waits"] if change else waits
            elif self._bring(disk):
                waits = False

    def _bring(self, disk):
        # What a dead worker had sent must be done before another one sends.
        for link in self.links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_WR)
                link.settimeout(20 * PATIENCE)
                while link.recv(1 << 16):
                    pass
            link.close()
        self.links = []
        try:
            agreed = self._dial()
        except (OSError, Closed):
            return False
        reply = hand_over("Recover", {"id": disk["id"], "generation": disk["generation"], "options": nbd_options(agreed)}, self.links)
        return bool(reply) and "error" not in reply


class FileServer:
    """nbdkit on a file, whose pages outlive its death; killed and started as the test says."""

    def __init__(self, size, *filters, path="/run/lab/nbdkit.sock", file="/run/lab/export.img"):
        self.path, self.file = path, sparse(file, size)
        self.command = ["nbdkit", "-f", "-U", path, *filters, "file", file]
        self.process, self.aborts = None, 0
        self.start()

    def revive(self):
        """Starts it again, as an init system would, when it has fallen over its own fault: nbdkit 1.32 aborts when a client dies in the
        middle of a request while others of it are answered."""
        if self.process.poll() is None:
            return
        log = open("/run/lab/nbd-server.log").read()[-1000:]
        assert self.process.returncode == -signal.SIGABRT and "raw_send_socket: Assertion" in log, f"the server ended: {self.process.returncode}, {log}"
        self.aborts += 1
        self.start()

    def start(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        log = open("/run/lab/nbd-server.log", "ab")
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        assert eventually(20, lambda: os.path.exists(self.path)), "no server: " + open("/run/lab/nbd-server.log").read()[-1000:]
        os.chmod(self.path, 0o666)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        os.unlink(self.file)
