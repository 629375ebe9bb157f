"""What a sequence has probably made so far, so that most of its commands find what they name.

The world is optimistic: it takes each command for one that has succeeded. It is a function of the seed
alone, never of what a program answered.
"""

import dataclasses

from . import values


@dataclasses.dataclass
class Image:
    """An image: its size, and its snapshots with their sizes."""

    size_bytes: int
    snapshots: dict = dataclasses.field(default_factory=dict)


class World:
    """Pools, namespaces, images, groups and trash; a place is a pair of a pool and a namespace."""

    def __init__(self, random):
        self.random = random
        self.places = [(pool, "") for pool in values.POOLS]
        self.images = {}
        self.groups = {}
        self.trash = []
        # {the target of a migration: its source, or None where that is a file}.
        self.migrating = {}
        # At the beginning of a sequence no mistakes are made, so that there is something to work with.
        self.careful = True

    # --- Choosing -------------------------------------------------------------------------------

    def chance(self, percent):
        """True so many times of a hundred."""
        if self.careful and (percent < 10 or percent > 80):
            return percent > 80
        return self.random.random() * 100 < percent

    def place(self):
        """A place that exists, mostly the default pool."""
        return ("rbd", "") if self.chance(55) else self.random.choice(self.places)

    def image(self):
        """(place, name) of an image that exists, or of one that mostly does not."""
        if self.images and self.chance(90):
            return self.random.choice(sorted(self.images))
        return self.place(), self.random.choice(values.IMAGES)

    def snapshot(self):
        """(place, image, snapshot): one that exists where there is any."""
        having = sorted(key for key, image in self.images.items() if image.snapshots)
        if having and self.chance(88):
            key = self.random.choice(having)
            return *key, self.random.choice(sorted(self.images[key].snapshots))
        return *self.image(), self.random.choice(values.SNAPSHOTS)

    def image_or_snapshot(self):
        """(place, image, snapshot or None)."""
        return self.snapshot() if self.chance(45) else (*self.image(), None)

    def new_image(self):
        """(place, name): mostly not in use."""
        place = self.place()
        free = [name for name in values.IMAGES if (place, name) not in self.images]
        if free and self.chance(88):
            return place, self.random.choice(free)
        return place, self.random.choice(values.IMAGES)

    def new_snapshot(self):
        """(place, image, snapshot): mostly not in use."""
        place, image = self.image()
        taken = self.images[place, image].snapshots if (place, image) in self.images else {}
        free = [name for name in values.SNAPSHOTS if name not in taken]
        if free and self.chance(90):
            return place, image, self.random.choice(free)
        return place, image, self.random.choice(values.SNAPSHOTS)

    def group(self):
        """(place, name)."""
        if self.groups and self.chance(88):
            return self.random.choice(sorted(self.groups))
        return self.place(), self.random.choice(values.GROUPS)

    def group_snapshot(self):
        """(place, group, snapshot)."""
        having = sorted(key for key, snapshots in self.groups.items() if snapshots)
        if having and self.chance(85):
            key = self.random.choice(having)
            return *key, self.random.choice(sorted(self.groups[key]))
        return *self.group(), self.random.choice(values.SNAPSHOTS)

    def trashed(self):
        """(place, name) of an image in the trash."""
        if self.trash and self.chance(90):
            return self.random.choice(self.trash)
        return self.place(), self.random.choice(values.IMAGES)

    # --- What commands do -------------------------------------------------------------------------

    def created(self, key, size_bytes):
        """A new image, empty or with content."""
        if key[0] in self.places:
            self.images.setdefault(key, Image(size_bytes))

    def copied(self, source, snapshot, key, deep):
        """A copy or a clone."""
        if source in self.images:
            from_image = self.images[source]
            size = from_image.snapshots.get(snapshot, from_image.size_bytes)
            self.created(key, size)
            if deep:
                self.images[key].snapshots |= from_image.snapshots

    def removed(self, key, to_trash):
        """An image without snapshots goes; into the trash any goes."""
        image = self.images.get(key)
        if image and (to_trash or not image.snapshots):
            del self.images[key]
            if to_trash:
                self.trash.append(key)

    def restored(self, key, name):
        """An image comes back from the trash."""
        if key in self.trash:
            self.trash.remove(key)
            self.created((key[0], name), 2 * values.OBJECT_BYTES)

    def renamed(self, source, name):
        """An image gets another name in its place."""
        if source in self.images and (source[0], name) not in self.images:
            self.images[source[0], name] = self.images.pop(source)

    def migration_prepared(self, source, dest):
        """A target takes the place of an image."""
        if source in self.images and (dest == source or dest not in self.images) and dest[0] in self.places:
            self.images[dest] = self.images.pop(source)
            self.migrating[dest] = source

    def migration_ended(self, dest, committed):
        """A target becomes an image like any other, or its source does again."""
        if dest not in self.migrating:
            return
        source = self.migrating.pop(dest)
        if not committed and dest in self.images:
            image = self.images.pop(dest)
            if source:
                self.images.setdefault(source, image)
