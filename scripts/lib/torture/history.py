"""The history of one image, and the contents that it may have after a crash (promise I1).

Requests that were in flight together have no order; a request that was sent after another was
acknowledged comes later. So, whatever survived:

  * all that had to survive is there: after the end of a process everything acknowledged, after a
    loss of power everything acknowledged before the last acknowledged flush was sent, and every
    acknowledged FUA;
  * where a request is there, in part or whole, all that was acknowledged before it was sent is
    there: no gaps;
  * a block of 4096 bytes that a request wrote whole is there whole or not at all.

The writer never has two requests in flight that overlap, so the latest of those that may be there
decides each sector.
"""
from .pattern import BLOCK_SECTORS, GARBLED, nothing

NEVER = float("inf")
# Sectors compared at a time. Only those that differ are compared one by one.
COMPARE_SECTORS = 1024


class Violation(Exception):
    """A promise was broken."""


class Clock:
    """Counts events: requests sent, and acknowledgements."""

    def __init__(self):
        self.now = 0

    def tick(self):
        self.now += 1
        return self.now


class Request:
    """A write, or a discard (number 0), of `count` sectors."""

    __slots__ = ("number", "first", "count", "sent", "acknowledged", "fua")

    def __init__(self, number, first, count, sent, fua=False):
        self.number, self.first, self.count, self.sent, self.fua = number, first, count, sent, fua
        self.acknowledged = NEVER

    def end(self):
        return self.first + self.count

    def overlaps(self, other):
        return self.first < other.end() and other.first < self.end()

    def __str__(self):
        what = f"write {self.number}" if self.number else "discard"
        acknowledged = "not acknowledged" if self.acknowledged is NEVER else f"acknowledged {self.acknowledged}"
        return f"{what} of sectors {self.first} to {self.end()} (sent {self.sent}, {acknowledged})"


class History:
    """Requests to one image since its content was last known."""

    def __init__(self, base):
        self.base = base
        self.requests = []
        # When the latest acknowledged flush was sent.
        self.flushed = 0

    def add(self, request):
        self.requests.append(request)

    def check(self, seen, required_before, snapshot_ended=None):
        """Raises Violation unless `seen` may be the content.

        `required_before`: what was acknowledged before must be there. `snapshot_ended`: the content
        is that of a snapshot whose command ended then; nothing sent later may be in it. Returns how
        many acknowledged requests are not there.
        """
        required_before = max(required_before, 0)
        while True:
            expected, optional = self._expected(required_before, snapshot_ended)
            latest = 0
            for sector in differences(expected, seen):
                latest = max(latest, self._explain(sector, seen, expected, optional).sent)
            if latest <= required_before:
                break
            # A write that is there proves that all earlier ones have to be there.
            required_before = latest
        self._check_blocks(seen, optional)
        return self._lost(seen, optional)

    def _expected(self, required_before, snapshot_ended):
        last_sent = NEVER if snapshot_ended is None else snapshot_ended
        expected, optional = self.base[:], []
        for request in self.requests:
            # A snapshot holds all writes acknowledged before its command. FUA promises no more than that.
            stored = request.fua and request.acknowledged < NEVER and snapshot_ended is None
            if (request.acknowledged < required_before or stored) and request.sent <= last_sent:
                fill(expected, request)
            elif request.sent <= last_sent:
                optional.append(request)
        return expected, optional

    def _explain(self, sector, seen, expected, optional):
        """The earliest request that may have given this sector its content."""
        for request in optional:
            if request.number == seen[sector] and request.first <= sector < request.end():
                return request
        raise Violation(self._describe(sector, seen, expected))

    def _describe(self, sector, seen, expected):
        found, wanted = seen[sector], expected[sector]
        what = "garbled" if found == GARBLED else f"of write {found}" if found else "zeros"
        text = f"sector {sector} is {what}, should be {f'of write {wanted}' if wanted else 'zeros'}"
        touching = [r for r in self.requests if r.first <= sector < r.end()]
        by_number = [r for r in self.requests if r.number == found and r not in touching and found]
        wrong = sum(1 for _ in differences(expected, seen))
        lines = [text, f"{wrong} sectors differ from what is required; last flush sent {self.flushed}"]
        lines += [f"  required: {r}" for r in touching if r.number == wanted]
        lines += [f"  here: {r}" for r in touching if r.number != wanted][-8:]
        lines += [f"  found, but elsewhere: {r}" for r in by_number]
        return "\n".join(lines)

    def _check_blocks(self, seen, optional):
        for i, request in enumerate(optional):
            if not request.number:
                continue
            later = optional[i + 1:]
            first = -(-request.first // BLOCK_SECTORS)
            for block in range(first, request.end() // BLOCK_SECTORS):
                at = block * BLOCK_SECTORS
                there = seen[at:at + BLOCK_SECTORS].count(request.number)
                if 0 < there < BLOCK_SECTORS and not any(
                    r.first < at + BLOCK_SECTORS and at < r.end() for r in later
                ):
                    raise Violation(f"block {block} holds {there} sectors of 8 of one write: {request}")

    @staticmethod
    def _lost(seen, optional):
        """Acknowledged writes that are lost, judged by their first sector."""
        lost = 0
        for i, request in enumerate(optional):
            found = seen[request.first]
            discarded = any(not r.number and r.first <= request.first < r.end() for r in optional[i + 1:])
            if request.number and request.acknowledged < NEVER and not (found == 0 and discarded):
                # Later writes have higher numbers.
                lost += found < request.number
        return lost


def fill(content, request):
    """Applies a request to the numbers of sectors."""
    one = nothing(1)
    one[0] = request.number
    content[request.first:request.end()] = one * request.count


def differences(a, b):
    """Sectors that differ."""
    if len(a) != len(b):
        raise ValueError("contents of different length")
    for at in range(0, len(a), COMPARE_SECTORS):
        left, right = a[at:at + COMPARE_SECTORS], b[at:at + COMPARE_SECTORS]
        if left != right:
            for i, (x, y) in enumerate(zip(left, right)):
                if x != y:
                    yield at + i
