#!/usr/bin/env python3
"""Runs in the lab's guest: does what /job/plan.json says and prints one JSON object a line. `labmark` at both ends of a
window tells the counting plugin; each line names its windows by their number, from 0 on.
"""
import glob
import re
import shutil
import stat

from lib import *

DEPTH = 128
FILE = "/tmp/backing.img"
FILE_MIB = 64
KUBLK = {"copy": [], "auto-zc": ["--auto_zc"], "batch": ["-b"], "batch-auto-zc": ["-b", "--auto_zc"]}
WINDOWS = 0


def must(*command, **more):
    result = run(*command, **more)
    if result.returncode:
        raise RuntimeError(f"{command}: {result.stdout} {result.stderr}")
    return result.stdout.strip()


def tell(line):
    print(json.dumps(line), flush=True)


@contextlib.contextmanager
def window():
    """What runs in it is counted; yields its number."""
    global WINDOWS
    WINDOWS += 1
    must("/job/labmark")
    yield WINDOWS - 1
    must("/job/labmark")


# --- servers ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def null_blk(_target, _mode):
    must("modprobe", "null_blk", "nr_devices=1", "submit_queues=1", f"hw_queue_depth={DEPTH}", "size=1024")
    yield "/dev/nullb0", None
    must("rmmod", "null_blk")


@contextlib.contextmanager
def kernel_loop(_target, mode):
    must("modprobe", "loop")
    device = must("losetup", f"--direct-io={'on' if mode == 'direct' else 'off'}", "--find", "--show", FILE)
    yield device, None
    must("losetup", "--detach", device)


@contextlib.contextmanager
def kublk(target, mode):
    file = [FILE] if target == "loop" else []
    must("/job/kublk", "add", "-t", target, "-n", 7, "-q", 1, "-d", DEPTH, *KUBLK[mode], *file)
    yield "/dev/ublkb7", "kublk"
    must("/job/kublk", "del", "-n", 7)


@contextlib.contextmanager
def nbdkit():
    """The server behind target nbd and nbd.ko: memory, on a Unix socket, with as many threads as it takes by itself."""
    path = "/run/lab/nbdkit.sock"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    # Its libraries would lie where the worker's code does, and be counted as the worker's: so the old layout, with libraries further down.
    # And QEMU translates a page of code once for all processes that share it, so it counts where the first of them has it: so a C library of
    # its own. `env` comes last, since setarch still has the usual layout.
    shutil.copy("/usr/lib/x86_64-linux-gnu/libc.so.6", "/run/lab/libc.so.6")
    process = subprocess.Popen(["setarch", "--addr-compat-layout", "env", "LD_LIBRARY_PATH=/run/lab", "nbdkit", "-f", "-U", path, "memory", f"{FILE_MIB}M"])
    try:
        eventually(30, lambda: process.poll() is not None or listens(path))
        if any(low < PLAN["worker"][1] and high > PLAN["worker"][0] for low, high in code_of(process.pid, "")):
            raise RuntimeError(f"nbdkit has code where the worker's is, at {[hex(n) for n in PLAN['worker']]}")
        yield path
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def kernel_nbd(_target, _mode):
    with nbdkit() as path:
        must("modprobe", "nbd", "nbds_max=1")
        # Its libraries lie beside it.
        must("env", "LD_LIBRARY_PATH=/job", "/job/nbd-client", "-unix", path, "/dev/nbd0")
        yield "/dev/nbd0", None
        must("env", "LD_LIBRARY_PATH=/job", "/job/nbd-client", "-d", "/dev/nbd0")
        must("rmmod", "nbd")


VOLUME, KEY = "/tmp/volume.luks", "/tmp/volume.key"


@contextlib.contextmanager
def volume(target):
    """A new LUKS2 volume on tmpfs with the sectors of target "crypt-BYTES". Its key slot is cheap: no request comes near it."""
    with open(KEY, "w") as file:
        file.write("secret")
    with open(VOLUME, "wb") as file:
        file.truncate((FILE_MIB + 1) << 20)
    must("cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", 1000,
         "--luks2-metadata-size", "16k", "--luks2-keyslots-size", "256k", "--sector-size", target.partition("-")[2], "--key-file", KEY, VOLUME)  # fmt: skip
    yield VOLUME
    os.unlink(VOLUME)


@contextlib.contextmanager
def dm_crypt(target, _mode):
    """The kernel's own: dm-crypt over loop, as cryptsetup sets it up; with the processor's AES, as the worker has it."""
    for module in ("loop", "dm-crypt", "aesni-intel"):
        must("modprobe", module)
    # There is no udev to wait for.
    os.environ["DM_DISABLE_UDEV"] = "1"
    with volume(target) as path:
        must("cryptsetup", "open", "--key-file", KEY, path, "volume")
        yield mapped("volume"), None
        must("cryptsetup", "close", "volume")


@contextlib.contextmanager
def dm_snapshot(_target, _mode):
    """The kernel's own copy on write: dm-snapshot over loop, in chunks of 4 KiB, its table in memory ("N"), all files on tmpfs."""
    for module in ("loop", "dm-snapshot"):
        must("modprobe", module)
    os.environ["DM_DISABLE_UDEV"] = "1"
    with open("/tmp/changes.img", "wb") as file:
        file.truncate(2 * FILE_MIB << 20)
    origin, changes = (must("losetup", "--find", "--show", path) for path in (FILE, "/tmp/changes.img"))
    must("dmsetup", "create", "copy", "--table", f"0 {FILE_MIB << 11} snapshot {origin} {changes} N 8")
    yield mapped("copy"), None
    must("dmsetup", "remove", "copy")
    for device in (origin, changes):
        must("losetup", "--detach", device)
    os.unlink("/tmp/changes.img")


def mapped(name):
    """The node of a device mapper's device."""
    found = os.stat(f"/dev/mapper/{name}")
    # fio would make a plain file of that name, and measure that.
    if not stat.S_ISBLK(found.st_mode):
        raise RuntimeError(f"/dev/mapper/{name} is no block device")
    return "/dev/" + os.path.basename(os.path.realpath(f"/sys/dev/block/{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"))


def code_of(pid, name):
    """Where a process has code of files with that in their names: pairs of addresses."""
    lines = [line.split()[0].split("-") for line in open(f"/proc/{pid}/maps") if name in line and " r-xp " in line]
    return [(int(low, 16), int(high, 16)) for low, high in lines]


def add(*arguments):
    """A device, whose worker's code is where the plugin counts it."""
    device = json.loads(must("ubd", "add", *map(str, arguments), "--json"))["device"]
    code = code_of(device["workerPid"], "ubd-worker")
    for low, high in code:
        if low > PLAN["worker"][0] or high < PLAN["worker"][1]:
            raise RuntimeError(f"the worker's code is at {low:x}-{high:x}, not at {[hex(n) for n in PLAN['worker']]}")
    if not code:
        raise RuntimeError("the worker has no code")
    return device


# Of a target's name: every block was written before.
WRITTEN = "-written"


@contextlib.contextmanager
def ubd(target, mode):
    if target == "nbd":
        with nbdkit() as path, ubd_of(target, mode, "--uri", f"nbd+unix:///?socket={path}") as found:
            yield found
    elif target.startswith("crypt-"):
        with volume(target) as path, ubd_of("crypt", mode, "-f", path, "--key-file", KEY) as found:
            yield found
    else:
        file = {"loop": ["-f", FILE], "overlay": ["-f", FILE, "--memory", "1G"]}.get(target.removesuffix(WRITTEN), [])
        with ubd_of(target.removesuffix(WRITTEN), mode, *file) as found:
            yield found


@contextlib.contextmanager
def ubd_of(target, mode, *file):
    device = add("-t", target, "-d", DEPTH, "--max-io-size", "1M", "--mode", mode, *file)
    if device["mode"] != mode:
        raise RuntimeError(f"asked for mode {mode}, got {device['mode']}")
    yield device["node"], "ubd-worker"
    must("ubd", "del", "-n", device["id"])


@contextlib.contextmanager
def batch_policy(target, mode):
    """ubd whose worker the host's scheduler lets preempt nobody when it is woken (SCHED_BATCH, sched(7))."""
    with ubd(target, mode) as (path, name):
        for comm in glob.glob("/proc/[0-9]*/comm"):
            if open(comm).read().startswith(name):
                for task in os.listdir(os.path.dirname(comm) + "/task"):
                    os.sched_setscheduler(int(task), os.SCHED_BATCH, os.sched_param(0))
        yield path, name


@contextlib.contextmanager
def bare(target, mode):
    """ubd's worker without its walls."""
    from bare import BareDevice

    with BareDevice(target, mode, DEPTH, 1 << 20, FILE if target == "loop" else None) as device:
        yield device.path, "ubd-bare"


SERVERS = {"null_blk": null_blk, "loop": kernel_loop, "nbd.ko": kernel_nbd, "dm-crypt": dm_crypt, "dm-snapshot": dm_snapshot, "kublk": kublk, "ubd": ubd, "ubd under SCHED_BATCH": batch_policy, "bare": bare}


# --- points -----------------------------------------------------------------------------------------------------------


def run_time(name):
    """Nanoseconds that all threads of the server have run, the kernel's helpers for its ring included."""
    total = 0
    for comm in glob.glob("/proc/[0-9]*/comm") if name else ():
        with contextlib.suppress(OSError):
            if open(comm).read().startswith(name):
                for task in glob.glob(os.path.dirname(comm) + "/task/*/schedstat"):
                    total += int(open(task).read().split()[0])
    return total


def fill(path):
    """Every block once: a server in memory makes its memory when it is first written."""
    load(path, "write", 1 << 20, 4, FILE_MIB)


def load(path, way, block, depth, requests, *more, jobs=1):
    """fio, one thread a job; returns the milliseconds that the requests of all jobs took."""
    line = [
        "fio", "--name=job", "--output-format=json", f"--filename={path}", "--direct=1", "--ioengine=io_uring",
        f"--iodepth={depth}", f"--bs={block}", f"--rw={way}", f"--number_ios={requests}", f"--size={FILE_MIB}m",
        f"--io_size={requests * block}", "--norandommap", "--randrepeat=1", "--gtod_reduce=1", "--group_reporting",
        f"--numjobs={jobs}", *more,
    ]  # fmt: skip
    text = must(*line, timeout=1200)
    job = json.loads(text[text.find("{") :])["jobs"][0]
    side = job["read" if "read" in way else "write"]
    if job["error"] or side["total_ios"] != requests * jobs:
        raise RuntimeError(f"fio: error {job['error']}, {side['total_ios']} requests instead of {requests * jobs}")
    return side["runtime"]


def set_scheduler(path, name="none"):
    if name != "none":
        must("modprobe", name)
    path = f"/sys/block/{os.path.basename(path)}/queue/scheduler"
    # A device without a queue of requests, as dm-crypt's, has no scheduler, and none can be named.
    if name == "none" and not os.path.exists(path):
        return
    with open(path, "w") as file:
        file.write(name)


def warm(path, *more, jobs=1):
    """Every tag once at least: the first use of a buffer makes its memory, which is no part of a request's cost."""
    for way in ("randwrite", "randread"):
        load(path, way, 4096, DEPTH, 1000, *more, jobs=jobs)


def counted_load(name, path, way, block, depth, requests, *more, jobs=1):
    before = run_time(name)
    with window() as number:
        milliseconds = load(path, way, block, depth, requests, *more, jobs=jobs)
    return {"window": number, "requests": requests * jobs, "milliseconds": milliseconds, "run_ns": run_time(name) - before}


def in_groups(at_once, depth):
    """fio gives and takes so many requests by one call; 1 is its default."""
    if at_once == 1:
        return []
    return [f"--iodepth_batch_submit={at_once}", f"--iodepth_batch_complete_min={at_once}", f"--iodepth_batch_complete_max={depth}"]


def measure(server, target, mode, points, scheduler="none"):
    """Two runs a point, a long one and a short one: their difference has nothing of fio's start and end in it."""
    with SERVERS[server](target, mode) as (path, name):
        set_scheduler(path, scheduler)
        if target in ("nbd", "memory") or target.startswith("crypt-") or target.endswith(WRITTEN):
            fill(path)
        warm(path)
        for way, block, depth, requests, at_once in points:
            more = in_groups(at_once, depth)
            # What the worker pays for a request depends on how many a wake-up brings. Asking takes a while.
            watched = target == "nbd" and name
            woken = [wake_ups(path) if watched else 0]
            short = counted_load(name, path, way, block, depth, max(requests // 16, depth) // at_once * at_once, *more)
            woken.append(wake_ups(path) if watched else 0)
            long = counted_load(name, path, way, block, depth, requests // at_once * at_once, *more)
            woken.append(wake_ups(path) if watched else 0)
            tell({"server": server, "target": target, "mode": mode, "way": way, "block": block, "depth": depth, "at_once": at_once,
                  "scheduler": scheduler, "short": short, "long": long, **({"wake_ups": woken[2] - 2 * woken[1] + woken[0]} if watched else {})})  # fmt: skip


def points(plan):
    for entry in plan["points"]:
        measure(**entry)


# --- queues, devices --------------------------------------------------------------------------------------------------


def wake_ups(path):
    """How often the worker of ubd's device went round its loop so far."""
    found = json.loads(must("ubd", "stats", "-n", path.removeprefix("/dev/ublkb"), "--json"))
    return found["devices"][0]["total"]["wakeUps"]


def queues(plan):
    """As many jobs and queues as processors, each job on a processor, and so a queue, of its own."""
    for target, mode, way, number, depth, at_once, requests in plan["queues"]:
        file = ["-f", FILE] if target == "loop" else []
        device = add("-t", target, "-q", number, "-d", DEPTH, "--max-io-size", "128K", "--mode", mode, *file)
        if (device["mode"], device["queues"]) != (mode, number):
            raise RuntimeError(f"asked for {number} queues in mode {mode}, got {device}")
        more = [f"--cpus_allowed=0-{number - 1}", "--cpus_allowed_policy=split", *in_groups(at_once, depth)]
        set_scheduler(device["node"])
        warm(device["node"], *more[:2], jobs=number)
        woken = [wake_ups(device["node"])]
        runs = []
        for count in (requests // 16, requests):
            runs.append(counted_load("ubd-worker", device["node"], way, 4096, depth, count // depth * depth, *more, jobs=number))
            woken.append(wake_ups(device["node"]))
        tell({"target": target, "mode": mode, "way": way, "depth": depth, "queues": number, "at_once": at_once, "short": runs[0], "long": runs[1],
              "wake_ups": woken[2] - 2 * woken[1] + woken[0]})  # fmt: skip
        must("ubd", "del", "-n", device["id"])


def private_memory(pid):
    """Kilobytes that only this process holds."""
    rollup = open(f"/proc/{pid}/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))


def devices(plan):
    """What `ubd add` costs, from the command to its answer, and what memory idle workers hold."""
    adds = []
    for _ in range(plan["devices"]):
        with window() as number:
            device = add("-t", "null", "--size", "1G", "-d", 16, "--max-io-size", "64K")
        adds.append((number, device))
    # Idle: nothing has been read or written, so no buffer has been touched.
    memory = [private_memory(device["workerPid"]) for _, device in adds]
    with window() as nothing:
        must("/bin/true")
    for (number, device), kilobytes in zip(adds, memory):
        tell({"device": device["id"], "mode": device["mode"], "window": number, "nothing": nothing, "private_kib": kilobytes})
    for _, device in adds:
        must("ubd", "del", "-n", device["id"])


def by_process(*command):
    """What a command costs each program that runs meanwhile, the kernel's threads included: {name: instructions}. The
    kernel's own account of run times, which is one of instructions here. Interrupts count for whom they interrupt."""
    tracing = "/sys/kernel/tracing"
    if not os.path.exists(f"{tracing}/events"):
        must("mount", "-t", "tracefs", "tracefs", tracing)

    def write(name, text):
        with open(f"{tracing}/{name}", "w") as file:
            file.write(text)

    write("buffer_size_kb", "8192")
    write("trace", "")
    write("events/sched/sched_stat_runtime/enable", "1")
    try:
        must(*command)
    finally:
        write("events/sched/sched_stat_runtime/enable", "0")
    found = {}
    with open(f"{tracing}/trace") as file:
        for line in file:
            if match := re.search(r"sched_stat_runtime: comm=(.+) pid=\d+ runtime=(\d+)", line):
                found[match[1]] = found.get(match[1], 0) + int(match[2])
    return found


def commands(plan):
    """What `ubd add` and `ubd del` cost the whole system, from the command to its answer; and kublk's."""
    with window() as nothing:
        must("/bin/true")

    def counted(line, *command):
        must("sync")
        with window() as number:
            must(*command)
        tell(line | {"window": number, "nothing": nothing})

    for target in plan["commands"] * plan["times"]:
        add = ["ubd", "add", "-t", target, "-n", 5] + (["-f", FILE] if target == "loop" else [])
        counted({"command": "add", "server": "ubd", "target": target}, *add)
        counted({"command": "del", "server": "ubd", "target": target}, "ubd", "del", "-n", 5)
        if os.path.exists("/job/kublk"):
            counted({"command": "add", "server": "kublk", "target": target}, "/job/kublk", "add", "-t", target, "-n", 7, *add[7:])
            counted({"command": "del", "server": "kublk", "target": target}, "/job/kublk", "del", "-n", 7)
        if plan.get("processes"):
            tell({"command": "add", "target": target, "processes": by_process(*add)})
            tell({"command": "del", "target": target, "processes": by_process("ubd", "del", "-n", 5)})


def hogs(number):
    """Programs that only compute, each in a session, and so a scheduling group, of its own."""
    return [subprocess.Popen(["python3", "-c", "while True: pass"], start_new_session=True) for _ in range(number)]


def computing(plan):
    """How long a read takes a program that computes meanwhile, with other programs that compute beside it."""
    for server, target, mode, others, count in plan["computing"]:
        with SERVERS[server](target, mode) as (path, _):
            set_scheduler(path)
            warm(path)
            busy = hogs(others)
            try:
                found = json.loads(must("/job/busy-reader", path, count, timeout=1200))
            finally:
                for one in busy:
                    one.kill()
                    one.wait()
            tell({"server": server, "target": target, "mode": mode, "others": others} | found)


def ticker(seconds):
    """A program that does nothing but wake up that often, beside everything."""
    return subprocess.Popen(["python3", "-c", f"import time\nwhile True: time.sleep({seconds})"], start_new_session=True)


SECTIONS = {"points": points, "queues": queues, "devices": devices, "commands": commands, "computing": computing}


def main():
    global PLAN
    with open("/job/plan.json") as file:
        plan = PLAN = json.load(file)
    with open(FILE, "wb") as file:
        for _ in range(FILE_MIB):
            file.write(os.urandom(1 << 20))
    tell({"kernel": os.uname().release})
    # khugepaged would do 35 million instructions' work in some window or other, and DAMON looks at memory now and then.
    with open("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "w") as file:
        file.write("4294967295")
    if os.path.exists("/sys/module/damon_stat/parameters/enabled"):
        with open("/sys/module/damon_stat/parameters/enabled", "w") as file:
            file.write("N")
    if plan.get("symbols"):
        os.makedirs("/job/out", exist_ok=True)
        must("modprobe", "-a", "loop", "null_blk")
        with open("/job/out/symbols", "w") as out:
            out.writelines(line for line in open("/proc/kallsyms") if line.split()[1] in "tTwW")
    if "ticker" in plan:
        ticker(plan["ticker"])
    with Broker():
        for name, section in SECTIONS.items():
            if name in plan:
                section(plan)


run_group(main)
