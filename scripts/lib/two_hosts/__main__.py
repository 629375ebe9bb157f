"""Two hosts on one pool in a bucket. See scripts/test.d/two-hosts.sh, which makes the hosts."""
import argparse
import os
import random
import signal
import subprocess
import sys

from .clones import Clones
from .devices import Mapping
from .hosts import POOL, Host, Server, Violation
from .takeovers import Cut, Stopped, Takeovers


# What happens to owners.
TROUBLES = {"stopped": [Stopped], "cut": [Cut], "mapped": [Stopped, Cut]}


class Switch:
    """What the links of the hosts are plugged into."""

    def __init__(self, process_id):
        self.process_id = process_id

    def link(self, name, state):
        """Changes the other end of a host's link."""
        words = ["nsenter", "--target", str(self.process_id), "--net", "ip", "link", "set", name, state]
        subprocess.run(words, check=True)


def arguments():
    parser = argparse.ArgumentParser(prog="two_hosts")
    parser.add_argument("what", choices=("stopped", "cut", "mapped", "clones"))
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--marcot", required=True)
    parser.add_argument("--directory", required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--credentials", required=True)
    parser.add_argument("--service", type=int, required=True, help="a process on the host of the service")
    parser.add_argument("--host", action="append", required=True, help="NAME=a process on that host")
    return parser.parse_args()


def main():
    # Whatever this process has started ends with it, by its parent-death signal.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    options = arguments()
    options.switch = Switch(options.service)
    hosts = []
    for host in options.host:
        name, process_id = host.split("=")
        hosts.append(Host(name, int(process_id), options))
    chance = random.Random(options.seed)
    try:
        prepare(hosts, options)
        if options.what == "clones":
            told = Clones(hosts, chance).run(options.count)
        else:
            door = Mapping if options.what == "mapped" else Server
            takeovers = Takeovers(hosts, chance, door, TROUBLES[options.what])
            takeovers.run(options.count)
            told = f"{options.count} takeovers, {takeovers.flushes} flushes acknowledged"
    except Violation as violation:
        print(f"# seed {options.seed}: {violation}".replace("\n", "\n#   "), flush=True)
        sys.exit(1)
    print(f"# {told}", flush=True)


def prepare(hosts, options):
    """A pool in an empty prefix of the bucket, on all hosts. One of an earlier test is left."""
    for host in hosts:
        host.run("pool", "detach", POOL)
    place = f"s3://{options.bucket}/{options.what}-{options.seed}"
    words = [POOL, "--backend", place, "--endpoint", options.endpoint, "--credentials", options.credentials]
    hosts[0].works("pool", "create", *words)
    for host in hosts[1:]:
        host.works("pool", "attach", *words)


main()
