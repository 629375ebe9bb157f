//! What is read, and what is fetched for it.

use marcot_store::Threads;

use super::super::*;
use super::support::*;
use crate::object::cache::layout::CHUNK_BYTES;

const MIB: u64 = 1 << 20;
const LARGE: u64 = 1 << 30;

#[test]
fn bytes_are_fetched_once_and_in_small_parts() {
    let scene = Scene::new(32 * MIB);
    let cache = scene.cache(LARGE);
    scene.check(&cache, "a", 5 * MIB, 4096);
    assert_eq!(scene.service.fetched_bytes(), CHUNK_BYTES);
    scene.check(&cache, "a", 5 * MIB + 8192, 4096);
    scene.check(&cache, "a", 5 * MIB + 100, 5000);
    assert_eq!(scene.service.requests(), 1);
    // Another process, and a later one.
    scene.check(&scene.cache(LARGE), "a", 5 * MIB, 4096);
    assert_eq!(scene.service.requests(), 1);
}

#[test]
fn a_read_over_several_chunks_fetches_only_those_that_are_missing() {
    let scene = Scene::new(32 * MIB);
    let cache = scene.cache(LARGE);
    scene.check(&cache, "a", 2 * CHUNK_BYTES, 10);
    scene.check(&cache, "a", 0, 5 * CHUNK_BYTES as usize);
    assert_eq!(scene.service.fetched_bytes(), 5 * CHUNK_BYTES);
    assert_eq!(scene.service.requests(), 3);
}

#[test]
fn a_sequential_reader_sends_few_requests_and_random_reads_fetch_little() {
    let scene = Scene::new(32 * MIB);
    let cache = scene.cache(LARGE);
    for i in 0..256 {
        scene.check(&cache, "a", i * (128 << 10), 128 << 10);
    }
    assert_eq!(scene.service.fetched_bytes(), 32 * MIB, "nothing is fetched twice");
    assert!(scene.service.requests() <= 16, "{}", scene.service.requests());
    for i in 0..20u64 {
        scene.check(&cache, "b", (i * 37 % 128) * CHUNK_BYTES, 4096);
    }
    assert_eq!(scene.service.fetched_bytes(), 32 * MIB + 20 * CHUNK_BYTES);
}

#[test]
fn objects_of_any_length_are_read_to_their_end_and_not_beyond() {
    for length in [0, 1, 4095, 4097, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * MIB + 7] {
        let scene = Scene::new(length);
        let cache = scene.cache(LARGE);
        for known in [true, false] {
            let source = Arc::clone(&scene.service) as Arc<dyn RangeSource>;
            let known_length = known.then_some(length);
            let object = cache.object(PoolId(u64::from(known)), "a", known_length, source);
            for _ in 0..2 {
                check(&cache, &object, 0, 4 * MIB as usize, length);
                check(&cache, &object, length.saturating_sub(3), 10, length);
                check(&cache, &object, length, 10, length);
                check(&cache, &object, length + 5 * CHUNK_BYTES, 10, length);
            }
        }
    }
}

#[test]
fn an_object_longer_than_any_segment_and_a_key_longer_than_any_are_read_past_the_cache() {
    let scene = Scene::new(OBJECT_BYTES_MAX + MIB);
    let cache = scene.cache(LARGE);
    scene.check(&cache, "a", OBJECT_BYTES_MAX - 10, 20);
    scene.check(&cache, &"k".repeat(2000), 77, 20);
    let source = Arc::clone(&scene.service) as Arc<dyn RangeSource>;
    let object = cache.object(PoolId(5), "unknown length", None, source);
    check(&cache, &object, OBJECT_BYTES_MAX - 10, 20, scene.service.length);
    assert!(scene.files().len() <= 1);
}

#[test]
fn what_is_here_is_read_without_waiting_and_the_rest_is_not() {
    let scene = Scene::new(32 * MIB);
    let cache = scene.cache(LARGE);
    let object = scene.object(&cache, "a");
    let mut buf = [0; 8192];
    let refused = cache.read_cached(&object, 0, &mut buf).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    assert!(!cache.holds(&object, 0, 1));
    scene.check(&cache, "a", 0, 1);
    assert_eq!(scene.service.requests(), 1);
    assert!(cache.holds(&object, 0, CHUNK_BYTES) && !cache.holds(&object, 0, CHUNK_BYTES + 1));
    // It was written just now, so that the page cache has it; not every file system can tell.
    match cache.read_cached(&object, CHUNK_BYTES - 4096, &mut buf) {
        Ok(n) => assert_eq!(buf[..n], content("a", 0..CHUNK_BYTES)[CHUNK_BYTES as usize - 4096..]),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
    }
    assert_eq!(scene.service.requests(), 1);
}

#[test]
fn an_object_that_lacks_nothing_is_a_plain_file() {
    let scene = Scene::new(3 * MIB + 5);
    let cache = scene.cache(LARGE);
    let object = scene.object(&cache, "a");
    assert!(cache.whole(&object).is_none());
    scene.check(&cache, "a", MIB, 10);
    assert!(cache.whole(&object).is_none());
    cache.make_whole(&object);
    let fetched = scene.service.fetched_bytes();
    assert_eq!(fetched, 3 * MIB + 5);
    let other = scene.cache(LARGE);
    for (cache, object) in [(&cache, &object), (&other, &scene.object(&other, "a"))] {
        let file = cache.whole(object).unwrap();
        let mut buf = vec![0; 3 * MIB as usize + 5];
        assert_eq!(file.read_at(0, &mut buf).unwrap(), buf.len());
        assert!(buf == content("a", 0..3 * MIB + 5));
    }
    assert_eq!(scene.service.fetched_bytes(), fetched);
}

#[test]
fn an_object_of_which_most_is_here_is_made_whole() {
    let scene = Scene::new(32 * CHUNK_BYTES);
    let cache = scene.cache(LARGE);
    let object = scene.object(&cache, "a");
    // In an order that no reader ahead would take.
    for i in 0..24 {
        assert!(cache.whole(&object).is_none(), "after {i}");
        scene.check(&cache, "a", (i * 5 % 32) * CHUNK_BYTES + 9, 1);
    }
    assert!(cache.whole(&object).is_some());
    assert_eq!(scene.service.fetched_bytes(), 32 * CHUNK_BYTES);
}

#[test]
fn a_segment_whose_length_is_not_known_is_made_whole_when_most_of_it_is_here() {
    let length = 32 * MIB;
    let scene = Scene::new(length);
    let cache = scene.cache(LARGE);
    let source = Arc::clone(&scene.service) as Arc<dyn RangeSource>;
    let object = cache.object(PoolId(5), "a", None, source);
    for i in 0..96 {
        assert!(cache.whole(&object).is_none(), "after {i}");
        check(&cache, &object, (i * 5 % 128) * CHUNK_BYTES + 9, 1, length);
    }
    assert!(cache.whole(&object).is_some());
    assert_eq!(scene.service.fetched_bytes(), length);
}

#[test]
fn what_this_host_has_uploaded_is_not_fetched() {
    let scene = Scene::new(3 * MIB);
    let cache = scene.cache(LARGE);
    let object = scene.object(&cache, "a");
    cache.insert(&object, &content("a", 0..3 * MIB));
    assert!(cache.whole(&object).is_some());
    scene.check(&cache, "a", 77, 2 * MIB as usize);
    assert_eq!(scene.service.requests(), 0);
    cache.forget(&object);
    scene.check(&cache, "a", 77, 10);
    assert_eq!(scene.service.requests(), 1);
}

#[test]
fn an_error_of_the_service_is_returned_and_nothing_of_it_is_kept() {
    let scene = Scene::new(32 * MIB);
    let cache = scene.cache(LARGE);
    let object = scene.object(&cache, "a");
    scene.service.fails.store(true, Ordering::Relaxed);
    let error = cache.read(&object, 0, &mut [0; 10]).unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string()),
        (io::ErrorKind::TimedOut, "the service is gone".into())
    );
    scene.service.fails.store(false, Ordering::Relaxed);
    scene.service.sends_half.store(true, Ordering::Relaxed);
    let error = cache.read(&object, 0, &mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
    scene.service.sends_half.store(false, Ordering::Relaxed);
    scene.check(&cache, "a", 0, 300_000);
}

#[test]
fn many_objects_are_read_with_few_open_files() {
    let scene = Scene::with(TestService::new(5000), Arc::new(Threads));
    let cache = scene.cache(LARGE);
    let objects: Vec<_> =
        (0..3 * OPEN_OBJECTS_MAX).map(|i| scene.object(&cache, &i.to_string())).collect();
    for _ in 0..2 {
        for object in &objects {
            check(&cache, object, 10, 4980, 5000);
        }
        let open = objects.iter().filter(|object| object.state.is_open()).count();
        assert!(open <= OPEN_OBJECTS_MAX, "{open}");
    }
    assert_eq!(scene.service.requests(), objects.len());
}
