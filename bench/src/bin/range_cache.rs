//! What the cache of a pool in a bucket costs, beside reads of a local file: a hit, a hit in an object that is here
//! as a whole, a miss, and removing objects from a full cache. The service answers at once.
//!
//! usage: range_cache DIRECTORY
//!
//! DIRECTORY gets some hundred MiB, and is left behind.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use marcot_backend::object::cache::{CACHE_BYTES_MIN, CHUNK_BYTES, RangeCache, RangeSource};
use marcot_format::PoolId;
use marcot_store::World;

const OBJECT_BYTES: u64 = 32 << 20;
const BLOCK_BYTES: u64 = 4096;
const READS: u64 = 400_000;
const ROUNDS: usize = 5;

/// A block of the object, in an order that jumps about.
fn place(i: u64) -> u64 {
    (i * 7919 % (OBJECT_BYTES / BLOCK_BYTES)) * BLOCK_BYTES
}

/// Nanoseconds of one call, the median of some rounds.
fn each(calls: u64, mut call: impl FnMut(u64) -> io::Result<()>) -> io::Result<u128> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        (0..calls).try_for_each(&mut call)?;
        times.push(start.elapsed().as_nanos() / u128::from(calls));
    }
    times.sort_unstable();
    Ok(times[ROUNDS / 2])
}

fn slowest(
    calls: u64,
    mut call: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<(Duration, Duration)> {
    let (mut worst, start) = (Duration::ZERO, Instant::now());
    for i in 0..calls {
        let before = Instant::now();
        call(i)?;
        worst = worst.max(before.elapsed());
    }
    Ok((start.elapsed() / calls as u32, worst))
}

fn main() -> io::Result<()> {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "usage: range_cache DIRECTORY"));
    };
    let world = World::system();
    let data: Arc<Vec<u8>> = Arc::new((0..OBJECT_BYTES).map(|i| (i / 9) as u8).collect());
    let of = Arc::clone(&data);
    let source: Arc<dyn RangeSource> =
        Arc::new(move |_: &str, range: Range<u64>| -> io::Result<_> {
            Ok(of[range.start as usize..range.end as usize].to_vec())
        });
    let cache = RangeCache::open(&world, directory.join("cache"), CACHE_BYTES_MIN)?;
    let object = |key: &str| cache.object(PoolId(1), key, Some(OBJECT_BYTES), Arc::clone(&source));
    let mut buf = [0; BLOCK_BYTES as usize];

    let local = local_file(&world, &directory, &data)?;
    let one = object("one");
    cache.make_whole(&one);
    let whole = loop {
        match cache.whole(&one) {
            Some(whole) => break whole,
            None => std::thread::yield_now(),
        }
    };
    for _ in 0..2 {
        println!("4 KiB, all in the page cache, ns each:");
        println!(
            "  local file      {}",
            each(READS, |i| local.read_at(place(i), &mut buf).map(drop))?
        );
        println!(
            "  plain file      {}",
            each(READS, |i| whole.read_at(place(i), &mut buf).map(drop))?
        );
        let through = each(READS, |i| {
            let whole = cache.whole(&one).ok_or(io::ErrorKind::NotFound)?;
            whole.read_at(place(i), &mut buf).map(drop)
        })?;
        println!("  whole, read     {through}");
        println!(
            "  cache, verified {}",
            each(READS, |i| cache.read(&one, place(i), &mut buf).map(drop))?
        );
    }
    let chunks = OBJECT_BYTES / CHUNK_BYTES;
    let (mean, worst) = slowest(16 * chunks, |i| {
        let object = object(&format!("many/{}", i / chunks));
        cache.read(&object, (i * 37 % chunks) * CHUNK_BYTES, &mut buf).map(drop)
    })?;
    println!(
        "a miss: 256 KiB fetched and stored, objects removed where the cache is full: {mean:?}, the slowest {worst:?}"
    );
    Ok(())
}

fn local_file(
    world: &World,
    directory: &Path,
    data: &[u8],
) -> io::Result<Arc<dyn marcot_store::DiskFile>> {
    let path = directory.join("local");
    let file = world.disk.create_new(&path, 0o600)?;
    file.write_at(0, &[data])?;
    Ok(file)
}
