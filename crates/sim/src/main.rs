//! Runs fresh seeds for a time, or one seed again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use marcot_sim::machines::{copying, stalls, turmoil};
use marcot_sim::shrink::shrink;
use marcot_sim::{Operation, Outcome, Profile, Rule, Settings, Violation, generate, records, run};

/// Number of operations in a sequence.
const LENGTH: usize = 60;
/// One in this many requests of an owner on several machines is one at which it is stalled.
const STALLED_ONE_IN: u64 = 23;
/// Rounds of a random sequence on several machines.
const ROUNDS: u64 = 8;
/// One in this many seeds runs on several machines too.
const ON_MACHINES_ONE_IN: u64 = 4;
/// The parts of a seed: one machine with disks that fail, and several machines with pools in a bucket.
const PARTS: [&str; 2] = ["machine", "bucket"];
/// Seconds between two lines of progress.
const PROGRESS_S: u64 = 20;

struct Arguments {
    minutes: f64,
    seed: u64,
    runs: Option<u64>,
    threads: usize,
    /// Only what has this name: `machine` or `bucket`.
    only: Option<String>,
}

impl Arguments {
    fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == part)
    }
}

fn arguments() -> Result<Arguments, String> {
    let mut found = Arguments { minutes: 1.0, seed: 0, runs: None, threads: 0, only: None };
    let mut all = std::env::args().skip(1);
    while let Some(name) = all.next() {
        let value = all.next().ok_or(format!("{name} needs a value"))?;
        let bad = |_| format!("{name} {value}: not a number");
        match name.as_str() {
            "--minutes" => {
                found.minutes =
                    value.parse().map_err(|_| format!("{name} {value}: not a number"))?
            }
            "--seed" => found.seed = value.parse().map_err(bad)?,
            "--runs" => found.runs = Some(value.parse().map_err(bad)?),
            "--only" if PARTS.contains(&value.as_str()) => found.only = Some(value),
            "--threads" => found.threads = value.parse().map_err(bad)?,
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok(found)
}

/// The sequence of a seed, and how it is run.
fn sequence(seed: u64) -> (Settings, Vec<Operation>) {
    let profile = Profile::of(seed);
    // Half of the seeds try a crash at every change. The others try fewer crashes, and so get further.
    let crash_one_in = if seed & 16 == 0 { 1 } else { 8 };
    let length = if crash_one_in == 1 { LENGTH } else { 3 * LENGTH };
    let settings = Settings { seed, profile, crash_one_in, lines: false };
    (settings, generate(seed, profile, length))
}

#[derive(Default)]
struct Totals {
    seeds: AtomicU64,
    operations: AtomicU64,
    ios: AtomicU64,
    crashes: AtomicU64,
    faults: AtomicU64,
    calls: AtomicU64,
    stalls: AtomicU64,
    acts: AtomicU64,
    deaths: AtomicU64,
    service_faults: AtomicU64,
}

impl Totals {
    fn add(&self, outcome: &Outcome) {
        self.seeds.fetch_add(1, Ordering::Relaxed);
        self.operations.fetch_add(outcome.operations, Ordering::Relaxed);
        self.ios.fetch_add(outcome.ios, Ordering::Relaxed);
        self.crashes.fetch_add(outcome.crashes, Ordering::Relaxed);
        self.faults.fetch_add(outcome.faults, Ordering::Relaxed);
    }

    fn line(&self) -> String {
        format!(
            "{} seeds, {} operations, {} I/Os, {} crashes, {} faults of the medium; in a bucket {} calls, \
             {} stalls, {} acts, {} deaths of machines, {} faults of the service",
            self.seeds.load(Ordering::Relaxed),
            self.operations.load(Ordering::Relaxed),
            self.ios.load(Ordering::Relaxed),
            self.crashes.load(Ordering::Relaxed),
            self.faults.load(Ordering::Relaxed),
            self.calls.load(Ordering::Relaxed),
            self.stalls.load(Ordering::Relaxed),
            self.acts.load(Ordering::Relaxed),
            self.deaths.load(Ordering::Relaxed),
            self.service_faults.load(Ordering::Relaxed)
        )
    }
}

/// Runs the records and images of a seed on several machines, with pools in a bucket.
fn on_machines(seed: u64, totals: &Totals) -> Result<(), Violation> {
    let ran = records::run(seed)?;
    let cases = stalls::cases(seed);
    let case = cases[(seed / ON_MACHINES_ONE_IN) as usize % cases.len()];
    let stalls = stalls::run_all(case, STALLED_ONE_IN)?;
    copying::run(seed)?;
    let turmoil = turmoil::run(seed, ROUNDS)?;
    totals.calls.fetch_add(ran.calls, Ordering::Relaxed);
    totals.stalls.fetch_add(stalls, Ordering::Relaxed);
    totals.acts.fetch_add(turmoil.done.acts, Ordering::Relaxed);
    totals.deaths.fetch_add(turmoil.deaths, Ordering::Relaxed);
    totals.service_faults.fetch_add(ran.faults + turmoil.faults, Ordering::Relaxed);
    Ok(())
}

fn report(seed: u64, outcome: &Outcome, settings: Settings, operations: &[Operation]) {
    let Some(failure) = &outcome.failure else { return };
    println!("\nseed {seed} fails: {:?}: {}", failure.violation.rule, failure.violation.message);
    println!(
        "operation {}, crash at I/O {:?}; looking for a small trace ...",
        failure.step, failure.crash
    );
    let small = shrink(settings, operations, failure);
    println!("violated rule: {:?}", small.failure.violation.rule);
    println!("what is wrong: {}", small.failure.violation.message);
    println!("minimal trace ({} operations):", small.operations.len());
    for operation in &small.operations {
        println!("    {operation}");
    }
    if let Some(io) = small.failure.crash {
        println!("crash before I/O {io}; the last I/Os up to it, and those of the recovery:");
    } else {
        println!("the last I/Os:");
    }
    let lines = &small.failure.lines;
    for line in &lines[lines.len().saturating_sub(80)..] {
        println!("    {line}");
    }
    println!("again: scripts/sim --seed {seed} --runs 1");
}

fn work(
    first: u64,
    index: u64,
    threads: u64,
    arguments: &Arguments,
    totals: &Totals,
    failed: &AtomicBool,
    printing: &Mutex<()>,
) {
    let end = Instant::now() + Duration::from_secs_f64(arguments.minutes * 60.0);
    let mut number = index;
    loop {
        let over = match arguments.runs {
            Some(runs) => number >= runs,
            None => Instant::now() >= end,
        };
        if over || failed.load(Ordering::Relaxed) {
            return;
        }
        let seed = first.wrapping_add(number);
        if arguments.wants(PARTS[0]) {
            let (settings, operations) = sequence(seed);
            let outcome = run(settings, &operations);
            totals.add(&outcome);
            if outcome.failure.is_some() {
                let _printing = printing.lock().unwrap_or_else(PoisonError::into_inner);
                if !failed.swap(true, Ordering::Relaxed) {
                    report(seed, &outcome, settings, &operations);
                }
            }
        }
        if arguments.wants(PARTS[1]) && seed.is_multiple_of(ON_MACHINES_ONE_IN) {
            let tried = catch_unwind(AssertUnwindSafe(|| on_machines(seed, totals)));
            let panicked = |_| Err(Violation { rule: Rule::Panic, message: "a panic".to_owned() });
            if let Err(violation) = tried.unwrap_or_else(panicked) {
                let _printing = printing.lock().unwrap_or_else(PoisonError::into_inner);
                if !failed.swap(true, Ordering::Relaxed) {
                    println!(
                        "\nseed {seed} fails on several machines: {:?}: {}",
                        violation.rule, violation.message
                    );
                    println!("again: scripts/sim --seed {seed} --runs 1");
                }
            }
        }
        number += threads;
    }
}

#[expect(clippy::disallowed_methods, reason = "a fresh seed comes from outside")]
fn fresh_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(1, |d| d.as_nanos() as u64 / 1000)
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("marcot-sim: {message}");
            return ExitCode::from(2);
        }
    };
    // Panics are findings. They are caught and reported once, and not printed at each try.
    std::panic::set_hook(Box::new(|_| {}));
    let first = if arguments.seed == 0 { fresh_seed() } else { arguments.seed };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if arguments.threads == 0 { cores } else { arguments.threads };
    println!("seed {first}, {threads} threads");
    let (totals, failed, printing) = (Totals::default(), AtomicBool::new(false), Mutex::new(()));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads as u64)
            .map(|index| {
                let (arguments, totals, failed, printing) =
                    (&arguments, &totals, &failed, &printing);
                scope.spawn(move || {
                    work(first, index, threads as u64, arguments, totals, failed, printing)
                })
            })
            .collect();
        scope.spawn(|| {
            let mut waited = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(200));
                waited += Duration::from_millis(200);
                if waited.as_secs() >= PROGRESS_S {
                    waited = Duration::ZERO;
                    println!("{}", totals.line());
                }
            }
        });
        for worker in workers {
            let _ = worker.join();
        }
        done.store(true, Ordering::Relaxed);
    });
    println!("{}", totals.line());
    if failed.load(Ordering::Relaxed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
