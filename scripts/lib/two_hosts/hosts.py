"""Hosts in network namespaces of their own: their programs, servers and links."""
import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager

from torture import nbd

POOL = "gold"
# Longer than any command takes on a busy machine: what takes longer hangs.
COMMAND_S_MAX = 300
POLL_S = 0.01


class Violation(Exception):
    """A promise was broken."""


class Ran:
    """A command that has ended."""

    def __init__(self, words, status, out, error, began, ended):
        self.words, self.status, self.out, self.error = words, status, out, error
        self.began, self.ended = began, ended

    def __str__(self):
        return f"marcot {' '.join(self.words)}: status {self.status}: {self.error.strip()}"


class Host:
    """One host: its own network, name and directory, which lies at the same path on every host."""

    def __init__(self, name, process_id, options):
        self.name, self.process_id, self.options = name, process_id, options
        self.directory = f"{options.directory}/{name}"
        # What programs see of it is mounted in the host's namespace.
        store = f"{options.directory}/here"
        self.environment = {
            **os.environ,
            "HOME": f"{store}/home",
            "MARCOT_STORE": f"{store}/store",
            "MARCOT_RUN_DIR": f"{store}/run",
            "AWS_EC2_METADATA_DISABLED": "true",
            "LC_ALL": "C",
            "TZ": "UTC",
        }
        for unwanted in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION"):
            self.environment.pop(unwanted, None)

    def inside(self, *words):
        """The words of a command that runs on this host, and ends with the thread that starts it."""
        enter = ["nsenter", "--target", str(self.process_id), "--net", "--mount", "--uts"]
        return ["setpriv", "--pdeathsig", "KILL", *enter, *words]

    def run(self, *words):
        """Runs marcot, whatever its status is."""
        began = time.monotonic()
        try:
            ran = subprocess.run(
                self.inside(self.options.marcot, *words), env=self.environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=COMMAND_S_MAX, check=False)
        except subprocess.TimeoutExpired as slow:
            raise Violation(f"marcot {' '.join(words)} has not ended in {COMMAND_S_MAX} s") from slow
        error = ran.stderr.decode(errors="replace")
        ended = Ran(words, ran.returncode, ran.stdout, error, began, time.monotonic())
        if ran.returncode < 0 or ran.returncode >= 128 or "panicked" in error:
            raise Violation(f"it crashed: {ended}")
        return ended

    def works(self, *words):
        """Runs marcot, which has to succeed. Returns its output."""
        ran = self.run(*words)
        if ran.status:
            raise Violation(f"on host {self.name}: {ran}")
        return ran.out

    def check(self, pool):
        """Fails unless `check` finds the pool in order."""
        ran = self.run("check", "--no-progress", pool)
        if ran.status or b"all is well" not in ran.out:
            raise Violation(f"on host {self.name}: {ran}\n{ran.out.decode(errors='replace')}")

    def link(self, *words):
        """Changes a link of this host."""
        enter = ["nsenter", "--target", str(self.process_id), "--net"]
        subprocess.run([*enter, "ip", "link", "set", *words], check=True)


class Server:
    """`marcot serve` on a host. It takes the image over from whoever has it."""

    def __init__(self, host, image):
        self.host = host
        self.export = f"{POOL}/{image}"
        self.socket = f"{host.directory}/nbd.sock"
        self.log_path = f"{host.directory}/server.log"
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        words = ["serve", "--force", "--socket", f"{host.options.directory}/here/nbd.sock", POOL]
        environment = {**host.environment, "MARCOT_LOG": "info"}
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                host.inside(host.options.marcot, *words), env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=log)
        await_that(self._listens, "a server listens")

    def client(self):
        """A client of the image."""
        return nbd.Client(self.socket, self.export)

    def check_not_given_back(self):
        """Fails where a client that connects again gets the image, which another host has taken over."""
        try:
            self.client().close()
        except nbd.Refused:
            return
        raise Violation(f"host {self.host.name} was replaced, and has taken the image back")

    def is_alive(self):
        """True while the process has not ended."""
        return self.process.poll() is None

    def _listens(self):
        if not self.is_alive():
            raise Violation(f"the server on host {self.host.name} has ended by itself: {self.last_words()}")
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(self.socket)
            return True
        except OSError:
            return False

    def last_words(self):
        """The end of its log."""
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return "".join(log.readlines()[-8:])

    def pause(self):
        """Stops it, and waits until all of its threads have stopped."""
        os.kill(self.process.pid, signal.SIGSTOP)
        await_that(lambda: threads_are(self.process.pid, "T"), "a process stops")

    def wake(self):
        """Lets it go on."""
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self):
        """Ends it at once."""
        self.process.kill()
        self.process.wait()

    def end(self):
        """Asks it to end, and returns its status."""
        self.process.terminate()
        try:
            return self.process.wait(COMMAND_S_MAX)
        except subprocess.TimeoutExpired as hung:
            raise Violation(f"a server did not end in {COMMAND_S_MAX} s: {self.last_words()}") from hung


def threads_are(process_id, state):
    """True where all threads of a process are in this state, as /proc shows it."""
    threads = f"/proc/{process_id}/task"
    states = []
    for thread in os.listdir(threads):
        with open(f"{threads}/{thread}/stat", encoding="utf-8", errors="replace") as stat:
            states.append(stat.read().rsplit(")", 1)[1].split()[0])
    return all(found == state for found in states)


def await_that(holds, what):
    """Waits until something holds."""
    until = time.monotonic() + COMMAND_S_MAX
    while not holds():
        if time.monotonic() > until:
            raise Violation(f"waited {COMMAND_S_MAX} s until {what}")
        time.sleep(POLL_S)


@contextmanager
def all_killed(servers):
    """Ends all servers in the list at the end, also those that were stopped."""
    try:
        yield servers
    finally:
        for server in servers:
            server.kill()


class Job(threading.Thread):
    """A thread whose exception is raised again by those who wait for it."""

    def __init__(self, work):
        super().__init__(daemon=True)
        self.work, self.result, self.failure = work, None, None
        self.start()

    def run(self):
        try:
            self.result = self.work()
        except BaseException as failure:  # pylint: disable=broad-except
            self.failure = failure

    def ended(self):
        """Waits for it."""
        self.join(2 * COMMAND_S_MAX)
        if self.is_alive():
            raise Violation("something hangs")
        if self.failure:
            raise self.failure
        return self.result
