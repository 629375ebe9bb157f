"""A guest: it writes numbered sectors to an image, flushes, and notes what was acknowledged.

Every sector says which write put it there (see torture.pattern). One write is under way at a time. So the writes
have an order, and the content of an image says how many of them it holds.
"""
import itertools
import threading
import time
from array import array
from dataclasses import dataclass

from torture import nbd, pattern

from .hosts import COMMAND_S_MAX, Violation

IMAGE_BYTES = 4 << 20
SECTORS = IMAGE_BYTES // pattern.SECTOR
# Sectors of one write.
WRITE_SECTORS_MAX = 64
# The server has hung up.
HUNG_UP = 104
# What becomes of requests to an owner that was replaced: EIO; the answer that it is over (ESHUTDOWN), whereupon the server
# hangs up. A kernel makes EIO of all of them.
REPLACED_ERRORS = (5, 108, HUNG_UP)
NUMBERS = itertools.count(1)


@dataclass
class Write:
    """A write that was sent."""

    number: int
    first: int
    count: int


class Reign:
    """What one owner of the image was told to write, beginning with what it found."""

    def __init__(self, found):
        self.found = found
        self.writes = []
        # The last write that a flush has promised.
        self.promised = 0

    def contents(self, last):
        """The numbers of all sectors after the write with this number."""
        sectors = array("Q", self.found)
        for write in self.writes:
            if write.number > last:
                break
            sectors[write.first:write.first + write.count] = array("Q", [write.number]) * write.count
        return sectors

    def last(self):
        """The number of the last write that was sent."""
        return self.writes[-1].number if self.writes else 0

    def judge(self, sectors, promised, who):
        """Fails unless these are the contents after one of the writes, none of the promised ones missing."""
        if pattern.GARBLED in sectors:
            raise Violation(f"{who}: sector {sectors.index(pattern.GARBLED)} holds no whole write")
        found, begun_with = max(sectors), max(self.found)
        if found > self.last() and found > begun_with:
            raise Violation(f"{who}: write {found} is there, which this owner was never told")
        if max(promised, begun_with) > found:
            raise Violation(f"{who}: it ends with write {found}, and a flush has promised {promised}")
        expected = self.contents(found)
        if sectors != expected:
            at = next(i for i, (a, b) in enumerate(zip(sectors, expected)) if a != b)
            raise Violation(f"{who}: sector {at} has write {sectors[at]} and not {expected[at]}, though write {found} is there")


def read_sectors(data):
    """The numbers of the sectors of a whole image."""
    return array("Q", pattern.numbers(data, 0))


class Guest:
    """A client of a server or a device. It writes in a thread of its own, until it is told to stop or gets an error."""

    def __init__(self, server, random):
        self.server, self.random = server, random
        self.client = server.client()
        self._replies = []
        data = b"".join(piece for _, piece in nbd.read_all(self.client, IMAGE_BYTES))
        self.reign = Reign(read_sectors(data))
        self.flushes = 0
        # The first error, and the request that has got it.
        self.error = None
        self.failed = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self):
        """Begins to write."""
        self._thread.start()

    def stop(self):
        """Stops after the request that is under way, and waits until it is answered."""
        self._stop.set()
        self.join()

    def join(self):
        """Waits until it gets an error or is stopped."""
        self._thread.join(COMMAND_S_MAX)
        if self._thread.is_alive():
            raise Violation(f"a guest on host {self.server.host.name} hangs: {self.server.last_words()}")
        if self.error is not None and not isinstance(self.error, int):
            raise self.error

    def wait_for_flush(self):
        """Waits until one more flush was acknowledged."""
        flushes, until = self.flushes, time.monotonic() + COMMAND_S_MAX
        while self.flushes == flushes:
            if self.error is not None or time.monotonic() > until:
                raise Violation(f"no flush on host {self.server.host.name}: {self.failed} got {self.error}")
            time.sleep(0.002)

    def must_fail_for_good(self):
        """Fails unless the server answers with errors or hangs up, and refuses the image to clients that connect again."""
        host = self.server.host.name
        try:
            for command, data in ((nbd.WRITE, pattern.make(next(NUMBERS), 0, 1)), (nbd.FLUSH, b"")):
                error, _ = self._ask(command, data=data)
                if error not in REPLACED_ERRORS:
                    raise Violation(f"host {host} was replaced, and answers {error} to request {command}")
        except OSError:
            # It has hung up.
            pass
        self.server.check_not_given_back()

    def close(self):
        """Hangs up."""
        self.client.close()

    def _work(self):
        try:
            while not self._stop.is_set() and self.error is None:
                if self.random.random() < 0.3:
                    self._flush()
                else:
                    self._write()
        except OSError:
            self.error, self.failed = self.error or HUNG_UP, self.failed or "request"
        except BaseException as failure:  # pylint: disable=broad-except
            self.error = failure

    def _write(self):
        count = self.random.choice((1, 8, 8, self.random.randint(1, WRITE_SECTORS_MAX)))
        write = Write(next(NUMBERS), self.random.randrange(SECTORS - count + 1), count)
        self.reign.writes.append(write)
        fua = self.random.random() < 0.1
        data = pattern.make(write.number, write.first, count)
        error, _ = self._ask(nbd.WRITE, write.first * pattern.SECTOR, data, fua)
        if error:
            self.error, self.failed = error, f"write {write.number}"
        elif fua:
            self.reign.promised = write.number
            self.flushes += 1

    def _flush(self):
        """Flushes, and sometimes writes while the flush is under way."""
        promises = self.reign.last()
        cookie = self.client.send(nbd.FLUSH)
        if self.random.random() < 0.5 and not self._stop.is_set():
            self._flush_while_writing(cookie, promises)
        else:
            self._flushed(self._await(cookie)[0], promises)

    def _flush_while_writing(self, flush, promises):
        write = Write(next(NUMBERS), self.random.randrange(SECTORS), 1)
        self.reign.writes.append(write)
        sent = self.client.send(nbd.WRITE, write.first * pattern.SECTOR, data=pattern.make(write.number, write.first, 1))
        answers = {}
        while len(answers) < 2:
            cookie, error, _ = self._next_reply()
            answers[cookie] = error
            if cookie == flush:
                self._flushed(error, promises)
        if answers[sent] and self.error is None:
            self.error, self.failed = answers[sent], f"write {write.number}"

    def _flushed(self, error, promises):
        if error:
            self.error, self.failed = error, "flush"
        else:
            self.reign.promised = max(self.reign.promised, promises)
            self.flushes += 1

    def _ask(self, command, offset=0, data=b"", fua=False):
        return self._await(self.client.send(command, offset, data=data, fua=fua))

    def _await(self, cookie):
        answered, error, data = self._next_reply()
        if answered != cookie:
            raise Violation(f"request {cookie} was answered as {answered}")
        return error, data

    def _next_reply(self):
        until = time.monotonic() + COMMAND_S_MAX
        while not self._replies:
            if time.monotonic() > until:
                raise Violation(f"host {self.server.host.name} does not answer: {self.server.last_words()}")
            self._replies.extend(self.client.replies(1))
        return self._replies.pop(0)
