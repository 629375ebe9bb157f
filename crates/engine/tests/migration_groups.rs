//! Migration of members of groups: the target takes the place of its source in the group, and gives it back.

mod support;

use std::cell::Cell;
use std::path::Path;

use marcot::{
    CreateOptions, ErrorKind, ImageId, ImageName, MemberId, Migration, Namespace, Pool,
    PoolOptions, Result, Store,
};
use support::{MIB, assert_sound, changed, killed_after_each_change, run};

const HERE: Namespace = Namespace::DEFAULT;
/// Where the target lies: in the pool of the source, or in another one.
const PLACES: [&str; 2] = ["rbd", "tank"];

fn quiet(_: u64, _: u64) {}

/// The group `g` of pool `rbd` has the images `first`, `a` and `last`, and `a` is migrated to `b` in another pool, or in the
/// same one.
struct Scene {
    store: Store,
    source: Pool,
    dest: Pool,
}

impl Scene {
    fn open(store: Store, dest: &str) -> Self {
        let (source, dest) = (store.pool("rbd").unwrap(), store.pool(dest).unwrap());
        Self { store, source, dest }
    }

    fn make(directory: &Path, dest: &str) -> Self {
        let store = Store::open(directory).unwrap();
        store.pool_create("tank", &PoolOptions::default()).unwrap();
        let scene = Self::open(store, dest);
        let pool = &scene.source;
        pool.create_group(&HERE, "g").unwrap();
        for name in ["first", "a", "last"] {
            let image = pool.create(name, &CreateOptions::sized(MIB)).unwrap();
            pool.add_to_group(&HERE, "g", pool, image).unwrap();
        }
        scene
    }

    fn prepare_to(&self, to: &ImageName) -> Result<Migration> {
        let from = ((&self.source, &"a".into()), CreateOptions::default().into());
        self.store.prepare_migration(from.0, (&self.dest, to), &from.1)
    }

    fn prepare(&self) -> Result<Migration> {
        self.prepare_to(&"b".into())
    }

    fn migration(&self) -> Result<Migration> {
        let id = self.source.find_migrating(&"a".into())?;
        self.store.migration(&self.source, id)
    }

    fn execute(&self) -> Result<()> {
        let id = self.dest.find("b")?;
        run(&self.dest, id, |image| image.migrate(&mut quiet))
    }

    fn commit(&self) -> Result<()> {
        let id = self.dest.find("b")?;
        let migration = self.store.migration(&self.dest, id)?;
        self.store.remove_migrated(&migration, &mut quiet)?;
        run(&self.dest, id, marcot::Image::end_migration)
    }

    fn abort(&self) -> Result<()> {
        self.store.abort_migration(&self.migration()?, &mut quiet)
    }

    /// The member between the other two, which knows that it is one.
    fn member(&self) -> (String, ImageId) {
        let members = self.source.group(&HERE, "g").unwrap().members;
        let [_, member, _] = members[..] else { panic!("{members:?}") };
        let pool = if member.pool == self.dest.id() { &self.dest } else { &self.source };
        let group = pool.group_of(member.image).unwrap().expect("it has a note");
        assert!(group.members.contains(&member));
        (pool.name().to_owned(), member.image)
    }

    fn assert_sound(&self) {
        for pool in [&self.source, &self.dest] {
            self.store.gc(pool, &mut quiet).unwrap();
            assert_sound(&self.store, pool);
        }
    }
}

#[test]
fn the_target_takes_the_place_of_its_source_in_the_group() {
    for dest in PLACES {
        let directory = tempfile::tempdir().unwrap();
        let scene = Scene::make(directory.path(), dest);
        let source = scene.source.find("a").unwrap();
        let Migration { target, .. } = scene.prepare().unwrap();
        assert_eq!(scene.member(), (dest.to_owned(), target));
        assert_eq!(scene.source.group_of(source).unwrap(), None);
        scene.assert_sound();
        scene.execute().unwrap();
        scene.commit().unwrap();
        assert_eq!(scene.member(), (dest.to_owned(), target));
        scene.assert_sound();
    }
}

#[test]
fn an_abort_gives_the_place_in_the_group_back() {
    for dest in PLACES {
        let directory = tempfile::tempdir().unwrap();
        let scene = Scene::make(directory.path(), dest);
        let source = scene.source.find("a").unwrap();
        scene.prepare().unwrap();
        scene.abort().unwrap();
        assert_eq!(scene.member(), ("rbd".to_owned(), source));
        scene.assert_sound();
    }
}

#[test]
fn who_was_taken_out_of_the_group_meanwhile_does_not_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::make(directory.path(), "tank");
    let source = scene.source.find("a").unwrap();
    let Migration { target, .. } = scene.prepare().unwrap();
    let member = MemberId { pool: scene.dest.id(), image: target };
    scene.source.remove_from_group(&HERE, "g", member).unwrap();
    scene.abort().unwrap();
    assert_eq!(scene.source.group(&HERE, "g").unwrap().members.len(), 2);
    assert_eq!(scene.source.group_of(source).unwrap(), None);
}

#[test]
fn a_group_stays_in_its_namespace_and_keeps_its_snapshots() {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::make(directory.path(), "tank");
    let source = scene.source.find("a").unwrap();
    scene.dest.namespace_create("ns").unwrap();
    let there = ImageName::new("b").in_namespace(Namespace::named("ns"));
    let refused = scene.prepare_to(&there).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(refused.sentence().to_string().contains("take it out of the group first"), "{refused}");
    // A part of a group's snapshot is the source's, or the target's.
    let take = |pool: &Pool, image, name| {
        let id = scene.source.begin_group_snapshot(&HERE, "g", name).unwrap().id;
        changed(pool, image, |image| image.snapshot_for_group(id).unwrap());
        id
    };
    let drop_it = |pool: &Pool, image, id| {
        scene.source.begin_group_snapshot_removal(id).unwrap();
        changed(pool, image, |image| image.remove_snapshot_for_group(id).unwrap());
        scene.source.forget_group_snapshot(id).unwrap();
    };
    let id = take(&scene.source, source, "s");
    let refused = scene.prepare().map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.sentence().to_string().contains("has snapshots of a group"), "{refused}");
    drop_it(&scene.source, source, id);
    assert_eq!(scene.source.info(source).unwrap().migration, None);
    let Migration { target, .. } = scene.prepare().unwrap();
    let id = take(&scene.dest, target, "t");
    assert_eq!(scene.abort().unwrap_err().kind(), ErrorKind::Busy);
    drop_it(&scene.dest, target, id);
    scene.abort().unwrap();
    assert_eq!(scene.member(), ("rbd".to_owned(), source));
}

/// See [`killed_after_each_change`].
fn killed_everywhere(
    before: impl Fn(&Scene),
    step: impl Fn(&Scene) -> Result<()>,
    after: impl Fn(&Scene, bool),
) {
    for dest in PLACES {
        killed_after_each_change(
            |directory| before(&Scene::make(directory, dest)),
            |(), store| step(&Scene::open(store, dest)).is_ok(),
            |(), store, _, changes| {
                let scene = Scene::open(store, dest);
                if changes % 2 == 0 {
                    scene.store.gc(&scene.dest, &mut quiet).unwrap();
                }
                after(&scene, changes % 4 < 2);
                scene.assert_sound();
            },
        );
    }
}

fn assert_is_source(scene: &Scene) {
    let source = scene.source.find("a").unwrap();
    assert_eq!(scene.source.info(source).unwrap().migration, None);
    assert_eq!(scene.member(), ("rbd".to_owned(), source));
}

fn assert_is_target(scene: &Scene) {
    let target = scene.dest.find("b").unwrap();
    assert_eq!(scene.member(), (scene.dest.name().to_owned(), target));
}

#[test]
fn a_kill_while_preparing_leaves_one_of_both_in_the_group() {
    killed_everywhere(
        |_| {},
        |scene| scene.prepare().map(drop),
        |scene, goes_on| {
            scene.member();
            if goes_on && scene.dest.find("b").is_ok() {
                scene.execute().unwrap();
                scene.commit().unwrap();
                return assert_is_target(scene);
            }
            if scene.migration().is_ok() {
                scene.abort().unwrap();
            }
            assert_is_source(scene);
        },
    );
}

#[test]
fn a_kill_while_aborting_leaves_one_of_both_in_the_group() {
    killed_everywhere(
        |scene| drop(scene.prepare().unwrap()),
        Scene::abort,
        |scene, _| {
            scene.member();
            if scene.migration().is_ok() {
                scene.abort().unwrap();
            }
            assert_is_source(scene);
        },
    );
}

/// Where a step was killed while the target was not in group `g`, a user adds it to `group`. Returns the target, unless
/// that was not so, or the target is being removed already.
fn add_target(scene: &Scene, group: &str) -> Option<ImageId> {
    let target = scene.dest.find("b").ok()?;
    if scene.member().1 == target {
        return None;
    }
    match scene.source.add_to_group(&HERE, group, &scene.dest, target) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        added => added.map(|()| Some(target)).unwrap(),
    }
}

fn members(scene: &Scene, group: &str) -> Vec<ImageId> {
    let members = scene.source.group(&HERE, group).unwrap().members;
    members.into_iter().map(|member| member.image).collect()
}

fn others(scene: &Scene) -> [ImageId; 2] {
    ["first", "last"].map(|name| scene.source.find(name).unwrap())
}

/// As [`killed_everywhere`], where `after` gets the group in turn that a user adds the target to ([`add_target`]). It returns
/// true where that could be done.
fn added_to_groups_in_turn(
    before: impl Fn(&Scene),
    step: impl Fn(&Scene) -> Result<()>,
    after: impl Fn(&Scene, &str) -> bool,
) {
    let times = Cell::new(0);
    killed_everywhere(
        |scene| {
            scene.source.create_group(&HERE, "other").unwrap();
            before(scene);
        },
        step,
        |scene, _| {
            if after(scene, ["g", "other"][times.get() % 2]) {
                times.set(times.get() + 1);
            }
        },
    );
    assert!(times.get() >= 4, "only {}", times.get());
}

#[test]
fn a_target_that_a_user_adds_to_a_group_after_a_kill_is_in_that_group_only() {
    added_to_groups_in_turn(
        |_| {},
        |scene| scene.prepare().map(drop),
        |scene, group| {
            let Some(target) = add_target(scene, group) else { return false };
            scene.execute().unwrap();
            scene.commit().unwrap();
            let [first, last] = others(scene);
            let (in_g, in_other) = match group {
                "g" => (vec![first, last, target], vec![]),
                _ => (vec![first, last], vec![target]),
            };
            assert_eq!((members(scene, "g"), members(scene, "other")), (in_g, in_other));
            assert_eq!(scene.dest.group_of(target).unwrap().unwrap().name, group);
            true
        },
    );
}

#[test]
fn a_target_that_a_user_adds_to_a_group_after_a_killed_abort_leaves_it() {
    added_to_groups_in_turn(
        |scene| drop(scene.prepare().unwrap()),
        Scene::abort,
        |scene, group| {
            let added = add_target(scene, group).is_some();
            if added {
                scene.abort().unwrap();
                assert!(members(scene, "other").is_empty());
                assert_is_source(scene);
            }
            added
        },
    );
}

#[test]
fn a_kill_while_committing_leaves_the_target_in_the_group() {
    killed_everywhere(
        |scene| {
            scene.prepare().unwrap();
            scene.execute().unwrap();
        },
        Scene::commit,
        |scene, _| {
            assert_is_target(scene);
            let target = scene.dest.find("b").unwrap();
            if scene.dest.info(target).unwrap().migration.is_some() {
                scene.commit().unwrap();
            }
            assert_is_target(scene);
        },
    );
}
