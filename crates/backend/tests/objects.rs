//! Records of a pool in a bucket: every outcome is the right one, whatever a service loses, whoever dies, and
//! whoever else is at work.

mod lossy;

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::sync::{Arc, Mutex};

use marcot_backend::memory::Memory;
use marcot_backend::object::envelope::PutError;
use marcot_backend::object::memory::MemoryService;
use marcot_backend::object::records::ObjectRecords;
use marcot_backend::object::service::ObjectService;
use marcot_backend::{Key, Listed, Prefix, Records, Stamp};
use marcot_format::frame::{FrameKind, encode_message};
use marcot_format::record::HeadRecord;
use marcot_format::{ImageId, crc32c};

use lossy::{Lossy, MISHAPS, Mishap, Seeded, impatient, objects, records};

const BYTES_MAX: u64 = 1 << 20;
const IMAGE: ImageId = ImageId(0xA1);
const WRITERS: u64 = 4;
/// The share of requests with a mishap is one of so many.
const MISHAPS_ONE_OF: u64 = 5;

fn name(namespace: &str, name: &str) -> Key {
    Key::Name { namespace: namespace.into(), name: name.into() }
}

/// A service on which each request may have a mishap.
fn unreliable(service: &Arc<MemoryService>, seed: u64) -> Arc<Lossy> {
    let random = Seeded::new(seed);
    Lossy::new(service, move |_| match random.below(MISHAPS_ONE_OF) {
        0 => Some(MISHAPS[random.below(MISHAPS.len() as u64) as usize]),
        _ => None,
    })
}

fn names(records: &dyn Records, namespace: &str) -> BTreeMap<String, Vec<u8>> {
    let mut found = Vec::new();
    let prefix = Prefix::Names(namespace.to_owned());
    let listed = records.list(&prefix, &mut |listed| {
        if let Listed::Key(Key::Name { name, .. }) = listed {
            found.push(name.clone());
        }
        true
    });
    if listed.is_err() {
        return BTreeMap::new();
    }
    let record = |found: &String| records.get(&name(namespace, found), BYTES_MAX).unwrap();
    let read: BTreeMap<_, _> = found.iter().map(|found| (found.clone(), record(found))).collect();
    let with_records = records.names(namespace, BYTES_MAX).unwrap().into_iter();
    assert_eq!(
        with_records.map(|(name, bytes)| (name, bytes.unwrap())).collect::<BTreeMap<_, _>>(),
        read
    );
    read
}

fn heads(records: &dyn Records) -> Vec<Key> {
    let mut found = Vec::new();
    let mut add = |listed: Listed<'_>| {
        if let Listed::Key(key) = listed {
            found.push(key.clone());
        }
        true
    };
    records.list(&Prefix::Heads, &mut add).unwrap();
    found
}

fn head(epoch: u64, version: u64) -> (Stamp, Vec<u8>) {
    let record = HeadRecord { image_id: IMAGE.0, epoch, version, ..HeadRecord::default() };
    (Stamp::of(&record), encode_message(FrameKind::Head, &record))
}

#[test]
fn each_change_that_was_answered_is_there_exactly_once() {
    const CHANGES: u64 = 40;
    for seed in 0..20 {
        let service = Arc::new(MemoryService::new());
        let told: Mutex<HashMap<u64, bool>> = Mutex::default();
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (service, told) = (&service, &told);
                scope.spawn(move || {
                    let seed = seed * WRITERS + writer;
                    let objects = objects(unreliable(service, seed), !seed);
                    for change in 0..CHANGES {
                        let token = writer * CHANGES + change + 1;
                        let stored = objects.get("log").unwrap();
                        let body = stored.as_ref().and_then(|stored| stored.body());
                        let mut body = body.unwrap_or_default().to_vec();
                        body.extend(token.to_le_bytes());
                        let put = match &stored {
                            None => objects.create("log", &body),
                            Some(stored) => objects.replace("log", stored, &body),
                        };
                        let done = match put {
                            Ok(_) => true,
                            Err(PutError::Lost) => false,
                            // So many changes of others came between that nobody can tell.
                            Err(PutError::Unknown(_)) => continue,
                            Err(PutError::Failed(error)) => panic!("{error}"),
                        };
                        told.lock().unwrap().insert(token, done);
                    }
                });
            }
        });
        let log = objects(service.clone(), 1).get("log").unwrap().unwrap();
        let mut seen: HashMap<u64, usize> = HashMap::new();
        for token in log.body().unwrap().chunks(8) {
            *seen.entry(u64::from_le_bytes(token.try_into().unwrap())).or_default() += 1;
        }
        let told = told.into_inner().unwrap();
        assert!(told.values().any(|done| *done), "seed {seed}");
        for (token, done) in told {
            let times = seen.get(&token).copied().unwrap_or(0);
            assert_eq!(times, usize::from(done), "seed {seed}, change {token}");
        }
    }
}

/// What a call did: nothing to tell, or why it failed.
type Answer = Result<(), ErrorKind>;

/// A call that changes names.
#[derive(Debug, Clone)]
enum Call {
    Create(Key, u8),
    Remove(Key),
    Rename(Key, Key),
}

impl Call {
    fn run(&self, records: &dyn Records) -> Answer {
        let done = match self {
            Self::Create(key, byte) => records.create(key, &[*byte]),
            Self::Remove(key) => records.remove(key),
            Self::Rename(from, to) => records.rename(from, to),
        };
        done.map_err(|error| error.kind())
    }
}

/// Names of which the first two lie in one directory, and the others in others.
fn some_names() -> [String; 4] {
    let directory = |name: &String| crc32c(name.as_bytes()) % 64;
    let mut all = (0..).map(|n| format!("image-{n}"));
    let first = all.next().unwrap();
    let mut beside = all.clone().filter(|name| directory(name) == directory(&first));
    let second = beside.next().unwrap();
    let mut others: Vec<String> = Vec::new();
    for name in all {
        let taken = others.iter().chain([&first]).any(|n| directory(n) == directory(&name));
        if !taken {
            others.push(name);
        }
        if others.len() == 2 {
            break;
        }
    }
    let [third, fourth] = others.try_into().unwrap();
    [first, second, third, fourth]
}

/// A call with names of a namespace, by two numbers.
fn call(random: &Seeded, names: &[String], namespace: &str) -> Call {
    let key = || name(namespace, &names[random.below(names.len() as u64) as usize]);
    match random.below(5) {
        0 | 1 => Call::Create(key(), random.below(250) as u8),
        2 => Call::Remove(key()),
        _ => Call::Rename(key(), key()),
    }
}

#[test]
fn names_in_a_bucket_are_as_names_in_memory() {
    let all = some_names();
    for seed in 0..60 {
        let service = Arc::new(MemoryService::new());
        let bucket = records(unreliable(&service, seed), seed);
        let memory = Memory::default().backend().records;
        let random = Seeded::new(!seed);
        let team = Key::Namespace("team".into());
        for step in 0..60 {
            let namespace = ["", "team"][random.below(2) as usize];
            let shown;
            let (in_bucket, in_memory) = if random.below(12) == 0 {
                let create = random.below(2) == 0;
                shown = format!("namespace, create: {create}");
                let run = |records: &dyn Records| match create {
                    true => records.create(&team, b""),
                    false => records.remove(&team),
                };
                let run = |records: &dyn Records| run(records).map_err(|error| error.kind());
                (run(&bucket), run(&*memory))
            } else {
                let call = call(&random, &all, namespace);
                if matches!(&call, Call::Rename(from, to) if from == to) {
                    continue;
                }
                shown = format!("{call:?}");
                (call.run(&bucket), call.run(&*memory))
            };
            assert_eq!(in_bucket, in_memory, "seed {seed}, step {step}: {shown}");
            for namespace in ["", "team"] {
                let (in_bucket, in_memory) =
                    (names(&bucket, namespace), names(&*memory, namespace));
                assert_eq!(in_bucket, in_memory, "seed {seed}, step {step}: {shown}");
            }
        }
    }
}

/// The answers of two calls, and the names afterwards.
type Story = (Answer, Answer, BTreeMap<String, Vec<u8>>);

/// Prepares a pool: some names, one of which has been moved before.
fn prepare(records: &dyn Records, all: &[String]) {
    records.create(&name("", "moved-before"), &[2]).unwrap();
    records.rename(&name("", "moved-before"), &name("", &all[2])).unwrap();
    records.create(&name("", &all[0]), &[1]).unwrap();
}

/// Runs the first call. The second one is run by another process before a request of the first.
fn interleaved(all: &[String], first: &Call, second: &Call, at: u64) -> (Story, bool) {
    let service = Arc::new(MemoryService::new());
    prepare(&records(service.clone(), 1), all);
    let between: Arc<Mutex<Option<Answer>>> = Arc::default();
    let plan = {
        let (between, service, second) = (between.clone(), service.clone(), second.clone());
        move |request| {
            if request == at {
                *between.lock().unwrap() = Some(second.run(&records(service.clone(), 3)));
            }
            None
        }
    };
    let one = first.run(&records(Lossy::new(&service, plan), 2));
    let other = *between.lock().unwrap();
    let reached = other.is_some();
    let after = records(service.clone(), 4);
    ((one, other.unwrap_or_else(|| second.run(&after)), names(&after, "")), reached)
}

#[test]
fn two_who_change_names_at_the_same_time_act_one_after_the_other() {
    let all = some_names();
    let keys: Vec<Key> = all.iter().map(|n| name("", n)).collect();
    let mut calls = Vec::new();
    for (i, key) in keys.iter().enumerate() {
        calls.push(Call::Create(key.clone(), 10 + i as u8));
        calls.push(Call::Remove(key.clone()));
        for other in keys.iter().filter(|other| *other != key) {
            calls.push(Call::Rename(key.clone(), other.clone()));
        }
    }
    for first in &calls {
        for second in &calls {
            let in_order = |one: &Call, other: &Call| {
                let memory = Memory::default().backend().records;
                prepare(&*memory, &all);
                let answers = (one.run(&*memory), other.run(&*memory));
                (answers, names(&*memory, ""))
            };
            let ((one, other), after) = in_order(first, second);
            let before: Story = (one, other, after);
            let ((other, one), after) = in_order(second, first);
            let behind: Story = (one, other, after);
            for at in 0.. {
                let (story, reached) = interleaved(&all, first, second, at);
                assert!(
                    story == before || story == behind,
                    "{first:?} with {second:?} before request {at}: {story:?}, and neither {before:?} \
                     nor {behind:?}"
                );
                if !reached {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_rename_whose_process_dies_is_done_or_not_done() {
    let all = some_names();
    let calls = |from: &Key, to: &Key, free: &Key| {
        vec![
            Call::Remove(from.clone()),
            Call::Remove(to.clone()),
            Call::Create(from.clone(), 9),
            Call::Create(to.clone(), 9),
            Call::Rename(from.clone(), free.clone()),
            Call::Rename(to.clone(), free.clone()),
            Call::Rename(to.clone(), from.clone()),
        ]
    };
    let free = name("", &all[3]);
    let elsewhere = "somewhere-else";
    for (from, to) in [(&*all[0], &*all[1]), (&all[0], elsewhere), (&all[2], elsewhere)] {
        let (from, to) = (name("", from), name("", to));
        let memory = || {
            let memory = Memory::default().backend().records;
            prepare(&*memory, &all);
            memory
        };
        let old = names(&*memory(), "");
        let new = {
            let memory = memory();
            memory.rename(&from, &to).unwrap();
            names(&*memory, "")
        };
        let (mut done, mut not_done) = (0, 0);
        for (at, carried_out) in (0..12).flat_map(|at| [(at, false), (at, true)]) {
            for next in calls(&from, &to, &free) {
                let service = Arc::new(MemoryService::new());
                prepare(&records(service.clone(), 1), &all);
                let dies = Lossy::dies(&service, at, carried_out);
                let _ = impatient(dies, 2).rename(&from, &to);
                let heir = records(service.clone(), 3);
                let seen = names(&heir, "");
                assert!(seen == old || seen == new, "{from:?} to {to:?}, died at {at}: {seen:?}");
                let oracle = memory();
                if seen == new {
                    oracle.rename(&from, &to).unwrap();
                    done += 1;
                } else {
                    not_done += 1;
                }
                let shown = format!("{from:?} to {to:?}, died at {at}, {carried_out}: {next:?}");
                assert_eq!(next.run(&heir), next.run(&*oracle), "{shown}");
                assert_eq!(names(&heir, ""), names(&*oracle, ""), "{shown}");
            }
        }
        assert!(done > 0 && not_done > 0, "{from:?} to {to:?}: {done}, {not_done}");
    }
}

#[test]
fn writers_of_names_win_and_lose_as_often_as_they_are_told() {
    let all: Vec<String> = (0..12).map(|n| format!("vm-{n}")).collect();
    for seed in 0..6 {
        let service = Arc::new(MemoryService::new());
        let (count, unknown): (i64, i64) = std::thread::scope(|scope| {
            let writers = (0..WRITERS).map(|writer| {
                let (service, all) = (&service, &all);
                scope.spawn(move || {
                    let seed = seed * WRITERS + writer;
                    let mine = records(unreliable(service, seed), !seed);
                    let (random, mut count, mut unknown) = (Seeded::new(seed + 1000), 0, 0);
                    for byte in 0..40 {
                        let mut call = call(&random, all, "");
                        if let Call::Create(_, created) = &mut call {
                            *created = writer as u8 * 40 + byte;
                        }
                        count += match (&call, call.run(&mine)) {
                            (Call::Create(..), Ok(())) => 1,
                            (Call::Remove(_), Ok(())) => -1,
                            (_, Ok(())) => 0,
                            (_, Err(ErrorKind::AlreadyExists | ErrorKind::NotFound)) => 0,
                            // So many changes of others came between that nobody can tell.
                            (_, Err(ErrorKind::Other)) => {
                                unknown += 1;
                                0
                            }
                            (call, Err(kind)) => panic!("{call:?}: {kind:?}"),
                        };
                    }
                    (count, unknown)
                })
            });
            let writers: Vec<_> = writers.collect();
            let counts = writers.into_iter().map(|writer| writer.join().unwrap());
            counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        });
        let left = names(&records(service.clone(), 1), "");
        let difference = (left.len() as i64 - count).abs();
        assert!(difference <= unknown, "seed {seed}: {} names, {count} by the answers", left.len());
        let mut values: Vec<_> = left.values().collect();
        values.sort();
        values.dedup();
        assert_eq!(values.len(), left.len(), "seed {seed}: an image has two names");
    }
}

#[test]
fn a_name_is_not_lost_in_a_namespace_that_is_removed_at_the_same_time() {
    let (team, vm) = (Key::Namespace("team".into()), name("team", "vm"));
    let (mut removed, mut kept) = (0, 0);
    for at in (0..).step_by(3) {
        let service = Arc::new(MemoryService::new());
        records(service.clone(), 1).create(&team, b"").unwrap();
        let created: Arc<Mutex<Option<Answer>>> = Arc::default();
        let plan = {
            let (created, service, vm) = (created.clone(), service.clone(), vm.clone());
            move |request| {
                if request == at {
                    let made = records(service.clone(), 3).create(&vm, &[1]);
                    *created.lock().unwrap() = Some(made.map_err(|error| error.kind()));
                }
                None
            }
        };
        let gone = records(Lossy::new(&service, plan), 2).remove(&team).map_err(|e| e.kind());
        let Some(created) = *created.lock().unwrap() else { break };
        let after = records(service.clone(), 4);
        match (gone, created) {
            (Ok(()), Err(ErrorKind::NotFound | ErrorKind::ResourceBusy)) => {
                removed += 1;
                assert!(!after.exists(&team).unwrap(), "request {at}");
            }
            (Err(ErrorKind::DirectoryNotEmpty), Ok(())) => {
                kept += 1;
                assert_eq!(after.get(&vm, BYTES_MAX).unwrap(), [1], "request {at}");
                // Every directory takes names again.
                for n in 0..200 {
                    after.create(&name("team", &format!("vm-{n}")), &[2]).unwrap();
                }
            }
            other => panic!("request {at}: {other:?}"),
        }
    }
    assert!(removed > 10 && kept > 10, "{removed}, {kept}");
}

#[test]
fn a_removal_of_a_namespace_whose_process_died_is_finished_by_another() {
    let team = Key::Namespace("team".into());
    for at in (0..).step_by(7) {
        let service = Arc::new(MemoryService::new());
        records(service.clone(), 1).create(&team, b"").unwrap();
        let dies = Lossy::dies(&service, at, at % 2 == 0);
        let died = impatient(dies, 2).remove(&team).is_err();
        let heir = records(service.clone(), 3);
        if heir.exists(&team).unwrap() {
            heir.remove(&team).unwrap();
        }
        heir.create(&team, b"").unwrap();
        for n in 0..200 {
            heir.create(&name("team", &format!("vm-{n}")), &[2]).unwrap();
        }
        assert_eq!(names(&heir, "team").len(), 200);
        if !died {
            break;
        }
    }
}

#[test]
fn a_pool_takes_no_names_once_it_is_removed() {
    let service = Arc::new(MemoryService::new());
    let pool = records(service.clone(), 1);
    pool.create(&Key::Pool, b"pool").unwrap();
    pool.create(&Key::Namespace("team".into()), b"").unwrap();
    pool.create(&name("team", "vm"), &[1]).unwrap();
    let kind = |result: std::io::Result<()>| result.unwrap_err().kind();
    assert_eq!(kind(pool.remove(&Key::Pool)), ErrorKind::DirectoryNotEmpty);
    pool.remove(&name("team", "vm")).unwrap();
    pool.remove(&Key::Pool).unwrap();
    assert!(!pool.exists(&Key::Pool).unwrap());
    assert_eq!(kind(pool.remove(&Key::Pool)), ErrorKind::NotFound);
    assert_eq!(kind(records(service, 2).create(&name("", "vm"), &[1])), ErrorKind::ResourceBusy);
    pool.create(&Key::Pool, b"another").unwrap();
    assert_eq!(pool.get(&Key::Pool, BYTES_MAX).unwrap(), b"another");
    assert_eq!(kind(pool.create(&Key::Pool, b"third")), ErrorKind::AlreadyExists);
}

#[test]
fn a_head_that_was_removed_does_not_come_back_with_a_late_request() {
    for late in 1..12 {
        let service = Arc::new(MemoryService::new());
        let slow = Lossy::new(&service, move |request| {
            (request == 0).then_some(lossy::Mishap::Late(late))
        });
        let (maker, key) = (records(slow.clone(), 1), Key::Head(IMAGE));
        maker.create(&key, &head(1, 1).1).unwrap();
        records(service.clone(), 2).remove(&key).unwrap();
        for _ in 0..late + 2 {
            let _ = slow.get("pool");
        }
        let after = records(service.clone(), 3);
        assert!(!after.exists(&key).unwrap());
        assert_eq!(heads(&after), []);
        assert_eq!(after.create(&key, b"x").unwrap_err().kind(), ErrorKind::AlreadyExists);
    }
}

#[test]
fn an_image_without_a_head_is_listed_once_and_a_removed_one_is_not() {
    let pool = records(Arc::new(MemoryService::new()), 1);
    pool.put(&Key::NameHint(ImageId(1)), b"hint").unwrap();
    for image in [2, 3, 4] {
        pool.create(&Key::Head(ImageId(image)), &head(1, 1).1).unwrap();
        pool.put(&Key::NameHint(ImageId(image)), b"hint").unwrap();
    }
    pool.remove(&Key::Head(ImageId(3))).unwrap();
    // A hint that was written late.
    pool.remove(&Key::Head(ImageId(4))).unwrap();
    pool.put(&Key::NameHint(ImageId(4)), b"hint").unwrap();
    assert_eq!(heads(&pool), [1, 2, 4].map(|image| Key::Head(ImageId(image))));
}

#[test]
fn a_removal_of_a_note_that_is_carried_out_late_takes_no_later_note() {
    const REQUESTS: u64 = 12;
    for key in [Key::NameHint(IMAGE), Key::TrashNote(IMAGE), Key::GroupNote(IMAGE)] {
        for (at, later) in (0..REQUESTS).flat_map(|at| (1..REQUESTS).map(move |n| (at, n))) {
            let service = Lossy::once(&Arc::new(MemoryService::new()), at, Mishap::Late(later));
            let pool = records(service.clone(), 1);
            pool.create(&Key::Head(IMAGE), &head(1, 1).1).unwrap();
            pool.put(&key, b"one").unwrap();
            pool.remove(&key).unwrap();
            pool.put(&key, b"two").unwrap();
            for _ in 0..2 * REQUESTS {
                assert_eq!(pool.get(&key, BYTES_MAX).unwrap(), b"two", "{at}, {later}");
            }
        }
    }
}

#[test]
fn requests_are_few() {
    let service = Arc::new(MemoryService::new());
    let counted = Lossy::new(&service, |_| None);
    let pool = records(counted.clone(), 1);
    let count = |run: &dyn Fn(&ObjectRecords)| {
        let before = counted.requests();
        run(&pool);
        counted.requests() - before
    };
    let key = Key::Head(IMAGE);
    assert_eq!(count(&|pool| pool.create(&name("", "vm"), &[1]).unwrap()), 2);
    assert_eq!(count(&|pool| pool.create(&key, &head(1, 1).1).unwrap()), 1);
    assert_eq!(count(&|pool| drop(pool.get(&key, BYTES_MAX).unwrap())), 1);
    let swap = |from, to| count(&|pool| pool.swap(&key, head(1, from).0, &head(1, to).1).unwrap());
    assert_eq!([swap(1, 2), swap(2, 3), swap(3, 4)], [1, 1, 1]);
    assert_eq!(count(&|pool| drop(pool.get(&name("", "vm"), BYTES_MAX).unwrap())), 1);
    assert_eq!(count(&|pool| drop(names(pool, "none"))), 1);
    assert_eq!(count(&|pool| pool.rename(&name("", "vm"), &name("", "vm-2")).unwrap()), 6);
    assert_eq!(count(&|pool| pool.settle(&name("", "vm-2")).unwrap()), 0);
    // The directory of the old name is looked at once more.
    assert_eq!(count(&|pool| pool.remove(&name("", "vm-2")).unwrap()), 3);
    for n in 0..10_000u32 {
        pool.create(&name("", &format!("vm-{n}")), &n.to_le_bytes()).unwrap();
    }
    let mut listed = 0;
    let before = counted.requests();
    pool.list(&Prefix::Names(String::new()), &mut |_| {
        listed += 1;
        true
    })
    .unwrap();
    assert_eq!((listed, counted.requests() - before), (10_000, 65));
    let before = counted.requests();
    assert_eq!(pool.names("", BYTES_MAX).unwrap().len(), 10_000);
    assert_eq!(counted.requests() - before, 65);
}

#[test]
fn every_name_that_is_legal_can_be_stored() {
    let pool = records(Arc::new(MemoryService::new()), 1);
    let odd = ["a b", "%2f", "..", ".", "ä", "日本", "a?b#c", "a//b", "*", "\u{7f}", "-", "a\\b"];
    for odd in odd {
        pool.create(&name("", odd), odd.as_bytes()).unwrap();
        pool.create(&Key::Namespace(odd.into()), b"").unwrap();
        pool.create(&name(odd, odd), odd.as_bytes()).unwrap();
    }
    for odd in odd {
        assert_eq!(pool.get(&name("", odd), BYTES_MAX).unwrap(), odd.as_bytes());
        assert_eq!(names(&pool, odd).into_keys().collect::<Vec<_>>(), [odd]);
    }
}

#[test]
fn what_is_no_record_is_told_from_one() {
    use marcot_backend::object::service::Condition;
    let service = Arc::new(MemoryService::new());
    let pool = records(service.clone(), 1);
    let key = Key::Head(IMAGE);
    let object = format!("images/{IMAGE}/head");
    service.put(&object, b"something of another program", &Condition::None).unwrap();
    assert_eq!(pool.get(&key, BYTES_MAX).unwrap_err().kind(), ErrorKind::InvalidData);
    let swapped = pool.swap(&key, head(1, 1).0, &head(1, 2).1);
    assert!(matches!(swapped, Err(marcot_backend::SwapError::Unchanged(_))), "{swapped:?}");
    // A damaged head can be replaced, and given up.
    pool.put(&key, &head(1, 3).1).unwrap();
    assert_eq!(pool.get(&key, BYTES_MAX).unwrap(), head(1, 3).1);
    service.put(&object, b"damaged again", &Condition::None).unwrap();
    pool.remove(&key).unwrap();
    assert!(!pool.exists(&key).unwrap());
    // What a newer version has written is not replaced.
    let mut newer = service.get(&object).unwrap().bytes;
    newer[8] = 9;
    service.put("pool", &newer, &Condition::None).unwrap();
    assert_eq!(pool.put(&Key::Pool, b"pool").unwrap_err().kind(), ErrorKind::Unsupported);
}
