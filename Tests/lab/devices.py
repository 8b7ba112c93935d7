"""What the groups about devices share, besides lib.py: adding and deleting them, and reading and writing past the page cache."""
import errno
import mmap
import threading

from lib import *

KIB, MIB = 1 << 10, 1 << 20
HOME = "/home/alice"


# --- devices ----------------------------------------------------------------------------------------------------------


class CommandFailed(Exception):
    def __init__(self, result):
        super().__init__(f"status {result.returncode}: {result.stdout.strip()} {result.stderr.strip()}")
        self.result = result


def must(*command, **more):
    """Runs a command that has to succeed; its standard output."""
    result = run(*command, **more)
    if result.returncode:
        raise CommandFailed(result)
    return result.stdout.strip()


def add(*arguments, user="alice"):
    """`ubd add` with these arguments: the device, as `ubd list --json` would show it, and what was said about it."""
    # First: behind "--" stands a server's command line.
    reply = json.loads(must("ubd", "add", "--json", *arguments, user=user))
    return reply["device"] | {"notices": [notice["message"] for notice in reply.get("notices", [])]}


def delete(device, *more, user="alice"):
    return must("ubd", "del", "-n", device["id"], *more, user=user)


@contextlib.contextmanager
def device(*arguments, user="alice"):
    """A device for the length of a `with`. It must go the ordinary way, unless the test has failed anyhow."""
    added = add(*arguments, user=user)
    try:
        yield added
    except BaseException:
        run("ubd", "del", "-n", added["id"], "--force", user=user)
        raise
    delete(added, user=user)


def state(device, user="root"):
    """The device as the broker tells of it; None when it has none of that number."""
    listed = run("ubd", "list", "-n", device["id"], "--json", user=user)
    return json.loads(listed.stdout)[0] if listed.returncode == 0 else None


def in_iowait():
    """How many of the host's tasks wait for I/O all the time: not those that do so at one moment or other."""
    counts = []
    for _ in range(20):
        counts += [int(line.split()[1]) for line in open("/proc/stat") if line.startswith("procs_blocked")]
        time.sleep(0.02)
    return min(counts)


def worker_lives(device):
    now = state(device)
    return now is not None and now["state"] == "live" and os.path.exists(f"/proc/{device['workerPid']}")


def broker_info():
    return json.loads(must("ubd", "info", "--json"))


# --- files ------------------------------------------------------------------------------------------------------------


def give(path, user="alice"):
    entry = pwd.getpwnam(user)
    os.chown(path, entry.pw_uid, entry.pw_gid)
    return path


def sparse(path, size, user="alice"):
    """A file of `size` bytes without a block."""
    with open(path, "wb") as file:
        file.truncate(size)
    return give(path, user)


def filled(path, size, user="alice"):
    """A file of `size` bytes in which no two blocks are alike."""
    with open(path, "wb") as file:
        file.write(pattern(size))
    return give(path, user)


def pattern(size, seed=1):
    """Bytes that tell where they belong: every 512 of them begin with their number and `seed`, and none is zero."""
    body = bytes([seed | 0x80]) * 500
    blocks = (b"%08x%03x." % (number, seed) + body for number in range(-(-size // 512)))
    return b"".join(blocks)[:size]


def blocks(path):
    """How much of a file is allocated, in bytes."""
    return os.stat(path).st_blocks * 512


def content(path, offset=0, size=-1):
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


# --- input and output past the page cache, at multiples of the block size; raises OSError -----------------------------


def read_direct(path, offset, size):
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, size)
        if (count := os.preadv(file, [buffer], offset)) != size:
            raise OSError(errno.EIO, f"{count} bytes instead of {size}")
        return buffer[:]
    finally:
        os.close(file)


def write_direct(path, offset, data):
    file = os.open(path, os.O_WRONLY | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, len(data))
        buffer[:] = data
        if (count := os.pwritev(file, [buffer], offset)) != len(data):
            raise OSError(errno.ENOSPC, f"{count} bytes instead of {len(data)}")
    finally:
        os.close(file)


def error_of(function, *arguments):
    """The name of the errno with which a call fails; "" when it does not."""
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return ""


def expect_zeros(sentence, data):
    return check(sentence, data.count(0) == len(data), f"{len(data) - data.count(0)} of {len(data)} bytes are not zero")


def expect_same(sentence, came_out, wanted):
    if len(came_out) != len(wanted):
        return check(sentence, False, f"{len(came_out)} bytes instead of {len(wanted)}")
    wrong = next((at for at in range(0, len(wanted), 512) if came_out[at : at + 512] != wanted[at : at + 512]), None)
    return check(sentence, wrong is None, f"the first difference is in the block at byte {wrong}")


# --- load -------------------------------------------------------------------------------------------------------------


def verify_job(path, size, *more, total=16 * MIB, depth=32, jobs=2):
    """fio's arguments for: random writes of 4 to 128 KiB all over `size` bytes, `total` in all, then all of it read back
    and compared. Each job has a part of the disk and a CPU, and so a queue, of its own."""
    return [
        f"--filename={path}", "--rw=randwrite", "--bsrange=4k-128k", "--ioengine=io_uring", f"--iodepth={depth}", "--direct=1",
        f"--numjobs={jobs}", f"--size={size // jobs}", f"--offset_increment={size // jobs}", f"--io_size={total // jobs}",
        "--cpus_allowed=0-1", "--cpus_allowed_policy=split", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", *more,
    ]  # fmt: skip


class Background(threading.Thread):
    """Runs a function beside the test; `join` brings its result, or its exception."""

    def __init__(self, function, *arguments, **more):
        super().__init__(daemon=True)
        self.work, self.result, self.error = (function, arguments, more), None, None
        self.start()

    def run(self):
        function, arguments, more = self.work
        try:
            self.result = function(*arguments, **more)
        except BaseException as error:
            self.error = error

    def join(self, seconds=60):
        super().join(seconds * PATIENCE)
        if self.is_alive():
            raise TimeoutError(f"not done after {seconds * PATIENCE:g} s")
        if self.error:
            raise self.error
        return self.result
