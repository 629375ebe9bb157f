//! Hosts that do different things to the same image of a bucket at the same moment.

#![expect(clippy::disallowed_methods, reason = "a test lets a thread of its own clone")]

mod support;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use support::assert_sound;
use support::bucket::Bucket;
use support::hosts::{Hosts, assert_block, write};

use marcot::{CheckOptions, CloneOptions, CreateOptions, ErrorKind, ImageId, Namespace, Pool};
use marcot_backend::object::memory::MemoryService;
use marcot_backend::object::service::{
    Condition, Object, ObjectService, Page, ServiceError, Version,
};

/// Something that happens before a request.
struct Hook {
    /// The beginning of the request: its kind, a space, and its key.
    request: &'static str,
    happens: Box<dyn FnOnce() + Send>,
}

/// A service on which something happens before chosen requests.
#[derive(Default)]
struct Hooked {
    service: MemoryService,
    hooks: Mutex<Vec<Hook>>,
    gets: AtomicUsize,
}

impl Hooked {
    /// Calls `happens` before the next request that begins so.
    fn before(&self, request: &'static str, happens: impl FnOnce() + Send + 'static) {
        self.hooks.lock().unwrap().push(Hook { request, happens: Box::new(happens) });
    }

    fn meet(&self, kind: &str, key: &str) {
        let request = format!("{kind} {key}");
        let hook = {
            let mut hooks = self.hooks.lock().unwrap();
            let at = hooks.iter().position(|hook| request.starts_with(hook.request));
            at.map(|at| hooks.remove(at))
        };
        if let Some(hook) = hook {
            (hook.happens)();
        }
    }
}

impl ObjectService for Hooked {
    fn get(&self, key: &str) -> Result<Object, ServiceError> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.meet("get", key);
        self.service.get(key)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ServiceError> {
        self.meet("get", key);
        self.service.get_range(key, range)
    }

    fn put(&self, key: &str, bytes: &[u8], condition: &Condition) -> Result<Version, ServiceError> {
        self.meet("put", key);
        self.service.put(key, bytes, condition)
    }

    fn remove(&self, key: &str) -> Result<(), ServiceError> {
        self.meet("remove", key);
        self.service.remove(key)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, ServiceError> {
        self.meet("list", prefix);
        self.service.list(prefix, after)
    }

    fn show(&self, key: &str) -> String {
        self.service.show(key)
    }
}

/// Two hosts, and the service of their pool.
fn two_hosts() -> (Hosts, Arc<Hooked>) {
    let (bucket, service) = (Bucket::default(), Arc::new(Hooked::default()));
    bucket.keep_in("rbd", Arc::clone(&service) as Arc<dyn ObjectService>);
    (Hosts::with(bucket, 2, true), service)
}

fn remove(hosts: &Hosts, host: usize, image: ImageId) {
    hosts.stores[host].remove_image(&hosts.pool(host), image, &mut |_, _| {}).unwrap();
}

fn collect(hosts: &Hosts, host: usize) {
    hosts.stores[host].gc(&hosts.pool(host), &mut |_, _| {}).unwrap();
}

/// An owner that does not know that another host has taken its image over, and has removed it with `remove`.
#[track_caller]
fn assert_replaced_and_removed(flushed: bool, remove: impl FnOnce(&Hosts, &Hooked, ImageId)) {
    let (hosts, service) = two_hosts();
    let id = hosts.image();
    let mut owner = hosts.pool(0).open(id).unwrap();
    write(&mut owner, 1, 1);
    if flushed {
        owner.flush().unwrap();
    } else {
        owner.take_checkpoint().unwrap();
    }
    remove(&hosts, &service, id);
    collect(&hosts, 1);
    write(&mut owner, 2, 2);
    for _ in 0..2 {
        assert!(owner.flush().unwrap_err().kind().ends_writing());
    }
    assert!(owner.close().is_err());
}

#[test]
fn an_owner_whose_image_was_taken_over_and_removed_acknowledges_no_flush() {
    for flushed in [true, false] {
        assert_replaced_and_removed(flushed, |hosts, _, id| {
            assert!(hosts.pool(1).end_other_owner(id).unwrap());
            remove(hosts, 1, id);
        });
    }
}

#[test]
fn nor_does_one_whose_successor_died_before_it_had_stored_a_fence() {
    for flushed in [true, false] {
        assert_replaced_and_removed(flushed, |hosts, service, id| {
            service.before("put log/", || panic!("it dies"));
            let pool = hosts.pool(1);
            let died = catch_unwind(AssertUnwindSafe(|| pool.take_over(id).map(drop)));
            assert!(died.is_err());
            remove(hosts, 1, id);
        });
    }
}

#[test]
fn nor_does_one_whose_image_was_given_up_because_its_head_was_damaged() {
    assert_replaced_and_removed(true, |hosts, service, id| {
        let head = format!("images/{id}/head");
        service.put(&head, b"damaged", &Condition::None).unwrap();
        let pool = hosts.pool(1);
        hosts.stores[1].remove_damaged(&pool, "image", &mut |_, _| {}).unwrap();
    });
}

#[test]
fn an_owner_whose_image_was_removed_is_told_so() {
    let (hosts, _) = two_hosts();
    let id = hosts.image();
    let mut owner = hosts.pool(0).open(id).unwrap();
    hosts.pool(1).end_other_owner(id).unwrap();
    remove(&hosts, 1, id);
    let refused = owner.set_metadata("key", "value").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced, "{refused}");
    assert!(refused.to_string().contains("was removed"), "{refused}");
}

#[test]
fn an_opening_that_loses_to_a_removal_finds_no_image() {
    let (hosts, service) = two_hosts();
    let id = hosts.image();
    let (store, pool) = (hosts.stores[0].clone(), hosts.pool(0));
    service.before("put images/", move || {
        store.remove_image(&pool, id, &mut |_, _| {}).unwrap();
    });
    let refused = hosts.pool(1).open(id).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
    assert!(refused.to_string().contains("removed"), "{refused}");
}

#[test]
fn of_two_hosts_that_open_an_image_at_once_one_is_told_that_it_is_open() {
    for closes in [false, true] {
        let (hosts, service) = two_hosts();
        let id = hosts.image();
        let (pool, opened) = (hosts.pool(0), Arc::new(Mutex::new(None)));
        let faster = Arc::clone(&opened);
        service.before("put images/", move || {
            let image = pool.open(id).unwrap();
            match closes {
                true => image.close().unwrap(),
                false => *faster.lock().unwrap() = Some(image),
            }
        });
        let refused = hosts.pool(1).open(id).map(drop).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
        let expected = if closes { "try again" } else { "host-1" };
        assert!(refused.to_string().contains(expected), "{refused}");
        if let Some(image) = opened.lock().unwrap().take() {
            image.close().unwrap();
        }
        hosts.pool(1).open(id).unwrap().close().unwrap();
    }
}

#[test]
fn a_removal_leaves_the_name_to_another_image_that_has_got_it_meanwhile() {
    let (hosts, service) = two_hosts();
    let id = hosts.image();
    let (store, pool) = (hosts.stores[1].clone(), hosts.pool(1));
    // The other host finishes the removal, and gives the name to a new image.
    service.before("put names/", move || {
        store.gc(&pool, &mut |_, _| {}).unwrap();
        pool.create("image", &CreateOptions::sized(1 << 20)).unwrap();
    });
    remove(&hosts, 0, id);
    let new = hosts.pool(0).find("image").unwrap();
    assert_ne!(new, id);
    hosts.stores.iter().zip(0..).for_each(|(store, host)| assert_sound(store, &hosts.pool(host)));
}

#[test]
fn a_rename_and_a_move_to_the_trash_leave_the_name_to_another_image_that_has_got_it_meanwhile() {
    for to_trash in [false, true] {
        let (hosts, service) = two_hosts();
        let id = hosts.image();
        let pool = hosts.pool(1);
        // The other host gives the image another name, and its name to a new image.
        service.before("put names/", move || {
            pool.rename("image", "other").unwrap();
            pool.create("image", &CreateOptions::sized(1 << 20)).unwrap();
        });
        let pool = hosts.pool(0);
        let refused = match to_trash {
            true => pool.move_to_trash(id, "image", None),
            false => pool.rename("image", "mine"),
        };
        let refused = refused.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
        let pool = hosts.pool(0);
        assert_eq!(pool.find("other").unwrap(), id);
        assert_ne!(pool.find("image").unwrap(), id);
        assert!(pool.find("mine").is_err() && pool.trash(&Namespace::DEFAULT).unwrap().is_empty());
    }
}

#[test]
fn a_removal_removes_the_name_that_another_host_gives_the_image_meanwhile() {
    for to_trash in [false, true] {
        let (hosts, service) = two_hosts();
        let id = hosts.image();
        let pool = hosts.pool(1);
        service.before("put names/", move || match to_trash {
            true => pool.move_to_trash(id, "image", None).unwrap(),
            false => pool.rename("image", "other").unwrap(),
        });
        remove(&hosts, 0, id);
        for host in [0, 1] {
            let pool = hosts.pool(host);
            assert!(pool.images(&Namespace::DEFAULT).unwrap().is_empty());
            assert!(pool.trash(&Namespace::DEFAULT).unwrap().is_empty());
            assert_sound(&hosts.stores[host], &pool);
        }
    }
}

#[test]
fn an_image_that_one_host_removes_and_another_one_adds_to_a_group_is_gone_or_a_member() {
    // The other host adds it before this request of the removal, or removes it before this one of the addition.
    for (at, adds) in [
        ("put images/", true),
        ("put names/", true),
        ("put images/", false),
        ("put groups/", false),
        ("get images/", false),
    ] {
        let (hosts, service) = two_hosts();
        let id = hosts.image();
        hosts.pool(0).create_group(&Namespace::DEFAULT, "g").unwrap();
        let (store, pool) = (hosts.stores[1].clone(), hosts.pool(1));
        let add = |pool: &Pool| pool.add_to_group(&Namespace::DEFAULT, "g", pool, id);
        let ends = Arc::new(Mutex::new(None));
        let end = Arc::clone(&ends);
        let first = hosts.pool(0);
        let outcome = match adds {
            true => {
                service.before(at, move || {
                    *end.lock().unwrap() =
                        Some(pool.add_to_group(&Namespace::DEFAULT, "g", &pool, id));
                });
                hosts.stores[0].remove_image(&first, id, &mut |_, _| {})
            }
            false => {
                service.before(at, move || {
                    *end.lock().unwrap() = Some(store.remove_image(&pool, id, &mut |_, _| {}));
                });
                add(&first)
            }
        };
        let met = ends.lock().unwrap().take();
        let (added, removed) = match (adds, met) {
            (true, Some(met)) => (met, outcome),
            (false, Some(met)) => (outcome, met),
            // There is no such request.
            (_, None) => continue,
        };
        let pool = hosts.pool(0);
        let members = pool.group(&Namespace::DEFAULT, "g").unwrap().members;
        let is_there = pool.find("image").is_ok();
        assert_eq!(added.is_ok(), !members.is_empty(), "{at}: {added:?} {removed:?}");
        assert!(members.is_empty() || is_there, "{at}: {added:?} {removed:?}");
        assert_eq!(removed.is_err(), is_there, "{at}: {added:?} {removed:?}");
        if is_there {
            assert!(!pool.info(id).unwrap().name.is_empty());
            hosts.pool(1).open(id).unwrap().close().unwrap();
        }
        hosts.stores.iter().zip(0..).for_each(|(s, host)| assert_sound(s, &hosts.pool(host)));
    }
}

#[test]
fn a_clone_waits_for_an_unprotect_on_another_host_that_may_find_a_child() {
    let (hosts, service) = two_hosts();
    let id = hosts.image();
    let mut image = hosts.pool(0).open(id).unwrap();
    write(&mut image, 1, 1);
    image.snapshot("s").unwrap();
    image.protect("s").unwrap();
    image.close().unwrap();
    let options = CloneOptions::default();
    let pool = hosts.pool(0);
    pool.snapshot(id, "s").clone_to(&pool, "child", &options).unwrap();

    let mut image = hosts.pool(0).open(id).unwrap();
    let cloning: Arc<Mutex<Option<JoinHandle<marcot::Result<ImageId>>>>> = Arc::default();
    let (kept, pool, counted) = (Arc::clone(&cloning), hosts.pool(1), Arc::clone(&service));
    service.before("list children/", move || {
        let before = counted.gets.load(Ordering::SeqCst);
        let clone = move || pool.snapshot(id, "s").clone_to(&pool, "other", &options);
        let thread = std::thread::spawn(clone);
        // It has looked at the head again, so it waits.
        while counted.gets.load(Ordering::SeqCst) < before + 3 && !thread.is_finished() {
            std::thread::yield_now();
        }
        *kept.lock().unwrap() = Some(thread);
    });
    assert_eq!(image.unprotect("s").unwrap_err().kind(), ErrorKind::HasChildren);
    image.close().unwrap();
    let thread = cloning.lock().unwrap().take().expect("the children were listed");
    let clone = thread.join().unwrap().unwrap();
    assert_block(&mut hosts.pool(0).open_read_only(clone).unwrap(), 1, 1);
}

#[test]
fn what_a_lost_host_has_begun_is_shown_to_others_and_taken_back_when_they_are_told() {
    let (hosts, service) = two_hosts();
    let id = hosts.image();
    let mut image = hosts.pool(0).open(id).unwrap();
    image.snapshot("s").unwrap();
    image.protect("s").unwrap();
    image.close().unwrap();
    let pool = hosts.pool(1);
    service.before("put names/", || panic!("it is lost"));
    let options = CloneOptions::default();
    let lost = || pool.snapshot(id, "s").clone_to(&pool, "child", &options).map(drop);
    assert!(catch_unwind(AssertUnwindSafe(lost)).is_err());

    // The host that was lost could take it back by itself. The other one has to be told.
    let (store, pool) = (&hosts.stores[0], hosts.pool(0));
    let begun = || store.gc(&pool, &mut |_, _| {}).unwrap().begun_elsewhere;
    let [found] = &*begun() else { panic!("{:?}", begun()) };
    assert_eq!((&*found.label, &*found.host), ("rbd/child", "host-2"));
    let child = found.id;
    let report = store.check(&pool, &CheckOptions::default(), &mut |_, _| {}).unwrap();
    let [finding] = &*report.findings else { panic!("{:?}", report.findings) };
    assert!(finding.message.contains("host host-2 has begun it"), "{finding:?}");
    assert!(finding.message.contains(&format!("'gc --take-back {child}'")), "{finding:?}");
    let refused = pool.take_back(id).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Exists, "{refused}");
    assert_eq!(store.children(&pool, id, None).unwrap().len(), 1);

    pool.take_back(child).unwrap();
    assert!(begun().is_empty() && store.children(&pool, id, None).unwrap().is_empty());
    assert_eq!(pool.take_back(child).unwrap_err().kind(), ErrorKind::NotFound);
    pool.create("child", &CreateOptions::sized(4096)).unwrap();
    hosts.stores.iter().zip(0..).for_each(|(store, host)| assert_sound(store, &hosts.pool(host)));
}
