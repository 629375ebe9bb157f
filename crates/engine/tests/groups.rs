//! Groups of images: what crashes and damage leave, and what `check` and commands make of that.

mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use marcot::{
    CreateOptions, ErrorKind, GroupSnapshotId, ImageId, MemberId, Namespace, Pool, PoolOptions,
    Store,
};

use support::{EIO, assert_sound, changed, checked, faulty_world, flip_byte};

const MIB: u64 = 1 << 20;
const HERE: Namespace = Namespace::DEFAULT;

struct Place {
    _directory: tempfile::TempDir,
    store: Store,
    pool: Pool,
    images: Vec<ImageId>,
}

/// A pool with the group `g`, of the images `a` and `b`.
fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    pool.create_group(&HERE, "g").unwrap();
    let add = |name: &&str| {
        let image = pool.create(*name, &CreateOptions::sized(MIB)).unwrap();
        pool.add_to_group(&HERE, "g", &pool, image).unwrap();
        image
    };
    let images = ["a", "b"].iter().map(add).collect();
    Place { _directory: directory, store, pool, images }
}

impl Place {
    /// The file of the only group.
    fn file(&self) -> PathBuf {
        let mut files = fs::read_dir(self.pool.directory().join("groups")).unwrap();
        files.next().unwrap().unwrap().path()
    }

    fn remove(&self, image: ImageId) -> Result<(), ErrorKind> {
        self.store.remove_image(&self.pool, image, &mut |_, _| {}).map_err(|e| e.kind())
    }

    fn messages(&self, repair: bool) -> Vec<String> {
        let findings = checked(&self.store, &self.pool, repair).findings;
        findings
            .into_iter()
            .map(|f| format!("{}: {} ({})", f.image, f.message, f.repaired))
            .collect()
    }

    fn take_part(&self, image: ImageId, id: GroupSnapshotId) {
        changed(&self.pool, image, |image| image.snapshot_for_group(id).unwrap());
    }
}

#[test]
fn a_snapshot_that_was_cut_off_between_two_images_is_told_and_can_only_be_removed() {
    let place = place();
    let begun = place.pool.begin_group_snapshot(&HERE, "g", "s").unwrap();
    place.take_part(place.images[0], begun.id);
    // The process was killed here.
    let found = place.messages(true);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("snapshot 's' of group 'g' is incomplete"), "{found:?}");
    let left = place.pool.group(&HERE, "g").unwrap().snapshots;
    assert_eq!((left.len(), left[0].complete, left[0].parts.len()), (1, false, 2));
    // Also the removal is cut off between two images, and then begun again.
    for images in [&place.images[..1], &place.images[..]] {
        place.pool.begin_group_snapshot_removal(begun.id).unwrap();
        for image in images {
            changed(&place.pool, *image, |image| {
                image.remove_snapshot_for_group(begun.id).unwrap()
            });
        }
        assert_eq!(place.messages(false).len(), 1);
    }
    place.pool.forget_group_snapshot(begun.id).unwrap();
    assert_sound(&place.store, &place.pool);
}

#[test]
fn a_snapshot_whose_removal_has_begun_is_never_complete_again() {
    let place = place();
    let begun = place.pool.begin_group_snapshot(&HERE, "g", "s").unwrap();
    place.pool.begin_group_snapshot_removal(begun.id).unwrap();
    let late = place.pool.complete_group_snapshot(begun.id, &begun.parts).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::NotFound, "{late}");
    assert!(!place.pool.group(&HERE, "g").unwrap().snapshots[0].complete);
}

#[test]
fn a_damaged_group_hides_no_other_and_its_images_stay_until_it_is_given_up() {
    let place = place();
    let begun = place.pool.begin_group_snapshot(&HERE, "g", "s").unwrap();
    place.take_part(place.images[0], begun.id);
    let file = place.file();
    place.pool.create_group(&HERE, "other").unwrap();
    flip_byte(&file, 40);
    let refused =
        |done: marcot::Result<()>| assert_eq!(done.unwrap_err().kind(), ErrorKind::Corrupt);
    // It may be the one that is asked for.
    refused(place.pool.group(&HERE, "g").map(drop));
    refused(place.pool.create_group(&HERE, "h"));
    assert_eq!(place.pool.groups(&HERE).unwrap(), ["other"]);
    assert_eq!(place.pool.group(&HERE, "other").unwrap().name, "other");
    assert_eq!(place.remove(place.images[1]), Err(ErrorKind::Corrupt));
    assert!(place.messages(false).iter().any(|found| found.contains("a group cannot be used")));
    let repaired =
        |found: &String| found.contains("a group cannot be used") && found.ends_with("(true)");
    assert!(place.messages(true).iter().any(repaired));
    place.remove(place.images[1]).unwrap();
    place.pool.create_group(&HERE, "h").unwrap();
    assert_eq!(place.pool.groups(&HERE).unwrap(), ["h", "other"]);
    // What it leaves is told, and can be removed.
    let found = place.messages(true);
    assert!(found.len() == 1 && found[0].contains("a part of a group's snapshot"), "{found:?}");
    let part = place.pool.info(place.images[0]).unwrap().snapshots.remove(0);
    changed(&place.pool, place.images[0], |image| {
        image.remove_snapshot(&part.name, false).unwrap()
    });
    assert_sound(&place.store, &place.pool);
    place.remove(place.images[0]).unwrap();
}

#[test]
fn without_its_note_the_group_of_an_image_is_found_all_the_same() {
    let place = place();
    let alone = place.pool.create("alone", &CreateOptions::sized(MIB)).unwrap();
    for image in [place.images[0], alone] {
        fs::write(place.pool.image_directory(image).join("group"), b"torn").unwrap();
    }
    assert_eq!(place.pool.group_of(place.images[0]).unwrap().unwrap().name, "g");
    assert_eq!(place.remove(place.images[0]), Err(ErrorKind::InGroup));
    place.remove(alone).unwrap();
    let member = MemberId { pool: place.pool.id(), image: place.images[0] };
    place.pool.remove_from_group(&HERE, "g", member).unwrap();
    place.remove(place.images[0]).unwrap();
    assert_sound(&place.store, &place.pool);
}

#[test]
fn an_image_that_was_lost_is_told_and_taken_out_of_its_group() {
    let place = place();
    fs::remove_file(place.pool.image_directory(place.images[0]).join("head")).unwrap();
    let lost = format!("group 'g' lists image {}", place.images[0]);
    let told = |found: Vec<String>, end: &str| {
        assert!(found.iter().any(|f| f.contains(&lost) && f.ends_with(end)), "{found:?}");
    };
    told(place.messages(false), "(false)");
    told(place.messages(true), "(true)");
    assert_eq!(place.pool.group(&HERE, "g").unwrap().members.len(), 1);
}

#[test]
fn a_group_in_a_pool_that_cannot_be_opened_now_keeps_its_images() {
    let directory = tempfile::tempdir().unwrap();
    let (world, faults) = faulty_world();
    let store = Store::open_in(world, directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let image = pool.create("a", &CreateOptions::sized(MIB)).unwrap();
    let tank = store.pool_create("tank", &PoolOptions::default()).unwrap();
    tank.create_group(&HERE, "g").unwrap();
    tank.add_to_group(&HERE, "g", &pool, image).unwrap();
    drop(tank);
    faults.pool_errno.store(EIO, Ordering::Relaxed);
    let refused = store.remove_image(&pool, image, &mut |_, _| {}).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Io, "{refused}");
    faults.pool_errno.store(0, Ordering::Relaxed);
    let refused = store.remove_image(&pool, image, &mut |_, _| {}).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InGroup, "{refused}");
}

#[test]
fn a_pool_or_namespace_stays_while_a_group_of_it_has_images_elsewhere() {
    let place = place();
    let tank = place.store.pool_create("tank", &PoolOptions::default()).unwrap();
    let space = Namespace::named("space");
    tank.namespace_create("space").unwrap();
    place.pool.namespace_create("space").unwrap();
    tank.create_group(&space, "far").unwrap();
    let options = CreateOptions::sized(MIB);
    let name = marcot::ImageName::new("c").in_namespace(&space);
    let image = place.pool.create(name, &options).unwrap();
    tank.add_to_group(&space, "far", &place.pool, image).unwrap();
    let refused = |done: marcot::Result<()>| {
        let error = done.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotEmpty);
        assert!(
            error.to_string().contains("group tank/space/far has images in other pools"),
            "{error}"
        );
    };
    refused(tank.namespace_remove("space"));
    refused(place.store.pool_remove("tank"));
    let member = MemberId { pool: place.pool.id(), image };
    tank.remove_from_group(&space, "far", member).unwrap();
    tank.namespace_remove("space").unwrap();
    place.store.pool_remove("tank").unwrap();
    assert_sound(&place.store, &place.pool);
}

#[test]
fn a_group_that_others_cannot_see_takes_none_of_their_images() {
    let place = place();
    let directory = tempfile::tempdir().unwrap();
    let other = Store::open(directory.path()).unwrap();
    let theirs = other.pool("rbd").unwrap();
    let image = theirs.create("c", &CreateOptions::sized(MIB)).unwrap();
    let attached = place.store.pool_attach("theirs", theirs.directory()).unwrap();
    let refused = place.pool.add_to_group(&HERE, "g", &attached, image).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    attached.create_group(&HERE, "h").unwrap();
    let refused = attached.add_to_group(&HERE, "h", &place.pool, place.images[0]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    attached.add_to_group(&HERE, "h", &attached, image).unwrap();
    // Its own store knows that too.
    assert_eq!(theirs.group_of(image).unwrap().unwrap().name, "h");
}

#[test]
fn a_part_of_a_snapshot_shares_its_name_with_no_other() {
    let place = place();
    let begun = place.pool.begin_group_snapshot(&HERE, "g", "s").unwrap();
    place.take_part(place.images[0], begun.id);
    let part = place.pool.info(place.images[0]).unwrap().snapshots.remove(0).name;
    changed(&place.pool, place.images[0], |image| {
        assert_eq!(image.snapshot(&part).unwrap_err().kind(), ErrorKind::Exists);
        image.snapshot("mine").unwrap();
        assert_eq!(image.rename_snapshot("mine", &part).unwrap_err().kind(), ErrorKind::Exists);
    });
}
