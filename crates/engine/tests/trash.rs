//! The trash: an image in it has no name, and is an image like any other.

mod support;

use std::path::PathBuf;

use marcot::{
    CloneOptions, CreateOptions, ErrorKind, Image, ImageId, Namespace, PROTECTED_FOR_GOOD_S, Pool,
    Store,
};

use support::assert_sound;

const MIB: u64 = 1 << 20;
const HERE: Namespace = Namespace::DEFAULT;

struct Place {
    _directory: tempfile::TempDir,
    store: Store,
    pool: Pool,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    Place { _directory: directory, store, pool }
}

impl Place {
    fn create(&self, name: &str) -> ImageId {
        self.pool.create(name, &CreateOptions::sized(MIB)).unwrap()
    }

    fn open(&self, image: ImageId) -> Image {
        self.pool.open(image).unwrap()
    }

    fn note(&self, image: ImageId) -> PathBuf {
        self.pool.image_directory(image).join("trash")
    }

    fn names_in_trash(&self) -> Vec<String> {
        self.pool.trash(&HERE).unwrap().into_iter().map(|image| image.name).collect()
    }
}

#[test]
fn an_image_in_the_trash_has_no_name_and_everything_else() {
    let place = place();
    let image = place.create("a");
    let mut open = place.open(image);
    open.write_at(0, &[7; 4096]).unwrap();
    open.snapshot("s").unwrap();
    place.pool.move_to_trash(image, "a", None).unwrap();
    assert_eq!(place.pool.find("a").unwrap_err().kind(), ErrorKind::NotFound);
    let hidden = place.pool.trashed_image(&HERE, image).unwrap().name_now();
    assert_eq!(place.pool.find(&hidden).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(place.names_in_trash(), ["a"]);
    // Its user goes on.
    open.write_at(4096, &[8; 4096]).unwrap();
    open.close().unwrap();
    let info = place.pool.info(image).unwrap();
    assert!(info.in_trash && info.name == "a" && info.snapshots.len() == 1, "{info:?}");
    let child =
        place.pool.snapshot(image, "s").clone_to(&place.pool, "c", &CloneOptions::new().format(2));
    let parent = place.pool.info(child.unwrap()).unwrap().parent.unwrap();
    assert!(parent.in_trash && parent.image == "a", "{parent:?}");
    assert_sound(&place.store, &place.pool);
    // Another image gets the name meanwhile.
    let other = place.create("a");
    let taken = place.pool.restore(&HERE, image, None).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Exists);
    assert_eq!(place.pool.restore(&HERE, image, Some("b")).unwrap(), "b");
    assert_eq!((place.pool.find("a").unwrap(), place.pool.find("b").unwrap()), (other, image));
    let info = place.pool.info(image).unwrap();
    assert!(!info.in_trash && info.name == "b", "{info:?}");
    let mut block = [0; 4096];
    place.pool.open_read_only(image).unwrap().read_at(4096, &mut block).unwrap();
    assert_eq!(block, [8; 4096]);
    assert!(place.names_in_trash().is_empty() && !place.note(image).exists());
    assert_sound(&place.store, &place.pool);
}

#[test]
fn moving_needs_the_name_and_restoring_needs_the_trash() {
    let place = place();
    let (image, other) = (place.create("a"), place.create("b"));
    let moved = |image, name: &str| place.pool.move_to_trash(image, name, None).unwrap_err().kind();
    assert_eq!(moved(image, "nosuch"), ErrorKind::NotFound);
    assert_eq!(moved(image, "b"), ErrorKind::Busy);
    let restored = |name| place.pool.restore(&HERE, other, name).unwrap_err().kind();
    assert_eq!(restored(None), ErrorKind::NotFound);
    place.pool.move_to_trash(other, "b", Some(5)).unwrap();
    assert_eq!(restored(Some("x/y")), ErrorKind::Invalid);
    assert_eq!(restored(Some(".marcot-trash.0")), ErrorKind::Invalid);
    assert_eq!(place.pool.trash(&HERE).unwrap()[0].protected_until_s, 5);
    let elsewhere = place.pool.trash(&Namespace::named("ns")).unwrap_err();
    assert_eq!(elsewhere.kind(), ErrorKind::NotFound);
    // A namespace is not empty while an image of it is in the trash.
    place.pool.namespace_create("ns").unwrap();
    let name = marcot::ImageName::new("x").in_namespace("ns");
    let image = place.pool.create(&name, &CreateOptions::sized(MIB)).unwrap();
    place.pool.move_to_trash(image, &name, None).unwrap();
    let removed = place.pool.namespace_remove("ns").unwrap_err();
    assert_eq!(removed.kind(), ErrorKind::NotEmpty);
    place.store.remove_image(&place.pool, image, &mut |_, _| {}).unwrap();
    place.pool.namespace_remove("ns").unwrap();
    assert_sound(&place.store, &place.pool);
}

#[test]
fn children_show_which_of_them_are_in_the_trash() {
    let place = place();
    let image = place.create("t");
    place.open(image).snapshot("s").unwrap();
    let snapshot = place.pool.snapshot(image, "s");
    let options = CloneOptions::new().format(2);
    for name in ["k1", "k2"] {
        snapshot.clone_to(&place.pool, name, &options).unwrap();
    }
    place.pool.move_to_trash(place.pool.find("k1").unwrap(), "k1", None).unwrap();
    let children = place.store.children(&place.pool, image, None).unwrap();
    let mut seen: Vec<_> = children.iter().map(|c| (c.image.as_str(), c.in_trash)).collect();
    seen.sort_unstable();
    assert_eq!(seen, [("k1", true), ("k2", false)]);
    let stats = place.store.pool_stats(&place.pool).unwrap();
    assert_eq!((stats.named.images, stats.named.snapshots), (2, 1));
    assert_eq!((stats.trash.images, stats.trash.provisioned_bytes), (1, MIB));
    assert_sound(&place.store, &place.pool);
}

#[test]
fn a_note_that_is_missing_or_damaged_protects_the_image_and_does_not_keep_it() {
    let place = place();
    for (name, damage) in [("a", None), ("b", Some(&b"damaged"[..]))] {
        let image = place.create(name);
        place.pool.move_to_trash(image, name, None).unwrap();
        match damage {
            None => std::fs::remove_file(place.note(image)).unwrap(),
            Some(bytes) => std::fs::write(place.note(image), bytes).unwrap(),
        }
        let trashed = place.pool.trashed_image(&HERE, image).unwrap();
        assert_eq!(
            (trashed.name.as_str(), trashed.protected_until_s),
            (name, PROTECTED_FOR_GOOD_S)
        );
        assert_eq!(place.pool.restore(&HERE, image, None).unwrap(), name);
    }
    // A note from before says nothing about an image with a name.
    let image = place.pool.find("a").unwrap();
    std::fs::write(place.note(image), b"from before").unwrap();
    assert!(!place.pool.info(image).unwrap().in_trash);
    assert!(place.names_in_trash().is_empty());
    assert_sound(&place.store, &place.pool);
}
