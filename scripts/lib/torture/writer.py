"""Keeps requests in flight to one image and records what was sent and acknowledged, and when."""
import itertools
import select
import time
from dataclasses import dataclass, field

from . import nbd, pattern
from .history import Request, Violation

# Limit on the bytes of one request.
REQUEST_BYTES_MAX = 1 << 20
# Longer than any answer takes, even on the slowest machine.
SILENCE_S_MAX = 300


@dataclass
class Figures:
    """Sums of all requests and commands."""

    writes: int = 0
    discards: int = 0
    flushes: int = 0
    bytes: int = 0
    verified_bytes: int = 0
    lost_unflushed: int = 0
    commands: dict = field(default_factory=dict)
    interrupted: dict = field(default_factory=dict)
    refused: dict = field(default_factory=dict)


class Profile:
    """The kind of requests in a round."""

    def __init__(self, random, heavy):
        self.depth = random.choice((1, 2, 8, 32))
        self.request_bytes = REQUEST_BYTES_MAX if heavy else random.choice((4096, 16384, 65536, REQUEST_BYTES_MAX))
        self.aligned = heavy or random.random() < 0.6
        self.flush = random.choice((0.0, 0.01, 0.05, 0.3))
        self.discard = random.choice((0.0, 0.02, 0.1))
        self.fua = random.choice((0.0, 0.0, 0.05))
        # The part of the image where most requests go.
        self.hot = 1.0 if heavy else random.choice((1.0, 0.1))


class Writer:
    """One image's requests, over one connection or more."""

    numbers = itertools.count(1)

    def __init__(self, clock, random, figures, history, clients, sectors, profile):
        self.clock, self.random, self.figures, self.history = clock, random, figures, history
        self.clients, self.sectors, self.profile = clients, sectors, profile
        # By client: cookie -> request, or the time when a flush was sent.
        self.flying = [{} for _ in clients]
        self.bytes = 0
        self.heard_at = time.monotonic()

    def step(self, timeout_s):
        """Sends as many requests as the depth allows, and takes the replies that come in time."""
        while sum(map(len, self.flying)) < self.profile.depth:
            if not self._send():
                break
        self.collect(timeout_s)

    def collect(self, timeout_s):
        """Takes replies."""
        sockets = {client.socket: i for i, client in enumerate(self.clients)}
        for ready in select.select(list(sockets), [], [], timeout_s)[0]:
            i = sockets[ready]
            for cookie, error, _ in self.clients[i].replies(0):
                self._answered(self.flying[i].pop(cookie), error)

    def drain(self, is_dead):
        """Waits until nothing is in flight. Returns False where the machine has gone meanwhile."""
        while any(self.flying):
            if is_dead():
                return False
            self.collect(0.01)
            self.check_silence(self.heard_at)
        return True

    @staticmethod
    def check_silence(since):
        """Raises Violation if no reply has come for too long."""
        if time.monotonic() > since + SILENCE_S_MAX:
            raise Violation(f"nothing was answered for {SILENCE_S_MAX} s: something hangs")

    def last_words(self):
        """Takes the replies that a killed server has sent before."""
        for i, client in enumerate(self.clients):
            try:
                while self.flying[i]:
                    for cookie, error, _ in client.replies(1):
                        self._answered(self.flying[i].pop(cookie), error)
            except OSError:
                pass
            client.socket.close()

    def _answered(self, what, error):
        self.heard_at = time.monotonic()
        if error:
            raise Violation(f"{what} failed with error {error}")
        now = self.clock.tick()
        if isinstance(what, Request):
            what.acknowledged = now
        else:
            self.history.flushed = max(self.history.flushed, what)

    def _send(self):
        chance, i = self.random.random(), self.random.randrange(len(self.clients))
        profile = self.profile
        if chance < profile.flush:
            cookie = self.clients[i].send(nbd.FLUSH)
            self.flying[i][cookie] = self.clock.tick()
            self.figures.flushes += 1
            return True
        request = self._place(discard=chance < profile.flush + profile.discard)
        if any(request.overlaps(r) for flying in self.flying for r in flying.values() if isinstance(r, Request)):
            # Their order would be unknown.
            return False
        self.history.add(request)
        offset, length = request.first * pattern.SECTOR, request.count * pattern.SECTOR
        if request.number:
            data = pattern.make(request.number, request.first, request.count)
            cookie = self.clients[i].send(nbd.WRITE, offset, data=data, fua=request.fua)
            self.figures.writes += 1
            self.figures.bytes += length
            self.bytes += length
        else:
            command = self.random.choice((nbd.TRIM, nbd.WRITE_ZEROES))
            cookie = self.clients[i].send(command, offset, length, fua=request.fua)
            self.figures.discards += 1
        self.flying[i][cookie] = request
        return True

    def _place(self, discard):
        unit = pattern.BLOCK_SECTORS if self.profile.aligned else 1
        count = self.random.randint(1, max(1, self.profile.request_bytes // pattern.SECTOR // unit)) * unit
        count = min(count, self.sectors)
        room = self.sectors - count
        if self.random.random() < 0.9:
            room = int(room * self.profile.hot)
        first = self.random.randint(0, room) // unit * unit
        number = 0 if discard else next(self.numbers)
        return Request(number, first, count, self.clock.tick(), fua=self.random.random() < self.profile.fua)
