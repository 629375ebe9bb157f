//! Hosts that use the same images, whose segments and logs lie in an object store.

#![expect(clippy::disallowed_methods, reason = "these tests wait for threads of the system")]

mod support;

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use support::bucket::{Bucket, Host};
use support::hosts::{BLOCK, BLOCKS, Hosts, assert_block, write};
use support::{assert_sound, pattern};

use marcot::{
    BlockDevice, CloneOptions, Completion, ErrorKind, Housekeeping, Image, Limits, Namespace,
};
use marcot_backend::object::memory::MemoryService;
use marcot_backend::object::service::{
    Condition, Object, ObjectService, Page, ServiceError, Version,
};
use marcot_store::{Job, Running, Workers, World};

#[test]
fn what_one_host_has_closed_another_host_reads_and_goes_on_with() {
    let hosts = Hosts::new(2, true);
    let id = hosts.image();
    for round in 0..4 {
        let mut image = hosts.pool(round % 2).open(id).unwrap();
        for block in 0..BLOCKS {
            write(&mut image, block, (round as u8).wrapping_add(block as u8));
        }
        image.close().unwrap();
        let mut other = hosts.pool((round + 1) % 2).open_read_only(id).unwrap();
        for block in 0..BLOCKS {
            assert_block(&mut other, block, (round as u8).wrapping_add(block as u8));
        }
    }
    hosts.stores.iter().zip(0..).for_each(|(store, host)| assert_sound(store, &hosts.pool(host)));
}

#[test]
fn an_image_that_another_host_has_open_is_not_opened() {
    let hosts = Hosts::new(2, true);
    let id = hosts.image();
    let mut image = hosts.pool(0).open(id).unwrap();
    write(&mut image, 1, 1);
    let refused = hosts.pool(1).open(id).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.to_string().contains("host-1"), "{refused}");
    let kept = hosts.stores[1].remove_image(&hosts.pool(1), id, &mut |_, _| {}).unwrap_err();
    assert_eq!(kept.kind(), ErrorKind::Busy, "{kept}");
    image.close().unwrap();
    hosts.pool(1).open(id).unwrap().close().unwrap();
}

#[test]
fn after_a_takeover_everything_flushed_is_there_and_the_owner_before_can_make_nothing_durable() {
    let hosts = Hosts::new(3, true);
    let id = hosts.image();
    let mut first = hosts.pool(0).open(id).unwrap();
    for block in 0..BLOCKS {
        write(&mut first, block, 7);
    }
    first.flush().unwrap();
    for block in 0..20 {
        write(&mut first, block, 8);
        first.flush().unwrap();
    }
    write(&mut first, 150, 9);
    let mut second = hosts.pool(1).take_over(id).unwrap();
    for block in 0..BLOCKS {
        assert_block(&mut second, block, if block < 20 { 8 } else { 7 });
    }
    assert_eq!(first.flush().unwrap_err().kind(), ErrorKind::Fenced);
    assert!(first.close().is_err());
    for block in 0..BLOCKS {
        write(&mut second, block, 10);
    }
    second.flush().unwrap();
    let mut third = hosts.pool(2).take_over(id).unwrap();
    (0..BLOCKS).for_each(|block| assert_block(&mut third, block, 10));
    write(&mut second, 3, 11);
    assert_eq!(second.flush().unwrap_err().kind(), ErrorKind::Fenced);
    third.close().unwrap();
    drop(second);
    hosts.stores.iter().zip(0..).for_each(|(store, host)| assert_sound(store, &hosts.pool(host)));
}

#[test]
fn a_process_that_was_killed_loses_nothing_on_its_own_host() {
    for ships_flushes in [true, false] {
        let hosts = Hosts::new(1, ships_flushes);
        let id = hosts.image();
        let mut image = hosts.pool(0).open(id).unwrap();
        for block in 0..BLOCKS {
            write(&mut image, block, 3);
        }
        image.flush().unwrap();
        write(&mut image, 0, 4);
        drop(image);
        let mut image = hosts.pool(0).open(id).unwrap();
        assert_block(&mut image, 0, 4);
        (1..BLOCKS).for_each(|block| assert_block(&mut image, block, 3));
        image.close().unwrap();
        assert_sound(&hosts.stores[0], &hosts.pool(0));
    }
}

#[test]
fn what_was_uploaded_of_the_live_log_stays_on_the_host_until_a_head_covers_it() {
    let hosts = Hosts::new(1, true);
    let id = hosts.image();
    let mut image = hosts.pool(0).open(id).unwrap();
    write(&mut image, 0, 1);
    image.take_checkpoint().unwrap();
    // The flushes upload whole segments of the log, and tidy up on the host.
    for block in 0..60 {
        write(&mut image, block, 2);
        if block % 30 == 29 {
            image.flush().unwrap();
        }
    }
    let logs = || support::segments(&hosts.pool(0), 'd').len();
    let uploaded = hosts.bucket.keys("rbd").iter().filter(|key| key.contains("/d")).count();
    assert!(uploaded > 1, "{uploaded}");
    assert!(logs() > 2, "{}", logs());
    drop(image);
    let mut image = hosts.pool(0).open(id).unwrap();
    (0..60).for_each(|block| assert_block(&mut image, block, 2));
    image.close().unwrap();
    assert_eq!(logs(), 0);
}

#[test]
fn a_host_opens_again_what_it_has_taken_over_and_not_written() {
    for ships_flushes in [true, false] {
        let hosts = Hosts::new(2, ships_flushes);
        let id = hosts.image();
        let mut first = hosts.pool(0).open(id).unwrap();
        write(&mut first, 0, 1);
        first.snapshot("s").unwrap();
        // The log begins again, and nothing of it reaches another host.
        write(&mut first, 0, 2);
        for _ in 0..2 {
            // The process is killed each time.
            let mut second = hosts.pool(1).take_over(id).unwrap();
            assert_block(&mut second, 0, 1);
        }
        let mut second = hosts.pool(1).take_over(id).unwrap();
        write(&mut second, 1, 3);
        drop(second);
        let mut second = hosts.pool(1).open(id).unwrap();
        assert_block(&mut second, 1, 3);
        second.close().unwrap();
    }
}

#[test]
fn a_reader_sees_nothing_of_what_an_owner_on_its_host_had_not_shipped_when_it_was_replaced() {
    for ships_flushes in [true, false] {
        let hosts = Hosts::new(2, ships_flushes);
        let id = hosts.image();
        let mut first = hosts.pool(0).open(id).unwrap();
        write(&mut first, 0, 1);
        first.snapshot("s").unwrap();
        write(&mut first, 0, 2);
        assert_block(&mut hosts.pool(0).open_read_only(id).unwrap(), 0, 2);
        let mut second = hosts.pool(1).take_over(id).unwrap();
        assert_block(&mut second, 0, 1);
        assert_block(&mut hosts.pool(0).open_read_only(id).unwrap(), 0, 1);
        second.close().unwrap();
    }
}

#[test]
fn a_segment_that_an_owner_has_uploaded_is_what_its_successor_recovers_from_the_log() {
    let hosts = Hosts::new(2, true);
    let id = hosts.image();
    let mut first = hosts.pool(0).open(id).unwrap();
    write(&mut first, 0, 1);
    first.snapshot("s").unwrap();
    assert_eq!(first.flush_async().unwrap(), None, "nothing was written since");
    // A head whose log begins in the same segment, and with the next part.
    first.protect("s").unwrap();
    write(&mut first, 1, 2);
    first.flush().unwrap();
    let mut second = hosts.pool(1).take_over(id).unwrap();
    // It uploads the segment, and then finds that it was replaced.
    assert!(first.close().is_err());
    write(&mut second, 2, 3);
    second.close().unwrap();
    for (block, seed) in [(0, 1), (1, 2), (2, 3)] {
        assert_block(&mut hosts.pool(0).open_read_only(id).unwrap(), block, seed);
    }
}

#[test]
fn a_flush_stores_what_a_killed_process_had_written_on_its_host() {
    let hosts = Hosts::new(2, true);
    let id = hosts.image();
    let mut image = hosts.pool(0).open(id).unwrap();
    (0..BLOCKS).for_each(|block| write(&mut image, block, 3));
    image.flush().unwrap();
    write(&mut image, 0, 4);
    drop(image);
    let mut image = hosts.pool(0).open(id).unwrap();
    assert_block(&mut image, 0, 4);
    assert_eq!(image.flush_async().unwrap(), None);
    // The host is gone. What it had promised is not.
    let mut image = hosts.pool(1).take_over(id).unwrap();
    assert_block(&mut image, 0, 4);
    (1..BLOCKS).for_each(|block| assert_block(&mut image, block, 3));
    image.close().unwrap();
    assert_sound(&hosts.stores[1], &hosts.pool(1));
}

#[test]
fn what_was_not_uploaded_is_kept_aside_and_not_replayed() {
    let hosts = Hosts::new(2, false);
    let id = hosts.image();
    let mut first = hosts.pool(0).open(id).unwrap();
    write(&mut first, 1, 1);
    first.snapshot("s").unwrap();
    write(&mut first, 1, 2);
    first.flush().unwrap();
    let mut second = hosts.pool(1).take_over(id).unwrap();
    assert_block(&mut second, 1, 1);
    second.close().unwrap();
    drop(first);
    let mut again = hosts.pool(0).open(id).unwrap();
    assert_block(&mut again, 1, 1);
    again.close().unwrap();
    let aside = hosts.directories[0].path().join("pools/rbd/aside");
    assert_eq!(std::fs::read_dir(aside).unwrap().count(), 1);
}

#[test]
fn with_local_flushes_a_lost_host_takes_only_the_end_of_the_log_with_it() {
    const WRITES: u64 = 4000;
    let hosts = Hosts::new(2, false);
    let id = hosts.image();
    // Long enough that no checkpoint comes in between.
    let (directory, limits) = (hosts.directories[0].path(), Limits::default());
    let owner = Host::store_that(&hosts.bucket, directory, 1, limits, false);
    let mut first = owner.pool("rbd").unwrap().open(id).unwrap();
    let seed = |number: u64| (number / BLOCKS) as u8 + 1;
    for number in 0..WRITES {
        write(&mut first, number % BLOCKS, seed(number));
        while first.background_step().unwrap() {}
    }
    first.flush().unwrap();
    let is_log = |key: &String| key.starts_with("log/");
    for _ in 0..10_000 {
        if hosts.bucket.keys("rbd").iter().any(is_log) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
        first.background_step().unwrap();
    }
    let mut second = hosts.pool(1).take_over(id).unwrap();
    let found: Vec<u64> = (0..BLOCKS)
        .map(|block| {
            let mut bytes = vec![0; BLOCK as usize];
            second.read_at(block * BLOCK, &mut bytes).unwrap();
            let found = (1..=seed(WRITES)).find(|seed| bytes == pattern(*seed, BLOCK as usize));
            u64::from(found.unwrap_or_default())
        })
        .collect();
    // It is a state that the image had: every block has its last content, and the first ones may have one more.
    let rounds = found[BLOCKS as usize - 1];
    let more = found.iter().take_while(|found| **found == rounds + 1).count();
    assert!(found[more..].iter().all(|found| *found == rounds), "{found:?}");
    // Each write is a group of its own, with a header of a block.
    let kept = (rounds * BLOCKS + more as u64) * 2 * BLOCK;
    assert!(kept >= 7 << 20, "only {kept} bytes of the log have left the host");
    // The owner before learns it from the next part.
    let mut go_on = || first.write_at(0, &[1; 4096]).and_then(|()| first.background_step());
    let stopped = (0..10_000).find_map(|_| go_on().err()).expect("it goes on for ever");
    assert_eq!(stopped.kind(), ErrorKind::Fenced, "{}", stopped.sentence());
    second.close().unwrap();
}

/// Workers that are slow: a job is done when somebody waits for it, or has no use for it any more.
struct SlowWorkers;

struct SlowJob(Option<Job>);

impl SlowJob {
    fn run(&mut self) {
        if let Some(job) = self.0.take() {
            job();
        }
    }
}

impl Drop for SlowJob {
    fn drop(&mut self) {
        self.run();
    }
}

impl Running for SlowJob {
    fn is_finished(&mut self) -> bool {
        self.0.is_none()
    }

    fn wait(mut self: Box<Self>) {
        self.run();
    }
}

impl Workers for SlowWorkers {
    fn start(&self, job: Job) -> Box<dyn Running> {
        Box::new(SlowJob(Some(job)))
    }
}

#[test]
fn a_part_that_is_under_way_when_its_owner_closes_the_image_is_not_in_the_way_of_the_next_one() {
    const WRITES: u64 = 1000;
    let hosts = Hosts::new(2, true);
    let id = hosts.image();
    let (directory, limits) = (hosts.directories[0].path(), Limits::default());
    let world = World { workers: Arc::new(SlowWorkers), ..World::system() };
    let owner = Host::store_in(world, &hosts.bucket, directory, 1, limits, false);
    let mut image = owner.pool("rbd").unwrap().open(id).unwrap();
    for number in 0..WRITES {
        write(&mut image, number % BLOCKS, 1);
    }
    image.flush().unwrap();
    // The log is shipped behind the flushes.
    image.background_step().unwrap();
    let is_log = |key: &String| key.starts_with("log/");
    assert!(!hosts.bucket.keys("rbd").iter().any(is_log));
    image.close().unwrap();

    for host in [1, 0] {
        let mut next = hosts.pool(host).open(id).unwrap();
        assert_block(&mut next, 1, 1);
        write(&mut next, 2, 2);
        next.flush().unwrap();
        next.close().unwrap();
    }
    assert_sound(&hosts.stores[1], &hosts.pool(1));
}

#[test]
fn a_closed_image_leaves_only_its_segments_on_the_service_and_none_on_the_host() {
    let hosts = Hosts::new(1, true);
    let id = hosts.image();
    let mut image = hosts.pool(0).open(id).unwrap();
    for block in 0..BLOCKS {
        write(&mut image, block, 3);
        if block % 10 == 0 {
            image.flush().unwrap();
        }
    }
    image.close().unwrap();
    let keys = hosts.bucket.keys("rbd");
    let logs: Vec<&String> = keys.iter().filter(|key| key.starts_with("log/")).collect();
    assert!(logs.is_empty(), "{logs:?}");
    assert!(keys.iter().any(|key| key.starts_with("segments/")), "{keys:?}");
    assert_eq!(support::segments(&hosts.pool(0), 'd').len(), 0);
}

/// A service that stores parts of logs only while its gate is open.
#[derive(Default)]
struct Gated {
    service: MemoryService,
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gated {
    fn set_closed(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }
}

impl ObjectService for Gated {
    fn get(&self, key: &str) -> Result<Object, ServiceError> {
        self.service.get(key)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ServiceError> {
        self.service.get_range(key, range)
    }

    fn put(&self, key: &str, bytes: &[u8], condition: &Condition) -> Result<Version, ServiceError> {
        if key.starts_with("log/") {
            let closed = self.closed.lock().unwrap();
            drop(self.opened.wait_while(closed, |closed| *closed).unwrap());
        }
        self.service.put(key, bytes, condition)
    }

    fn remove(&self, key: &str) -> Result<(), ServiceError> {
        self.service.remove(key)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, ServiceError> {
        self.service.list(prefix, after)
    }

    fn show(&self, key: &str) -> String {
        self.service.show(key)
    }
}

/// The number below which all flushes have ended.
fn await_flush(image: &mut Image) -> u64 {
    for _ in 0..10_000 {
        if let Some(Completion::Flushed(below)) = BlockDevice::take_completion(image) {
            return below.unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("no flush has ended");
}

#[test]
fn an_image_is_read_and_written_while_a_flush_is_under_way() {
    let (bucket, service) = (Bucket::default(), Arc::new(Gated::default()));
    bucket.keep_in("rbd", Arc::clone(&service) as Arc<dyn ObjectService>);
    let hosts = Hosts::with(bucket, 2, true);
    let id = hosts.image();
    let mut image = hosts.pool(0).open(id).unwrap();
    write(&mut image, 1, 1);
    service.set_closed(true);
    let first = image.flush_async().unwrap().unwrap();
    assert!(image.awaits_flush());
    // More than one segment holds.
    for block in 0..100 {
        write(&mut image, block, 2);
        assert_block(&mut image, block, 2);
    }
    let second = image.flush_async().unwrap().unwrap();
    assert!(second > first);
    assert!(BlockDevice::take_completion(&mut image).is_none());
    service.set_closed(false);
    assert_eq!(await_flush(&mut image), second);
    assert_eq!(await_flush(&mut image), second + 1);
    assert!(!image.awaits_flush());
    assert_eq!(image.flush_async().unwrap(), None, "nothing was written since");
    let mut other = hosts.pool(1).take_over(id).unwrap();
    (0..100).for_each(|block| assert_block(&mut other, block, 2));
}

#[test]
fn a_flush_that_was_under_way_at_a_takeover_is_not_acknowledged() {
    let (bucket, service) = (Bucket::default(), Arc::new(Gated::default()));
    bucket.keep_in("rbd", Arc::clone(&service) as Arc<dyn ObjectService>);
    let hosts = Hosts::with(bucket, 2, true);
    let id = hosts.image();
    let mut image = hosts.pool(0).open(id).unwrap();
    write(&mut image, 1, 1);
    image.flush().unwrap();
    write(&mut image, 1, 2);
    service.set_closed(true);
    image.flush_async().unwrap().unwrap();
    let successor = std::thread::scope(|scope| {
        // Both wait at the gate. The fence may come first, or the flush: then the successor has it.
        let taken = scope.spawn(|| hosts.pool(1).take_over(id).unwrap());
        std::thread::sleep(Duration::from_millis(50));
        service.set_closed(false);
        taken.join().unwrap()
    });
    let mut successor = successor;
    let mut ended = None;
    for _ in 0..10_000 {
        if let Some(Completion::Flushed(outcome)) = BlockDevice::take_completion(&mut image) {
            ended = Some(outcome);
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    match ended.expect("the flush ends") {
        Ok(_) => assert_block(&mut successor, 1, 2),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Fenced);
            assert_block(&mut successor, 1, 1);
        }
    }
}

#[test]
fn images_are_cloned_renamed_and_removed_by_several_hosts() {
    let hosts = Hosts::new(2, true);
    let id = hosts.image();
    let mut image = hosts.pool(0).open(id).unwrap();
    (0..BLOCKS).for_each(|block| write(&mut image, block, 5));
    image.snapshot("s").unwrap();
    image.protect("s").unwrap();
    image.close().unwrap();
    let options = CloneOptions::default();
    let clone = |host: usize, name: &str| {
        let pool = hosts.pool(host);
        pool.snapshot(id, "s").clone_to(&pool, name, &options).unwrap()
    };
    let (first, second) = (clone(0, "first"), clone(1, "second"));
    hosts.pool(0).rename("second", "renamed").unwrap();
    let mut names = hosts.pool(1).image_names(&Namespace::default()).unwrap();
    names.sort_unstable();
    assert_eq!(names, ["first", "image", "renamed"]);
    let mut image = hosts.pool(0).open(second).unwrap();
    write(&mut image, 0, 6);
    image.close().unwrap();
    let mut image = hosts.pool(1).open(first).unwrap();
    image.flatten().unwrap();
    image.close().unwrap();
    let mut image = hosts.pool(1).open(id).unwrap();
    let refused = image.unprotect("s").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::HasChildren);
    image.close().unwrap();
    hosts.stores[1].remove_image(&hosts.pool(1), second, &mut |_, _| {}).unwrap();
    let mut image = hosts.pool(0).open(id).unwrap();
    image.unprotect("s").unwrap();
    image.remove_snapshot("s", false).unwrap();
    image.close().unwrap();
    hosts.stores[0].remove_image(&hosts.pool(0), id, &mut |_, _| {}).unwrap();
    for host in 0..2 {
        hosts.stores[host].gc(&hosts.pool(host), &mut |_, _| {}).unwrap();
    }
    let mut image = hosts.pool(0).open_read_only(first).unwrap();
    (0..BLOCKS).for_each(|block| assert_block(&mut image, block, 5));
    hosts.stores.iter().zip(0..).for_each(|(store, host)| assert_sound(store, &hosts.pool(host)));
}

/// A service that notes its requests.
#[derive(Default)]
struct Noting {
    service: MemoryService,
    requests: Mutex<Vec<String>>,
}

impl Noting {
    fn note(&self, request: &str, key: &str) {
        self.requests.lock().unwrap().push(format!("{request} {key}"));
    }

    /// The requests since the last call.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }
}

impl ObjectService for Noting {
    fn get(&self, key: &str) -> Result<Object, ServiceError> {
        self.note("get", key);
        self.service.get(key)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ServiceError> {
        self.note("get", key);
        self.service.get_range(key, range)
    }

    fn put(&self, key: &str, bytes: &[u8], condition: &Condition) -> Result<Version, ServiceError> {
        self.note("put", key);
        self.service.put(key, bytes, condition)
    }

    fn remove(&self, key: &str) -> Result<(), ServiceError> {
        self.note("remove", key);
        self.service.remove(key)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, ServiceError> {
        self.note("list", prefix);
        self.service.list(prefix, after)
    }

    fn show(&self, key: &str) -> String {
        self.service.show(key)
    }
}

impl Noting {
    /// The requests since the last call, without those that open the pool: the kind, and the first part of the
    /// key.
    fn kinds(&self) -> Vec<String> {
        let kind = |request: String| request.split('/').next().unwrap_or_default().to_owned();
        let kinds = self.take().into_iter().map(kind);
        kinds.filter(|kind| kind != "get pool").collect()
    }
}

#[test]
fn every_step_makes_as_few_requests_as_it_needs() {
    let (bucket, service) = (Bucket::default(), Arc::new(Noting::default()));
    bucket.keep_in("rbd", Arc::clone(&service) as Arc<dyn ObjectService>);
    let hosts = Hosts::with(bucket, 2, true);
    let id = hosts.image();
    let pool = hosts.pool(0);
    pool.find("image").unwrap();
    service.take();
    let mut image = pool.open(id).unwrap();
    assert_eq!(service.kinds(), ["get images", "put images"], "open");
    image.read_at(0, &mut [0; 4096]).unwrap();
    assert!(service.kinds().is_empty(), "a hole is read");
    write(&mut image, 1, 1);
    assert_eq!(service.kinds(), ["put images"], "the first write");
    write(&mut image, 2, 1);
    assert!(service.kinds().is_empty(), "further writes");
    image.flush().unwrap();
    assert_eq!(service.kinds(), ["put log"], "flush");
    image.flush().unwrap();
    assert!(service.kinds().is_empty(), "a clean flush");
    write(&mut image, 1, 1);
    image.snapshot("s").unwrap();
    let segments = ["put segments"; 3];
    assert_eq!(service.kinds(), [&segments[..], &["put images"]].concat(), "snapshot");
    image.protect("s").unwrap();
    let kinds = service.kinds();
    assert_eq!(kinds.iter().filter(|kind| kind.starts_with("put")).count(), 1, "{kinds:?}");
    image.close().unwrap();
    service.take();
    pool.snapshot(id, "s").clone_to(&pool, "clone", &CloneOptions::default()).unwrap();
    let expected =
        ["get images", "get names", "put children", "get images", "put images", "put names"];
    assert_eq!(service.kinds(), expected, "a clone in the bucket");
    let other = hosts.pool(1);
    other.find("image").unwrap();
    service.take();
    let mut first = other.open(id).unwrap();
    assert_eq!(service.kinds(), ["get images", "put images"], "open after a close");
    for _ in 0..3 {
        write(&mut first, 1, 1);
        first.flush().unwrap();
    }
    service.take();
    let mut second = pool.take_over(id).unwrap();
    let parts = ["get log"; 3];
    let expected = [&["get images", "put images"], &parts[..], &["get log", "put log"]].concat();
    assert_eq!(service.kinds(), expected, "a takeover: four requests, and one for each part");
    assert_block(&mut second, 1, 1);
    service.take();
    pool.image_names(&Namespace::default()).unwrap();
    assert_eq!(service.kinds(), ["list names", "get names", "get names"], "names in two shards");
}

/// Each takeover leaves a fence, which stays for ever. Whoever removes the image looks whether it is one.
#[test]
fn a_removal_reads_each_fence_once_and_leaves_them() {
    let (bucket, service) = (Bucket::default(), Arc::new(Noting::default()));
    bucket.keep_in("rbd", Arc::clone(&service) as Arc<dyn ObjectService>);
    let hosts = Hosts::with(bucket, 2, true);
    let id = hosts.image();
    let pools = [hosts.pool(0), hosts.pool(1)];
    let mut owner = pools[0].open(id).unwrap();
    let takeovers = 7;
    for turn in 1..=takeovers {
        write(&mut owner, 1, 1);
        owner.flush().unwrap();
        owner = pools[turn % 2].take_over(id).unwrap();
    }
    owner.close().unwrap();
    let pool = &pools[takeovers % 2];
    service.take();
    pool.store().remove_image(pool, id, &mut |_, _| {}).unwrap();
    let kinds = service.kinds();
    let count = |kind: &str| kinds.iter().filter(|k| *k == kind).count();
    assert_eq!((count("list log"), count("get log")), (1, takeovers), "{kinds:?}");
    let left = service.list(&format!("log/{:016x}/", id.0), None).unwrap();
    assert_eq!(left.objects.len(), takeovers, "{left:?}");
    assert!(left.objects.iter().all(|object| object.bytes <= 128), "{left:?}");
}
