"""Images as block devices of a host: `device map`, and a client that writes past the page cache."""
import errno
import json
import mmap
import os
import signal
import time

from torture import nbd

from .hosts import COMMAND_S_MAX, POLL_S, POOL, Violation, threads_are


class DeviceClient:
    """Looks like a client of the NBD protocol. Every request is carried out when it is sent."""

    def __init__(self, path):
        self.file = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.answers = []
        self.next_cookie = 1

    def send(self, command, offset=0, length=0, data=b"", fua=False):
        """Carries a request out, and keeps the answer."""
        cookie, self.next_cookie = self.next_cookie, self.next_cookie + 1
        error, found = 0, b""
        try:
            if command == nbd.WRITE:
                self._write(offset, data)
            elif command == nbd.READ:
                found = self._read(offset, length)
            if command == nbd.FLUSH or fua:
                os.fsync(self.file)
        except OSError as failure:
            error = failure.errno
        self.answers.append((cookie, error, found))
        return cookie

    def replies(self, _timeout_s):
        """The answers that were not taken yet."""
        answers, self.answers = self.answers, []
        return answers

    def close(self):
        """Closes the device."""
        os.close(self.file)

    def _write(self, offset, data):
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            if os.pwritev(self.file, [buffer], offset) != len(data):
                raise OSError(errno.EIO, "a short write")

    def _read(self, offset, length):
        with mmap.mmap(-1, length) as buffer:
            if os.preadv(self.file, [buffer], offset) != length:
                raise OSError(errno.EIO, "a short read")
            return bytes(buffer)


class Mapping:
    """An image that a host has mapped. It was taken over from whoever had it."""

    def __init__(self, host, image):
        self.host = host
        mapped = host.works("device", "map", "--force", f"{POOL}/{image}")
        self.device = mapped.decode().strip()
        self.process_id = self._record()["pid"]

    def _record(self):
        for name in os.listdir(f"{self.host.directory}/run"):
            if name.endswith(".json"):
                with open(f"{self.host.directory}/run/{name}", encoding="utf-8") as file:
                    record = json.load(file)
                if record["device"] == self.device:
                    return record
        raise Violation(f"host {self.host.name} has no record of {self.device}")

    def client(self):
        """A client of the device."""
        return DeviceClient(self.device)

    def pause(self):
        """Stops the process that serves it."""
        os.kill(self.process_id, signal.SIGSTOP)
        until = time.monotonic() + COMMAND_S_MAX
        while not threads_are(self.process_id, "T"):
            if time.monotonic() > until:
                raise Violation("a process does not stop")
            time.sleep(POLL_S)

    def wake(self):
        """Lets the process go on."""
        os.kill(self.process_id, signal.SIGCONT)

    def check_not_given_back(self):
        """A device is given back to nobody: it has no clients that come and go."""

    def kill(self):
        """Takes the device away, whatever state it is in."""
        try:
            self.wake()
        except ProcessLookupError:
            pass
        self.host.run("device", "unmap", "-o", "force", self.device)

    def end(self):
        """Unmaps it, and returns the status."""
        return self.host.run("device", "unmap", self.device).status

    def last_words(self):
        """What the processes of devices have logged last."""
        words = ""
        for name in os.listdir(f"{self.host.directory}/run"):
            if name.endswith(".log"):
                with open(f"{self.host.directory}/run/{name}", encoding="utf-8", errors="replace") as log:
                    words += "".join(log.readlines()[-8:])
        return words
