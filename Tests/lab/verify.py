"""What goes into a loop device comes out of it: fio's verify, and helpers/disk-model, on everything that may lie behind one."""
import random

from devices import *

MODES = ["copy"] if SERIES == "6.12" else ["copy", "zero-copy", "batch", "batch-zero-copy"]
BACKINGS = ("tmpfs", "ext4", "xfs", "a block device", "a block device of 4096-byte blocks")
DISK = 24 * MIB
ROOT = "/tmp/verify"


@contextlib.contextmanager
def backing(kind):
    """Something of DISK bytes to lie behind a loop device."""
    os.makedirs(ROOT, exist_ok=True)
    image, folder, loop = f"{ROOT}/image", f"{ROOT}/mnt", None
    os.makedirs(folder, exist_ok=True)
    if kind == "a block device":
        must("modprobe", "brd", "rd_nr=1", f"rd_size={DISK // KIB}")
        file = "/dev/ram0"
    elif kind == "tmpfs":
        must("mount", "-t", "tmpfs", "tmpfs", folder)
        file = sparse(f"{folder}/disk", DISK, "root")
    else:
        must("modprobe", "loop")
        # 300 MiB is the least that mkfs.xfs takes; hardly any of it is ever written.
        large = kind in ("ext4", "xfs")
        sparse(image, 300 * MIB if large else DISK, "root")
        loop = file = must("losetup", "--find", "--show", *([] if large else ["-b", "4096"]), image)
        if large:
            must(f"mkfs.{kind}", "-q", loop)
            must("mount", loop, folder)
            file = sparse(f"{folder}/disk", DISK, "root")
    try:
        yield file
    finally:
        if kind == "a block device":
            eventually(5, lambda: run("rmmod", "brd").returncode == 0)
        if os.path.ismount(folder):
            eventually(5, lambda: run("umount", folder).returncode == 0)
        if loop:
            must("losetup", "-d", loop)
            os.remove(image)


def model(disk, depth, requests, *more):
    """Runs helpers/disk-model: its counts, or what it found wrong."""
    result = run("disk-model", "-d", depth, "-n", requests, "-b", disk["blockSize"], "-s", random.getrandbits(60), *more, disk["node"], timeout=300)
    return (json.loads(result.stdout), "") if result.returncode == 0 else (None, f"status {result.returncode}: {result.stderr}")


def verified(mode, kind, file, block, depth, requests, with_fio=True):
    """One device of that mode, block size and depth, filled and checked."""
    what = f"{mode} on {kind}, blocks of {block}, depth {depth}"
    # A batch of one makes no sense, and is refused.
    tags = max(depth, 2) if "batch" in mode else depth
    with device("-t", "loop", "-f", file, "--mode", mode, "-q", 2, "-d", tags, "--block-size", block, "--max-io-size", "256K", user="root") as disk:
        had = (disk["mode"], disk["blockSize"], disk["depth"])
        if not check(f"it has the mode, blocks and depth that it was asked for ({what})", had == (mode, block, tags), disk):
            return
        if with_fio:
            fio_moves(f"fio reads back what it wrote, in random sizes at random places: no error ({what})", ["read", "write"],
                f"--filename={disk['node']}", "--rw=randwrite", f"--bsrange={block}-64k", f"--iodepth={depth}", "--direct=1",
                "--ioengine=io_uring", "--size=4m", "--offset=2m", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randrepeat=0")  # fmt: skip
        # What a device discards may read as anything; the file of a file system has a hole there.
        more = ["-u"] if "block device" in kind else []
        counts, wrong = model(disk, depth, requests, "-f", file, *more)
        check(f"every block is what a model says, among writes, forced writes, discards, zeroes and flushes, in device and file ({what})",
            counts and all(counts.values()), wrong or counts)  # fmt: skip
        check(f"the worker lives ({what})", worker_lives(disk), state(disk))


def forgetful():
    """The model finds out what forgets."""
    with device("-t", "null", "--size", "16M", user="root") as disk:
        counts, wrong = model(disk, 8, 200)
        check("the model finds a device that forgets what was written", not counts and "is wrong from its byte" in wrong, wrong or counts)
