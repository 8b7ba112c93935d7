#!/usr/bin/env python3
"""Turns a tar archive into the "newc" cpio that an initramfs is made of, with owners and modes, so that nobody has to
unpack it as root first. usage: tar-to-cpio.py TREE.tar >TREE.cpio"""
import stat
import sys
import tarfile

TYPES = {
    tarfile.DIRTYPE: stat.S_IFDIR, tarfile.REGTYPE: stat.S_IFREG, tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.LNKTYPE: stat.S_IFREG, tarfile.SYMTYPE: stat.S_IFLNK,
}  # fmt: skip


def pad(length):
    return b"\0" * (-length % 4)


def entry(out, number, name, mode, uid, gid, mtime, data):
    name = name.encode() + b"\0"
    fields = (number, mode, uid, gid, 1, mtime, len(data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    out.write(header + name + pad(len(header) + len(name)) + data + pad(len(data)))


def main():
    out = sys.stdout.buffer
    tree = tarfile.open(sys.argv[1])
    for number, member in enumerate(tree, start=1):
        name = member.name.removeprefix("./")
        # Device nodes come from devtmpfs.
        if name in ("", ".") or member.type not in TYPES:
            continue
        data = b""
        if member.issym():
            data = member.linkname.encode()
        elif member.isreg() or member.islnk():
            # A hard link becomes a file of its own: the kernel unpacks either.
            data = tree.extractfile(member).read()
        entry(out, number, name, TYPES[member.type] | member.mode, member.uid, member.gid, int(member.mtime), data)
    entry(out, 0, "TRAILER!!!", 0, 0, 0, 0, b"")


main()
