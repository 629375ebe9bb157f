//! Images that are cloned back and forth between pools keep their content, whatever is flattened and removed
//! meanwhile, and their space comes back when they are gone.

mod support;

use std::collections::BTreeMap;

use marcot::{CloneOptions, CreateOptions, ErrorKind, Image, ImageId, Pool, PoolOptions, Store};
use support::{MIB, assert_sound, run};

/// Blocks that are written. The last one lies below a leaf of its own.
const OFFSETS: [u64; 3] = [0, 4096, 4 * MIB];
const BLOCK: usize = 4096;
const STEPS: usize = 80;
/// Steps after which all images are removed, however they depend on each other.
const STEPS_MAX: usize = STEPS + 400;
const IMAGES_MAX: usize = 12;

/// What each block is filled with.
type Content = [u8; OFFSETS.len()];

struct Known {
    pool: usize,
    id: ImageId,
    head: Content,
    snapshots: BTreeMap<String, Content>,
}

/// Xorshift, so that a seed always does the same.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

struct Model {
    store: Store,
    pools: Vec<Pool>,
    images: Vec<Known>,
    random: Random,
    /// Counts names and contents.
    next: u32,
    /// What was done, for the message of a failure.
    done: Vec<String>,
}

fn read(image: marcot::Result<Image>) -> marcot::Result<Content> {
    let (mut image, mut found) = (image?, [0; OFFSETS.len()]);
    for (found, offset) in found.iter_mut().zip(OFFSETS) {
        let mut bytes = [0; BLOCK];
        image.read_at(offset, &mut bytes)?;
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        *found = bytes[0];
    }
    Ok(found)
}

impl Model {
    fn fresh(&mut self, what: &str) -> (String, u8) {
        self.next += 1;
        (format!("{what}{}", self.next), (self.next % 250) as u8 + 1)
    }

    /// Runs a change of an image and notes it.
    fn change(
        &mut self,
        image: usize,
        what: &str,
        change: impl FnOnce(&mut Image) -> marcot::Result<()>,
    ) -> Result<(), ErrorKind> {
        let Known { pool, id, .. } = self.images[image];
        let changed = run(&self.pools[pool], id, change).map_err(|error| error.kind());
        self.done.push(format!("{what}, image {id} of pool {pool}: {changed:?}"));
        changed
    }

    fn create(&mut self) {
        let pool = self.random.below(self.pools.len());
        let (name, byte) = self.fresh("image");
        let id = self.pools[pool].create(name, &CreateOptions::sized(8 * MIB)).unwrap();
        self.images.push(Known { pool, id, head: [0; 3], snapshots: BTreeMap::new() });
        for at in 0..OFFSETS.len() {
            self.write(self.images.len() - 1, at, byte);
        }
    }

    fn write(&mut self, image: usize, at: usize, byte: u8) {
        let write = |image: &mut Image| image.write_at(OFFSETS[at], &[byte; BLOCK]);
        self.change(image, "write", write).unwrap();
        self.images[image].head[at] = byte;
    }

    fn snapshot(&mut self, image: usize) {
        let (name, _) = self.fresh("snap");
        let work = |image: &mut Image| image.snapshot(&name).and_then(|_| image.protect(&name));
        self.change(image, &format!("snapshot {name}"), work).unwrap();
        let head = self.images[image].head;
        self.images[image].snapshots.insert(name, head);
    }

    fn clone(&mut self, image: usize) {
        let Known { pool, id, ref snapshots, .. } = self.images[image];
        let Some((snapshot, head)) = snapshots.iter().next_back().map(|(n, c)| (n.clone(), *c))
        else {
            return;
        };
        let to = (pool + self.random.below(3).min(1)) % self.pools.len();
        let (name, _) = self.fresh("clone");
        let of = self.pools[pool].snapshot(id, &snapshot);
        let child = of.clone_to(&self.pools[to], name, &CloneOptions::default()).unwrap();
        self.done.push(format!("clone {child} in pool {to} of {snapshot}, image {id}"));
        self.images.push(Known { pool: to, id: child, head, snapshots: BTreeMap::new() });
    }

    fn remove_snapshot(&mut self, image: usize) {
        let Some(name) = self.images[image].snapshots.keys().next().cloned() else { return };
        let remove = |image: &mut Image| {
            image.unprotect(&name)?;
            image.remove_snapshot(&name, false)
        };
        match self.change(image, &format!("remove {name}"), remove) {
            Ok(()) => drop(self.images[image].snapshots.remove(&name)),
            Err(kind) => assert_eq!(kind, ErrorKind::HasChildren),
        }
    }

    fn remove(&mut self, image: usize) {
        let Known { pool, id, .. } = self.images[image];
        let removed = self.store.remove_image(&self.pools[pool], id, &mut |_, _| {});
        let removed = removed.map_err(|error| error.kind());
        self.done.push(format!("remove image {id} of pool {pool}: {removed:?}"));
        match removed {
            Ok(()) => drop(self.images.remove(image)),
            Err(kind) => assert_eq!(kind, ErrorKind::HasSnapshots),
        }
    }

    fn gc(&mut self) {
        let pool = self.random.below(self.pools.len());
        self.done.push(format!("gc of pool {pool}"));
        self.store.gc(&self.pools[pool], &mut |_, _| {}).unwrap();
    }

    /// One step. At the end, images are only flattened and removed.
    fn step(&mut self, ending: bool) {
        if self.images.is_empty() {
            return self.create();
        }
        // Most steps concern one of the newest images, so that chains become long.
        let count = self.images.len();
        let back = if self.random.below(2) == 0 { count } else { count.min(3) };
        let image = count - 1 - self.random.below(back);
        match if ending { 7 + self.random.below(4) } else { self.random.below(11) } {
            0 => {
                let (at, (_, byte)) = (self.random.below(OFFSETS.len()), self.fresh("write"));
                self.write(image, at, byte);
            }
            1..=2 if self.images[image].snapshots.len() < 2 => self.snapshot(image),
            3..=6 if count < IMAGES_MAX => self.clone(image),
            7 => match self.change(image, "flatten", |image| image.flatten()) {
                Ok(()) => {}
                Err(kind) => assert_eq!(kind, ErrorKind::NoParent),
            },
            8 => self.remove_snapshot(image),
            9 => self.remove(image),
            _ => self.gc(),
        }
    }

    fn verify(&self, seed: u64) {
        let check = |found: marcot::Result<Content>, content: &Content, what: &str| {
            let same = found.as_ref().is_ok_and(|found| found == content);
            assert!(same, "{seed}: {what} is {found:?}, not {content:?}: {:#?}", self.done);
        };
        for Known { pool, id, head, snapshots } in &self.images {
            let pool = &self.pools[*pool];
            check(read(pool.open_read_only(*id)), head, &id.to_string());
            for (name, content) in snapshots {
                check(read(pool.open_snapshot(*id, name)), content, name);
            }
        }
    }
}

fn clone_back_and_forth(seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    store.pool_create("second", &PoolOptions::default()).unwrap();
    let pools = ["rbd", "second"].map(|name| store.pool(name).unwrap()).to_vec();
    let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut model = Model { store, pools, images: Vec::new(), random, next: 0, done: Vec::new() };
    for step in 0..STEPS_MAX {
        let ending = step >= STEPS;
        if ending && model.images.is_empty() {
            break;
        }
        model.step(ending);
        model.verify(seed);
        if step % 16 == 0 {
            model.pools.iter().for_each(|pool| assert_sound(&model.store, pool));
        }
    }
    assert!(model.images.is_empty(), "{seed}: {:#?}", model.done);
    for pool in &model.pools {
        model.store.gc(pool, &mut |_, _| {}).unwrap();
        assert_eq!(model.store.pool_stats(pool).unwrap().allocated_bytes, 0, "{seed}");
    }
}

#[test]
fn images_that_are_cloned_back_and_forth_between_pools_keep_their_content() {
    for seed in 7..10 {
        clone_back_and_forth(seed);
    }
}
