"""Reads the seccomp policies once more, independently of ubd's own compiler: what a policy's text says of a system call.

Only what the grammar of policy/README.md has. The numbers of calls come from the kernel's own header, those of constants
from the headers that are named beside them.
"""
import re

FOLDER = "/usr/share/ubd/policy/seccomp"
HEADER = "/job/unistd_64.h"
WORD = (1 << 64) - 1
KILL, PASS = "kill", "pass"

CONSTANTS = {
    "F_GETFD": 1, "F_GETFL": 3, "F_OFD_SETLK": 37, "F_GET_SEALS": 1034,  # asm-generic/fcntl.h
    "AT_EMPTY_PATH": 0x1000, "AT_NO_AUTOMOUNT": 0x800, "AT_STATX_DONT_SYNC": 0x4000,  # linux/fcntl.h
    "FALLOC_FL_KEEP_SIZE": 1, "FALLOC_FL_PUNCH_HOLE": 2,  # linux/falloc.h
    "FUTEX_WAIT": 0, "FUTEX_WAKE": 1, "FUTEX_PRIVATE_FLAG": 128,  # linux/futex.h
    "BLKROGET": 0x125E, "BLKSSZGET": 0x1268, "BLKPBSZGET": 0x127B, "BLKGETSIZE64": 0x80081272,  # linux/fs.h
    "SOL_SOCKET": 1, "SO_TYPE": 3, "SO_ACCEPTCONN": 30, "SO_PROTOCOL": 38, "SO_DOMAIN": 39, "SO_LOCK_FILTER": 44,  # asm-generic/socket.h
    "IPPROTO_TCP": 6, "TCP_ULP": 31, "EFD_CLOEXEC": 0x80000,  # linux/in.h, linux/tcp.h, linux/eventfd.h
    "PROT_EXEC": 4,  # asm-generic/mman-common.h
    "CLONE_VM": 0x100, "CLONE_FS": 0x200, "CLONE_FILES": 0x400, "CLONE_SIGHAND": 0x800, "CLONE_THREAD": 0x10000,
    "CLONE_SYSVSEM": 0x40000, "CLONE_SETTLS": 0x80000, "CLONE_PARENT_SETTID": 0x100000, "CLONE_CHILD_CLEARTID": 0x200000,  # linux/sched.h
    "SECCOMP_SET_MODE_FILTER": 1, "SECCOMP_FILTER_FLAG_TSYNC": 1, "SECCOMP_FILTER_FLAG_TSYNC_ESRCH": 16,  # linux/seccomp.h
    "PR_SET_NAME": 15, "PR_SET_DUMPABLE": 4, "PR_GET_DUMPABLE": 3, "PR_GET_NO_NEW_PRIVS": 39, "PR_GET_SECCOMP": 21,  # linux/prctl.h
}  # fmt: skip
ERRORS = {"EPERM": 1, "ENOSYS": 38, "EACCES": 13}


def numbers():
    """The system calls of x86_64: name to number."""
    with open(HEADER) as file:
        return {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", file.read())}


def value(text):
    total = 0
    for part in text.strip().strip("()").split("|"):
        total |= CONSTANTS[part] if part in CONSTANTS else int(part, 0)
    return total


class Test:
    """One comparison of an argument."""

    def __init__(self, text):
        index, comparison, inverted, number = re.fullmatch(r"arg([0-5]) (==|in|&) (~?)(.+)", text.strip()).groups()
        self.index, self.kind, self.value = int(index), comparison, value(number)
        if inverted:
            self.value ^= WORD

    def holds(self, arguments):
        argument = arguments[self.index]
        if self.kind == "==":
            return argument == self.value
        return not argument & ~self.value & WORD if self.kind == "in" else argument & self.value == self.value

    def fitting(self):
        """Values with which it holds."""
        if self.kind == "in":
            return [0, self.value & 0xFF, self.value & 1 << 40]
        return [self.value]

    def others(self, bits):
        """Values with which it does not, one bit from one with which it does; of these positions."""
        if self.kind == "in":
            return [1 << bit for bit in range(64) if ~self.value >> bit & 1 and (bit in bits or self.value.bit_count() > 32)]
        if self.kind == "&":
            return [self.value ^ 1 << bit for bit in range(64) if self.value >> bit & 1]
        return [self.value ^ 1 << bit for bit in bits]


class Rule:
    """`alternatives` of tests, one of which must hold; none: always. `otherwise`: an error in place of a kill."""

    def __init__(self, text):
        self.otherwise = None
        if match := re.search(r";? *return (\w+)$", text):
            self.otherwise = ERRORS[match[1]] if match[1] in ERRORS else int(match[1])
            text = text[: match.start()].strip()
        self.always = text == "allow"
        self.alternatives = [] if self.always or not text else [[Test(test) for test in one.split("&&")] for one in text.split("||")]

    def fate(self, arguments):
        if self.always or any(all(test.holds(arguments) for test in one) for one in self.alternatives):
            return PASS
        return KILL if self.otherwise is None else self.otherwise


class Policy:
    def __init__(self, name):
        self.rules, calls = {}, numbers()
        for call, rule in self._lines(name):
            assert call in calls, f"{name}: no system call {call}"
            assert calls[call] not in self.rules, f"{name}: {call} twice"
            self.rules[calls[call]] = Rule(rule)

    def _lines(self, name):
        with open(f"{FOLDER}/{name}") as file:
            for line in file:
                line = line.split("#")[0].strip()
                if line.startswith("@include "):
                    yield from self._lines(line.split()[1])
                elif line:
                    assert line[0] not in "@?", f"{name}: {line}: this reader does not know that"
                    call, rule = line.split(":", 1)
                    yield call.strip(), rule.strip()

    def fate(self, number, arguments):
        rule = self.rules.get(number)
        return rule.fate(arguments) if rule else KILL

    def attempts(self, bits):
        """(number, arguments) that fit each rule, and such with one argument perturbed."""
        found = []
        for number, rule in self.rules.items():
            found.append((number, (0,) * 6))
            for tests in rule.alternatives:
                fitting = [0] * 6
                for test in tests:
                    fitting[test.index] |= test.fitting()[0]
                for test in tests:
                    for changed in test.fitting() + test.others(bits):
                        arguments = list(fitting)
                        arguments[test.index] = changed
                        found.append((number, tuple(arguments)))
        return list(dict.fromkeys(found))


def together(policies, number, arguments):
    """What several policies, loaded one after another, make of a call: a kill before an error before a pass."""
    fates = [policy.fate(number, arguments) for policy in policies]
    if KILL in fates:
        return KILL
    errors = [fate for fate in fates if fate != PASS]
    # Of equal actions the kernel takes the last filter's.
    return errors[-1] if errors else PASS
