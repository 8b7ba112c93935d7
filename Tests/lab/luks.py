"""LUKS volumes for the groups about target crypt: made by cryptsetup as a user, opened by dm-crypt as root.
`# files: Tests/lab/devices.py Tests/lab/clients.py Tests/lab/load.py Tests/lab/luks.py`"""
import hashlib
import pty
import re
import select

from clients import Varlink, in_child, refused, text_of
from devices import *

VOLUMES = "/tmp/volumes"
PASSPHRASE = "correct horse"
# Cheap, since the lab's processors are emulated: the slots of a real volume cost seconds.
CHEAP = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
ARGON = ["--pbkdf", "argon2id", "--pbkdf-memory", "64", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1"]
# 1 MiB before the data instead of 16.
SMALL = ["--luks2-metadata-size", "16k", "--luks2-keyslots-size", "256k"]


@contextlib.contextmanager
def volumes():
    """Alice's folder of volumes, gone afterwards."""
    os.makedirs(VOLUMES)
    give(VOLUMES)
    for name, text in (("key", PASSPHRASE), ("wrong", "incorrect horse")):
        write(f"{VOLUMES}/{name}", text.encode())
    try:
        yield
    finally:
        run("rm", "-rf", VOLUMES)


def write(path, data, mode=0o600):
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)
    return give(path)


def volume(name, *options, size=8 * MIB, kind="luks2", header=None, user="alice"):
    """A file with a volume that alice has formatted; its data is at the end of it. Returns the path."""
    path = sparse(f"{VOLUMES}/{name}", size)
    where = ["--header", header] if header else []
    pbkdf = [] if "--pbkdf" in options else CHEAP
    small = SMALL if kind == "luks2" else []
    must("cryptsetup", "luksFormat", "--batch-mode", "--type", kind, *pbkdf, *small, *where, "--key-file", f"{VOLUMES}/key", *options, path, user=user)
    if header:
        give(header)
    return give(path)


def change_header(path, old, new):
    """Another text in both copies of a LUKS2 header; the last place, which is that of the segment. Their checksums are right."""
    data = bytearray(content(path))
    size = int.from_bytes(data[8:16], "big")
    for place in (0, size):
        text = bytes(data[place + 4096 : place + size]).rstrip(b"\0").decode()
        assert text.count(old) >= 1 and len(text) + len(new) < size - 4096, text
        # The key's size is the slot's, which comes first.
        text = text.replace(old, new, 1) if "key_size" in old else new.join(text.rsplit(old, 1))
        data[place + 4096 : place + size] = text.encode().ljust(size - 4096, b"\0")
        data[place + 448 : place + 512] = bytes(64)
        data[place + 448 : place + 480] = hashlib.sha256(data[place : place + size]).digest()
    with open(path, "r+b") as file:
        file.write(data)


def volume_key(path, user="alice"):
    """The key with which the data is encrypted, as cryptsetup shows it."""
    keep = f"{VOLUMES}/volume-key"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(keep)
    must("cryptsetup", "luksDump", "--batch-mode", "--dump-volume-key", "--volume-key-file", keep, "--key-file", f"{VOLUMES}/key", path, user=user)
    key = content(keep)
    os.unlink(keep)
    assert len(key) in (32, 64), key
    return key


@contextlib.contextmanager
def dm_crypt(path, header=None):
    """The volume as the kernel's dm-crypt serves it over a kernel loop device; brings the disk's path."""
    where = ["--header", header] if header else []
    # Nobody but udev would make the node.
    alone = os.environ | {"DM_DISABLE_UDEV": "1"}
    must("cryptsetup", "open", *where, "--key-file", f"{VOLUMES}/key", path, "lab-crypt", env=alone)
    try:
        disk = os.path.realpath("/dev/mapper/lab-crypt")
        assert os.stat(disk).st_mode & 0o170000 == 0o060000, disk
        yield disk
    finally:
        os.sync()
        result = None

        def closed():
            nonlocal result
            result = run("cryptsetup", "close", "lab-crypt", env=alone)
            return result.returncode == 0

        assert eventually(10, closed, pause=0.2), text_of(result)
        eventually(5, lambda: path not in must("losetup", "--list", "--noheadings", "--output", "BACK-FILE"))


def crypt(path, *more, user="alice", key=f"{VOLUMES}/key"):
    """A device on a volume, for the length of a `with`."""
    return device("-t", "crypt", "-f", path, "--key-file", key, *more, user=user)


def at_terminal(answers, *command, user="alice"):
    """Runs a command on a terminal of its own and answers each question. Returns its status and all that the terminal showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            line = as_user(user, *command)
            os.execvp(line[0], line)
        finally:
            os._exit(127)
    shown, left, deadline = b"", list(answers), time.monotonic() + 60 * PATIENCE
    while time.monotonic() < deadline:
        ready, _, _ = select.select([terminal], [], [], 1)
        if ready:
            try:
                data = os.read(terminal, 4096)
            except OSError:
                break
            if not data:
                break
            shown += data
            if left and shown.count(b"Passphrase for") > len(answers) - len(left):
                # The question comes first, and then the terminal becomes silent.
                time.sleep(0.3)
                os.write(terminal, left.pop(0).encode() + b"\n")
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), shown.decode(errors="replace")


def in_memory(pid, wanted):
    """How often these bytes are in the memory of a process that can be read."""
    found = 0
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            words = line.split()
            first, last = (int(word, 16) for word in words[0].split("-"))
            if "r" not in words[1] or words[-1] in ("[vvar]", "[vsyscall]", "[vvar_vclock]"):
                continue
            rest = b""
            while first < last:
                try:
                    memory.seek(first)
                    data = memory.read(min(last - first, MIB))
                except OSError:
                    break
                if not data:
                    break
                found += (rest + data).count(wanted)
                rest, first = data[-len(wanted) + 1 :], first + len(data)
    return found
