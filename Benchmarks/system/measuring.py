"""What `bench` and its parts share: building, booting the counting guest, and from marks to numbers."""
import json
import os
import pathlib
import re
import struct
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
sys.path.insert(0, str(REPOSITORY / "Tests" / "lab"))
import vm  # noqa: E402

OUTPUT = REPOSITORY / ".build" / "bench"
PATIENCE = float(os.environ.get("UBD_LAB_PATIENCE", "1"))


def build(programs):
    """Everything that the guest is given, made from this work tree."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    stage = vm.stage(programs)
    (OUTPUT / "stage.cpio").write_bytes(stage.read_bytes())
    # By QEMU's plugin interface, whose declarations icnt.c carries.
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", OUTPUT / "icnt.so", HERE / "icnt.c"], check=True)
    subprocess.run(["cc", "-nostdlib", "-static", "-o", OUTPUT / "labmark", HERE / "labmark.S"], check=True)
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-static", "-o", OUTPUT / "busy-reader", HERE / "busy-reader.c"], check=True)


def worker_code():
    """Where the installed worker's code lies in a guest that does not randomise addresses: a position-independent program
    without an interpreter is put as high as it goes below the gap for the stack. guest.py compares it with the truth."""
    data = (REPOSITORY / ".build" / "ubd" / "bin" / "ubd-worker").read_bytes()
    offset, size, count = (*struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54))
    headers = [struct.unpack_from("<IIQQQQQQ", data, offset + size * index) for index in range(count)]
    loads = [(flags, address, length) for kind, flags, _, address, _, _, length, _ in headers if kind == 1]
    page = 4096
    base = 0x7FFFF7FFF000 - (max(address + length for _, address, length in loads) + page - 1) // page * page
    low, length = next((address, length) for flags, address, length in loads if flags & 1)
    return base + low, base + low + length


def kublk():
    """The kernel's own ublk server, built from Debian's kernel source into the cache."""
    made = subprocess.run([REPOSITORY / "Tests/lab/images/kublk"], check=True, stdout=subprocess.PIPE, text=True)
    return pathlib.Path(made.stdout.strip()) / "kublk"


def nbd_client():
    """Debian's nbd-client and what it needs beyond the guest's userland, from the cache."""
    made = subprocess.run([REPOSITORY / "Tests/lab/images/nbd-client"], check=True, stdout=subprocess.PIPE, text=True)
    return sorted(pathlib.Path(made.stdout.strip()).iterdir())


class Guest:
    """One boot: runs a plan (guest.py), and gives what it told, with its windows counted."""

    def __init__(self, name, kernel, plan, *, cpus=1, memory=1024, timeout=900, files=(), profile=False):
        self.counts, self.profile = OUTPUT / f"{name}.counts", OUTPUT / f"{name}.profile"
        self.folder, self.is_counted = OUTPUT / name, cpus == 1
        low, high = worker_code()
        plugin = f"{OUTPUT / 'icnt.so'},out={self.counts},server={low:x}:{high:x}" + (f",profile={self.profile}" if profile else "")
        vm.prepare([kernel])
        with vm.Machine(kernel, ["python3", "/job/guest.py"], cpus=cpus, memory=memory, timeout=timeout * PATIENCE,
                        boot_timeout=240 * PATIENCE) as machine:  # fmt: skip
            # Only one processor's time can be a count.
            machine.counted, machine.plugin = cpus == 1, plugin
            machine.append.append("nokaslr norandmaps")
            machine.environment["LAB_PATIENCE"] = str(max(1, round(PATIENCE)))
            machine.archives.append(OUTPUT / "stage.cpio")
            for file in (HERE / "guest.py", OUTPUT / "labmark", *files):
                machine.add(file)
            (machine.tree / "job" / "plan.json").write_text(json.dumps(plan | {"symbols": profile, "worker": [low, high]}))
            machine.run(lambda chunk: (sys.stderr.buffer.write(chunk), sys.stderr.flush()))
            machine.keep(self.folder)
            if machine.status != 0:
                sys.exit(f"bench: {name}: {machine.ended or machine.status}\n{machine.text('err')}{machine.tail()}")
            if complaints := machine.complaints():
                sys.exit(f"bench: {name}: the kernel complains: {complaints[0]}")
            if profile:
                machine.fetch(self.folder)
            lines = [json.loads(line) for line in machine.text("out").splitlines() if line.startswith("{")]
        self.kernel, self.lines = lines[0]["kernel"], lines[1:]
        self.marks = []
        for line in self.counts.read_text().splitlines():
            if found := re.match(r"MARK 1 kernel (\d+) fio (\d+) server (\d+) other (\d+)", line):
                self.marks.append([int(number) for number in found.groups()])

    def window(self, number):
        """Instructions between two marks: all, and the server's in user space."""
        before, after = self.marks[2 * number], self.marks[2 * number + 1]
        return sum(after) - sum(before), after[2] - before[2]

    def per_request(self, line):
        """The same of one request, and nanoseconds that the server ran: from a long and a short run."""
        long, short = line["long"], line["short"]
        requests = long["requests"] - short["requests"]
        (all_long, user_long), (all_short, user_short) = self.window(long["window"]), self.window(short["window"])
        found = {
            "user": (user_long - user_short) / requests,
            "run": (long["run_ns"] - short["run_ns"]) / requests,
            "all": (all_long - all_short) / requests,
            "fio": long["milliseconds"] * 1e6 / long["requests"],
        }
        # Now and then khugepaged runs, outside of fio's time: 35 million instructions (the profile section showed it). Then fio's
        # clock must do, which counts milliseconds.
        by_clock = (long["milliseconds"] - short["milliseconds"]) * 1e6
        if self.is_counted and abs(all_long - all_short - by_clock) > 5e6:
            found |= {"all": by_clock / requests, "rough": True}
        return found

    def symbols(self, lines):
        """Kernel instructions per request by function, of all these lines' requests together: {symbol: count}."""
        table = sorted((int(line.split()[0], 16), line.split()[2]) for line in (self.folder / "symbols").open())
        import bisect

        addresses = [address for address, _ in table]
        weights, requests = {}, 0
        for line in lines:
            requests += line["long"]["requests"] - line["short"]["requests"]
            # What a mark tells is what ran since the one before.
            weights[2 * line["long"]["window"] + 1] = 1
            weights[2 * line["short"]["window"] + 1] = -1
        counts = {}
        with self.profile.open() as file:
            for entry in file:
                mark, address, count = entry.split()
                if weight := weights.get(int(mark)):
                    at = bisect.bisect_right(addresses, int(address, 16) + 15) - 1
                    name = table[at][1] if at >= 0 else address
                    counts[name] = counts.get(name, 0) + weight * int(count)
        return {name: count / requests for name, count in counts.items()}
