"""Many processes clone on both hosts while others unprotect, protect, flatten, remove and collect.

Every command is noted with the time when it began and when it ended. A command must not contradict another one that
had ended before it began: a snapshot with a child is neither unprotected nor removed, every child is listed, and
every clone keeps its content.
"""
import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from .hosts import COMMAND_S_MAX, POOL, Job, Violation

# The pool of a host's own, in its directory.
LOCAL_POOL = "vms"
TEMPLATE_BYTES = 1 << 20
TEMPLATES = 4
# Processes at once.
PROCESSES_MAX = 24
ENOENT, EBUSY, EINVAL = 2, 16, 22
NEVER = float("inf")
# Between two unprotects of a snapshot.
UNPROTECT_INTERVAL_S_MAX = 1
# Before a command that found an image in use is run again.
RETRY_S = 0.1


@dataclass
class Clone:
    """A clone that was acknowledged."""

    host: object
    name: str
    # When the command began and ended that made it.
    began: float
    born: float
    # When a command began that ends its need of the parent, and when that command had ended.
    leaves: float = NEVER
    left: float = NEVER
    removed: bool = False

    def needs(self, began, ended):
        """True where it was a child from the beginning of a command until its end."""
        return self.born < began and ended < self.leaves


@dataclass
class Template:
    """A protected snapshot."""

    image: str
    name: str
    clones: list = field(default_factory=list)
    # Unprotected for good, or for a while: (when unprotecting had ended, when protecting began).
    unprotected: list = field(default_factory=list)

    @property
    def snapshot(self):
        return f"{self.image}@{self.name}"


class Clones:
    """The templates, and what was done with them."""

    def __init__(self, hosts, random):
        self.hosts, self.random = hosts, random
        self.lock = threading.Lock()
        self.templates = []
        self.counts = {}
        self.content = b""
        self.stop = threading.Event()

    def run(self, count):
        """Makes that many clones. Returns what was done, for people."""
        self._prepare()
        others = [Job(lambda template=template: self._unprotect_and_protect(template)) for template in self.templates]
        others += [Job(lambda host=host: self._collect(host)) for host in self.hosts]
        others.append(Job(self._look))
        try:
            with ThreadPoolExecutor(min(count, PROCESSES_MAX)) as pool:
                done = [pool.submit(self._life, number, self._choices()) for number in range(count)]
                for life in done:
                    life.result()
        finally:
            self.stop.set()
        for job in others:
            job.ended()
        self._judge_history()
        self._judge_end()
        return ", ".join(f"{number} {what}" for what, number in sorted(self.counts.items()))

    def _prepare(self):
        first = self.hosts[0]
        self.content = self.random.randbytes(TEMPLATE_BYTES)
        path = f"{first.directory}/template.raw"
        with open(path, "wb") as file:
            file.write(self.content)
        for host in self.hosts:
            host.works("pool", "create", LOCAL_POOL)
        for number in range(TEMPLATES):
            template = Template(f"{POOL}/template-{number}", "1")
            here = f"{first.options.directory}/here/template.raw"
            first.works("import", "--no-progress", here, template.image)
            first.works("snap", "create", "--no-progress", template.snapshot)
            first.works("snap", "protect", template.snapshot)
            self.templates.append(template)

    def _choices(self):
        """What one process does. Chosen here, so that a seed decides it."""
        host, template = self.random.choice(self.hosts), self.random.choice(self.templates)
        # Some snapshots are without children now and then, so that they can be unprotected.
        ends = ("keep", "flatten", "remove") if template is self.templates[0] else ("flatten", "remove")
        return host, template, self.random.choice((POOL, LOCAL_POOL)), self.random.choice(ends)

    def _count(self, what):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def _life(self, number, choices):
        """A clone, and its end."""
        host, template, pool, end = choices
        name = f"{pool}/{host.name}-{number}"
        # While the snapshot is not protected, or is being made anew, clones are refused.
        while (ran := host.run("clone", template.snapshot, name)).status in (EINVAL, ENOENT):
            self._count("clones refused")
            time.sleep(RETRY_S)
        if ran.status:
            raise Violation(f"on host {host.name}: {ran}")
        clone = Clone(host, name, ran.began, ran.ended)
        with self.lock:
            template.clones.append(clone)
        self._count("clones")
        self._must_hold(clone)
        if end == "keep":
            return
        # Clones in the bucket are flattened and removed by any host.
        by = self.random.choice(self.hosts) if pool == POOL else host
        clone.leaves = time.monotonic()
        if end == "flatten":
            self._until_free(by, "flatten", "--no-progress", name)
            self._count("flattened")
        else:
            clone.removed = True
            self._until_free(by, "rm", "--no-progress", name)
            self._count("removed")
        clone.left = time.monotonic()
        if end == "flatten":
            self._must_hold(clone)

    @staticmethod
    def _until_free(host, *words):
        """Runs a command until its image is not in use by another one."""
        until = time.monotonic() + COMMAND_S_MAX
        while (ran := host.run(*words)).status == EBUSY and time.monotonic() < until:
            time.sleep(RETRY_S)
        if ran.status:
            raise Violation(f"on host {host.name}: {ran}")
        return ran

    def _must_hold(self, clone):
        """Fails unless a clone has its content."""
        found = clone.host.works("export", "--no-progress", clone.name, "-")
        if found != self.content:
            sums = [hashlib.sha256(data).hexdigest()[:16] for data in (found, self.content)]
            raise Violation(f"{clone.name} on host {clone.host.name} has {len(found)} bytes, {sums[0]} and not {sums[1]}")

    def _unprotect_and_protect(self, template):
        while not self.stop.is_set():
            host = self.random.choice(self.hosts)
            time.sleep(self.random.uniform(0, UNPROTECT_INTERVAL_S_MAX))
            ran = host.run("snap", "unprotect", template.snapshot)
            if ran.status == EBUSY:
                self._count("unprotects refused")
                continue
            if ran.status:
                raise Violation(f"on host {host.name}: {ran}")
            self._count("unprotects")
            self._check_no_child(template, ran)
            if self.random.random() < 0.5:
                self._make_anew(template)
            began = time.monotonic()
            self._until_free(self.random.choice(self.hosts), "snap", "protect", template.snapshot)
            with self.lock:
                template.unprotected.append((ran.ended, began))

    def _make_anew(self, template):
        """Removes an unprotected snapshot, and takes another one of that name."""
        host = self.random.choice(self.hosts)
        ran = self._until_free(host, "snap", "rm", "--no-progress", template.snapshot)
        self._count("snapshots removed")
        self._check_no_child(template, ran)
        self._until_free(self.random.choice(self.hosts), "snap", "create", "--no-progress", template.snapshot)

    def _check_no_child(self, template, ran):
        with self.lock:
            needing = [clone.name for clone in template.clones if clone.needs(ran.began, ran.ended)]
        if needing:
            raise Violation(f"{ran} though {needing} are children of {template.snapshot}")

    def _collect(self, host):
        while not self.stop.is_set():
            for pool in (POOL, LOCAL_POOL):
                self._until_free(host, "gc", "--no-progress", pool)
                self._count("collections")

    def _look(self):
        """Every child is listed, by every host, and none that is gone."""
        while not self.stop.is_set():
            self._look_once(self.random.choice(self.hosts), self.random.choice(self.templates))

    def _look_once(self, host, template):
        ran = host.run("children", template.snapshot)
        if ran.status == ENOENT:
            # It is being made anew.
            return
        if ran.status:
            raise Violation(f"on host {host.name}: {ran}")
        listed = {line.split(" ")[0] for line in ran.out.decode().splitlines()}
        with self.lock:
            clones = list(template.clones)
        for clone in clones:
            if clone.needs(ran.began, ran.ended) and clone.name not in listed:
                raise Violation(f"host {host.name} does not list {clone.name} as a child of {template.snapshot}: {listed}")
            if clone.left < ran.began and clone.name in listed:
                raise Violation(f"host {host.name} still lists {clone.name} as a child of {template.snapshot}")
        self._count("lists of children")

    def _judge_history(self):
        """No clone was made of a snapshot while that was not protected."""
        for template in self.templates:
            for clone in template.clones:
                for unprotected, protected in template.unprotected:
                    if unprotected < clone.began and clone.born < protected:
                        raise Violation(f"{clone.name} was cloned though {template.snapshot} was not protected")

    def _judge_end(self):
        for template in self.templates:
            kept = [clone for clone in template.clones if clone.leaves == NEVER]
            for host in self.hosts:
                self._look_once(host, template)
                for words in (("unprotect",), ("rm", "--no-progress")):
                    ran = host.run("snap", *words, template.snapshot)
                    if kept and ran.status != EBUSY:
                        raise Violation(f"on host {host.name}, though it has children: {ran}")
                    if not kept:
                        break
            for clone in template.clones:
                if not clone.removed:
                    self._must_hold(clone)
        for host in self.hosts:
            for pool in (POOL, LOCAL_POOL):
                host.works("gc", "--no-progress", pool)
                host.check(pool)
        self._leave()

    def _leave(self):
        """Without children, all snapshots can be removed."""
        for template in self.templates:
            for clone in template.clones:
                if not clone.removed:
                    clone.host.works("rm", "--no-progress", clone.name)
            host = self.random.choice(self.hosts)
            host.run("snap", "unprotect", template.snapshot)
            host.works("snap", "rm", "--no-progress", template.snapshot)
            host.works("rm", "--no-progress", template.image)
        self.hosts[0].works("gc", "--no-progress", POOL)
        for host in self.hosts:
            host.check(POOL)
