//! Temporary files that interrupted commands leave are removed, and files that another process is writing
//! stay.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use marcot::{
    CheckOptions, CloneOptions, CreateOptions, ErrorKind, ImageId, ImageName, Namespace, Pool,
    PoolOptions, Store,
};
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::HeadRecord;
use support::{MIB, change_head, pattern, segments, store_with_image};

const TEMPORARY: &str = ".left.0123456789abcdef.tmp";
/// So long that no process can still be writing a file.
const LONG_AGO: Duration = Duration::from_secs(2 * 3600);

struct Place {
    directory: PathBuf,
    store: Store,
    pool: Pool,
    image: ImageId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn place(name: &str) -> Place {
    let name = format!("marcot-litter-{name}-{}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    let store = Store::open(&directory).unwrap();
    let pool = store.pool("rbd").unwrap();
    pool.namespace_create("part").unwrap();
    let options = CreateOptions::sized(1 << 20);
    let image = pool.create("image", &options).unwrap();
    Place { directory, store, pool, image }
}

fn leave(directory: &Path, file: &str) -> PathBuf {
    let path = directory.join(file);
    fs::write(&path, b"half a rec").unwrap();
    path
}

#[expect(clippy::disallowed_methods, reason = "the age of a file is by the system's clock")]
fn make_old(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - LONG_AGO).unwrap();
}

impl Place {
    fn gc(&self) {
        self.store.gc(&self.pool, &mut |_, _| {}).unwrap();
    }

    fn check(&self, repair: bool) -> Vec<(String, bool)> {
        let options = CheckOptions { repair, ..CheckOptions::default() };
        let report = self.store.check(&self.pool, &options, &mut |_, _| {}).unwrap();
        assert!(report.findings.iter().all(|f| !f.serious));
        report.findings.into_iter().map(|f| (f.message, f.repaired)).collect()
    }

    /// The temporary file of a child's record, made by a command of the pool with this number.
    fn record_of(&self, child_pool: &str) -> PathBuf {
        let (pool, image) = (self.pool.id(), self.image);
        let name = format!(".{pool}.{image}.01.{child_pool}.00000000000000aa.0123456789abcdef.tmp");
        leave(&self.pool.directory().join("children"), &name)
    }

    /// Temporary files that are known to be litter while the locks of image and pool are held.
    fn leave_in_all_directories(&self) -> Vec<PathBuf> {
        let pool = self.pool.directory();
        vec![
            leave(pool, TEMPORARY),
            leave(&pool.join("names/@"), TEMPORARY),
            leave(&pool.join("names/part"), TEMPORARY),
            leave(&self.pool.image_directory(self.image), ".head.0123456789abcdef.tmp"),
            self.record_of(&self.pool.id().to_string()),
        ]
    }
}

fn left(files: &[PathBuf]) -> Vec<&PathBuf> {
    files.iter().filter(|path| path.exists()).collect()
}

#[test]
fn gc_removes_temporary_files_of_all_directories() {
    let place = place("gc");
    let mut files = place.leave_in_all_directories();
    fs::create_dir(place.directory.join("attached")).unwrap();
    files.push(leave(&place.directory.join("attached"), TEMPORARY));
    let store = leave(&place.directory, ".store.0123456789abcdef.tmp");
    make_old(&store);
    files.push(store);
    place.gc();
    assert_eq!(left(&files), Vec::<&PathBuf>::new());
    assert_eq!(
        place.pool.images(&Namespace::DEFAULT).unwrap(),
        [("image".to_owned(), place.image)]
    );
}

#[test]
fn repair_removes_temporary_files_and_reports_them() {
    let place = place("repair");
    let files = place.leave_in_all_directories();
    assert_eq!(place.check(false), [], "another process may be writing them");
    assert_eq!(left(&files).len(), files.len());
    let found = place.check(true);
    assert!(
        found.len() == 1 && found[0].0.starts_with("5 temporary files") && found[0].1,
        "{found:?}"
    );
    assert_eq!(left(&files), Vec::<&PathBuf>::new());
    assert_eq!(place.check(true), []);
}

#[test]
fn check_reports_temporary_files_that_are_old() {
    let place = place("check");
    let files = place.leave_in_all_directories();
    make_old(&files[1]);
    make_old(&files[3]);
    let found = place.check(false);
    assert!(found.len() == 1 && found[0].0.starts_with("2 temporary files"), "{found:?}");
    assert_eq!(left(&files).len(), files.len());
}

#[test]
fn files_that_another_process_may_be_writing_stay_until_they_are_old() {
    let place = place("writing");
    let open = place.pool.open(place.image).unwrap();
    let files = [
        // An owner may be writing the head, and a clone into another pool may be writing the marker.
        leave(&place.pool.image_directory(place.image), ".head.0123456789abcdef.tmp"),
        place.record_of("00000000000000bb"),
    ];
    place.gc();
    place.check(true);
    assert_eq!(left(&files).len(), files.len());
    files.iter().for_each(|path| make_old(path));
    place.gc();
    assert_eq!(left(&files), Vec::<&PathBuf>::new());
    open.close().unwrap();
}

#[test]
fn files_that_are_not_temporary_stay() {
    let place = place("other");
    let pool = place.pool.directory();
    let files = [
        leave(pool, "notes"),
        leave(pool, ".hidden"),
        leave(&pool.join("names/@"), ".head.tmp"),
        leave(&pool.join("children"), ".nobody.0123456789abcdef.tmp"),
    ];
    place.gc();
    place.check(true);
    assert_eq!(left(&files).len(), files.len());
}

#[test]
fn a_namespace_is_removed_together_with_temporary_files_in_it() {
    let place = place("namespace");
    leave(&place.pool.directory().join("names/part"), TEMPORARY);
    place.pool.namespace_remove("part").unwrap();
    assert!(place.pool.namespaces().unwrap().is_empty());
    place.pool.namespace_create("part").unwrap();
    let strange = leave(&place.pool.directory().join("names/part"), "%zz");
    let refused = place.pool.namespace_remove("part").unwrap_err();
    assert!(refused.sentence().to_string().contains("%zz"), "{refused}");
    fs::remove_file(strange).unwrap();
    let options = CreateOptions::sized(1 << 20);
    place.pool.create(ImageName::new("image").in_namespace("part"), &options).unwrap();
    let refused = place.pool.namespace_remove("part").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotEmpty);
}

#[test]
fn temporary_files_do_not_prevent_the_removal_of_an_image_or_a_pool() {
    let place = place("kept");
    let other = place.store.pool_create("other", &PoolOptions::default()).unwrap();
    leave(&other.directory().join("names/@"), TEMPORARY);
    place.store.pool_remove("other").unwrap();
    assert!(!other.directory().exists());
    leave(&place.pool.image_directory(place.image), TEMPORARY);
    place.store.remove_named(&place.pool, "image", &mut |_, _| {}).unwrap();
    assert!(!place.pool.image_directory(place.image).exists());
}

/// A clone of a template in another store. Its creation was interrupted between its head and its name, or its
/// removal was interrupted at the head.
fn interrupted_clone(place: &Place, removing: bool) -> (Store, PathBuf) {
    let templates = Store::open(&place.directory.join("templates")).unwrap();
    let owner = templates.pool("rbd").unwrap();
    let options = CreateOptions::sized(1 << 20);
    let golden = owner.create("golden", &options).unwrap();
    let mut image = owner.open(golden).unwrap();
    image.write_at(0, &[7; 8192]).unwrap();
    image.snapshot("s").unwrap();
    image.protect("s").unwrap();
    image.close().unwrap();
    let attached = place.store.pool_attach("tmpl", owner.directory()).unwrap();
    let made = CloneOptions::default();
    let clone = attached.snapshot(golden, "s").clone_to(&place.pool, "c", &made).unwrap();
    if removing {
        let mut opened = place.pool.open(clone).unwrap();
        opened.write_at(0, b"its own").unwrap();
        opened.close().unwrap();
    }
    fs::remove_file(place.pool.directory().join("names/@/c")).unwrap();
    let head = place.pool.image_directory(clone).join("head");
    if removing {
        let bytes = fs::read(&head).unwrap();
        let (mut record, _): (HeadRecord, _) = decode_message(FrameKind::Head, &bytes).unwrap();
        record.removing = true;
        fs::write(&head, encode_message(FrameKind::Head, &record)).unwrap();
    }
    (templates, head)
}

#[test]
fn one_gc_finishes_an_interrupted_clone_and_an_interrupted_removal() {
    for removing in [false, true] {
        let place = place(if removing { "cut-rm" } else { "cut-clone" });
        let (templates, head) = interrupted_clone(&place, removing);
        place.gc();
        assert!(!head.exists());
        let owner = templates.pool("rbd").unwrap();
        let left = |directory: &Path| fs::read_dir(directory).unwrap().count();
        assert_eq!(left(&place.pool.directory().join("children")), 0, "removing: {removing}");
        assert_eq!(left(&owner.directory().join("children")), 0, "removing: {removing}");
        assert_eq!(left(&place.pool.directory().join("segments")), 0, "removing: {removing}");
        let golden = owner.find("golden").unwrap();
        let mut image = owner.open(golden).unwrap();
        image.unprotect("s").unwrap();
    }
}

#[test]
fn an_owner_removes_a_segment_that_it_prepared_in_vain_unless_a_later_owner_may_use_it() {
    for taken_over in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let (_store, pool, id) = store_with_image(directory.path(), 32 * MIB);
        let mut image = pool.open(id).unwrap();
        // The next segment is prepared when the open one is half full.
        image.write_at(0, &pattern(1, 17 * MIB as usize)).unwrap();
        if taken_over {
            change_head(&pool, id, |head| head.epoch += 1);
        }
        let closed = image.close();
        let refused = closed.err().map(|error| error.kind());
        assert_eq!(refused, taken_over.then_some(ErrorKind::Fenced));
        assert_eq!(segments(&pool, 'd').len(), 1 + usize::from(taken_over));
    }
}
