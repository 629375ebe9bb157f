//! Hosts that add one image to two groups of a bucket's pool at once, stopped at each of their requests.

#![expect(clippy::disallowed_methods, reason = "each host is a thread of its own")]

mod support;

use std::cell::RefCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use support::assert_sound;
use support::bucket::Bucket;
use support::hosts::Hosts;

use marcot::{CreateOptions, ErrorKind, ImageId, MemberId, Namespace, Pool, Result};
use marcot_backend::object::memory::MemoryService;
use marcot_backend::object::service::{
    Condition, Object, ObjectService, Page, ServiceError, Version,
};

/// What happens before a request of this thread.
struct Stop {
    /// The beginning of the request: its kind, a space, and its key.
    request: &'static str,
    /// Such requests before it.
    after: usize,
    happens: Box<dyn FnOnce()>,
}

thread_local! {
    static STOP: RefCell<Option<Stop>> = const { RefCell::new(None) };
}

/// Stops this thread before its request of this number that begins so, counted from 0.
fn stop_at(request: &'static str, after: usize, happens: impl FnOnce() + 'static) {
    STOP.set(Some(Stop { request, after, happens: Box::new(happens) }));
}

/// False where the thread did not come to the request. It does not stop there later.
fn has_stopped() -> bool {
    STOP.take().is_none()
}

fn meet(kind: &str, key: &str) {
    let happens = STOP.with_borrow_mut(|stop| match stop {
        Some(Stop { request, after, .. }) if format!("{kind} {key}").starts_with(*request) => {
            if *after == 0 {
                return stop.take().map(|stop| stop.happens);
            }
            *after -= 1;
            None
        }
        _ => None,
    });
    if let Some(happens) = happens {
        happens();
    }
}

/// A service at which threads can be stopped.
#[derive(Default)]
struct Stopping(MemoryService);

impl ObjectService for Stopping {
    fn get(&self, key: &str) -> Result<Object, ServiceError> {
        meet("get", key);
        self.0.get(key)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ServiceError> {
        meet("get", key);
        self.0.get_range(key, range)
    }

    fn put(&self, key: &str, bytes: &[u8], condition: &Condition) -> Result<Version, ServiceError> {
        meet("put", key);
        self.0.put(key, bytes, condition)
    }

    fn remove(&self, key: &str) -> Result<(), ServiceError> {
        meet("remove", key);
        self.0.remove(key)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, ServiceError> {
        meet("list", prefix);
        self.0.list(prefix, after)
    }

    fn show(&self, key: &str) -> String {
        self.0.show(key)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Add(&'static str),
    TakeOut(&'static str),
}

impl Change {
    fn make(self, pool: &Pool, image: ImageId) -> Result<()> {
        match self {
            Self::Add(group) => pool.add_to_group(&Namespace::DEFAULT, group, pool, image),
            Self::TakeOut(group) => {
                let member = MemberId { pool: pool.id(), image };
                pool.remove_from_group(&Namespace::DEFAULT, group, member)
            }
        }
    }
}

/// What was done with the image before.
#[derive(Clone, Copy, Debug)]
enum Before {
    Nothing,
    Added(&'static str),
    AddedAndTakenOut(&'static str),
    /// Who added it to the group was killed after the note, before the group listed it.
    OnlyNoted(&'static str),
}

/// Two hosts, and the groups `a` and `b` in their pool.
fn two_hosts() -> Hosts {
    let bucket = Bucket::default();
    bucket.keep_in("rbd", Arc::<Stopping>::default() as Arc<dyn ObjectService>);
    let hosts = Hosts::with(bucket, 2, true);
    for group in ["a", "b"] {
        hosts.pool(0).create_group(&Namespace::DEFAULT, group).unwrap();
    }
    hosts
}

fn image_of(hosts: &Hosts, before: Before, name: &str) -> ImageId {
    let pool = hosts.pool(0);
    let image = pool.create(name, &CreateOptions::sized(4096)).unwrap();
    match before {
        Before::Nothing => {}
        Before::Added(group) => Change::Add(group).make(&pool, image).unwrap(),
        Before::AddedAndTakenOut(group) => {
            Change::Add(group).make(&pool, image).unwrap();
            Change::TakeOut(group).make(&pool, image).unwrap();
        }
        Before::OnlyNoted(group) => {
            stop_at("put groups/", 0, || panic!("it is killed"));
            let killed = || Change::Add(group).make(&pool, image);
            assert!(catch_unwind(AssertUnwindSafe(killed)).is_err() && has_stopped());
        }
    }
    image
}

/// The groups that list the image.
fn groups_of(pool: &Pool, image: ImageId) -> Vec<&'static str> {
    let lists = |name: &&str| {
        let group = pool.group(&Namespace::DEFAULT, name).unwrap();
        group.members.iter().any(|member| member.image == image)
    };
    ["a", "b"].into_iter().filter(lists).collect()
}

#[track_caller]
fn assert_in_one_group_at_the_most(hosts: &Hosts, image: ImageId, what: &str) {
    for host in [0, 1] {
        let pool = hosts.pool(host);
        let groups = groups_of(&pool, image);
        assert!(groups.len() <= 1, "{what}: {groups:?}");
        let found = pool.group_of(image).unwrap().map(|group| group.name);
        assert_eq!(found.as_deref(), groups.first().copied(), "{what}");
    }
}

/// One host is stopped before its request `first_at`; the other one begins, and is stopped before its request
/// `second_at`; the first one goes on to its end, and then the second one. Returns which of the two did not come so far.
fn race(
    hosts: &Hosts,
    before: Before,
    changes: [Change; 2],
    first_at: usize,
    second_at: usize,
) -> [bool; 2] {
    let what = format!("{before:?}, {changes:?}, stopped at {first_at} and {second_at}");
    let image = image_of(hosts, before, &format!("image-{first_at}-{second_at}"));
    let pools = [hosts.pool(0), hosts.pool(1)];
    let (is_stopped, stopped) = channel();
    let (go_on, going_on) = channel();
    let pool = pools[0].clone();
    let first = std::thread::spawn(move || {
        let ended = is_stopped.clone();
        stop_at("", first_at, move || {
            is_stopped.send(true).unwrap();
            going_on.recv().unwrap();
        });
        let made = changes[0].make(&pool, image);
        let came_so_far = has_stopped();
        // It was not stopped where nobody has heard of it yet.
        let _ = ended.send(false);
        (made, came_so_far)
    });
    stopped.recv().unwrap();
    let begun = go_on.clone();
    let ended = Arc::new(Mutex::new(None));
    let first_ends = {
        let ended = Arc::clone(&ended);
        move || {
            let _ = begun.send(());
            *ended.lock().unwrap() = Some(first.join().unwrap());
        }
    };
    let first_ends = Rc::new(RefCell::new(Some(first_ends)));
    let let_go = {
        let first_ends = Rc::clone(&first_ends);
        move || {
            if let Some(first_ends) = first_ends.take() {
                first_ends();
            }
        }
    };
    stop_at("", second_at, let_go.clone());
    let second = changes[1].make(&pools[1], image);
    let second_came_so_far = has_stopped();
    let_go();
    let (first, first_came_so_far) = ended.lock().unwrap().take().unwrap();

    assert_in_one_group_at_the_most(hosts, image, &what);
    let groups = groups_of(&pools[0], image);
    let taken_out = changes.iter().any(|change| matches!(change, Change::TakeOut(_)));
    for (change, made) in changes.into_iter().zip([first, second]) {
        match (change, made) {
            (Change::Add(group), Ok(())) => {
                assert!(groups.contains(&group) || taken_out, "{what}: {groups:?}");
            }
            (Change::TakeOut(_), Ok(())) => {}
            (_, Err(error)) => {
                let kind = error.kind();
                assert!(matches!(kind, ErrorKind::Busy | ErrorKind::Exists), "{what}: {error}");
            }
        }
    }
    // Whatever is left is in nobody's way.
    for (host, group) in [(1, "b"), (0, "a")] {
        let _ = Change::Add(group).make(&hosts.pool(host), image);
        assert_in_one_group_at_the_most(hosts, image, &what);
    }
    let groups = groups_of(&pools[0], image);
    assert_eq!(groups.len(), 1, "{what}");
    Change::TakeOut(groups[0]).make(&pools[0], image).unwrap();
    [!first_came_so_far, !second_came_so_far]
}

/// Stops both hosts at each of their requests.
fn race_at_each_request(before: Before, changes: [Change; 2]) {
    let hosts = two_hosts();
    for first_at in 0.. {
        for second_at in 0.. {
            let [first_ended, second_ended] = race(&hosts, before, changes, first_at, second_at);
            if first_ended {
                assert!(first_at > 0);
                assert_sound(&hosts.stores[1], &hosts.pool(1));
                return;
            }
            if second_ended {
                break;
            }
        }
    }
}

#[test]
fn an_image_that_two_hosts_add_to_two_groups_at_once_is_in_one() {
    for before in [
        Before::Nothing,
        Before::AddedAndTakenOut("a"),
        Before::OnlyNoted("a"),
        Before::OnlyNoted("b"),
    ] {
        race_at_each_request(before, [Change::Add("a"), Change::Add("b")]);
    }
}

#[test]
fn an_image_that_one_host_takes_out_and_another_one_adds_is_found_by_its_note() {
    let out = Change::TakeOut("a");
    for add in [Change::Add("a"), Change::Add("b")] {
        race_at_each_request(Before::Added("a"), [out, add]);
        race_at_each_request(Before::Added("a"), [add, out]);
    }
}
