"""For groups that ask the broker for what it must refuse: `# files: Tests/lab/clients.py`, then `from clients import *`."""
import array
import contextlib
import errno
import fcntl
import json
import os
import pickle
import shutil
import socket
import sys
import traceback

from lib import *

IMAGES = "/tmp/images"


@contextlib.contextmanager
def images():
    """Alice's folder of backing files, gone afterwards."""
    os.mkdir(IMAGES)
    os.chown(IMAGES, 1000, 1000)
    try:
        yield
    finally:
        run("rm", "-rf", IMAGES)


def image(name="disk.img", size=1 << 20, owner=1000, mode=0o600):
    path = f"{IMAGES}/{name}"
    with open(path, "wb") as file:
        file.truncate(size)
    os.chown(path, owner, owner)
    os.chmod(path, mode)
    return path


def text_of(result):
    return f"status {result.returncode}, stdout {result.stdout!r}, stderr {result.stderr!r}"


def refused(sentence, status, parts, *command, user="alice", **more):
    """A test: the command ends with that status and says why in one line on stderr, with a remedy; all parts are in it."""
    result = run(*command, user=user, **more)
    line = result.stderr.rstrip("\n")
    good = (
        result.returncode == status and line.startswith("ubd: ") and "\n" not in line and "; " in line
        and all(part in line for part in parts) and not result.stdout
    )  # fmt: skip
    return check(sentence, good, f"wanted status {status} and {parts}: {text_of(result)}")


def added(*arguments, user="alice"):
    """Adds a device with the CLI; returns (path, notes). It must work."""
    result = run("ubd", "add", *arguments, user=user)
    assert result.returncode == 0, f"ubd add {arguments}: {text_of(result)}"
    return result.stdout.strip(), result.stderr.splitlines()


def delete(*arguments, user="alice"):
    result = run("ubd", "del", *arguments, user=user)
    assert result.returncode == 0, f"ubd del {arguments}: {text_of(result)}"


def devices(user=None):
    result = run("ubd", "list", "--json", user=user)
    assert result.returncode == 0, text_of(result)
    return json.loads(result.stdout)


def in_child(user, function, *arguments):
    """Runs function(*arguments) in a child that has become the user (None: stays root); returns or raises what it did."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if user:
                become(user)
            outcome = (True, function(*arguments))
        except BaseException as error:
            outcome = (False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(outcome, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    good, value = pickle.loads(data)
    if not good:
        raise RuntimeError(value)
    return value


def made(user="alice", target="null", patience=0, **parameters):
    """Adds a null device without the CLI, which takes a while to start here; returns the device. `patience`: so many
    seconds the kernel may still have the number, when the broker that deleted its last device has died since."""

    def add():
        with Varlink() as link:
            link.send("io.ubd.Broker.Add", add_request(target, **parameters), more=True)
            return link.receive()

    deadline = time.monotonic() + patience * PATIENCE
    while error_of(reply := in_child(user, add))[0] == "IdInUse" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "device" in reply.get("parameters", {}), f"add as {user}: {reply}"
    return reply["parameters"]["device"]


def unmake(user, *numbers):
    """Deletes devices without the CLI: so unflushed; all of the user's when no number is given."""

    def delete_all():
        with Varlink() as link:
            wanted = numbers or [device["id"] for device in link.call("io.ubd.Broker.List")["devices"]]
            for number in wanted:
                link.call("io.ubd.Broker.Delete", {"id": number})

    in_child(user, delete_all)


def add_request(target="loop", **parameters):
    return {"target": target, **parameters}


def park(link, *files, message=b"\0"):
    """Receives the first reply of Add and sends the files into the socket that came with it."""
    reply = link.receive()
    assert reply and reply.get("continues"), f"no first reply: {reply}"
    parking = socket.socket(fileno=link.files.pop())
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    parking.sendmsg([message], rights)
    parking.close()


def raw_add(files, **parameters):
    """Add with files that the CLI would not send; returns the last reply."""
    with Varlink() as link:
        link.send("io.ubd.Broker.Add", add_request(**parameters), more=True)
        park(link, *files)
        return link.receive()


def volume_key(key=bytes(range(64))):
    """A sealed memory file with a volume key, as ubd-crypt makes it."""
    file = os.memfd_create("ubd-key", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(file, key)
    # F_ADD_SEALS of SEAL, SHRINK, GROW and WRITE.
    fcntl.fcntl(file, 1033, 15)
    return file


def crypt_reply(file, user="alice", options={}):
    """Adds an encrypted device on that open file without a header; returns the reply."""

    def add():
        with Varlink() as link:
            link.send("io.ubd.Broker.Add", add_request("crypt", options={"block-size": "4096", **options}), more=True)
            park(link, file, volume_key())
            return link.receive()

    return in_child(user, add)


def error_of(reply):
    """("BadFile", parameters) of an error reply."""
    if not reply or "error" not in reply:
        return ("none", {"reply": reply})
    return reply["error"].rsplit(".", 1)[1], reply.get("parameters", {})


def raw_devices():
    with Varlink() as link:
        return link.call("io.ubd.Broker.List")["devices"]


def unload_module():
    """Removes ublk_drv. The kernel ends a dead broker's ring, which holds the control node, a little later than its process."""
    return eventually(15, lambda: run("modprobe", "-r", "ublk_drv").returncode == 0) and not os.path.exists("/dev/ublk-control")


def stand_in(step):
    """A program for `ubd-broker --worker` that stalls at a step of helpers/stalling-worker.c; returns its path."""
    with open(shutil.which("stalling-worker"), "rb") as file:
        program = file.read()
    assert program.count(b"ubd-stall-at-step-0") == 1, "stalling-worker has not its step in it"
    path = "/run/lab/stalling/ubd-worker"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with open(path, "wb") as file:
        file.write(program.replace(b"ubd-stall-at-step-0", b"ubd-stall-at-step-%d" % step))
    os.chmod(path, 0o711)
    return path


def stalled_worker(link):
    """Begins an add on the connection and waits until its worker stalls in poll(2); returns the worker's pid."""

    def found():
        pids = [device["workerPid"] for device in raw_devices() if device.get("workerPid")]
        with contextlib.suppress(OSError):
            return pids[0] if pids and open(f"/proc/{pids[0]}/syscall").read().split()[0] == "7" else None

    link.send("io.ubd.Broker.Add", add_request("null"), more=True)
    worker = eventually(15, found)
    assert worker, f"no worker stalls: {raw_devices()}"
    return worker
