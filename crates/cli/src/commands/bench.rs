//! `bench`: reads and writes an open image, and reports as `rbd` does.

use std::time::{Duration, Instant};

use marcot::{BlockDevice as _, Housekeeping as _, Image, Read, Write};

use super::IMAGE_OR_SNAP_SPEC;
use crate::args::names::{self, SnapRule, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, options};
use crate::errno::EINVAL;
use crate::failure::{Failure, Outcome, strerror};
use crate::output::{out, warn};
use crate::session::{self, Session};
use crate::{signals, size};

const IO_BYTES_DEFAULT: u64 = 4096;
const IO_THREADS_DEFAULT: u64 = 16;
const IO_TOTAL_BYTES_DEFAULT: u64 = 1 << 30;
const READ_PERCENT_DEFAULT: u64 = 50;
/// Memory for the requests of one round.
const ROUND_BYTES_MAX: u64 = 1 << 30;
/// Rows over which the rate is averaged.
const WINDOW_ROWS: usize = 5;

const IO: &[Opt] = &[
    Opt::new("io-size", Kind::Bytes, "IO size (in B/K/M/G/T) [default: 4K]"),
    Opt::new("io-threads", Kind::Integer, "ios in flight [default: 16]"),
    Opt::new("io-total", Kind::Bytes, "total size for IO (in B/K/M/G/T) [default: 1G]"),
    Opt::new(
        "io-pattern",
        Kind::Choice(&["rand", "seq", "full-seq"]),
        "IO pattern (rand, seq, or full-seq) [default: seq]",
    ),
    Opt::new("rw-mix-read", Kind::Integer, "read proportion in readwrite (<= 100) [default: 50]"),
];
const IO_TYPE: &[Opt] = &[Opt::new(
    "io-type",
    Kind::Choice(&["read", "write", "readwrite", "rw"]),
    "IO type (read, write, or readwrite(rw))",
)];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["bench"], "Simple benchmark.", bench)
        .positionals(&[IMAGE_OR_SNAP_SPEC])
        .options(&[options::SNAP, IO, IO_TYPE])
        .examples(&[
            ("bench --io-type write vm-1", "overwrites the image"),
            ("bench --io-type read --io-pattern rand --io-total 256M vm-1", "random reads"),
        ]),
    CommandSpec::new(
        &["bench-write"],
        "Simple write benchmark (deprecated: use 'bench --io-type write').",
        bench_write,
    )
    .positionals(&[IMAGE_OR_SNAP_SPEC])
    .options(&[options::SNAP, IO])
    .hidden(),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pattern {
    Random,
    Sequential,
    FullSequential,
}

/// The parameters of a run.
struct Plan {
    io_bytes: u64,
    threads: u64,
    total_bytes: u64,
    pattern: Pattern,
    /// Percentage of reads among the requests: 0 for writes only, 100 for reads only.
    read_percent: u64,
    name: &'static str,
}

fn bench(session: &Session, args: &Args) -> Outcome {
    run(session, args, args.text("io-type"))
}

fn bench_write(session: &Session, args: &Args) -> Outcome {
    let outcome = run(session, args, Some("write"));
    warn(session.program, "bench-write is deprecated, use rbd bench --io-type write ...");
    outcome
}

fn run(session: &Session, args: &Args, io_type: Option<&str>) -> Outcome {
    // Before anything else that may be wrong.
    let io_type = io_type.ok_or_else(|| Failure::invalid("--io-type must be specified."))?;
    let reads_only = io_type == "read";
    let snap = if reads_only { SnapRule::Permitted } else { SnapRule::None };
    let target = names::target(args, &mut 0, Wanted { snap, ..Wanted::IMAGE })?;
    let plan = Plan::new(args, io_type)?;
    let image = session.find(&target)?;
    let failed = |error: marcot::Error| Failure::engine("bench failed", &error);
    let mut device = match target.snap.as_str() {
        "" if reads_only && image.pool().read_only() => image.open_read_only().map_err(failed)?,
        "" => image.open().map_err(failed)?,
        name => {
            session::snapshot(&image, name)?;
            image.snapshot(name).open().map_err(failed)?
        }
    };
    plan.check_fits(device.size_bytes())?;
    signals::catch_and_watch();
    let outcome = measure(&plan, &mut device);
    let closed = device.close().map_err(failed);
    outcome.and(closed)
}

impl Plan {
    fn new(args: &Args, io_type: &str) -> Outcome<Self> {
        let io_bytes = args.bytes("io-size").unwrap_or(IO_BYTES_DEFAULT);
        let threads = args.integer("io-threads").unwrap_or(IO_THREADS_DEFAULT);
        let mix = args.integer("rw-mix-read").unwrap_or(READ_PERCENT_DEFAULT);
        let (name, read_percent) = match io_type {
            "read" => ("read", 100),
            "write" => ("write", 0),
            _ => ("readwrite", mix),
        };
        if io_bytes == 0 {
            return Err(Failure::invalid("--io-size should be greater than zero."));
        }
        if threads == 0 {
            return Err(Failure::invalid("--io-threads should be greater than zero."));
        }
        if read_percent > 100 {
            return Err(Failure::invalid("--rw-mix-read should not be larger than 100."));
        }
        let pattern = match args.text("io-pattern") {
            Some("rand") => Pattern::Random,
            Some("full-seq") => Pattern::FullSequential,
            _ => Pattern::Sequential,
        };
        let total_bytes = args.bytes("io-total").unwrap_or(IO_TOTAL_BYTES_DEFAULT);
        Ok(Self { io_bytes, threads, total_bytes, pattern, read_percent, name })
    }

    fn check_fits(&self, size_bytes: u64) -> Outcome {
        let (io, image) = (size::show(self.io_bytes), size::show(size_bytes));
        if self.io_bytes > size_bytes {
            let message = format!("io-size {io} larger than image size {image}");
            let second = format!("bench failed: ({EINVAL}) {}", strerror(EINVAL));
            return Err(Failure::invalid(message).then_bare(second));
        }
        if self.io_bytes.saturating_mul(self.threads) > ROUND_BYTES_MAX {
            let max = size::show(ROUND_BYTES_MAX);
            let message = format!("--io-size times --io-threads must not exceed {max}");
            return Err(Failure::invalid(message));
        }
        Ok(())
    }

    fn mixed(&self) -> bool {
        self.name == "readwrite"
    }

    fn header(&self) -> String {
        let mix = match self.mixed() {
            true => format!(" read:write={}:{}", self.read_percent, 100 - self.read_percent),
            false => String::new(),
        };
        let pattern = match self.pattern {
            Pattern::Random => "random",
            Pattern::Sequential => "sequential",
            Pattern::FullSequential => "full sequential",
        };
        format!(
            "bench  type {}{mix} io_size {} io_threads {} bytes {} pattern {pattern}\n\
             \x20 SEC       OPS   OPS/SEC   BYTES/SEC\n",
            self.name, self.io_bytes, self.threads, self.total_bytes
        )
    }
}

/// The offsets of the next requests.
struct Offsets {
    /// One offset for each thread; a full sequential run only uses the first.
    next: Vec<u64>,
    slots: u64,
    io_bytes: u64,
    pattern: Pattern,
    seed: u64,
}

impl Offsets {
    fn new(plan: &Plan, size_bytes: u64) -> Self {
        let slots = size_bytes / plan.io_bytes;
        let start = |thread| (slots / plan.threads.max(1)).saturating_mul(thread) % slots.max(1);
        let next = (0..plan.threads).map(start).collect();
        let seed = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_nsec as u64;
        Self { next, slots, io_bytes: plan.io_bytes, pattern: plan.pattern, seed: seed | 1 }
    }

    /// A random number (xorshift64*): good enough to scatter requests.
    fn random(&mut self) -> u64 {
        self.seed ^= self.seed >> 12;
        self.seed ^= self.seed << 25;
        self.seed ^= self.seed >> 27;
        self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn take(&mut self, thread: usize) -> u64 {
        let slot = match self.pattern {
            Pattern::Random => self.random() % self.slots.max(1),
            Pattern::Sequential => self.advance(thread),
            Pattern::FullSequential => self.advance(0),
        };
        slot * self.io_bytes
    }

    fn advance(&mut self, stream: usize) -> u64 {
        let slot = self.next[stream];
        self.next[stream] = (slot + 1) % self.slots.max(1);
        slot
    }
}

fn measure(plan: &Plan, device: &mut Image) -> Outcome {
    out(&plan.header())?;
    let mut offsets = Offsets::new(plan, device.size_bytes());
    let io_bytes = usize::try_from(plan.io_bytes).unwrap_or(0);
    let mut data = vec![0u8; io_bytes];
    for chunk in data.chunks_mut(8) {
        let random = offsets.random().to_le_bytes();
        chunk.copy_from_slice(&random[..chunk.len()]);
    }
    let mut meter = Meter::new(plan.io_bytes);
    let mut issued = 0u64;
    let (mut reads, mut writes) = (0u64, 0u64);
    while issued < plan.total_bytes && !signals::stop_asked() {
        let left = (plan.total_bytes - issued).div_ceil(plan.io_bytes);
        let round = plan.threads.min(left);
        let mut of_reads = Vec::new();
        let mut of_writes = Vec::new();
        for thread in 0..round as usize {
            let offset = offsets.take(thread);
            let read = offsets.random() % 100 < plan.read_percent;
            if read { of_reads.push(offset) } else { of_writes.push(offset) }
        }
        transfer(device, &of_reads, &of_writes, &data)?;
        reads += of_reads.len() as u64;
        writes += of_writes.len() as u64;
        issued += round * plan.io_bytes;
        meter.count(round)?;
    }
    device.flush().map_err(|error| Failure::engine("bench failed", &error))?;
    out(&meter.summary(plan.mixed().then_some((reads, writes))))
}

fn transfer(device: &mut Image, reads: &[u64], writes: &[u64], data: &[u8]) -> Outcome {
    let failed = |error: &marcot::Error| Failure::engine("bench failed", error);
    if !writes.is_empty() {
        let batch: Vec<Write<'_>> =
            writes.iter().map(|offset| Write { offset: *offset, data }).collect();
        device.write_batch(&batch).map_err(|e| failed(&e))?;
    }
    if !reads.is_empty() {
        let mut buffer = vec![0u8; data.len() * reads.len()];
        let mut batch: Vec<Read<'_>> = buffer
            .chunks_mut(data.len())
            .zip(reads)
            .map(|(buf, offset)| Read::new(*offset, buf))
            .collect();
        device.read_batch(&mut batch);
        if let Some(error) = batch.iter().find_map(|read| read.result.as_ref().err()) {
            return Err(failed(error));
        }
    }
    device.background_step().map(drop).map_err(|e| failed(&e))
}

/// Counts requests and prints a row every second.
struct Meter {
    start: Instant,
    io_bytes: u64,
    ops: u64,
    /// (time, requests) at the end of the last rows. The rate is computed since the oldest of them.
    rows: Vec<(Duration, u64)>,
}

impl Meter {
    fn new(io_bytes: u64) -> Self {
        Self { start: Instant::now(), io_bytes, ops: 0, rows: vec![(Duration::ZERO, 0)] }
    }

    fn count(&mut self, ops: u64) -> Outcome {
        self.ops += ops;
        let now = self.start.elapsed();
        let last = self.rows.last().map_or(0, |(time, _)| time.as_secs());
        if now.as_secs() <= last {
            return Ok(());
        }
        let (then, before) = self.rows[0];
        let rate = (self.ops - before) as f64 / (now - then).as_secs_f64();
        let bytes = size::show((rate * self.io_bytes as f64) as u64);
        self.rows.push((now, self.ops));
        if self.rows.len() > WINDOW_ROWS {
            self.rows.remove(0);
        }
        let rate = significant(rate);
        out(&format!("{:>5}{:>10}{rate:>10}{bytes:>10}/s\n", now.as_secs(), self.ops))
    }

    fn summary(&self, mixed: Option<(u64, u64)>) -> String {
        let seconds = self.start.elapsed().as_secs_f64();
        let rates = |ops: u64| {
            let rate = ops as f64 / seconds;
            (significant(rate), size::show((rate * self.io_bytes as f64) as u64))
        };
        let (rate, bytes) = rates(self.ops);
        let mut text = format!(
            "elapsed: {}   ops: {}   ops/sec: {rate}   bytes/sec: {bytes}/s\n",
            seconds as u64, self.ops
        );
        if let Some((reads, writes)) = mixed {
            for (name, ops) in [("read", reads), ("write", writes)] {
                let (rate, bytes) = rates(ops);
                text.push_str(&format!(
                    "{name}_ops: {ops}   {name}_ops/sec: {rate}   {name}_bytes/sec: {bytes}/s\n"
                ));
            }
        }
        text
    }
}

/// `number` with six significant digits and without trailing zeros, as C's `%g`.
fn significant(number: f64) -> String {
    if !number.is_finite() {
        return "inf".to_string();
    }
    let digits = if number < 1.0 { 0 } else { number.log10().floor() as usize };
    if digits >= 6 {
        let exponent = digits;
        let mantissa = trim_zeros(format!("{:.5}", number / 10f64.powi(exponent as i32)));
        return format!("{mantissa}e+{exponent:02}");
    }
    trim_zeros(format!("{number:.*}", 5 - digits))
}

fn trim_zeros(text: String) -> String {
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_six_digits() {
        for (number, text) in [
            (21333.333, "21333.3"),
            (64000.0, "64000"),
            (8094.33, "8094.33"),
            (5990.8, "5990.8"),
            (722.8916, "722.892"),
            (0.0, "0"),
            (2_500_000.0, "2.5e+06"),
        ] {
            assert_eq!(significant(number), text);
        }
    }

    #[test]
    fn sequential_streams_start_apart_and_wrap() {
        let plan = Plan {
            io_bytes: 10,
            threads: 2,
            total_bytes: 0,
            pattern: Pattern::Sequential,
            read_percent: 0,
            name: "write",
        };
        let mut offsets = Offsets::new(&plan, 45);
        assert_eq!([offsets.take(0), offsets.take(1), offsets.take(1)], [0, 20, 30]);
        assert_eq!(offsets.take(1), 0);
        assert_eq!(
            plan.header(),
            "bench  type write io_size 10 io_threads 2 bytes 0 pattern sequential\n  SEC       OPS   OPS/SEC   BYTES/SEC\n"
        );
    }
}
