//! Migration from a disk outside the store: what is read, what is refused, and what an interruption between any two
//! steps leaves.

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use marcot::{
    BLOCK_BYTES, CheckOptions, CreateOptions, Error, ErrorKind, Extent, ExternalDisk,
    ExternalSources, ImageId, Limits, MemberId, Namespace, Pool, Result, Store,
};
use support::bucket::{Bucket, Host};
use support::{MIB, assert_sound, changed, killed_after_each_change, pattern, run};

/// The disk: data at its start, a hole, data that ends inside a block.
const BYTES: u64 = 5 * MIB + 1000;
const DATA: [(u64, u64); 2] = [(0, MIB), (4 * MIB + 8192, BYTES - 4 * MIB - 8192)];
const SPEC: &str = r#"{"of":"this test"}"#;

/// A disk in memory, which may be gone, or have changed.
#[derive(Default)]
struct Outside {
    gone: AtomicBool,
    state: AtomicU64,
    reads: AtomicU64,
    asked: Mutex<Vec<String>>,
}

struct Disk(Arc<Outside>);

fn content() -> Vec<u8> {
    static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(made);
    CONTENT.clone()
}

fn made() -> Vec<u8> {
    let mut bytes = vec![0; BYTES as usize];
    for (n, (offset, length)) in DATA.into_iter().enumerate() {
        let at = offset as usize;
        bytes[at..at + length as usize].copy_from_slice(&pattern(n as u8 + 1, length as usize));
    }
    bytes
}

impl Outside {
    fn check(&self) -> Result<()> {
        match self.gone.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Io, "it is gone")),
            false => Ok(()),
        }
    }

    fn now(&self) -> String {
        self.state.load(Ordering::Relaxed).to_string()
    }
}

impl ExternalDisk for Disk {
    fn size_bytes(&self) -> u64 {
        BYTES
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.check()?;
        self.0.reads.fetch_add(1, Ordering::Relaxed);
        buf.copy_from_slice(&content()[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        self.0.check()?;
        let end = offset + length;
        let inside = DATA.into_iter().find(|(at, length)| (*at..at + length).contains(&offset));
        if let Some((at, length)) = inside {
            let length = (at + length).min(end) - offset;
            return Ok(vec![Extent { offset, length, data: true }]);
        }
        let next = DATA.into_iter().map(|(at, _)| at).find(|at| *at > offset).unwrap_or(BYTES);
        Ok(vec![Extent { offset, length: next.min(end) - offset, data: false }])
    }
}

struct Sources(Arc<Outside>);

impl ExternalSources for Sources {
    fn open(&self, spec: &str, state: &str) -> Result<Arc<dyn ExternalDisk>> {
        self.0.asked.lock().unwrap().push(spec.to_owned());
        self.0.check()?;
        match self.0.now() == state {
            true => Ok(Arc::new(Disk(Arc::clone(&self.0)))),
            false => Err(Error::new(ErrorKind::Io, "it has changed")),
        }
    }
}

struct Scene {
    store: Store,
    pool: Pool,
    outside: Arc<Outside>,
}

fn quiet(_: u64, _: u64) {}

impl Scene {
    fn new(store: Store, outside: &Arc<Outside>) -> Self {
        store.set_external_sources(Arc::new(Sources(Arc::clone(outside))));
        let pool = store.pool("rbd").unwrap();
        Self { store, pool, outside: Arc::clone(outside) }
    }

    fn open(directory: &Path) -> Self {
        Self::new(Store::open(directory).unwrap(), &Arc::default())
    }

    /// Another process.
    fn again(&self, directory: &Path) -> Self {
        Self::new(Store::open(directory).unwrap(), &self.outside)
    }

    fn prepare(&self) -> Result<ImageId> {
        let mut image = self.pool.create_partial("b", &CreateOptions::sized(BYTES))?;
        image.leave_to_source(SPEC, &self.outside.now(), &[(0, BYTES)])?;
        let id = image.id();
        self.pool.publish_partial(id, "b")?;
        image.close()?;
        Ok(id)
    }

    fn execute(&self) -> Result<()> {
        run(&self.pool, self.pool.find("b")?, |image| {
            while image.migrate_part()?.more {}
            image.migrate(&mut quiet)
        })
    }

    fn commit(&self) -> Result<()> {
        run(&self.pool, self.pool.find("b")?, |image| {
            image.check_migrated()?;
            image.end_migration()
        })
    }

    fn abort(&self) -> Result<()> {
        let id = self.pool.find_migrating(&"b".into())?;
        self.store.abort_migration_from_outside(&self.pool, id, &mut quiet)
    }

    fn read(&self) -> Vec<u8> {
        let id = self.pool.find("b").unwrap();
        let mut image = self.pool.open_read_only(id).unwrap();
        let mut bytes = vec![0; image.size_bytes() as usize];
        image.read_at(0, &mut bytes).unwrap();
        bytes
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let id = self.pool.find("b").unwrap();
        changed(&self.pool, id, |image| image.write_at(offset, bytes).unwrap());
    }

    fn assert_sound(&self) {
        assert_sound(&self.store, &self.pool);
    }
}

/// Writes inside a block of the source, and returns what the image has then.
fn write_some(scene: &Scene) -> Vec<u8> {
    let mut wanted = content();
    for offset in [5000, 2 * MIB + 100, BYTES - 50] {
        let bytes = pattern(9, 50);
        scene.write(offset, &bytes);
        wanted[offset as usize..offset as usize + 50].copy_from_slice(&bytes);
    }
    wanted
}

#[test]
fn the_target_shows_the_source_from_the_start_and_needs_it_no_more_after_execute() {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::open(directory.path());
    let id = scene.prepare().unwrap();
    assert_eq!(*scene.outside.asked.lock().unwrap(), Vec::<String>::new(), "only readers open it");
    assert!(scene.read() == content());
    assert_eq!(*scene.outside.asked.lock().unwrap(), [SPEC]);
    scene.assert_sound();
    let info = scene.pool.info(id).unwrap().migration.unwrap();
    assert_eq!((info.source_spec.as_deref(), info.is_source), (Some(SPEC), false));
    let wanted = write_some(&scene);
    assert!(scene.read() == wanted);
    scene.assert_sound();
    let scene = scene.again(directory.path());
    assert!(scene.read() == wanted);
    assert_eq!(scene.commit().unwrap_err().kind(), ErrorKind::Invalid);
    scene.execute().unwrap();
    scene.outside.gone.store(true, Ordering::Relaxed);
    assert!(scene.read() == wanted);
    scene.commit().unwrap();
    scene.assert_sound();
    let scene = scene.again(directory.path());
    assert!(scene.read() == wanted);
    assert_eq!(scene.pool.info(id).unwrap().migration, None);
    // The hole of the source takes no space.
    let mapped_blocks = support::head_of(&scene.pool, id).root.unwrap().mapped_blocks;
    assert!(mapped_blocks * BLOCK_BYTES < 3 * MIB, "{mapped_blocks}");
}

#[test]
fn holes_of_the_source_are_holes_of_the_target() {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::open(directory.path());
    let id = scene.prepare().unwrap();
    let mut image = scene.pool.open_read_only(id).unwrap();
    let extents = image.extents(0, BYTES, 100).unwrap();
    let data: Vec<(u64, u64)> =
        extents.iter().filter(|extent| extent.data).map(|e| (e.offset, e.length)).collect();
    assert_eq!(data, DATA);
}

#[test]
fn a_source_that_is_gone_or_has_changed_is_an_io_error_and_never_other_data() {
    for changed_instead in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let scene = Scene::open(directory.path());
        let id = scene.prepare().unwrap();
        let wanted = write_some(&scene);
        match changed_instead {
            true => drop(scene.outside.state.fetch_add(1, Ordering::Relaxed)),
            false => scene.outside.gone.store(true, Ordering::Relaxed),
        }
        let scene = scene.again(directory.path());
        let mut image = scene.pool.open(id).unwrap();
        let mut bytes = vec![0; 4096];
        let error = image.read_at(16 << 10, &mut bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        let said = error.sentence().to_string();
        assert!(said.contains("the source that rbd/b is migrated from cannot be read"), "{said}");
        let why = if changed_instead { "it has changed" } else { "it is gone" };
        assert!(said.contains(why), "{said}");
        // What was written is here; a write that needs the rest of a block of the source fails.
        image.read_at(4096, &mut bytes).unwrap();
        assert!(bytes[..] == wanted[4096..8192]);
        assert_eq!(image.write_at(20_000, &[1]).unwrap_err().kind(), ErrorKind::Io);
        image.write_at(16 << 10, &pattern(3, 4096)).unwrap();
        image.close().unwrap();
        assert_eq!(scene.execute().unwrap_err().kind(), ErrorKind::Io);
        scene.assert_sound();
        // An abort needs no source.
        scene.abort().unwrap();
        assert_eq!(scene.pool.find("b").unwrap_err().kind(), ErrorKind::NotFound);
        scene.assert_sound();
    }
}

#[test]
fn a_server_that_is_gone_is_not_asked_by_every_reader() {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::open(directory.path());
    let id = scene.prepare().unwrap();
    scene.outside.gone.store(true, Ordering::Relaxed);
    let mut image = scene.pool.open_read_only(id).unwrap();
    for _ in 0..100 {
        image.read_at(0, &mut [0; 512]).unwrap_err();
    }
    let asked = scene.outside.asked.lock().unwrap().len();
    assert!(asked < 100, "{asked}");
}

#[test]
fn a_program_without_sources_reads_none() {
    let directory = tempfile::tempdir().unwrap();
    let id = Scene::open(directory.path()).prepare().unwrap();
    let pool = Store::open(directory.path()).unwrap().pool("rbd").unwrap();
    let mut image = pool.open_read_only(id).unwrap();
    assert_eq!(image.read_at(0, &mut [0; 4096]).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn the_head_of_another_user_or_of_an_image_in_a_bucket_opens_no_source() {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::open(directory.path());
    let id = scene.prepare().unwrap();
    let outside = Arc::clone(&scene.outside);
    drop(scene);
    support::give_away(directory.path(), 12_345);
    let scene = Scene::new(Store::open(directory.path()).unwrap(), &outside);
    assert!(scene.pool.read_only());
    let mut image = scene.pool.open_read_only(id).unwrap();
    let error = image.read_at(0, &mut [0; 4096]).unwrap_err();
    assert!(error.sentence().to_string().contains("belongs to another user"), "{error}");
    support::give_away(directory.path(), 0);
    assert_eq!(*outside.asked.lock().unwrap(), Vec::<String>::new());

    let directory = tempfile::tempdir().unwrap();
    let store = Host::store(&Bucket::default(), directory.path(), 1, Limits::default());
    let scene = Scene::new(store, &outside);
    assert_eq!(scene.prepare().unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(*outside.asked.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn what_is_cut_off_or_discarded_is_not_taken_from_the_source_again() {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::open(directory.path());
    let id = scene.prepare().unwrap();
    let mut wanted = content();
    changed(&scene.pool, id, |image| {
        image.discard(4096, 300_000).unwrap();
        image.resize(4 * MIB + 9000, true).unwrap();
        image.resize(8 * MIB, true).unwrap();
    });
    wanted[4096..304_096].fill(0);
    wanted[4 * MIB as usize + 9000..].fill(0);
    wanted.resize(8 * MIB as usize, 0);
    assert!(scene.read() == wanted);
    scene.execute().unwrap();
    assert!(scene.read() == wanted);
    scene.commit().unwrap();
    assert!(scene.read() == wanted);
    scene.assert_sound();
}

#[test]
fn only_a_part_may_be_left_to_the_source() {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::open(directory.path());
    let mut image = scene.pool.create_partial("b", &CreateOptions::sized(BYTES)).unwrap();
    image.write_at(0, &pattern(7, BYTES as usize)).unwrap();
    image.snapshot("before").unwrap();
    let state = scene.outside.now();
    let inside = image.leave_to_source(SPEC, &state, &[(100, 4096)]);
    assert_eq!(inside.unwrap_err().kind(), ErrorKind::Invalid);
    image.leave_to_source(SPEC, &state, &[(8192, 4096), (5 * MIB, 1000)]).unwrap();
    let id = image.id();
    scene.pool.publish_partial(id, "b").unwrap();
    image.close().unwrap();
    let mut wanted = pattern(7, BYTES as usize);
    for range in [8192..12288, 5 * MIB as usize..BYTES as usize] {
        wanted[range.clone()].copy_from_slice(&content()[range]);
    }
    assert!(scene.read() == wanted);
    scene.assert_sound();
    scene.execute().unwrap();
    scene.commit().unwrap();
    assert!(scene.read() == wanted);
    let mut before = vec![0; BYTES as usize];
    scene.pool.open_snapshot(id, "before").unwrap().read_at(0, &mut before).unwrap();
    assert!(before == pattern(7, BYTES as usize));
    scene.assert_sound();
}

#[test]
fn a_snapshot_has_to_wait_until_all_is_copied() {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::open(directory.path());
    let id = scene.prepare().unwrap();
    let snapshot = |scene: &Scene| run(&scene.pool, id, |image| image.snapshot("s").map(drop));
    assert_eq!(snapshot(&scene).unwrap_err().kind(), ErrorKind::Busy);
    scene.execute().unwrap();
    snapshot(&scene).unwrap();
    scene.commit().unwrap();
    let removed = scene.store.remove_image(&scene.pool, id, &mut quiet);
    assert_eq!(removed.unwrap_err().kind(), ErrorKind::HasSnapshots);
}

#[test]
fn while_it_lasts_the_target_is_neither_removed_nor_migrated() {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::open(directory.path());
    let id = scene.prepare().unwrap();
    let removed = scene.store.remove_image(&scene.pool, id, &mut quiet);
    assert_eq!(removed.unwrap_err().kind(), ErrorKind::Busy);
    let (from, to) = ("b".into(), "c".into());
    let options = CreateOptions::default().into();
    let both = ((&scene.pool, &from), (&scene.pool, &to));
    let moved = scene.store.prepare_migration(both.0, both.1, &options);
    assert_eq!(moved.map(drop).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(
        scene.store.migration(&scene.pool, id).map(drop).unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn check_tells_blocks_that_are_left_to_no_source() {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::open(directory.path());
    let id = scene.prepare().unwrap();
    support::change_head(&scene.pool, id, |head| head.migration = None);
    let report = scene.store.check(&scene.pool, &CheckOptions::default(), &mut quiet).unwrap();
    let found =
        report.findings.iter().any(|f| f.serious && f.message.contains("left to the source"));
    assert!(found, "{:?}", report.findings);
    let mut image = scene.pool.open_read_only(id).unwrap();
    assert_eq!(image.read_at(0, &mut [0; 4096]).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(scene.outside.reads.load(Ordering::Relaxed), 0);
}

/// Runs `step` in a process that is killed after each number of changes of the medium in turn, until it succeeds, and
/// calls `after` for each of these stores.
fn killed_everywhere(
    before: impl Fn(&Scene),
    step: impl Fn(&Scene) -> Result<()>,
    after: impl Fn(&Scene, bool),
) {
    killed_after_each_change(
        |directory| {
            let scene = Scene::open(directory);
            before(&scene);
            Arc::clone(&scene.outside)
        },
        |outside, store| step(&Scene::new(store, outside)).is_ok(),
        |outside, store, done, _| {
            let scene = Scene::new(store, outside);
            after(&scene, done);
            scene.store.gc(&scene.pool, &mut quiet).unwrap();
            scene.assert_sound();
        },
    );
}

#[test]
fn a_kill_while_preparing_leaves_nothing_or_a_target() {
    killed_everywhere(
        |_| {},
        |scene| scene.prepare().map(drop),
        |scene, done| match scene.pool.find("b") {
            Ok(_) => {
                assert!(scene.read() == content());
                scene.abort().unwrap();
            }
            Err(error) => assert!(!done && error.kind() == ErrorKind::NotFound),
        },
    );
}

#[test]
fn a_kill_while_copying_leaves_a_target_that_goes_on() {
    killed_everywhere(
        |scene| {
            scene.prepare().unwrap();
            write_some(scene);
        },
        Scene::execute,
        |scene, _| {
            let mut wanted = content();
            for offset in [5000, 2 * MIB + 100, BYTES - 50] {
                wanted[offset as usize..offset as usize + 50].copy_from_slice(&pattern(9, 50));
            }
            assert!(scene.read() == wanted);
            scene.execute().unwrap();
            scene.outside.gone.store(true, Ordering::Relaxed);
            assert!(scene.read() == wanted);
            scene.commit().unwrap();
            assert!(scene.read() == wanted);
        },
    );
}

#[test]
fn a_kill_while_committing_leaves_a_target_that_needs_no_source() {
    killed_everywhere(
        |scene| {
            scene.prepare().unwrap();
            scene.execute().unwrap();
            scene.outside.gone.store(true, Ordering::Relaxed);
        },
        Scene::commit,
        |scene, done| {
            assert!(scene.read() == content());
            let id = scene.pool.find("b").unwrap();
            if scene.pool.info(id).unwrap().migration.is_some() {
                assert!(!done);
                scene.commit().unwrap();
            }
            assert!(scene.read() == content());
        },
    );
}

#[test]
fn an_abort_removes_no_part_of_a_snapshot_of_a_group() {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::open(directory.path());
    let (pool, here) = (&scene.pool, Namespace::DEFAULT);
    let id = scene.prepare().unwrap();
    scene.execute().unwrap();
    pool.create_group(&here, "g").unwrap();
    pool.add_to_group(&here, "g", pool, id).unwrap();
    let taken = pool.begin_group_snapshot(&here, "g", "s").unwrap().id;
    let part = changed(pool, id, |image| image.snapshot_for_group(taken).unwrap());
    let member = MemberId { pool: pool.id(), image: id };
    pool.complete_group_snapshot(taken, &[(member, part)]).unwrap();
    assert_eq!(scene.abort().unwrap_err().kind(), ErrorKind::InGroup);
    // The snapshot stays when the image leaves the group.
    pool.remove_from_group(&here, "g", member).unwrap();
    let refused = scene.abort().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.sentence().to_string().contains("has snapshots of a group"), "{refused}");
    assert!(scene.read() == content());
    pool.begin_group_snapshot_removal(taken).unwrap();
    changed(pool, id, |image| image.remove_snapshot_for_group(taken).unwrap());
    pool.forget_group_snapshot(taken).unwrap();
    scene.abort().unwrap();
    assert!(pool.find("b").is_err());
    scene.assert_sound();
}

#[test]
fn a_kill_while_aborting_leaves_the_target_or_nothing() {
    killed_everywhere(
        |scene| {
            scene.prepare().unwrap();
            write_some(scene);
        },
        Scene::abort,
        |scene, done| {
            if scene.pool.find("b").is_ok() {
                assert!(!done);
                scene.abort().unwrap();
            }
            assert!(scene.pool.find("b").is_err());
        },
    );
}

const _: () = assert!(!BYTES.is_multiple_of(BLOCK_BYTES));
