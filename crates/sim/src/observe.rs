//! Observing a machine from outside: the state that a fresh process finds, compared with the oracle.

use std::sync::Arc;

use marcot::{
    CheckOptions, ErrorKind, Image, ImageId, Namespace, Pool, PoolOptions, SnapId, Store,
};

use crate::model::{Bytes, ImageModel, Link, Model, Snap, shown_in_trash};
use crate::rules::{Rule, Violation};

/// The pools of every simulated store.
pub const POOLS: [&str; 2] = ["rbd", "second"];

/// A snapshot that was found.
pub struct SeenSnap {
    name: String,
    id: SnapId,
    bytes: Bytes,
    protected: bool,
    trashed: bool,
    parent: Option<(ImageId, SnapId, u32)>,
}

/// An image that was found.
pub struct SeenImage {
    pool: usize,
    name: String,
    id: ImageId,
    bytes: Bytes,
    snaps: Vec<SeenSnap>,
    parent: Option<(ImageId, SnapId, u32)>,
    children: Vec<(ImageId, SnapId)>,
}

/// Everything that was found.
#[derive(Default)]
pub struct Seen {
    images: Vec<SeenImage>,
}

fn wrong(rule: Rule, message: impl Into<String>) -> Violation {
    Violation { rule, message: message.into() }
}

/// Opens the pools. A pool whose creation was interrupted is created again.
///
/// # Errors
/// A violation where they cannot be opened.
pub fn open_pools(store: &Store) -> Result<Vec<Pool>, Violation> {
    let mut pools = Vec::new();
    for name in POOLS {
        let pool = match store.pool(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                store.pool_create(name, &PoolOptions::default())
            }
            pool => pool,
        };
        pools.push(pool.map_err(|e| wrong(Rule::I1, format!("pool {name}: {}", e.sentence())))?);
    }
    Ok(pools)
}

/// Reads the whole content of an open image.
fn read_all(image: &mut Image, what: &str) -> Result<Bytes, Violation> {
    let mut bytes = vec![0xAA; image.size_bytes() as usize];
    image
        .read_at(0, &mut bytes)
        .map_err(|e| wrong(Rule::I1, format!("reading {what}: {}", e.sentence())))?;
    Ok(Arc::new(bytes))
}

/// Checks all pools. With `strict` there must be no findings; without it, no serious ones.
///
/// # Errors
/// A violation for every finding that is not litter.
pub fn check(store: &Store, strict: bool) -> Result<(), Violation> {
    for pool in open_pools(store)? {
        let report = store.check(&pool, &CheckOptions::default(), &mut |_, _| {}).map_err(|e| {
            wrong(Rule::Check, format!("check of {}: {}", pool.name(), e.sentence()))
        })?;
        // An image whose creation was interrupted before it had a name is litter too.
        let litter = |f: &marcot::Finding| !f.serious || f.message.contains("has no name");
        if let Some(finding) = report.findings.iter().find(|f| strict || !litter(f)) {
            return Err(wrong(Rule::Check, format!("{}: {}", finding.image, finding.message)));
        }
    }
    Ok(())
}

/// Collects all pools.
///
/// # Errors
/// A violation where that fails.
pub fn collect(store: &Store) -> Result<(), Violation> {
    for pool in open_pools(store)? {
        let collected = store.gc(&pool, &mut |_, _| {});
        collected
            .map_err(|e| wrong(Rule::I5, format!("gc of {}: {}", pool.name(), e.sentence())))?;
    }
    Ok(())
}

/// Opens every image for writing that can be opened so, and closes it again.
///
/// # Errors
/// A violation where the images cannot be listed.
pub fn open_owners(store: &Store) -> Result<(), Violation> {
    for pool in open_pools(store)? {
        let images = pool
            .images(&Namespace::DEFAULT)
            .map_err(|e| wrong(Rule::I1, format!("listing: {}", e.sentence())))?;
        images.into_iter().for_each(|(_, id)| drop(pool.open(id)));
    }
    Ok(())
}

/// Reads everything as a reader.
///
/// # Errors
/// A violation where something cannot be opened or read.
pub fn look(store: &Store) -> Result<Seen, Violation> {
    let mut seen = Seen::default();
    for (number, pool) in open_pools(store)?.iter().enumerate() {
        let images = pool
            .images(&Namespace::DEFAULT)
            .map_err(|e| wrong(Rule::I1, format!("listing: {}", e.sentence())))?;
        for (name, id) in images {
            let name = match marcot::number_in_trash_name(&name) {
                Some(_) => shown_in_trash(
                    &pool
                        .trashed_image(&Namespace::DEFAULT, id)
                        .map_err(|e| wrong(Rule::I1, format!("{name}: {}", e.sentence())))?
                        .name,
                ),
                None => name,
            };
            seen.images.push(look_at(store, pool, number, name, id)?);
        }
    }
    Ok(seen)
}

fn look_at(
    store: &Store,
    pool: &Pool,
    number: usize,
    name: String,
    id: ImageId,
) -> Result<SeenImage, Violation> {
    let failed =
        |what: &str, e: marcot::Error| wrong(Rule::I1, format!("{what} {name}: {}", e.sentence()));
    let info = pool.info(id).map_err(|e| failed("info of", e))?;
    let mut image = pool.open_read_only(id).map_err(|e| failed("opening", e))?;
    let bytes = read_all(&mut image, &name)?;
    let link = |p: marcot::ParentInfo| (p.image_id, p.snap_id, p.clone_format);
    let mut snaps = Vec::new();
    for snap in info.snapshots {
        let mut image =
            pool.open_snapshot(id, &snap.name).map_err(|e| failed("opening a snapshot of", e))?;
        snaps.push(SeenSnap {
            bytes: read_all(&mut image, &format!("{name}@{}", snap.name))?,
            name: if snap.trashed { snap.original_name } else { snap.name },
            id: snap.id,
            protected: snap.protected,
            trashed: snap.trashed,
            parent: snap.parent.map(link),
        });
    }
    let children = store.children(pool, id, None).map_err(|e| failed("children of", e))?;
    let children = children.into_iter().map(|c| (c.image_id, c.snap_id)).collect();
    let parent = info.parent.map(link);
    Ok(SeenImage { pool: number, name, id, bytes, snaps, parent, children })
}

fn same_link(seen: Option<(ImageId, SnapId, u32)>, model: Option<Link>) -> bool {
    seen == model.map(|l| (l.image, l.snap, l.format))
}

fn describe(bytes: &[u8], states: &[Bytes]) -> String {
    let Some(last) = states.last() else { return String::new() };
    if bytes.len() != last.len() {
        return format!("{} bytes long, should be {}", bytes.len(), last.len());
    }
    let at = bytes.iter().zip(last.iter()).position(|(a, b)| a != b).unwrap_or(0);
    let (mut run, mut count) = (Vec::new(), 0);
    for (i, (a, b)) in bytes.chunks(4096).zip(last.chunks(4096)).enumerate() {
        if a != b {
            count += 1;
            if run.len() < 8 {
                run.push(i);
            }
        }
    }
    format!(
        "equals none of {} states; against the last, {count} blocks differ (blocks {run:?}, first byte {at})",
        states.len()
    )
}

impl Model {
    /// The model completed with the numbers that were found, if the oracle allows the state found.
    ///
    /// # Errors
    /// What does not match.
    pub fn matching(&self, seen: &Seen) -> Result<Model, Violation> {
        let mut model = self.clone();
        for found in &seen.images {
            let same = |m: &&ImageModel| m.pool == found.pool && m.shown() == found.name;
            if !self.images.values().any(|m| same(&m)) {
                return Err(wrong(Rule::Model, format!("{} should not exist", found.name)));
            }
        }
        for (slot, image) in &self.images {
            let same = |s: &&SeenImage| s.pool == image.pool && s.name == image.shown();
            let Some(found) = seen.images.iter().find(same) else {
                return Err(wrong(Rule::I1, format!("{} is missing", image.shown())));
            };
            let settled = match_image(self, image, found)?;
            model.images.insert(*slot, settled);
        }
        model.match_children(seen)?;
        Ok(model)
    }

    fn match_children(&self, seen: &Seen) -> Result<(), Violation> {
        for image in self.images.values() {
            let found = seen.images.iter().find(|s| Some(s.id) == image.id);
            let Some(found) = found else { continue };
            for snap in image.snaps.iter() {
                let (Some(id), Some(snap_id)) = (image.id, snap.id) else { continue };
                let mut want = self.children(id, snap_id);
                let mut have: Vec<ImageId> =
                    found.children.iter().filter(|c| c.1 == snap_id).map(|c| c.0).collect();
                want.sort_unstable();
                have.sort_unstable();
                if want != have {
                    let message = format!(
                        "{}@{} has {} children, {} are listed",
                        image.name,
                        snap.name,
                        want.len(),
                        have.len()
                    );
                    return Err(wrong(Rule::I7, message));
                }
            }
        }
        Ok(())
    }
}

fn match_image(
    model: &Model,
    image: &ImageModel,
    found: &SeenImage,
) -> Result<ImageModel, Violation> {
    let name = &image.name;
    if image.id.is_some_and(|id| id != found.id) {
        return Err(wrong(Rule::Model, format!("{name} is another image")));
    }
    let mut settled = image.clone();
    settled.id = Some(found.id);
    let Some(at) = image.history.iter().rposition(|state| *state == found.bytes) else {
        let message = format!("{name} {}", describe(&found.bytes, &image.history));
        return Err(wrong(Rule::I1, message));
    };
    settled.history = vec![Arc::clone(&image.history[at])];
    if !same_link(found.parent, image.parent) {
        return Err(wrong(Rule::Model, format!("{name} has another parent")));
    }
    settled.snaps.clear();
    for snap in &image.snaps {
        let same = |s: &&SeenSnap| {
            s.trashed == snap.trashed && s.name == snap.name && snap.id.is_none_or(|id| id == s.id)
        };
        match found.snaps.iter().find(same) {
            Some(seen) => settled.snaps.push(match_snap(name, snap, seen)?),
            // A trashed snapshot goes with its last child, or later.
            None if snap.trashed && !model.has_children(image, snap) => {}
            None => return Err(wrong(Rule::I1, format!("{name}@{} is missing", snap.name))),
        }
    }
    if found.snaps.len() > settled.snaps.len() {
        return Err(wrong(Rule::Model, format!("{name} has a snapshot too many")));
    }
    Ok(settled)
}

fn match_snap(name: &str, snap: &Snap, found: &SeenSnap) -> Result<Snap, Violation> {
    let name = format!("{name}@{}", snap.name);
    if found.bytes != snap.bytes {
        let states = std::slice::from_ref(&snap.bytes);
        return Err(wrong(Rule::I1, format!("{name} {}", describe(&found.bytes, states))));
    }
    if found.protected != snap.protected {
        return Err(wrong(Rule::Model, format!("{name}: protected {}", found.protected)));
    }
    let mut settled = snap.clone();
    settled.id = Some(found.id);
    if !same_link(found.parent, snap.parent) {
        return Err(wrong(Rule::Model, format!("{name} has another parent")));
    }
    Ok(settled)
}

/// The first candidate that matches the state found.
///
/// # Errors
/// Why none matches.
pub fn settle(candidates: &[Model], seen: &Seen) -> Result<Model, Violation> {
    let mut wrong_with = Vec::new();
    for candidate in candidates {
        match candidate.matching(seen) {
            Ok(model) => return Ok(model),
            Err(violation) => wrong_with.push(violation),
        }
    }
    let Some(rule) = wrong_with.first().map(|violation| violation.rule) else {
        return Err(wrong(Rule::Model, "no candidate"));
    };
    let mut messages: Vec<String> = wrong_with.into_iter().map(|v| v.message).collect();
    messages.dedup();
    Err(wrong(rule, messages.join("; or ")))
}
