"""Records of a pool, and where its bytes come from. A part of read_pool.py; the standard library is enough.

A pool in a directory: sections 1 to 3 of docs/format.md. A pool in a bucket: section 12.
"""
import struct
import sys
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

POOL, HEAD, NAME, OBJECT, PART_OF_LOG, NAMES, NAMESPACES = 2, 3, 4, 7, 8, 9, 10
KINDS = {1: "d", 2: "m", 3: "t"}
LEVEL = 2  # of the format: section 10
SEGMENT_BYTES, DIRECTORIES, CHUNK_BYTES, CHUNKS_MAX = 32 << 20, 64, 1 << 20, 64
TABLE = []
for n in range(256):
    for _ in range(8):
        n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
    TABLE.append(n)


def crc32c(*parts):
    crc = 0xFFFFFFFF
    for part in parts:
        for byte in part:
            crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def crc_without(data, at):
    return crc32c(data[:at], bytes(4), data[at + 4:])


def need(true, sentence):
    if not true:
        sys.exit(f"read_pool: {sentence}")


def varint(data, at):
    value = shift = 0
    while True:
        need(at < len(data) and shift < 70, "a message is cut off")
        value, shift, at = value | (data[at] & 127) << shift, shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


class Message(dict):
    """A protocol buffer message: field number -> values, in order. An absent number is 0."""

    def __init__(self, data=b""):
        at = 0
        while at < len(data):
            tag, at = varint(data, at)
            wire = tag & 7
            if wire == 0:
                value, at = varint(data, at)
            elif wire == 2:
                length, at = varint(data, at)
                value, at = data[at:at + length], at + length
            else:
                need(wire in (1, 5), f"wire type {wire} is not in use")
                length = 8 if wire == 1 else 4
                value, at = int.from_bytes(data[at:at + length], "little"), at + length
            need(at <= len(data), "a message is cut off")
            self.setdefault(tag >> 3, []).append(value)

    def number(self, field):
        return self.get(field, [0])[-1]

    def bytes(self, field):
        return self.get(field, [b""])[-1]

    def text(self, field):
        return self.bytes(field).decode()

    def message(self, field):
        return Message(self.bytes(field))

    def messages(self, field):
        return [Message(data) for data in self.get(field, [])]

    def packed(self, field):
        data = b"".join(v if isinstance(v, bytes) else v.to_bytes(8, "little") for v in self.get(field, []))
        return list(struct.unpack(f"<{len(data) // 8}Q", data))


def unframed(data, kind, shown):
    """The body of a frame: section 2."""
    need(len(data) >= 32, f"{shown} is damaged")
    magic, version, found, incompatible, _, _, length, crc = struct.unpack_from("<8sHHIIIII", data)
    need(magic == b"marcot\0\n" and found == kind, f"{shown} is no record of kind {kind}")
    known = 1 if kind == POOL else 0  # its levels say more
    need(version == 1 and incompatible & ~known == 0, f"{shown} was written by a newer version")
    need(len(data) == 32 + length and crc_without(data, 28) == crc, f"{shown} is damaged")
    return data[32:]


def escape(name):
    plain = b"-_.+ :,="
    out = b""
    for i, byte in enumerate(name.encode()):
        keep = byte >= 128 or chr(byte).isalnum() or byte in plain
        out += bytes([byte]) if keep and not (i == 0 and byte in b". ") else b"%%%02x" % byte
    return out.decode()


class Files:
    """The files below a directory."""

    def __init__(self, directory):
        self.directory, self.files = Path(directory), {}

    def show(self, path):
        return f"{self.directory}/{path}"

    def whole(self, path):
        try:
            return (self.directory / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def part(self, path, offset, length):
        """Bytes of a file; fewer at its end; None where there is no such file."""
        if path not in self.files:
            try:
                self.files[path] = (self.directory / path).open("rb")
            except (FileNotFoundError, NotADirectoryError):
                return None
        self.files[path].seek(offset)
        return self.files[path].read(length)


class Objects:
    """The objects below a prefix of a bucket, over HTTP, without credentials."""

    def __init__(self, url):
        self.url, self.chunks = url.rstrip("/"), {}

    def show(self, path):
        return f"{self.url}/{path}"

    def get(self, path, headers, start=0):
        try:
            with urlopen(Request(self.show(quote(path)), headers=headers)) as answer:
                data = answer.read()
                # A service may ignore the range and send everything.
                return data if answer.status == 206 or not headers else data[start:start + CHUNK_BYTES]
        except HTTPError as error:
            need(error.code in (404, 416), f"{self.show(path)}: the service answers {error.code} {error.reason}")
            return None if error.code == 404 else b""
        except URLError as error:
            return need(False, f"{self.show(path)}: {error.reason}")

    def whole(self, path):
        return self.get(path, {})

    def part(self, path, offset, length):
        data = b""
        while len(data) < length:
            start = (offset + len(data)) // CHUNK_BYTES * CHUNK_BYTES
            if (path, start) not in self.chunks:
                while len(self.chunks) >= CHUNKS_MAX:
                    del self.chunks[next(iter(self.chunks))]
                fetched = self.get(path, {"Range": f"bytes={start}-{start + CHUNK_BYTES - 1}"}, start)
                if fetched is None:
                    return None
                self.chunks[path, start] = fetched
            more = self.chunks[path, start][offset + len(data) - start:]
            data += more[:length - len(data)]
            if len(more) == 0 or len(self.chunks[path, start]) < CHUNK_BYTES:
                return data
        return data


class Segment:
    """A segment: `read(offset, length)` gives its bytes. Section 4."""

    def __init__(self, read, shown, kind, author, sequence):
        self.read, head = read, read(0, 4096)
        need(head and len(head) == 4096, f"{shown} is missing or too short")
        magic, version, found, crc, features, _, *name = struct.unpack_from("<8sHHIIIQI", head)
        need((magic, version, found, features, *name) == (b"marcotSG", 1, kind, 0, author, sequence), f"{shown} is another")
        need(crc == crc_without(head, 12), f"the header of {shown} is damaged")
        self.epoch = int.from_bytes(head[40:48], "little")


class Pool:
    """A pool in a directory."""

    def __init__(self, source, record):
        self.source, self.number, self.segments = source, record.number(1), {}
        need(record.number(5) <= LEVEL, f"{source.show('pool')} can be read only by programs that know level {record.number(5)}")

    def record(self, path, kind):
        """A record; None where there is none."""
        data = self.source.whole(path)
        return None if data is None else Message(unframed(data, kind, self.source.show(path)))

    def image(self, namespace, name):
        """The number that a name leads to."""
        record = self.record(f"names/{escape(namespace) or '@'}/{escape(name)}", NAME)
        need(record, f"there is no image '{name}'")
        return record.number(1)

    def head(self, image):
        head = self.record(f"images/{image:016x}/head", HEAD)
        need(head is None or head.number(1) == image, f"the head of {image:016x} belongs to another image")
        return head

    def segment(self, copies, author, kind, sequence):
        """A segment; None where there is none."""
        name = f"{copies:016x}.{author:016x}" if copies else f"{author:016x}"
        path = f"segments/{name}/{KINDS[kind]}{sequence:08x}"
        if path not in self.segments:
            if self.source.part(path, 0, 1) is None:
                return None
            read = lambda offset, length: self.source.part(path, offset, length)
            self.segments[path] = Segment(read, self.source.show(path), kind, author, sequence)
        return self.segments[path]

    def with_log(self, image):
        """The head of an image, and what gives the data segments of its log."""
        head = self.head(image)
        need(head, f"there is no head of image {image:016x}")
        return head, lambda sequence: self.segment(0, image, 1, sequence)


class Bucket(Pool):
    """A pool in a bucket."""

    def record(self, path, kind):
        data = self.source.whole(path)
        if data is None:
            return None
        data = unframed(data, OBJECT, self.source.show(path))
        if not data:
            return None  # a tombstone
        envelope = Message(data)
        need(1 in envelope, f"{self.source.show(path)} has no stamp")
        return Message(unframed(envelope.bytes(3), kind, self.source.show(path)))

    def entry(self, namespace, name):
        """A name in its directory."""
        directory = self.record(f"names/{namespace:016x}/{crc32c(name.encode()) % DIRECTORIES:02x}", NAMES)
        found = [entry for entry in directory.messages(1) if entry.text(1) == name] if directory else []
        return found[0] if found else None

    def image(self, namespace, name):
        number = self.number
        if namespace:
            listed = self.record(f"namespaces/{self.number:016x}", NAMESPACES) or Message()
            numbers = {entry.text(1): entry.number(2) for entry in listed.messages(1)}
            need(namespace in numbers, f"there is no namespace '{namespace}'")
            number = numbers[namespace]
        while True:
            entry = self.entry(number, name)
            if entry and 3 in entry:
                # It is being renamed. It is gone if it has arrived; if not, unless it has changed meanwhile, it counts.
                moving = entry.message(3)
                arrived = self.entry(number, moving.text(2))
                if arrived and 4 in arrived and arrived.message(4).number(1) == moving.number(1):
                    entry = None
                elif self.entry(number, name) != entry:
                    continue
            need(entry, f"there is no image '{name}'")
            return Message(unframed(entry.bytes(2), NAME, f"the name '{name}'")).number(1)

    def with_log(self, image):
        while True:
            head = self.head(image)
            need(head, f"there is no head of image {image:016x}")
            segments = self.parts(head)
            # The owner may have replaced the head, and removed parts, while they were read.
            if segments is not None and self.head(image) == head:
                return head, segments.get

    def parts(self, head):
        """The data segments of the log, put together from its parts; None where the head is not the newest."""
        image, term, first = head.number(1), head.message(22).number(1), head.message(9).number(1)
        number, before, bytes_of = head.number(23), 0, {}
        while (data := self.source.whole(f"log/{image:016x}/{number:016x}")) is not None:
            shown = self.source.show(f"log/{image:016x}/{number:016x}")
            part = Message(unframed(data, PART_OF_LOG, shown))
            need((part.number(1), part.number(2)) == (image, number), f"{shown} is a part of another log")
            need(part.number(3) >= before, f"{shown} was stored by an owner that had been replaced")
            if part.number(3) > term:
                return None
            for piece in part.messages(5) if not part.number(4) else []:
                self.take(bytes_of, image, first, piece, shown)
            number, before = number + 1, part.number(3)
        segment = lambda n, data: Segment(lambda at, length: bytes(data[at:at + length]), f"segment {n} of the log", 1, image, n)
        return {n: segment(n, data) for n, data in bytes_of.items()}

    def take(self, bytes_of, image, first, piece, shown):
        sequence, offset, data = piece.number(1), piece.number(2), piece.bytes(3)
        if sequence < first:
            return  # the root covers it
        if not data:
            data = self.source.whole(f"segments/{image:016x}/d{sequence:08x}")
            need(data, f"{shown}: data segment {sequence} is missing")
        need(offset + len(data) <= SEGMENT_BYTES, f"{shown} goes beyond the end of a segment")
        segment = bytes_of.setdefault(sequence, bytearray())
        segment.extend(bytes(max(offset + len(data) - len(segment), 0)))
        segment[offset:offset + len(data)] = data


def open_pool(place):
    """The pool in a directory, or at a URL. Its own record says what it is."""
    source = Objects(place) if place.startswith(("http://", "https://")) else Files(place)
    data = source.whole("pool")
    need(data and len(data) >= 32, f"{place} is no pool")
    if int.from_bytes(data[10:12], "little") == OBJECT:
        pool = Bucket(source, Message())
        record = pool.record("pool", POOL)
        need(record, f"{place} is no pool any more")
        return Bucket(source, record)
    return Pool(source, Message(unframed(data, POOL, source.show("pool"))))
