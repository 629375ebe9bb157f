//! A flattened image is independent, together with its snapshots. Clones of these snapshots go on reading the
//! right data when all ancestors are gone.

mod support;

use std::path::Path;

use marcot::{CloneOptions, CreateOptions, ErrorKind, Image, ImageId, Pool, PoolOptions, Store};
use support::{MIB, assert_sound, pattern, segments};

const SIZE: u64 = 8 * MIB;

/// A template in the pool `rbd`, a clone of it in `second`, and a pool `third`.
struct Family {
    store: Store,
    first: Pool,
    second: Pool,
    third: Pool,
    template: ImageId,
    child: ImageId,
}

fn snapshot(image: &mut Image, name: &str) {
    image.snapshot(name).unwrap();
    image.protect(name).unwrap();
}

fn clone((pool, image, snap): (&Pool, ImageId, &str), to: &Pool, name: &str) -> ImageId {
    pool.snapshot(image, snap).clone_to(to, name, &CloneOptions::default()).unwrap()
}

fn read(image: &mut Image) -> Vec<u8> {
    let mut content = vec![0xAA; SIZE as usize];
    image.read_at(0, &mut content).unwrap();
    content
}

impl Family {
    fn new(directory: &Path, features: &str) -> Self {
        let store = Store::open(directory).unwrap();
        let first = store.pool("rbd").unwrap();
        let second = store.pool_create("second", &PoolOptions::default()).unwrap();
        let third = store.pool_create("third", &PoolOptions::default()).unwrap();
        let options = CreateOptions::sized(SIZE).features(features);
        let template = first.create("template", &options).unwrap();
        let mut image = first.open(template).unwrap();
        image.write_at(0, &pattern(1, SIZE as usize)).unwrap();
        snapshot(&mut image, "s");
        image.close().unwrap();
        let child = clone((&first, template, "s"), &second, "child");
        Self { store, first, second, third, template, child }
    }

    fn open(&self) -> Image {
        self.second.open(self.child).unwrap()
    }

    fn unprotect(&self) -> marcot::Result<()> {
        let mut image = self.first.open(self.template).unwrap();
        let outcome = image.unprotect("s");
        image.close().unwrap();
        outcome
    }

    /// Removes the template with all its space.
    fn remove_template(&self) {
        assert!(self.store.children(&self.first, self.template, None).unwrap().is_empty());
        self.unprotect().unwrap();
        let mut image = self.first.open(self.template).unwrap();
        image.remove_snapshot("s", false).unwrap();
        image.close().unwrap();
        self.store.remove_image(&self.first, self.template, &mut |_, _| {}).unwrap();
        self.store.gc(&self.first, &mut |_, _| {}).unwrap();
        assert!(segments(&self.first, 'd').is_empty(), "its data is gone");
    }

    fn assert_sound(&self) {
        for pool in [&self.first, &self.second, &self.third] {
            self.store.gc(pool, &mut |_, _| {}).unwrap();
            assert_sound(&self.store, pool);
        }
    }
}

/// Bytes on the medium of the copies in a pool.
fn copied_bytes(pool: &Pool) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let copies = |path: &&std::path::PathBuf| {
        path.parent().unwrap().file_name().unwrap().to_str().unwrap().contains('.')
    };
    let data = segments(pool, 'd');
    data.iter().filter(copies).map(|path| std::fs::metadata(path).unwrap().blocks() * 512).sum()
}

#[test]
fn flatten_makes_snapshots_independent_and_they_go_on_sharing_data() {
    let directory = tempfile::tempdir().unwrap();
    let family = Family::new(directory.path(), "");
    let mut image = family.open();
    let mut expected = Vec::new();
    let mut now = pattern(1, SIZE as usize);
    for n in 0..10_u8 {
        image.write_at(u64::from(n) * 4096, &[n; 4096]).unwrap();
        now[usize::from(n) * 4096..][..4096].fill(n);
        let name = format!("s{n}");
        image.snapshot(&name).unwrap();
        expected.push((name, now.clone()));
    }
    image.roll_back("s2").unwrap();
    image.snapshot("again").unwrap();
    expected.push(("again".to_owned(), expected[2].1.clone()));
    assert_eq!(family.unprotect().unwrap_err().kind(), ErrorKind::HasChildren);
    image.flatten().unwrap();
    let copied = copied_bytes(&family.second);
    assert!((SIZE - 10 * 4096..SIZE + MIB).contains(&copied), "{copied} bytes for all states");
    image.close().unwrap();
    family.remove_template();
    let info = family.second.info(family.child).unwrap();
    assert!(info.parent.is_none() && info.snapshots.iter().all(|s| s.parent.is_none()));
    for (name, content) in &expected {
        let mut snapshot = family.second.open_snapshot(family.child, name).unwrap();
        assert!(read(&mut snapshot) == *content, "{name}");
    }
    assert!(read(&mut family.open()) == expected[2].1);
    family.assert_sound();
    // What the states share is not counted as changed.
    let mut image = family.open();
    let extents = image.diff(Some("s0"), Some("s1"), 0, SIZE).unwrap();
    assert_eq!(extents.iter().map(|e| (e.offset, e.length)).collect::<Vec<_>>(), [(4096, 4096)]);
    for (name, _) in &expected {
        image.remove_snapshot(name, false).unwrap();
    }
    image.close().unwrap();
    family.store.remove_image(&family.second, family.child, &mut |_, _| {}).unwrap();
    assert_eq!(copied_bytes(&family.second), 0, "copies are removed with the image");
}

#[test]
fn clones_of_flattened_snapshots_outlive_the_image_that_their_data_came_from() {
    let directory = tempfile::tempdir().unwrap();
    let family = Family::new(directory.path(), "");
    let Family { store, first, second, third, child, .. } = &family;
    let mut image = family.open();
    image.write_at(MIB, &pattern(2, MIB as usize)).unwrap();
    snapshot(&mut image, "middle");
    image.close().unwrap();
    let mut content = pattern(1, SIZE as usize);
    content[MIB as usize..2 * MIB as usize].copy_from_slice(&pattern(2, MIB as usize));
    // A clone in every pool. One more generation, which was never written, knows only the oldest place.
    let grandchildren: Vec<(&Pool, ImageId)> = [first, second, third]
        .map(|pool| (pool, clone((second, *child, "middle"), pool, "grandchild")))
        .to_vec();
    let (third_pool, last) = grandchildren[2];
    let mut image = third_pool.open(last).unwrap();
    snapshot(&mut image, "deep");
    image.close().unwrap();
    let great = clone((third, last, "deep"), second, "great");
    // A guest of a grandchild and a reader of the snapshot stay open all the while. They use a store of their
    // own, as another process does: no segment is open there yet.
    let other = Store::open(directory.path()).unwrap();
    let of = |pool: &Pool| other.pool(pool.name()).unwrap();
    let mut guest = of(third).open(last).unwrap();
    // The guest's state comes from a snapshot that is gone.
    guest.snapshot("x").unwrap();
    guest.roll_back("x").unwrap();
    guest.remove_snapshot("x", false).unwrap();
    let mut reader = of(second).open_snapshot(*child, "middle").unwrap();
    let mut image = family.open();
    image.flatten().unwrap();
    image.snapshot("later").unwrap();
    image.close().unwrap();
    let listed = store.children(second, *child, None).unwrap();
    assert_eq!(listed.len(), 3, "{listed:?}");
    let refused = family.open().unprotect("middle");
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::HasChildren);
    family.unprotect().unwrap();
    let mut template = first.open(family.template).unwrap();
    template.remove_snapshot("s", false).unwrap();
    template.close().unwrap();
    store.remove_image(first, family.template, &mut |_, _| {}).unwrap();
    // The clone in the template's own pool still names the template's segments there. The others must not
    // need them.
    let gone = first.directory().join("segments").join(family.template.to_string());
    let aside = directory.path().join("aside");
    std::fs::rename(&gone, &aside).unwrap();
    assert!(read(&mut guest) == content, "a guest that was running meanwhile");
    guest.write_at(0, &[9; 4096]).unwrap();
    assert!(read(&mut reader) == content, "a reader that was open meanwhile");
    drop(reader);
    for (pool, image) in [(second, great), (second, grandchildren[1].1), (second, *child)] {
        let fresh = Store::open(directory.path()).unwrap();
        let pool = fresh.pool(pool.name()).unwrap();
        assert!(read(&mut pool.open_read_only(image).unwrap()) == content);
        assert!(read(&mut pool.open(image).unwrap()) == content);
    }
    std::fs::rename(&aside, &gone).unwrap();
    guest.close().unwrap();
    family.assert_sound();
    assert!(read(&mut first.open(grandchildren[0].1).unwrap()) == content);
    // The descendants are flattened too, from where the data is now.
    for (pool, image) in [(second, great), (third, last), (second, grandchildren[1].1)] {
        let mut image = pool.open(image).unwrap();
        image.flatten().unwrap();
        image.close().unwrap();
    }
    family.assert_sound();
    content[..4096].fill(9);
    assert!(read(&mut third.open(last).unwrap()) == content);
}

#[test]
fn an_interrupted_flatten_goes_on_with_the_copies_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let family = Family::new(directory.path(), "");
    let mut image = family.open();
    image.snapshot("before").unwrap();
    image.flatten_part().unwrap();
    drop(image);
    let half = copied_bytes(&family.second);
    assert!(half >= SIZE / 2, "{half}");
    // GC leaves alone the copies that are being made.
    family.assert_sound();
    assert_eq!(copied_bytes(&family.second), half);
    let copy = segments(&family.second, 'd').into_iter().next().unwrap();
    let made = std::fs::metadata(&copy).unwrap().modified().unwrap();
    let mut image = family.open();
    image.flatten().unwrap();
    image.close().unwrap();
    assert!(std::fs::metadata(&copy).unwrap().modified().unwrap() >= made);
    assert_eq!(segments(&family.second, 'd').len(), 1, "the same copy was completed");
    family.remove_template();
    assert!(read(&mut family.open()) == pattern(1, SIZE as usize));
    family.assert_sound();
}

#[test]
fn copies_of_an_unfinished_flatten_are_removed_with_their_image() {
    let directory = tempfile::tempdir().unwrap();
    let family = Family::new(directory.path(), "");
    let mut image = family.open();
    image.snapshot("before").unwrap();
    image.flatten_part().unwrap();
    image.remove_snapshot("before", false).unwrap();
    image.close().unwrap();
    family.store.remove_image(&family.second, family.child, &mut |_, _| {}).unwrap();
    assert!(segments(&family.second, 'd').is_empty());
    family.remove_template();
}

#[test]
fn without_deep_flatten_snapshots_stay_with_the_parent() {
    let directory = tempfile::tempdir().unwrap();
    let family = Family::new(directory.path(), "layering");
    let mut image = family.open();
    image.snapshot("before").unwrap();
    image.flatten().unwrap();
    image.close().unwrap();
    let info = family.second.info(family.child).unwrap();
    assert!(info.parent.is_none() && info.snapshots[0].parent.is_some());
    assert_eq!(family.unprotect().unwrap_err().kind(), ErrorKind::HasChildren);
    assert_eq!(copied_bytes(&family.second), 0);
    let mut image = family.open();
    assert_eq!(image.flatten().unwrap_err().kind(), ErrorKind::NoParent);
    image.remove_snapshot("before", false).unwrap();
    image.close().unwrap();
    family.remove_template();
    assert!(read(&mut family.open()) == pattern(1, SIZE as usize));
}

#[test]
fn an_unreadable_block_keeps_the_parent() {
    let directory = tempfile::tempdir().unwrap();
    let family = Family::new(directory.path(), "");
    let path = segments(&family.first, 'd').remove(0);
    let mut data = std::fs::read(&path).unwrap();
    let at = data.len() - 4096;
    data[at] ^= 1;
    std::fs::write(&path, &data).unwrap();
    let mut image = family.open();
    image.snapshot("before").unwrap();
    let error = image.flatten().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.sentence().to_string().contains("second/child@before"), "{error}");
    assert_eq!(family.unprotect().unwrap_err().kind(), ErrorKind::HasChildren);
    data[at] ^= 1;
    std::fs::write(&path, &data).unwrap();
    image.flatten().unwrap();
    image.close().unwrap();
    family.remove_template();
    family.assert_sound();
}

/// Flattens an image, so that its parent can be removed. Then removes the parent with all its space.
fn flatten_and_remove_parent(
    store: &Store,
    (pool, image): (&Pool, ImageId),
    (above, parent, snap): (&Pool, ImageId, &str),
) {
    let mut flattened = pool.open(image).unwrap();
    flattened.flatten().unwrap();
    flattened.close().unwrap();
    let mut gone = above.open(parent).unwrap();
    gone.unprotect(snap).unwrap();
    gone.remove_snapshot(snap, false).unwrap();
    gone.close().unwrap();
    store.remove_image(above, parent, &mut |_, _| {}).unwrap();
    store.gc(above, &mut |_, _| {}).unwrap();
}

/// An ancestor's flatten has put data into the image's own pool for a while. The data belongs to the
/// ancestor: the image must not rely on it, and its own flatten must copy it.
#[test]
fn copies_that_an_ancestor_made_in_the_images_own_pool_do_not_belong_to_the_image() {
    for written in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let family = Family::new(directory.path(), "");
        // The template lies in `rbd`, the child in `second`. Below the child, one clone lies in `third`, and
        // one below that in `second`.
        let Family { store, first, second, third, child: x, template: w } = &family;
        let (x, w) = (*x, *w);
        let mut image = family.open();
        snapshot(&mut image, "x");
        image.close().unwrap();
        let b = clone((second, x, "x"), third, "b");
        let mut image = third.open(b).unwrap();
        image.write_at(6 * MIB, &pattern(3, 65_536)).unwrap();
        snapshot(&mut image, "b");
        image.close().unwrap();
        let c = clone((third, b, "b"), second, "c");
        let mut image = second.open(c).unwrap();
        image.snapshot("c0").unwrap();
        image.close().unwrap();
        flatten_and_remove_parent(store, (second, x), (first, w, "s"));
        let mut expected = pattern(1, SIZE as usize);
        expected[6 * MIB as usize..][..65_536].copy_from_slice(&pattern(3, 65_536));
        // It is read from where the ancestor has put it, while the image is in use.
        let mut image = second.open(c).unwrap();
        assert!(read(&mut image) == expected);
        if written {
            image.write_at(MIB, &pattern(4, 65_536)).unwrap();
            image.snapshot("c1").unwrap();
            image.roll_back("c0").unwrap();
            image.remove_snapshot("c0", false).unwrap();
            flatten_and_remove_parent(store, (third, b), (second, x, "x"));
        } else {
            flatten_and_remove_parent(store, (third, b), (second, x, "x"));
            image.write_at(MIB, &pattern(4, 4096)).unwrap();
            expected[MIB as usize..][..4096].copy_from_slice(&pattern(4, 4096));
        }
        image.close().unwrap();
        assert!(read(&mut second.open_read_only(c).unwrap()) == expected, "{written}: before");
        flatten_and_remove_parent(store, (second, c), (third, b, "b"));
        assert!(read(&mut second.open_read_only(c).unwrap()) == expected, "{written}: after");
        family.assert_sound();
    }
}
