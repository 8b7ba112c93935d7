#!/usr/bin/env python3
"""Prints the address of the archive that serves a Debian release, as the system's own apt sources name it.

usage: system-mirror.py CODENAME
"""
import glob
import shlex
import sys


def deb822(text):
    """(uris, suites, components) of every enabled binary source of a .sources file."""
    for stanza in text.split("\n\n"):
        fields, last = {}, None
        for line in stanza.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0] in " \t" and last:
                fields[last] += " " + line.strip()
            elif ":" in line:
                last, value = line.split(":", 1)
                last = last.strip().lower()
                fields[last] = value.strip()
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() != "no":
            yield fields.get("uris", "").split(), fields.get("suites", "").split(), fields.get("components", "").split()


def one_line(text):
    """(uris, suites, components) of every binary source of a .list file."""
    for line in text.splitlines():
        line = line.split("#", 1)[0].strip()
        if not line.startswith(("deb ", "deb\t")):
            continue
        if "[" in line:
            line = line[: line.index("[")] + line[line.index("]") + 1 :]
        words = shlex.split(line)[1:]
        if len(words) >= 2:
            yield [words[0]], [words[1]], words[2:]


def main():
    codename = sys.argv[1]
    for path in ["/etc/apt/sources.list", *sorted(glob.glob("/etc/apt/sources.list.d/*"))]:
        reader = deb822 if path.endswith(".sources") else one_line if path.endswith(".list") else None
        try:
            text = open(path).read() if reader else ""
        except FileNotFoundError:
            continue
        for uris, suites, components in reader(text) if reader else ():
            if codename in suites and "main" in components and uris:
                print(uris[0])
                return
    sys.exit(f"lab: no apt source of this system serves {codename} main; add one to /etc/apt/sources.list.d")


main()
