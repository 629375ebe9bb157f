"""The machine where the pools lie in a bucket: a host that serves them, and hosts that follow when it is lost.

A round ends in one of three ways. The server is killed, and goes on with what the host keeps. The host is lost
with its disk, so that another one takes the images over and has only what the bucket has. Or the server ends in
order.

One more host has the store that made the pools, and does nothing else.
"""
import json
import os
import shutil
import subprocess
from dataclasses import dataclass

from .history import Violation
from .machine import COMMAND_TIMEOUT_S, Dead, Local
from .nbd import Refused

KILLED, LOST, ENDED = "killed", "lost", "ended"
# How often a round ends so, in per cent; a kill in all other cases.
LOST_PERCENT = 30
ENDED_PERCENT = 20


@dataclass
class Place:
    """Where the pools lie: a URL, and further options of `pool create`. `flush` is `remote` or `local`; only with
    `remote` is there anything left to compare when a host is lost."""

    url: str
    options: tuple
    flush: str
    loses_hosts: bool

    def of_pool(self, name):
        """The options of `pool create` and `pool attach`."""
        return ("--backend", f"{self.url}/{name}", "--flush", self.flush, *self.options)


class BucketHost(Local):
    """Processes of this machine that reach their pools through a service."""

    pools = ("gold", "silver")
    is_lost = True

    def __init__(self, binary, directory, random, place):
        self.place = place
        self.home, self.hosts = directory, 0
        # How the round will end, and whether the images come from a lost host and are not verified yet.
        self.ending, self.moved = KILLED, False
        self.endings = {KILLED: 0, LOST: 0, ENDED: 0}
        super().__init__(binary, directory, random)
        self.maker = dict(self.environment)
        self._new_host()

    @property
    def keeps_cache(self):
        """False where a host was lost: what was not flushed may be lost with it."""
        return not self.moved

    @property
    def ends_in_order(self):
        """True where the server will be told to end, so that no request may be under way then."""
        return self.ending == ENDED

    def make_pools(self, run):
        for pool in self.pools:
            run("pool", "create", pool, *self.place.of_pool(pool))
        self._attach()

    def begin(self, arguments):
        # Whoever makes a pool has it as its own. The others attach it.
        here = self.environment
        if arguments[:2] == ["pool", "create"]:
            self.environment = self.maker
        super().begin(arguments)
        self.environment = here

    def _attach(self):
        for pool in self.pools:
            result = self.run(["pool", "attach", pool, *self.place.of_pool(pool)])
            if result.status != 0:
                raise Violation(f"pool attach: status {result.status}\n{result.err}")

    def _new_host(self):
        self.hosts += 1
        self.directory = f"{self.home}/host-{self.hosts}"
        os.makedirs(self.directory)
        self.environment = dict(self.maker, MARCOT_STORE=f"{self.directory}/store", MARCOT_RUN_DIR=f"{self.directory}/run")
        self.socket = f"{self.directory}/nbd.sock"

    def serve_options(self):
        # Only a person knows that the other host is gone.
        return ["--force"] if self.moved else []

    def serve(self):
        chance = self.random.randrange(100)
        lost = LOST_PERCENT if self.place.loses_hosts else 0
        self.ending = LOST if chance < lost else ENDED if chance < lost + ENDED_PERCENT else KILLED
        super().serve()
        if self.moved:
            self._take_over()

    def _take_over(self):
        """Opens every image once, so that commands find it without an owner on the lost host."""
        for pool in self.pools:
            listed = self.run(["ls", "-p", pool, "--format", "json"])
            if listed.status != 0:
                raise Violation(f"ls {pool}: status {listed.status}\n{listed.err}")
            for name in json.loads(listed.out):
                try:
                    self.connect(f"{pool}/{name}").close()
                except Refused:
                    # The removal of an image was cut off. It is finished later.
                    pass

    def verified(self):
        self.moved = False

    def crash(self):
        if self.ending == ENDED and not self.is_dead():
            result = self._end()
        else:
            result = super().crash()
        self.endings[self.ending] += 1
        if "panicked" in self.log():
            raise Violation("marcot panicked; see its log")
        if self.ending == LOST:
            self._lose()
        return result

    def _end(self):
        self.crash_not()
        self.server.terminate()
        try:
            status = self.server.wait(COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise Dead("the server does not end") from error
        self.server.stdout.close()
        self.server = None
        if status != 0:
            raise Violation(f"the server ended with status {status}")
        return self._await_command("has ended")

    def _lose(self):
        shutil.rmtree(self.directory)
        self._new_host()
        self.moved = True
        self._attach()
        self.command = None
