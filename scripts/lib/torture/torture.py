"""One round after another: start, look, verify, work, crash. The same for kills and power cuts."""
import json
import time

from . import nbd, pattern
from .choice import Chooser
from .family import Family, Rollback
from .history import NEVER, Clock, History, Violation
from .machine import Dead
from .writer import Profile, Writer

# Findings of `check` that are no damage: an interrupted command leaves them by design.
LITTER = ("cut off",)
COMMANDS_MAX = 4
# Number of crashes before one may hit a recovery.
WORKED_FIRST = 4
EBUSY = 16
# Assumed seconds and disk operations of a command that has not run yet.
TYPICAL = (0.02, 30)


class Pace:
    """The length of a round, and the time of its crash."""

    def __init__(self, round_s, heavy_share, heavy_bytes):
        self.round_s, self.heavy_share, self.heavy_bytes = round_s, heavy_share, heavy_bytes


class Torture:
    """A store, its model, and the machine that is crashed."""

    def __init__(self, machine, random, figures, sectors_max, pace):
        self.machine, self.random, self.figures, self.pace = machine, random, figures, pace
        self.clock = Clock()
        self.family = Family(machine, self.clock, sectors_max)
        self.chooser = Chooser(self.family, random)
        self.interrupted = None
        self.crashes = 0
        # The duration of commands, by kind, so that a crash can be aimed at them.
        self.typical = {}
        self.note = lambda text: None

    # --- rounds ---------------------------------------------------------------------------------

    def begin(self):
        """Makes the store."""
        self.machine.start()
        self.machine.serve()
        self.family.begin()
        self._crash()

    def round(self):
        """Starts, verifies everything, works, and crashes."""
        # A short run should work more than recover.
        early = self.crashes >= WORKED_FIRST and self.random.random() < 0.1
        if early:
            self.machine.crash_soon()
        try:
            self.recover()
        except (Violation, Dead, OSError, ValueError) as error:
            # If the content is wrong, and this was not caused by the crash, the next round finds it again.
            if not (early and self.machine.is_dead()):
                if isinstance(error, Violation):
                    raise
                raise Violation(f"no crash was due, and yet: {error!r}") from error
            self.note(f"crash while recovering: {error}")
            self._crash()
            return
        self.machine.crash_not()
        if early and self.machine.is_dead():
            self._crash()
        else:
            self.work()

    def end(self):
        """A last look after the last crash."""
        self.machine.crash_not()
        self.recover()
        for key in list(self.family.images):
            self.verify_image(key, everything=True)
        # This crash does not count, because nothing is verified after it.
        self.machine.crash()

    def _crash(self):
        result = self.machine.crash()
        self.crashes += 1
        if "panicked" in self.machine.log():
            raise Violation("marcot panicked; see its log")
        return result

    # --- after a crash ----------------------------------------------------------------------------

    def recover(self):
        """Check, restart, and comparison with the model."""
        self.machine.start()
        check_first = self.random.random() < 0.5
        if check_first:
            self.check()
        self.machine.serve()
        if not check_first:
            self.check()
        self.settle()
        for key in sorted(self.family.images):
            self.verify_image(key)
        self.machine.verified()
        self.family.compare(self.family.look())
        if self.random.random() < 0.1:
            self.collect_and_check()

    def check(self, strict=False):
        """Checks that there is no damage, and nothing else except what an interrupted command leaves."""
        result = self.machine.run(["check", "--all", "--no-progress", "--format", "json"])
        if not result.out:
            raise Violation(f"check: status {result.status}\n{result.err}")
        findings = [f for pool in json.loads(result.out) for f in pool["findings"]]
        bad = [f for f in findings if strict or f["serious"] or not any(word in f["message"] for word in LITTER)]
        if bad or result.status != 0:
            raise Violation(f"check: status {result.status}, {bad}")

    def collect_and_check(self):
        """GC removes all litter."""
        for pool in self.family.pools:
            self.family.run("gc", "--no-progress", pool)
        self.check(strict=True)

    def settle(self):
        """Finds out whether the interrupted command has happened."""
        command = self.interrupted
        if command is None:
            return
        found = self.family.look()
        if command.again(found):
            # It is half done, as documented. Running it again finishes it.
            self.family.run(*command.arguments)
            found = self.family.look()
            if not command.happened(found):
                raise Violation(f"'{command}' succeeded and did not happen")
        if command.happened(found):
            command.apply(self.family, NEVER)
        if not isinstance(command, Rollback):
            # For a rollback, the content shows it.
            self.interrupted = None

    def verify_image(self, key, everything=False):
        """Reads an image and its new snapshots, and compares."""
        image = self.family.images[key]
        for name, snap in list(image.snapshots.items()):
            spec = "/".join(key) + "@" + name
            if snap.content is None:
                self.verify_snapshot(spec, snap)
            elif everything or self.random.random() < 0.2:
                if self.read(spec, snap.size) != snap.content:
                    raise Violation(f"snapshot {spec} has changed")
        if image.history is None:
            self.verify_origin(key, image.origin)
            image.history = History(image.origin.content[:])
        elif not (everything or image.history.requests or self.random.random() < 0.3 or self.unsure(key)):
            return
        content = self.read("/".join(key), None, flushes=self.machine.is_lost)
        if not (self.unsure(key) and self.rolled_back(image, content)):
            before = NEVER if self.machine.keeps_cache else image.history.flushed
            self.judge("/".join(key), image.history, content, before)
        image.history = History(content)
        if self.unsure(key):
            self.interrupted = None

    def verify_snapshot(self, spec, snap):
        """Reads a snapshot for the first time, at `spec`: its content is known from then on."""
        content = self.read(spec, snap.size)
        self.judge(spec, snap.since, content, snap.sent, snap.ended)
        snap.content, snap.since = content, None

    def verify_origin(self, key, snap):
        """Makes the content known that the clone `key` began with: that of the snapshot `snap`."""
        if snap.content is not None:
            return
        owner = next((k for k, i in self.family.images.items() if any(s is snap for s in i.snapshots.values())), None)
        if owner is not None:
            return self.verify_image(owner)
        # A clone that was flattened outlives its snapshot, all in one round. A clone is written, resized or
        # rolled back only after it was verified, so it holds what the snapshot held, and the history of that
        # says what this may be. Further clones of it are compared with the first.
        self.verify_snapshot("/".join(key), snap)

    def unsure(self, key):
        return isinstance(self.interrupted, Rollback) and self.interrupted.key == key

    def rolled_back(self, image, content):
        """Decides on an interrupted rollback: if the content is that of the snapshot, it has happened."""
        if content != self.interrupted.content:
            return False
        if self.family.look()[self.interrupted.key]["size"] == self.interrupted.size:
            self.interrupted.apply(self.family, NEVER)
        return True

    def judge(self, what, history, content, before, snapshot_ended=None):
        """The rule of I1, with the name of the image in front."""
        try:
            lost = history.check(content, before, snapshot_ended)
        except Violation as violation:
            raise Violation(f"{what}: {violation}") from violation
        if snapshot_ended is None:
            self.figures.lost_unflushed += lost

    def read(self, export, size, flushes=False):
        """The numbers of an export's sectors; zeros behind its end. `flushes`: so that no later end may lose them."""
        numbers = pattern.nothing(0)
        client = self.machine.connect(export)
        if size is not None and client.size != size:
            raise Violation(f"{export} has {client.size} bytes, should have {size}")
        for offset, data in nbd.read_all(client, client.size):
            numbers.extend(pattern.numbers(data, offset // pattern.SECTOR))
            self.figures.verified_bytes += len(data)
        if flushes:
            nbd.flush(client)
        client.close()
        numbers.extend(pattern.nothing(self.family.sectors_max - len(numbers)))
        return numbers

    # --- work -------------------------------------------------------------------------------------

    def work(self):
        """Writes and commands until the crash."""
        active = self.random.choice(sorted(self.family.images))
        image = self.family.images[active]
        heavy = self.random.random() < self.pace.heavy_share
        commands = self.random.choice((0, 1, 1, 2, 2, 3, COMMANDS_MAX, COMMANDS_MAX))
        floor = image.size if self.random.random() < 0.5 else self.random.randint(1, image.size >> 20) << 20
        clients = [self.machine.connect("/".join(active)) for _ in range(self.random.choice((1, 1, 2)))]
        writer = Writer(self.clock, self.random, self.figures, image.history, clients, floor // pattern.SECTOR,
                        Profile(self.random, heavy))
        shift = Shift(self, writer, active, floor, commands, heavy)
        ended_by_itself = None
        try:
            shift.run()
            if self.machine.ends_in_order:
                writer.drain(self.machine.is_dead)
        except (Dead, OSError) as error:
            if not self.machine.was_crashed():
                ended_by_itself = error
        result = self._crash()
        writer.last_words()
        self.interrupted = shift.after_crash(result)
        if ended_by_itself is not None:
            raise Violation(f"the server went away by itself: {ended_by_itself!r}")


class Shift:
    """The work of one round: a writer, and commands beside it."""

    def __init__(self, torture, writer, active, floor, commands, heavy):
        self.torture, self.writer, self.active, self.floor = torture, writer, active, floor
        self.machine, self.random, self.family = torture.machine, torture.random, torture.family
        self.left = commands
        # The crash is aimed at one of the commands, or comes at any time.
        self.aim = self.random.randint(1, commands) if commands and self.random.random() < 0.85 else 0
        # In the middle of it, or as soon as it has ended. Then its result has to be true.
        self.aim_behind = self.random.random() < 0.25
        self.started = 0
        self.command, self.began, self.writes_began = None, 0, 0
        now = time.monotonic()
        pace = torture.pace
        self.bytes_before = self.random.randint(*pace.heavy_bytes) if heavy else 0
        self.crash_at = None if self.aim or heavy else now + self.random.uniform(0, pace.round_s)
        self.next_command_at = now + self.random.uniform(0, pace.round_s / 4)
        # The time when a command last began or ended.
        self.turned_at = now

    def run(self):
        """Returns when it is time to crash."""
        while not self.machine.is_dead():
            now = time.monotonic()
            self.writer.check_silence(max(self.writer.heard_at, self.turned_at))
            if self._writing():
                self.writer.step(0.002)
            else:
                self.writer.collect(0.002)
            if self.command is not None:
                self._poll(now)
            elif self.left and now >= self.next_command_at and self.writer.bytes >= self.bytes_before:
                self._begin()
            self._decide(now)
            if self.crash_at is not None and time.monotonic() >= self.crash_at:
                return

    def _writing(self):
        return not (self.command is not None and self.command.exclusive)

    def _decide(self, now):
        """Sets the time of a crash that is not aimed at a command, once there is reason to."""
        waits = self.writer.bytes < self.bytes_before or self.started < self.aim or self.command is not None
        if self.crash_at is None and not waits:
            self.crash_at = now + self.random.uniform(0, self.torture.pace.round_s)
            if hasattr(self.machine, "disk"):
                self.machine.disk.arm(self.random.randint(1, 300))

    def _begin(self):
        command = self.torture.chooser.choose(self.active, self.floor)
        if command.exclusive and not self.writer.drain(self.machine.is_dead):
            return
        command.begin(self.family)
        self.torture.note(f"{command}")
        self.machine.begin(command.arguments)
        self.command, self.began = command, time.monotonic()
        self.turned_at = self.began
        self.left -= 1
        self.started += 1
        disk = getattr(self.machine, "disk", None)
        self.writes_began = disk.writes + disk.flushes if disk else 0
        if self.started == self.aim and not self.aim_behind:
            seconds, operations = self.torture.typical.get(command.kind, TYPICAL)
            if disk:
                disk.arm(self.random.randint(1, int(1.2 * operations) + 2))
                self.crash_at = self.began + 3 * seconds + 5
            else:
                # A separate timer is used, because a turn of this loop takes as long as a short command.
                self.machine.crash_in(self.random.uniform(0, 1.2 * seconds))
                self.crash_at = self.began + 1.2 * seconds

    def _poll(self, now):
        result = self.machine.poll()
        if result is None or (result.status != 0 and self.machine.was_crashed()):
            return
        disk = getattr(self.machine, "disk", None)
        operations = disk.writes + disk.flushes - self.writes_began if disk else 0
        # The shortest time seen is used. With a longer one, most crashes would come too late.
        fastest, _ = self.torture.typical.get(self.command.kind, (now, 0))
        self.torture.typical[self.command.kind] = (min(fastest, now - self.began), operations)
        self._ended(result)
        if self.started == self.aim and self.aim_behind:
            self.crash_at = now
        self.turned_at = now
        self.next_command_at = now + self.random.uniform(0, self.torture.pace.round_s / 4)

    def _ended(self, result):
        command, self.command = self.command, None
        if result.status == EBUSY and command.may_be_busy:
            return count(self.torture.figures.refused, command.kind)
        if result.status != 0:
            raise Violation(f"marcot {command}: status {result.status}\n{result.err}")
        command.apply(self.family, self.torture.clock.tick())
        if command.exclusive and command.key == self.active:
            self.writer.history = self.family.images[self.active].history
        count(self.torture.figures.commands, command.kind)

    def after_crash(self, result):
        """The command that the crash has interrupted, if one was running and did not succeed."""
        command = self.command
        if command is None:
            return None
        if result is not None and result.status == 0:
            self._ended(result)
            return None
        count(self.torture.figures.interrupted, command.kind)
        return command


def count(counts, key):
    counts[key] = counts.get(key, 0) + 1
