"""The machine where marcot runs: processes of this machine, which are killed, or a guest, whose power is cut.

Both start a server, carry out one command at a time, give connections to exports, and crash.
"""
import os
import select
import shlex
import socket
import subprocess
import threading
import time
from dataclasses import dataclass

from . import nbd

# Much longer than commands take, even in an emulated guest on a busy machine: only a hang reaches these limits.
START_TIMEOUT_S = 300
COMMAND_TIMEOUT_S = 300
# The time of a crash that should hit the recovery from the previous one.
EARLY_KILL_S = 0.5
EARLY_CUT_OPERATIONS = 120
GUEST_MEMORY_MIB = 512
GUEST_PORT = 10809


class Dead(Exception):
    """The machine or the server is gone."""


@dataclass
class Result:
    """How a command ended; `status` is negative where it was killed."""

    status: int
    out: str
    err: str


def start(arguments, **options):
    """A process that does not outlive this one."""
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *arguments], stdin=subprocess.DEVNULL, **options)


def make_other_pools(pools, run):
    """Makes all pools of a new store but the first one, which it has."""
    for pool in pools[1:]:
        run("pool", "create", pool)


class Local:
    """Processes of this machine. A crash is SIGKILL: what they wrote stays in the page cache."""

    keeps_cache = True
    # True where this machine can be lost with what it has recovered after a kill. Only a flush promises that.
    is_lost = False
    # True where the server is told to end, instead of being killed.
    ends_in_order = False
    pools = ("rbd", "other")

    def __init__(self, binary, directory, random):
        self.binary, self.directory, self.random = binary, directory, random
        self.socket = f"{directory}/nbd.sock"
        self.environment = dict(os.environ, MARCOT_STORE=f"{directory}/store", MARCOT_RUN_DIR=f"{directory}/run",
                                MARCOT_LOG="info", RUST_BACKTRACE="1")
        self.server, self.command, self.timer = None, None, None
        # A killed process closes its sockets a moment before it is gone.
        self.killed = False

    def crash_soon(self):
        """Kills the server while its content is verified."""
        self.crash_in(self.random.uniform(0, EARLY_KILL_S))

    def crash_in(self, seconds):
        """Kills the server at that time, whatever happens here meanwhile."""
        self.timer = threading.Timer(seconds, self._kill)
        self.timer.start()

    def was_crashed(self):
        """True if it is gone because it had to."""
        return self.killed

    def crash_not(self):
        """Cancels the kill, if it has not happened."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer.join()
            self.timer = None

    def _kill(self):
        if self.server is not None:
            self.killed = True
            self.server.kill()

    def make_pools(self, run):
        """Makes the pools of a new store; the first one is there."""
        make_other_pools(self.pools, run)

    def verified(self):
        """All images were compared after a crash."""

    def start(self):
        """Nothing needs to be started before commands can run."""

    def serve_options(self):
        """What the server is told beside where it listens."""
        return []

    def serve(self):
        """Starts a server and waits until it listens."""
        self.killed = False
        log = open(f"{self.directory}/server.log", "ab")
        with log:
            command = [self.binary, "serve", "--idle-time-s", "0", "--socket", self.socket, *self.serve_options()]
            self.server = start(command, stdout=subprocess.PIPE, stderr=log, env=self.environment)
        if not self.server.stdout.readline().startswith(b"listening on"):
            raise Dead("the server did not start")

    def connect(self, export):
        return nbd.Client(self.socket, export)

    def is_dead(self):
        return self.killed or self.server is None or self.server.poll() is not None

    def begin(self, arguments):
        """Starts a command."""
        with open(f"{self.directory}/out", "wb") as out, open(f"{self.directory}/err", "wb") as err:
            self.command = start([self.binary, *arguments], stdout=out, stderr=err, env=self.environment)

    def poll(self):
        """The result of the command, once it has ended."""
        if self.command.poll() is None:
            return None
        texts = [open(f"{self.directory}/{name}", encoding="utf-8", errors="replace").read() for name in ("out", "err")]
        return Result(self.command.returncode, *texts)

    def run(self, arguments):
        """Carries out a command, even if the server dies meanwhile."""
        self.begin(arguments)
        try:
            self.command.wait(COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.command.kill()
            self.command.wait()
        return self.poll()

    def crash(self):
        """Kills the server, and perhaps the running command too. Returns the command's result, if it had one."""
        self.crash_not()
        self._kill()
        running = self.command is not None and self.command.poll() is None
        if running and self.random.random() < 0.5:
            self.command.kill()
        if self.server is not None:
            self.server.wait()
            self.server.stdout.close()
            self.server = None
        return self._await_command("was killed")

    def _await_command(self, what_the_server_did):
        """The result of the command that was running, if one was."""
        if self.command is None:
            return None
        try:
            self.command.wait(COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            self.command.kill()
            raise Dead(f"a command does not end after the server {what_the_server_did}") from error
        return self.poll()

    def log(self):
        """The server's messages."""
        try:
            with open(f"{self.directory}/server.log", encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""


class Guest:
    """A guest whose only disk is `disk`. A crash is a cut of its power."""

    keeps_cache = False
    # What is recovered after a power cut was durable before, and stays so.
    is_lost = False
    ends_in_order = False
    pools = Local.pools

    def __init__(self, directory, kernel, initramfs, job, disk, random):
        self.directory, self.disk, self.random = directory, disk, random
        self.kernel, self.initramfs, self.job = kernel, initramfs, job
        self.qemu = self.control = None
        self.received = b""
        self.held_port = self._hold_port()

    def make_pools(self, run):
        make_other_pools(self.pools, run)

    def verified(self):
        """All images were compared after a crash."""

    @staticmethod
    def _hold_port():
        """A port of this machine for the guest's server.

        The socket that holds it never listens. QEMU may still bind the port, since both ask for reuse; the
        kernel gives it to nobody who asks for any.
        """
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        return holder

    def crash_soon(self):
        """Cuts the power while the machine recovers."""
        self.disk.arm(self.random.randint(1, EARLY_CUT_OPERATIONS))

    def was_crashed(self):
        """True if it is gone because it had to."""
        return self.disk.dead.is_set()

    def crash_not(self):
        """Cancels the cut, if it has not happened."""
        self.disk.arm(None)

    def start(self):
        """Boots, mounts the disk, and waits for commands."""
        port = self.held_port.getsockname()[1]
        ours, theirs = socket.socketpair()
        self.control, self.received = ours, b""
        with theirs, open(f"{self.directory}/qemu.log", "ab") as log:
            self.qemu = start([
                "qemu-system-x86_64", "-no-user-config", "-nodefaults", "-machine", "pc", "-accel", "tcg",
                "-cpu", "max,la57=off", "-smp", "1", "-m", str(GUEST_MEMORY_MIB), "-display", "none", "-no-reboot",
                "-device", "virtio-rng-pci", "-kernel", self.kernel, "-initrd", self.initramfs,
                "-append", "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on",
                "-fw_cfg", f"name=opt/marcot/job,file={self.job}",
                "-serial", f"file:{self.directory}/console", "-chardev", f"socket,id=control,fd={theirs.fileno()}",
                "-serial", "chardev:control",
                "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:{GUEST_PORT}",
                "-device", "virtio-net-pci,netdev=net",
                "-drive", f"file=nbd+unix:///?socket={self.directory}/disk.sock,format=raw,if=none,id=pool",
                "-device", "virtio-blk-pci,drive=pool,serial=pool",
            ], stdout=log, stderr=log, pass_fds=[theirs.fileno()])
        self._until(b"READY\n", START_TIMEOUT_S)

    def serve(self):
        result = self.run(["serve_in_background"], program="")
        if result.status != 0:
            raise Dead(f"the server did not start: {result.err}")

    def connect(self, export):
        return nbd.Client(self.held_port.getsockname(), export)

    def is_dead(self):
        return self.disk.dead.is_set() or self.qemu is None or self.qemu.poll() is not None

    def begin(self, arguments, program="marcot "):
        self.control.sendall((program + shlex.join(arguments) + "\n").encode())

    def poll(self):
        """The result of the command, once it has come."""
        self._receive(0)
        return self._result()

    def _result(self):
        head, newline, rest = self.received.partition(b"\n")
        if not newline:
            return None
        word, status, out, err = head.split()
        if word != b"RESULT":
            raise Dead(f"the guest said {head!r}")
        out, err = int(out), int(err)
        if len(rest) < out + err:
            return None
        self.received = rest[out + err:]
        return Result(int(status), rest[:out].decode(errors="replace"), rest[out:out + err].decode(errors="replace"))

    def run(self, arguments, program="marcot "):
        self.begin(arguments, program)
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while (result := self.poll()) is None:
            if self.is_dead() or time.monotonic() > deadline:
                raise Dead(f"no end of {arguments}")
            self._receive(0.05)
        return result

    def _receive(self, timeout_s):
        if select.select([self.control], [], [], timeout_s)[0]:
            more = self.control.recv(1 << 16)
            if not more:
                raise Dead("the guest is gone")
            self.received += more

    def _until(self, text, timeout_s):
        deadline = time.monotonic() + timeout_s
        while text not in self.received:
            if self.is_dead() or time.monotonic() > deadline:
                raise Dead("the guest did not start")
            self._receive(0.05)
        self.received = self.received.partition(text)[2]

    def crash(self):
        """Cuts the power. Returns the result of the running command, if it had one."""
        self.disk.stop()
        if self.qemu is not None:
            self.qemu.kill()
            self.qemu.wait()
            self.qemu = None
        result = None
        if self.control is not None:
            try:
                while True:
                    self._receive(1)
            except (Dead, OSError):
                result = self._result()
            self.control.close()
            self.control = None
        self.disk.cut()
        self.disk.power_on()
        return result

    def log(self):
        try:
            with open(f"{self.directory}/console", encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""
