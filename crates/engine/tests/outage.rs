//! Images in a bucket whose service goes away and comes back.

#![expect(clippy::disallowed_methods, reason = "these tests wait for threads of the system")]

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use marcot::{
    BlockDevice, BucketOptions, CloneOptions, Completion, CreateOptions, ErrorKind, Image, ImageId,
    Limits, Patience, Pool, PoolOptions, Store, World, Write,
};
use marcot_backend::local::LocalHome;
use marcot_backend::object::home::{Connect, Connected, patient_policy};
use marcot_backend::object::memory::MemoryService;
use marcot_backend::object::service::{
    Condition, Object, ObjectService, Page, ServiceError, Version,
};
use marcot_backend::object::{Outage, Policy, Retry, Settled};

const URL: &str = "s3://bucket/prefix";
const BLOCK: u64 = 4096;
/// How long guests of a test wait.
const IO_TIMEOUT: Duration = Duration::from_millis(300);
/// Longer than anything takes that does not hang.
const HANGS: Duration = Duration::from_secs(60);

/// A service that can be away.
#[derive(Default)]
struct Away {
    memory: MemoryService,
    away: AtomicBool,
    asked: AtomicU64,
}

impl Away {
    fn set(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    fn here(&self) -> Result<(), ServiceError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match self.away.load(Ordering::SeqCst) {
            true => Err(ServiceError::Unknown("nobody answers".to_owned())),
            false => Ok(()),
        }
    }
}

impl ObjectService for Away {
    fn get(&self, key: &str) -> Result<Object, ServiceError> {
        self.here().and_then(|()| self.memory.get(key))
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ServiceError> {
        self.here().and_then(|()| self.memory.get_range(key, range))
    }

    fn put(&self, key: &str, bytes: &[u8], condition: &Condition) -> Result<Version, ServiceError> {
        self.here().and_then(|()| self.memory.put(key, bytes, condition))
    }

    fn remove(&self, key: &str) -> Result<(), ServiceError> {
        self.here().and_then(|()| self.memory.remove(key))
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, ServiceError> {
        self.here().and_then(|()| self.memory.list(prefix, after))
    }

    fn show(&self, key: &str) -> String {
        format!("{URL}/{key}")
    }
}

/// The service, and hosts that use it.
struct Scene {
    root: tempfile::TempDir,
    service: Arc<Away>,
    outages: Mutex<HashMap<String, Arc<Outage>>>,
}

impl Scene {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        Self { root, service: Arc::default(), outages: Mutex::default() }
    }

    fn connect(&self, host: &str) -> Connect {
        let outage = Arc::clone(self.outages.lock().unwrap().entry(host.to_owned()).or_default());
        let service: Arc<dyn ObjectService> = Arc::clone(&self.service) as _;
        Arc::new(move |location, world| {
            let name = location.to_string();
            let retry = Retry::new(world, patient_policy(), name, Arc::clone(&outage));
            let command = retry.with_policy(Policy::command());
            Ok(Connected {
                service: Arc::clone(&service),
                settled: Settled::new(Arc::clone(&service), command),
                patient: retry,
                set_dialect: Box::new(|_| ()),
            })
        })
    }

    fn host(&self, name: &str, patience: Patience, limits: Limits) -> Store {
        let (world, limits) = (World::system(), Limits { patience, ..limits });
        let directory = self.root.path().join(name);
        let home = LocalHome::open_with(&world, &directory, self.connect(name), patience).unwrap();
        Store::open_home(world, Arc::new(home), &directory, limits).unwrap()
    }

    /// A host whose guests wait for a limited time, with the pool that it makes.
    fn owner(&self, patience: Patience, limits: Limits) -> (Store, ImageId, Image) {
        let store = self.host("one", patience, limits);
        let pool = store.pool_create_in_bucket("gold", URL, &BucketOptions::default()).unwrap();
        let id = pool.create("vm", &CreateOptions::sized(64 << 20)).unwrap();
        let image = pool.open(id).unwrap();
        (store, id, image)
    }

    /// The image as another host finds it.
    fn elsewhere(&self, id: ImageId, blocks: Range<u64>) {
        let store = self.host("two", Patience::Command, Limits::default());
        let attached = store.pool_attach_bucket("gold", URL, &BucketOptions::default());
        let mut image = attached.unwrap().open(id).unwrap();
        check(&mut image, blocks);
    }
}

fn limited() -> Patience {
    Patience::Guests { io_timeout: Some(IO_TIMEOUT) }
}

fn content(block: u64) -> Vec<u8> {
    (0..BLOCK).map(|i| (block * 31 + i % 251) as u8 | 1).collect()
}

fn check(image: &mut Image, blocks: Range<u64>) {
    for block in blocks {
        let mut found = vec![0; BLOCK as usize];
        image.read_at(block * BLOCK, &mut found).unwrap();
        assert!(found == content(block), "block {block}");
    }
}

fn write(image: &mut Image, blocks: Range<u64>) {
    blocks.for_each(|block| image.write_at(block * BLOCK, &content(block)).unwrap());
}

/// What becomes of a flush.
#[derive(Debug)]
enum Flushed {
    Done,
    Late(String),
}

/// Waits for the next news of flushes.
fn await_flush(image: &mut Image) -> Flushed {
    let start = Instant::now();
    loop {
        match image.take_completion() {
            Some(Completion::Flushed(outcome)) => {
                outcome.unwrap();
                return Flushed::Done;
            }
            Some(Completion::Unflushed(_, error)) => {
                assert_eq!(error.kind(), ErrorKind::Unreachable);
                return Flushed::Late(error.sentence().to_string());
            }
            _ => assert!(start.elapsed() < HANGS, "the flush hangs"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn flush(image: &mut Image) -> Flushed {
    match image.flush_async().unwrap() {
        None => Flushed::Done,
        Some(_) => await_flush(image),
    }
}

/// Repeats what fails until it succeeds: the service is asked again only after a moment.
fn succeeds<T>(mut work: impl FnMut() -> marcot::Result<T>) -> T {
    let start = Instant::now();
    loop {
        match work() {
            Ok(value) => return value,
            Err(error) => assert!(start.elapsed() < HANGS, "{}", error.sentence()),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_read_fails_with_the_reason_after_its_time_and_works_when_the_service_is_back() {
    let scene = Scene::new();
    let (store, id, mut image) = scene.owner(Patience::Command, Limits::default());
    write(&mut image, 0..600);
    image.close().unwrap();
    drop(store);
    let store = scene.host("two", limited(), Limits::default());
    let pool = store.pool_attach_bucket("gold", URL, &BucketOptions::default()).unwrap();
    let mut image = pool.open(id).unwrap();
    scene.service.set(true);
    let mut buffer = vec![0xEE; BLOCK as usize];
    let error = image.read_at(0, &mut buffer).unwrap_err();
    let sentence = error.sentence().to_string();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{sentence}");
    assert!(sentence.contains("nobody answers") && sentence.contains(URL), "{sentence}");
    // Those that follow do not wait for their time again, and hardly ask.
    let asked = scene.service.asked();
    for block in 0..200 {
        assert_eq!(
            image.read_at(block * BLOCK, &mut buffer).unwrap_err().kind(),
            ErrorKind::Unreachable
        );
    }
    assert!(scene.service.asked() - asked <= 20, "{}", scene.service.asked() - asked);
    scene.service.set(false);
    succeeds(|| image.read_at(0, &mut buffer));
    check(&mut image, 0..600);
    image.close().unwrap();
}

#[test]
fn a_flush_that_waits_too_long_fails_and_the_image_goes_on() {
    let scene = Scene::new();
    let (_store, id, mut image) = scene.owner(limited(), Limits::default());
    write(&mut image, 0..10);
    assert!(matches!(flush(&mut image), Flushed::Done));
    scene.service.set(true);
    write(&mut image, 10..20);
    let Flushed::Late(why) = flush(&mut image) else { panic!("it cannot be durable") };
    assert!(why.contains("gold/vm") && why.contains("nobody answers"), "{why}");
    // It goes on without the service, and flushes fail again and again.
    write(&mut image, 20..30);
    check(&mut image, 0..30);
    assert!(matches!(flush(&mut image), Flushed::Late(_)));
    assert!(matches!(flush(&mut image), Flushed::Late(_)));
    scene.service.set(false);
    write(&mut image, 30..40);
    let start = Instant::now();
    while !matches!(flush(&mut image), Flushed::Done) {
        assert!(start.elapsed() < HANGS, "the flush never succeeds");
    }
    check(&mut image, 0..40);
    // Nothing was lost and nothing is poisoned.
    image.close().unwrap();
    scene.elsewhere(id, 0..40);
}

#[test]
fn without_a_time_out_a_flush_and_a_read_wait_for_the_end_of_the_outage() {
    let scene = Scene::new();
    let (_store, id, mut image) =
        scene.owner(Patience::Guests { io_timeout: None }, Limits::default());
    write(&mut image, 0..10);
    scene.service.set(true);
    let service = Arc::clone(&scene.service);
    let back = std::thread::spawn(move || {
        // By then both have failed several times.
        let start = Instant::now();
        while service.asked() < 40 && start.elapsed() < 4 * IO_TIMEOUT {
            std::thread::sleep(Duration::from_millis(10));
        }
        service.set(false);
    });
    assert!(matches!(flush(&mut image), Flushed::Done));
    back.join().unwrap();
    check(&mut image, 0..10);
    image.close().unwrap();
    scene.elsewhere(id, 0..10);
}

#[test]
fn writes_are_acknowledged_up_to_the_bound_of_the_log_and_then_fail_in_time() {
    let limits = Limits { checkpoint_log_bytes: 1 << 20, segment_slots: 64, ..Limits::default() };
    let scene = Scene::new();
    let (_store, id, mut image) = scene.owner(limited(), limits);
    write(&mut image, 0..1);
    scene.service.set(true);
    let (mut acknowledged, mut failed) = (1, 0);
    let start = Instant::now();
    while failed < 20 {
        assert!(start.elapsed() < HANGS, "writes neither fail nor succeed");
        match image.write_at(acknowledged * BLOCK, &content(acknowledged)) {
            Ok(()) => acknowledged += 1,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unreachable);
                let sentence = error.sentence().to_string();
                assert!(sentence.contains("nobody answers"), "{sentence}");
                failed += 1;
            }
        }
    }
    let (bytes, bound) = (acknowledged * BLOCK, limits.log_bytes_max());
    assert!(bytes >= bound / 2 && bytes <= 2 * bound, "{bytes} of {bound}");
    // What was acknowledged is read meanwhile.
    check(&mut image, 0..acknowledged);
    scene.service.set(false);
    let block = acknowledged;
    succeeds(|| image.write_at(block * BLOCK, &content(block)));
    check(&mut image, 0..block + 1);
    succeeds(|| image.flush());
    image.close().unwrap();
    scene.elsewhere(id, 0..block + 1);
}

#[test]
fn a_command_that_changes_the_head_fails_in_time_and_changes_nothing() {
    let scene = Scene::new();
    let (store, id, mut image) = scene.owner(limited(), Limits::default());
    write(&mut image, 0..10);
    scene.service.set(true);
    let error = image.snapshot("now").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{}", error.sentence());
    scene.service.set(false);
    succeeds(|| image.flush());
    image.close().unwrap();
    assert!(store.pool("gold").unwrap().info(id).unwrap().snapshots.is_empty());
    scene.elsewhere(id, 0..10);
}

/// A local clone of a template in the bucket, on a host whose guests wait for a limited time.
fn local_clone(scene: &Scene) -> (Store, Pool, ImageId) {
    let (_store, id, mut template) = scene.owner(Patience::Command, Limits::default());
    write(&mut template, 0..600);
    template.snapshot("s").unwrap();
    template.protect("s").unwrap();
    template.close().unwrap();
    let store = scene.host("two", limited(), Limits::default());
    let gold = store.pool_attach_bucket("gold", URL, &BucketOptions::default()).unwrap();
    let vms = store.pool_create("vms", &PoolOptions::default()).unwrap();
    let clone = gold.snapshot(id, "s").clone_to(&vms, "web", &CloneOptions::default()).unwrap();
    (store, vms, clone)
}

#[test]
fn a_flatten_in_an_outage_fails_in_time_calls_nothing_damaged_and_is_done_later() {
    for snapshots in [false, true] {
        let scene = Scene::new();
        let (store, vms, id) = local_clone(&scene);
        let mut clone = vms.open(id).unwrap();
        clone.write_at(0, &content(0)).unwrap();
        if snapshots {
            clone.snapshot("t").unwrap();
        }
        clone.flush().unwrap();
        scene.service.set(true);
        let error = clone.flatten().unwrap_err();
        let sentence = error.sentence().to_string();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{sentence}");
        assert!(sentence.contains("nobody answers"), "{sentence}");
        scene.service.set(false);
        succeeds(|| clone.flatten());
        // The bucket is not needed any more.
        scene.service.set(true);
        check(&mut clone, 0..600);
        clone.close().unwrap();
        drop((vms, store));
        let store = scene.host("two", limited(), Limits::default());
        let vms = store.pool("vms").unwrap();
        check(&mut vms.open(id).unwrap(), 0..600);
    }
}

/// Ends an outage after a long time, so that what hangs in it does not hang for ever.
struct Limit(Option<(mpsc::Sender<()>, std::thread::JoinHandle<()>)>);

impl Limit {
    fn of(service: &Arc<Away>) -> Self {
        let ((over, ended), service) = (mpsc::channel(), Arc::clone(service));
        let thread = std::thread::spawn(move || {
            if ended.recv_timeout(HANGS / 3) == Err(mpsc::RecvTimeoutError::Timeout) {
                service.set(false);
            }
        });
        Self(Some((over, thread)))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Some((over, thread)) = self.0.take() {
            drop(over);
            thread.join().unwrap();
        }
    }
}

/// An image that was opened again on the host of a process that was killed: blocks `0..10` were flushed before, and
/// `10..20` lie in the log on this host only.
fn killed_and_opened_again(scene: &Scene, patience: Patience) -> (Store, ImageId, Image) {
    let (store, id, mut image) = scene.owner(patience, Limits::default());
    write(&mut image, 0..10);
    image.flush().unwrap();
    write(&mut image, 10..20);
    drop(image);
    let mut image = store.pool("gold").unwrap().open(id).unwrap();
    check(&mut image, 0..20);
    (store, id, image)
}

/// Parks a write of a block, which begins the log.
fn park(image: &mut Image, block: u64) -> u64 {
    let parked = image.park_write(Write { offset: block * BLOCK, data: &content(block) });
    parked.expect("it waits for the service")
}

fn await_parked(image: &mut Image, number: u64) -> marcot::Result<()> {
    let start = Instant::now();
    loop {
        match image.take_completion() {
            Some(Completion::Parked(ended, outcome)) if ended == number => return outcome,
            _ => assert!(start.elapsed() < HANGS, "the parked write hangs"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_waits_for_the_checkpoint_after_a_crash_fails_in_time_and_reads_go_on() {
    let scene = Scene::new();
    let (_store, id, mut image) = killed_and_opened_again(&scene, limited());
    scene.service.set(true);
    let limit = Limit::of(&scene.service);
    let parked = park(&mut image, 20);
    // What was replayed must reach other hosts with a flush.
    let error = image.flush_async().unwrap_err();
    let sentence = error.sentence().to_string();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{sentence}");
    assert!(sentence.contains("gold/vm") && sentence.contains("nobody answers"), "{sentence}");
    check(&mut image, 0..20);
    assert_eq!(await_parked(&mut image, parked).unwrap_err().kind(), ErrorKind::Unreachable);
    // Nor does anything wait for longer that cannot be parked, or a command.
    let refused = [
        image.flush().unwrap_err(),
        image.write_at(21 * BLOCK, &content(21)).unwrap_err(),
        image.discard(0, BLOCK).unwrap_err(),
        image.snapshot("now").unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{}", error.sentence());
    }
    check(&mut image, 0..20);
    assert!(scene.service.away.load(Ordering::SeqCst), "they waited for the service");
    drop(limit);
    scene.service.set(false);
    succeeds(|| image.flush());
    succeeds(|| image.write_at(20 * BLOCK, &content(20)));
    succeeds(|| image.flush());
    check(&mut image, 0..21);
    image.close().unwrap();
    scene.elsewhere(id, 0..21);
}

#[test]
fn a_flush_does_not_wait_for_a_log_that_begins_where_nothing_is_left_to_store() {
    let scene = Scene::new();
    let patience = Patience::Guests { io_timeout: None };
    let (_store, id, mut image) = killed_and_opened_again(&scene, patience);
    // That stores what was replayed.
    image.snapshot("now").unwrap();
    scene.service.set(true);
    let limit = Limit::of(&scene.service);
    let parked = park(&mut image, 20);
    assert!(matches!(flush(&mut image), Flushed::Done));
    assert!(scene.service.away.load(Ordering::SeqCst), "the flush waited for the service");
    drop(limit);
    scene.service.set(false);
    await_parked(&mut image, parked).unwrap();
    image.close().unwrap();
    scene.elsewhere(id, 0..21);
}
