//! `tree`: families of images over several pools.
#![allow(missing_docs)]

mod common;

use common::World;

fn work(world: &World, line: &str) {
    let ran = world.rbd(line);
    assert_eq!(ran.status, 0, "{line}: {}", ran.err);
}

/// A template, clones in two pools, and a clone of a clone.
fn family() -> World {
    let world = World::new();
    for line in [
        "pool create vms",
        "create --size 4M template",
        "bench --io-type write --io-size 4K --io-threads 1 --io-total 1M template",
        "snap create template@gold",
        "snap protect template@gold",
        "clone template@gold vms/web",
        "clone template@gold second",
        "snap create vms/web@x",
        "snap protect vms/web@x",
        "clone vms/web@x third",
        "create --size 1M alone",
    ] {
        work(&world, line);
    }
    world
}

#[test]
fn a_family_is_drawn_over_all_pools() {
    let world = family();
    let out = world.rbd("tree").out;
    let names: Vec<&str> =
        out.lines().skip(1).map(|line| line.split(" MiB").next().unwrap().trim_end()).collect();
    let names: Vec<&str> = names
        .iter()
        .map(|name| name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end())
        .collect();
    assert_eq!(
        names,
        [
            "rbd/alone",
            "rbd/template",
            "└─ @gold",
            "   ├─ rbd/second",
            "   └─ vms/web",
            "      └─ @x",
            "         └─ rbd/third",
        ]
    );
    let gold = out.lines().find(|line| line.contains("@gold")).unwrap();
    assert!(gold.contains("1 MiB") && gold.trim_end().ends_with("protected"), "{gold}");
    assert!(!out.contains('?'), "everything was counted: {out}");
}

#[test]
fn a_pool_shows_its_own_images_and_what_was_cloned_from_them() {
    let world = family();
    let out = world.rbd("tree vms").out;
    assert!(!out.contains("alone") && !out.contains("second"), "{out}");
    let web = out.lines().find(|line| line.starts_with("vms/web")).unwrap();
    assert!(web.trim_end().ends_with("parent rbd/template@gold"), "{web}");
    assert!(out.lines().last().unwrap().contains("└─ rbd/third"), "{out}");
    let missing = world.rbd("tree nosuch");
    assert_eq!(missing.status, 2, "{}", missing.err);
}

#[test]
fn programs_read_the_rows_with_their_depth_and_parents() {
    let world = family();
    let out = world.rbd("tree --format json").out;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
    let depths: Vec<u64> = rows.iter().map(|row| row["depth"].as_u64().unwrap()).collect();
    assert_eq!(depths, [0, 0, 1, 2, 2, 3, 4]);
    let third = rows.last().unwrap();
    assert_eq!((&third["image"], &third["parent"]), (&"third".into(), &"vms/web@x".into()));
    assert_eq!(rows[2]["snapshot"], "gold");
    assert_eq!(rows[2]["used"], 1 << 20);
    let quick = world.rbd("tree --quick --format json").out;
    assert!(!quick.contains("used"), "{quick}");
}

#[test]
fn a_long_chain_is_drawn_whole() {
    let world = World::new();
    for number in 0..120 {
        match number {
            0 => work(&world, "create --size 1M i0"),
            _ => work(&world, &format!("clone i{}@s i{number}", number - 1)),
        }
        work(&world, &format!("snap create i{number}@s"));
        work(&world, &format!("snap protect i{number}@s"));
    }
    let out = world.rbd("tree --quick").out;
    assert_eq!(out.lines().count(), 1 + 2 * 120);
    assert!(out.lines().any(|line| line.contains("└─ rbd/i119")), "{out}");
}
