//! A refusal says what can be done, in a line after those of `rbd`.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;

use common::World;

const EPERM: i32 = 1;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
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

#[test]
fn a_migration_in_the_wrong_state_names_the_command_that_comes_first() {
    let world = World::new();
    world.silently(&["create --size 8M a"]);
    let begins = "'marcot migration prepare rbd/a DESTINATION' begins a migration";
    for word in ["execute", "commit", "abort"] {
        refused(&world, &format!("migration {word} a --no-progress"), EINVAL, begins);
    }
    world.silently(&["migration prepare a b"]);
    let early = world.marcot("migration commit b --no-progress");
    assert_eq!(early.status, EINVAL);
    assert!(early.err.contains("'migration execute' does that"), "{}", early.err);
    assert!(!early.err.contains("begins"), "{}", early.err);
    world.silently(&["snap create b@s --no-progress", "snap protect b@s", "clone b@s c"]);
    let clones = "first flatten ('marcot flatten') or remove ('marcot rm') its clones: rbd/c";
    refused(&world, "migration abort b --no-progress", EBUSY, clones);
    world.silently(&["flatten --no-progress c", "migration abort b --no-progress"]);
}

#[test]
fn what_keeps_an_image_in_the_trash_is_named() {
    let world = World::new();
    world.silently(&["create --size 8M a", "snap create --no-progress a@s", "snap protect a@s"]);
    world.silently(&["clone a@s c"]);
    let id = trashed(&world, "a --expires-at 2050-01-01");
    let ends = last_line(&world, &format!("trash rm --no-progress {id}"), EPERM);
    assert!(ends.starts_with("marcot: its deferment ends on ") && ends.contains(" 2050"), "{ends}");
    let rm = format!("trash rm --no-progress --force {id}");
    let clones = "first flatten ('marcot flatten') or remove ('marcot rm') its clones: rbd/c";
    refused(&world, &rm, ENOTEMPTY, clones);
    world.silently(&["flatten --no-progress c"]);
    let restore = format!("trash restore rbd/{id}");
    let snapshots =
        format!("'marcot {restore}' gives it a name again, by which its snapshots can go: s");
    refused(&world, &rm, ENOTEMPTY, &snapshots);
    world.silently(&[&restore, "snap unprotect a@s", "snap rm --no-progress a@s"]);
    world.silently(&[&format!("trash rm --no-progress {}", trashed(&world, "a"))]);
}

/// Moves an image to the trash and returns its number.
fn trashed(world: &World, words: &str) -> String {
    world.silently(&[&format!("trash mv {words}")]);
    let listed = world.marcot("trash ls");
    listed.out.split_whitespace().next().unwrap_or_default().to_owned()
}

#[test]
fn differences_say_which_snapshots_an_image_has() {
    let world = World::new();
    world.silently(&["create --size 8M a", "create --size 8M b"]);
    world.silently(&["snap create --no-progress a@1", "snap create --no-progress a@2"]);
    world.silently(&["export-diff --no-progress --from-snap 1 a@2 d12"]);
    let import = "import-diff --no-progress d12 b";
    let first = "first import the difference that ends with '1'";
    refused(&world, import, EINVAL, &format!("rbd/b has no snapshots: {first}"));
    world.silently(&["snap create --no-progress b@2"]);
    refused(&world, import, EINVAL, &format!("rbd/b has snapshots 2: {first}"));
    world.silently(&["snap create --no-progress b@1"]);
    let rename = "it may have been imported already; else 'marcot snap rename rbd/b@2 rbd/b@OTHER' keeps that \
                  snapshot under another name";
    refused(&world, import, EEXIST, rename);
    world.silently(&["snap rename rbd/b@2 rbd/b@OTHER", import]);
}

#[test]
fn features_that_stay_are_told_with_those_that_can_go() {
    let world = World::new();
    world.silently(&["create --size 8M a"]);
    let copy = "only exclusive-lock, object-map, fast-diff, deep-flatten can be disabled; 'marcot deep cp \
                --image-feature FEATURE rbd/a COPY' makes a copy with the features that are named";
    refused(&world, "feature disable a layering", EINVAL, copy);
    world.silently(&["deep cp --no-progress --image-feature exclusive-lock rbd/a COPY"]);
    let together =
        "'marcot feature disable rbd/a object-map fast-diff exclusive-lock' disables them together";
    refused(&world, "feature disable a exclusive-lock", EINVAL, together);
    world.silently(&["feature disable rbd/a object-map fast-diff exclusive-lock"]);
    let has = "rbd/a has these features: layering, deep-flatten";
    refused(&world, "feature disable a object-map", EINVAL, has);
}
