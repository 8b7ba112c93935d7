"""What the groups share that kill and count: a verified load that does not end before it is told to, and what the broker's
log says about it. `# files: Tests/lab/devices.py Tests/lab/clients.py Tests/lab/load.py`"""
import re
import statistics
import threading

from clients import Varlink, raw_devices
from devices import *

# A broker that forgets deaths after a second: kills that are parted by more do not make it give up or slow down.
FORGETFUL = ["--death-window", "1"]


class Load:
    """fio on a disk, two jobs, so two queues, at depth 32: random writes, all of them read back and compared, again and
    again until `stop`. The jobs are not in step, so that there is always work under way. `pause`: milliseconds without a
    request after every second write, for a test that waits long for something else: a full load costs a whole processor."""

    def __init__(self, path, size, megabytes=16, depth=32, pause=0):
        # The first MiB is left alone: some of its blocks break the test build of the worker (TestCrash.swift).
        self.path, self.part, self.megabytes, self.depth = path, (size - MIB) // 2 & ~4095, megabytes, depth
        self.pauses = [f"--thinktime={pause}ms", "--thinktime_blocks=2"] if pause else []
        self.ending, self.problems, self.passes, self.bytes = False, [], 0, 0
        self.lock = threading.Lock()
        # fio removes a file that is too short for it and lays it out anew, also one that the other job has begun to write.
        if not os.path.exists(path):
            sparse(path, size)
        self.jobs = [threading.Thread(target=self._job, args=(number,), daemon=True) for number in range(2)]
        for job in self.jobs:
            job.start()

    def _job(self, number):
        while not self.ending:
            problem, report = fio(
                f"--filename={self.path}", "--rw=randwrite", "--bsrange=4k-128k", "--ioengine=io_uring", f"--iodepth={self.depth}",
                "--direct=1", f"--size={self.part}", f"--offset={MIB + number * self.part}", f"--io_size={self.megabytes * MIB}",
                f"--cpus_allowed={number}", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--allrandrepeat=0", *self.pauses,
                directions=["read", "write"], timeout=300,
            )  # fmt: skip
            with self.lock:
                self.passes += 1
                if problem:
                    self.problems.append(problem)
                    self.ending = True
                else:
                    self.bytes += report["jobs"][0]["write"]["io_bytes"]

    def stop(self):
        """Lets each job finish what it is at; returns what went wrong ("" when nothing did)."""
        self.ending = True
        for job in self.jobs:
            job.join(320 * PATIENCE)
        if any(job.is_alive() for job in self.jobs):
            return "the load does not end"
        return "; ".join(self.problems) or ("" if self.bytes else "the load moved nothing")

    def __str__(self):
        return f"{self.bytes / MIB:.0f} MiB written and read back in {self.passes} passes"


def listed(number):
    """The device as the broker tells of it, without the CLI, which takes a while to start here."""
    return next((device for device in raw_devices() if device["id"] == number), None)


def settled(number, seconds=60):
    """Waits until a device is live, failed or gone; returns it."""
    found = None

    def done():
        nonlocal found
        found = listed(number)
        return found is None or found["state"] in ("live", "failed", "stuck", "unmanaged")

    eventually(seconds, done)
    return found


def in_flight(device):
    return sum(map(int, open(f"/sys/block/ublkb{device['id']}/inflight").read().split()))


class Log:
    """The broker's log from here on."""

    def __init__(self):
        self.start = os.path.getsize(BROKER_LOG) if os.path.exists(BROKER_LOG) else 0

    def lines(self, event):
        with open(BROKER_LOG, errors="replace") as file:
            file.seek(self.start)
            return [line for line in file if f">event={event} " in line]

    def numbers(self, event, key):
        return [int(match[1]) for line in self.lines(event) if (match := re.search(rf" {key}=(\d+)", line))]

    def tail(self):
        with open(BROKER_LOG, errors="replace") as file:
            return " | ".join(file.read().splitlines()[-8:])


def times(milliseconds):
    """For a note: "median 52 ms, worst 130 ms of 100"."""
    if not milliseconds:
        return "none"
    return f"median {statistics.median(milliseconds):.0f} ms, worst {max(milliseconds)} ms of {len(milliseconds)}"
