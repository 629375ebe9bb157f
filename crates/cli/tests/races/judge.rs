//! Which outcomes of a race are right: those of one of the two serial orders, which are run on
//! copies of the same store; a refusal with EBUSY if [`may_refuse`] allows it; and
//! another status if [`excused`] allows it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::random::Random;
use crate::scenario::{FIRST, OPERATIONS, Pair, VARIANTS};
use crate::state;
use crate::worker::{Ran, Worker};

const EBUSY: u8 = 16;
/// Bytes of the image `p`.
const DATA_BYTES: usize = 1 << 20;

/// Number of random draws; the best of them is raced.
const DRAWS: usize = 8;

/// The result of a serial order or of a single command.
#[derive(Clone)]
struct Serial {
    statuses: Vec<u8>,
    state: String,
    took: Vec<Duration>,
}

/// The verdict on a race.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Both orders give this.
    Either,
    /// The first command was first.
    First,
    /// The second command was first.
    Second,
    /// One was refused because the other held what it needs.
    Busy,
    /// The state is right, and the status is one that [`excused`] accepts.
    Excused,
    /// No serial order gives this.
    Wrong,
}

/// The results of the serial runs so far, and the initial stores.
pub struct Judge {
    scratch: PathBuf,
    known: HashMap<(usize, Vec<String>), Serial>,
    worker: Worker,
}

impl Judge {
    pub fn new(scratch: &Path) -> Self {
        let mut worker = Worker::start(scratch.join("judge.log"));
        let data = scratch.join("data");
        let bytes: Vec<u8> = (0..DATA_BYTES).map(|i| (i / 4096 + i % 251) as u8 | 1).collect();
        std::fs::write(&data, bytes).unwrap();
        for (number, variant) in VARIANTS.iter().enumerate() {
            let store = scratch.join(format!("base-{number}"));
            for line in FIRST.iter().chain(variant.commands) {
                let line = line.replace("DATA", data.to_str().unwrap());
                let status = worker.run(&store, &line).status;
                assert_eq!(status, 0, "{line}: {}", worker.messages());
            }
            let state = state::describe(&copied(&store, &scratch.join("look")));
            assert!(!state.contains("check of"), "{}: {state}", variant.name);
        }
        Self { scratch: scratch.to_owned(), known: HashMap::new(), worker }
    }

    /// A fresh store for a race.
    pub fn begin(&self, variant: usize, place: &Path) -> PathBuf {
        copied(&self.scratch.join(format!("base-{variant}")), place)
    }

    /// The state of a store. The store is not changed.
    pub fn look_at(&self, store: &Path) -> String {
        state::describe(&copied(store, &self.scratch.join("look")))
    }

    fn serial(&mut self, variant: usize, lines: &[&str]) -> Serial {
        let key = (variant, lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>());
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let store = self.begin(variant, &self.scratch.join("serial"));
        let ran: Vec<Ran> = lines.iter().map(|line| self.worker.run(&store, line)).collect();
        let serial = Serial {
            statuses: ran.iter().map(|r| r.status).collect(),
            state: state::describe(&store),
            took: ran.iter().map(Ran::took).collect(),
        };
        self.known.insert(key, serial.clone());
        serial
    }

    /// The pair of race `index`. A command that fails whatever the other does proves little, so
    /// in most races the best of some draws is used.
    pub fn choose(&mut self, index: u64, random: &mut Random) -> Pair {
        let draws = if random.below(4) == 0 { 1 } else { DRAWS };
        let drawn: Vec<Pair> = (0..draws).map(|_| Pair::draw(index, random)).collect();
        let mut good = |pair: &Pair| {
            let mut works = |line: &String| self.serial(pair.variant, &[line]).statuses == [0];
            pair.lines.iter().filter(|&line| works(line)).count()
        };
        // Of equal draws this takes the last.
        drawn.into_iter().max_by_key(|pair| good(pair)).unwrap()
    }

    /// How long each of the two commands takes when it is first.
    pub fn usual_times(&mut self, pair: &Pair) -> [Duration; 2] {
        let [a, b] = &pair.lines;
        let first = self.serial(pair.variant, &[a, b]).took[0];
        [first, self.serial(pair.variant, &[b, a]).took[0]]
    }

    pub fn verdict(&mut self, pair: &Pair, statuses: [u8; 2], state: &str) -> Verdict {
        let [a, b] = [pair.lines[0].as_str(), pair.lines[1].as_str()];
        let ab = self.serial(pair.variant, &[a, b]);
        let ba = self.serial(pair.variant, &[b, a]);
        let as_ab = ab.statuses == statuses && ab.state == state;
        let as_ba = ba.statuses == [statuses[1], statuses[0]] && ba.state == state;
        match (as_ab, as_ba) {
            (true, true) => return Verdict::Either,
            (true, false) => return Verdict::First,
            (false, true) => return Verdict::Second,
            (false, false) => {}
        }
        for refused in [0, 1] {
            let other = 1 - refused;
            if statuses[refused] == EBUSY && may_refuse(pair, refused) {
                let alone = self.serial(pair.variant, &[pair.lines[other].as_str()]);
                if alone.statuses == [statuses[other]] && alone.state == state {
                    return Verdict::Busy;
                }
            }
        }
        let orders = [ab.statuses.clone(), vec![ba.statuses[1], ba.statuses[0]]];
        let same_state = [ab.state == state, ba.state == state];
        if excused(pair, statuses, &orders, same_state) { Verdict::Excused } else { Verdict::Wrong }
    }

    /// Both orders, to show beside a wrong outcome.
    pub fn explain(&mut self, pair: &Pair) -> String {
        let [a, b] = [pair.lines[0].as_str(), pair.lines[1].as_str()];
        let ab = self.serial(pair.variant, &[a, b]);
        let ba = self.serial(pair.variant, &[b, a]);
        format!(
            "first, then second: statuses {:?}\n{}second, then first: statuses {:?}\n{}",
            ab.statuses, ab.state, ba.statuses, ba.state
        )
    }
}

/// Whether the command `refused` of a pair may end with EBUSY although no serial order says so:
///
/// - `rm` refuses an image that a process has open for any purpose: the user must not lose an image in
///   use ("image still has watchers").
/// - `map` is refused while another process has the image open, even for a short time: a block
///   device has one owner, and `map` does not wait for it.
/// - `snap rm` is refused while a process reads the snapshot.
/// - A second `gc` of a pool is refused while the first is running.
fn may_refuse(pair: &Pair, refused: usize) -> bool {
    let name = |i: usize| OPERATIONS[pair.operations[i]].name;
    match (name(refused), name(1 - refused)) {
        ("rm" | "map", _) | ("gc", "gc" | "rm") => true,
        ("snap rm", "map") => pair.lines[1 - refused].contains('@'),
        _ => false,
    }
}

/// Accepts statuses that no serial order gives, if a serial order gives the state:
///
/// - `resize` checks before it begins whether the size is new ("new size is equal to original size",
///   as `rbd` does), so that two equal ones may both succeed.
/// - A command looks up a name first. If `rename` comes in between, the command acts on the same image. If
///   it is refused then, the reason may be another one than that the name is gone.
fn excused(pair: &Pair, statuses: [u8; 2], orders: &[Vec<u8>; 2], same_state: [bool; 2]) -> bool {
    let names = pair.operations.map(|o| OPERATIONS[o].name);
    if names == ["resize"; 2] && pair.lines[0] == pair.lines[1] {
        return same_state[0] && statuses == [0, 0];
    }
    let Some(rename) = names.iter().position(|name| *name == "rename") else { return false };
    let other = 1 - rename;
    // The statuses of the order in which the rename is first.
    let serial = &orders[rename];
    same_state[rename]
        && serial[rename] == statuses[rename]
        && serial[other] != 0
        && statuses[other] != 0
}

/// Copies a store; no process has it open.
fn copied(from: &Path, to: &Path) -> PathBuf {
    let _ = std::fs::remove_dir_all(to);
    copy_directory(from, to);
    to.to_owned()
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    std::fs::set_permissions(to, std::fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let place = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy_directory(&entry.path(), &place);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), place).unwrap();
        }
    }
}
