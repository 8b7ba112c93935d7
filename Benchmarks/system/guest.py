#!/usr/bin/env python3
"""Runs in the lab's guest: serves each device of /job/plan.json with its server, lets fio read and write it, and prints one
JSON object a line: what fio and the scheduler counted. `labmark` before and after each run tells the counting plugin.
"""
import glob

from lib import *

DEPTH = 128
FILE = "/tmp/backing.img"
FILE_MIB = 64
KUBLK = {"copy": [], "auto-zc": ["--auto_zc"], "batch": ["-b"], "batch-auto-zc": ["-b", "--auto_zc"]}


def must(*command, **more):
    result = run(*command, **more)
    if result.returncode:
        raise RuntimeError(f"{command}: {result.stdout} {result.stderr}")
    return result.stdout.strip()


@contextlib.contextmanager
def null_blk(_target, _mode):
    must("modprobe", "null_blk", "nr_devices=1", "submit_queues=1", f"hw_queue_depth={DEPTH}", "size=1024")
    yield "/dev/nullb0", None
    must("rmmod", "null_blk")


@contextlib.contextmanager
def kernel_loop(_target, _mode):
    must("modprobe", "loop")
    device = must("losetup", "--find", "--show", FILE)
    yield device, None
    must("losetup", "--detach", device)


@contextlib.contextmanager
def kublk(target, mode):
    file = [FILE] if target == "loop" else []
    must("/job/kublk", "add", "-t", target, "-n", 7, "-q", 1, "-d", DEPTH, *KUBLK[mode], *file)
    yield "/dev/ublkb7", "kublk"
    must("/job/kublk", "del", "-n", 7)


@contextlib.contextmanager
def ubd(target, mode):
    file = ["-f", FILE] if target == "loop" else []
    reply = must("ubd", "add", "-t", target, "-d", DEPTH, "--max-io-size", "1M", "--mode", mode, *file, "--json")
    device = json.loads(reply)["device"]
    if device["mode"] != mode:
        raise RuntimeError(f"asked for mode {mode}, got {device['mode']}")
    yield device["node"], "ubd-worker"
    must("ubd", "del", "-n", device["id"])


SERVERS = {"null_blk": null_blk, "loop": kernel_loop, "kublk": kublk, "ubd": ubd}


def run_time(name):
    """Nanoseconds that all threads of the server have run, the kernel's helpers for its ring included."""
    total = 0
    for comm in glob.glob("/proc/[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if open(comm).read().startswith(name):
                for task in glob.glob(os.path.dirname(comm) + "/task/*/schedstat"):
                    total += int(open(task).read().split()[0])
    return total


def load(path, way, block, depth, requests):
    """fio, with one thread; returns how many requests it made and the milliseconds that they took."""
    line = [
        "fio", "--name=job", "--output-format=json", f"--filename={path}", "--direct=1", "--ioengine=io_uring",
        f"--iodepth={depth}", f"--bs={block}", f"--rw={way}", f"--number_ios={requests}", f"--size={FILE_MIB}m",
        f"--io_size={requests * block}", "--norandommap", "--randrepeat=1", "--gtod_reduce=1", "--group_reporting",
    ]  # fmt: skip
    text = must(*line, timeout=600)
    job = json.loads(text[text.find("{") :])["jobs"][0]
    side = job["read" if "read" in way else "write"]
    if job["error"] or side["total_ios"] != requests:
        raise RuntimeError(f"fio: error {job['error']}, {side['total_ios']} requests instead of {requests}")
    return side["total_ios"], side["runtime"]


def measure(server, target, mode, points):
    with SERVERS[server](target, mode) as (path, name):
        with open(f"/sys/block/{os.path.basename(path)}/queue/scheduler", "w") as file:
            file.write("none")
        # Every tag once at least: the first use of a buffer makes its memory, which is no part of a request's cost.
        for way in ("randwrite", "randread"):
            load(path, way, 4096, DEPTH, 4000)
        for way, block, depth, requests in points:
            before = run_time(name) if name else 0
            must("/job/labmark")
            count, milliseconds = load(path, way, block, depth, requests)
            must("/job/labmark")
            ran = run_time(name) - before if name else 0
            point = {"server": server, "target": target, "mode": mode, "way": way, "block": block, "depth": depth}
            print(json.dumps(point | {"requests": count, "milliseconds": milliseconds, "run_ns": ran}), flush=True)


def main():
    with open("/job/plan.json") as file:
        plan = json.load(file)
    with open(FILE, "wb") as file:
        for _ in range(FILE_MIB):
            file.write(os.urandom(1 << 20))
    with Broker():
        print(json.dumps({"kernel": os.uname().release}), flush=True)
        for entry in plan:
            measure(**entry)


run_group(main)
