//! How long the engine takes for what must not depend on size, depth or number, measured inside
//! the process. Prints one line a point: shape, what it was measured at, value and unit, separated
//! by tabs.
//!
//! usage: `shapes NAME DIRECTORY [SCALE]`
//!
//! NAME is `sizes`, `generations`, `images`, `busy`, `flatten`, `discard`, `memory` or `replay`;
//! SCALE divides the larger ranges, for a quick look. What is measured many times is given as its
//! median and, as `... (worst)`, its worst time.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use marcot::{
    BlockDevice, CloneOptions, CreateOptions, Error, ErrorKind, Housekeeping, Image, ImageId, Pool,
    Result, Store, Write,
};

const BLOCK: u64 = 4096;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// Repetitions behind a median.
const REPEATS: usize = 15;
/// Writes scattered over an image before it is measured, so that its map has every level.
const SCATTERED_WRITES: u64 = 256;
/// Writes handed over together, as a client with 32 requests in flight gives them.
const BATCH: usize = 32;
const WRITE_BYTES: usize = 1 << 20;

/// xorshift64*: scatters offsets and makes bytes that do not compress.
struct Scatter(u64);

impl Scatter {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn block_of(&mut self, size_bytes: u64) -> u64 {
        self.next() % (size_bytes / BLOCK) * BLOCK
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length / 8).flat_map(|_| self.next().to_le_bytes()).collect()
    }
}

fn show(shape: &str, at: &str, value: f64, unit: &str) {
    println!("{shape}\t{at}\t{value:.4}\t{unit}");
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Lets no figure depend on what was removed before it.
///
/// ext4 without a journal gives the inode of a removed file to nobody for a minute (for six, while
/// the removal is not on the medium), and looks at each of these whenever it makes a file, as long as
/// they are cached (fs/ext4/ialloc.c, `recently_deleted`). After the removal of a large pool a clone
/// takes 30 ms instead of 2; of what a measurement removes itself it takes 0.2 ms more a point.
fn settle() {
    rustix::fs::sync();
    if let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "1") {
        eprintln!(
            "shapes: cannot drop caches, so that figures may depend on earlier ones: {error}"
        );
    }
}

/// Times of one kind, to be shown as median and worst.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn take<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let done = work()?;
        self.0.push(start.elapsed());
        Ok(done)
    }

    /// Leaves out the first, which found nothing cached.
    fn forget_first(&mut self) {
        self.0.drain(..1.min(self.0.len()));
    }

    fn show(mut self, shape: &str, at: &str) {
        self.0.sort_unstable();
        if let (Some(median), Some(worst)) = (self.0.get(self.0.len() / 2), self.0.last()) {
            show(shape, at, ms(*median), "ms");
            show(&format!("{shape} (worst)"), at, ms(*worst), "ms");
        }
    }
}

struct Bench {
    store: Store,
    pool: Pool,
    scatter: Scatter,
    scale: u64,
}

fn main() -> std::process::ExitCode {
    let mut words = std::env::args().skip(1);
    let (Some(name), Some(directory)) = (words.next(), words.next()) else {
        eprintln!("usage: shapes NAME DIRECTORY [SCALE]");
        return 2.into();
    };
    let scale = words.next().and_then(|w| w.parse().ok()).unwrap_or(1).max(1);
    let outcome =
        Bench::new(&PathBuf::from(directory), scale).and_then(|mut bench| match name.as_str() {
            "sizes" => bench.sizes(),
            "generations" => bench.generations(),
            "images" => bench.images(),
            "busy" => bench.busy(),
            "flatten" => bench.flatten(),
            "discard" => bench.discard(),
            "memory" => bench.memory(),
            "replay" => bench.replay(),
            _ => Err(Error::new(ErrorKind::Invalid, format!("no shape '{name}'"))),
        });
    match outcome {
        Ok(()) => 0.into(),
        Err(error) => {
            eprintln!("shapes {name}: {}", error.sentence());
            1.into()
        }
    }
}

fn protect(image: &mut Image, snap: &str) -> Result<()> {
    image.snapshot(snap)?;
    image.protect(snap)
}

fn size_name(bytes: u64) -> String {
    if bytes >= TIB { format!("{} TiB", bytes / TIB) } else { format!("{} GiB", bytes / GIB) }
}

/// Memory of this process: now and at its highest.
fn resident_bytes() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let digits = line.and_then(|line| line.split_whitespace().next());
        digits.and_then(|d| d.parse::<f64>().ok()).unwrap_or(f64::NAN)
    };
    (kib("VmRSS:") / 1024.0, kib("VmHWM:") / 1024.0)
}

impl Bench {
    fn new(directory: &Path, scale: u64) -> Result<Self> {
        let store = Store::open(directory)?;
        let pool = match store.pool("shapes") {
            Ok(pool) => pool,
            Err(_) => store.pool_create("shapes", &marcot::PoolOptions::default())?,
        };
        Ok(Self { store, pool, scatter: Scatter(88_172_645_463_325_252), scale })
    }

    fn create(&self, name: &str, size_bytes: u64) -> Result<ImageId> {
        let options = CreateOptions::sized(size_bytes);
        self.pool.create(name, &options)
    }

    fn clone_of(&self, parent: ImageId, snap: &str, name: &str) -> Result<ImageId> {
        let options = CloneOptions::default();
        self.pool.snapshot(parent, snap).clone_to(&self.pool, name, &options)
    }

    fn remove(&self, image: ImageId) -> Result<()> {
        self.store.remove_image(&self.pool, image, &mut |_, _| {})
    }

    fn scatter_writes(&mut self, image: &mut Image, count: u64) -> Result<()> {
        let size = image.size_bytes();
        let data = self.scatter.bytes(BLOCK as usize);
        let mut left = count as usize;
        while left > 0 {
            let n = left.min(BATCH);
            let writes: Vec<Write<'_>> = (0..n)
                .map(|_| Write { offset: self.scatter.block_of(size), data: &data })
                .collect();
            image.write_batch(&writes)?;
            image.background_step()?;
            left -= n;
        }
        Ok(())
    }

    fn fill(&mut self, image: &mut Image, bytes: u64) -> Result<()> {
        let data = self.scatter.bytes(WRITE_BYTES);
        for offset in (0..bytes).step_by(WRITE_BYTES) {
            image.write_batch(&[Write { offset, data: &data }])?;
            image.background_step()?;
        }
        image.flush()
    }

    /// Snapshot, clone, and open to the first byte, of one image; the times go under `at`.
    fn measure_image(&mut self, range: &str, image: ImageId, at: &str) -> Result<()> {
        let (mut snap, mut clone, mut open) =
            (Times::default(), Times::default(), Times::default());
        settle();
        let mut owner = self.pool.open(image)?;
        for number in 0..=REPEATS {
            let name = format!("idle-{number}");
            snap.take(|| owner.snapshot(&name))?;
            owner.remove_snapshot(&name, false)?;
        }
        protect(&mut owner, "measured")?;
        owner.close()?;
        for number in 0..=REPEATS {
            let name = format!("clone-{range}-{number}");
            let child = clone.take(|| self.clone_of(image, "measured", &name))?;
            self.open_to_first_byte(child, &mut open)?;
            self.remove(child)?;
        }
        for times in [&mut snap, &mut clone, &mut open] {
            times.forget_first();
        }
        snap.show(&format!("snap create, idle, by {range}"), at);
        clone.show(&format!("clone, by {range}"), at);
        open.show(&format!("open to first byte, by {range}"), at);
        Ok(())
    }

    fn open_to_first_byte(&mut self, image: ImageId, times: &mut Times) -> Result<()> {
        let pool = self.pool.clone();
        let mut block = vec![0; BLOCK as usize];
        let opened = times.take(|| {
            let mut opened = pool.open(image)?;
            opened.read_at(0, &mut block)?;
            Ok(opened)
        })?;
        opened.close()
    }

    fn sizes(&mut self) -> Result<()> {
        for size in [GIB, 32 * GIB, TIB, 16 * TIB, 64 * TIB] {
            let at = size_name(size);
            let image = self.create(&format!("size-{at}"), size)?;
            let mut owner = self.pool.open(image)?;
            let data = self.scatter.bytes(BLOCK as usize);
            owner.write_at(0, &data)?;
            owner.write_at(size - BLOCK, &data)?;
            self.scatter_writes(&mut owner, SCATTERED_WRITES)?;
            owner.close()?;
            self.measure_image("size", image, &at)?;
        }
        Ok(())
    }

    fn generations(&mut self) -> Result<()> {
        let mut image = self.create("generation-0", GIB)?;
        let last = 1000 / self.scale;
        for generation in 1..=last {
            let mut owner = self.pool.open(image)?;
            self.scatter_writes(&mut owner, 8)?;
            protect(&mut owner, "base")?;
            owner.close()?;
            image = self.clone_of(image, "base", &format!("generation-{generation}"))?;
            if [1, 10, 100, 1000].contains(&generation) {
                let mut owner = self.pool.open(image)?;
                self.scatter_writes(&mut owner, 8)?;
                owner.close()?;
                self.measure_image("generation", image, &generation.to_string())?;
            }
        }
        Ok(())
    }

    /// Leaves the pool full, so that listing can be measured from outside.
    fn images(&mut self) -> Result<()> {
        let template = self.create("template", GIB)?;
        let mut owner = self.pool.open(template)?;
        self.scatter_writes(&mut owner, SCATTERED_WRITES)?;
        protect(&mut owner, "base")?;
        owner.close()?;
        let mut there = 1;
        let most = 10_000 / self.scale;
        for count in [1, 10, 100, 1000, 10_000].into_iter().filter(|count| *count <= most) {
            while there < count {
                self.clone_of(template, "base", &format!("image-{there}"))?;
                there += 1;
            }
            let image = self.create(&format!("measured-{count}"), GIB)?;
            let mut owner = self.pool.open(image)?;
            self.scatter_writes(&mut owner, SCATTERED_WRITES)?;
            owner.close()?;
            self.measure_image("images in the pool", image, &count.to_string())?;
        }
        Ok(())
    }

    /// Snapshots of an image that is being written, with what came since the last in memory.
    fn busy(&mut self) -> Result<()> {
        let image = self.create("busy", 4 * GIB)?;
        let mut owner = self.pool.open(image)?;
        for (at, writes) in [("1 MiB written since", 256), ("32 MiB written since", 8192)] {
            let mut times = Times::default();
            for number in 0..REPEATS {
                self.scatter_writes(&mut owner, writes)?;
                let name = format!("busy-{writes}-{number}");
                times.take(|| owner.snapshot(&name))?;
            }
            times.show("snap create, busy", at);
        }
        owner.close()
    }

    fn flatten(&mut self) -> Result<()> {
        let size = (10 * GIB / self.scale).next_multiple_of(WRITE_BYTES as u64);
        let parent = self.create("flatten-parent", size)?;
        let mut owner = self.pool.open(parent)?;
        self.fill(&mut owner, size)?;
        protect(&mut owner, "base")?;
        owner.close()?;
        let mut times = Times::default();
        for number in 0..3 {
            let child = self.clone_of(parent, "base", &format!("flatten-{number}"))?;
            let mut owner = self.pool.open(child)?;
            self.scatter_writes(&mut owner, SCATTERED_WRITES)?;
            times.take(|| owner.flatten())?;
            owner.close()?;
        }
        times.show("flatten in the same pool", &format!("{} MiB", size >> 20));
        Ok(())
    }

    fn discard(&mut self) -> Result<()> {
        let empty = self.create("discard-empty", 16 * TIB)?;
        let mut owner = self.pool.open(empty)?;
        let mut times = Times::default();
        for _ in 0..REPEATS {
            times.take(|| owner.discard(0, 16 * TIB))?;
        }
        owner.close()?;
        times.show("discard of all of an empty image", "16 TiB");
        let size = (4 * GIB / self.scale).next_multiple_of(WRITE_BYTES as u64);
        let full = self.create("discard-full", size)?;
        let mut owner = self.pool.open(full)?;
        self.fill(&mut owner, size)?;
        let mut times = Times::default();
        times.take(|| {
            owner.discard(0, size)?;
            owner.flush()
        })?;
        owner.close()?;
        times.show("discard of all of a full image", &format!("{} MiB", size >> 20));
        Ok(())
    }

    /// Random writes over an image whose map is many times the cap.
    fn memory(&mut self) -> Result<()> {
        let image = self.create("scattered", 64 * TIB)?;
        let mut owner = self.pool.open(image)?;
        let (before, _) = resident_bytes();
        let writes = 65_536 / self.scale;
        self.scatter_writes(&mut owner, writes)?;
        let (after, highest) = resident_bytes();
        let at = format!("{writes} writes over 64 TiB");
        show("memory under random writes", &at, highest - before, "MiB");
        show("memory after random writes", &at, after - before, "MiB");
        owner.close()
    }

    /// Opening after a crash, with as much log as there may be.
    fn replay(&mut self) -> Result<()> {
        for (at, batch) in [("groups of 1 block", 1), ("groups of 32 blocks", BATCH)] {
            let image = self.create(&format!("replay-{batch}"), 4 * GIB)?;
            let mut owner = self.pool.open(image)?;
            let data = self.scatter.bytes(BLOCK as usize);
            // As many groups as fit below the size at which a write makes a checkpoint.
            let groups = (120 << 20) / ((batch as u64 + 1) * BLOCK);
            for _ in 0..groups / self.scale {
                let writes: Vec<Write<'_>> = (0..batch)
                    .map(|_| Write { offset: self.scatter.block_of(4 * GIB), data: &data })
                    .collect();
                owner.write_batch(&writes)?;
            }
            // Dropped without closing: what a killed process leaves behind.
            drop(owner);
            let mut times = Times::default();
            self.open_to_first_byte(image, &mut times)?;
            times.show("replay after a crash", at);
        }
        Ok(())
    }
}
