"""One host takes an image over from the other one, which was stopped or cut off and does not know; then it comes back.

Judged in each round: guests of the owner that was replaced get errors for writes and flushes. The successor has found
a state that the image has had, with all that a flush has promised, also a flush that ended late. So have snapshots
that were taken meanwhile.
"""
import time
from array import array

from .guest import IMAGE_BYTES, REPLACED_ERRORS, Guest, read_sectors
from .hosts import POOL, Job, Violation, all_killed

IMAGE = "vm"
# How often `check` is run while the image is in use.
ROUNDS_PER_CHECK = 5
# Statuses of a command whose owner was replaced meanwhile: EIO, ENOENT, EBUSY, ESHUTDOWN, ETIMEDOUT.
LOST_STATUSES = (1, 2, 5, 16, 108, 110)


class Stopped:
    """An owner's process that is stopped for a while."""

    name = "its process is stopped"

    def __init__(self, server, _random):
        self.server = server

    def begin(self):
        """From now on it does nothing."""
        self.server.pause()

    def end(self):
        """It goes on."""
        self.server.wake()


class Cut:
    """An owner whose host is cut off for a while: its own link is down, or the cable is out at the other end."""

    name = "its link is cut"

    def __init__(self, server, random):
        self.host = server.host
        self.unplugs = random.random() < 0.5

    def begin(self):
        """From now on it reaches nothing."""
        if self.unplugs:
            self.host.options.switch.link(self.host.name, "down")
        else:
            self.host.link("eth0", "down")

    def end(self):
        """The link works again."""
        if self.unplugs:
            self.host.options.switch.link(self.host.name, "up")
        else:
            self.host.link("eth0", "up")


class Snapshot:
    """`snap create` at the owner, which may be replaced while that runs."""

    def __init__(self, guest, name):
        self.guest, self.name = guest, name
        self.promised = guest.reign.promised
        self.job = Job(self._create)

    def _create(self):
        return self.guest.server.host.run("snap", "create", "--no-progress", f"{POOL}/{IMAGE}@{self.name}")

    def judge(self, host):
        """Fails unless a snapshot that was acknowledged is there, with a content of its time."""
        created = self.job.ended()
        if created.status not in (0, *LOST_STATUSES):
            raise Violation(f"{created}")
        ran = host.run("export", "--no-progress", f"{POOL}/{IMAGE}@{self.name}", "-")
        if ran.status:
            if not created.status:
                raise Violation(f"snapshot {self.name} was acknowledged, and cannot be read: {ran}")
            return
        self.guest.reign.judge(read_sectors(ran.out), self.promised, f"snapshot {self.name}")


class Takeovers:
    """An image that two hosts take from each other."""

    def __init__(self, hosts, random, door, troubles):
        """The image is reached by `door`, a server or a device. Troubles are what may happen to its owner."""
        self.hosts, self.random, self.door, self.troubles = hosts, random, door, troubles
        self.servers = [None, None]
        self.running = []
        self.flushes = 0
        self.snapshots = []
        self.owner = 0
        self.guest = None

    def run(self, rounds):
        """Makes that many takeovers, one after the other."""
        self.hosts[0].works("create", f"{POOL}/{IMAGE}", "--size", f"{IMAGE_BYTES >> 20}M")
        with all_killed(self.running):
            self._renew(0)
            self.guest = self._guest(0)
            began = time.monotonic()
            for number in range(1, rounds + 1):
                self.round(number)
                if number % ROUNDS_PER_CHECK == 0:
                    self.random.choice(self.hosts).check(POOL)
                if number % 10 == 0:
                    print(f"# {number} takeovers, {time.monotonic() - began:.0f} s", flush=True)
            self._finish()

    def round(self, number):
        """One takeover."""
        stale, heir = self.guest, 1 - self.owner
        trouble = self.random.choice(self.troubles)(stale.server, self.random)
        self._work(stale, number)
        trouble.begin()
        try:
            self._renew(heir)
            successor = self._guest(heir)
            found = array("Q", successor.reign.found)
            time.sleep(self.random.uniform(0, 0.2))
            successor.wait_for_flush()
        finally:
            trouble.end()
        stale.join()
        if stale.error is None:
            raise Violation(f"host {stale.server.host.name} was replaced, and does not notice")
        if stale.error not in REPLACED_ERRORS:
            raise Violation(f"host {stale.server.host.name} was replaced: its {stale.failed} got {stale.error}")
        stale.must_fail_for_good()
        stale.close()
        stale.reign.judge(found, stale.reign.promised, f"takeover {number} by host {successor.server.host.name}")
        self.flushes += stale.flushes
        for snapshot in self.snapshots:
            snapshot.judge(successor.server.host)
        self.snapshots = []
        self.owner, self.guest = heir, successor

    def _work(self, guest, number):
        """Lets a guest write for a while, sometimes with a snapshot or a collection under way at the end."""
        time.sleep(self.random.uniform(0, 0.4))
        chance = self.random.random()
        if chance < 0.3:
            self.snapshots.append(Snapshot(guest, f"s{number}"))
            time.sleep(self.random.uniform(0, 0.1))
        elif chance < 0.5:
            self.hosts[0].works("gc", "--no-progress", POOL)

    def _renew(self, host):
        """A new server for the next takeover. The one before was replaced, and takes nothing back by itself."""
        server = self.servers[host]
        if server is not None:
            self.running.remove(server)
            if self.random.random() < 0.5:
                server.kill()
            else:
                server.end()
        self.servers[host] = self.door(self.hosts[host], IMAGE)
        self.running.append(self.servers[host])

    def _guest(self, host):
        guest = Guest(self.servers[host], self.random)
        guest.start()
        return guest

    def _finish(self):
        """The last owner closes the image. Both hosts see everything, and `check` finds nothing."""
        guest = self.guest
        guest.stop()
        if guest.error is not None:
            raise Violation(f"the last owner's {guest.failed} got {guest.error}")
        guest.close()
        self.flushes += guest.flushes
        self.running.remove(guest.server)
        if guest.server.end() != 0:
            raise Violation(f"the last owner did not end well: {guest.server.last_words()}")
        expected = guest.reign.contents(guest.reign.last())
        for host in self.hosts:
            found = read_sectors(host.works("export", "--no-progress", f"{POOL}/{IMAGE}", "-"))
            if found != expected:
                raise Violation(f"host {host.name} does not see what the last owner has written")
            self.hosts[0].works("gc", "--no-progress", POOL)
            host.check(POOL)
