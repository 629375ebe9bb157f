//! Every target over its corpus, and over changes of it, for a bounded time.
//!
//! usage: corpus [--target NAME] [--seconds N] [--seed S]
//!
//! Seconds are for each target. A failure prints the input, which belongs into the corpus under
//! `fuzz/corpus/TARGET` once it is understood.
#![allow(missing_docs)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use marcot_fuzz::mutate::{Random, mutated};
use marcot_fuzz::{ALL, Target};

const SECONDS_DEFAULT: f64 = 1.5;
/// Inputs between two looks at the clock.
const BATCH: u64 = 64;

struct Options {
    target: Option<String>,
    time: Duration,
    seed: u64,
}

fn options() -> Options {
    let mut options = Options {
        target: None,
        time: Duration::from_secs_f64(SECONDS_DEFAULT),
        seed: u64::from(std::process::id()),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--target" => options.target = words.next(),
            "--seconds" => {
                let seconds: Option<f64> = words.next().and_then(|text| text.parse().ok());
                options.time = Duration::from_secs_f64(seconds.expect("a number of seconds"));
            }
            "--seed" => {
                options.seed = words.next().and_then(|text| text.parse().ok()).expect("a seed");
            }
            // What cargo passes to every test.
            _ => {}
        }
    }
    options
}

fn corpus_of(target: &Target) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let entries = std::fs::read_dir(&directory);
    let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    // So that one seed means one run.
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Runs one input; false if a promise is broken.
fn holds(target: &Target, input: &[u8]) -> bool {
    let held = catch_unwind(AssertUnwindSafe(|| target.run(input))).is_ok();
    if !held {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("{}: the input, {} bytes in hexadecimal:\n{hex}", target.name, input.len());
    }
    held
}

/// Number of inputs, and whether all were taken well.
fn run(target: &Target, options: &Options) -> (u64, bool) {
    let corpus = corpus_of(target);
    assert!(!corpus.is_empty(), "{} has no corpus", target.name);
    let mut count = corpus.len() as u64;
    if !corpus.iter().all(|input| holds(target, input)) {
        return (count, false);
    }
    let mut random = Random::new(options.seed);
    let start = Instant::now();
    while start.elapsed() < options.time {
        for _ in 0..BATCH {
            count += 1;
            if !holds(target, &mutated(&corpus, &mut random)) {
                return (count, false);
            }
        }
    }
    (count, true)
}

fn main() -> ExitCode {
    let options = options();
    println!("fuzz: seed {}, {:?} a target", options.seed, options.time);
    let chosen = |target: &&Target| options.target.as_ref().is_none_or(|name| name == target.name);
    let (mut all, mut good, mut targets) = (0, true, 0);
    for target in ALL.iter().filter(chosen) {
        let (count, held) = run(target, &options);
        let word = if held { "ok" } else { "not ok" };
        println!("{word} - {}: {count} inputs, none breaks a promise", target.name);
        (all, good, targets) = (all + count, good && held, targets + 1);
    }
    println!("{all} inputs for {targets} targets");
    if good && targets > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
