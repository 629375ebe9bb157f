"""Kills and power cuts, one after the other, on stores that stay in use. See scripts/torture."""
import argparse
import os
import random
import sys
import time
import traceback

from . import xfs
from .bucket import BucketHost, Place
from .disk import SECTOR, Disk
from .history import Violation
from .machine import Dead, Guest, Local
from .torture import Pace, Torture
from .writer import Figures

SECTORS_PER_MIB = 2048
# Kills: images of 48 MiB. A heavy round writes until checkpoints and compaction are in progress.
KILL_IMAGE_MIB = 48
KILL_PACE = Pace(0.5, 0.12, (32 << 20, 320 << 20))
# Cuts: smaller images and less to write, since they happen in an emulated machine.
CUT_IMAGE_MIB = 16
CUT_PACE = Pace(2.0, 0.1, (8 << 20, 90 << 20))
CUT_DISK_BYTES = 2 << 30
# Buckets: small images, since every step is some requests to a service that may be slow.
BUCKET_IMAGE_MIB = 12
BUCKET_PACE = Pace(1.0, 0.1, (4 << 20, 40 << 20))
# Crashes on one store, before a new store is made. So a run has both file systems and new stores.
CUTS_PER_STORE = 13
KILLS_PER_STORE = 50
FILE_SYSTEMS = ("ext4", "xfs")


def arguments():
    parser = argparse.ArgumentParser(prog="torture")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--backend")
    parser.add_argument("--endpoint")
    parser.add_argument("--flush", choices=("remote", "local"), default="remote")
    parser.add_argument("--lying-flush", action="store_true")
    parser.add_argument("--lying-disk", action="store_true")
    parser.add_argument("--marcot", required=True)
    parser.add_argument("--directory", required=True)
    parser.add_argument("--kernel")
    parser.add_argument("--initramfs")
    parser.add_argument("--job")
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args()


def make_file_system(kind, path):
    """An empty file system in a sparse file."""
    with open(path, "wb") as file:
        file.truncate(CUT_DISK_BYTES)
    # By default, xfs uses the sector size of the file system that the file lies on.
    command = f"mkfs.ext4 -q -F {path}" if kind == "ext4" else f"mkfs.xfs -q -f -s size={SECTOR} {path}"
    if os.system(command) != 0:
        sys.exit(f"torture: cannot make {kind}")


def killed(options, directory, chance, figures):
    machine = Local(options.marcot, directory, chance)
    return Torture(machine, chance, figures, KILL_IMAGE_MIB * SECTORS_PER_MIB, KILL_PACE)


def killed_host(options, directory, chance, figures):
    number = directory.rpartition("/")[2]
    further = ("--endpoint", options.endpoint) if options.endpoint else ()
    # What is flushed to the host alone is lost with the host. A run that takes it for more has to fail.
    flush = "local" if options.lying_flush else options.flush
    place = Place(f"{options.backend}/{number}", further, flush, loses_hosts=options.flush == "remote")
    machine = BucketHost(options.marcot, directory, chance, place)
    return Torture(machine, chance, figures, BUCKET_IMAGE_MIB * SECTORS_PER_MIB, BUCKET_PACE)


def cut(options, directory, chance, figures, kind):
    make_file_system(kind, f"{directory}/disk.raw")
    disk = Disk(f"{directory}/disk.raw", f"{directory}/disk.sock", CUT_DISK_BYTES, chance.random(), options.lying_disk)
    if kind == "xfs":
        disk.stays_whole = xfs.stays_whole
    machine = Guest(directory, options.kernel, options.initramfs, options.job, disk, chance)
    return Torture(machine, chance, figures, CUT_IMAGE_MIB * SECTORS_PER_MIB, CUT_PACE)


def survive(torture, crashes, what, verbose):
    """Makes crashes until there are `crashes`; raises the error that is found."""
    if verbose:
        torture.note = lambda text: print(f"  {torture.crashes}: {text}", flush=True)
    torture.begin()
    began = time.monotonic()
    while torture.crashes < crashes:
        torture.round()
        if torture.crashes % 10 == 0:
            print(f"# {torture.crashes} {what}, {time.monotonic() - began:.0f} s", flush=True)
    torture.end()
    if crashes > 1 and not torture.figures.writes:
        raise Violation("nothing was written, so the run proves nothing")
    return torture.crashes


def stores(options):
    """Yields (what, crashes, builder, its further arguments) for one store after the other."""
    left = options.kills
    while left > 0:
        if options.backend:
            yield f"ends in a bucket with flush={options.flush}", min(left, KILLS_PER_STORE), killed_host, ()
        else:
            yield "kills", min(left, KILLS_PER_STORE), killed, ()
        left -= KILLS_PER_STORE
    left, turn = options.cuts, options.seed
    while left > 0:
        kind = FILE_SYSTEMS[turn % 2]
        yield f"power cuts on {kind}", min(left, CUTS_PER_STORE), cut, (kind,)
        left, turn = left - CUTS_PER_STORE, turn + 1


def report(done, figures, seconds):
    print(", ".join(f"{count} {what}" for what, count in done.items()) + f" in {seconds:.0f} s")
    print(f"{figures.writes} writes ({figures.bytes >> 20} MiB), {figures.discards} discards, {figures.flushes} flushes; "
          f"{figures.verified_bytes >> 20} MiB read back; "
          f"{figures.lost_unflushed} writes that were acknowledged and never flushed were lost with the power")
    for kind in sorted(figures.commands | figures.interrupted):
        print(f"  {kind}: {figures.commands.get(kind, 0)} done, {figures.interrupted.get(kind, 0)} cut off, "
              f"{figures.refused.get(kind, 0)} refused as busy")


def main():
    options = arguments()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {options.seed}", flush=True)
    figures, done, began = Figures(), {}, time.monotonic()
    for number, (what, crashes, build, more) in enumerate(stores(options)):
        directory = f"{options.directory}/{number}"
        os.makedirs(directory)
        chance = random.Random(f"{options.seed}/{number}")
        torture = build(options, directory, chance, figures, *more)
        try:
            done[what] = done.get(what, 0) + survive(torture, crashes, what, options.verbose)
        except Exception as error:
            # Any other exception is a mistake of the harness. The store is kept for that too.
            if not isinstance(error, (Violation, Dead, OSError, ValueError)):
                traceback.print_exc()
            torture.machine.crash()
            print(f"\nafter {torture.crashes} {what}: {error}\nseed {options.seed}; kept: {directory}")
            report(done, figures, time.monotonic() - began)
            sys.exit(1)
    report(done, figures, time.monotonic() - began)


main()
