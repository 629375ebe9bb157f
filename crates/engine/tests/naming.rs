//! Finding the name of an image by its number costs the same whatever the number of images is.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use marcot::{
    CloneOptions, CreateOptions, ErrorKind, Image, ImageId, Limits, Namespace, Pool, Store,
};

use support::{EIO, ENOENT, Faults, assert_sound, checked, damage_head, faulty_world, run};

const MIB: u64 = 1 << 20;

struct Place {
    directory: PathBuf,
    store: Store,
    pool: Pool,
    faults: Arc<Faults>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn place(name: &str) -> Place {
    let name = format!("marcot-naming-{name}-{}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    let (world, faults) = faulty_world();
    let store = Store::open_with(world, &directory, Limits::default()).unwrap();
    let pool = store.pool("rbd").unwrap();
    Place { directory, store, pool, faults }
}

impl Place {
    fn create(&self, name: &str) -> ImageId {
        let options = CreateOptions::sized(MIB);
        self.pool.create(name, &options).unwrap()
    }

    /// Returns what `work` returns, and how many files it opened in a pool that was opened just now.
    fn opens<T>(&self, work: impl FnOnce(&Store, &Pool) -> T) -> (T, i64) {
        let pool = self.store.pool("rbd").unwrap();
        let before = self.faults.opens.load(Ordering::Relaxed);
        let done = work(&self.store, &pool);
        (done, self.faults.opens.load(Ordering::Relaxed) - before)
    }

    fn name_and_opens(&self, image: ImageId) -> (String, i64) {
        self.opens(|_, pool| pool.info(image).unwrap().name)
    }

    fn note(&self, image: ImageId) -> PathBuf {
        self.pool.image_directory(image).join("name")
    }
}

#[test]
fn a_renamed_image_is_found_without_reading_other_names() {
    let place = place("renamed");
    let image = place.create("first");
    for n in 0..50 {
        place.create(&format!("other-{n}"));
    }
    place.pool.rename("first", "second").unwrap();
    let (name, opens) = place.name_and_opens(image);
    assert_eq!(name, "second");
    assert!(opens < 10, "{opens} files were opened");
    place.pool.rename("second", "third").unwrap();
    assert_eq!(place.name_and_opens(image).0, "third");
    // Now the name in the head is right again.
    place.pool.rename("third", "first").unwrap();
    assert_eq!(place.name_and_opens(image).0, "first");
    assert_eq!(
        place.pool.name_of_image(&Namespace::DEFAULT, image).unwrap().as_deref(),
        Some("first")
    );
}

/// `spoil` changes the note as a crash or an earlier version may have done.
fn a_spoilt_note(name: &str, spoil: impl Fn(&Place, &Path)) {
    let place = place(name);
    let image = place.create("first");
    for n in 0..50 {
        place.create(&format!("other-{n}"));
    }
    place.pool.rename("first", "second").unwrap();
    spoil(&place, &place.note(image));
    let (name, opens) = place.name_and_opens(image);
    assert_eq!(name, "second");
    assert!(opens > 50, "{opens} files were opened");
    let (name, opens) = place.name_and_opens(image);
    assert_eq!(name, "second", "after the note was mended");
    assert!(opens < 10, "{opens} files were opened after the note was mended");
}

#[test]
fn a_missing_note_is_written_after_all_names_were_read() {
    a_spoilt_note("missing", |_, note| std::fs::remove_file(note).unwrap());
}

#[test]
fn a_torn_note_is_not_believed() {
    a_spoilt_note("torn", |_, note| {
        let bytes = std::fs::read(note).unwrap();
        std::fs::write(note, &bytes[..bytes.len() / 2]).unwrap();
    });
}

#[test]
fn a_note_that_names_another_image_is_not_believed() {
    a_spoilt_note("other", |place, note| {
        let other = place.create("elsewhere");
        place.pool.rename("elsewhere", "moved").unwrap();
        std::fs::copy(place.note(other), note).unwrap();
    });
}

#[test]
fn a_note_whose_name_was_given_to_another_image_is_not_believed() {
    let place = place("given");
    let image = place.create("first");
    place.pool.rename("first", "second").unwrap();
    // An earlier version renames like this.
    let names = place.directory.join("pools/rbd/names/@");
    std::fs::rename(names.join("second"), names.join("third")).unwrap();
    let other = place.create("second");
    assert_eq!(place.name_and_opens(image).0, "third");
    assert_eq!(place.name_and_opens(other).0, "second");
}

#[test]
fn a_renamed_image_is_removed_with_its_name_and_note() {
    let place = place("removed");
    let image = place.create("first");
    place.pool.rename("first", "second").unwrap();
    place.store.remove_named(&place.pool, "second", &mut |_, _| {}).unwrap();
    assert!(place.pool.images(&Namespace::DEFAULT).unwrap().is_empty());
    assert!(!place.pool.image_directory(image).exists());
}

/// An image `template` with a protected snapshot `s` and `clones` clones.
fn template(place: &Place, clones: usize, format: u32) -> ImageId {
    let image = place.create("template");
    run(&place.pool, image, |image| image.snapshot("s")).unwrap();
    run(&place.pool, image, |image| image.protect("s")).unwrap();
    add_clones(place, image, "clone", clones, format);
    image
}

fn unprotect(image: &mut Image) -> marcot::Result<()> {
    image.unprotect("s")
}

fn add_clones(place: &Place, image: ImageId, name: &str, clones: usize, format: u32) {
    let options = CloneOptions::new().format(format);
    for n in 0..clones {
        let name = format!("{name}-{n}");
        place.pool.snapshot(image, "s").clone_to(&place.pool, &name, &options).unwrap();
    }
}

#[test]
fn operations_on_a_template_cost_the_same_with_many_clones_as_with_few() {
    let place = place("clones");
    let image = template(&place, 4, 1);
    let measure = || {
        [
            place.opens(|_, pool| drop(pool.info(image).unwrap())).1,
            place.opens(|store, pool| store.has_child_of_format_2(pool, image, None).unwrap()).1,
            place.opens(|_, pool| run(pool, image, unprotect).unwrap_err()).1,
            place
                .opens(|store, pool| {
                    let options = CloneOptions::default();
                    let clone = pool.snapshot(image, "s").clone_to(pool, "more", &options);
                    store.remove_image(pool, clone.unwrap(), &mut |_, _| {}).unwrap();
                })
                .1,
        ]
    };
    add_clones(&place, image, "some", 16, 1);
    let few = measure();
    add_clones(&place, image, "many", 80, 1);
    assert_eq!(measure(), few);
}

#[test]
fn clones_of_format_2_are_recognised_without_opening_them() {
    let place = place("formats");
    let image = template(&place, 30, 2);
    let (has, opens) =
        place.opens(|store, pool| store.has_child_of_format_2(pool, image, None).unwrap());
    assert!(has && opens < 20, "{opens} files were opened");
    let (done, opens) = place.opens(|_, pool| run(pool, image, unprotect));
    done.unwrap();
    assert!(opens < 40, "{opens} files were opened");
    let (children, opens) = place.opens(|store, pool| store.children(pool, image, None).unwrap());
    assert!(children.len() == 30 && opens < 30 * 4, "{opens} files were opened");
}

#[test]
fn records_of_earlier_versions_are_children_too() {
    let place = place("earlier");
    let image = template(&place, 3, 2);
    let directory = place.directory.join("pools/rbd/children");
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().replacen(".001.", ".1.", 1);
        std::fs::rename(&path, directory.join(name)).unwrap();
    }
    let children = place.store.children(&place.pool, image, None).unwrap();
    assert!(children.len() == 3 && children.iter().all(|child| child.clone_format == 2));
    assert!(place.store.has_child_of_format_2(&place.pool, image, None).unwrap());
    for child in &children {
        place.store.remove_image(&place.pool, child.image_id, &mut |_, _| {}).unwrap();
    }
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0, "a record is left");
}

#[test]
fn a_refusal_names_eight_children_and_says_whether_there_are_others() {
    let place = place("refusal");
    let image = template(&place, 8, 1);
    for more in [false, true] {
        if more {
            add_clones(&place, image, "one-more", 1, 1);
        }
        let refused = run(&place.pool, image, unprotect).unwrap_err().sentence().to_string();
        assert_eq!(refused.matches("rbd/").count(), 8, "{refused}");
        assert_eq!(refused.ends_with("and others"), more, "{refused}");
    }
}

#[test]
fn a_name_that_cannot_be_read_now_does_not_count_as_missing() {
    let place = place("unreadable");
    let image = place.create("image");
    let name = || place.pool.name_of_image(&Namespace::default(), image);
    // EIO, EACCES, EMFILE.
    for errno in [5, 13, 24] {
        place.faults.name_errno.store(errno, Ordering::Relaxed);
        let found = name();
        place.faults.name_errno.store(0, Ordering::Relaxed);
        assert!(found.is_err(), "{errno}: {found:?}");
    }
    assert_eq!(name().unwrap().as_deref(), Some("image"));
    // A name that leads elsewhere is no obstacle.
    std::fs::write(place.directory.join("pools/rbd/names/@/image"), "torn").unwrap();
    assert_eq!(name().unwrap(), None);
}

#[test]
fn an_image_whose_head_cannot_be_read_is_not_said_to_have_no_name() {
    let place = place("unreadable-head");
    let image = place.create("image");
    let name = || place.pool.name_of_image(&Namespace::DEFAULT, image);
    place.faults.head_errno.store(EIO, Ordering::Relaxed);
    let unreadable = name();
    place.faults.head_errno.store(0, Ordering::Relaxed);
    assert_eq!(unreadable.unwrap_err().kind(), ErrorKind::Io);
    damage_head(&place.pool, image);
    assert_eq!(name().unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn an_image_is_not_said_to_have_no_name_while_other_names_cannot_be_read() {
    let place = place("unreadable-names");
    let image = place.create("image");
    // An earlier version renames like this, and so no hint leads to the name.
    let names = place.directory.join("pools/rbd/names/@");
    std::fs::rename(names.join("image"), names.join("renamed")).unwrap();
    std::fs::create_dir(names.join("no-file")).unwrap();
    let name = || place.pool.name_of_image(&Namespace::DEFAULT, image);
    assert_eq!(name().unwrap_err().kind(), ErrorKind::Io);
    std::fs::remove_dir(names.join("no-file")).unwrap();
    assert_eq!(name().unwrap().as_deref(), Some("renamed"));
}

#[test]
fn images_are_listed_without_names_that_have_just_gone_and_not_without_damaged_ones() {
    let place = place("listed");
    place.create("first");
    let second = place.create("second");
    let images = || place.pool.images(&Namespace::DEFAULT);
    // A name is removed after the names were listed.
    place.faults.name_errno.store(ENOENT, Ordering::Relaxed);
    let listed = images();
    place.faults.name_errno.store(0, Ordering::Relaxed);
    assert_eq!(listed.unwrap(), []);
    let names = place.directory.join("pools/rbd/names/@");
    std::fs::write(names.join("first"), "torn").unwrap();
    assert_eq!(images().unwrap_err().kind(), ErrorKind::Corrupt);
    std::fs::remove_file(names.join("first")).unwrap();
    assert_eq!(images().unwrap(), [("second".to_owned(), second)]);
    assert_eq!(place.pool.image_names(&Namespace::DEFAULT).unwrap(), ["second"]);
    // Names that cannot be listed are no missing namespace.
    std::fs::rename(&names, place.directory.join("away")).unwrap();
    std::fs::write(&names, "no directory").unwrap();
    assert_eq!(images().unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn messages_name_an_image_as_it_is_called_now() {
    let place = place("messages");
    let image = place.create("first");
    place.pool.rename("first", "second").unwrap();
    let open = place.pool.open(image).unwrap();
    let refused = place.pool.open(image).err().unwrap().sentence().to_string();
    assert!(refused.starts_with("rbd/second is open"), "{refused}");
    open.close().unwrap();
    // So do those about an image whose head cannot say anything.
    damage_head(&place.pool, image);
    let label = || checked(&place.store, &place.pool, false).findings[0].image.clone();
    assert_eq!(label(), "rbd/second");
    // An earlier version renames like this, and gives the old name to another image.
    let names = place.directory.join("pools/rbd/names/@");
    std::fs::rename(names.join("second"), names.join("third")).unwrap();
    place.create("second");
    assert_eq!(label(), "rbd/third");
}

#[test]
fn the_names_in_another_stores_pool_are_read_once_and_its_notes_are_left_alone() {
    let place = place("lent");
    let image = place.create("first");
    for n in 0..50 {
        place.create(&format!("other-{n}"));
    }
    place.pool.rename("first", "second").unwrap();
    std::fs::remove_file(place.note(image)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (world, faults) = faulty_world();
    let store = Store::open_in(world, directory.path()).unwrap();
    let lent = store.pool_attach("lent", place.pool.directory()).unwrap();
    let opens = || {
        let before = faults.opens.load(Ordering::Relaxed);
        assert_eq!(lent.info(image).unwrap().name, "second");
        faults.opens.load(Ordering::Relaxed) - before
    };
    let (first, again) = (opens(), opens());
    assert!(first > 50 && again < 10, "{first} files were opened, and then {again}");
    assert!(!place.note(image).exists());
    assert_eq!(place.name_and_opens(image).0, "second");
    assert!(place.note(image).exists(), "the pool's own store writes the note");
}

#[test]
fn gc_keeps_a_clone_that_an_earlier_version_renamed_before_anybody_opened_it() {
    let place = place("renamed-clone");
    let image = template(&place, 1, 1);
    let clone = place.pool.find("clone-0").unwrap();
    let names = place.directory.join("pools/rbd/names/@");
    std::fs::rename(names.join("clone-0"), names.join("renamed")).unwrap();
    place.store.gc(&place.pool, &mut |_, _| {}).unwrap();
    assert_eq!(place.pool.find("renamed").unwrap(), clone);
    assert_eq!(place.pool.info(clone).unwrap().parent.unwrap().image_id, image);
    assert_sound(&place.store, &place.pool);
}

#[test]
fn a_creation_or_renaming_that_fails_at_a_sync_leaves_a_whole_image_or_none() {
    for after in 0.. {
        let place = place(&format!("sync-{after}"));
        let faults = &place.faults;
        let with_failing_sync = |work: &dyn Fn() -> marcot::Result<()>| {
            faults.sync_fails_after.store(after, Ordering::Relaxed);
            let done = work();
            let failed = faults.sync_fails_after.swap(-1, Ordering::Relaxed) < 0;
            (failed, done.is_err())
        };
        let options = CreateOptions::sized(MIB);
        let create = || place.pool.create("image", &options).map(drop);
        let (failed_creating, refused) = with_failing_sync(&create);
        assert_eq!(refused, failed_creating, "{after}");
        match place.pool.find("image") {
            Ok(image) => place.pool.open(image).unwrap().close().unwrap(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{after}: {error}");
                create().unwrap();
            }
        }
        let image = place.pool.find("image").unwrap();
        // The note of the new name may fail: it is a hint.
        let (failed_renaming, refused) =
            with_failing_sync(&|| place.pool.rename("image", "renamed"));
        let names = place.pool.image_names(&Namespace::DEFAULT).unwrap();
        assert!(names == ["renamed"] || (refused && names == ["image"]), "{after}: {names:?}");
        assert_eq!(place.pool.find(names[0].as_str()).unwrap(), image);
        place.store.gc(&place.pool, &mut |_, _| {}).unwrap();
        assert_sound(&place.store, &place.pool);
        if !failed_creating && !failed_renaming {
            assert!(after > 2, "creating an image syncs more than once");
            break;
        }
    }
}
