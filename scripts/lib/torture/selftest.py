"""Tests of the checks themselves: contents that break I1 must be found, and contents that do not must pass.

usage: PYTHONPATH=scripts/lib python3 -m torture.selftest
"""
import random
import tempfile
import unittest

from . import nbd, pattern, xfs
from .disk import Disk
from .family import Clone, Flatten, Image, SnapCreate, SnapRemove
from .history import NEVER, History, Request, Violation, fill
from .torture import Torture
from .writer import Figures

SECTORS = 64


class Rule(unittest.TestCase):
    """Three writes, one after the other: the first is flushed, the second acknowledged, the third neither."""

    def setUp(self):
        self.history = History(pattern.nothing(SECTORS))
        self.first = self.add(1, 0, 16, sent=1, acknowledged=2)
        self.history.flushed = 3
        self.second = self.add(2, 8, 16, sent=5, acknowledged=6)
        self.third = self.add(3, 32, 8, sent=7)

    def add(self, number, first, count, sent, acknowledged=NEVER, fua=False):
        request = Request(number, first, count, sent, fua)
        request.acknowledged = acknowledged
        self.history.add(request)
        return request

    def content(self, *requests):
        seen = pattern.nothing(SECTORS)
        for request in requests:
            fill(seen, request)
        return seen

    def passes(self, seen, before):
        self.history.check(seen, before)

    def fails(self, seen, before, words):
        with self.assertRaisesRegex(Violation, words):
            self.history.check(seen, before)

    def test_every_prefix_after_the_flush_passes(self):
        for kept in ((self.first,), (self.first, self.second), (self.first, self.second, self.third)):
            self.passes(self.content(*kept), self.history.flushed)

    def test_a_flushed_write_that_is_gone_is_found(self):
        self.fails(self.content(), self.history.flushed, "sector 0 is zeros, should be of write 1")

    def test_a_gap_is_found(self):
        self.fails(self.content(self.first, self.third), self.history.flushed, "should be of write 2")

    def test_after_a_kill_everything_acknowledged_has_to_be_there(self):
        self.fails(self.content(self.first), NEVER, "should be of write 2")
        self.passes(self.content(self.first, self.second), NEVER)

    def test_old_bytes_under_a_later_write_are_found(self):
        seen = self.content(self.first, self.second)
        seen[8:12] = seen[0:4]
        self.fails(seen, NEVER, "sector 8 is of write 1, should be of write 2")

    def test_a_block_in_part_is_found(self):
        seen = self.content(self.first, self.second, self.third)
        seen[36:40] = pattern.nothing(4)
        self.fails(seen, NEVER, "4 sectors of 8")

    def test_a_write_in_the_wrong_place_is_found(self):
        seen = self.content(self.first, self.second)
        seen[50:51] = seen[8:9]
        self.fails(seen, NEVER, "sector 50 is of write 2, should be zeros")

    def test_a_discard_that_came_undone_is_found(self):
        self.add(0, 0, 8, sent=9, acknowledged=10)
        self.history.flushed = 11
        self.fails(self.content(self.first, self.second), self.history.flushed, "should be zeros")

    def test_a_discard_that_is_there_proves_what_came_before(self):
        self.add(0, 0, 8, sent=9)
        seen = self.content(self.first)
        seen[0:8] = pattern.nothing(8)
        self.fails(seen, self.history.flushed, "should be of write 2")

    def test_fua_has_to_be_there_without_a_flush(self):
        self.add(4, 40, 8, sent=9, acknowledged=10, fua=True)
        self.fails(self.content(self.first, self.second), self.history.flushed, "should be of write 4")

    def test_a_snapshot_holds_nothing_from_after_its_end(self):
        with self.assertRaisesRegex(Violation, "sector 8 is of write 2"):
            self.history.check(self.content(self.first, self.second), 3, snapshot_ended=4)
        self.history.check(self.content(self.first), 3, snapshot_ended=4)


class Pattern(unittest.TestCase):
    def test_numbers_come_back(self):
        data = pattern.make(7, 100, 3) + bytes(pattern.SECTOR)
        self.assertEqual(list(pattern.numbers(data, 100)), [7, 7, 7, 0])

    def test_torn_and_misplaced_sectors_are_garbled(self):
        data = bytearray(pattern.make(7, 100, 2))
        data[511] ^= 1
        self.assertEqual(list(pattern.numbers(bytes(data), 100)), [pattern.GARBLED, 7])
        self.assertEqual(list(pattern.numbers(bytes(data[512:]), 100)), [pattern.GARBLED])


class Export:
    """Stands for `nbd.Client`: an export with this content."""

    def __init__(self, content):
        self.data = b"".join(pattern.make(number, sector, 1) if number else bytes(pattern.SECTOR)
                             for sector, number in enumerate(content))
        self.size, self.asked = len(self.data), []

    def send(self, _command, offset, length):
        self.asked.append((offset, length))
        return len(self.asked)

    def replies(self, _timeout_s):
        while self.asked:
            cookie = len(self.asked)
            offset, length = self.asked.pop()
            yield cookie, 0, self.data[offset:offset + length]

    def close(self):
        """There is nothing to disconnect."""


class Exports:
    """A machine that has only exports. Its crash is a kill."""

    keeps_cache = True
    is_lost = False
    pools = ("rbd", "other")

    def __init__(self):
        self.contents = {}

    def connect(self, spec):
        return Export(self.contents[spec])


class OutlivedSnapshot(unittest.TestCase):
    """In one round an image is written, a snapshot of it is taken and cloned, the clone is flattened, and the
    snapshot is removed. Nobody has read the snapshot, and only the clone is left of it."""

    def setUp(self):
        self.machine = Exports()
        self.torture = Torture(self.machine, random.Random(1), Figures(), SECTORS, pace=None)
        self.family = self.torture.family
        self.image = Image(SECTORS * pattern.SECTOR, History(pattern.nothing(SECTORS)))
        self.family.images["rbd", "first"] = self.image
        self.write(1)
        self.carry_out(SnapCreate(("rbd", "first"), "s", self.image))
        self.write(2)
        self.carry_out(Clone(("rbd", "first"), "s", ("rbd", "child"), False))
        self.carry_out(Clone(("rbd", "first"), "s", ("other", "child"), False))
        self.carry_out(Flatten(("rbd", "child")))
        self.carry_out(Flatten(("other", "child")))
        # The content of the image, and its content when the snapshot was taken.
        self.both, self.one = self.content(1, 2), self.content(1)
        self.machine.contents = {"rbd/first": self.both, "rbd/child": self.one, "other/child": self.one}

    def write(self, number):
        """Acknowledged writes of eight sectors each, side by side."""
        request = Request(number, 8 * number, 8, self.torture.clock.tick())
        self.image.history.add(request)
        request.acknowledged = self.torture.clock.tick()

    def carry_out(self, command):
        command.begin(self.family)
        command.apply(self.family, self.torture.clock.tick())

    @staticmethod
    def content(*numbers):
        seen = pattern.nothing(SECTORS)
        for number in numbers:
            fill(seen, Request(number, 8 * number, 8, 0))
        return seen

    def verify(self):
        for key in sorted(self.family.images):
            self.torture.verify_image(key)

    def remove_snapshot(self):
        self.carry_out(SnapRemove(("rbd", "first"), "s"))

    def test_its_clones_hold_what_it_held(self):
        self.remove_snapshot()
        self.verify()
        for key in ("rbd", "child"), ("other", "child"):
            self.assertEqual(self.family.images[key].history.base, self.one)

    def test_a_write_from_before_it_that_is_gone_is_found(self):
        self.remove_snapshot()
        self.machine.contents["rbd/child"] = self.machine.contents["other/child"] = self.content()
        with self.assertRaisesRegex(Violation, "other/child.*sector 8 is zeros, should be of write 1"):
            self.verify()

    def test_a_write_from_after_it_is_found(self):
        self.remove_snapshot()
        self.machine.contents["rbd/child"] = self.machine.contents["other/child"] = self.both
        with self.assertRaisesRegex(Violation, "other/child.*sector 16 is of write 2, should be zeros"):
            self.verify()

    def test_a_clone_that_differs_from_another_is_found(self):
        self.remove_snapshot()
        self.write(3)
        self.machine.contents["rbd/first"] = self.content(1, 2, 3)
        self.machine.contents["rbd/child"] = self.content(1, 3)
        with self.assertRaisesRegex(Violation, "rbd/child.*sector 24 is of write 3"):
            self.verify()

    def test_a_snapshot_that_is_there_is_read_itself(self):
        self.machine.contents["rbd/first@s"] = self.both
        with self.assertRaisesRegex(Violation, "rbd/first@s.*sector 16 is of write 2"):
            self.verify()


class ForgettingDisk(unittest.TestCase):
    """Writes covered by a flush or FUA stay; some of the others are lost."""

    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        path = f"{self.directory.name}/disk"
        with open(path, "wb"):
            pass
        self.address, self.size = f"{path}.sock", 1 << 20
        self.disk = Disk(path, self.address, self.size, seed=1)

    def tearDown(self):
        self.directory.cleanup()

    def ask(self, *requests):
        client = nbd.Client(self.address, "")
        for command, options in requests:
            client.send(command, **options)
            while not list(client.replies(1)):
                pass
        client.close()

    def test_cuts_take_what_was_not_flushed_and_nothing_else(self):
        lost = 0
        for turn in range(1, 40):
            old, new, through = bytes([turn]) * 8192, bytes([turn + 100]) * 8192, bytes([turn + 50]) * 4096
            self.ask((nbd.WRITE, {"offset": 0, "data": old}), (nbd.FLUSH, {}), (nbd.WRITE, {"offset": 0, "data": new}),
                     (nbd.WRITE, {"offset": 4096, "data": through, "fua": True}))
            self.disk.cut()
            self.disk.power_on()
            self.assertEqual(self.disk.live[4096:8192], through)
            for at in range(0, 4096, pattern.SECTOR):
                self.assertIn(self.disk.live[at:at + pattern.SECTOR], (old[:512], new[:512]))
                lost += self.disk.live[at] == turn
        self.assertGreater(lost, 0)

    def test_of_all_blocks_only_those_that_xfs_needs_whole_are_never_torn(self):
        self.disk.stays_whole = xfs.stays_whole
        # Two blocks that are stored completely or not at all, and one that is not. Where the first does not lie at
        # the start of a block, it counts as plain bytes.
        tree, node, plain = b"AB3B" + bytes(4092), bytes(8) + b"\x3d\xff\0\0" + bytes(4084), bytes(4096)
        sent = tree + node + plain + bytes(512) + tree + bytes(3584)
        torn = [0] * (len(sent) // 4096)
        for turn in range(1, 60):
            before = bytes([turn]) * len(sent)
            self.ask((nbd.WRITE, {"offset": 0, "data": before}), (nbd.FLUSH, {}),
                     (nbd.WRITE, {"offset": 0, "data": sent}))
            self.disk.cut()
            self.disk.power_on()
            for block in range(len(torn)):
                at = slice(4096 * block, 4096 * block + 4096)
                torn[block] += self.disk.live[at] not in (before[at], sent[at])
        self.assertEqual(torn[:2], [0, 0])
        self.assertTrue(all(torn[2:]), torn)


if __name__ == "__main__":
    unittest.main()
