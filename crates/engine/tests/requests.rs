//! What `docs/scale.md` says of requests, counted by the service that answers them.

#![expect(clippy::disallowed_methods, reason = "these tests wait for threads of the system")]

mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use marcot::{
    BlockDevice, BucketOptions, CloneOptions, CreateOptions, Flush, Housekeeping, Image, Limits,
    Patience, Pool, PoolOptions, Store, World,
};
use marcot_backend::local::LocalHome;
use marcot_backend::object::home::{Connect, Connected};
use marcot_backend::object::memory::MemoryService;
use marcot_backend::object::service::{
    Condition, Object, ObjectService, Page, ServiceError, Version,
};
use marcot_backend::object::{Policy, Retry, Settled};
use marcot_store::Clock;

use support::pattern;

const URL: &str = "s3://bucket/prefix";
const MIB: u64 = 1 << 20;

/// A clock that a test moves.
#[derive(Default)]
struct Hands(AtomicU64);

impl Hands {
    fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }
}

impl Clock for Hands {
    fn now_s(&self) -> i64 {
        1_800_000_000 + self.uptime().as_secs() as i64
    }

    fn uptime(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn pause(&self, duration: Duration) {
        self.advance(duration);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A service that counts requests by kind and first part of the key.
#[derive(Default)]
struct Counting {
    memory: MemoryService,
    counts: Mutex<BTreeMap<String, u64>>,
}

impl Counting {
    fn count(&self, request: &str, key: &str) {
        let mut parts = key.split('/');
        let first = parts.next().unwrap_or_default();
        // Segments of data, map and table are told apart by a letter.
        let letter = parts.nth(1).filter(|_| first == "segments").map(|name| &name[..1]);
        let kind = [Some(request), Some(first), letter].into_iter().flatten().collect::<Vec<_>>();
        let kind = kind.join(" ");
        *self.counts.lock().unwrap().entry(kind).or_default() += 1;
    }

    /// The counts since the last call.
    fn take(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut *self.counts.lock().unwrap())
    }
}

impl ObjectService for Counting {
    fn get(&self, key: &str) -> Result<Object, ServiceError> {
        self.count("get", key);
        self.memory.get(key)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ServiceError> {
        self.count("get", key);
        self.memory.get_range(key, range)
    }

    fn put(&self, key: &str, bytes: &[u8], condition: &Condition) -> Result<Version, ServiceError> {
        self.count("put", key);
        self.memory.put(key, bytes, condition)
    }

    fn remove(&self, key: &str) -> Result<(), ServiceError> {
        self.count("remove", key);
        self.memory.remove(key)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, ServiceError> {
        self.count("list", prefix);
        self.memory.list(prefix, after)
    }

    fn show(&self, key: &str) -> String {
        self.memory.show(key)
    }
}

struct Scene {
    root: tempfile::TempDir,
    service: Arc<Counting>,
    hands: Arc<Hands>,
    flush: Flush,
}

impl Scene {
    fn new(flush: Flush) -> Self {
        let root = tempfile::tempdir().unwrap();
        Self { root, service: Arc::default(), hands: Arc::default(), flush }
    }

    fn connect(&self) -> Connect {
        let service = Arc::clone(&self.service);
        Arc::new(move |location, world| {
            let service: Arc<dyn ObjectService> = Arc::clone(&service) as _;
            let retry = Retry::new(world, Policy::command(), location.to_string(), Arc::default());
            let settled = Settled::new(Arc::clone(&service), retry.clone());
            Ok(Connected { service, settled, patient: retry, set_dialect: Box::new(|_| ()) })
        })
    }

    fn host(&self, name: &str) -> Store {
        let world = World { clock: Arc::clone(&self.hands) as _, ..World::system() };
        let directory: &Path = &self.root.path().join(name);
        let home =
            LocalHome::open_with(&world, directory, self.connect(), Patience::Command).unwrap();
        Store::open_home(world, Arc::new(home), directory, Limits::default()).unwrap()
    }

    fn options(&self) -> BucketOptions {
        let mut options = BucketOptions::default();
        options.flush = self.flush;
        options
    }

    fn pool(&self) -> (Store, Pool) {
        let store = self.host("one");
        let pool = store.pool_create_in_bucket("gold", URL, &self.options()).unwrap();
        (store, pool)
    }

    /// Does all background work for so many seconds.
    fn pass(&self, image: &mut Image, seconds: u64) {
        for _ in 0..seconds {
            self.hands.advance(Duration::from_secs(1));
            while image.background_step().unwrap() {}
            while image.take_completion().is_some() {}
            // What goes to the service is sent by threads.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Does background work until nothing is sent any more. On a busy machine, the threads need longer for what was begun.
    fn await_quiet(&self, image: &mut Image) {
        self.service.take();
        let is_quiet = (0..100).any(|_| {
            self.pass(image, 30);
            self.service.take().is_empty()
        });
        assert!(is_quiet, "there is always something to send");
    }
}

fn counts<const N: usize>(expected: [(&str, u64); N]) -> BTreeMap<String, u64> {
    expected.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect()
}

/// A template of one block with a protected snapshot.
fn template(pool: &Pool) -> marcot::ImageId {
    let id = pool.create("debian", &CreateOptions::sized(MIB)).unwrap();
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &[9; 4096]).unwrap();
    image.snapshot("12").unwrap();
    image.protect("12").unwrap();
    image.close().unwrap();
    id
}

#[test]
fn an_idle_image_sends_nothing_in_ten_minutes() {
    for flush in [Flush::Remote, Flush::Local] {
        let scene = Scene::new(flush);
        let (_store, pool) = scene.pool();
        let id = pool.create("vm", &CreateOptions::sized(64 * MIB)).unwrap();
        let mut image = pool.open(id).unwrap();
        for block in 0..500 {
            image.write_at(block * 4096, &pattern(block as u8, 4096)).unwrap();
        }
        image.flush().unwrap();
        // What was written lately may still be tidied.
        scene.pass(&mut image, 30);
        image.give_space_back();
        scene.pass(&mut image, 30);
        image.rest().unwrap();
        scene.await_quiet(&mut image);
        scene.pass(&mut image, 600);
        assert_eq!(scene.service.take(), counts([]), "{flush:?}");
        image.close().unwrap();
    }
}

#[test]
fn a_local_clone_takes_three_requests_and_an_unprotect_two_puts_and_a_list() {
    let scene = Scene::new(Flush::Remote);
    let (one, pool) = scene.pool();
    let id = template(&pool);
    let two = scene.host("two");
    let gold = two.pool_attach_bucket("gold", URL, &scene.options()).unwrap();
    let vms = two.pool_create("vms", &PoolOptions::default()).unwrap();
    gold.find("debian").unwrap();
    scene.service.take();
    let snapshot = gold.snapshot(id, "12");
    snapshot.clone_to(&vms, "web", &CloneOptions::default()).unwrap();
    assert_eq!(scene.service.take(), counts([("get images", 2), ("put children", 1)]));
    assert_eq!(one.children(&pool, id, None).unwrap().len(), 1);
    assert_eq!(scene.service.take().get("list children"), Some(&1));
    let clone = vms.find("web").unwrap();
    two.remove_image(&vms, clone, &mut |_, _| {}).unwrap();
    let mut image = pool.open(id).unwrap();
    scene.service.take();
    image.unprotect("12").unwrap();
    let sent = scene.service.take();
    let puts: u64 = sent.iter().filter(|(kind, _)| kind.starts_with("put")).map(|(_, n)| n).sum();
    assert_eq!((puts, sent.get("list children")), (2, Some(&1)), "{sent:?}");
    image.close().unwrap();
}

#[test]
fn data_takes_a_put_for_each_segment_and_flushes_one_for_all_who_wait() {
    let scene = Scene::new(Flush::Remote);
    let (_store, pool) = scene.pool();
    let id = pool.create("vm", &CreateOptions::sized(512 * MIB)).unwrap();
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &[1; 4096]).unwrap();
    image.flush().unwrap();
    scene.service.take();
    for _ in 0..8 {
        image.write_at(4096, &[2; 4096]).unwrap();
        image.flush_async().unwrap();
    }
    image.flush().unwrap();
    let sent = scene.service.take();
    let flushes = sent.get("put log").copied().unwrap_or_default();
    assert!((1..=2).contains(&flushes), "nine flushes at once: {sent:?}");
    let mebibytes = 256;
    // Nothing is overwritten, so that compaction has nothing to copy.
    for mib in 1..=mebibytes {
        image.write_at(mib * MIB, &pattern(mib as u8, MIB as usize)).unwrap();
        while image.background_step().unwrap() {}
    }
    image.close().unwrap();
    let sent = scene.service.take();
    let count = |kind: &str| sent.get(kind).copied().unwrap_or_default();
    // A checkpoint closes the open segment, and that of copies. It also makes one for the map, and one for its table.
    let (full, checkpoints) = (mebibytes / 32 + 1, count("put images"));
    let data = count("put segments d");
    // A write that does not fit into the rest of a segment begins the next one.
    assert!((full..=full + 1 + 2 * checkpoints).contains(&data), "{sent:?}");
    assert!(count("put segments m") <= checkpoints, "{sent:?}");
    assert!(count("put segments t") <= checkpoints, "{sent:?}");
}

#[test]
fn with_local_flushes_the_service_gets_the_log_in_parts_of_8_mib_or_each_10_seconds() {
    let scene = Scene::new(Flush::Local);
    let (_store, pool) = scene.pool();
    let id = pool.create("vm", &CreateOptions::sized(512 * MIB)).unwrap();
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &[1; 4096]).unwrap();
    scene.pass(&mut image, 30);
    scene.service.take();
    // A little in each of 100 seconds.
    for second in 0..100 {
        image.write_at(4096 * second, &[2; 4096]).unwrap();
        image.flush().unwrap();
        scene.pass(&mut image, 1);
    }
    scene.pass(&mut image, 30);
    let slowly = scene.service.take().get("put log").copied().unwrap_or_default();
    // On a busy machine a part may still be on its way when the next one is due.
    assert!((5..=11).contains(&slowly), "{slowly} parts in 100 s");
    // Much at once.
    for mib in 0..64 {
        image.write_at(mib * MIB, &pattern(mib as u8, MIB as usize)).unwrap();
        while image.background_step().unwrap() {}
    }
    scene.pass(&mut image, 30);
    let sent = scene.service.take();
    let at_once = sent.get("put log").copied().unwrap_or_default();
    // A shipment begins with 7 MiB. On a busy machine it may begin later, with a little more than fits into a part, and the
    // rest of each shipment is a part too.
    let (parts, rests) = (64 / 8 + 2, 64 / 7);
    assert!((1..=parts + rests).contains(&at_once), "{sent:?}");
    image.close().unwrap();
}

#[test]
fn a_pass_of_gc_sends_what_the_formula_says() {
    let scene = Scene::new(Flush::Remote);
    let (store, pool) = scene.pool();
    let id = template(&pool);
    const HEADS: u64 = 1200;
    for number in 1..HEADS {
        let name = format!("vm-{number}");
        let snapshot = pool.snapshot(id, "12");
        snapshot.clone_to(&pool, name.as_str(), &CloneOptions::default()).unwrap();
    }
    let stored = scene.service.memory.list("segments/", None).unwrap();
    assert!(!stored.more);
    store.gc(&pool, &mut |_, _| {}).unwrap();
    scene.service.take();
    store.gc(&pool, &mut |_, _| {}).unwrap();
    let sent = scene.service.take();
    let count = |kind: &str| sent.get(kind).copied().unwrap_or_default();
    let pages = |objects: u64| objects.div_ceil(1000);
    let stored = stored.objects.len() as u64;
    let expected = counts([
        ("list segments", 2 * pages(stored)),
        ("list images", 5 * pages(HEADS)),
        ("list children", pages(HEADS - 1)),
        ("get images", HEADS),
        // Of images that were never written: of some one by one, and then all.
        ("list names", 1),
        ("get names", 128),
    ]);
    for (kind, expected) in &expected {
        assert!(count(kind).abs_diff(*expected) * 20 <= *expected, "{kind}: {sent:?}");
    }
    let all: u64 = sent.values().sum();
    assert!(all.abs_diff(expected.values().sum()) * 20 <= all, "{sent:?}");
}
