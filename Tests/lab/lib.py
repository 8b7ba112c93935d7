"""The library of the lab's test groups that are written in Python. A group looks like

    #!/usr/bin/env python3
    # timeout: 60
    from lib import *

    def main():
        with Broker() as broker:
            check("the sky is blue", sky() == "blue", sky())
            no_leftovers(broker)

    run_group(main)

Each test is a sentence and prints one line: ok - ..., not ok - ...: what came out, skip - ...: reason.
An exception ends the group, which then counts as failed.
"""
import contextlib
import glob
import json
import os
import pwd
import random
import signal
import socket
import subprocess
import sys
import time

BROKER = "/usr/libexec/ubd/ubd-broker"
BROKER_LOG = "/run/lab/broker.log"
SOCKET = "/run/ubd/io.ubd.Broker"
SERIES = ".".join(os.uname().release.split(".")[:2])
PATIENCE = float(os.environ.get("LAB_PATIENCE", "1"))
FULL = os.environ.get("LAB_FULL") == "1"
# The guest's clock counts instructions (Tests/lab/run --counted): times are exact, whatever the host does meanwhile.
COUNTED = os.environ.get("LAB_COUNTED") == "1"


# --- results ----------------------------------------------------------------------------------------------------------


def _line(text):
    return " | ".join(str(text).strip().splitlines())[:600]


def ok(sentence):
    print(f"ok - {sentence}", flush=True)


def not_ok(sentence, came_out):
    print(f"not ok - {sentence}: {_line(came_out)}", flush=True)


def skip(sentence, reason):
    print(f"skip - {sentence}: {_line(reason)}", flush=True)


def check(sentence, good, came_out=""):
    """A test of a value that is there already. Returns whether it was good."""
    ok(sentence) if good else not_ok(sentence, came_out)
    return bool(good)


def expect_equal(sentence, came_out, wanted):
    return check(sentence, came_out == wanted, f"{came_out!r} instead of {wanted!r}")


@contextlib.contextmanager
def test(sentence):
    """A test of several steps: it fails on the first exception (use plain `assert condition, "what came out"`)."""
    try:
        yield
    except Exception as error:
        not_ok(sentence, f"{type(error).__name__}: {error} (line {error.__traceback__.tb_lineno})")
    else:
        ok(sentence)


def count(number):
    """How often to do what is promised so often: the number itself with `Tests/lab/run --full` (make soak), else a tenth."""
    return number if FULL else -(-number // 10)


def note(sentence, value):
    """Something measured, which is no result; docs/proof.md has it."""
    print(f"note - {sentence}: {_line(value)}", flush=True)


def progress(what, done, of):
    """How far the group is, for whoever watches it."""
    print(f"@progress {what} {done} of {of}", flush=True)


def seeded():
    """A source of random numbers whose seed is printed; UBD_LAB_SEED repeats a run's choices."""
    seed = int(os.environ.get("LAB_SEED") or int.from_bytes(os.urandom(4)))
    print(f"random numbers from seed {seed}", flush=True)
    return random.Random(seed)


def run_group(main):
    main()
    sys.exit(0)


def eventually(seconds, condition, pause=0.05):
    """Waits until condition() is true; returns its last value. A loaded host gets more time. `pause`: seconds between two looks."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(pause)
    return value


def listens(path):
    """Somebody listens at that Unix socket. Its file is there a little sooner: from bind on, not from listen."""
    with open("/proc/net/unix") as table:
        sockets = [line.split() for line in table]
    # __SO_ACCEPTCON among the flags.
    return any(words[7:] == [path] and int(words[3], 16) & 1 << 16 for words in sockets[1:])


# --- programs and users -----------------------------------------------------------------------------------------------


def as_user(user, *command):
    """The command line that runs a command as a user: her groups, no capability, a fresh environment (helpers/as-user.c)."""
    return ["as-user", user, *map(str, command)]


def run(*command, user=None, timeout=60, **more):
    """Runs a command to its end; the result has returncode, stdout, stderr (text)."""
    line = as_user(user, *command) if user else list(map(str, command))
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout * PATIENCE, stdin=subprocess.DEVNULL, **more)


def become(user):
    """Turns this process into that user for good (do it in a child)."""
    entry = pwd.getpwnam(user)
    os.initgroups(user, entry.pw_gid)
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)


# --- the broker -------------------------------------------------------------------------------------------------------


class Broker:
    """ubd-broker, running as root from `with` to its end.

    `baseline` is what it has open without any device: counted at its first start, not again at a later one, when it may
    have devices to take over or to end. Who starts it the first time with devices there gives it the count of another one.
    """

    def __init__(self, *arguments, program=BROKER, preparation=None, foreground=("--foreground",), baseline=None):
        self.arguments, self.program, self.process = (*foreground, *arguments), program, None
        self.baseline = baseline
        self.preparation = preparation

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def pid(self):
        return self.process.pid

    def start(self):
        log = open(BROKER_LOG, "ab")
        self.process = subprocess.Popen(
            [self.program, *self.arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={"PATH": os.environ["PATH"]}, preexec_fn=self.preparation,
        )  # fmt: skip
        if not eventually(15, self._answers):
            self.process.kill()
            self.process.wait()
            raise RuntimeError("the broker does not answer; its log: " + open(BROKER_LOG).read()[-2000:])
        if self.baseline is None:
            time.sleep(0.2)
            self.baseline = self.descriptors()

    def _answers(self):
        if self.process.poll() is not None:
            return False
        try:
            # One that was killed and cannot end keeps its socket until another broker replaces it, and takes no call.
            with Varlink(timeout=5) as link:
                # The broker opens the driver when it is first asked about it: that descriptor is not to look like a leak.
                link.call("io.ubd.Broker.Info")
            return True
        except OSError:
            return False

    def stop(self, number=signal.SIGTERM):
        """Ends it and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(15 * PATIENCE)
        except subprocess.TimeoutExpired:
            print(f"the broker did not end after signal {number}; killing it", flush=True)
            self.process.kill()
            return self.process.wait()

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def workers():
    """Pids of all processes that run ubd-worker."""
    found = []
    for comm in glob.glob("/proc/[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if open(comm).read().startswith("ubd-worker"):
                found.append(int(comm.split("/")[2]))
    return found


def leftovers(broker=None):
    """Everything that ubd could leave behind, by name."""
    patterns = ["/dev/ublkc*", "/dev/ublkb*", "/dev/ubdb*", "/run/ubd/state/*", "/run/ubd/udev/*"]
    found = [path for pattern in patterns for path in glob.glob(pattern)]
    # A dangling link is one, too; glob does not follow the last part, so it is in.
    found += [f"worker {pid}" for pid in workers()]
    if broker and broker.process.poll() is None and broker.descriptors() != broker.baseline:
        names = []
        for entry in os.scandir(f"/proc/{broker.pid}/fd"):
            with contextlib.suppress(OSError):
                names.append(f"{entry.name} -> {os.readlink(entry.path)}")
        found.append(f"the broker has {len(names)} descriptors, {broker.baseline} at first: {names}")
    return found


def no_leftovers(broker=None, sentence="nothing is left behind"):
    eventually(10, lambda: not leftovers(broker))
    left = leftovers(broker)
    return check(sentence, not left, "; ".join(left))


# --- Varlink ----------------------------------------------------------------------------------------------------------


class VarlinkError(Exception):
    def __init__(self, reply):
        super().__init__(json.dumps(reply))
        self.name, self.parameters = reply["error"], reply.get("parameters", {})


class Varlink:
    """A connection to the broker: for what the CLI would not send."""

    def __init__(self, path=None, timeout=30):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        # Before there is a timeout: it makes the socket non-blocking, and connect(2) then fails when others queue up.
        self.socket.connect(path or os.environ.get("UBD_SOCKET", SOCKET))
        self.socket.settimeout(timeout * PATIENCE)
        self.buffer, self.files = b"", []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()
        for file in self.files:
            os.close(file)
        self.files = []

    def send(self, method, parameters=None, **flags):
        message = {"method": method, **flags}
        if parameters is not None:
            message["parameters"] = parameters
        self.send_raw(json.dumps(message).encode() + b"\0")

    def send_raw(self, data):
        self.socket.sendall(data)

    def receive(self):
        """The next reply as a dictionary, None at the end of the connection; files that came with it are in `files`."""
        while b"\0" not in self.buffer:
            data, files, _, _ = socket.recv_fds(self.socket, 65536, 8)
            self.files += files
            if not data:
                return None
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, parameters=None):
        """The parameters of the reply; raises VarlinkError for an error, EOFError when the broker hangs up."""
        self.send(method, parameters)
        reply = self.receive()
        if reply is None:
            raise EOFError("the broker closed the connection")
        if "error" in reply:
            raise VarlinkError(reply)
        return reply.get("parameters", {})


# --- input and output -------------------------------------------------------------------------------------------------


def fio(*arguments, directions, user=None, timeout=120):
    """Runs fio; returns (problem, report): problem is "" when it ended without an error and moved bytes each way."""
    result = run("fio", "--name=job", "--output-format=json", *arguments, user=user, timeout=timeout)
    start = result.stdout.find("{")
    if start < 0:
        return f"fio ended with status {result.returncode}: {result.stdout} {result.stderr}", None
    report = json.loads(result.stdout[start:])
    problems = [] if report["jobs"] else ["fio ran no job"]
    for job in report["jobs"]:
        if job["error"]:
            problems.append(f"job {job['jobname']}: error {job['error']}")
        problems += [f"job {job['jobname']}: no byte moved by {way}" for way in directions if job[way]["io_bytes"] <= 0]
    if result.returncode and not problems:
        problems.append(f"fio ended with status {result.returncode}: {result.stderr}")
    return "; ".join(problems), report


def fio_moves(sentence, directions, *arguments, **more):
    """A test: fio ends without an error and really moves bytes in each direction ("read", "write", "trim")."""
    problem, _ = fio(*arguments, directions=directions, **more)
    return check(sentence, not problem, problem)
