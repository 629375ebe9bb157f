#!/usr/bin/env python3
"""Exchanges directories and links in a directory for ever, as an attacker does who wants to lead a removal elsewhere.

usage: exchange.py DIRECTORY ELSEWHERE
"""
import contextlib
import os
import random
import sys


def main(directory, elsewhere):
    os.chdir(directory)
    steps = [
        lambda: os.makedirs("tree/in/in"),
        lambda: os.close(os.open("tree/in/file", os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW)),
        lambda: os.symlink(elsewhere, "link"),
        lambda: os.symlink(elsewhere, "tree/in/link"),
        lambda: os.rename("tree/in", "tree/other"),
        lambda: os.symlink(elsewhere, "tree/in"),
        lambda: os.rename("tree", "moved"),
        lambda: os.rename("link", "tree"),
        lambda: os.rename("moved", "tree/in/moved"),
        lambda: os.unlink("tree"),
    ]
    # An open directory can be changed even after it was moved.
    held = None
    while True:
        with contextlib.suppress(OSError):
            if held is None or random.random() < 0.01:
                if held is not None:
                    os.close(held)
                    held = None
                held = os.open("tree", os.O_DIRECTORY | os.O_NOFOLLOW)
            os.mkdir(f"{random.random()}", dir_fd=held)
        with contextlib.suppress(OSError):
            # By a path this could make files elsewhere, through a link in the directory's place.
            if not os.path.islink("tree") and not os.path.islink("tree/in"):
                random.choice(steps)()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
