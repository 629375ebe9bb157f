//! The trash is emptied by schedule. What was due when is tested in the client; here the clock is real, and the
//! times of earlier runs are written into the records.
#![allow(missing_docs)]

#[path = "common/mod.rs"]
mod common;

use common::{Ran, World, prints};

/// Long ago, in seconds since 1970.
const LONG_AGO: &str = "1000";

fn run(world: &World) -> Ran {
    world.marcot("trash purge schedule run")
}

fn trash(world: &World, place: &str) -> Vec<String> {
    let listed = world.rbd(&format!("trash ls {place}")).out;
    let mut names: Vec<_> =
        listed.lines().filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect();
    names.sort();
    names
}

/// An image in the trash of each of these places.
fn fill(world: &World, specs: &[&str]) {
    for spec in specs {
        world.silently(&[&format!("create {spec} --size 4M"), &format!("trash mv {spec}")]);
    }
}

/// As if the last run had been long ago.
fn set_back(world: &World, pool: &str) {
    let store = marcot::Store::open(&world.path("store")).unwrap();
    store.pool(pool).unwrap().configure("trash_purge_run", Some(LONG_AGO)).unwrap();
}

/// As if a schedule was old.
fn set_old(world: &World, pool: &str, namespace: &str, items: &str) {
    let store = marcot::Store::open(&world.path("store")).unwrap();
    let value = format!("{LONG_AGO} {items}");
    let key = "trash_purge_schedule".to_owned();
    match (pool, namespace) {
        ("", _) => store.configure("mgr", "mgr/rbd_support/trash_purge_schedule", Some(&value)),
        (pool, "") => store.pool(pool).unwrap().configure(&key, Some(&value)),
        (pool, namespace) => {
            store.pool(pool).unwrap().configure(&format!("{key}/{namespace}"), Some(&value))
        }
    }
    .unwrap();
}

#[test]
fn a_run_empties_what_is_due_once_and_leaves_what_is_protected() {
    let world = World::new();
    world.silently(&["namespace create rbd/n"]);
    fill(&world, &["a", "rbd/n/b"]);
    world.silently(&["create kept --size 4M", "trash mv kept --expires-at tomorrow"]);
    world.silently(&["create snapped --size 4M", "snap create snapped@s --no-progress"]);
    world.silently(&["trash mv snapped"]);
    assert_eq!(run(&world), prints(""), "nothing is scheduled");
    world.silently(&["trash purge schedule add 1d"]);
    // A pool that is new to the schedule is not emptied at once, and neither is it by a schedule that is new.
    assert_eq!(run(&world), prints(""));
    set_back(&world, "rbd");
    assert_eq!(run(&world), prints(""));
    assert_eq!(trash(&world, "rbd"), ["a", "kept", "snapped"]);
    set_old(&world, "", "", "1d");
    let due = run(&world);
    assert_eq!(due.status, 0, "{due:?}");
    let removed = "rbd: 1 image removed from the trash\nrbd/n: 1 image removed from the trash\n";
    assert_eq!(due.out, removed);
    assert!(due.err.starts_with("marcot: an image stays in the trash of rbd: "), "{due:?}");
    assert_eq!(trash(&world, "rbd"), ["kept", "snapped"]);
    assert!(trash(&world, "rbd/n").is_empty());
    fill(&world, &["c"]);
    assert_eq!(run(&world), prints(""), "not again before the next time");
    assert_eq!(trash(&world, "rbd"), ["c", "kept", "snapped"]);
}

#[test]
fn the_most_special_schedule_holds() {
    let world = World::new();
    world.silently(&["namespace create rbd/n", "namespace create rbd/m"]);
    assert_eq!(world.marcot("pool create tank").status, 0);
    fill(&world, &["a", "rbd/n/a", "rbd/m/a", "tank/a"]);
    // The start of the namespace's schedule lies in the next minutes or just now, the others' long ago.
    world.silently(&["trash purge schedule add -p rbd --namespace n 45d"]);
    set_old(&world, "", "", "1d");
    set_old(&world, "rbd", "", "1m");
    for pool in ["rbd", "tank"] {
        set_back(&world, pool);
    }
    let due = run(&world);
    let said: Vec<_> = due.out.lines().collect();
    let images = "1 image removed from the trash";
    let emptied = [format!("rbd: {images}"), format!("rbd/m: {images}"), format!("tank: {images}")];
    assert_eq!(said, emptied, "{due:?}");
    assert_eq!(trash(&world, "rbd/n"), ["a"]);
    let status = world.rbd("trash purge schedule status").out;
    let places: Vec<_> = status.lines().skip(1).map(|line| line[..15].trim_end()).collect();
    assert_eq!(places, ["rbd", "rbd   m", "rbd   n", "tank"], "{status}");
    assert!(status.lines().last().unwrap().ends_with(" 00:00:00"), "{status}");
    // A namespace that is made again has no schedule of the one before.
    world.silently(&["trash purge schedule rm", "trash purge schedule rm -p rbd"]);
    let id = world.rbd("trash ls rbd/n").out;
    let id = id.split(' ').next().unwrap();
    world.silently(&[&format!("trash rm rbd/n/{id} --no-progress")]);
    world.silently(&["namespace rm rbd/n", "namespace create rbd/n"]);
    assert_eq!(world.rbd("trash purge schedule status").out.lines().count(), 1);
}

#[test]
fn one_bad_schedule_does_not_stop_the_others() {
    let world = World::new();
    assert_eq!(world.marcot("pool create tank").status, 0);
    fill(&world, &["a", "tank/a"]);
    set_old(&world, "rbd", "", "nonsense");
    set_old(&world, "tank", "", "1d");
    set_back(&world, "tank");
    let due = run(&world);
    assert_eq!(due.out, "tank: 1 image removed from the trash\n");
    assert!(due.status != 0 && due.err.contains("purging the trash of rbd failed"), "{due:?}");
}
