"""Boots one of the lab's kernels in QEMU with a script to run, and brings back what came of it.

The guest's whole root is in memory: the cached userland and kernel modules, then what the caller adds, as one chain of
cpio archives. Results travel through virtio-serial ports, never through the console.
"""
import contextlib
import fcntl
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
OUTPUT = REPOSITORY / ".build" / "lab"
KERNELS = ["6.12", "7.3"]

COMMAND_LINE = (
    "console=ttyS0 panic=-1 quiet rdinit=/init cryptomgr.notests tsc=reliable no_timer_check random.trust_cpu=on"
    " mitigations=off watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120 log_buf_len=4M"
)
# With one tick per instruction, time in the guest is a count of instructions and does not depend on the host.
COUNTED_TIME = ["-icount", "shift=0,sleep=off", "-seed", "1", "-rtc", "base=2026-01-01,clock=vm"]

# Not to be told that `rep movsb` is fast: here it is a store a byte, and the guest's kernel and C library clear and copy
# a page in a fraction of the time by other instructions. (What requests cost is measured with the processor as it is.)
SLOW_STRINGS = ",erms=off,fsrm=off"

PORTS = ["out", "err", "status", "tar", "dmesg"]

# What the kernel says when it finds itself in the wrong. A run with such a line has failed, whatever else it printed.
COMPLAINT = re.compile(
    r"WARNING:|BUG:|Oops|Call Trace|Kernel panic|general protection fault|blocked for more than|"
    r"self-detected stall|detected stalls|refcount_t:|list_(add|del) corruption|UBSAN:|KASAN:|double free"
)


class BootFailed(Exception):
    """The guest never came to its script, although it was started several times."""


# Where in the cache things are: "userland", "qemu", "kernel-6.12", ...; filled by prepare().
CACHED = {}


def prepare(kernels):
    """Makes sure that the cache holds these kernels, the userland and a QEMU."""
    done = subprocess.run([HERE / "prepare", *kernels], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("lab: it cannot be prepared (above)")
    CACHED.update((name, pathlib.Path(folder)) for name, folder in (line.split("=", 1) for line in done.stdout.splitlines()))


def prepare_disk(name):
    """Makes sure that the cache holds the disk images/NAME: only groups that ask for it need it."""
    done = subprocess.run([HERE / "images" / name], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"lab: the disk {name} cannot be made (above)")
    CACHED[name] = pathlib.Path(done.stdout.strip())


def pack(tree):
    """The folder `tree` as a cpio archive, every file owned by root."""
    names = subprocess.run(["find", ".", "-mindepth", "1", "-print0"], cwd=tree, check=True, capture_output=True)
    archive = subprocess.run(
        ["cpio", "--null", "--create", "--format=newc", "--owner=0:0", "--quiet"],
        cwd=tree, input=names.stdout, check=True, capture_output=True,
    )  # fmt: skip
    return archive.stdout


def make(*arguments):
    """Makes targets of the repository on the host."""
    subprocess.run([os.environ.get("MAKE", "make"), "--silent", "-C", REPOSITORY, *arguments], check=True)


def stage(build=True):
    """ubd, installed into a folder as a packager would, as an archive to lay over the guest's root."""
    if build:
        make("build")
    tree, archive = OUTPUT / "stage", OUTPUT / "stage.cpio"
    # Two checks of `make test` may do it at the same time, and one boot while the other is at it.
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with open(OUTPUT / "stage.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(tree, ignore_errors=True)
        make("install", f"DESTDIR={tree}", "PREFIX=/usr")
        new = archive.with_suffix(".new")
        new.write_bytes(pack(tree))
        new.replace(archive)
    return archive


def helpers():
    """The small C programs of helpers/, built static: they lie in the guest's PATH. Returns the folder they are in."""
    folder = OUTPUT / "helpers"
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted((HERE / "helpers").glob("*.c")):
        program = folder / source.stem
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            made = OUTPUT / f"{program.name}.{os.getpid()}"
            command = ["cc", "-std=gnu17", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"]
            subprocess.run([*command, "-I", REPOSITORY / "Sources", "-o", made, source], check=True)
            made.replace(program)
    return folder


class Machine:
    """One boot. Set it up, then `run()`; afterwards `status`, `stderr` and the folder `results` tell what happened."""

    def __init__(self, kernel, command, *, cpus=2, memory=1024, timeout=120, boot_timeout=60, retries=2):
        if kernel not in KERNELS:
            raise ValueError(f'no kernel "{kernel}" in this lab; choose one of {", ".join(KERNELS)}')
        self.kernel, self.command = kernel, command
        self.cpus, self.memory = cpus, memory
        self.timeout, self.boot_timeout, self.retries = timeout, boot_timeout, retries
        self.modules = ["ublk_drv"]
        self.udev = self.systemd = self.dpkg = self.counted = self.interleaved = False
        self.interactive = False
        self.reboots = False  # the guest may reboot: it keeps its first disk, and powers off at its end
        self.environment, self.append, self.qemu, self.disks = {}, [], [], []
        self.images = []  # disks of the cache, after the others: what the guest writes there ends with it
        self.plugin, self.cpu = None, ""
        self.archives = []  # more cpio archives, over the userland
        self.job = pathlib.Path(tempfile.mkdtemp(prefix="ubd-lab."))
        self.tree = self.job / "tree"
        (self.tree / "lab" / "root").mkdir(parents=True)
        (self.tree / "job").mkdir()
        self.status, self.ended, self.seconds, self.boot_seconds = None, None, 0.0, None
        self.process, self.boot_processor = None, 0.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.job, ignore_errors=True)

    def add(self, source, name=None):
        """Puts a file or folder of the host into the guest as /job/NAME."""
        source = pathlib.Path(source)
        target = self.tree / "job" / (name or source.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)

    def processor(self):
        """Seconds of the host's processors that this boot has taken so far."""
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    # --- what goes in -------------------------------------------------------------------------------------------

    def _settings(self):
        lines = [
            f"lab_modules={shlex.quote(' '.join(self.modules))}",
            f"lab_udev={'1' if self.udev else ''}",
            f"lab_systemd={'1' if self.systemd else ''}",
            f"lab_shell={'1' if self.interactive else ''}",
            f"lab_reboots={'1' if self.reboots else ''}",
            f"lab_command=({' '.join(map(shlex.quote, self.command))})",
        ]
        if self.interactive:
            size = shutil.get_terminal_size()
            lines.append(f"lab_tty='sane rows {size.lines} cols {size.columns}'")
            lines.append(f"export TERM={shlex.quote(os.environ.get('TERM', 'linux'))}")
        lines += [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return "\n".join(lines) + "\n"

    def _initrd(self):
        for source in (HERE / "guest").iterdir():
            target = self.tree / ("init" if source.name == "init" else f"lab/{source.name}")
            shutil.copy(source, target)
            target.chmod(0o755)
        for library in ("lib.sh", "lib.py"):
            self.add(HERE / library)
        programs = self.tree / "usr" / "local" / "bin"
        shutil.copytree(helpers(), programs)
        (self.tree / "lab" / "settings").write_text(self._settings())
        parts = [CACHED["userland"] / "userland.cpio", CACHED[f"kernel-{self.kernel}"] / "modules.cpio"]
        parts += [CACHED["systemd"] / "systemd.cpio"] if self.systemd else []
        parts += [CACHED["dpkg"] / "dpkg.cpio"] if self.dpkg else []
        parts += self.archives
        path = self.job / "initrd"
        with open(path, "wb") as file:
            for part in parts:
                with open(part, "rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)
            file.write(pack(self.tree))
        return path

    def _arguments(self, initrd):
        line = [COMMAND_LINE, *self.append]
        qemu = json.loads((CACHED["qemu"] / "settings.json").read_text())
        arguments = [
            # It must not outlive us, however we end.
            "setpriv", "--pdeathsig", "KILL", *qemu["command"], "-nodefaults", "-no-user-config", "-machine", "q35",
            "-cpu", qemu["cpu"] + self.cpu, "-smp", str(self.cpus), "-m", str(self.memory), "-display", "none", *([] if self.reboots else ["-no-reboot"]),
            "-kernel", str(CACHED[f"kernel-{self.kernel}"] / "vmlinux"), "-initrd", str(initrd),
            "-serial", "mon:stdio" if self.interactive else f"file:{self.job / 'console'}",
            "-device", "virtio-serial-pci",
        ]  # fmt: skip
        if self.counted:
            arguments += ["-accel", "tcg", *COUNTED_TIME]
            line.append("nokaslr norandmaps")
        else:
            arguments += ["-accel", "tcg,thread=single" if self.interleaved else qemu["accelerator"]]
        for number, port in enumerate(PORTS, start=1):
            arguments += ["-chardev", f"file,id=c{port},path={self.job / port}"]
            arguments += ["-device", f"virtserialport,nr={number},chardev=c{port},name=lab.{port}"]
        kept, passing = ([(disk, how) for disk in disks] for disks, how in ((self.disks, "off"), (self.images, "on")))
        for number, (disk, snapshot) in enumerate(kept + passing):
            arguments += ["-drive", f"file={disk},format=raw,if=none,id=d{number},cache=unsafe,discard=unmap,snapshot={snapshot}"]
            arguments += ["-device", f"virtio-blk-pci,drive=d{number}"]
        if self.plugin:
            arguments += ["-plugin", self.plugin]
        return arguments + self.qemu + ["-append", " ".join(line)]

    # --- running ------------------------------------------------------------------------------------------------

    def text(self, port):
        """What came through a port (or "console") so far."""
        try:
            return (self.job / port).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def run(self, on_output=None):
        """Boots and runs to the end. `on_output(bytes)` gets standard output as it comes.

        `status` is the script's exit status, or None when the guest ended or was ended without one; `ended` then says how.
        """
        initrd = self._initrd()
        arguments = self._arguments(initrd)
        if self.interactive:
            self.status = subprocess.run(arguments).returncode
            return self
        for attempt in range(1, self.retries + 2):
            if self._boot(arguments, on_output):
                return self
            # Nothing of the script has run: about one boot in twenty hangs in firmware or timer on a loaded host.
            self.note(f"boot {attempt} of kernel {self.kernel} failed: {self.ended}")
        raise BootFailed(f"kernel {self.kernel} did not come up in {self.retries + 1} attempts; console:\n" + self.tail())

    def note(self, text):
        print(f"lab: {text}", file=sys.stderr, flush=True)

    def tail(self, lines=25):
        return "\n".join(self.text("console").replace("\r", "").splitlines()[-lines:])

    def _boot(self, arguments, on_output):
        """One attempt; false when the guest never came to its script."""
        for name in [*PORTS, "console"]:
            (self.job / name).write_bytes(b"")
        started = time.monotonic()
        up, self.ended = False, None
        with open(self.job / "qemu", "wb") as errors, open(self.job / "out", "rb") as out:
            # A session of its own: Ctrl-C is ours to handle.
            qemu = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True)
            self.process = qemu
            try:
                while True:
                    running = qemu.poll() is None
                    if not up and b"lab: up" in (self.job / "console").read_bytes():
                        up = True
                        self.boot_seconds, self.boot_processor = time.monotonic() - started, self.processor()
                    chunk = out.read()
                    if chunk and on_output:
                        on_output(chunk)
                    if not running:
                        break
                    elapsed = time.monotonic() - started
                    if not up and elapsed > self.boot_timeout:
                        self.ended = f"it was not up after {self.boot_timeout} s"
                        break
                    if up and elapsed > self.boot_seconds + self.timeout:
                        self.ended = f"time limit of {self.timeout} s"
                        break
                    time.sleep(0.05)
            finally:
                if qemu.poll() is None:
                    qemu.send_signal(signal.SIGKILL)
                qemu.wait()
        self.seconds = time.monotonic() - started
        status = self.text("status").strip()
        self.status = int(status) if status.isdigit() else None
        if self.status is None and not self.ended:
            self.ended = "the guest ended without a status"
            if qemu.returncode:
                self.ended += f" (QEMU: {self.text('qemu').strip() or qemu.returncode})"
        return up

    # --- what came out ------------------------------------------------------------------------------------------

    def kernel_log(self):
        """The kernel's log; the console's part of it too when the guest died with the end untransmitted."""
        log = self.text("dmesg")
        return log if self.status is not None else log + self.text("console").replace("\r", "")

    def complaints(self):
        """Lines of the kernel's log in which the kernel found itself in the wrong."""
        return [line for line in self.kernel_log().splitlines() if COMPLAINT.search(line)]

    def keep(self, folder):
        """Copies everything that came back into a folder of the host."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in [*PORTS, "console", "qemu"]:
            if (self.job / name).exists():
                shutil.copy(self.job / name, folder / name)

    def fetch(self, folder):
        """Unpacks what the script left in /job/out into a folder of the host."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if (self.job / "tar").stat().st_size:
            subprocess.run(["tar", "-C", folder, "--no-same-owner", "-xf", self.job / "tar"], check=True)
