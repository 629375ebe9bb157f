"""A client of the NBD protocol that keeps requests in flight. It uses simple replies only.

https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""
import select
import socket
import struct

READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FUA = 1 << 0
MAGIC_SERVER, MAGIC_OPTION, MAGIC_REPLY = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
FIXED_NEWSTYLE_NO_ZEROES = 3
OPTION_GO, REPLY_ACK, REPLY_INFO, INFO_EXPORT = 7, 1, 3, 0
REQUEST_MAGIC, SIMPLE_REPLY_MAGIC = 0x25609513, 0x67446698
REQUEST, REPLY = struct.Struct(">IHHQQI"), struct.Struct(">IIQ")
# No request to a healthy server takes longer, even on the slowest machine.
TIMEOUT_S = 300


class Refused(OSError):
    """The server does not serve the export."""


class Client:
    """A connection to one export."""

    def __init__(self, address, export):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT_S)
        self.received = bytearray()
        self.next_cookie = 1
        # Bytes that the reply to a read carries, by cookie.
        self.reads = {}
        try:
            self.socket.connect(address)
            if family == socket.AF_INET:
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.size = self._negotiate(export.encode())
        except BaseException:
            self.socket.close()
            raise

    def close(self):
        """Disconnects, by DISC where that is possible."""
        try:
            self.socket.sendall(REQUEST.pack(REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))
        except OSError:
            pass
        self.socket.close()

    def send(self, command, offset=0, length=0, data=b"", fua=False):
        """Sends a request and returns its cookie."""
        cookie, self.next_cookie = self.next_cookie, self.next_cookie + 1
        length = len(data) or length
        if command == READ:
            self.reads[cookie] = length
        header = REQUEST.pack(REQUEST_MAGIC, FUA if fua else 0, command, cookie, offset, length)
        self.socket.sendall(header + data if data else header)
        return cookie

    def replies(self, timeout_s):
        """Yields (cookie, error, data) of the replies that have come, waiting for the first."""
        if select.select([self.socket], [], [], timeout_s)[0]:
            more = self.socket.recv(1 << 20)
            if not more:
                raise ConnectionError("the server hung up")
            self.received += more
        while (reply := self._take_reply()) is not None:
            yield reply

    def _take_reply(self):
        if len(self.received) < REPLY.size:
            return None
        magic, error, cookie = REPLY.unpack_from(self.received)
        if magic != SIMPLE_REPLY_MAGIC:
            raise ConnectionError(f"a reply begins with {magic:#x}")
        length = 0 if error else self.reads.get(cookie, 0)
        if len(self.received) < REPLY.size + length:
            return None
        data = bytes(self.received[REPLY.size:REPLY.size + length])
        del self.received[:REPLY.size + length]
        self.reads.pop(cookie, None)
        return cookie, error, data

    def _exactly(self, count):
        data = bytearray()
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise ConnectionError("the server hung up while negotiating")
            data += more
        return bytes(data)

    def _negotiate(self, export):
        if self._exactly(18)[:16] != MAGIC_SERVER + MAGIC_OPTION:
            raise ConnectionError("no NBD server")
        info = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        self.socket.sendall(struct.pack(">I", FIXED_NEWSTYLE_NO_ZEROES)
                            + MAGIC_OPTION + struct.pack(">II", OPTION_GO, len(info)) + info)
        size = 0
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._exactly(20))
            body = self._exactly(length)
            if magic != MAGIC_REPLY:
                raise ConnectionError("negotiation went wrong")
            if kind == REPLY_INFO and struct.unpack_from(">H", body)[0] == INFO_EXPORT:
                size = struct.unpack_from(">Q", body, 2)[0]
            elif kind == REPLY_ACK:
                return size
            elif kind & 1 << 31:
                raise Refused(f"{export.decode()}: {body.decode(errors='replace')}")


def flush(client):
    """Sends a flush, and waits for it. No other request may be in flight."""
    cookie = client.send(FLUSH)
    while True:
        for answered, error, _ in client.replies(TIMEOUT_S):
            if answered == cookie:
                if error:
                    raise OSError(error, "a flush failed")
                return


def read_all(client, length, piece=1 << 20, depth=4):
    """Yields (offset, bytes) of the whole export, in order."""
    at, waiting, done = 0, {}, {}
    wanted = 0
    while wanted < length:
        while at < length and len(waiting) < depth:
            count = min(piece, length - at)
            waiting[client.send(READ, at, count)] = at
            at += count
        for cookie, error, data in client.replies(TIMEOUT_S):
            offset = waiting.pop(cookie)
            if error:
                raise OSError(error, f"reading at {offset}")
            done[offset] = data
        while wanted in done:
            data = done.pop(wanted)
            yield wanted, data
            wanted += len(data)
