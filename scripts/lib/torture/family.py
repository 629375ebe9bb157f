"""The model of a store: which images exist, and what they have to hold.

A command that has ended well is applied to the model. One that a crash cut off either happened or
did not: the store tells which, and then the model and the store must agree in everything.
"""
import json
from dataclasses import dataclass, field

from . import pattern
from .history import NEVER, History, Request, Violation

@dataclass
class Snapshot:
    """`content` is known after the first read. Before that it follows from `since`, `sent` and `ended`."""

    size: int
    content: object = None
    since: object = None
    sent: float = 0
    ended: float = NEVER
    protected: bool = False
    # The parent of the image when the snapshot was taken. A flatten may have removed it.
    parent: tuple = None


@dataclass
class Image:
    """A clone of a snapshot whose content is not known yet has no `history`."""

    size: int
    history: object
    snapshots: dict = field(default_factory=dict)
    # Pool, image and snapshot.
    parent: tuple = None
    # True after a rollback: the store says whether the image has this parent or none.
    parent_unsure: bool = False
    # The snapshot that a clone without history was made from.
    origin: Snapshot = None


class Family:
    """Images by (pool, name)."""

    def __init__(self, machine, clock, sectors_max):
        self.machine, self.clock, self.sectors_max = machine, clock, sectors_max
        self.pools = machine.pools
        self.images = {}

    def run(self, *arguments):
        """A command that must succeed."""
        result = self.machine.run(list(arguments))
        if result.status != 0:
            raise Violation(f"marcot {' '.join(arguments)}: status {result.status}\n{result.err}")
        return result.out

    def begin(self):
        """The first image of a new store."""
        self.machine.make_pools(self.run)
        size, pool = self.sectors_max * pattern.SECTOR, self.pools[0]
        self.run("create", f"{pool}/first", "--size", f"{size}B")
        self.images[pool, "first"] = Image(size, History(pattern.nothing(self.sectors_max)))

    def children(self, key, snap):
        """Images that name the snapshot as their parent, or have a snapshot that may."""
        parent = (*key, snap)
        return [k for k, image in self.images.items()
                if image.parent == parent or any(s.parent == parent for s in image.snapshots.values())]

    def look(self):
        """The images that the store has; None for an image that cannot be read."""
        found = {}
        for pool in self.pools:
            for name in json.loads(self.run("ls", "-p", pool, "--format", "json")):
                found[pool, name] = self._look_at(f"{pool}/{name}")
        return found

    def _look_at(self, spec):
        result = self.machine.run(["info", spec, "--format", "json"])
        if result.status != 0:
            return None
        info = json.loads(result.out)
        parent = info.get("parent")
        snaps = {}
        if info["snapshot_count"]:
            for snap in json.loads(self.run("snap", "ls", spec, "--format", "json")):
                snaps[snap["name"]] = (snap["size"], snap["protected"])
        return {
            "size": info["size"],
            "parent": (parent["pool"], parent["image"], parent["snapshot"]) if parent else None,
            "snapshots": snaps,
        }

    def compare(self, found):
        """Raises Violation unless the store has the same images as the model."""
        for key, image in self.images.items():
            if image.parent_unsure and found.get(key) and found[key]["parent"] is None:
                image.parent = None
            image.parent_unsure = False
        wanted = {
            key: {
                "size": image.size,
                "parent": image.parent,
                "snapshots": {
                    name: (snap.size, "true" if snap.protected else "false") for name, snap in image.snapshots.items()
                },
            }
            for key, image in self.images.items()
        }
        if wanted != found:
            raise Violation(f"the store has\n  {found}\nshould have\n  {wanted}")


class Command:
    """A command on an image; `arguments` are those of marcot."""

    # The writer has to pause while the command runs.
    exclusive = False
    # The server may still have an image open that was read through it a moment ago.
    may_be_busy = False

    def __init__(self, kind, key, *arguments):
        self.kind, self.key, self.arguments = kind, key, list(arguments)
        self.sent = 0

    def spec(self):
        return "/".join(self.key)

    def __str__(self):
        return " ".join(self.arguments)

    def begin(self, family):
        """Called when the command is sent."""
        self.sent = family.clock.tick()

    def apply(self, family, ended):
        """Notes that the command has happened; `ended` is the time when its end was noticed, or NEVER."""

    def happened(self, found):
        """After a crash: has the command happened?"""
        raise NotImplementedError

    def again(self, found):
        """After a crash: must the command be run again before anything else?"""
        return False


class SnapCreate(Command):
    def __init__(self, key, snap, _image):
        super().__init__("snap create", key, "snap", "create", "--no-progress", f"{'/'.join(key)}@{snap}")
        self.snap = snap

    def apply(self, family, ended):
        image = family.images[self.key]
        image.snapshots[self.snap] = Snapshot(image.size, since=image.history, sent=self.sent, ended=ended,
                                               parent=image.parent)

    def happened(self, found):
        return self.snap in found[self.key]["snapshots"]


class Protect(Command):
    def __init__(self, key, snap, protect):
        word = "protect" if protect else "unprotect"
        super().__init__(f"snap {word}", key, "snap", word, f"{'/'.join(key)}@{snap}")
        self.snap, self.protect = snap, protect

    def apply(self, family, ended):
        family.images[self.key].snapshots[self.snap].protected = self.protect

    def happened(self, found):
        return found[self.key]["snapshots"][self.snap][1] == ("true" if self.protect else "false")

    def again(self, found):
        # It may be marked, which is shown as protected, and is refused to clones then.
        return not self.protect and not self.happened(found)


class SnapRemove(Command):
    may_be_busy = True

    def __init__(self, key, snap):
        super().__init__("snap rm", key, "snap", "rm", "--no-progress", f"{'/'.join(key)}@{snap}")
        self.snap = snap

    def apply(self, family, ended):
        del family.images[self.key].snapshots[self.snap]

    def happened(self, found):
        return self.snap not in found[self.key]["snapshots"]

    def again(self, found):
        # It may be marked, and is refused to clones then.
        return not self.happened(found)


class Clone(Command):
    def __init__(self, key, snap, child, protected):
        options = () if protected else ("--rbd-default-clone-format", "2")
        super().__init__("clone", key, "clone", *options, f"{'/'.join(key)}@{snap}", "/".join(child))
        self.snap, self.child = snap, child

    def apply(self, family, ended):
        snapshot = family.images[self.key].snapshots[self.snap]
        family.images[self.child] = Image(snapshot.size, None, parent=(*self.key, self.snap), origin=snapshot)

    def happened(self, found):
        return self.child in found


class Flatten(Command):
    def __init__(self, key):
        super().__init__("flatten", key, "flatten", "--no-progress", "/".join(key))

    def apply(self, family, ended):
        family.images[self.key].parent = None
        family.images[self.key].parent_unsure = False

    def happened(self, found):
        return found[self.key]["parent"] is None


class Resize(Command):
    def __init__(self, key, size):
        super().__init__("resize", key, "resize", "--no-progress", "--allow-shrink", "/".join(key), "--size", f"{size}B")
        self.size = size
        self.zeros = None

    def begin(self, family):
        super().begin(family)
        image = family.images[self.key]
        if self.size < image.size and image.history:
            first, end = self.size // pattern.SECTOR, image.size // pattern.SECTOR
            self.zeros = Request(0, first, end - first, self.sent, fua=True)
            image.history.add(self.zeros)

    def apply(self, family, ended):
        family.images[self.key].size = self.size
        if self.zeros:
            self.zeros.acknowledged = ended

    def happened(self, found):
        return found[self.key]["size"] == self.size


class Rollback(Command):
    exclusive = True

    def __init__(self, key, snap, content, size):
        super().__init__("snap rollback", key, "snap", "rollback", "--no-progress", f"{'/'.join(key)}@{snap}")
        self.snap, self.content, self.size = snap, content, size

    def apply(self, family, ended):
        image = family.images[self.key]
        image.size, image.history = self.size, History(self.content[:])
        image.parent, image.parent_unsure = image.snapshots[self.snap].parent, True

    def happened(self, found):
        # Only the content shows this; see `Torture.verify_image`.
        return False


class Remove(Command):
    may_be_busy = True

    def __init__(self, key):
        super().__init__("rm", key, "rm", "--no-progress", "/".join(key))

    def apply(self, family, ended):
        del family.images[self.key]

    def happened(self, found):
        return self.key not in found

    def again(self, found):
        return self.key in found and found[self.key] is None


class Rename(Command):
    def __init__(self, key, name):
        super().__init__("mv", key, "mv", "/".join(key), f"{key[0]}/{name}")
        self.to = (key[0], name)

    def apply(self, family, ended):
        family.images[self.to] = family.images.pop(self.key)

    def happened(self, found):
        return self.to in found


class Collect(Command):
    def __init__(self, pool):
        super().__init__("gc", (pool, ""), "gc", "--no-progress", pool)

    def happened(self, found):
        return True
