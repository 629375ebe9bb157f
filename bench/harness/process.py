"""Programs that the harness starts.

Invariant: whatever way the harness ends, the servers it started are ended, by their own ids, and
what it mounted is unmounted: everything is entered into an ExitStack that the main program leaves.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time

READY_S_MAX = 20.0
STOP_S_MAX = 60.0


class Failed(Exception):
    """A program that the measurement needs failed; the message is for people."""


def run(*command, env=None, stdin=None):
    """Runs to the end and returns standard output; anything but status 0 is Failed."""
    command = [str(word) for word in command]
    done = subprocess.run(
        command,
        env=None if env is None else {**os.environ, **env},
        stdin=stdin or subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise Failed(f"{' '.join(command)}: status {done.returncode}: {said}")
    return done.stdout


def start(*command, env=None, log=None):
    """Starts a program that also ends when the harness is killed outright."""
    words = ["setpriv", "--pdeathsig", "TERM", *(str(word) for word in command)]
    output = subprocess.DEVNULL if log is None else open(log, "ab")  # noqa: SIM115
    try:
        return subprocess.Popen(
            words,
            env=None if env is None else {**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    finally:
        if log is not None:
            output.close()


def stop(process):
    """Ends a program and waits for it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def accepts(path):
    """True if something listens at the socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def server(sockets, *command, env=None, log=None):
    """A server, from the moment that all its sockets accept until the end of the block."""
    sockets = [str(path) for path in sockets]
    for path in sockets:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    process = start(*command, env=env, log=log)
    try:
        deadline = time.monotonic() + READY_S_MAX
        while not all(accepts(path) for path in sockets):
            if process.poll() is not None:
                raise Failed(f"{command[0]} ended with status {process.returncode}; see {log}")
            if time.monotonic() > deadline:
                raise Failed(f"{command[0]} does not listen after {READY_S_MAX:.0f} s")
            time.sleep(0.01)
        yield process
    finally:
        stop(process)
