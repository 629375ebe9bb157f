#!/usr/bin/env python3
"""Fills a pool with many copies of images and snapshots, using only docs/format.md. Thousands of commands would take minutes.

usage: big_pool.py POOL clones CHILD COUNT      copies of the clone CHILD, named CHILD-0, CHILD-1, ...
       big_pool.py POOL snapshots IMAGE COUNT   snapshots of IMAGE as it is now, named s-0, s-1, ...

POOL is a directory. Nobody may be at work in it.
"""
import os
import struct
import sys
from pathlib import Path

HEAD, NAME, CHILD = 3, 4, 5
FRAME = "<8sHHIIIII"
TABLE = []
for n in range(256):
    for _ in range(8):
        n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
    TABLE.append(n)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def frame(kind, body):
    header = struct.pack(FRAME, b"marcot\0\n", 1, kind, 0, 0, 0, len(body), 0)
    return header[:28] + struct.pack("<I", crc32c(header + body)) + body


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def read_varint(data, at):
    value = shift = 0
    while True:
        value, shift, at = value | (data[at] & 127) << shift, shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def parse(data):
    """A message's fields in order: number, wire type, value."""
    fields, at = [], 0
    while at < len(data):
        tag, at = read_varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = read_varint(data, at)
        else:
            length = {1: 8, 5: 4}.get(wire)
            if length is None:
                length, at = read_varint(data, at)
            value, at = data[at:at + length], at + length
        fields.append((tag >> 3, wire, value))
    return fields


def build(fields):
    out = b""
    for number, wire, value in fields:
        out += varint(number << 3 | wire)
        if wire == 0:
            out += varint(value)
        else:
            out += (varint(len(value)) if wire == 2 else b"") + value
    return out


def changed(body, changes):
    """The message with other values for some fields."""
    return build([(n, w, changes.get(n, v)) for n, w, v in parse(body)])


def body(path):
    return path.read_bytes()[32:]


def find(pool, name):
    return dict((n, v) for n, _, v in parse(body(pool / "names/@" / name)))[1]


def number(value):
    return f"{int.from_bytes(value, 'little'):016x}"


def clones(pool, name, count):
    image = find(pool, name)
    head = body(pool / "images" / number(image) / "head")
    record = next(p for p in (pool / "children").iterdir() if p.name.endswith(number(image)))
    child = body(record)
    for n in range(count):
        new, title = os.urandom(8), f"{name}-{n}"
        directory = pool / "images" / number(new)
        directory.mkdir(mode=0o700)
        (directory / "head").write_bytes(frame(HEAD, changed(head, {1: new, 2: title.encode()})))
        (pool / "children" / record.name.replace(number(image), number(new))).write_bytes(
            frame(CHILD, changed(child, {5: new, 7: title.encode()})))
        (pool / "names/@" / title).write_bytes(frame(NAME, build([(1, 1, new)])))


def snapshots(pool, name, count):
    path = pool / "images" / number(find(pool, name)) / "head"
    fields = parse(body(path))
    root = next(v for n, _, v in fields if n == 8)
    marks = next(v for n, _, v in fields if n == 10)
    first = next(v for n, _, v in fields if n == 14)
    for n in range(count):
        snapshot = [(1, 0, first + n), (2, 2, f"s-{n}".encode()), (3, 0, 1), (5, 2, root), (6, 2, marks)]
        fields.append((13, 2, build(snapshot)))
    fields = [(n, w, first + count if n == 14 else v) for n, w, v in fields]
    path.write_bytes(frame(HEAD, build(fields)))


if __name__ == "__main__":
    if len(sys.argv) != 5 or sys.argv[2] not in ("clones", "snapshots"):
        sys.exit(__doc__)
    globals()[sys.argv[2]](Path(sys.argv[1]), sys.argv[3], int(sys.argv[4]))
