"""Blocks of XFS that a power cut must not tear, because XFS does not survive that.

XFS writes the number of the log record that a block of metadata was last changed by (its LSN) into the
block's first sector. Recovery after a crash does not write such a block again where that number says
that it is there already, so it takes for granted that the rest of the block came with the first sector. A
block of which the first sector alone arrived stays as it is, its checksum is wrong, and the file system
does not mount. (`xlog_recover_get_buf_lsn` in fs/xfs/xfs_buf_item_recover.c of Linux; tried: with the
first sector alone, the next mount fails; with all but the first, or all, it does not.) That is so however small
the sectors of the disk are said to be, and no fault of what is stored in the file system's files.

So these blocks arrive whole or not at all, as on a disk with sectors of 4096 bytes. All else is torn by sectors
of 512 bytes: the content of files, which is what is tested here, the log, which is made for that, and what
XFS keeps in one sector (superblock, heads of allocation groups, inodes).

https://docs.kernel.org/filesystems/xfs/xfs-self-describing-metadata.html
"""

# At the beginning of a block: B+trees, directories, symbolic links. Remote values of attributes are not logged.
MAGICS = frozenset((b"AB3B", b"AB3C", b"IAB3", b"FIB3", b"BMA3", b"RMB3", b"R3FC", b"XDB3", b"XDD3", b"XDF3", b"XSLM"))
# Behind the links to its neighbours, and two zeros: leaves and nodes of directories and attributes.
NODE_MAGICS = frozenset((b"\x3d\xf1\0\0", b"\x3d\xff\0\0", b"\x3b\xee\0\0", b"\x3e\xbe\0\0"))


def stays_whole(block):
    """True for a block of metadata of several sectors that has an LSN."""
    return block[:4] in MAGICS or block[8:12] in NODE_MAGICS
