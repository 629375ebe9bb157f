//! An owner compacts beside a log that goes on in further segments, and its host is lost.
//!
//! What it has promised is in the bucket: heads name copies in segments with numbers among those of the log, and the
//! log that was flushed begins behind them.

use std::sync::Arc;

use marcot::{CreateOptions, Limits};

use super::Machines;
use super::lineage::Lineage;
use super::session::{Act, Ended, Session, collect_and_check};
use crate::random::Rng;
use crate::rules::{LIMITS, Violation};
use crate::service::{Service, ServiceSettings};

const BLOCKS: u64 = 160;
const BLOCK: u64 = 4096;
const MACHINES: usize = 3;
/// Owners, one after the other.
const REIGNS: u64 = 4;
/// Limits on the rounds of an owner.
const ROUNDS_MIN: u64 = 4;
const ROUNDS_MAX: u64 = 12;
/// Limits on the writes of a round.
const WRITES_MIN: u64 = 10;
const WRITES_MAX: u64 = 60;

/// Short segments, of which the log has many before a checkpoint begins by itself.
fn limits() -> Limits {
    Limits { segment_slots: 24, checkpoint_log_bytes: 4 << 20, ..LIMITS }
}

/// Runs owners one after the other.
///
/// # Errors
/// A violation.
pub fn run(seed: u64) -> Result<(), Violation> {
    let mut rng = Rng::with(seed, 720);
    let service = Service::new(ServiceSettings::sound(seed), MACHINES);
    let machines = Machines::new(Arc::clone(&service), seed, MACHINES, true);
    machines.set_limits(limits());
    if rng.one_in(2) {
        machines.use_caches();
    }
    let ran = owners(&machines, &mut rng);
    ran.map_err(|ended| {
        let violation = ended.must_not_be("an owner that compacts");
        Violation { message: format!("seed {seed}: {}", violation.message), ..violation }
    })
}

fn owners(machines: &Arc<Machines>, rng: &mut Rng) -> Result<(), Ended> {
    let pool = machines.pool(0)?;
    let id = pool.create("image", &CreateOptions::sized(BLOCKS * BLOCK))?;
    let empty = Arc::new(vec![0; (BLOCKS * BLOCK) as usize]);
    let (lineage, reign) = Lineage::begin(machines.host(0), empty);
    let mut session = Session::of(machines, pool.open(id)?, &lineage, reign);
    for number in 1..=REIGNS {
        work(&mut session, rng, number)?;
        let owner = (number as usize - 1) % MACHINES;
        match rng.below(3) {
            0 => session.close()?,
            // Its disk is lost too, or only what was not durable on it.
            end => {
                if end == 1 {
                    machines.replace(owner);
                } else {
                    machines.crash(owner);
                }
                drop(session);
            }
        }
        machines.service().deliver_all();
        session = Session::take_over(machines, number as usize % MACHINES, id, &lineage)?;
        session.act(Act::Rest)?;
        session.act(Act::Write { block: rng.below(BLOCKS), blocks: 1, salt: number << 41 })?;
        session.act(Act::Read)?;
    }
    session.close()?;
    let observer = (REIGNS as usize + 1) % MACHINES;
    let store = machines.store(observer)?;
    let pool = store.pool("rbd")?;
    Ok(collect_and_check(&store, &pool)?)
}

fn work(session: &mut Session, rng: &mut Rng, number: u64) -> Result<(), Ended> {
    for round in 0..ROUNDS_MIN + rng.below(ROUNDS_MAX - ROUNDS_MIN) {
        for write in 0..WRITES_MIN + rng.below(WRITES_MAX - WRITES_MIN) {
            // Some blocks are never written again, so that segments stay a little live.
            let block = rng.below(if round == 0 { BLOCKS } else { BLOCKS * 3 / 4 });
            let salt = (number << 40) + (round << 20) + write;
            session.act(Act::Write { block, blocks: 1, salt })?;
            if rng.one_in(8) {
                session.act(Act::Background)?;
            }
        }
        match rng.below(4) {
            0 => session.act(Act::Checkpoint)?,
            1 => session.act(Act::Flush)?,
            2 => session.act(Act::Read)?,
            _ => {}
        }
    }
    Ok(())
}
