"""The content written to images: every sector says which write put it there.

A sector of 512 bytes is one record of 16 bytes, 32 times: the number of the write, and the number
of the sector. A sector that is half one write and half another, one that lies in the wrong place,
and one that nobody wrote all show. Zeros mean that nothing is there: never written, or discarded.
"""
import struct
from array import array

SECTOR = 512
BLOCK_SECTORS = 8
# Numbers of eight bytes in a sector.
WORDS = SECTOR // 8
# What `numbers` gives for a sector that holds no whole record.
GARBLED = 2**64 - 1


def make(number, first, count):
    """The bytes of `count` sectors from sector `first` on, by write `number`."""
    pack = struct.Struct("<QQ").pack
    return b"".join(pack(number, sector) * (WORDS // 2) for sector in range(first, first + count))


def numbers(data, first):
    """The number of the write of each sector in `data`, which begins at sector `first`."""
    words = array("Q")
    words.frombytes(data)
    writes, sectors = words[0::WORDS], words[1::WORDS]
    broken = set()
    for at in range(2, WORDS):
        expected = (writes, sectors)[at % 2]
        found = words[at::WORDS]
        if found != expected:
            broken.update(i for i, (a, b) in enumerate(zip(found, expected)) if a != b)
    for i, (write, sector) in enumerate(zip(writes, sectors)):
        if sector != (first + i if write else 0):
            broken.add(i)
    for i in broken:
        writes[i] = GARBLED
    return writes


def nothing(count):
    """The numbers of `count` sectors of zeros."""
    return array("Q", bytes(8 * count))
