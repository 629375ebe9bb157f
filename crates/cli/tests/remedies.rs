//! A refusal says what can be done, in a line after those of `rbd`.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;

use common::World;

const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const ENOTEMPTY: i32 = 39;
const EMLINK: i32 = 31;
const EDQUOT: i32 = 122;
const EROFS: i32 = 30;

/// The last line of a refused command.
fn last_line(world: &World, line: &str, status: i32) -> String {
    let ran = world.marcot(line);
    assert_eq!(ran.status, status, "{line}: {}", ran.err);
    assert!(ran.err.lines().count() > 1, "{line}: no remedy: {}", ran.err);
    ran.err.lines().last().unwrap_or_default().to_owned()
}

fn refused(world: &World, line: &str, status: i32, remedy: &str) {
    assert_eq!(last_line(world, line, status), format!("marcot: {remedy}"), "{line}");
}

#[test]
fn snapshots_and_their_clones_are_named() {
    let world = World::new();
    world.silently(&["create --size 8M a", "snap create --no-progress a@s", "snap protect a@s"]);
    let rm = "snap rm --no-progress a@s";
    refused(&world, rm, EBUSY, "'marcot snap unprotect rbd/a@s' makes it removable");
    let protected = "these are protected until 'marcot snap unprotect SNAPSHOT': rbd/a@s";
    refused(&world, "rm --no-progress a", ENOTEMPTY, protected);
    for number in 1..=7 {
        world.silently(&[&format!("clone a@s c{number}")]);
    }
    let unprotect = "flatten them ('marcot flatten') or remove them ('marcot rm')";
    refused(&world, "snap unprotect a@s", EBUSY, unprotect);
    let unprotect = "'marcot snap unprotect rbd/a@s' makes it removable, once its clones are flattened or removed: ";
    names_five(&last_line(&world, rm, EBUSY), unprotect);
    let remove = "first flatten ('marcot flatten') or remove ('marcot rm') its clones: ";
    names_five(&last_line(&world, "rm --no-progress a", ENOTEMPTY), remove);
}

/// Of the seven clones five are named, whichever, so that the others need not be looked at.
fn names_five(line: &str, before: &str) {
    let (_, named) = line.split_once(before).unwrap_or_else(|| panic!("{line}"));
    let named = named.trim_end().strip_suffix(" and others").unwrap_or_else(|| panic!("{line}"));
    let named: BTreeSet<&str> = named.split(", ").collect();
    assert_eq!(named.len(), 5, "{line}");
    assert!(named.iter().all(|name| name.starts_with("rbd/c")), "{line}");
}

#[test]
fn the_remedies_help() {
    let world = World::new();
    world.silently(&["create --size 8M a", "snap create --no-progress a@s", "snap protect a@s"]);
    world.silently(&["clone a@s c"]);
    for line in ["rm --no-progress a", "snap rm --no-progress a@s"] {
        assert!(last_line(&world, line, world.marcot(line).status).contains("rbd/c"), "{line}");
    }
    world.silently(&["flatten --no-progress c", "snap unprotect a@s"]);
    world.silently(&["snap rm --no-progress a@s", "rm --no-progress a"]);
}

#[test]
fn groups_limits_and_locks_are_named() {
    let world = World::new();
    world.silently(&["create --size 8M a", "group create g", "group create h"]);
    world.silently(&["group image add g a"]);
    let out = "'marcot group image rm rbd/g rbd/a' takes it out of its group";
    refused(&world, "rm --no-progress a", EMLINK, out);
    refused(&world, "group image add h a", EEXIST, out);
    world.silently(&["namespace create rbd/n"]);
    let leaves = "take it out of the group first";
    let refused_there = world.marcot("migration prepare a rbd/n/a");
    assert_eq!(refused_there.status, 22, "{}", refused_there.err);
    assert!(refused_there.err.contains(leaves), "{}", refused_there.err);
    world.silently(&["migration prepare a b", "migration abort b --no-progress"]);
    world.silently(&["group image rm rbd/g rbd/a", "snap limit set --limit 1 a"]);
    world.silently(&["snap create --no-progress a@1"]);
    let lift = "1 snapshots are allowed: remove one, or lift the limit with 'marcot snap limit clear rbd/a'";
    refused(&world, "snap create --no-progress a@2", EDQUOT, lift);
    world.silently(&["lock add a mine"]);
    let breaks = last_line(&world, "lock add a other", EBUSY);
    assert!(breaks.starts_with("marcot: 'marcot lock rm rbd/a mine client."), "{breaks}");
    assert!(breaks.ends_with("' breaks the lock"), "{breaks}");
    assert_eq!(last_line(&world, "bench a --io-type write --io-total 1M", EROFS), breaks);
    let words = breaks.split('\'').nth(1).unwrap().strip_prefix("marcot ").unwrap();
    world.silently(&[words]);
    world.silently(&["lock add a other"]);
}

#[test]
fn images_that_are_left_are_named() {
    let world = World::new();
    world.silently(&["namespace create rbd/n", "create --size 1M rbd/n/x"]);
    refused(&world, "namespace rm rbd/n", EBUSY, "remove them first ('marcot rm'): rbd/n/x");
    refused(&world, "pool remove rbd", EBUSY, "remove them first ('marcot rm'): rbd/n/x");
    world.silently(&["trash mv rbd/n/x"]);
    let empties = "they are in its trash: 'marcot trash purge rbd/n' empties it";
    refused(&world, "namespace rm rbd/n", EBUSY, empties);
}
