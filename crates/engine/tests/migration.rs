//! Migration: what is read, what is refused, what is freed, and what an interruption between any two steps leaves.

mod support;

use std::path::Path;

use marcot::{
    CloneOptions, CreateOptions, ErrorKind, ImageId, ImageName, MigrationOptions, MigrationState,
    Namespace, Pool, PoolOptions, Result, Store,
};
use support::{MIB, assert_sound, changed, killed_after_each_change, pattern, run};

const BYTES: u64 = 4 * MIB;
/// A piece of content, and the places of three of them. The last one lies below another leaf.
const PIECE: usize = 16 << 10;
const OFFSETS: [u64; 3] = [0, 64 << 10, 3 * MIB];

/// The seeds of what lies at [`OFFSETS`].
type Content = [u8; 3];

/// Where the target lies, seen from the source.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Where {
    SamePool,
    OtherPool,
}

/// What the image was cloned from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Origin {
    Nothing,
    /// A snapshot in the pool of the source, in that of the target of [`Where::OtherPool`], or in a third one.
    Parent(&'static str),
}

struct Scene {
    store: Store,
    source: Pool,
    dest: Pool,
}

fn quiet(_: u64, _: u64) {}

impl Scene {
    fn open(store: Store, place: Where) -> Self {
        let source = store.pool("rbd").unwrap();
        let dest = match place {
            Where::SamePool => source.clone(),
            Where::OtherPool => store.pool("tank").unwrap(),
        };
        Self { store, source, dest }
    }

    /// A store with the image `a` in pool `rbd`: with the content of [`NOW`], and the snapshot `s` with that of [`THEN`].
    fn make(directory: &Path, place: Where, from: Origin, snapshot: bool) -> (Self, ImageId) {
        let store = Store::open(directory).unwrap();
        for pool in ["tank", "third"] {
            store.pool_create(pool, &PoolOptions::default()).unwrap();
        }
        let scene = Self::open(store, place);
        let source = &scene.source;
        let id = match from {
            Origin::Nothing => source.create("a", &CreateOptions::sized(BYTES)).unwrap(),
            Origin::Parent(pool) => {
                let pool = scene.store.pool(pool).unwrap();
                let parent = pool.create("p", &CreateOptions::sized(BYTES)).unwrap();
                changed(&pool, parent, |image| {
                    write(image, 1, 77);
                    image.snapshot("x").unwrap();
                    image.protect("x").unwrap();
                });
                pool.snapshot(parent, "x").clone_to(source, "a", &CloneOptions::new()).unwrap()
            }
        };
        changed(source, id, |image| {
            write(image, 0, THEN[0]);
            if snapshot {
                image.snapshot("s").unwrap();
                image.protect("s").unwrap();
            }
            write(image, 2, NOW[2]);
        });
        (scene, id)
    }

    fn from() -> ImageName {
        ImageName::new("a")
    }

    fn to() -> ImageName {
        ImageName::new("b")
    }

    fn prepare(&self) -> Result<marcot::Migration> {
        let (source, dest) = ((&self.source, &Self::from()), (&self.dest, &Self::to()));
        self.store.prepare_migration(source, dest, &CreateOptions::default().into())
    }

    fn execute(&self) -> Result<()> {
        let id = self.dest.find(Self::to())?;
        run(&self.dest, id, |image| {
            while image.migrate_part()?.more {}
            image.migrate(&mut quiet)
        })
    }

    fn commit(&self) -> Result<()> {
        let id = self.dest.find(Self::to())?;
        run(&self.dest, id, marcot::Image::check_migrated)?;
        let migration = self.store.migration(&self.dest, id)?;
        self.store.remove_migrated(&migration, &mut quiet)?;
        run(&self.dest, id, marcot::Image::end_migration)
    }

    fn abort(&self) -> Result<()> {
        let id = self.source.find_migrating(&Self::from())?;
        let migration = self.store.migration(&self.source, id)?;
        self.store.abort_migration(&migration, &mut quiet)
    }

    fn collect(&self) {
        for pool in self.store.pools().unwrap() {
            self.store.gc(&self.store.pool(&pool).unwrap(), &mut quiet).unwrap();
        }
    }

    fn assert_sound(&self) {
        for pool in self.store.pools().unwrap() {
            assert_sound(&self.store, &self.store.pool(&pool).unwrap());
        }
    }
}

fn write(image: &mut marcot::Image, at: usize, seed: u8) {
    image.write_at(OFFSETS[at], &pattern(seed, PIECE)).unwrap();
}

fn read(mut image: marcot::Image) -> Content {
    let mut found = [0; 3];
    for (found, offset) in found.iter_mut().zip(OFFSETS) {
        let mut bytes = vec![0; PIECE];
        image.read_at(offset, &mut bytes).unwrap();
        *found = match bytes.iter().all(|byte| *byte == 0) {
            true => 0,
            false => {
                assert!(bytes == pattern(bytes[0], PIECE), "a mix at {offset}");
                bytes[0]
            }
        };
    }
    found
}

const THEN: Content = [5, 0, 0];
const NOW: Content = [5, 0, 6];
/// As [`NOW`], with what was written to the target.
const LATER: Content = [9, 0, 6];

/// The content where the image has a parent.
fn with(from: Origin, content: Content) -> Content {
    match from {
        Origin::Nothing => content,
        Origin::Parent(_) => [content[0], 77, content[2]],
    }
}

fn content(pool: &Pool, id: ImageId) -> Content {
    read(pool.open_read_only(id).unwrap())
}

fn then(pool: &Pool, id: ImageId) -> Content {
    read(pool.open_snapshot(id, "s").unwrap())
}

const ALL: [(Where, Origin, bool); 8] = [
    (Where::SamePool, Origin::Nothing, true),
    (Where::SamePool, Origin::Parent("rbd"), false),
    (Where::OtherPool, Origin::Nothing, false),
    (Where::OtherPool, Origin::Nothing, true),
    (Where::OtherPool, Origin::Parent("rbd"), true),
    (Where::OtherPool, Origin::Parent("tank"), true),
    (Where::OtherPool, Origin::Parent("third"), false),
    (Where::OtherPool, Origin::Parent("third"), true),
];

#[test]
fn a_migrated_image_has_the_content_snapshots_and_parent_of_its_source() {
    for (place, from, snapshot) in ALL {
        let directory = tempfile::tempdir().unwrap();
        let (scene, source) = Scene::make(directory.path(), place, from, snapshot);
        scene.prepare().unwrap();
        let target = scene.dest.find(Scene::to()).unwrap();
        assert_eq!(scene.source.find(Scene::from()).unwrap_err().kind(), ErrorKind::NotFound);
        let check = |wanted: Content| {
            assert_eq!(content(&scene.dest, target), with(from, wanted), "{place:?} {from:?}");
            if snapshot {
                assert_eq!(then(&scene.dest, target), with(from, THEN), "{place:?} {from:?}");
            }
            scene.assert_sound();
        };
        check(NOW);
        changed(&scene.dest, target, |image| write(image, 0, LATER[0]));
        check(LATER);
        scene.collect();
        check(LATER);
        scene.execute().unwrap();
        check(LATER);
        scene.commit().unwrap();
        assert!(scene.source.info(source).is_err());
        check(LATER);
        scene.collect();
        check(LATER);
        let info = scene.dest.info(target).unwrap();
        assert_eq!(info.migration, None);
        assert_eq!(info.parent.is_some(), from != Origin::Nothing);
        if place == Where::OtherPool && from != Origin::Parent("rbd") {
            // Nothing is left in the pool of the source.
            assert_eq!(support::segments(&scene.source, 'd'), Vec::<std::path::PathBuf>::new());
        }
    }
}

impl Scene {
    fn prepare_to_flatten(&self) -> Result<marcot::Migration> {
        let (source, dest) = ((&self.source, &Self::from()), (&self.dest, &Self::to()));
        let layout = CreateOptions::default();
        self.store.prepare_migration(source, dest, &MigrationOptions { layout, flatten: true })
    }

    /// Removes the parent, which has no child any more.
    fn remove_parent(&self, from: Origin) {
        let Origin::Parent(pool) = from else { return };
        let pool = self.store.pool(pool).unwrap();
        let parent = pool.find("p").unwrap();
        changed(&pool, parent, |image| {
            image.unprotect("x").unwrap();
            image.remove_snapshot("x", false).unwrap();
        });
        self.store.remove_image(&pool, parent, &mut quiet).unwrap();
    }
}

#[test]
fn a_migration_with_flatten_ends_with_an_image_without_a_parent() {
    for (place, from, snapshot) in ALL {
        let directory = tempfile::tempdir().unwrap();
        let (scene, _) = Scene::make(directory.path(), place, from, snapshot);
        scene.prepare_to_flatten().unwrap();
        let target = scene.dest.find(Scene::to()).unwrap();
        // As with RBD, it has its parent until it is copied.
        assert_eq!(scene.dest.info(target).unwrap().parent.is_some(), from != Origin::Nothing);
        write_later(&scene);
        scene.execute().unwrap();
        assert!(scene.dest.info(target).unwrap().parent.is_none(), "{place:?} {from:?}");
        scene.assert_sound();
        scene.commit().unwrap();
        scene.remove_parent(from);
        scene.collect();
        assert_eq!(content(&scene.dest, target), with(from, LATER), "{place:?} {from:?}");
        if snapshot {
            assert_eq!(then(&scene.dest, target), with(from, THEN), "{place:?} {from:?}");
        }
        scene.assert_sound();
    }
}

#[test]
fn an_abort_after_a_flatten_gives_the_source_back_with_its_parent() {
    for (place, from, snapshot) in ALL {
        let directory = tempfile::tempdir().unwrap();
        let (scene, source) = Scene::make(directory.path(), place, from, snapshot);
        scene.prepare_to_flatten().unwrap();
        write_later(&scene);
        scene.execute().unwrap();
        scene.abort().unwrap();
        assert_eq!(content(&scene.source, source), with(from, LATER), "{place:?} {from:?}");
        assert_eq!(scene.source.info(source).unwrap().parent.is_some(), from != Origin::Nothing);
        scene.collect();
        assert_eq!(content(&scene.source, source), with(from, LATER), "{place:?} {from:?}");
        scene.assert_sound();
    }
}

#[test]
fn a_kill_while_copying_and_flattening_leaves_a_migration_that_goes_on_or_is_aborted() {
    for (place, from) in [
        (Where::SamePool, Origin::Parent("rbd")),
        (Where::OtherPool, Origin::Parent("tank")),
        (Where::OtherPool, Origin::Parent("third")),
    ] {
        killed_while_copying(
            place,
            from,
            |scene| scene.prepare_to_flatten(),
            |scene| {
                scene.remove_parent(from);
                scene.collect();
                assert_target(scene, from, LATER);
            },
        );
    }
}

#[test]
fn data_of_a_parent_in_a_third_pool_is_not_copied() {
    let directory = tempfile::tempdir().unwrap();
    let (scene, _) = Scene::make(directory.path(), Where::OtherPool, Origin::Parent("third"), true);
    scene.prepare().unwrap();
    scene.execute().unwrap();
    scene.commit().unwrap();
    let target = scene.dest.find(Scene::to()).unwrap();
    let third = scene.store.pool("third").unwrap();
    assert!(!support::segments(&third, 'd').is_empty());
    for segment in support::segments(&third, 'd') {
        std::fs::remove_file(segment).unwrap();
    }
    let store = Store::open(directory.path()).unwrap();
    let mut image = store.pool("tank").unwrap().open_read_only(target).unwrap();
    let mut bytes = vec![0; PIECE];
    image.read_at(OFFSETS[2], &mut bytes).unwrap();
    assert!(bytes == pattern(NOW[2], PIECE));
    image.read_at(OFFSETS[1], &mut bytes).unwrap_err();
}

#[test]
fn an_aborted_migration_leaves_the_source_with_what_was_written_meanwhile() {
    for (place, from, snapshot) in ALL {
        for executed in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let (scene, source) = Scene::make(directory.path(), place, from, snapshot);
            scene.prepare().unwrap();
            let target = scene.dest.find(Scene::to()).unwrap();
            changed(&scene.dest, target, |image| {
                write(image, 0, LATER[0]);
                image.snapshot("new").unwrap();
            });
            if executed {
                scene.execute().unwrap();
            }
            scene.abort().unwrap();
            assert_eq!(scene.source.find(Scene::from()).unwrap(), source);
            assert!(scene.dest.info(target).is_err());
            scene.collect();
            assert_eq!(content(&scene.source, source), with(from, LATER), "{place:?} {from:?}");
            if snapshot {
                assert_eq!(then(&scene.source, source), with(from, THEN), "{place:?} {from:?}");
            }
            changed(&scene.source, source, |image| {
                write(image, 1, 3);
                image.snapshot("new").unwrap();
            });
            assert_eq!(content(&scene.source, source), [LATER[0], 3, LATER[2]]);
            scene.assert_sound();
        }
    }
}

#[test]
fn nobody_changes_the_source_or_removes_either_image() {
    let directory = tempfile::tempdir().unwrap();
    let (scene, source) = Scene::make(directory.path(), Where::OtherPool, Origin::Nothing, false);
    scene.prepare().unwrap();
    let target = scene.dest.find(Scene::to()).unwrap();
    let kind = |result: Result<()>| result.unwrap_err().kind();
    let Scene { store, source: pool, dest } = &scene;
    assert_eq!(kind(pool.open(source).map(drop)), ErrorKind::ReadOnly);
    assert_eq!(kind(store.remove_image(pool, source, &mut quiet)), ErrorKind::ReadOnly);
    assert_eq!(kind(store.remove_image(dest, target, &mut quiet)), ErrorKind::Busy);
    assert_eq!(kind(dest.move_to_trash(target, Scene::to(), None)), ErrorKind::Busy);
    let restored = pool.restore(&Namespace::DEFAULT, source, None);
    assert_eq!(kind(restored.map(drop)), ErrorKind::Invalid);
    assert_eq!(kind(scene.commit()), ErrorKind::Invalid);
    assert_eq!(kind(scene.prepare().map(drop)), ErrorKind::NotFound);
    // The target cannot be migrated on.
    let (from, to) = ((dest, &Scene::to()), (pool, &ImageName::new("c")));
    let again = store.prepare_migration(from, to, &CreateOptions::default().into());
    assert_eq!(kind(again.map(drop)), ErrorKind::Busy);
    let info = dest.info(target).unwrap().migration.unwrap();
    assert_eq!((info.is_source, info.state), (false, MigrationState::Prepared));
    assert_eq!(pool.levels().known, 4);
}

#[test]
fn an_image_that_is_in_use_or_has_clones_is_not_migrated() {
    let directory = tempfile::tempdir().unwrap();
    let (scene, source) = Scene::make(directory.path(), Where::OtherPool, Origin::Nothing, true);
    let kind = || scene.prepare().map(drop).unwrap_err().kind();
    let image = scene.source.open(source).unwrap();
    assert_eq!(kind(), ErrorKind::Owned);
    image.close().unwrap();
    let snapshot = scene.source.snapshot(source, "s");
    let child = snapshot.clone_to(&scene.dest, "kid", &CloneOptions::new()).unwrap();
    assert_eq!(kind(), ErrorKind::HasChildren);
    scene.store.remove_image(&scene.dest, child, &mut quiet).unwrap();
    let other = scene.dest.create(Scene::to(), &CreateOptions::sized(BYTES)).unwrap();
    assert_eq!(kind(), ErrorKind::Exists);
    scene.store.remove_image(&scene.dest, other, &mut quiet).unwrap();
    assert!(scene.source.info(source).unwrap().migration.is_none());
    scene.prepare().unwrap();
}

#[test]
fn clones_of_the_target_outlive_the_source_and_stand_in_the_way_of_an_abort() {
    for into in ["rbd", "tank", "third"] {
        let directory = tempfile::tempdir().unwrap();
        let (scene, _) = Scene::make(directory.path(), Where::OtherPool, Origin::Nothing, true);
        scene.prepare().unwrap();
        let target = scene.dest.find(Scene::to()).unwrap();
        let pool = scene.store.pool(into).unwrap();
        let snapshot = scene.dest.snapshot(target, "s");
        let child = snapshot.clone_to(&pool, "kid", &CloneOptions::new()).unwrap();
        assert_eq!(scene.abort().unwrap_err().kind(), ErrorKind::HasChildren);
        scene.execute().unwrap();
        scene.commit().unwrap();
        scene.collect();
        let store = Store::open(directory.path()).unwrap();
        let pool = store.pool(into).unwrap();
        assert_eq!(content(&pool, child), THEN, "in {into}");
        assert_eq!(content(&store.pool("tank").unwrap(), target), NOW);
        scene.assert_sound();
    }
}

#[test]
fn the_name_of_the_source_has_to_be_free_for_an_abort() {
    let directory = tempfile::tempdir().unwrap();
    let (scene, _) = Scene::make(directory.path(), Where::OtherPool, Origin::Nothing, false);
    scene.prepare().unwrap();
    let target = scene.dest.find(Scene::to()).unwrap();
    scene.source.create("a", &CreateOptions::sized(BYTES)).unwrap();
    let migration = scene.store.migration(&scene.dest, target).unwrap();
    let aborted = scene.store.abort_migration(&migration, &mut quiet);
    assert_eq!(aborted.unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(content(&scene.dest, target), NOW);
    scene.source.rename("a", "other").unwrap();
    scene.store.abort_migration(&migration, &mut quiet).unwrap();
    scene.source.find("a").unwrap();
}

#[test]
fn an_image_may_keep_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let (scene, source) = Scene::make(directory.path(), Where::SamePool, Origin::Nothing, true);
    let name = Scene::from();
    let to = (&scene.source, &name);
    let migration =
        scene.store.prepare_migration(to, to, &CreateOptions::default().into()).unwrap();
    assert_eq!(scene.source.find(&name).unwrap(), migration.target);
    scene.store.abort_migration(&migration, &mut quiet).unwrap();
    assert_eq!(scene.source.find(&name).unwrap(), source);
    assert_eq!(content(&scene.source, source), NOW);
}

/// Runs `step` in a process that is killed after each number of changes of the medium in turn, until it succeeds, and
/// calls `after` for each of these stores: whether the step was done, and a flag that changes each time.
fn killed_everywhere(
    place: Where,
    from: Origin,
    before: impl Fn(&Scene),
    step: impl Fn(&Scene) -> Result<()>,
    after: impl Fn(&Scene, bool, bool),
) {
    killed_after_each_change(
        |directory| before(&Scene::make(directory, place, from, true).0),
        |(), store| step(&Scene::open(store, place)).is_ok(),
        |(), store, done, changes| {
            let scene = Scene::open(store, place);
            after(&scene, done, changes % 2 == 0);
            scene.collect();
            scene.assert_sound();
        },
    );
}

const KILLED: [(Where, Origin); 2] =
    [(Where::SamePool, Origin::Nothing), (Where::OtherPool, Origin::Parent("third"))];

/// The image under its first name, unless it has none.
fn unmoved(scene: &Scene) -> Option<ImageId> {
    let id = scene.source.find(Scene::from()).ok()?;
    scene.source.info(id).unwrap().migration.is_none().then_some(id)
}

fn assert_source(scene: &Scene, from: Origin, wanted: Content) {
    let id = unmoved(scene).expect("the image has its name");
    assert_eq!(content(&scene.source, id), with(from, wanted));
    assert_eq!(then(&scene.source, id), with(from, THEN));
    changed(&scene.source, id, |image| write(image, 0, wanted[0]));
}

fn assert_target(scene: &Scene, from: Origin, wanted: Content) {
    let id = scene.dest.find(Scene::to()).unwrap();
    assert_eq!(content(&scene.dest, id), with(from, wanted));
    assert_eq!(then(&scene.dest, id), with(from, THEN));
}

fn write_later(scene: &Scene) {
    let id = scene.dest.find(Scene::to()).unwrap();
    changed(&scene.dest, id, |image| write(image, 0, LATER[0]));
}

#[test]
fn a_kill_while_preparing_leaves_the_image_or_a_migration_that_can_be_aborted() {
    for (place, from) in KILLED {
        killed_everywhere(
            place,
            from,
            |_| {},
            |scene| scene.prepare().map(drop),
            |scene, done, collected| {
                if collected {
                    scene.collect();
                }
                if done || scene.dest.find(Scene::to()).is_ok() {
                    assert_target(scene, from, NOW);
                }
                if unmoved(scene).is_none() {
                    scene.abort().unwrap();
                }
                assert_source(scene, from, NOW);
                scene.prepare().unwrap();
                scene.execute().unwrap();
                scene.commit().unwrap();
                assert_target(scene, from, NOW);
            },
        );
    }
}

/// A kill at each change of copying leaves a migration that goes on or is aborted. `committed` looks at what was
/// committed.
fn killed_while_copying<T>(
    place: Where,
    from: Origin,
    prepare: impl Fn(&Scene) -> Result<T>,
    committed: impl Fn(&Scene),
) {
    killed_everywhere(
        place,
        from,
        |scene| {
            prepare(scene).unwrap();
            write_later(scene);
        },
        Scene::execute,
        |scene, _, goes_on| {
            assert_target(scene, from, LATER);
            scene.collect();
            assert_target(scene, from, LATER);
            if goes_on {
                scene.execute().unwrap();
                scene.commit().unwrap();
                assert_target(scene, from, LATER);
                committed(scene);
            } else {
                scene.abort().unwrap();
                assert_source(scene, from, LATER);
            }
        },
    );
}

#[test]
fn a_kill_while_copying_leaves_a_migration_that_goes_on_or_is_aborted() {
    for (place, from) in KILLED {
        killed_while_copying(place, from, Scene::prepare, |_| {});
    }
}

#[test]
fn a_kill_while_committing_leaves_a_migration_that_can_be_committed() {
    for (place, from) in KILLED {
        killed_everywhere(
            place,
            from,
            |scene| {
                scene.prepare().unwrap();
                write_later(scene);
                scene.execute().unwrap();
            },
            Scene::commit,
            |scene, done, collected| {
                if collected {
                    scene.collect();
                }
                assert_target(scene, from, LATER);
                let id = scene.dest.find(Scene::to()).unwrap();
                if scene.dest.info(id).unwrap().migration.is_some() {
                    assert!(!done);
                    scene.commit().unwrap();
                }
                assert_target(scene, from, LATER);
                assert!(scene.source.find_migrating(&Scene::from()).is_err());
                scene.store.remove_image(&scene.dest, id, &mut quiet).unwrap_err();
                changed(&scene.dest, id, |image| image.remove_snapshot("s", true).unwrap());
                scene.store.remove_image(&scene.dest, id, &mut quiet).unwrap();
            },
        );
    }
}

#[test]
fn a_kill_while_aborting_leaves_a_migration_that_can_be_aborted() {
    for (place, from) in KILLED {
        killed_everywhere(
            place,
            from,
            |scene| {
                scene.prepare().unwrap();
                write_later(scene);
            },
            Scene::abort,
            |scene, done, collected| {
                if collected {
                    scene.collect();
                }
                if unmoved(scene).is_none() {
                    assert!(!done);
                    scene.abort().unwrap();
                }
                assert_source(scene, from, LATER);
                assert!(scene.dest.find(Scene::to()).is_err());
            },
        );
    }
}
