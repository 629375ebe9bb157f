"""How large should the parts be that the cache of a pool in a bucket fetches?

A model, which needs no service: it replays reads of an image against a cache with parts of different sizes, and
counts requests, bytes and the time that the reader waits. Its figures stand in
docs/decisions/0020-range-cache.md.

usage: python3 bench/harness/range_chunks.py [DIRECTORY...]

The image is what a file system holds that was filled with the files below DIRECTORY (default: /usr), one after the
other in the order of the directories. A boot reads a twentieth of the files, whole, in pieces of 128 KiB; files of
one directory are often read together.
"""

import os
import random
import sys

BLOCK_BYTES = 4096
OBJECT_BYTES = 32 << 20
PIECE_BYTES = 128 << 10
FILES_MAX = 60_000
# A service in the same region: time to the first byte, and bytes a second of one connection.
FIRST_BYTE_S = 0.030
BYTES_PER_S = 80e6
SKIP_BYTES_MAX = 64 << 10
FETCH_BYTES_MAX = 4 << 20


def layout(directories):
    """Places and lengths of the files, by directory."""
    at, groups, count = 0, [], 0
    for top in directories:
        for directory, _, names in os.walk(top):
            group = []
            for name in sorted(names):
                path = os.path.join(directory, name)
                if os.path.islink(path) or not os.path.isfile(path):
                    continue
                length = os.path.getsize(path)
                group.append((at, length))
                at += -(-length // BLOCK_BYTES) * BLOCK_BYTES
                count += 1
            if group:
                groups.append(group)
            if count > FILES_MAX:
                return groups, at
    return groups, at


def boot(groups, rng):
    """Reads of a boot, in order."""
    files = [(g, f) for g, group in enumerate(groups) for f in range(len(group))]
    wanted = len(files) // 20
    seen, reads = set(), []
    while len(seen) < wanted:
        group, file = rng.choice(files)
        for near in range(file, min(file + rng.choice((1, 1, 2, 6)), len(groups[group]))):
            if (group, near) in seen:
                continue
            seen.add((group, near))
            start, length = groups[group][near]
            for piece in range(0, max(length, 1), PIECE_BYTES):
                reads.append((start + piece, min(PIECE_BYTES, length - piece) or BLOCK_BYTES))
    return reads


def replay(reads, chunk_bytes, grows):
    """Requests, bytes, and seconds that the reader waits."""
    here, requests, fetched, waited = set(), 0, 0, 0.0
    streams = {}
    for start, length in reads:
        end = start + length
        window = 1
        number = start // OBJECT_BYTES
        expected, of_stream = streams.get(number, (None, 1))
        if grows and expected is not None and 0 <= start - expected <= SKIP_BYTES_MAX:
            window = of_stream
        chunk, last = start // chunk_bytes, (end - 1) // chunk_bytes
        missed = False
        while chunk <= last:
            if chunk in here:
                chunk += 1
                continue
            stop = max(last + 1, chunk + window)
            stop = min(stop, chunk + max(1, FETCH_BYTES_MAX // chunk_bytes))
            stop = min(stop, (chunk * chunk_bytes // OBJECT_BYTES + 1) * OBJECT_BYTES // chunk_bytes)
            run = chunk
            while run < max(stop, chunk + 1) and run not in here:
                here.add(run)
                run += 1
            size = (run - chunk) * chunk_bytes
            requests, fetched = requests + 1, fetched + size
            waited += FIRST_BYTE_S + size / BYTES_PER_S
            chunk, missed = run, True
        streams[number] = (end, window * 2 if missed else window)
    return requests, fetched, waited


def main():
    groups, image_bytes = layout(sys.argv[1:] or ["/usr"])
    files = sum(len(group) for group in groups)
    print(f"{files} files, {image_bytes >> 20} MiB")
    rng = random.Random(7)
    patterns = [("boot", boot(groups, rng))]
    blocks = image_bytes // BLOCK_BYTES
    patterns.append(("random 4 KiB", [(rng.randrange(blocks) * BLOCK_BYTES, 4096) for _ in range(2000)]))
    patterns.append(("sequential", [(at, PIECE_BYTES) for at in range(0, 512 << 20, PIECE_BYTES)]))
    for name, reads in patterns:
        wanted = len({block for start, length in reads
                      for block in range(start // 4096, (start + length - 1) // 4096 + 1)}) * 4096
        print(f"\n{name}: {len(reads)} reads, {wanted / 2**20:.1f} MiB")
        print("part KiB | grows | requests | MiB | of wanted | waits s")
        for kib in (4, 64, 128, 256, 512, 1024, 4096, 32768):
            for grows in (False, True):
                requests, fetched, waited = replay(reads, kib << 10, grows)
                print(f"{kib:8} | {grows!s:5} | {requests:8} | {fetched / 2**20:7.1f} | "
                      f"{fetched / wanted:5.2f} | {waited:6.1f}")


if __name__ == "__main__":
    main()
