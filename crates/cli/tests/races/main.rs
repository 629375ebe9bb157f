//! Two processes race every pair of commands on one store; the outcome must be that of a serial
//! order.
//!
//! usage: races [--count N] [--seed S] [--race I [--repeat K]] [--directory D] [--spawn-every N]
//!
//! Every race begins with a fresh copy of a small store. Two worker processes run one command each,
//! the second a random time before or after the first, so that it starts anywhere in the first one's run.
//! Exit statuses and the final state (names, sizes, parents, overlaps, snapshots, protection,
//! children, contents, what `check` says, what is left in the directories) must be those that one
//! of the two orders gives. [`judge`] describes the refusals that are accepted in addition.
//!
//! Every `--spawn-every`th race starts the program instead of calling its code in the workers.
#![allow(missing_docs)]

mod judge;
mod random;
mod scenario;
mod state;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use judge::{Judge, Verdict};
use random::Random;
use scenario::{Pair, VARIANTS, pairs_of_operations};
use worker::{Ran, Task, Worker};

/// Default number of races: every pair several times.
const COUNT_DEFAULT: u64 = 330;
/// The time to start and end the program. No command takes less.
const SPAWN_TIME: Duration = Duration::from_millis(8);
/// Time before a race begins, in which both workers get their tasks.
const LEAD_NS: u64 = 400_000;
/// Wrong outcomes after which a run gives up.
const WRONG_MAX: u64 = 10;

struct Options {
    count: u64,
    seed: u64,
    /// Only this race, repeated.
    only: Option<u64>,
    directory: Option<PathBuf>,
    spawn_every: u64,
}

fn options() -> Options {
    let mut options =
        Options { count: COUNT_DEFAULT, seed: 0, only: None, directory: None, spawn_every: 11 };
    let mut repeat = None;
    let mut seed = None;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|text| text.parse().ok()).expect("a number");
        match word.as_str() {
            "--count" => options.count = number(),
            "--seed" => seed = Some(number()),
            "--race" => options.only = Some(number()),
            "--repeat" => repeat = Some(number()),
            "--spawn-every" => options.spawn_every = number().max(1),
            "--directory" => options.directory = words.next().map(PathBuf::from),
            // An option that cargo passes to every test.
            _ => {}
        }
    }
    if options.only.is_some() {
        options.count = repeat.unwrap_or(200);
    }
    options.seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    options
}

#[derive(Default)]
struct Tally {
    races: u64,
    overlapped: u64,
    first: u64,
    second: u64,
    either: u64,
    busy: u64,
    excused: u64,
}

struct Race<'a> {
    judge: &'a mut Judge,
    workers: &'a mut [Worker; 2],
    /// The directory for the store of a race.
    place: &'a Path,
    /// How long the last run of each command took.
    took: HashMap<String, Duration>,
    tallies: BTreeMap<String, Tally>,
}

impl Race<'_> {
    /// Runs one race. The error describes a wrong outcome.
    fn run(&mut self, pair: &Pair, random: &mut Random, spawn: bool) -> Result<(), String> {
        let store = self.judge.begin(pair.variant, self.place);
        let delays = self.delays(pair, random, spawn);
        let start_ns = worker::now_ns() + LEAD_NS;
        for (i, worker) in self.workers.iter_mut().enumerate() {
            let (line, delay) = (pair.lines[i].as_str(), delays[i]);
            let begin_ns = start_ns + delay.as_nanos() as u64;
            worker.send(&Task { store: &store, line, begin_ns, spawn });
        }
        let ran: Vec<Ran> = self.workers.iter_mut().map(Worker::reply).collect();
        for (line, ran) in pair.lines.iter().zip(&ran) {
            self.took.insert(line.clone(), ran.took());
        }
        let statuses = [ran[0].status, ran[1].status];
        let state = self.judge.look_at(&store);
        let verdict = self.judge.verdict(pair, statuses, &state);
        let tally = self.tallies.entry(pair.names()).or_default();
        tally.races += 1;
        tally.overlapped +=
            u64::from(ran[0].began_ns < ran[1].ended_ns && ran[1].began_ns < ran[0].ended_ns);
        match verdict {
            Verdict::Either => tally.either += 1,
            Verdict::First => tally.first += 1,
            Verdict::Second => tally.second += 1,
            Verdict::Busy => tally.busy += 1,
            Verdict::Excused => tally.excused += 1,
            Verdict::Wrong => return Err(self.tell(pair, statuses, &ran, &state)),
        }
        for worker in self.workers.iter_mut() {
            worker.messages();
        }
        Ok(())
    }

    /// The delays of the two commands: one begins at once, the other at any time of its run or a little later.
    fn delays(&mut self, pair: &Pair, random: &mut Random, spawn: bool) -> [Duration; 2] {
        let serial = self.judge.usual_times(pair);
        let time = |i: usize| self.took.get(&pair.lines[i]).copied().unwrap_or(serial[i]);
        let times = [time(0), time(1)];
        let mut delays = [Duration::ZERO; 2];
        let later = random.below(2) as usize;
        let whole = times[1 - later] + if spawn { SPAWN_TIME } else { Duration::ZERO };
        delays[later] = whole.mul_f64(random.below(1000) as f64 / 1100.0);
        delays
    }

    fn tell(&mut self, pair: &Pair, statuses: [u8; 2], ran: &[Ran], state: &str) -> String {
        let [first, second] = self.workers;
        let later_us = (ran[1].began_ns as i64 - ran[0].began_ns as i64) / 1000;
        format!(
            "store: {}\nfirst:  {} -> {} after {:?} {}\nsecond: {} -> {} after {:?} {}\n\
             the second began {later_us} us after the first\nstate:\n{state}{}",
            VARIANTS[pair.variant].name,
            pair.lines[0],
            statuses[0],
            ran[0].took(),
            first.messages(),
            pair.lines[1],
            statuses[1],
            ran[1].took(),
            second.messages(),
            self.judge.explain(pair)
        )
    }
}

fn main() -> ExitCode {
    worker::serve_if_asked();
    let options = options();
    // Only the store of the race is on a disk, where commands interleave while they wait for it. The stores
    // for comparison are in memory, if there is a file system in memory.
    let memory = Path::new("/dev/shm");
    let memory = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let scratch = tempfile::tempdir_in(memory).unwrap();
    let directory = options.directory.clone().unwrap_or_else(std::env::temp_dir);
    let disk = tempfile::tempdir_in(directory).unwrap();
    let place = disk.path().join("race");
    println!("races: seed {}, {} races", options.seed, options.count);
    let began = Instant::now();
    let mut judge = Judge::new(scratch.path());
    let mut workers = [0, 1].map(|i| Worker::start(scratch.path().join(format!("worker-{i}.log"))));
    let (took, tallies) = (HashMap::new(), BTreeMap::new());
    let mut race = Race { judge: &mut judge, workers: &mut workers, place: &place, took, tallies };
    let mut wrong = 0;
    for turn in 0..options.count {
        let index = options.only.unwrap_or(turn);
        let mut random = Random::new(options.seed.wrapping_add(index.wrapping_mul(0x5851_f42d)));
        let pair = race.judge.choose(index, &mut random);
        let spawn = index % options.spawn_every == options.spawn_every - 1;
        if options.only.is_some() {
            // The same commands, with other delays.
            random = Random::new(options.seed.wrapping_add(turn << 32));
        }
        if let Err(what) = race.run(&pair, &mut random, spawn) {
            wrong += 1;
            println!(
                "\nwrong outcome of race {index} (--seed {} --race {index})\n{what}",
                options.seed
            );
            if wrong >= WRONG_MAX {
                println!("giving up after {wrong} wrong outcomes");
                break;
            }
        }
    }
    report(&race.tallies, wrong, began.elapsed())
}

fn report(tallies: &BTreeMap<String, Tally>, wrong: u64, took: Duration) -> ExitCode {
    println!("\n{:24} races overlapped first second either busy excused", "pair");
    let mut all = Tally::default();
    for (pair, t) in tallies {
        println!(
            "{pair:24} {:5} {:10} {:5} {:6} {:6} {:4} {:7}",
            t.races, t.overlapped, t.first, t.second, t.either, t.busy, t.excused
        );
        all.races += t.races;
        all.overlapped += t.overlapped;
        all.busy += t.busy;
        all.excused += t.excused;
    }
    let missing = pairs_of_operations().len() - tallies.len().min(pairs_of_operations().len());
    println!(
        "{} races in {} s, {} overlapped, {} refused as busy, {} excused, {wrong} wrong, {missing} pairs not raced",
        all.races,
        took.as_secs(),
        all.overlapped,
        all.busy,
        all.excused
    );
    let kept = if wrong == 0 { "ok" } else { "not ok" };
    println!("{kept} - {} races of two commands end as a serial order would", all.races);
    // A race without an overlap proves nothing.
    let dense = all.races < 50 || all.overlapped * 3 > all.races;
    println!("{} - a third of them or more overlapped", if dense { "ok" } else { "not ok" });
    if wrong == 0 && dense { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
