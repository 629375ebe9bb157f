//! What one request must cost at the least on this machine: checksum, copy, system calls, socket,
//! medium. Prints one line a figure: name, a tab, nanoseconds for one.
//!
//! usage: limits DIRECTORY      on the disk to be measured

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use marcot_format::crc32c;
use marcot_store::{Disk, DiskFile, FileRead, LocalDisk};

const BLOCK: usize = 4096;
/// Bytes of a request for a block, and of the reply's head, in the NBD protocol.
const REQUEST_BYTES: usize = 28;
const REPLY_BYTES: usize = 16;
/// Far more than the processor caches, far less than memory.
const FILE_BLOCKS: u64 = 65_536;
/// One measurement lasts at least so long.
const TIME_MIN: Duration = Duration::from_millis(200);
/// Requests handled together at depth 32.
const DEPTH: usize = 32;

/// Repeats `work` for the least time and prints nanoseconds for each of the `units` of one call.
fn report(name: &str, units: u32, mut work: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    work()?;
    let start = Instant::now();
    let mut calls = 0_u32;
    while start.elapsed() < TIME_MIN {
        work()?;
        calls += 1;
    }
    println!("{name}\t{:.0}", start.elapsed().as_nanos() as f64 / f64::from(calls * units));
    Ok(())
}

/// xorshift64*: scatters offsets.
struct Scatter(u64);

impl Scatter {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end
    }
}

fn main() -> io::Result<()> {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "usage: limits DIRECTORY"));
    };
    memory()?;
    sockets()?;
    let path = directory.join("limits.tmp");
    let outcome = files(&path);
    std::fs::remove_file(&path)?;
    outcome
}

fn memory() -> io::Result<()> {
    let from: Vec<u8> = (0..BLOCK * 1024).map(|i| (i % 251) as u8).collect();
    let mut to = vec![0; BLOCK];
    let mut scatter = Scatter(1);
    let mut place = move || scatter.below(1024) as usize * BLOCK;
    report("crc32c of 4 KiB", 1, || {
        let at = place();
        black_box(crc32c(black_box(&from[at..at + BLOCK])));
        Ok(())
    })?;
    let mut scatter = Scatter(2);
    report("copy of 4 KiB", 1, || {
        let at = scatter.below(1024) as usize * BLOCK;
        to.copy_from_slice(&from[at..at + BLOCK]);
        black_box(&mut to);
        Ok(())
    })?;
    report("the cheapest system call", 1, || {
        black_box(rustix::process::getppid());
        Ok(())
    })
}

/// A request and its reply between two threads that block, and the server's half of it alone.
fn sockets() -> io::Result<()> {
    for (name, there, back) in [
        ("socket round trip of a 4 KiB read", REQUEST_BYTES, REPLY_BYTES + BLOCK),
        ("socket round trip of a 4 KiB write", REQUEST_BYTES + BLOCK, REPLY_BYTES),
    ] {
        let (mut ours, mut theirs) = UnixStream::pair()?;
        let server = std::thread::spawn(move || -> io::Result<()> {
            let (mut request, reply) = (vec![0; there], vec![0; back]);
            while theirs.read_exact(&mut request).is_ok() {
                theirs.write_all(&reply)?;
            }
            Ok(())
        });
        let (request, mut reply) = (vec![0; there], vec![0; back]);
        report(name, 1, || {
            ours.write_all(&request)?;
            ours.read_exact(&mut reply)
        })?;
        drop(ours);
        server.join().map_err(|_| io::Error::other("the echo thread panicked"))??;
    }
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let (message, mut got) = (vec![0; REPLY_BYTES + BLOCK], vec![0; REPLY_BYTES + BLOCK]);
    report("send and receive of 4 KiB without a wake-up", 1, || {
        ours.write_all(&message)?;
        theirs.read_exact(&mut got)
    })
}

fn files(path: &Path) -> io::Result<()> {
    let block = vec![0xa5; BLOCK];
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    for at in 0..FILE_BLOCKS {
        file.write_all_at(&block, at * BLOCK as u64)?;
    }
    file.sync_all()?;
    let mut buffer = vec![0; BLOCK];
    let mut scatter = Scatter(3);
    report("pread of 4 KiB in page cache", 1, || {
        file.read_exact_at(&mut buffer, scatter.below(FILE_BLOCKS) * BLOCK as u64)
    })?;
    batch(path)?;
    report("pwrite of 4 KiB over page cache", 1, || {
        file.write_all_at(&block, scatter.below(FILE_BLOCKS) * BLOCK as u64)
    })?;
    file.sync_all()?;
    let mut at = 0;
    report("fdatasync after 8 KiB into a file written before", 1, || {
        file.write_all_at(&block, at)?;
        file.write_all_at(&block, at + BLOCK as u64)?;
        at = (at + 2 * BLOCK as u64) % (FILE_BLOCKS * BLOCK as u64);
        file.sync_data()
    })?;
    file.set_len(0)?;
    file.sync_all()?;
    at = 0;
    report("fdatasync after 8 KiB into a growing file", 1, || {
        file.write_all_at(&block, at)?;
        file.write_all_at(&block, at + BLOCK as u64)?;
        at += 2 * BLOCK as u64;
        file.sync_data()
    })?;
    appends(&file)
}

/// Groups as the log writes them: a header block and the data, into a file that grows.
fn appends(file: &File) -> io::Result<()> {
    let block = vec![0x5a; BLOCK];
    for (name, blocks) in
        [("append of a group of 1 block", 1), ("append of a group of 32 blocks", DEPTH)]
    {
        file.set_len(0)?;
        let parts: Vec<io::IoSlice<'_>> = vec![io::IoSlice::new(&block); blocks + 1];
        let mut at = 0;
        report(name, 1, || {
            at = (at + rustix::io::pwritev(file.as_fd(), &parts, at)? as u64) % (1 << 30);
            Ok(())
        })?;
    }
    Ok(())
}

/// Reads of depth 32 as one batch, the way the store does them.
fn batch(path: &Path) -> io::Result<()> {
    let disk = LocalDisk::new();
    let file: Arc<dyn DiskFile> = disk.open(path, false)?;
    let mut buffers = vec![vec![0; BLOCK]; DEPTH];
    let mut scatter = Scatter(4);
    report("4 KiB of a batch of 32 reads in page cache", DEPTH as u32, || {
        let mut reads: Vec<FileRead<'_>> = buffers
            .iter_mut()
            .map(|buf| {
                let offset = scatter.below(FILE_BLOCKS) * BLOCK as u64;
                FileRead { file: &*file, offset, buf, result: Ok(0) }
            })
            .collect();
        disk.read_batch(&mut reads);
        reads.into_iter().try_for_each(|read| read.result.map(drop))
    })
}
