"""Commands of generated sequences that the grammar does not make: several programs, one after the other.

Each function takes a sequence and returns one command line.
"""

from . import values
from .values import MIB

NO_PROGRESS = "--no-progress"


def write(sequence):
    """Data of a range or two."""
    return _changed(sequence, "write")


def discard(sequence):
    """Zeros of a range or two."""
    return _changed(sequence, "zero")


def _changed(sequence, record):
    key = sequence.world.image()
    records = _records(sequence, _size_bytes(sequence, key), [record], sequence.random.choice([1, 1, 2]))
    return f"stream make v1 {' '.join(records)} end | {_import_diff(sequence, '-', key)}"


def _import_diff(sequence, path, key):
    return f"rbd import-diff {path} {sequence.spec(*key)} {NO_PROGRESS}"


def _size_bytes(sequence, key):
    """How large an image probably is."""
    image = sequence.world.images.get(key)
    return image.size_bytes if image else 8 * MIB


def _records(sequence, size_bytes, kinds, count):
    """Records of a stream, by offset."""
    records = []
    for _ in range(count):
        offset, length = sequence.extent(size_bytes)
        kind = sequence.random.choice(kinds)
        fill = f":{sequence.random.randrange(1, 256)}" if kind == "write" else ""
        records.append((offset, f"{kind}:{offset}:{length}{fill}"))
    return [record for _, record in sorted(records)]


def content(sequence):
    """The checksum of an image or a snapshot."""
    return f"rbd export {sequence.spec(*sequence.world.image_or_snapshot())} - {NO_PROGRESS} | cksum"


def whole_copy(sequence):
    """An image with its snapshots, as a stream."""
    world = sequence.world
    place, name, _ = world.image_or_snapshot()
    dest = world.new_image()
    world.copied((place, name), None, dest, True)
    form = f"--export-format 2 {NO_PROGRESS}"
    return f"rbd export {sequence.spec(place, name)} - {form} | rbd import - {sequence.spec(*dest)} {form}"


def difference_copied(sequence):
    """What has changed in one image goes to another."""
    world = sequence.world
    place, name, snapshot = world.image_or_snapshot()
    dest = world.image()
    since = f" --from-snap {sequence.value('from-snap', {'source': (place, name)})}" if sequence.chance(50) else ""
    if dest in world.images and snapshot:
        world.images[dest].snapshots[snapshot] = world.images[dest].size_bytes
    source = sequence.spec(place, name, snapshot)
    return f"rbd export-diff {source} -{since} {NO_PROGRESS} | {_import_diff(sequence, '-', dest)}"


def merged(sequence):
    """Two differences that follow each other become one."""
    world, pick = sequence.world, sequence.random.choice
    having = sorted(key for key, image in world.images.items() if len(image.snapshots) > 1)
    if having and sequence.whole and sequence.chance(70):
        key = pick(having)
        names = list(world.images[key].snapshots)
        at = sequence.random.randrange(len(names) - 1)
        first, second = names[at : at + 2]
        since = f" --from-snap {names[at - 1]}" if at and sequence.chance(50) else ""
        made = (
            f"rbd export-diff {sequence.spec(*key, first)}{since} m1 {NO_PROGRESS}; "
            f"rbd export-diff {sequence.spec(*key, second)} --from-snap {first} m2 {NO_PROGRESS}"
        )
    else:
        middle = "to:v from:v" if sequence.chance(85) else pick(["to:v from:w", "to:v ", " from:v"])
        before, _, after = middle.partition(" ")
        sizes = [pick([8, 8, 12, 16]) * MIB for _ in range(2)]
        kinds, counts = ["write", "write", "zero"], [0, 1, 2, 3]
        parts = [" ".join(_disjoint(sequence, size, kinds, pick(counts))) for size in sizes]
        start = "from:o " if sequence.chance(30) else ""
        made = (
            f"stream make v1 {start}{before} size:{sizes[0]} {parts[0]} end > m1; "
            f"stream make v1 {after} to:x size:{sizes[1]} {parts[1]} end > m2"
        )
    return f"{made}; rm -f m3; rbd merge-diff m1 m2 m3 {NO_PROGRESS} && stream show m3"


def _disjoint(sequence, size_bytes, kinds, count):
    """Records that do not overlap: RBD writes no others."""
    kept, end = [], 0
    for record in _records(sequence, size_bytes, kinds, count):
        offset, length = map(int, record.split(":")[1:3])
        if offset >= end:
            kept.append(record)
            end = offset + length
    return kept


def merged_applied(sequence):
    """The last merged difference, or one from anywhere, is imported from its file."""
    key = sequence.world.image()
    return _import_diff(sequence, sequence.random.choice(["m3", "m3", "m2", "m1"]), key)


def stream(sequence):
    """A difference with snapshots, sizes and both banners, mostly one that fits."""
    pick = sequence.random.choice
    key = sequence.world.image()
    size = _size_bytes(sequence, key)
    image = sequence.world.images.get(key)
    names = list(image.snapshots) if image else []
    words = [pick(["v1", "v1", "v2"])]
    if sequence.chance(35):
        words.append(f"from:{pick(names) if names and sequence.chance(85) else pick(values.SNAPSHOTS)}")
    if sequence.chance(50):
        snapshot = pick(values.SNAPSHOTS)
        words.append(f"to:{snapshot}")
        if words[0] == "v2" and sequence.chance(40):
            words.append(f"protected:{pick([0, 1, 1])}")
        if image:
            image.snapshots.setdefault(snapshot, size)
    if sequence.chance(60):
        size = pick([size, size, 4 * MIB, 12 * MIB, 16 * MIB])
        words.append(f"size:{size}")
        if image:
            image.size_bytes = size
    words += _disjoint(sequence, size, ["write", "write", "zero"], pick([0, 1, 2, 3]))
    return f"stream make {' '.join(words)} end | {_import_diff(sequence, '-', key)}"


def image_stream(sequence):
    """An image as a stream: its properties, metadata and differences."""
    pick = sequence.random.choice
    dest = sequence.world.new_image()
    size = pick([4, 8, 12]) * MIB
    words = ["image", f"order:{pick([22, 22, 21])}", f"features:{pick([1, 5, 13, 29, 61, 61])}"]
    if sequence.chance(40):
        words += [f"unit:{pick([65536, 4 * MIB])}", f"count:{pick([1, 2])}"]
    if sequence.chance(50):
        words += ["meta:k=v"] if sequence.chance(50) else ["meta:k=v", "meta:owner=two"]
    words.append("END")
    chain = sequence.random.sample(values.SNAPSHOTS, pick([0, 1, 2]))
    words.append(f"diffs:{len(chain) + 1}")
    before = None
    for name in [*chain, None]:
        words.append("v2")
        words += [f"from:{before}"] if before else []
        words += [f"to:{name}", f"protected:{pick([0, 0, 1])}"] if name else []
        words.append(f"size:{size}")
        words += _disjoint(sequence, size, ["write", "write", "zero"], pick([0, 1, 2]))
        words.append("end")
        before = name
    sequence.world.created(dest, size)
    if dest in sequence.world.images:
        sequence.world.images[dest].snapshots |= {name: size for name in chain}
    made = " ".join(f"'{word}'" if " " in word else word for word in words)
    return f"stream make {made} | rbd import --export-format 2 {NO_PROGRESS} - {sequence.spec(*dest)}"


def bench(sequence):
    """A benchmark that writes, and then an image without what it wrote: those are random bytes."""
    key = sequence.world.image()
    kind = sequence.random.choice(["write", "readwrite", "rw"])
    size = sequence.random.choice(["4K", "64K", "1M", "4M"])
    pattern = sequence.random.choice(["seq", "rand", "full-seq"])
    spec = sequence.spec(*key)
    form = f"--io-type {kind} --io-size {size} --io-total 4M --io-pattern {pattern}"
    return f"rbd bench {spec} {form}; level {spec}"


def import_only(sequence):
    """An image that reads from a file until it has copied it."""
    dest = sequence.world.new_image()
    path = sequence.random.choice(["whole", "whole", "odd", "nosuchfile"])
    sequence.world.created(dest, 8 * MIB)
    if dest in sequence.world.images:
        sequence.world.migrating[dest] = None
    source = f'{{"type":"raw","stream":{{"type":"file","file_path":"\'$PWD/{path}\'"}}}}'
    return f"rbd migration prepare --import-only --source-spec '{source}' {sequence.spec(*dest)}"


def schedules(sequence):
    """All schedules of the trash; those of a pool have no order."""
    place = sequence.world.place()
    where = sequence.random.choice(["", "-R", f"--pool {place[0]}", f"--pool {place[0]} -R"])
    form = sequence.random.choice(["", "", "--format json", "--format xml"])
    return f"rbd trash purge schedule ls {where} {form}| tr ',>' '\\n\\n' | tr -d ' []{{}}' | sort"


# What stands beside the commands of the grammar, and how often it comes.
PIPES = {
    "write": (write, 16),
    "discard": (discard, 4),
    "content": (content, 6),
    "export-diff | import-diff": (difference_copied, 5),
    "export | import": (whole_copy, 2),
    "merged": (merged, 1),
    "merged | import-diff": (merged_applied, 1),
    "stream": (stream, 2),
    "image stream": (image_stream, 1),
    "bench; level": (bench, 0.5),
    "import-only": (import_only, 0.3),
    "schedules": (schedules, 0.3),
}
