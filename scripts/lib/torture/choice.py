"""Chooses the next command among those that the model allows now."""
import itertools

from . import pattern
from .family import (Clone, Collect, Flatten, Protect, Remove, Rename, Resize, Rollback, SnapCreate, SnapRemove)

IMAGES_MAX = 5
SNAPSHOTS_MAX = 3
RESIZE_UNIT = 1 << 20


class Chooser:
    """Chooses at random; `floor` is the size under which the active image must not shrink."""

    serial = itertools.count(1)

    def __init__(self, family, random):
        self.family, self.random = family, random

    def choose(self, active, floor_bytes):
        """A command, with a preference for the active image."""
        makers = [self._snap_create, self._snap_create, self._clone, self._clone, self._resize, self._resize,
                  self._flatten, self._flatten, self._rollback, self._snap_remove, self._snap_remove, self._protect,
                  self._remove, self._rename, self._collect, self._collect]
        self.random.shuffle(makers)
        for make in makers:
            keys = sorted(self.family.images)
            key = active if self.random.random() < 0.6 else self.random.choice(keys)
            command = make(key, self.family.images[key], floor_bytes if key == active else 0, key == active)
            if command:
                return command
        return Collect(self.family.pools[0])

    def _pick(self, items):
        items = list(items)
        return self.random.choice(items) if items else None

    def _snap_create(self, key, image, _floor, _active):
        if len(image.snapshots) >= SNAPSHOTS_MAX or not image.history:
            return None
        return SnapCreate(key, f"s{next(self.serial)}", image)

    def _protect(self, key, image, _floor, _active):
        snap = self._pick(image.snapshots)
        if not snap:
            return None
        if not image.snapshots[snap].protected:
            return Protect(key, snap, True)
        # Children of format 2 do not need protection, but the model does not know which these are.
        return None if self.family.children(key, snap) else Protect(key, snap, False)

    def _clone(self, key, image, _floor, _active):
        snap = self._pick(image.snapshots)
        if not snap or len(self.family.images) >= IMAGES_MAX:
            return None
        child = (self.random.choice(self.family.pools), f"c{next(self.serial)}")
        return Clone(key, snap, child, image.snapshots[snap].protected)

    def _flatten(self, _key, _image, _floor, _active):
        key = self._pick(sorted(k for k, i in self.family.images.items()
                                if i.parent and not i.parent_unsure))
        return Flatten(key) if key else None

    def _resize(self, key, image, floor, _active):
        if not image.history:
            return None
        most = self.family.sectors_max * pattern.SECTOR // RESIZE_UNIT
        size = self.random.randint(max(1, floor // RESIZE_UNIT), most) * RESIZE_UNIT
        return Resize(key, size) if size != image.size else None

    def _rollback(self, key, image, floor, _active):
        snap = self._pick(name for name, s in image.snapshots.items() if s.content is not None and s.size >= floor)
        if not snap or not image.history:
            return None
        return Rollback(key, snap, image.snapshots[snap].content, image.snapshots[snap].size)

    def _snap_remove(self, key, image, _floor, _active):
        snap = self._pick(name for name, s in image.snapshots.items()
                          if not s.protected and not self.family.children(key, name))
        return SnapRemove(key, snap) if snap else None

    def _remove(self, key, image, _floor, active):
        if active or image.snapshots or len(self.family.images) < 3:
            return None
        return Remove(key)

    def _rename(self, key, image, _floor, active):
        # Children show the old name of their parent.
        if active or image.snapshots or not image.history:
            return None
        return Rename(key, f"n{next(self.serial)}")

    def _collect(self, _key, _image, _floor, _active):
        return Collect(self.random.choice(self.family.pools))
