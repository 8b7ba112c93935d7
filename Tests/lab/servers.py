"""For groups about target nbd as a user has it: real servers, and devices that `ubd add -t nbd` makes and ubd-nbd keeps.
`# files: Tests/lab/devices.py Tests/lab/clients.py Tests/lab/nbd.py Tests/lab/servers.py`, then `from servers import *`."""
from nbd import *

SYSTEM_LOG = "/dev/log"


def running(*names):
    """Pids of the processes with these names: {pid: command line}."""
    found = {}
    for folder in glob.glob("/proc/[0-9]*"):
        with contextlib.suppress(OSError):
            if content(folder + "/stat").partition(b"(")[2].rpartition(b")")[2].split()[0] != b"Z":
                if content(folder + "/comm").decode().strip() in names:
                    found[int(folder[6:])] = content(folder + "/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def none_left(sentence, *names):
    """A test: no keeper and no server of that name is there any more."""
    everything = ("ubd-nbd", *names)
    eventually(20, lambda: not running(*everything))
    left = running(*everything), glob.glob("/tmp/ubd-nbd.*")
    return check(sentence, left == ({}, []), left)


def diagnosis(*names):
    """What keepers and these programs are at: for a test that has waited in vain."""
    lines = []
    for pid, line in running("ubd-nbd", *names).items():
        lines.append(f"{pid} {line[:60]}:")
        for task in sorted(os.listdir(f"/proc/{pid}/task")):
            with contextlib.suppress(OSError):
                call, where = (content(f"/proc/{pid}/task/{task}/{name}").decode().strip() for name in ("syscall", "wchan"))
                lines.append(f"{task} in {where} ({' '.join(call.split()[:4])})")
        with contextlib.suppress(OSError):
            files = {int(name): os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
            lines.append(f"files {files}")
    return "; ".join(lines + SystemLog.all[-12:])


def listening(port):
    """Whether somebody listens at that TCP port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


@contextlib.contextmanager
def tcp_server(*command, port):
    """A server's process, once its port answers; killed at the end."""
    log = open("/run/lab/nbd-server.log", "ab")
    process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        there = eventually(20, lambda: process.poll() is not None or listening(port))
        assert there and process.poll() is None, "no server: " + open("/run/lab/nbd-server.log").read()[-1000:]
        yield process
    finally:
        process.kill()
        process.wait()


def add_with_notes(*arguments, user="alice", **more):
    """`ubd add -t nbd`: the device, and what came by standard error."""
    result = run("ubd", "add", "--json", "-t", "nbd", *arguments, user=user, **more)
    if result.returncode:
        raise CommandFailed(result)
    return json.loads(result.stdout)["device"], result.stderr


@contextlib.contextmanager
def served(*arguments, user="alice"):
    """A device of target nbd for the length of a `with`: `notes` is what came by standard error when it was added."""
    disk, notes = add_with_notes(*arguments, user=user)
    try:
        yield disk | {"notes": notes}
    except BaseException:
        run("ubd", "del", "-n", disk["id"], "--force")
        raise
    must("ubd", "del", "-n", disk["id"], user=user)


class SystemLog(threading.Thread):
    """What keepers tell the system's log, which nobody else reads here."""

    all = []

    def __init__(self):
        super().__init__(daemon=True)
        self.socket, self.ending = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SYSTEM_LOG)
        self.socket.bind(SYSTEM_LOG)
        os.chmod(SYSTEM_LOG, 0o666)
        self.socket.settimeout(0.5)
        self.start()

    def run(self):
        while not self.ending:
            with contextlib.suppress(TimeoutError):
                self.all.append(self.socket.recv(4096).decode(errors="replace"))

    @property
    def text(self):
        return "\n".join(self.all)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ending = True
        self.join(5)
        self.socket.close()
        os.unlink(SYSTEM_LOG)

    def has(self, *parts, seconds=20):
        """Whether one line with all these parts comes."""
        return eventually(seconds, lambda: any(all(part in line for part in parts) for line in self.all))


def verified(sentence, disk, *more, **how):
    """A test: fio reads back what it wrote, with checksums."""
    return fio_moves(sentence, ["read", "write"], *verify_job(disk["node"], disk["sizeBytes"], *more, **how), user="alice")
