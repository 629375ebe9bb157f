//! Checks after silent damage: every block reads correctly or as an error (I2), and nothing makes it worse.

use std::collections::BTreeSet;

use marcot::{CheckOptions, Image, Pool, Store};

use crate::model::{Bytes, ImageModel, Model};
use crate::observe::POOLS;
use crate::rules::{Rule, Violation};

const BLOCK: usize = 4096;

/// Blocks that could be read: name of the image or snapshot, and number of the block.
type Readable = BTreeSet<(String, u64)>;

/// Reads block by block. The blocks that can be read must be those of one of `states`.
fn compare(
    image: &mut Image,
    name: &str,
    states: &[&Bytes],
    readable: &mut Readable,
) -> Result<(), Violation> {
    let size = image.size_bytes() as usize;
    let mut fits: Vec<&&Bytes> = states.iter().filter(|s| s.len() == size).collect();
    if fits.is_empty() {
        let message = format!("{name} has {size} bytes, as it never had");
        return Err(Violation { rule: Rule::I2, message });
    }
    let mut buf = vec![0; BLOCK];
    for at in (0..size).step_by(BLOCK) {
        let end = size.min(at + BLOCK);
        let buf = &mut buf[..end - at];
        if image.read_at(at as u64, buf).is_err() {
            continue;
        }
        readable.insert((name.to_owned(), (at / BLOCK) as u64));
        fits.retain(|state| state[at..end] == *buf);
        if fits.is_empty() {
            let block = at / BLOCK;
            let message = format!("block {block} of {name} reads without an error, and wrong");
            return Err(Violation { rule: Rule::I2, message });
        }
    }
    Ok(())
}

/// How the content of a store is read.
#[derive(Clone, Copy)]
enum Look {
    /// As a reader. It can also read an image whose log is damaged, up to the damage.
    Reader,
    /// As an owner, with this many damaged places.
    Owner { places: u64 },
}

fn look(store: &Store, candidates: &[Model], how: Look) -> Result<Readable, Violation> {
    let mut readable = Readable::new();
    for (number, name) in POOLS.iter().enumerate() {
        let Ok(pool) = store.pool(name) else { continue };
        let models = || candidates.iter().flat_map(|c| c.images.values());
        let names: BTreeSet<&String> =
            models().filter(|m| m.pool == number).map(|m| &m.name).collect();
        for name in names {
            let Ok(id) = pool.find(name) else { continue };
            let images: Vec<_> = models().filter(|m| m.pool == number && m.name == *name).collect();
            if images.iter().all(|m| m.id.is_some_and(|known| known != id)) {
                // The image's number is stored only in its name, so the name may be lost. `check`
                // must report an image that has lost its name.
                must_be_reported(store, &pool, name)?;
                continue;
            }
            let states = images.iter().flat_map(|m| match how {
                Look::Owner { places } => m.found_by_owner(places),
                Look::Reader => &m.history,
            });
            let states: Vec<&Bytes> = states.collect();
            let opened = match how {
                Look::Owner { .. } => pool.open(id),
                Look::Reader => pool.open_read_only(id),
            };
            if let Ok(mut image) = opened {
                compare(&mut image, name, &states, &mut readable)?;
            }
            look_at_snapshots(&pool, id, &images, &mut readable)?;
        }
    }
    Ok(readable)
}

fn must_be_reported(store: &Store, pool: &Pool, name: &str) -> Result<(), Violation> {
    let report = store.check(pool, &CheckOptions::default(), &mut |_, _| {});
    match report.is_ok_and(|report| report.findings.iter().all(|f| !f.serious)) {
        true => {
            let message = format!("{name} leads to another image, and check finds nothing");
            Err(Violation { rule: Rule::I2, message })
        }
        false => Ok(()),
    }
}

fn look_at_snapshots(
    pool: &Pool,
    id: marcot::ImageId,
    images: &[&ImageModel],
    readable: &mut Readable,
) -> Result<(), Violation> {
    let Ok(info) = pool.info(id) else { return Ok(()) };
    for snap in info.snapshots.iter().filter(|s| !s.trashed) {
        let known = images.iter().flat_map(|m| &m.snaps).filter(|s| s.name == snap.name);
        let states: Vec<&Bytes> = known.map(|s| &s.bytes).collect();
        if let Ok(mut image) = pool.open_snapshot(id, &snap.name) {
            let name = format!("{}@{}", info.name, snap.name);
            compare(&mut image, &name, &states, readable)?;
        }
    }
    Ok(())
}

/// Reads a store that is damaged in `places` places, collects it, and reads it again.
///
/// # Errors
/// A violation of I2, or of I5 where collecting has lost something.
pub fn check(store: &Store, candidates: &[Model], places: u64) -> Result<(), Violation> {
    let before = look(store, candidates, Look::Reader)?;
    for name in POOLS {
        let Ok(pool) = store.pool(name) else { continue };
        let _ = store.check(&pool, &CheckOptions::default(), &mut |_, _| {});
        let _ = store.gc(&pool, &mut |_, _| {});
    }
    let after = look(store, candidates, Look::Reader)?;
    // Trashed snapshots that `gc` has removed are not compared.
    if let Some((name, block)) = before.difference(&after).next() {
        let message = format!("block {block} of {name} could be read before gc, and not after");
        return Err(Violation { rule: Rule::I5, message });
    }
    look(store, candidates, Look::Owner { places })?;
    Ok(())
}
