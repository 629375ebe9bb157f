//! The cache of ranges on simulated disks: whatever is cut, killed, lost or damaged, a read returns what the
//! service has.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use marcot_backend::object::cache::{CHUNK_BYTES, RangeCache, RangeSource};
use marcot_format::PoolId;
use marcot_sim::clock::SimClock;
use marcot_sim::disk::{Cut, SimDisk};
use marcot_sim::random::{Rng, SimRandom};
use marcot_sim::{Fault, Machine};
use marcot_store::{InPlace, World};

const PROCESSES: usize = 2;
const OBJECTS: u64 = 3;
const LENGTH: u64 = 3 * CHUNK_BYTES + 1234;
/// Purposes of random numbers.
const STEPS: u64 = 1;
const NAMES: u64 = 2;

fn content(key: &str, range: Range<u64>) -> Vec<u8> {
    let seed = key.bytes().fold(0u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte));
    range
        .map(|at| (((at >> 3) + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (8 * (at & 7))) as u8)
        .collect()
}

fn service() -> Arc<dyn RangeSource> {
    Arc::new(|key: &str, range: Range<u64>| {
        Ok(content(key, range.start.min(LENGTH)..range.end.min(LENGTH)))
    })
}

struct Run {
    machine: Arc<Machine>,
    rng: Rng,
    seed: u64,
    /// The directory gets another number where it is damaged so that it is refused.
    directory: u64,
    caches: Vec<Option<RangeCache>>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let machine = Machine::new(seed, PROCESSES);
        let caches = vec![None; PROCESSES];
        let mut run = Self { machine, rng: Rng::with(seed, STEPS), seed, directory: 0, caches };
        (0..PROCESSES).for_each(|process| run.open(process));
        run
    }

    fn open(&mut self, process: usize) {
        let world = World {
            disk: Arc::new(SimDisk::new(&self.machine, process)),
            clock: Arc::new(SimClock::new(Arc::clone(&self.machine))),
            random: Arc::new(SimRandom::new(Rng::with(self.machine.ios(), NAMES))),
            workers: Arc::new(InPlace),
        };
        let directory = PathBuf::from(format!("/cache-{}", self.directory));
        match RangeCache::open(&world, directory, 0) {
            Ok(cache) => self.caches[process] = Some(cache),
            Err(error) => {
                assert!(
                    self.machine.places_damaged() > 0 || self.machine.faults_hit() > 0,
                    "{error}"
                );
                self.directory += u64::from(error.kind() == io::ErrorKind::InvalidInput);
                self.caches[process] = None;
            }
        }
    }

    fn read(&mut self) {
        let process = self.rng.below(PROCESSES as u64) as usize;
        let Some(cache) = self.caches[process].clone() else { return self.open(process) };
        let key = format!("segments/{}", self.rng.below(OBJECTS));
        let offset = self.rng.below(LENGTH + 10);
        let bytes = self.rng.below(2 * CHUNK_BYTES) as usize;
        let length = self.rng.one_in(2).then_some(LENGTH);
        let object = cache.object(PoolId(1), &key, length, service());
        let mut buf = vec![0xEE; bytes];
        let what = format!("seed {}: {key} at {offset}+{bytes}", self.seed);
        let read = cache.read(&object, offset, &mut buf);
        let n = read.unwrap_or_else(|error| panic!("{what}: {error}"));
        let end = LENGTH.min(offset + bytes as u64);
        assert!(buf[..n] == content(&key, offset.min(end)..end), "{what}");
        if self.rng.one_in(8) {
            cache.make_whole(&object);
        }
        if self.rng.one_in(16) {
            cache.forget(&object);
        }
    }

    /// Something happens to the machine, perhaps in the middle of the next read.
    fn disturb(&mut self) {
        let after = self.rng.below(40);
        let process = self.rng.below(PROCESSES as u64) as usize;
        match self.rng.below(9) {
            0 => self.machine.cut_after(after, Cut::Power),
            1 => self.machine.cut_after(after, Cut::Kill(process)),
            2 => self.machine.arm(Fault::NoSpace, self.rng.below(5)),
            3 => self.machine.arm(Fault::FailRead, after),
            4 => self.machine.arm(Fault::DropWrite, self.rng.below(10)),
            5 => self.machine.arm(Fault::MisdirectWrite, self.rng.below(10)),
            6 => self.machine.arm(Fault::Corrupt, self.rng.below(10)),
            7 => self.machine.sync_all(),
            _ => {}
        }
    }

    fn recover(&mut self) {
        match self.machine.take_cut() {
            Some(Cut::Power) => {
                self.machine.power_on();
                (0..PROCESSES).for_each(|process| self.open(process));
            }
            Some(Cut::Kill(process)) => self.open(process),
            None => {}
        }
    }
}

#[test]
fn reads_return_what_the_service_has_through_crashes_and_faults_of_the_disk() {
    for seed in 0..60 {
        let mut run = Run::new(seed);
        for _ in 0..30 {
            if run.rng.one_in(3) {
                run.disturb();
            }
            run.read();
            run.recover();
        }
    }
}

#[test]
fn what_is_stored_is_found_after_a_crash_if_the_disk_has_kept_it() {
    let mut run = Run::new(1);
    let cache = run.caches[0].clone().unwrap();
    let object = cache.object(PoolId(1), "segments/0", Some(LENGTH), service());
    cache.make_whole(&object);
    run.machine.sync_all();
    run.machine.power_off();
    run.machine.take_cut();
    run.machine.power_on();
    run.open(1);
    let cache = run.caches[1].clone().unwrap();
    let object = cache.object(PoolId(1), "segments/0", Some(LENGTH), service());
    assert!(cache.holds(&object, 0, LENGTH));
    let mut buf = vec![0; LENGTH as usize];
    assert_eq!(cache.read(&object, 0, &mut buf).unwrap() as u64, LENGTH);
    assert_eq!(cache.fetched().requests, 0);
    assert!(buf == content("segments/0", 0..LENGTH));
}
