"""The little of an NBD client that it takes to hold many images open at once."""

import socket
import struct

NBD_MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
REQUEST_MAGIC = 0x25609513
REPLY_MAGIC = 0x67446698
EXPORT_NAME = 1
FIXED_NEWSTYLE_NO_ZEROES = 3
READ = 0
WRITE = 1


class Client:
    """A connection to one export."""

    def __init__(self, path, export):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        magic, option_magic, _flags = struct.unpack(">QQH", self._receive(18))
        if (magic, option_magic) != (NBD_MAGIC, OPTION_MAGIC):
            raise OSError("not an NBD server")
        name = export.encode()
        self.socket.sendall(
            struct.pack(">I", FIXED_NEWSTYLE_NO_ZEROES)
            + struct.pack(">QII", OPTION_MAGIC, EXPORT_NAME, len(name))
            + name
        )
        self.size_bytes, _flags = struct.unpack(">QH", self._receive(10))

    def _receive(self, length):
        received = bytearray(length)
        at = 0
        while at < length:
            taken = self.socket.recv_into(memoryview(received)[at:])
            if not taken:
                raise OSError("the server closed the connection")
            at += taken
        return received

    def write(self, offset, data):
        """Writes and waits for the answer."""
        head = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, WRITE, 1, offset, len(data))
        self.socket.sendall(head + data)
        magic, error, _cookie = struct.unpack(">IIQ", self._receive(16))
        if magic != REPLY_MAGIC or error:
            raise OSError(f"a write failed with {error}")

    def read(self, offset, length):
        """Reads and waits for the answer."""
        head = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, READ, 1, offset, length)
        self.socket.sendall(head)
        magic, error, _cookie = struct.unpack(">IIQ", self._receive(16))
        if magic != REPLY_MAGIC or error:
            raise OSError(f"a read failed with {error}")
        return bytes(self._receive(length))

    def close(self):
        """Lets go of the export."""
        self.socket.close()

    def batch(self, commands):
        """Sends (command, offset, data or length) at once and waits for all answers."""
        message, expected = [], 0
        for command, offset, what in commands:
            data = what if command == WRITE else b""
            length = len(what) if command == WRITE else what
            head = (REQUEST_MAGIC, 0, command, offset, offset, length)
            message.append(struct.pack(">IHHQQI", *head) + data)
            expected += 16 + (length if command == READ else 0)
        self.socket.sendall(b"".join(message))
        replies = self._receive(expected)
        at = 0
        lengths = {offset: what for command, offset, what in commands if command == READ}
        while at < expected:
            magic, error, cookie = struct.unpack_from(">IIQ", replies, at)
            if magic != REPLY_MAGIC or error:
                raise OSError(f"a request failed with {error}")
            at += 16 + lengths.get(cookie, 0)
