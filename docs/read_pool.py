#!/usr/bin/env python3
"""Reads a range of an image from a pool's directory, from docs/format.md alone; the standard library is enough.

usage: read_pool.py POOL [NAMESPACE/]IMAGE[@SNAPSHOT] OFFSET LENGTH [OTHER-POOL...] > bytes

Pools are directories. Name those too that hold data of the image: its parent's, its parent's parent's. Everything is
verified; whatever does not verify ends the program with a sentence. Nothing is written, no lock is taken: an image that is
being written is better read through its owner.
"""
import struct
import sys
from pathlib import Path

BLOCK, FANOUT, TABLE_FANOUT, UNIT, SEGMENT_SLOTS = 4096, 512, 126, 512, 8192
KINDS = {1: "d", 2: "m", 3: "t"}
TABLE = []
for n in range(256):
    for _ in range(8):
        n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
    TABLE.append(n)


def crc32c(*parts):
    crc = 0xFFFFFFFF
    for part in parts:
        for byte in part:
            crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def crc_without(data, at):
    return crc32c(data[:at], bytes(4), data[at + 4:])


def need(true, sentence):
    if not true:
        sys.exit(f"read_pool: {sentence}")


def varint(data, at):
    value = shift = 0
    while True:
        value, shift, at = value | (data[at] & 127) << shift, shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


class Message(dict):
    """A protocol buffer message: field number -> values, in order. An absent number is 0."""

    def __init__(self, data=b""):
        at = 0
        while at < len(data):
            tag, at = varint(data, at)
            wire = tag & 7
            if wire == 0:
                value, at = varint(data, at)
            elif wire == 2:
                length, at = varint(data, at)
                value, at = data[at:at + length], at + length
            else:
                need(wire in (1, 5), f"wire type {wire} is not in use")
                length = 8 if wire == 1 else 4
                value, at = int.from_bytes(data[at:at + length], "little"), at + length
            self.setdefault(tag >> 3, []).append(value)

    def number(self, field):
        return self.get(field, [0])[-1]

    def message(self, field):
        return Message(self.get(field, [b""])[-1])

    def packed(self, field):
        data = b"".join(v if isinstance(v, bytes) else v.to_bytes(8, "little") for v in self.get(field, []))
        return list(struct.unpack(f"<{len(data) // 8}Q", data))


def record(path, kind):
    data = path.read_bytes()
    magic, version, found, incompatible, _, _, length, crc = struct.unpack_from("<8sHHIIIII", data)
    need(magic == b"marcot\0\n" and found == kind, f"{path} is no record of kind {kind}")
    need(version == 1 and incompatible == 0, f"{path} was written by a newer version")
    need(len(data) == 32 + length and crc_without(data, 28) == crc, f"{path} is damaged")
    return Message(data[32:])


def escape(name):
    plain = b"-_.+ :,="
    out = b""
    for i, byte in enumerate(name.encode()):
        keep = byte >= 128 or chr(byte).isalnum() or byte in plain
        out += bytes([byte]) if keep and not (i == 0 and byte in b". ") else b"%%%02x" % byte
    return out.decode()


def places(root, parent, own, directories):
    """(pool, set of copies) by position, as they are now: where an ancestor was flattened, its lists say more."""
    pools, sets = root.packed(7), root.packed(9)
    found = list(zip(pools, sets + [0] * (len(pools) - len(sets))))
    if parent.number(1) in directories:
        head = record(directories[parent.number(1)] / "images" / f"{parent.number(2):016x}" / "head", 3)
        for snapshot in map(Message, head.get(13, [])):
            if snapshot.number(1) == parent.number(3):
                above = places(snapshot.message(5), snapshot.message(8), parent.number(1), directories)
                found[:len(above)] = [f if f[0] == own else a for f, a in zip(found, above)]
    return found


class Root:
    def __init__(self, message, places, directories):
        self.size, self.top, self.crc = message.number(1), message.number(2), message.number(3)
        self.table, self.levels, self.places = message.message(4), message.number(5), places
        self.directories, self.pages = directories, {}

    def segment(self, position, author, kind, sequence):
        pool, copies = self.places[position]
        need(pool in self.directories, f"name the directory of pool {pool:016x} too")
        name = f"{copies:016x}.{author:016x}" if copies else f"{author:016x}"
        path = self.directories[pool] / "segments" / name / f"{KINDS[kind]}{sequence:08x}"
        return open_segment(path, kind, author, sequence)

    def entry(self, index):
        """The segment that a table index stands for: step 3 of the document."""
        t = self.table
        pointer = t.number(1), t.number(2), t.number(3), t.number(4), t.number(5)
        for level in range(self.levels - 1, -1, -1):
            span = TABLE_FANOUT ** (level + 1)
            base = index // span * span
            page = self.pages.get((level, base)) or self.table_page(pointer, level, base)
            self.pages[level, base] = page
            at = 32 + index % span // (span // TABLE_FANOUT) * 32
            author, sequence, pool, kind, _, slot, crc = struct.unpack_from("<QIHBBII", page, at)
            need(author, f"the segment table lacks index {index}")
            pointer = author, sequence, pool, slot, crc
        return self.segment(pool, author, kind, sequence)

    def table_page(self, pointer, level, base):
        author, sequence, pool, slot, crc = pointer
        page = read(self.segment(pool, author, 3, sequence), slot * 4096, 4096)
        magic, version, found, _, _, own, _, start = struct.unpack_from("<4sBBHIIQQ", page)
        need((magic, version, found, start) == (b"mcTB", 1, level, base), "a table page is not where it should be")
        need(own == crc == crc_without(page, 12), "a table page is damaged")
        return page

    def lookup(self, block):
        """(file, slot, checksum) of a block, or None for a hole: step 2 of the document."""
        address, crc = self.top, self.crc
        for level in (3, 2, 1, 0):
            if address == 0:
                return None
            page = self.pages.get(address) or self.map_page(address, crc, level, block >> 9 * (level + 1) << 9 * (level + 1))
            self.pages[address] = page
            address, crc = page.get(block >> 9 * level & 511, (0, 0))
        return address and (self.entry(address & 0xFFFFFFFF), address >> 32 & 0xFFFFFF, crc)

    def map_page(self, address, crc, level, base):
        data = read(self.entry(address & 0xFFFFFFFF), (address >> 32 & 0xFFFFFF) * UNIT, 40 + FANOUT * 12)
        magic, version, found, form, zero, length, own, _, start, count = struct.unpack_from("<4sBBBBIIQQI", data)
        need((magic, version, found, start, zero) == (b"mcPG", 1, level, base, 0), "a map page is not where it should be")
        need(own == crc == crc_without(data[:length], 12), "a map page is damaged")
        if form == 0:
            return {i: struct.unpack_from("<QI", data, 40 + i * 12) for i in range(FANOUT)}
        return {e[0]: e[1:] for e in (struct.unpack_from("<HQI", data, 40 + i * 14) for i in range(count))}


def read(file, offset, length):
    file.seek(offset)
    return file.read(length)


def open_segment(path, kind, author, sequence, files={}):
    if path not in files:
        file = path.open("rb")
        head = read(file, 0, 4096)
        magic, version, found, crc, features, _, *name = struct.unpack_from("<8sHHIIIQI", head)
        need((magic, version, found, features, *name) == (b"marcotSG", 1, kind, 0, author, sequence), f"{path} is another")
        need(crc == crc_without(head, 12), f"the header of {path} is damaged")
        files[path] = file
    return files[path]


def replay(head, directory):
    """The groups behind the head's log position: (first block, blocks, file, slot or None, checksums), oldest first."""
    image, epoch, log = head.number(1), head.number(4), head.message(9)
    sequence, slot, number = log.number(1), log.number(2), log.number(3)
    found, started = [], False
    while True:
        path = directory / "segments" / f"{image:016x}" / f"d{sequence:08x}"
        group = path.exists() and next_group(path, (image, epoch, sequence, number), slot)
        if group:
            found += group[0]
            slot, number, started = slot + group[1], number + 1, False
        elif started or not path.exists():
            return found
        else:
            sequence, slot, started = sequence + 1, 1, True


def next_group(path, expected, slot):
    image, epoch, sequence, number = expected
    file = open_segment(path, 1, image, sequence)
    if int.from_bytes(read(file, 40, 8), "little") != epoch or slot >= SEGMENT_SLOTS:
        return None
    header = read(file, slot * BLOCK, 64)
    if header[:12] != b"marcotGR\1\0\0\0":
        return None
    blocks, _, crc, records, *name, data_blocks, found = struct.unpack_from("<HHIIQQIIQ", header, 12)
    header = read(file, slot * BLOCK, blocks * BLOCK)
    if (*name, found) != expected or slot + blocks + data_blocks > SEGMENT_SLOTS or crc_without(header, 16) != crc:
        return None
    crcs = struct.unpack_from(f"<{data_blocks}I", header, 64 + records * 16)
    data = read(file, (slot + blocks) * BLOCK, data_blocks * BLOCK)
    if tuple(crc32c(data[i:i + BLOCK]) for i in range(0, len(data), BLOCK)) != crcs:
        return None
    out, done = [], 0
    for i in range(records):
        first, count = struct.unpack_from("<QQ", header, 64 + i * 16)
        kind, count = count >> 56, count & (1 << 56) - 1
        out.append((first, count, file, slot + blocks + done if kind == 1 else None, crcs[done:]))
        done += count if kind == 1 else 0
    return out, blocks + data_blocks


def main(pool, spec, offset, length, *others):
    directory, (spec, _, snap) = Path(pool), spec.partition("@")
    namespace, _, name = spec.rpartition("/")
    directories = {record(Path(p) / "pool", 2).number(1): Path(p) for p in (pool, *others)}
    image = record(directory / "names" / (escape(namespace) or "@") / escape(name), 4).number(1)
    head = record(directory / "images" / f"{image:016x}" / "head", 3)
    snapshots = {m.get(2, [b""])[-1].decode(): m for m in map(Message, head.get(13, []))}
    need(not snap or snap in snapshots, f"there is no snapshot '{snap}'")
    root, parent = (snapshots[snap].message(n) if snap else head.message(m) for n, m in ((5, 8), (8, 12)))
    root = Root(root, places(root, parent, record(directory / "pool", 2).number(1), directories), directories)
    log = [] if snap else replay(head, directory)
    offset, end = int(offset), min(int(offset) + int(length), root.size)
    for block in range(offset // BLOCK, -(-end // BLOCK)):
        hit = next((r for r in reversed(log) if r[0] <= block < r[0] + r[1]), None)
        if hit:
            first, _, file, slot, crcs = hit
            place = slot is not None and (file, slot + block - first, crcs[block - first])
        else:
            place = root.lookup(block)
        data = read(place[0], place[1] * BLOCK, BLOCK) if place else bytes(BLOCK)
        need(not place or len(data) == BLOCK and crc32c(data) == place[2], f"block {block} does not match its checksum")
        sys.stdout.buffer.write(data[max(offset - block * BLOCK, 0):end - block * BLOCK])


if __name__ == "__main__":
    need(len(sys.argv) >= 5, __doc__.split("\n\n")[1])
    main(*sys.argv[1:])
