"""Our JSON parser against Python's json module, on whole corpora: what ours accepts, Python accepts with the same value; what
ours refuses and Python accepts must break one of the rules below, and the document must really do so."""
import json
import subprocess


def inside(value):
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def depth(value):
    return 1 + max(map(depth, inside(value)), default=0) if isinstance(value, (dict, list)) else 0


def everything(value):
    """A value and all that is in it, the names of members too."""
    return [value, *(value if isinstance(value, dict) else []), *(part for element in inside(value) for part in everything(element))]


def has_duplicate(text):
    found = []

    def pairs(members):
        found.append(len({name for name, _ in members}) != len(members))
        return dict(members)

    json.loads(text, object_pairs_hook=pairs)
    return any(found)


def has_constant(text):
    found = []
    json.loads(text, parse_constant=found.append)
    return bool(found)


# Where ours is stricter, by rule: the reason that it gives, and whether a document (text, Python's value, length) breaks the rule.
STRICTER = {
    "tooLong": lambda text, value, length: length > 16 * 1024,
    "tooDeep": lambda text, value, length: depth(value) > 8,
    "duplicateName": lambda text, value, length: has_duplicate(text),
    # Numbers are whole, and fit 64 bits with sign.
    "notAnInteger": lambda text, value, length: any(isinstance(part, float) for part in everything(value)) or has_duplicate(text),
    "outOfRange": lambda text, value, length: any(
        isinstance(part, float) or (isinstance(part, int) and not -(2**63) <= part < 2**63) for part in everything(value)
    ) or has_duplicate(text),
    # Python takes NaN, Infinity and -Infinity, which RFC 8259 does not have.
    "expectedValue": lambda text, value, length: has_constant(text),
    # A string is Unicode text: half of a surrogate pair is none.
    "loneSurrogate": lambda text, value, length: any(
        isinstance(part, str) and any(0xD800 <= ord(character) < 0xE000 for character in part) for part in everything(value)
    ) or has_duplicate(text),
}  # fmt: skip


def same(ours, theirs):
    """Equal, and of the same types: to Python True is 1."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(same(ours[name], theirs[name]) for name in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def judge(data, answer):
    """What is wrong with our answer; None when nothing is. Answers are "accepted TEXT" or "refused REASON"."""
    word, _, rest = answer.partition(" ")
    try:
        # What is no UTF-8 is nobody's JSON (RFC 8259, 8.1); Python's own guess at other encodings does not count.
        text = data.decode()
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "accepted, refused by Python" if word == "accepted" else None
    if word == "accepted":
        return None if same(json.loads(rest), value) else f"another value: {rest[:80]}"
    if word == "refused" and rest in STRICTER and STRICTER[rest](text, value, len(data)):
        return None
    return f"{answer[:80]}, accepted by Python, and no rule says so"


def compare(program, folders, environment):
    """Result lines: every file of these folders, whatever target it was for."""
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    problems, accepted = [], 0
    for start in range(0, len(files), 500):
        part = files[start : start + 500]
        done = subprocess.run([program, "--answers", *part], capture_output=True, env=environment)
        answers = done.stdout.decode().split("\n")[:-1]
        if done.returncode or len(answers) != len(part):
            return [f"not ok - Python's json agrees with ours: exit status {done.returncode}, {len(answers)} answers for {len(part)} files"]
        for path, answer in zip(part, answers):
            accepted += answer.startswith("accepted")
            if problem := judge(path.read_bytes(), answer):
                problems.append(f"{path}: {problem}")
    sentence = "Python's json agrees with ours on the whole corpus, except where ours is stricter by rule"
    if problems:
        return [f"not ok - {sentence}: {'; '.join(problems[:5])} ({len(problems)} of {len(files)} files)"]
    if not accepted or accepted == len(files):
        return [f"not ok - {sentence}: {accepted} of {len(files)} files were accepted, so one side was not looked at"]
    return [f"ok - {sentence}", f"note - documents read by both: {len(files)}, {accepted} of them accepted"]
