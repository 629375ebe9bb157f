"""A disk with a volatile write cache, for a guest, over NBD.

What was written since the last flush may be lost when the power goes: any of it, in any order, in
part, by sectors of 512 bytes, except for blocks that the file system on it needs whole (`xfs`). What
a flush covered, and what was written with FUA, stays.

  live     what the guest reads: everything written
  durable  what a cut leaves, with a random part of `unflushed`
"""
import mmap
import os
import random
import socket
import struct
import threading

from . import nbd

SECTOR = 512
# Block size of the file systems on the disk.
BLOCK = 4096
# HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_WRITE_ZEROES
FLAGS = 1 | 1 << 2 | 1 << 3 | 1 << 6
OPTION_ABORT, REPLY_UNSUPPORTED = 2, 1 << 31 | 1
EINVAL = 22


class Disk:
    """A disk of `size` bytes that keeps its durable content in the file `path`."""

    def __init__(self, path, address, size, seed, lies=False):
        self.path, self.size, self.random = path, size, random.Random(seed)
        # For a block of 4096 bytes: is it stored completely or not at all?
        self.stays_whole = lambda block: False
        # A disk that acknowledges flushes and never carries them out: with it the test itself is tested.
        self.lies = lies
        with open(path, "r+b") as file:
            os.ftruncate(file.fileno(), size)
            self.durable = mmap.mmap(file.fileno(), size)
        with open(f"{path}.live", "w+b") as file:
            os.ftruncate(file.fileno(), size)
            os.unlink(f"{path}.live")
            self.live = mmap.mmap(file.fileno(), size)
        self._copy_all()
        self.unflushed = []
        self.lock = threading.Lock()
        # Writes and flushes until the power goes by itself.
        self.fuse = None
        self.dead = threading.Event()
        # Counts power cuts: what an earlier guest has sent and was not carried out never is.
        self.life = 0
        self.writes = self.flushes = 0
        self.sectors_lost = self.sectors_kept = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(address)
        self.listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _copy_all(self):
        """Copies `durable` to `live`; holes stay holes."""
        descriptor, at = os.open(self.path, os.O_RDONLY), 0
        try:
            while True:
                try:
                    at = os.lseek(descriptor, at, os.SEEK_DATA)
                except OSError:
                    return
                end = os.lseek(descriptor, at, os.SEEK_HOLE)
                self.live[at:end] = self.durable[at:end]
                at = end
        finally:
            os.close(descriptor)

    def arm(self, operations):
        """The power goes after this many further writes and flushes; never, if None."""
        with self.lock:
            self.fuse = operations

    def stop(self):
        """From now on nothing is carried out or answered."""
        with self.lock:
            self.dead.set()

    def cut(self):
        """Loses what a loss of power loses. The guest must be gone already."""
        with self.lock:
            self.dead.set()
            self.life += 1
            keep = self.random.choice((0.0, 0.1, 0.5, 0.9, 1.0, None))
            for offset, data in self.unflushed:
                # None: each write has its own chance.
                self._survive(offset, data, self.random.random() if keep is None else keep)
            for offset, data in self.unflushed:
                self.live[offset:offset + len(data)] = self.durable[offset:offset + len(data)]
            self.unflushed.clear()
            self.fuse = None

    def power_on(self):
        """Serves again."""
        self.dead.clear()

    def _survive(self, offset, data, chance):
        together = self.random.random() < 0.5
        survives = self.random.random() < chance
        for at, end in self._parts(offset, data):
            if not together:
                survives = self.random.random() < chance
            if survives:
                self.durable[offset + at:offset + end] = data[at:end]
                self.sectors_kept += (end - at) // SECTOR
            else:
                self.sectors_lost += (end - at) // SECTOR

    def _parts(self, offset, data):
        """Yields (start, end) of each part of a write that arrives or is lost by itself."""
        at = 0
        while at < len(data):
            aligned = (offset + at) % BLOCK == 0 and at + BLOCK <= len(data)
            end = at + (BLOCK if aligned and self.stays_whole(data[at:at + BLOCK]) else SECTOR)
            yield at, end
            at = end

    def _accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        life = self.life
        try:
            stream = connection.makefile("rb", 1 << 20)
            if self._negotiate(connection, stream):
                while self._request(connection, stream, life):
                    pass
                # Silence, as from a machine without power; a closed connection would be an error to
                # the guest while it is still there.
                while stream.read1(1 << 16):
                    pass
        except (OSError, struct.error):
            # The guest was killed.
            pass
        finally:
            connection.close()

    def _negotiate(self, connection, stream):
        connection.sendall(nbd.MAGIC_SERVER + nbd.MAGIC_OPTION + struct.pack(">H", nbd.FIXED_NEWSTYLE_NO_ZEROES))
        stream.read(4)
        while True:
            _, option, length = struct.unpack(">QII", stream.read(16))
            stream.read(length)

            def reply(kind, body=b"", option=option):
                header = struct.pack(">QIII", nbd.MAGIC_REPLY, option, kind, len(body))
                connection.sendall(header + body)

            if option == nbd.OPTION_GO:
                reply(nbd.REPLY_INFO, struct.pack(">HQH", nbd.INFO_EXPORT, self.size, FLAGS))
                reply(nbd.REPLY_ACK)
                return True
            reply(nbd.REPLY_ACK if option == OPTION_ABORT else REPLY_UNSUPPORTED)
            if option == OPTION_ABORT:
                return False

    def _request(self, connection, stream, life):
        _, flags, command, cookie, offset, length = nbd.REQUEST.unpack(stream.read(nbd.REQUEST.size))
        data = stream.read(length) if command == nbd.WRITE else b""
        if command == nbd.DISCONNECT:
            return False
        with self.lock:
            if self.dead.is_set() or life != self.life:
                return False
            error, answer = self._carry_out(flags, command, offset, length, data)
            if command != nbd.READ and self.fuse is not None:
                self.fuse -= 1
                if self.fuse <= 0:
                    # Carried out, and not acknowledged any more.
                    self.dead.set()
                    return False
            connection.sendall(nbd.REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, error, cookie) + answer)
        return True

    def _carry_out(self, flags, command, offset, length, data):
        if offset + length > self.size:
            return EINVAL, b""
        if command == nbd.READ:
            return 0, self.live[offset:offset + length]
        if command == nbd.FLUSH:
            self.flushes += 1
            if not self.lies:
                for at, written in self.unflushed:
                    self.durable[at:at + len(written)] = written
                self.unflushed.clear()
            return 0, b""
        if command not in (nbd.WRITE, nbd.WRITE_ZEROES):
            return EINVAL, b""
        self.writes += 1
        data = data or bytes(length)
        self.live[offset:offset + length] = data
        if flags & nbd.FUA:
            self._write_through(offset, data)
        else:
            self.unflushed.append((offset, data))
        return 0, b""

    def _write_through(self, offset, data):
        """FUA, above earlier writes of the same bytes that were not flushed."""
        if self.lies:
            return self.unflushed.append((offset, data))
        end, left = offset + len(data), []
        for at, written in self.unflushed:
            # What the new write covers of an older one will never be seen again.
            if at < offset:
                left.append((at, written[:offset - at]))
            if at + len(written) > end:
                left.append((max(at, end), written[max(end - at, 0):]))
        self.unflushed = left
        self.durable[offset:end] = data
