"""docs/performance.md, from what the sections of `bench` measured."""
import statistics

KERNEL_SERVERS = ("null_blk", "loop", "nbd.ko")


def number(value):
    return f"{value:,.0f}"


def find(results, **wanted):
    """The points that have these values."""
    return [p for p in results if all(p.get(name) == value for name, value in wanted.items())]


def counted(points):
    """Without those that only fio's clock measured, in milliseconds: that is too rough for medians of a few."""
    return [point for point in points if not point.get("rough")]


def one(results, what, **wanted):
    found = find(results, **wanted)
    if len(found) != 1:
        raise SystemExit(f"bench: {len(found)} points instead of one: {wanted}")
    return found[0][what]


def one_of(results, **wanted):
    found = find(results, **wanted)
    if len(found) != 1:
        raise SystemExit(f"bench: {len(found)} points instead of one: {wanted}")
    return found[0]


def table(results, target, block, depth, ways):
    """One line per server and mode; per way: user instructions, the server's run time, and everything, each per request."""
    lines = ["| server | mode | " + " | ".join(f"{way}: user | run | all" for way in ways) + " |", "|---|---|" + "---:|" * (3 * len(ways))]
    servers = {}
    for point in find(results, target=target, block=block, depth=depth):
        servers.setdefault((point["server"], point["mode"]), {})[point["way"]] = point
    for (server, mode), by_way in servers.items():
        cells = []
        for way in ways:
            point = by_way[way]
            own = ["–", "–"] if server in KERNEL_SERVERS else [number(point["user"]), number(point["run"])]
            cells += [*own, ("≈ " if point.get("rough") else "") + number(point["all"])]
        lines.append(f"| {server} | {mode} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# --- what must hold ---------------------------------------------------------------------------------------------------

# (what, target, mode, depth, most user instructions per request): issue 3 of the project.
USER_LIMITS = [
    ("null, copy", "null", "copy", 32, 130),
    ("null, copy, depth 1", "null", "copy", 1, 300),
    ("null, batch", "null", "batch", 32, 80),
    ("null, zero copy", "null", "zero-copy", 32, 300),
    ("loop, copy", "loop", "copy", 32, 260),
    ("loop, batch", "loop", "batch", 32, 220),
    ("loop, zero copy", "loop", "zero-copy", 32, 280),
]
WAYS = ("randread", "randwrite")


def requirement(what, came_out, most, unit, less=False, digits=0):
    good = came_out < most if less else came_out <= most
    bound, value = f"{most:,.{digits}f}", f"{came_out:,.{digits}f}"
    return f"| {what} | {'below' if less else 'at most'} {bound} | {value} | {'yes' if good else '**no**'} | {unit} |"


def requirements(sections):
    lines = ["| what | must be | is | holds | |", "|---|---:|---:|---|---|"]
    results = sections["requests"]["results"]
    for what, target, mode, depth, most in USER_LIMITS:
        for way in WAYS:
            value = one(results, "user", server="ubd", target=target, mode=mode, depth=depth, way=way, block=4096)
            lines.append(requirement(f"{what}, {way}", value, most, "user instructions"))
    everything = "instructions of the whole system"
    beside = sections["kublk"]["results"]
    for depth, at_once in in_turns_kinds(beside):
        for mode in ("copy", "batch"):
            for way in WAYS:
                cost = in_turns(beside, mode, way, depth, at_once)
                what = f"null, {mode}, {way}, depth {depth}{several(at_once)}: no more than kublk"
                lines.append(requirement(what, cost["ubd"][0], cost["kublk"][0], everything))
    same = {"target": "loop", "depth": 32, "way": "randread", "block": 4096}
    best = min(p["all"] for p in find(results, server="kublk", **same))
    ours = one(results, "all", server="ubd", mode="batch-zero-copy", **same)
    lines.append(requirement("loop, zero copy and batch, randread: below kublk's best mode", ours, best, everything, less=True))
    lines.append(requirement("the same: 5 % below 17,875 (kublk's auto-zc of the first measurement, by fio's clock)",
                             one(results, "fio", server="ubd", mode="batch-zero-copy", **same), 0.95 * 17875, "nanoseconds by fio's clock"))  # fmt: skip
    same = {"target": "loop", "depth": 4, "way": "read", "block": 1 << 20}
    loop = one(results, "all", server="loop", **same)
    for mode in ("zero-copy", "batch-zero-copy"):
        lines.append(requirement(f"loop, 1 MiB reads, {mode}: at least the kernel loop's rate", one(results, "all", server="ubd", mode=mode, **same), loop, everything))
    for way, depth, cost in connected(sections["nbd"]["results"]):
        if depth == 32:
            lines.append(requirement(f"nbd, {way}, depth {depth}", cost["ubd"]["user"], 350, "user instructions"))
    for way, depth, cost in connected(sections["nbd"]["results"]):
        lines.append(requirement(f"nbd, {way}, depth {depth}: below nbd.ko", cost["ubd"]["all"], cost["nbd.ko"]["all"], everything, less=True))
    for sector, way, depth, cost in encrypted(sections["crypt"]["results"]):
        most = CRYPT_LIMITS[way, depth] if sector == 4096 else cost["dm-crypt"]["all"]
        lines.append(requirement(f"crypt, sectors of {sector}, {way}, depth {depth}" + ("" if sector == 4096 else ": dm-crypt's"), cost["ubd"]["all"], most, everything))
    for what, way, depth, cost in layered(sections["overlay"]["results"]):
        ours, theirs = min(cost[which]["all"] for which in LAYERED), cost["dm-snapshot", "kernel"]["all"]
        lines.append(requirement(f"overlay, {what}, {way}, depth {depth}: below dm-snapshot", ours, theirs, everything, less=True))
    old = sections["old-kernel"]["results"]
    for target, most in (("null", 240), ("loop", 606)):
        for way in WAYS:
            value = one(old, "user", server="ubd", target=target, mode="copy", depth=32, way=way)
            lines.append(requirement(f"Linux 6.12: {target}, copy, {way}", value, most, "user instructions", less=True))
    for line in walls(sections["walls"]["results"]):
        lines.append(requirement(f"walls: {line['name']}", 100 * line["ratio"], 1, "percent more than without", less=True, digits=2))
    average = statistics.mean(line["ratio"] for line in walls(sections["walls-disturbed"]["results"]))
    name = "walls: depth 32, beside another program, all points on the average"
    lines.append(requirement(name, 100 * average, 1, "percent more than without", less=True, digits=2))
    for (target, mode, way, at_once), spread in queue_spread(sections["queues"]["results"]).items():
        if at_once > 1:
            lines.append(requirement(f"1, 2, 4 queues: {target}, {mode}, {way}", 100 * spread, 5, "percent between the least and the most user instructions", digits=1))
    for kernel, these in by_kernel(sections["devices"]["results"]).items():
        lines.append(requirement(f"{kernel}: `ubd add`, the dearest of {len(these)}", max(d["instructions"] for d in these), 100e6, everything))
        lines.append(requirement(f"{kernel}: private memory of an idle worker", max(d["private_kib"] for d in these), 4096, "KiB"))
    return "\n".join(lines)


# --- nbd --------------------------------------------------------------------------------------------------------------

# What other servers and a plain prototype of target nbd cost when they were measured once, in another boot (issue 13 of the
# project): instructions of the whole system, read and write at depth 1, then at depth 32. There is no package of ublksrv in Debian.
MEASURED_ONCE = [
    ("nbd.ko", 104230, 88086, 47723, 49331),
    ("ublksrv's ublk.nbd", 97101, 94238, 55627, 56078),
    ("a prototype without walls, with one ring", 99099, 92699, 49456, 46393),
]


def connected(results):
    """(way, depth, {server: medians}) of target nbd and the kernel's nbd."""
    for depth in sorted({p["depth"] for p in results}):
        for way in WAYS:
            runs = {server: find(results, server=server, way=way, depth=depth) for server in ("nbd.ko", "ubd")}
            cost = {server: {name: statistics.median(p.get(name, 0) for p in these) for name in ("user", "run", "all", "woken")} for server, these in runs.items()}
            yield way, depth, cost


def connected_table(results):
    lines = ["| | depth | nbd.ko: all | ubd: user | wake-ups | run | all | more than nbd.ko |", "|---|---:|" + "---:|" * 6]
    for way, depth, cost in connected(results):
        ours, theirs = cost["ubd"], cost["nbd.ko"]["all"]
        cells = [number(theirs), number(ours["user"]), f"{ours['woken']:.3f}", number(ours["run"]), number(ours["all"]), f"{100 * (ours['all'] / theirs - 1):+.1f} %"]
        lines.append(f"| {way} | {depth} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def connected_profile(results, most=12):
    """The functions in which target nbd and the kernel's client differ most, for each point."""
    text = ""
    for depth in sorted({p["depth"] for p in results}):
        for way in WAYS:
            theirs, ours = (one_of(results, server=server, way=way, depth=depth) for server in ("nbd.ko", "ubd"))
            text += f"{way}, depth {depth}:\n\n{differences_table(theirs, ours, most, 'nbd.ko')}\n\n"
    return text.rstrip()


def measured_once_table():
    lines = ["| | read, depth 1 | write, depth 1 | read, depth 32 | write, depth 32 |", "|---|" + "---:|" * 4]
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(map(number, costs)) + " |" for name, *costs in MEASURED_ONCE)])


# --- crypt ------------------------------------------------------------------------------------------------------------

# The most instructions of the whole system, 4 KiB, sectors of 4096 (issue 15 of the project).
CRYPT_LIMITS = {("randread", 1): 43000, ("randread", 32): 27000, ("randwrite", 1): 45000, ("randwrite", 32): 30000}


def encrypted(results):
    """(sector, way, depth, {server: medians}) of target crypt and of dm-crypt."""
    for sector in (4096, 512):
        for depth in sorted({p["depth"] for p in results}):
            for way in WAYS:
                runs = {server: find(results, server=server, target=f"crypt-{sector}", way=way, depth=depth) for server in ("dm-crypt", "ubd")}
                yield sector, way, depth, {server: {name: statistics.median(p[name] for p in these) for name in ("user", "run", "all")} for server, these in runs.items()}


def encrypted_table(results):
    lines = ["| sector | | depth | dm-crypt: all | ubd: user | run | all | more than dm-crypt |", "|---:|---|---:|" + "---:|" * 5]
    for sector, way, depth, cost in encrypted(results):
        ours, theirs = cost["ubd"], cost["dm-crypt"]["all"]
        cells = [number(theirs), number(ours["user"]), number(ours["run"]), number(ours["all"]), f"{100 * (ours['all'] / theirs - 1):+.1f} %"]
        lines.append(f"| {sector} | {way} | {depth} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# --- overlay ----------------------------------------------------------------------------------------------------------


def layered(results):
    """(what, way, depth, {(server, mode): medians}) of target overlay and of dm-snapshot."""
    for target, what in (("overlay", "the base"), ("overlay-written", "what was written")):
        for depth in sorted({p["depth"] for p in results}):
            for way in WAYS:
                cost = {}
                for point in find(results, target=target, way=way, depth=depth):
                    cost.setdefault((point["server"], point["mode"]), []).append(point)
                if cost:
                    yield what, way, depth, {which: {name: statistics.median(p[name] for p in these) for name in ("user", "all")} for which, these in cost.items()}


LAYERED = [("ubd", "copy"), ("ubd", "batch-zero-copy")]


def layered_table(results):
    lines = ["| | | depth | dm-snapshot: all | " + " | ".join(f"{mode}: user | all" for _, mode in LAYERED) + " |", "|---|---|---:|---:|" + "---:|---:|" * len(LAYERED)]
    for what, way, depth, cost in layered(results):
        cells = [number(cost["dm-snapshot", "kernel"]["all"])] + [number(cost[which][name]) for which in LAYERED for name in ("user", "all")]
        lines.append(f"| {what} | {way} | {depth} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# --- the smaller sections ---------------------------------------------------------------------------------------------


def walls(results):
    """What the walls add to a request: a fraction of what it costs without them. Medians of all runs of a point, and how far
    the runs of the walled one lie apart."""
    seen = []
    for bare in find(results, server="bare"):
        same = {name: bare[name] for name in ("target", "mode", "way", "block", "depth", "at_once")}
        if same in seen:
            continue
        seen.append(same)
        without, within = ([p["all"] for p in counted(find(results, server=server, **same))] for server in ("bare", "ubd"))
        middle = statistics.median(without), statistics.median(within)
        name = f"{bare['target']}, {bare['mode']}, {bare['way']}, depth {bare['depth']}{several(bare['at_once'])}"
        yield {"name": name, "depth": bare["depth"], "bare": middle[0], "walled": middle[1], "ratio": middle[1] / middle[0] - 1,
               "spread": (max(within) - min(within)) / middle[1], "runs": len(within)}  # fmt: skip


def walls_table(results):
    lines = ["| | without | with | more | runs with lie within |", "|---|---:|---:|---:|---:|"]
    lines += [f"| {w['name']} | {number(w['bare'])} | {number(w['walled'])} | {100 * w['ratio']:.2f} % | {100 * w['spread']:.2f} % |" for w in walls(results)]
    return "\n".join(lines)


def walls_by_depth(results):
    """One line: what the walls add at each depth, and on the average."""
    found = list(walls(results))
    ratios = [wall["ratio"] for wall in found]
    lines = ["| depth | " + " | ".join(str(wall["depth"]) for wall in found) + " | average |", "|---|" + "---:|" * (len(found) + 1)]
    cells = [f"{100 * ratio:+.2f} %" for ratio in [*ratios, statistics.mean(ratios)]]
    return "\n".join([*lines, "| more | " + " | ".join(cells) + " |"])


# What a wall adds to, and why: by function of the kernel (Linux 7.3).
WALLS = [
    ("`__seccomp_filter`", "the filters: a bitmap says that `io_uring_enter` is allowed, so that none of them runs"),
    ("`populate_seccomp_data`", "the call's number and arguments, which nobody reads then"),
    ("`__seccomp_permit_syscall`", "whether there is a filter"),
    ("`do_syscall_64`", "the way into a system call that has something to check"),
    ("`io_submit_sqes`", "the ring's seal: whether an entry's operation, flags and command are on the list"),
]


def walls_by_function(results):
    """One column a point: what each function takes more with the walls than without, and what share that is of a request."""
    pairs = []
    for bare in find(results, server="bare"):
        same = {name: bare[name] for name in ("target", "mode", "way", "block", "depth", "at_once")}
        pairs.append((bare, find(results, server="ubd", **same)[0]))
    names = [f"{b['mode']}, depth {b['depth']}{several(b['at_once'])}" for b, _ in pairs]
    lines = ["| function | | " + " | ".join(names) + " |", "|---|---|" + "---:|" * len(pairs)]
    sums = [0.0] * len(pairs)
    for function, why in WALLS:
        more = [u["symbols"].get(function.strip("`"), 0) - b["symbols"].get(function.strip("`"), 0) for b, u in pairs]
        sums = [a + b for a, b in zip(sums, more)]
        lines.append(f"| {function} | {why} | " + " | ".join(f"{m:+.1f}" for m in more) + " |")
    lines.append("| the walls together | | " + " | ".join(f"{s:+.1f}" for s in sums) + " |")
    kernel = [sum(u["symbols"].values()) - sum(b["symbols"].values()) - s for (b, u), s in zip(pairs, sums)]
    user = [u["user"] - b["user"] for b, u in pairs]
    rest = [u["all"] - b["all"] - s - k - own for (b, u), s, k, own in zip(pairs, sums, kernel, user)]
    for what, why, more in (
        ("other functions of the kernel", "`ublk_prep_req` 3 of them, for the device's recovery; the scheduler, timers, memory that is freed in between", kernel),
        ("the worker in user space", "how many requests a wake-up brings", user),
        ("fio and all other programs", "chance", rest),
    ):
        lines.append(f"| {what} | {why} | " + " | ".join(f"{m:+.1f}" for m in more) + " |")
    lines.append("| a request without walls | | " + " | ".join(number(b["all"]) for b, _ in pairs) + " |")
    lines.append("| **the walls' share** | | " + " | ".join(f"{100 * s / b['all']:.2f} %" for (b, _), s in zip(pairs, sums)) + " |")
    return "\n".join(lines)


def by_queues(results):
    found = {}
    for point in results:
        found.setdefault((point["target"], point["mode"], point["way"], point["at_once"]), {})[point["queues"]] = point
    return found


def queue_spread(results):
    found = {}
    for name, these in by_queues(results).items():
        users = [point["user"] for point in these.values()]
        found[name] = max(users) / min(users) - 1
    return found


def queues_table(results):
    lines = ["| target | mode | | requests at once | 1 queue: user | wake-ups | 2 queues: user | wake-ups | 4 queues: user | wake-ups |",
             "|---|---|---|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for (target, mode, way, at_once), these in by_queues(results).items():
        cells = " | ".join(f"{these[n]['user']:.1f} | {these[n]['woken']:.3f}" for n in sorted(these))
        lines.append(f"| {target} | {mode} | {way} | {at_once} | {cells} |")
    return "\n".join(lines)


def several(at_once):
    return f", {at_once} at once" if at_once > 1 else ""


def in_turns_kinds(results):
    return sorted({(point["depth"], point["at_once"]) for point in results}, key=lambda kind: (kind[1] > 1, kind))


def in_turns(results, mode, way, depth, at_once):
    """Null by server: the median of the runs, and within which fraction of it they lie."""
    found = {}
    for point in counted(find(results, target="null", mode=mode, way=way, depth=depth, at_once=at_once, block=4096)):
        found.setdefault(point["server"], []).append(point["all"])
    middle = {server: statistics.median(runs) for server, runs in found.items()}
    return {server: (middle[server], (max(runs) - min(runs)) / middle[server]) for server, runs in found.items()}


def scheduler_table(results):
    """Null beside kublk, and under a scheduling policy that lets a woken worker wait."""
    lines = ["| mode | | depth | at once | kublk | its runs within | ubd | its runs within | ubd more | ubd under SCHED_BATCH |",
             "|---|---|---:|---:|" + "---:|" * 6]  # fmt: skip
    for mode in ("copy", "batch"):
        for way in WAYS:
            for depth, at_once in in_turns_kinds(results):
                cost = in_turns(results, mode, way, depth, at_once)
                (theirs, apart), (ours, own) = cost["kublk"], cost["ubd"]
                cells = [number(theirs), f"{100 * apart:.2f} %", number(ours), f"{100 * own:.2f} %", f"{100 * (ours / theirs - 1):+.2f} %"]
                lines.append(f"| {mode} | {way} | {depth} | {at_once} | " + " | ".join([*cells, number(cost["ubd under SCHED_BATCH"][0])]) + " |")
    return "\n".join(lines)


def io_scheduler_table(results):
    """The whole system per request, without and with an I/O scheduler before the disk."""
    lines = ["| disk | mode | | depth | none | mq-deadline | more |", "|---|---|---|" + "---:|" * 4]
    for plain in find(results, scheduler="none"):
        which = {name: plain[name] for name in ("server", "target", "mode", "way", "depth")}
        (held,) = find(results, scheduler="mq-deadline", **which)
        disk = "the kernel's loop" if plain["server"] == "loop" else f"ubd, {plain['target']}"
        cells = [number(plain["all"]), number(held["all"]), f"{100 * (held['all'] / plain['all'] - 1):+.0f} %"]
        lines.append(f"| {disk} | {plain['mode']} | {plain['way']} | {plain['depth']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def computing_table(results):
    """Microseconds that a read takes a program which computes meanwhile: medians of the runs."""
    lines = ["| kernel | other programs that compute | server | on the average | half of them within | 99 % within |", "|---|---:|---|" + "---:|" * 3]
    runs = {}
    for line in results:
        runs.setdefault((line["kernel"], line["others"], line["server"]), []).append(line)
    for (kernel, others, server), these in runs.items():
        cells = [number(statistics.median(line[which] for line in these)) for which in ("mean", "p50", "p99")]
        lines.append(f"| {kernel} | {others} | {server} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_kernel(results):
    found = {}
    for device in results:
        found.setdefault(device["kernel"], []).append(device)
    return found


def devices_table(results):
    lines = ["| kernel | add: 1st | 2nd | 8th | 50th | 64th | idle worker, KiB | all workers, MiB |", "|---|---:|---:|---:|---:|---:|---:|---:|"]
    for kernel, these in by_kernel(results).items():
        costs = " | ".join(number(these[n - 1]["instructions"] / 1e6) + " M" for n in (1, 2, 8, 50, 64))
        memory = [device["private_kib"] for device in these]
        lines.append(f"| {kernel} | {costs} | {number(max(memory))} | {sum(memory) / 1024:.1f} |")
    return "\n".join(lines)


def commands_table(results):
    """Medians of the whole system."""
    lines = ["| | ubd | kublk |", "|---|---:|---:|"]
    for target in ("null", "loop"):
        for command in ("add", "del"):
            costs = [statistics.median(p["instructions"] for p in find(results, server=server, target=target, command=command)) for server in ("ubd", "kublk")]
            lines.append(f"| {command}, {target} | " + " | ".join(f"{cost / 1e6:.1f} M" for cost in costs) + " |")
    return "\n".join(lines)


PROCESSES = {"ubd": "client", "ubd-head": "its child, which looks at the file", "ubd-flush": "its child, which flushes", "ubd-broker": "broker, launcher, other children", "ubd-worker": "worker", "ubd-q0": "its queue", "ubd-ranges": "its thread for ranges"}


def processes_table(results):
    """Which processes it is, of a loop device: medians."""
    runs = {command: [p["processes"] for p in results if p.get("processes") and (p["target"], p["command"]) == ("loop", command)] for command in ("add", "del")}
    # python3 is the test itself.
    names = sorted({name for these in runs.values() for run in these for name in run} - {"python3"})
    cost = {command: {name: statistics.median(run.get(name, 0) for run in these) for name in names} for command, these in runs.items()}
    lines = ["| | add | del |", "|---|---:|---:|"]
    for name in PROCESSES:
        lines.append(f"| {PROCESSES[name]} | " + " | ".join(f"{cost[command].get(name, 0) / 1e6:.1f} M" for command in cost) + " |")
    rest = [sum(value for name, value in cost[command].items() if name not in PROCESSES) for command in cost]
    return "\n".join([*lines, "| threads of the kernel | " + " | ".join(f"{value / 1e6:.1f} M" for value in rest) + " |"])


def profile_table(kublk, ubd, most=40):
    names = sorted(set(kublk["symbols"]) | set(ubd["symbols"]), key=lambda name: -ubd["symbols"].get(name, 0))
    lines = [f"| function | kublk ({kublk['mode']}) | ubd ({ubd['mode']}) |", "|---|---:|---:|"]
    lines += [f"| user space of the server | {number(kublk['user'])} | {number(ubd['user'])} |"]
    for name in names[:most]:
        lines.append(f"| `{name}` | {kublk['symbols'].get(name, 0):.0f} | {ubd['symbols'].get(name, 0):.0f} |")
    rest = [sum(p["symbols"].get(name, 0) for name in names[most:]) for p in (kublk, ubd)]
    lines.append(f"| {len(names) - most} more functions of the kernel | {number(rest[0])} | {number(rest[1])} |")
    fio = [p["all"] - p["user"] - sum(p["symbols"].values()) for p in (kublk, ubd)]
    lines.append(f"| fio and all other programs | {number(fio[0])} | {number(fio[1])} |")
    lines.append(f"| all | {number(kublk['all'])} | {number(ubd['all'])} |")
    return "\n".join(lines)


def differences_table(kublk, ubd, most=30, than="kublk"):
    """The functions in which the two differ most; the sum of the rest, so that it adds up."""
    more = {"user space of the server": ubd["user"] - kublk["user"]}
    for name in set(kublk["symbols"]) | set(ubd["symbols"]):
        more[f"`{name}`"] = ubd["symbols"].get(name, 0) - kublk["symbols"].get(name, 0)
    names = sorted(more, key=lambda name: -abs(more[name]))
    whole = ubd["all"] - kublk["all"]
    lines = [f"| function | ubd more than {than} |", "|---|---:|", *(f"| {name} | {more[name]:+.1f} |" for name in names[:most])]
    lines.append(f"| all else | {whole - sum(more[name] for name in names[:most]):+.1f} |")
    return "\n".join([*lines, f"| all ({number(kublk['all'])} and {number(ubd['all'])}) | {whole:+.1f} |"])


# --- the page ---------------------------------------------------------------------------------------------------------


def source(section):
    return f"(Linux {section['kernel']}, ubd at {section['revision']}, {section['date']})"


def document(sections):
    requests, profile = sections["requests"], sections["profile"]["results"]
    text = f"""# What ubd costs

Written by `make bench` ({requests['date']}, ubd at {requests['revision']}, Linux {requests['kernel']}); not to be edited.
How it is measured, what to install, and what `make test` watches: [benchmarks.md](benchmarks.md).
A section that names another revision was measured with that one.

**Time is a count of executed instructions**: one boot per section, in QEMU with one processor (`-icount`), so the numbers
repeat within a percent or less, whatever machine runs it. They say how much work is done, not how fast a real
processor does it; and a copy is overcharged about tenfold, since each byte counts as an instruction: compare copy with copy
and zero copy with zero copy.

Per request: **user**: user instructions of the server. **run**: nanoseconds that the server's threads ran, in the kernel
too, its helpers for io_uring included. **all**: instructions of the whole system, so fio (io_uring, direct), block layer
and server; one takes one nanosecond of that guest's time. Each is the difference of a long and a short run, in which
nothing of fio's start and end is left. With ≈ it is by fio's clock, whose unit is a millisecond: the kernel did something
else in that run.

`ubd` runs as it is installed, with its whole sandbox. `kublk` is the ublk server of the kernel's tests, run by root without
any. `loop` files lie on tmpfs. No I/O scheduler anywhere.

## What must hold

{requirements(sections)}
"""
    for target, title in (("null", "No data: null_blk, null"), ("loop", "A file on tmpfs: loop")):
        for block, ways in ((4096, WAYS), (1 << 20, ("read", "write"))):
            for depth in sorted({p["depth"] for p in requests["results"] if p["block"] == block}):
                size = "1 MiB, in order" if block > 4096 else "4 KiB, at random"
                text += f"\n## {title}, {size}, depth {depth}\n\n{table(requests['results'], target, block, depth, ways)}\n"
    old = sections["old-kernel"]
    for target in ("null", "loop"):
        for depth in (1, 32):
            text += f"\n## Linux 6.12: {target}, 4 KiB, at random, depth {depth}\n\n{source(old)}\n\n{table(old['results'], target, 4096, depth, WAYS)}\n"
    text += f"""
## A server behind a Unix socket: nbd

nbdkit's memory, 4 KiB at random, by target nbd and by the kernel's own client (nbd.ko, set up by nbd-client as root), in one boot;
medians, where there are several runs in turns (here {len(find(sections['nbd']['results'], server='ubd', way='randread', depth=1))} of each). nbdkit's own work is in **all**, and not in **user**. {source(sections['nbd'])}

{connected_table(sections['nbd']['results'])}

In mode copy the driver copies each request's data between the request and the worker, which nbd.ko does not need: 4,096 of these
instructions, or about a tenth of that on a real processor.

Where the two differ most, at depth 1 and 32, by function of the kernel. {source(sections['nbd-profile'])}

{connected_profile(sections['nbd-profile']['results'])}

Others, measured once, in another boot, before the server's memory was filled; they compare with each other only:

{measured_once_table()}

## A LUKS volume: crypt

A LUKS2 volume (aes-xts-plain64, 512 bits) in a file on tmpfs, 4 KiB at random, by target crypt and by dm-crypt over loop, in one
boot; medians of several runs in turns. {source(sections['crypt'])}

{encrypted_table(sections['crypt']['results'])}

## A copy on write: overlay

A file on tmpfs as the base, what is written in memory, 4 KiB at random, by target overlay and by dm-snapshot (transient, chunks of
4 KiB, over loop), in one boot; medians of several runs in turns. Of the base one block in sixteen is written. {source(sections['overlay'])}

{layered_table(sections['overlay']['results'])}

## What the walls cost

The worker as it is installed beside the same worker as root, in no namespace, without limits, Landlock, seccomp filters and
the seal of its rings (Benchmarks/system/bare-worker); 4 KiB; **all** per request, in one boot, each the median of several runs in
turns. Runs of one point differ too, by what the guest's scheduler makes of chance (last column), most of all where fio gives and
takes its requests one by one: then chance says how many a wake-up brings. {source(sections['walls'])}

{walls_table(sections['walls']['results'])}

Where they seem to cost most, a loop of mode copy that is read at random, requests one by one, that is much more than their own
instructions (below), and at some depths only: medians of five. {source(sections['walls-depths'])}

{walls_by_depth(sections['walls-depths']['results'])}

That is a step into which two programs fall that have a processor to themselves: there the walled worker is switched to and
from four times where the other is three times (so the profile: `__schedule` and all that belongs to it, as 4 to 3; in the table
below it is among the other functions).
With a program beside them that does nothing but wake up every 0.7 ms that pair does not fall into it. Other pairs then differ by
chance, either way, and the runs of one point by up to 3 %: there only the average says something. Medians of eleven, in turns.
{source(sections['walls-disturbed'])}

{walls_table(sections['walls-disturbed']['results'])}

Which instructions that are, in a loop on tmpfs, read at random: about 120 for each `io_uring_enter`, of which a request at
depth 1 needs two (one for the read, one that gives the request back and waits), and 19 for each entry of the ring. Nothing else of the walls is on
a request's way. Where more is measured the difference is the scheduler's: at depth 32, one by one, a worker that is a little
slower or quicker is woken for another number of requests. {source(sections['walls-profile'])}

{walls_by_function(sections['walls-profile']['results'])}

## More queues

User instructions per request with as many queues and fio jobs, each on a processor of its own, of a guest with four;
counted by the plugin, without `-icount`. Depth 32. This is real time on a busy machine: when fio gives and takes its requests
one by one, chance says how many a wake-up of the worker brings, and with it what each pays of the wake-up (the column tells
wake-ups per request). With 32 at once that is the same for any number of queues, and so the comparison is fair.
{source(sections['queues'])}

{queues_table(sections['queues']['results'])}

## Devices

What `ubd add -t null` costs in millions of instructions of the whole system, from the command's start to its answer, with
none to 63 devices there before; and the private memory (smaps_rollup) of workers that have not served anything yet, so
without buffers. Depth 16, 64 KiB. {source(sections['devices'])}

{devices_table(sections['devices']['results'])}

## Adding and deleting

What `ubd add` and `ubd del` cost the whole system, from the command's start to its answer, beside `kublk add` and `kublk del`,
which have no broker, no sandbox and no policy; medians of {len(find(sections['commands']['results'], server='ubd', target='null', command='add'))}. The lab has no udev. {source(sections['commands'])}

{commands_table(sections['commands']['results'])}

Which processes it is, by the kernel's account of their run times; of a loop device. What kublk does not do: a broker asks who
may, and keeps a record; a launcher and the worker take all rights away; the broker looks whether they are gone; `ubd del`
flushes the device. The end of a worker counts for the thread that ends last.

{processes_table(sections['commands']['results'])}

## Where the instructions of a zero-copy read go

Loop on tmpfs, 4 KiB, depth 32, read at random, by function, per request: kublk's best mode beside ubd's.
{source(sections['profile'])}

{profile_table(*find(profile, target='loop'))}

## What an I/O scheduler costs

**all** per request. The kernel puts mq-deadline before ublk disks of one queue where that module is loaded (as it is on most
hosts with other disks), and nothing before its own loop. ubd takes it away when it adds a device.
{source(sections['scheduler'])}

{io_scheduler_table(sections['scheduler']['results'])}

## Whose the difference to kublk is

Null, 4 KiB: **all** per request, each the median of five runs in turns. When fio gives and takes its requests one by one, the
guest's scheduler says how many a wake-up brings, and that costs more than the two differ by. When it does so with several at
once (the fourth column), each wake-up brings both servers as many: then what they differ by is their own.

The last column is the same worker under SCHED_BATCH (sched(7)), set from outside for this measurement: woken, it preempts
nobody, so that more requests wait for it. ubd does not do that by itself, for the sake of programs that compute while their
requests are under way (below). `chrt --batch --all-tasks --pid 0 PID` does it to a worker where only throughput counts.
{source(sections['kublk'])}

{scheduler_table(sections['kublk']['results'])}

What that policy would cost: microseconds until a program that asks for 4 KiB, and computes until it has them
(Benchmarks/system/busy-reader.c), sees them; a loop on tmpfs, one processor, alone and beside another program that
computes. Medians of three; a microsecond is a thousand instructions. Under SCHED_BATCH a request waits until the kernel takes
the processor away from who computes. {source(sections['computing'])}

{computing_table(sections['computing']['results'])}

## Where writes to null differ

4 KiB, depth 32, at random: what ubd spends more than kublk, by function. The less a server does in user space, the sooner it is
done with the requests that are there, and the fewer they are when it is woken: the difference is the scheduler's
(`__schedule`, `update_load_avg`, `psi_task_switch` and all that a switch between fio and the server takes), which the two
seccomp filters (`__seccomp_filter`, `populate_seccomp_data`) and the ring's restrictions (in `io_submit_sqes`) add little to.
Where `collapse_huge_page` and `clear_highpages_kasan_tagged` show up, the kernel's khugepaged ran in that window: no server's.

Mode copy:

{differences_table(*find(profile, target='null', mode='copy'))}

Mode batch:

{differences_table(*find(profile, target='null', mode='batch'))}
"""
    return text
