//! Many threads and several processes that want the same bytes.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use marcot_store::{InPlace, Threads};

use super::super::*;
use super::support::*;
use crate::object::cache::layout::CHUNK_BYTES;

const MIB: u64 = 1 << 20;
const LARGE: u64 = 1 << 30;
/// Longer than it takes to start the threads. Where it is not, threads find the bytes in the cache, and the test
/// still holds.
const ANSWER: Duration = Duration::from_millis(200);

#[test]
fn a_thousand_readers_of_one_block_in_four_processes_fetch_it_once() {
    const CACHES: usize = 4;
    const READERS: usize = 250;
    let scene = Scene::with(TestService::slow(32 * MIB, ANSWER), Arc::new(InPlace));
    let caches: Vec<_> = (0..CACHES).map(|_| scene.cache(LARGE)).collect();
    let barrier = Barrier::new(CACHES);
    thread::scope(|scope| {
        for cache in &caches {
            let (barrier, scene) = (&barrier, &scene);
            scope.spawn(move || {
                barrier.wait();
                thread::scope(|scope| {
                    for i in 0..READERS {
                        scope.spawn(move || scene.check(cache, "a", MIB + 16 * i as u64, 4096));
                    }
                });
            });
        }
    });
    assert_eq!(scene.service.requests(), 1);
    assert_eq!(scene.service.fetched_bytes(), CHUNK_BYTES);
}

/// Guests that boot read the same parts of an image, in about the same order.
fn boot(scene: &Scene, caches: &[RangeCache]) -> u64 {
    let before = scene.service.fetched_bytes();
    thread::scope(|scope| {
        for (number, cache) in caches.iter().enumerate() {
            scope.spawn(move || {
                for i in 0..60u64 {
                    // Each guest has a few reads of its own order.
                    let i = if i % 7 == number as u64 % 7 { i ^ 1 } else { i };
                    let key = format!("segments/{}", i * 11 % 3);
                    let offset = (i * 7919 % 1024) * 16 * 1024;
                    for part in 0..4 {
                        scene.check(cache, &key, offset + part * 32 * 1024, 32 * 1024);
                    }
                }
            });
        }
    });
    scene.service.fetched_bytes() - before
}

#[test]
fn ten_guests_that_boot_at_once_fetch_hardly_more_than_one() {
    let answer = Duration::from_millis(2);
    let scene = Scene::with(TestService::slow(32 * MIB, answer), Arc::new(Threads));
    let one = boot(&scene, &[scene.cache(LARGE)]);
    let scene = Scene::with(TestService::slow(32 * MIB, answer), Arc::new(Threads));
    // Five processes, with two guests each.
    let caches: Vec<_> = (0..5).map(|_| scene.cache(LARGE)).collect();
    let caches: Vec<_> = caches.iter().chain(&caches).cloned().collect();
    let ten = boot(&scene, &caches);
    assert!(
        ten <= one * 3 / 2,
        "{ten} bytes for ten, {one} for one {:?}",
        lock(&scene.service.asked)
    );
}

#[test]
fn readers_of_different_parts_wait_for_their_own_only() {
    let scene = Scene::with(TestService::slow(32 * MIB, ANSWER), Arc::new(InPlace));
    let cache = scene.cache(LARGE);
    let object = scene.object(&cache, "a");
    thread::scope(|scope| {
        for i in 0..16 {
            let (scene, cache) = (&scene, &cache);
            scope.spawn(move || scene.check(cache, "a", 2 * i * CHUNK_BYTES, 4096));
        }
        // All of them are asked for before the first one is answered, so that this sees them in flight. It
        // cannot be seen where the threads start too slowly; then the loop ends when all is here.
        let all = |flights: usize| flights == 16 || scene.service.requests() == 16;
        while !all(object.state.slot().flights.len()) {
            thread::yield_now();
        }
    });
    assert_eq!(scene.service.requests(), 16);
}

#[test]
fn all_who_wait_get_the_error_of_the_service_and_later_readers_try_again() {
    let scene = Scene::with(TestService::slow(32 * MIB, ANSWER), Arc::new(InPlace));
    scene.service.fails.store(true, Ordering::Relaxed);
    let cache = scene.cache(LARGE);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..50)
            .map(|_| {
                let (scene, cache) = (&scene, &cache);
                scope.spawn(move || {
                    cache.read(&scene.object(cache, "a"), 0, &mut [0; 10]).unwrap_err().kind()
                })
            })
            .collect();
        for reader in readers {
            assert_eq!(reader.join().unwrap(), io::ErrorKind::TimedOut);
        }
    });
    assert!(scene.service.requests() < 50, "they have shared requests");
    scene.service.fails.store(false, Ordering::Relaxed);
    scene.check(&cache, "a", 0, 10);
}

#[test]
fn a_reader_that_panics_leaves_the_fetch_to_the_others() {
    let scene = Scene::with(TestService::slow(32 * MIB, ANSWER), Arc::new(InPlace));
    scene.service.panics.store(true, Ordering::Relaxed);
    let cache = scene.cache(LARGE);
    thread::scope(|scope| {
        let first = scope.spawn(|| cache.read(&scene.object(&cache, "a"), 0, &mut [0; 10]));
        while scene.service.requests() == 0 {
            thread::yield_now();
        }
        let second = scope.spawn(|| scene.check(&cache, "a", 0, 10));
        assert!(first.join().is_err(), "it has panicked");
        scene.service.panics.store(false, Ordering::Relaxed);
        // The second one may have come too early, and have panicked too.
        drop(second.join());
    });
    scene.check(&cache, "a", 0, 10);
}

#[test]
fn reading_goes_on_while_another_process_removes_and_stores() {
    let scene = Scene::with(TestService::new(MIB), Arc::new(Threads));
    // There is room for a few objects only.
    let caches: Vec<_> = (0..3).map(|_| scene.cache(4 * MIB)).collect();
    thread::scope(|scope| {
        for (number, cache) in caches.iter().enumerate() {
            for thread in 0..2u64 {
                let scene = &scene;
                scope.spawn(move || {
                    for i in 0..150u64 {
                        let key = format!("{}", (i * 7 + number as u64 * 3 + thread) % 9);
                        scene.check(cache, &key, (i * 7919) % MIB, 30_000);
                    }
                });
            }
        }
    });
    let slack = 20 * SLACK_PER_OBJECT_BYTES;
    assert!(scene.stored_bytes() <= 4 * MIB + slack, "{}", scene.stored_bytes());
}
