//! Pools in buckets, as stores on several hosts make, attach, use and remove them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use marcot::{
    BucketOptions, CheckOptions, CreateOptions, ErrorKind, Limits, Namespace, PoolOptions, Result,
    Store, World,
};
use marcot_backend::local::LocalHome;
use marcot_backend::object::home::{Connect, Connected};
use marcot_backend::object::memory::MemoryService;
use marcot_backend::object::service::{Condition, ObjectService};
use marcot_backend::object::{Outage, Patience, Policy, Retry, Settled};

const URL: &str = "s3://bucket/prefix";

/// The buckets of the world, by URL.
#[derive(Clone, Default)]
struct Buckets(Arc<Mutex<HashMap<String, Arc<MemoryService>>>>);

impl Buckets {
    fn service(&self, url: &str) -> Arc<MemoryService> {
        Arc::clone(self.0.lock().unwrap().entry(url.to_owned()).or_default())
    }

    fn keys(&self, url: &str) -> Vec<String> {
        let page = self.service(url).list("", None).unwrap();
        page.objects.into_iter().map(|object| object.key).collect()
    }

    fn connect(&self) -> Connect {
        let buckets = self.clone();
        Arc::new(move |location, world| {
            let service: Arc<dyn ObjectService> = buckets.service(&location.to_string());
            let outage = Arc::new(Outage::default());
            let retry = Retry::new(world, Policy::command(), location.to_string(), outage);
            let settled = Settled::new(Arc::clone(&service), retry.clone());
            Ok(Connected { service, settled, patient: retry, set_dialect: Box::new(|_| ()) })
        })
    }

    /// The store of a host.
    fn store(&self, directory: &Path) -> Store {
        let world = World::system();
        let home =
            LocalHome::open_with(&world, directory, self.connect(), Patience::Command).unwrap();
        Store::open_home(world, Arc::new(home), directory, Limits::default()).unwrap()
    }
}

/// Two hosts, and the buckets that both reach.
struct Scene {
    root: tempfile::TempDir,
    buckets: Buckets,
}

impl Scene {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap(), buckets: Buckets::default() }
    }

    fn host(&self, name: &str) -> Store {
        self.buckets.store(&self.root.path().join(name))
    }
}

fn options() -> BucketOptions {
    BucketOptions::default()
}

fn refused<T>(result: Result<T>) -> (ErrorKind, String) {
    let error = result.err().expect("it was not refused");
    (error.kind(), error.sentence().to_string())
}

#[test]
fn a_pool_in_a_bucket_is_the_same_on_two_hosts() {
    let scene = Scene::new();
    let (one, two) = (scene.host("one"), scene.host("two"));
    let pool = one.pool_create_in_bucket("gold", URL, &options()).unwrap();
    assert_eq!(pool.place(), URL);
    assert!(!pool.attached() && !pool.read_only());
    assert_eq!(one.pools().unwrap(), ["gold", "rbd"]);
    let image = pool.create("vm", &CreateOptions::sized(1 << 20)).unwrap();
    let mut open = pool.open(image).unwrap();
    open.write_at(4096, &[7; 4096]).unwrap();
    open.snapshot("s").unwrap();
    open.close().unwrap();

    let there = two.pool_attach_bucket("theirs", URL, &options()).unwrap();
    assert!(there.attached());
    assert_eq!(there.id(), pool.id());
    assert_eq!(there.find("vm").unwrap(), image);
    let mut open = there.open_read_only(image).unwrap();
    let mut read = [0; 4096];
    open.read_at(4096, &mut read).unwrap();
    assert_eq!(read, [7; 4096]);
    drop(open);

    there.rename("vm", "renamed").unwrap();
    assert_eq!(pool.image_names(&Namespace::DEFAULT).unwrap(), ["renamed"]);
    // A store that was opened before finds the pool again.
    let again = scene.host("two").pool("theirs").unwrap();
    assert_eq!(again.images(&Namespace::DEFAULT).unwrap(), [("renamed".to_owned(), image)]);
}

#[test]
fn a_prefix_that_holds_something_is_not_made_a_pool() {
    let scene = Scene::new();
    let (one, two) = (scene.host("one"), scene.host("two"));
    let other = scene.buckets.service("s3://bucket/other");
    other.put("holiday.jpg", b"jpeg", &Condition::None).unwrap();
    let (kind, why) = refused(one.pool_create_in_bucket("gold", "s3://bucket/other", &options()));
    assert_eq!(kind, ErrorKind::Exists, "{why}");
    assert!(why.contains("holiday.jpg"), "{why}");
    assert_eq!(scene.buckets.keys("s3://bucket/other"), ["holiday.jpg"]);
    let (kind, why) = refused(one.pool_attach_bucket("gold", "s3://bucket/other", &options()));
    assert_eq!(kind, ErrorKind::NotFound, "{why}");
    assert_eq!(one.pools().unwrap(), ["rbd"]);

    one.pool_create_in_bucket("gold", URL, &options()).unwrap();
    for store in [&one, &two] {
        let (kind, why) = refused(store.pool_create_in_bucket("new", URL, &options()));
        assert_eq!(kind, ErrorKind::Exists, "{why}");
        assert!(why.contains("pool attach new --backend s3://bucket/prefix"), "{why}");
    }
    let (kind, why) = refused(one.pool_attach_bucket("again", URL, &options()));
    assert_eq!(kind, ErrorKind::Exists, "{why}");
    assert!(why.contains("'gold'"), "{why}");
    let taken = one.pool_create_in_bucket("rbd", "s3://bucket/third", &options());
    assert_eq!(refused(taken).0, ErrorKind::Exists);
    assert!(scene.buckets.keys("s3://bucket/third").is_empty());
}

#[test]
fn a_pool_in_a_bucket_is_removed_once_it_is_empty() {
    let scene = Scene::new();
    let (one, two) = (scene.host("one"), scene.host("two"));
    let pool = one.pool_create_in_bucket("gold", URL, &options()).unwrap();
    two.pool_attach_bucket("gold", URL, &options()).unwrap();
    let image = pool.create("vm", &CreateOptions::sized(1 << 20)).unwrap();
    for store in [&one, &two] {
        assert_eq!(refused(store.pool_remove("gold")).0, ErrorKind::NotEmpty);
    }
    one.remove_image(&pool, image, &mut |_, _| {}).unwrap();
    drop(pool);
    one.pool_remove("gold").unwrap();
    assert_eq!(one.pools().unwrap(), ["rbd"]);
    let left = scene.buckets.keys(URL);
    let stays =
        |key: &String| key == "pool" || key.starts_with("names/") || key.starts_with("namespaces/");
    assert!(left.iter().all(stays), "{left:?}");
    let number = std::fs::read_dir(scene.root.path().join("one/host")).unwrap().count();
    assert_eq!(number, 0, "a directory of the host is left");

    // The other host is told, and can forget it.
    assert_eq!(refused(scene.host("two").pool("gold")).0, ErrorKind::NotFound);
    // Another pool in its place is another pool.
    let new = one.pool_create_in_bucket("silver", URL, &options()).unwrap();
    new.create("vm", &CreateOptions::sized(1 << 20)).unwrap();
    let (kind, why) = refused(scene.host("two").pool("gold"));
    assert_eq!(kind, ErrorKind::Invalid, "{why}");
    assert!(why.contains("it is another one"), "{why}");
    let two = scene.host("two");
    two.pool_detach("gold").unwrap();
    two.pool_attach_bucket("gold", URL, &options()).unwrap();
}

#[test]
fn any_host_collects_and_repairs_a_pool_in_a_bucket() {
    let scene = Scene::new();
    let (one, two) = (scene.host("one"), scene.host("two"));
    let pool = one.pool_create_in_bucket("gold", URL, &options()).unwrap();
    let there = two.pool_attach_bucket("gold", URL, &options()).unwrap();
    let images = ["kept", "gone"].map(|name| {
        let image = pool.create(name, &CreateOptions::sized(1 << 20)).unwrap();
        let mut open = pool.open(image).unwrap();
        open.write_at(0, &[7; 4096]).unwrap();
        open.snapshot("s").unwrap();
        open.protect("s").unwrap();
        open.close().unwrap();
        image
    });
    // What a clone shares is left to a collection.
    let clone = pool.snapshot(images[1], "s");
    let clone = clone.clone_to(&pool, "clone", &marcot::CloneOptions::default()).unwrap();
    let mut open = pool.open(clone).unwrap();
    open.flatten().unwrap();
    open.close().unwrap();
    let mut open = pool.open(images[1]).unwrap();
    open.unprotect("s").unwrap();
    open.remove_snapshot("s", false).unwrap();
    open.close().unwrap();
    for image in [images[1], clone] {
        one.remove_image(&pool, image, &mut |_, _| {}).unwrap();
    }
    let segments = |image: marcot::ImageId| {
        let prefix = format!("segments/{image}/");
        scene.buckets.keys(URL).iter().filter(|key| key.starts_with(&prefix)).count()
    };
    assert!(segments(images[1]) > 0, "nothing is left to a collection");

    two.gc(&there, &mut |_, _| {}).unwrap();
    assert_eq!(segments(images[1]), 0);
    let mut read = [0; 4096];
    there.open(images[0]).unwrap().read_at(0, &mut read).unwrap();
    assert_eq!(read, [7; 4096]);
    let repair = CheckOptions { repair: true, ..CheckOptions::default() };
    let report = two.check(&there, &repair, &mut |_, _| {}).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

#[test]
fn a_removal_that_was_interrupted_is_finished_by_another() {
    let scene = Scene::new();
    let one = scene.host("one");
    let pool = one.pool_create_in_bucket("gold", URL, &options()).unwrap();
    pool.namespace_create("team").unwrap();
    drop(pool);
    let note = scene.root.path().join("one/attached/gold");
    let kept = std::fs::read(&note).unwrap();
    one.pool_remove("gold").unwrap();
    assert!(!note.exists());
    std::fs::write(&note, kept).unwrap();
    let one = scene.host("one");
    assert_eq!(refused(one.pool("gold")).0, ErrorKind::NotFound);
    one.pool_remove("gold").unwrap();
    assert!(!note.exists());
}

#[test]
fn a_detached_pool_stays_and_is_attached_again() {
    let scene = Scene::new();
    let one = scene.host("one");
    let pool = one.pool_create_in_bucket("gold", URL, &options()).unwrap();
    let image = pool.create("vm", &CreateOptions::sized(1 << 20)).unwrap();
    drop(pool);
    one.pool_detach("gold").unwrap();
    assert_eq!(refused(one.pool("gold")).0, ErrorKind::NotFound);
    let pool = one.pool_attach_bucket("back", URL, &options()).unwrap();
    assert!(!pool.attached());
    assert_eq!(pool.find("vm").unwrap(), image);
    one.pool_init("back").unwrap();
    assert_eq!(one.pool_stats(&pool).unwrap().named.images, 1);
}

#[test]
fn what_cannot_be_right_is_refused_before_anything_is_done() {
    let scene = Scene::new();
    let one = scene.host("one");
    let mut small = options();
    small.cache_bytes = Some(1 << 20);
    let mut endpoint = options();
    endpoint.endpoint = Some("not a URL".into());
    for (url, options) in [
        ("ftp://bucket/prefix", options()),
        ("s3://", options()),
        ("s3://user:secret@bucket/prefix", options()),
        (URL, small),
        (URL, endpoint),
    ] {
        let (kind, why) = refused(one.pool_create_in_bucket("gold", url, &options));
        assert_eq!(kind, ErrorKind::Invalid, "{why}");
        assert!(!why.contains("secret"), "{why}");
    }
    assert_eq!(one.pools().unwrap(), ["rbd"]);
    assert!(scene.buckets.keys(URL).is_empty());
    // A cache directory that holds something else.
    let busy = scene.root.path().join("busy");
    std::fs::create_dir(&busy).unwrap();
    std::fs::write(busy.join("thesis.odt"), "text").unwrap();
    let mut cache = options();
    cache.cache = Some(busy);
    let (kind, why) = refused(one.pool_create_in_bucket("gold", URL, &cache));
    assert_eq!(kind, ErrorKind::Invalid, "{why}");
    assert!(scene.buckets.keys(URL).is_empty());
}

#[test]
fn a_clone_of_a_template_in_a_bucket_lies_in_a_local_pool() {
    let scene = Scene::new();
    let (one, two) = (scene.host("one"), scene.host("two"));
    let pool = one.pool_create_in_bucket("gold", URL, &options()).unwrap();
    let image = pool.create("debian", &CreateOptions::sized(1 << 20)).unwrap();
    let mut open = pool.open(image).unwrap();
    open.write_at(0, &[9; 8192]).unwrap();
    open.snapshot("12").unwrap();
    open.protect("12").unwrap();
    open.close().unwrap();

    let template = two.pool_attach_bucket("gold", URL, &options()).unwrap();
    let vms = two.pool_create("vms", &PoolOptions::default()).unwrap();
    let clone = template.snapshot(image, "12");
    let clone = clone.clone_to(&vms, "web", &marcot::CloneOptions::default()).unwrap();
    let mut open = vms.open(clone).unwrap();
    let mut read = [0; 8192];
    open.read_at(0, &mut read).unwrap();
    assert_eq!(read, [9; 8192]);
    open.close().unwrap();
    // The host that made the template sees the child by its marker.
    let children = one.children(&pool, image, None).unwrap();
    assert_eq!(children.len(), 1, "{children:?}");
    let mut open = pool.open(image).unwrap();
    assert_eq!(open.unprotect("12").unwrap_err().kind(), ErrorKind::HasChildren);
    open.close().unwrap();
}
