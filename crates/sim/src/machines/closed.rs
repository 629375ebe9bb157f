//! An owner closes an image while a part of its log is under way.
//!
//! Where flushes end on the owner's host, the log is shipped behind them, and no flush waits for that. The next owner
//! gives its first part the number in the head that was stored at the close. So no part may be stored after that.

use std::sync::Arc;
use std::time::Duration;

use marcot::CreateOptions;

use super::Machines;
use super::lineage::Lineage;
use super::session::{Act, Ended, Session};
use crate::rules::Violation;
use crate::service::{Service, ServiceSettings};

/// Bytes of the image.
const IMAGE_BYTES: u64 = 48 * 4096;
const MACHINES: usize = 2;
/// Owners, one after the other.
const REIGNS: u64 = 4;
/// After this time, what was not shipped is due.
const DUE_AFTER: Duration = Duration::from_secs(11);

/// Runs owners one after the other. Returns how many of them had a part under way when they closed the image.
///
/// # Errors
/// A violation.
pub fn run(seed: u64) -> Result<u64, Violation> {
    let service = Service::new(ServiceSettings::sound(seed), MACHINES);
    let machines = Machines::new(service, seed, MACHINES, false);
    owners(&machines).map_err(|ended| {
        let violation = ended.must_not_be("an owner after one that has closed the image");
        Violation { message: format!("seed {seed}: {}", violation.message), ..violation }
    })
}

fn owners(machines: &Arc<Machines>) -> Result<u64, Ended> {
    let pool = machines.pool(0)?;
    let id = pool.create("image", &CreateOptions::sized(IMAGE_BYTES))?;
    let empty = Arc::new(vec![0; IMAGE_BYTES as usize]);
    let (lineage, reign) = Lineage::begin(machines.host(0), empty);
    let mut owner = Session::of(machines, pool.open(id)?, &lineage, reign);
    let mut under_way = 0;
    for number in 1..=REIGNS {
        owner.act(Act::Write { block: number, blocks: 3, salt: number })?;
        owner.act(Act::Flush)?;
        owner.act(Act::Background)?;
        machines.service().time().pass(DUE_AFTER);
        // The part begins its way. A worker stores it now or later.
        owner.act(Act::Background)?;
        under_way += u64::from(!machines.service().keys().iter().any(|key| key.contains("/log/")));
        owner.close()?;
        let machine = number as usize % MACHINES;
        let pool = machines.pool(machine)?;
        owner = Session::open(machines, machine, &lineage, id, || pool.open(id))?;
    }
    owner.close()?;
    Ok(under_way)
}
