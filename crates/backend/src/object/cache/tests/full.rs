//! Limits: the cache's, the disk's, and those of a disk that fails.

use super::super::*;
use super::support::*;
use crate::object::cache::layout::CHUNK_BYTES;

const MIB: u64 = 1 << 20;
const LARGE: u64 = 1 << 30;
const ENOSPC: i64 = 28;
const EACCES: i64 = 13;
const EIO: i64 = 5;

#[test]
fn what_two_processes_store_stays_below_the_limit() {
    let scene = Scene::new(2 * MIB);
    scene.clock.fast.store(true, Ordering::Relaxed);
    let limit = 12 * MIB;
    let caches = [scene.cache(limit), scene.cache(limit)];
    let mut objects = Vec::new();
    for i in 0..60 {
        let cache = &caches[i % 2];
        let object = scene.object(cache, &format!("segments/{i}"));
        check(cache, &object, 0, 2 * MIB as usize, 2 * MIB);
        // The handles stay, so that files that were removed are still open.
        objects.push(object);
        let slack = scene.files().len() as u64 * SLACK_PER_OBJECT_BYTES;
        assert!(scene.stored_bytes() <= limit + slack, "{} after {i}", scene.stored_bytes());
    }
    assert!(scene.stored_bytes() >= limit / 2, "it is not emptied: {}", scene.stored_bytes());
    // What is open without a name was cut.
    for object in &objects {
        let slot = object.state.slot();
        let Some(open) = &slot.open else { continue };
        if open.file.is_removed().unwrap() {
            assert_eq!(open.file.plain().allocated_bytes().unwrap(), 0);
        }
    }
    for (i, object) in objects.iter().enumerate() {
        check(&caches[i % 2], object, 77, 5000, 2 * MIB);
    }
}

#[test]
fn what_is_used_stays_and_what_is_not_goes() {
    let scene = Scene::new(MIB);
    scene.clock.fast.store(true, Ordering::Relaxed);
    let cache = scene.cache(20 * MIB);
    let used = scene.object(&cache, "used");
    check(&cache, &used, 0, MIB as usize, MIB);
    for i in 0..100 {
        scene.check(&cache, &format!("segments/{i}"), 0, MIB as usize);
        scene.clock.now_s.fetch_add(120, Ordering::Relaxed);
        for _ in 0..70 {
            check(&cache, &used, 0, 10, MIB);
        }
    }
    let asked = lock(&scene.service.asked);
    let times = asked.iter().filter(|(key, range)| key == "used" && range.start == 0).count();
    assert_eq!(times, 1, "it was never removed");
}

#[test]
fn a_cache_that_is_opened_with_a_lower_limit_gives_space_back() {
    let scene = Scene::new(MIB);
    let cache = scene.cache(LARGE);
    for i in 0..20 {
        scene.check(&cache, &i.to_string(), 0, MIB as usize);
    }
    assert!(scene.stored_bytes() >= 20 * MIB);
    scene.cache(5 * MIB);
    assert!(scene.stored_bytes() <= 5 * MIB, "{}", scene.stored_bytes());
    for i in 0..20 {
        scene.check(&cache, &i.to_string(), 0, MIB as usize);
    }
}

#[test]
fn an_object_larger_than_the_limit_is_read_all_the_same() {
    let scene = Scene::new(8 * MIB);
    scene.clock.fast.store(true, Ordering::Relaxed);
    let cache = scene.cache(2 * MIB);
    scene.check(&cache, "a", 0, 8 * MIB as usize);
    scene.check(&cache, "a", 0, 8 * MIB as usize);
    assert!(scene.stored_bytes() <= 2 * MIB + SLACK_PER_OBJECT_BYTES);
}

#[test]
fn a_full_or_forbidden_disk_is_passed_by_until_it_works_again() {
    for number in [ENOSPC, EACCES, EIO] {
        let scene = Scene::new(4 * MIB);
        let cache = scene.cache(LARGE);
        scene.check(&cache, "a", 0, 10);
        scene.failures.writes.store(number, Ordering::Relaxed);
        scene.check(&cache, "b", 5, MIB as usize);
        assert!(cache.0.trouble.is_on());
        let before = scene.service.fetched_bytes();
        for i in 0..64 {
            scene.check(&cache, "b", MIB + i * 4096, 4096);
        }
        // Only now and then it is tried whether the cache works. Then a whole chunk is fetched.
        let fetched = scene.service.fetched_bytes() - before;
        assert!(fetched <= 8 * CHUNK_BYTES, "{fetched}");
        // What was stored before is still read.
        let requests = scene.service.requests();
        scene.check(&cache, "a", 100, 10);
        assert_eq!(scene.service.requests(), requests);
        scene.failures.writes.store(0, Ordering::Relaxed);
        for i in 0..64 {
            scene.check(&cache, "c", i * 4096, 4096);
        }
        assert!(!cache.0.trouble.is_on());
        let requests = scene.service.requests();
        scene.check(&cache, "c", 0, 4096);
        assert_eq!(scene.service.requests(), requests);
    }
}

#[test]
fn a_cache_that_cannot_be_read_is_passed_by() {
    let scene = Scene::new(4 * MIB);
    let cache = scene.cache(LARGE);
    scene.check(&cache, "a", 0, 10);
    scene.failures.reads.store(EIO, Ordering::Relaxed);
    scene.check(&cache, "a", 0, MIB as usize);
    scene.check(&cache, "b", 0, MIB as usize);
    scene.failures.reads.store(0, Ordering::Relaxed);
    for _ in 0..2 * TROUBLED_READS {
        scene.check(&cache, "a", 0, 10);
    }
    let requests = scene.service.requests();
    scene.check(&cache, "a", 0, 10);
    assert_eq!(scene.service.requests(), requests);
}

/// Workers that never come to their jobs.
struct NoWorkers;

struct Waiting {
    _job: marcot_store::Job,
}

impl Running for Waiting {
    fn is_finished(&mut self) -> bool {
        false
    }

    fn wait(self: Box<Self>) {}
}

impl marcot_store::Workers for NoWorkers {
    fn start(&self, job: marcot_store::Job) -> Box<dyn Running> {
        Box::new(Waiting { _job: job })
    }
}

#[test]
fn a_job_that_has_not_begun_does_not_keep_the_cache() {
    let directory = tempfile::tempdir().unwrap();
    let world = World { workers: Arc::new(NoWorkers), ..World::system() };
    let cache = RangeCache::open(&world, directory.path().join("cache"), LARGE).unwrap();
    assert!(!lock(&cache.0.jobs).is_empty());
    let inner = Arc::downgrade(&cache.0);
    drop(cache);
    assert!(inner.upgrade().is_none());
}
