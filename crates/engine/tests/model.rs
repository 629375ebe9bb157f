//! Random operations over a family of images, compared with plain byte arrays.
//!
//! `MARCOT_TEST_SEED` repeats a run; `MARCOT_TEST_STEPS` makes it longer.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use marcot::{
    CheckOptions, CloneOptions, CreateOptions, ErrorKind, Image, ImageId, Limits, Pool,
    PoolOptions, Store, World,
};
use marcot_backend::memory::MemoryMachine;
use support::bucket::{Bucket, Host};
use support::no_disk::NoDisk;

const SIZE_MAX: u64 = 9 << 20;
const IMAGES_MAX: usize = 12;

/// A small generator (xorshift64*), so that a seed always gives the same run.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.next() % limit }
    }
}

/// The image and the snapshot that a state was cloned from.
type Link = Option<(String, String)>;

struct Snap {
    bytes: Vec<u8>,
    protected: bool,
    parent: Link,
}

struct Model {
    id: ImageId,
    pool: Pool,
    bytes: Vec<u8>,
    snaps: BTreeMap<String, Snap>,
    parent: Link,
    /// It has the feature `deep-flatten`, which clones take from their parents.
    deep: bool,
}

struct Family {
    store: Store,
    pools: Vec<Pool>,
    models: BTreeMap<String, Model>,
    open: BTreeMap<String, Image>,
    rng: Rng,
    counter: u64,
}

impl Family {
    fn new(seed: u64, store: Store) -> Self {
        let pools = vec![
            store.pool("rbd").expect("a pool"),
            store.pool_create("second", &PoolOptions::default()).expect("a pool"),
            store.pool_create("third", &PoolOptions::default()).expect("a pool"),
        ];
        let (models, open) = (BTreeMap::new(), BTreeMap::new());
        Self { store, pools, models, open, rng: Rng(seed | 1), counter: 0 }
    }

    fn model(&mut self, name: &str) -> &mut Model {
        self.models.get_mut(name).expect("a known image")
    }

    fn image(&mut self, name: &str) -> &mut Image {
        let model = &self.models[name];
        self.open
            .entry(name.to_owned())
            .or_insert_with(|| model.pool.open(model.id).expect("opens"))
    }

    fn range(&mut self, name: &str) -> (u64, u64) {
        let size = self.models[name].bytes.len() as u64;
        let mut offset = self.rng.below(size.max(1));
        let limit = if self.rng.below(4) == 0 { 2 << 20 } else { 20_000 };
        let mut length = self.rng.below(limit) + 1;
        if self.rng.below(2) == 0 {
            offset &= !4095;
            length = length.div_ceil(4096) * 4096;
        }
        (offset, length.min(size.saturating_sub(offset)))
    }

    fn new_name(&mut self, prefix: &str) -> String {
        self.counter += 1;
        format!("{prefix}{}", self.counter)
    }

    fn step(&mut self) {
        let n = self.rng.below(self.models.len() as u64) as usize;
        let Some(name) = self.models.keys().nth(n).cloned() else { return self.create() };
        match self.rng.below(100) {
            0..35 => self.write(&name),
            35..45 => self.discard(&name),
            45..65 => self.read(&name),
            65..68 => self.image(&name).flush().expect("flushes"),
            68..74 => self.snapshot(&name),
            74..76 => self.rollback(&name),
            76..82 => self.clone_snapshot(&name),
            82..84 => self.flatten(&name),
            84 => self.unprotect(&name),
            85 => self.remove_snapshot(&name),
            86..88 => self.remove(&name),
            88..90 => self.resize(&name),
            90..92 => self.create(),
            92..95 => self.reopen(&name),
            95..97 => self.crash(&name),
            97 => drop(self.image(&name).reclaim().expect("reclaims")),
            98 => {
                let pool = self.models[&name].pool.clone();
                self.store.gc(&pool, &mut |_, _| {}).expect("collects");
            }
            _ => self.compare_all(&name),
        }
    }

    fn a_pool(&mut self) -> Pool {
        self.pools[self.rng.below(self.pools.len() as u64) as usize].clone()
    }

    fn create(&mut self) {
        if self.models.len() >= IMAGES_MAX {
            return;
        }
        let name = self.new_name("image-");
        let size_bytes = self.rng.below(SIZE_MAX) + 1;
        let pool = self.a_pool();
        let deep = self.rng.below(8) > 0;
        let features = if deep { "layering,deep-flatten" } else { "layering" };
        let options = CreateOptions::sized(size_bytes).features(features);
        let id = pool.create(&name, &options).expect("creates");
        let bytes = vec![0; size_bytes as usize];
        let snaps = BTreeMap::new();
        self.models.insert(name, Model { id, pool, bytes, snaps, parent: None, deep });
    }

    fn write(&mut self, name: &str) {
        let (offset, length) = self.range(name);
        let salt = self.rng.next();
        let data: Vec<u8> =
            (0..length).map(|i| (salt.rotate_left((i % 61) as u32) ^ i) as u8).collect();
        self.image(name).write_at(offset, &data).expect("writes");
        self.model(name).bytes[offset as usize..(offset + length) as usize].copy_from_slice(&data);
    }

    fn discard(&mut self, name: &str) {
        let (offset, length) = self.range(name);
        self.image(name).discard(offset, length).expect("discards");
        self.model(name).bytes[offset as usize..(offset + length) as usize].fill(0);
    }

    fn read(&mut self, name: &str) {
        let (offset, length) = self.range(name);
        let mut buf = vec![0xAA; length as usize];
        self.image(name).read_at(offset, &mut buf).expect("reads");
        let want = &self.models[name].bytes[offset as usize..(offset + length) as usize];
        assert!(buf == want, "{name}: {length} bytes at {offset} differ");
    }

    fn snapshot(&mut self, name: &str) {
        let snap = self.new_name("snap-");
        self.image(name).snapshot(&snap).expect("snapshots");
        let model = self.model(name);
        let (bytes, parent) = (model.bytes.clone(), model.parent.clone());
        model.snaps.insert(snap, Snap { bytes, protected: false, parent });
    }

    fn a_snapshot(&mut self, name: &str) -> Option<String> {
        let n = self.rng.below(self.models[name].snaps.len() as u64) as usize;
        self.models[name].snaps.keys().nth(n).cloned()
    }

    fn rollback(&mut self, name: &str) {
        let Some(snap) = self.a_snapshot(name) else { return };
        self.image(name).roll_back(&snap).expect("rolls back");
        let model = self.model(name);
        model.bytes = model.snaps[&snap].bytes.clone();
        model.parent = model.snaps[&snap].parent.clone();
    }

    fn clone_snapshot(&mut self, name: &str) {
        let found = self.a_snapshot(name).filter(|_| self.models.len() < IMAGES_MAX);
        let Some(snap) = found else { return };
        let child = self.new_name("clone-");
        let (from, id) = (self.models[name].pool.clone(), self.models[name].id);
        let to = self.a_pool();
        let deep = self.models[name].deep;
        let clone = || from.snapshot(id, &snap).clone_to(&to, &child, &CloneOptions::default());
        if !self.models[name].snaps[&snap].protected {
            let refused = clone().expect_err("an unprotected parent");
            assert_eq!(refused.kind(), ErrorKind::NotProtected);
            self.image(name).protect(&snap).expect("protects");
            let snaps = &mut self.model(name).snaps;
            snaps.get_mut(&snap).expect("a known snapshot").protected = true;
        }
        let id = clone().expect("clones");
        let bytes = self.models[name].snaps[&snap].bytes.clone();
        let parent = Some((name.to_owned(), snap));
        let snaps = BTreeMap::new();
        self.models.insert(child, Model { id, pool: to, bytes, snaps, parent, deep });
    }

    fn has_children(&self, name: &str, snap: &str) -> bool {
        let link = Some((name.to_owned(), snap.to_owned()));
        self.models.values().any(|m| m.parent == link || m.snaps.values().any(|s| s.parent == link))
    }

    /// Image and snapshots become independent, as with RBD's `deep-flatten`. Images without this feature keep
    /// their snapshots with the parent.
    fn flatten(&mut self, name: &str) {
        let result = self.image(name).flatten();
        if self.models[name].parent.is_none() {
            assert_eq!(result.expect_err("no parent").kind(), ErrorKind::NoParent);
            return;
        }
        result.expect("flattens");
        let model = self.model(name);
        model.parent = None;
        if model.deep {
            model.snaps.values_mut().for_each(|snap| snap.parent = None);
        }
        let info = model.pool.info(model.id).expect("info");
        assert!(info.parent.is_none());
        for snap in &info.snapshots {
            let expected = model.snaps[&snap.name].parent.is_some();
            assert_eq!(snap.parent.is_some(), expected, "{name}@{}", snap.name);
        }
        self.compare_children();
    }

    /// Asserts that the children of every snapshot, in all pools, are those that the model has.
    fn compare_children(&self) {
        for (name, model) in &self.models {
            let children = self.store.children(&model.pool, model.id, None).expect("children");
            let info = model.pool.info(model.id).expect("info");
            for snap in &info.snapshots {
                let link = Some((name.clone(), snap.name.clone()));
                let listed = children.iter().filter(|c| c.snap_id == snap.id);
                let mut listed: Vec<&str> = listed.map(|c| c.image.as_str()).collect();
                listed.sort_unstable();
                let is_child =
                    |m: &Model| m.parent == link || m.snaps.values().any(|s| s.parent == link);
                let known = self.models.iter().filter(|(_, m)| is_child(m));
                let mut known: Vec<&str> = known.map(|(name, _)| name.as_str()).collect();
                known.sort_unstable();
                assert_eq!(listed, known, "children of {name}@{}", snap.name);
            }
        }
    }

    /// Removes the protection of a snapshot, which works only where the model has no child of it.
    fn unprotect(&mut self, name: &str) {
        let Some(snap) = self.a_snapshot(name) else { return };
        if !self.models[name].snaps[&snap].protected {
            return;
        }
        let children = self.has_children(name, &snap);
        let unprotected = self.image(name).unprotect(&snap);
        match children {
            true => {
                assert_eq!(unprotected.expect_err("children").kind(), ErrorKind::HasChildren);
            }
            false => {
                unprotected.expect("unprotects");
                let snaps = &mut self.model(name).snaps;
                snaps.get_mut(&snap).expect("a known snapshot").protected = false;
            }
        }
    }

    fn remove_snapshot(&mut self, name: &str) {
        let Some(snap) = self.a_snapshot(name) else { return };
        if self.models[name].snaps[&snap].protected {
            let refused = self.image(name).remove_snapshot(&snap, false).expect_err("protected");
            assert_eq!(refused.kind(), ErrorKind::Protected);
            let children = self.has_children(name, &snap);
            let unprotected = self.image(name).unprotect(&snap);
            if children {
                assert_eq!(unprotected.expect_err("children").kind(), ErrorKind::HasChildren);
                return;
            }
            unprotected.expect("unprotects");
        }
        self.image(name).remove_snapshot(&snap, false).expect("removes");
        self.model(name).snaps.remove(&snap);
    }

    fn remove(&mut self, name: &str) {
        let (pool, id) = (self.models[name].pool.clone(), self.models[name].id);
        let store = self.store.clone();
        let remove = || store.remove_image(&pool, id, &mut |_, _| {});
        if let Some(image) = self.open.remove(name) {
            let snapshots = !self.models[name].snaps.is_empty();
            let why = if snapshots { ErrorKind::HasSnapshots } else { ErrorKind::Owned };
            assert_eq!(remove().expect_err("in use").kind(), why);
            image.close().expect("closes");
        }
        if !self.models[name].snaps.is_empty() {
            assert_eq!(remove().expect_err("snapshots").kind(), ErrorKind::HasSnapshots);
            return;
        }
        remove().expect("removes");
        self.models.remove(name);
    }

    fn resize(&mut self, name: &str) {
        let size_bytes = self.rng.below(SIZE_MAX) + 1;
        if size_bytes < self.models[name].bytes.len() as u64 {
            let refused = self.image(name).resize(size_bytes, false).expect_err("shrinks");
            assert_eq!(refused.kind(), ErrorKind::Invalid);
        }
        self.image(name).resize(size_bytes, true).expect("resizes");
        self.model(name).bytes.resize(size_bytes as usize, 0);
    }

    fn reopen(&mut self, name: &str) {
        if let Some(image) = self.open.remove(name) {
            image.close().expect("closes");
        }
        self.read(name);
    }

    /// Drops an image without closing it: the log must bring back everything that was flushed.
    fn crash(&mut self, name: &str) {
        if let Some(mut image) = self.open.remove(name) {
            image.flush().expect("flushes");
        }
        self.read(name);
    }

    fn compare_all(&mut self, name: &str) {
        let mut buf = vec![0; self.models[name].bytes.len()];
        self.image(name).read_at(0, &mut buf).expect("reads");
        let model = &self.models[name];
        assert!(buf == model.bytes, "{name} differs");
        for (snap, content) in &model.snaps {
            let mut image = model.pool.open_snapshot(model.id, snap).expect("opens");
            let mut buf = vec![0; content.bytes.len()];
            image.read_at(0, &mut buf).expect("reads");
            assert!(buf == content.bytes, "{name}@{snap} differs");
        }
    }

    fn check(&mut self) {
        self.compare_children();
        for (_, image) in std::mem::take(&mut self.open) {
            image.close().expect("closes");
        }
        for pool in &self.pools {
            let options = CheckOptions::default();
            let report = self.store.check(pool, &options, &mut |_, _| {}).expect("checks");
            assert!(report.findings.is_empty(), "{:#?}", report.findings);
        }
    }
}

fn run(seed: u64, steps: u64, store: Store) {
    println!("seed {seed}, {steps} steps");
    let mut family = Family::new(seed, store);
    for step in 0..steps {
        family.step();
        if step % 500 == 499 {
            family.check();
        }
    }
    for name in family.models.keys().cloned().collect::<Vec<_>>() {
        family.compare_all(&name);
    }
    family.check();
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The seeds of a run, and how many steps each takes.
fn seeds() -> (Vec<u64>, u64) {
    let steps = number("MARCOT_TEST_STEPS").unwrap_or(2500);
    let seeds = number("MARCOT_TEST_SEED")
        .map_or_else(|| (1..=3).map(|seed| seed * 7919).collect(), |seed| vec![seed]);
    (seeds, steps)
}

#[test]
fn a_family_of_images_equals_its_byte_model() {
    let (seeds, steps) = seeds();
    for seed in seeds {
        let directory = tempfile::tempdir().expect("a directory");
        run(seed, steps, Store::open(directory.path()).expect("a store"));
    }
}

/// The engine needs nothing of a back end but what its traits promise: here there is no disk.
#[test]
fn a_family_of_images_in_memory_equals_its_byte_model() {
    let (seeds, steps) = seeds();
    for seed in seeds {
        let world = World { disk: Arc::new(NoDisk), ..World::system() };
        let place = std::path::Path::new("/memory");
        let home = Arc::new(MemoryMachine::default().home(place));
        let store = Store::open_home(world, home, place, Limits::default()).expect("a store");
        // The map and the log are those of the test above; only what lies below them differs.
        run(seed, steps / 2, store);
    }
}

/// Segments are uploaded before a head names them, and read from an object store.
#[test]
fn a_family_of_images_in_a_bucket_equals_its_byte_model() {
    let (seeds, steps) = seeds();
    for seed in seeds {
        let directory = tempfile::tempdir().expect("a directory");
        let bucket = Bucket::default();
        // Every snapshot uploads segments, so that a step takes much longer than elsewhere.
        run(seed, steps / 10, Host::store(&bucket, directory.path(), 1, Limits::default()));
    }
}
