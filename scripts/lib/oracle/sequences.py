"""Generated sequences of `rbd` commands. A sequence is a function of its number."""

import random

from . import grammar, values
from .pipes import PIPES
from .values import MIB, OBJECT_BYTES
from .world import World

COMMANDS_PER_SEQUENCE = 30
# How often a command comes, beside 2 for all others.
WEIGHTS = {
    "create": 14,
    "snap create": 14,
    "snap protect": 9,
    "clone": 12,
    "resize": 7,
    "import": 4,
    "copy": 4,
    "deep copy": 4,
    "flatten": 4,
    "remove": 4,
    "rename": 3,
    "snap rollback": 5,
    "snap remove": 5,
    "snap unprotect": 4,
    "snap list": 3,
    "info": 5,
    "list": 5,
    "children": 4,
    "disk-usage": 4,
    "diff": 4,
    "trash move": 4,
    "trash restore": 3,
    "trash list": 3,
    "namespace create": 3,
    "group create": 3,
    "group image add": 4,
    "group snap create": 4,
    "lock add": 1,
    "lock remove": 1,
    "bench": 1,
    "watch": 1,
    "perf image iostat": 0.5,
    "perf image iotop": 0.3,
    "merge-diff": 1,
    "config global get": 0.5,
    "config global list": 0.5,
    "config global remove": 0.5,
    "config global set": 0.5,
    "migration prepare": 2,
    "migration execute": 1,
    "migration commit": 1,
    "migration abort": 1,
    "trash purge schedule add": 0.5,
    "trash purge schedule remove": 0.5,
    # Shown in no order: the pipe `schedules` sorts it.
    "trash purge schedule list": 0,
}
# A sequence may have a theme: some commands come more often, by their first words.
THEMES = [
    {},
    {},
    {"migration": 8, "import-only": 8, "status": 4, "clone": 2},
    {"merge": 10, "merged": 12, "stream": 4, "export-diff": 3, "image stream": 6, "import-diff": 2},
    {"config global": 8, "config": 2},
    {"trash purge schedule": 12, "schedules": 20, "trash": 2, "namespace": 2},
    {"group": 5},
    {"namespace": 6},
    {"lock": 5, "status": 3},
    {"bench": 8, "watch": 5, "perf": 5, "status": 3},
    {"snap": 3, "children": 2, "trash": 3},
]
# Options that a command needs, or that keep it short.
WANTED = {
    "create": ["size"],
    "resize": ["size"],
    "snap limit set": ["limit"],
    "bench": ["io-type", "io-total"],
    "perf image iostat": ["iterations"],
}
# Options that decide where data lies; sequences that compare extents leave them out.
LAYOUT = {"stripe-unit", "stripe-count", "object-size", "order", "sparse-size"}
# Commands that tell extents; RBD tells those of part of an object in another way (docs/rbd-compatibility.md).
EXTENTS = {"diff", "disk-usage", "export-diff", "export-diff | import-diff"}
# There is no mirroring, and there are no journals. Sources of images are given by a pipe.
OFFERED_NOT = {"mirror-image-mode", "journal-pool", "import-only", "source-spec", "source-spec-path"}


class Sequence:
    """Makes the commands of one sequence.

    Every other sequence writes whole objects, and then compares extents too.
    """

    def __init__(self, number):
        self.random = random.Random(f"sequence {number}")
        self.world = World(self.random)
        self.whole = number % 2 == 0
        self.grammar = {command.name: command for command in grammar.commands()}
        self.files = 0
        weights = {name: WEIGHTS.get(name, 2) for name in self.grammar}
        weights |= {name: weight for name, (_, weight) in PIPES.items()}
        for words, factor in self.random.choice(THEMES).items():
            weights |= {name: weights[name] * factor for name in weights if name.startswith(words)}
        if not self.whole:
            weights = {name: weight for name, weight in weights.items() if name not in EXTENTS}
        self.weights = weights

    def chance(self, percent):
        """True so many times of a hundred."""
        return self.world.chance(percent)

    # --- Names as words -----------------------------------------------------------------------------

    @staticmethod
    def spec(place, name, snapshot=None, full=True):
        """`[POOL/[NAMESPACE/]]NAME[@SNAPSHOT]`."""
        pool, namespace = place
        before = f"{pool}/{namespace}/" if namespace else f"{pool}/" if full or pool != "rbd" else ""
        return before + name + (f"@{snapshot}" if snapshot else "")

    def named(self, place, name, snapshot=None, options=("pool", "namespace", "image", "snap")):
        """(words, options) that name an image, a snapshot or a group, in one of the forms that RBD takes."""
        pool, namespace, image, snap = options
        if self.chance(4):
            return [self.random.choice(values.ODD_SPECS)], []
        form = self.random.randrange(10)
        if form < 7:
            return [self.spec(place, name, snapshot, self.chance(30))], []
        given = [f"--{pool}", place[0]] if place[0] != "rbd" or self.chance(30) else []
        given += [f"--{namespace}", place[1]] if place[1] else []
        if snapshot and (form == 7 or snap is None):
            name, snapshot = f"{name}@{snapshot}", None
        given += [f"--{snap}", snapshot] if snapshot else []
        if form == 8 or image is None:
            return [name], given
        return [], [*given, f"--{image}", name]

    def place_named(self, place, takes_namespace):
        """(words, options) that name a pool, and a namespace where one is taken."""
        pool, namespace = place
        if self.chance(5):
            return [self.random.choice(["nopool", "rbd/nons", "rbd/", "rbd/ns/x"])], []
        if not takes_namespace:
            return [pool], []
        if self.chance(60):
            return ([f"{pool}/{namespace}"] if namespace else [pool] if self.chance(60) else []), []
        return [], ["--pool", pool, *(["--namespace", namespace] if namespace else [])]

    # --- Words and options of a command ---------------------------------------------------------------

    def words_of(self, command, target):
        """(words, options) for all places of a command; what they name is noted in `target`."""
        words, options = [], []
        for kind in command.words:
            more, given = self.word(command, kind, target)
            words += more
            options += given
        return words, options

    def word(self, command, kind, target):
        """(words, options) for one place."""
        world, pick = self.world, self.random.choice
        if kind.startswith("dest-image"):
            place, name = world.new_image()
            if command.name == "migration prepare" and self.chance(20) and "source" in target:
                place, name = target["source"]
            if command.name == "rename" and self.chance(80) and "source" in target:
                place = target["source"][0]
            target["dest"] = place, name
            return self.named(place, name, None, ("dest-pool", "dest-namespace", "dest", None))
        if kind == "image-spec" and command.name == "create":
            target["dest"] = world.new_image()
            return self.named(*target["dest"])
        if kind == "dest-snap-spec":
            place, name, _ = target["snapshot"]
            renamed = pick(values.SNAPSHOTS)
            target["renamed"] = renamed
            return [self.spec(place, name, renamed, self.chance(20))], []
        if kind == "snap-spec" and command.name == "snap create":
            target["snapshot"] = world.new_snapshot()
            return self.named(*target["snapshot"])
        if kind in ("snap-spec", "source-snap-spec"):
            target["snapshot"] = world.snapshot()
            return self.named(*target["snapshot"])
        if kind in ("image-or-snap-spec", "source-image-or-snap-spec"):
            place, name, snapshot = world.image_or_snapshot()
            if command.name == "disk-usage" and self.chance(20):
                return [], []
            if command.name == "migration prepare" and self.chance(90):
                snapshot = None
            target["source"], target["from"] = (place, name), snapshot
            return self.named(place, name, snapshot)
        if kind in ("image-spec", "source-image-spec"):
            target["source"] = world.image()
            if command.name.startswith("migration") and world.migrating and self.chance(85):
                target["source"] = pick(sorted(world.migrating))
            form = ("image-pool", "image-namespace", "image", None)
            ordinary = ("pool", "namespace", "image", "snap")
            return self.named(*target["source"], None, form if "group" in target else ordinary)
        if kind in ("group-spec", "source-group-spec", "dest-group-spec", "group-snap-spec"):
            return self.group_word(command, kind, target)
        if kind == "dest-snap":
            target["renamed"] = pick(values.SNAPSHOTS)
            return [target["renamed"]], []
        if kind in ("pool-name", "pool-spec"):
            place = world.place()
            if command.name == "namespace create":
                place = place[0], pick(values.NAMESPACES)
            target["place"] = place
            return self.place_named(place, kind == "pool-spec")
        if kind == "image-id":
            target["trashed"] = world.trashed()
            place, name = target["trashed"]
            where = "/".join(filter(None, place))
            before = "" if place == ("rbd", "") else where + "/"
            return [f'"{before}$(ident trash {where} {name})"'], []
        if kind == "path-name":
            return self.path(command)
        return self.small_word(command, kind, target), []

    def small_word(self, command, kind, target):
        """A word that names nothing in a pool."""
        pick = self.random.choice
        if kind == "key":
            if command.name.startswith("config global") and self.chance(92):
                # The others change what the client does from then on.
                return [pick(["rbd_cache", "rbd_cache_size", "rbd_readahead_max_bytes", "rbd_qos_iops_limit"])]
            if command.name.startswith("config"):
                return [pick(values.CONFIG_KEYS) if self.chance(92) else pick(["rbd_bogus", "cache"])]
            return [pick(values.META_KEYS)]
        if kind == "value":
            return [pick(values.CONFIG_VALUES if command.name.startswith("config") else values.META_VALUES)]
        if kind == "features":
            return self.random.sample(values.FEATURES, self.random.choice([1, 1, 2]))
        if kind == "lock-id":
            return [pick(["id1", "id2", "two words"])]
        if kind == "locker":
            return [f'"$(ident locker {self.spec(*target["source"])})"']
        if kind == "config-entity":
            return [pick(["client", "client", "client.admin", "global", "client.x"] if self.chance(92) else ["osd", "x"])]
        if kind == "interval":
            return [pick(["1d", "2h", "30m", "90m", "7d"] if self.chance(90) else ["", "1x", "1.5h", "0h", "-1d"])]
        if kind == "start-time":
            times = ["14:00", "04:05:06", "2026-11-28T04:00"] if self.chance(85) else ["25:00", "14:60"]
            return [pick(times)] if self.chance(40) else []
        if kind in ("diff1-path", "diff2-path"):
            return [pick(["m1", "m2", "m3"] if self.chance(90) else ["nosuchfile", "-", "whole"])]
        raise AssertionError(f"{command.name}: what is <{kind}>?")

    def group_word(self, command, kind, target):
        """(words, options) that name a group or a group's snapshot."""
        if kind == "group-snap-spec":
            place, name, snapshot = self.world.group_snapshot()
            if command.name == "group snap create":
                snapshot = self.random.choice(values.SNAPSHOTS)
            target["group"], target["group snapshot"] = (place, name), snapshot
            return self.named(place, name, snapshot, ("pool", "namespace", "group", "snap"))
        if kind == "dest-group-spec":
            place, name = target["group"][0], self.random.choice(values.GROUPS)
            target["dest group"] = place, name
            return self.named(place, name, None, ("dest-pool", "dest-namespace", "dest-group", None))
        place, name = self.world.group()
        if command.name == "group create":
            place, name = self.world.place(), self.random.choice(values.GROUPS)
        target["group"] = place, name
        image = command.name in ("group image add", "group image remove")
        form = ("group-pool", "group-namespace") if image else ("pool", "namespace")
        return self.named(place, name, None, (*form, "group", None))

    def path(self, command):
        """(words, options): a file to read or to write."""
        if command.name == "import":
            odd = [] if self.whole else ["odd", "odd", "empty"]
            return [self.random.choice(["whole", "whole", "nosuchfile", *odd])], []
        if command.name == "merge-diff":
            return ["m4"], []
        if command.name == "import-diff":
            return [self.random.choice(["nosuchfile", "whole"])], []
        self.files += 1
        return [f"f{self.files}" if self.chance(80) else self.random.choice(["f1", "nodir/f"])], []

    def value(self, option, target):
        """A value for an option."""
        if option == "size":
            return self.random.choice(values.SIZES if self.chance(93) else values.BAD_SIZES)
        if option == "from-snap":
            image = self.world.images.get(target.get("source"))
            return self.random.choice(sorted(image.snapshots) if image and image.snapshots else values.SNAPSHOTS)
        if option == "snap-id" and self.chance(70):
            place, name, snapshot = target.get("snapshot") or self.world.snapshot()
            return f'"$(ident snap {self.spec(place, name)} {snapshot})"'
        if option == "image-id" and self.chance(70):
            place, name = target.get("source") or self.world.image()
            return f'"$(ident image {self.spec(place, name)})"'
        good, bad = values.VALUES[option]
        return self.random.choice(bad if bad and self.chance(12) else good)

    def options_of(self, command, target):
        """Options beside those that name things."""
        wanted = WANTED.get(command.name, [])
        names = {"pool", "namespace", "image", "snap", "group", "path"}
        options = []
        for option, takes_value in command.options:
            if option in names or option in OFFERED_NOT:
                continue
            if option.startswith(("dest", "group-", "image-pool", "image-namespace")):
                continue
            if self.whole and option in LAYOUT:
                continue
            percent = 97 if option in wanted else 60 if option in ("no-progress", "allow-shrink") else 9
            if option == "format":
                percent = 40
            if option == "pretty-format":
                percent = 60 if any("json" in word or "xml" in word for word in options) else 3
            if not self.chance(percent):
                continue
            form = f"--{option}"
            if option in command.short and self.chance(30):
                form = f"-{command.short[option]}"
            if not takes_value:
                options.append(form)
                continue
            value = self.value(option, target)
            target[option] = value
            joined = form.startswith("--") and "$(" not in value and self.chance(20)
            options += [f"{form}={value}"] if joined else [form, value]
        if command.name in ("clone", "deep copy") and self.chance(45):
            options += ["--rbd-default-clone-format", self.value("rbd-default-clone-format", target)]
        return options

    def spoilt(self, words, options):
        """Sometimes one mistake: a word too much or too few, an unknown or repeated option."""
        if self.chance(95):
            return words, options
        mistake = self.random.randrange(5)
        if mistake == 0:
            return [*words, "extra"], options
        if mistake == 1:
            return words[:-1], options
        if mistake == 2:
            return words, [*options, "--bogus"]
        if mistake == 3 and options:
            return words, [*options, *options[-2:]]
        return words, [*options, "--format"]

    # --- Commands -----------------------------------------------------------------------------------

    def command(self, command):
        """One command line of the grammar."""
        target = {}
        words, named = self.words_of(command, target)
        words, options = self.spoilt(words, named + self.options_of(command, target))
        name = self.random.choice([command.name, command.name, *command.aliases])
        both = [words, options] if self.chance(70) else [options, words]
        line = values.quoted(["rbd", *name.split(" "), *both[0], *both[1]])
        effects(self.world, command.name, target)
        if command.name in ("export", "export-diff") and words and self.chance(80):
            # The file, if there is one.
            path = words[-1]
            look = "cksum" if command.name == "export" else "stream show"
            if command.name == "export" and not self.whole and "export-format" in target:
                # It has extents.
                look = "head -c 12"
            line += f"; test ! -f {path} || {look} < {path}" if path.startswith("f") else ""
        if command.name == "merge-diff":
            line = f"rm -f m4; {line} && stream show m4"
        if command.name.startswith("perf"):
            # Without requests it waits for some.
            line = line.replace("rbd perf", "timeout 1 rbd perf", 1) + "; echo $?"
        return line

    def extent(self, size_bytes):
        """(offset, length) of a write: whole objects, or any blocks."""
        if self.whole:
            objects = max(size_bytes // OBJECT_BYTES, 1)
            return self.random.randrange(objects) * OBJECT_BYTES, OBJECT_BYTES
        offset = self.random.randrange(max(size_bytes // 512, 1)) * 512
        length = self.random.choice([512, 4096, 5000, 65536, MIB])
        return offset, max(min(length, size_bytes - offset), 1)

    def made(self, name):
        """A command line of the grammar or of a pipe."""
        return PIPES[name][0](self) if name in PIPES else self.command(self.grammar[name])

    def lines(self):
        """The commands of the sequence; the last one shows all that is left."""
        made = [
            "head -c 8388608 /dev/zero | tr '\\0' x > whole",
            "head -c 3000000 /dev/zero | tr '\\0' y > odd; head -c 9000 /dev/zero >> odd; : > empty",
        ]
        beginning = ["create", "write", "snap create", "snap protect", "clone", "write"]
        if self.chance(40):
            beginning.insert(0, "namespace create")
        if self.chance(50):
            beginning += ["create", "write"]
        for first in beginning:
            made.append(self.made(first))
        self.world.careful = False
        while len(made) < COMMANDS_PER_SEQUENCE:
            names = list(self.weights)
            name = self.random.choices(names, [self.weights[each] for each in names])[0]
            made.append(self.made(name))
        places = ["/".join(filter(None, place)) for place in self.world.places]
        return [*made, f"audit {' '.join(places)}"]


def effects(world, name, target):
    """Notes what a command has done, if it succeeded."""
    snapshot = target.get("snapshot")
    image = world.images.get(snapshot[:2]) if snapshot else None
    source = target.get("source")
    if name in ("create", "import"):
        try:
            size = values.size_bytes(target.get("size", "8M"))
        except ValueError:
            return
        world.created(target["dest"], size)
    elif name == "clone":
        world.copied(snapshot[:2], snapshot[2], target["dest"], False)
    elif name in ("copy", "deep copy") and source:
        world.copied(source, target["from"], target["dest"], name == "deep copy")
    elif name == "resize" and source in world.images:
        try:
            world.images[source].size_bytes = values.size_bytes(target.get("size", "8M"))
        except ValueError:
            return
    elif name == "snap create" and image:
        image.snapshots[snapshot[2]] = image.size_bytes
    elif name == "snap remove" and image:
        image.snapshots.pop(snapshot[2], None)
    elif name == "snap purge" and source in world.images:
        world.images[source].snapshots.clear()
    elif name == "snap rename" and image and snapshot[2] in image.snapshots:
        image.snapshots[target["renamed"]] = image.snapshots.pop(snapshot[2])
    elif name == "snap rollback" and image and snapshot[2] in image.snapshots:
        image.size_bytes = image.snapshots[snapshot[2]]
    elif name in ("remove", "trash move"):
        world.removed(source, name == "trash move")
    elif name == "rename":
        world.renamed(source, target["dest"][1])
    elif name == "migration prepare" and source:
        world.migration_prepared(source, target["dest"])
    elif name in ("migration commit", "migration abort"):
        world.migration_ended(source, name == "migration commit")
    elif name == "trash restore":
        world.restored(target["trashed"], target["trashed"][1])
    elif name == "namespace create":
        if target["place"] not in world.places:
            world.places.append(target["place"])
    elif name == "group create":
        world.groups.setdefault(target["group"], [])
    elif name == "group snap create" and target["group"] in world.groups:
        world.groups[target["group"]].append(target["group snapshot"])
