#!/usr/bin/env python3
"""Reads a range of an image from a pool, from docs/format.md alone; the standard library is enough.

usage: read_pool.py POOL [NAMESPACE/]IMAGE[@SNAPSHOT] OFFSET LENGTH [OTHER-POOL...] > bytes

POOL is the directory of a pool; or a directory with the objects of a pool in a bucket, each in a file with the
name of its key; or http://HOST[:PORT]/BUCKET/PREFIX, if everybody may read and list that. Name those pools too that
hold data of the image: its parent's, its parent's parent's. Everything is verified; whatever does not verify ends the
program with a sentence. Nothing is written, no lock is taken: an image that is being written is better read through
its owner.
"""
import struct
import sys

from read_records import crc32c, crc_without, need, open_pool

BLOCK, FANOUT, TABLE_FANOUT, UNIT, SEGMENT_SLOTS, LOG_SEGMENTS_MAX = 4096, 512, 126, 512, 8192, 128


def places(root, parent, own, pools):
    """(pool, set of copies) by position, as they are now: where an ancestor was flattened, its lists say more."""
    numbers, sets = root.packed(7), root.packed(9)
    found = list(zip(numbers, sets + [0] * (len(numbers) - len(sets))))
    head = pools[parent.number(1)].head(parent.number(2)) if parent.number(1) in pools else None
    for snapshot in head.messages(13) if head else []:
        if snapshot.number(1) == parent.number(3):
            above = places(snapshot.message(5), snapshot.message(8), parent.number(1), pools)
            found[:len(above)] = [f if f[0] == own else a for f, a in zip(found, above)]
    return found


class Root:
    def __init__(self, message, places, pools):
        self.size, self.top, self.crc = message.number(1), message.number(2), message.number(3)
        self.table, self.levels, self.places = message.message(4), message.number(5), places
        self.pools, self.pages = pools, {}

    def segment(self, position, author, kind, sequence):
        need(position < len(self.places), "the segment table names a pool that the root does not list")
        pool, copies = self.places[position]
        need(pool in self.pools, f"name pool {pool:016x} too")
        segment = self.pools[pool].segment(copies, author, kind, sequence)
        need(segment, f"segment {sequence} of kind {kind} of {author:016x} is missing")
        return segment

    def entry(self, index):
        """The segment that a table index stands for: step 3 of the document."""
        t = self.table
        pointer = t.number(1), t.number(2), t.number(3), t.number(4), t.number(5)
        kind = 0
        for level in range(self.levels - 1, -1, -1):
            span = TABLE_FANOUT ** (level + 1)
            base = index // span * span
            page = self.pages.get((level, base)) or self.table_page(pointer, level, base)
            self.pages[level, base] = page
            at = 32 + index % span // (span // TABLE_FANOUT) * 32
            author, sequence, pool, kind, _, slot, crc = struct.unpack_from("<QIHBBII", page, at)
            need(author, f"the segment table lacks index {index}")
            pointer = author, sequence, pool, slot, crc
        need(kind in (1, 2), f"the segment table lacks index {index}")
        return self.segment(pool, author, kind, sequence)

    def table_page(self, pointer, level, base):
        author, sequence, pool, slot, crc = pointer
        page = self.segment(pool, author, 3, sequence).read(slot * 4096, 4096)
        need(len(page) == 4096, "a table page is cut off")
        magic, version, found, _, _, own, _, start = struct.unpack_from("<4sBBHIIQQ", page)
        need((magic, version, found, start) == (b"mcTB", 1, level, base), "a table page is not where it should be")
        need(own == crc == crc_without(page, 12), "a table page is damaged")
        return page

    def lookup(self, block):
        """(segment, slot, checksum) of a block, or None for a hole: step 2 of the document."""
        address, crc = self.top, self.crc
        for level in (3, 2, 1, 0):
            if address == 0:
                return None
            page = self.pages.get(address) or self.map_page(address, crc, level, block >> 9 * (level + 1) << 9 * (level + 1))
            self.pages[address] = page
            address, crc = page.get(block >> 9 * level & 511, (0, 0))
        return address and (self.entry(address & 0xFFFFFFFF), address >> 32 & 0xFFFFFF, crc)

    def map_page(self, address, crc, level, base):
        data = self.entry(address & 0xFFFFFFFF).read((address >> 32 & 0xFFFFFF) * UNIT, 40 + FANOUT * 12)
        need(len(data) >= 40, "a map page is cut off")
        magic, version, found, form, zero, length, own, _, start, count = struct.unpack_from("<4sBBBBIIQQI", data)
        need((magic, version, found, start, zero) == (b"mcPG", 1, level, base, 0), "a map page is not where it should be")
        need(own == crc == crc_without(data[:length], 12), "a map page is damaged")
        if form == 0:
            return {i: struct.unpack_from("<QI", data, 40 + i * 12) for i in range(FANOUT)}
        return {e[0]: e[1:] for e in (struct.unpack_from("<HQI", data, 40 + i * 14) for i in range(count))}


def replay(head, segment_of):
    """The groups behind the head's log position: (first block, blocks, segment, slot or None, checksums), oldest
    first. `segment_of` gives a data segment by its number. Step 4 of the document."""
    image, epoch, log = head.number(1), head.number(4), head.message(9)
    first, slot, number = log.number(1), log.number(2), log.number(3)
    found, sequence, started, end = [], first, False, (first, slot)
    while True:
        segment = segment_of(sequence)
        segment = segment if segment and segment.epoch == epoch else None
        group = segment and next_group(segment, (image, epoch, sequence, number), slot)
        need(not group or sequence - first < LOG_SEGMENTS_MAX, "the log is longer than any writer makes it")
        if group:
            found += group[0]
            end = sequence, slot + group[1]
            slot, number, started = end[1], number + 1, False
        elif started or not segment:
            goes_on = claims(segment_of, (image, epoch, number), end)
            need(not goes_on, f"group {number} of the log is damaged")
            return found
        else:
            sequence, slot, started = sequence + 1, 1, True


def next_group(segment, expected, slot):
    image, epoch, sequence, number = expected
    if slot >= SEGMENT_SLOTS:
        return None
    header = segment.read(slot * BLOCK, 64)
    if len(header) < 64 or header[:12] != b"marcotGR\1\0\0\0":
        return None
    blocks, _, crc, records, *name, data_blocks, found = struct.unpack_from("<HHIIQQIIQ", header, 12)
    header = segment.read(slot * BLOCK, blocks * BLOCK)
    if (*name, found) != expected or slot + blocks + data_blocks > SEGMENT_SLOTS or crc_without(header, 16) != crc:
        return None
    crcs = struct.unpack_from(f"<{data_blocks}I", header, 64 + records * 16)
    data = segment.read((slot + blocks) * BLOCK, data_blocks * BLOCK)
    if tuple(crc32c(data[i:i + BLOCK]) for i in range(0, len(data), BLOCK)) != crcs:
        return None
    out, done = [], 0
    for i in range(records):
        first, count = struct.unpack_from("<QQ", header, 64 + i * 16)
        kind, count = count >> 56, count & (1 << 56) - 1
        out.append((first, count, segment, slot + blocks + done if kind == 1 else None, crcs[done:]))
        done += count if kind == 1 else 0
    return out, blocks + data_blocks


def claims(segment_of, expected, place):
    """True where a group behind the end of the log says that the group `number` was durable: then it is damaged."""
    (image, epoch, number), (sequence, slot) = expected, (place[0], place[1] + 1)
    while (segment := segment_of(sequence)) and segment.epoch == epoch:
        while len(block := segment.read(slot * BLOCK, BLOCK)) == BLOCK:
            blocks, _, crc, _, *name, _, found, durable = struct.unpack_from("<HHIIQQIIQQ", block, 12)
            if block[:8] == b"marcotGR" and name == [image, epoch, sequence] and min(found, durable) > number:
                if crc_without(segment.read(slot * BLOCK, blocks * BLOCK), 16) == crc:
                    return True
            slot += 1
        sequence, slot = sequence + 1, 1
    return False


def main(place, spec, offset, length, *others):
    pool, (spec, _, snap) = open_pool(place), spec.partition("@")
    namespace, _, name = spec.rpartition("/")
    pools = {p.number: p for p in (pool, *map(open_pool, others))}
    head, segment_of = pool.with_log(pool.image(namespace, name))
    snapshots = {m.text(2): m for m in head.messages(13)}
    need(not snap or snap in snapshots, f"there is no snapshot '{snap}'")
    root, parent = (snapshots[snap].message(n) if snap else head.message(m) for n, m in ((5, 8), (8, 12)))
    root = Root(root, places(root, parent, pool.number, pools), pools)
    log = [] if snap else replay(head, segment_of)
    offset, end = int(offset), min(int(offset) + int(length), root.size)
    for block in range(offset // BLOCK, -(-end // BLOCK)):
        hit = next((r for r in reversed(log) if r[0] <= block < r[0] + r[1]), None)
        if hit:
            first, _, segment, slot, crcs = hit
            place = slot is not None and (segment, slot + block - first, crcs[block - first])
        else:
            place = root.lookup(block)
        data = place[0].read(place[1] * BLOCK, BLOCK) if place else bytes(BLOCK)
        need(not place or len(data) == BLOCK and crc32c(data) == place[2], f"block {block} does not match its checksum")
        sys.stdout.buffer.write(data[max(offset - block * BLOCK, 0):end - block * BLOCK])


if __name__ == "__main__":
    need(len(sys.argv) >= 5, __doc__.split("\n\n")[1])
    main(*sys.argv[1:])
