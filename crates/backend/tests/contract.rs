//! The promises of every back end, tested on each of them; for a pool in a bucket also on a service that loses
//! requests and answers.

mod lossy;

use std::io::ErrorKind;
use std::sync::Arc;

use marcot_backend::local::{self, LocalHome};
use marcot_backend::memory::{Memory, MemoryMachine};
use marcot_backend::object::leases::HostDirectory;
use marcot_backend::object::memory::MemoryService;
use marcot_backend::{
    At, Backend, ChildKey, HeirKey, Home, Key, Lease, Listed, Prefix, ReadableBy, SegmentKey,
    SegmentSet, Stamp, SwapError,
};
use marcot_format::frame::{FrameKind, encode_message};
use marcot_format::record::HeadRecord;
use marcot_format::segment::SegmentKind;
use marcot_format::{ImageId, PoolId, SnapId};
use marcot_store::{Disk, DiskFile, LocalDisk, LockMode, SystemRandom, World};

use lossy::{Lossy, MISHAPS};

const IMAGE: ImageId = ImageId(0xA1);
const BYTES_MAX: u64 = 1 << 20;

/// The requests of a claim at which mishaps are tried, about.
const MISHAPS_AT_MAX: usize = 60;

/// Runs a claim on an empty pool of each back end.
fn on_each(claim: impl Fn(&Backend)) {
    let directory = tempfile::tempdir().unwrap();
    let disk = LocalDisk::new();
    for part in local::layout::PARTS {
        disk.create_directory(&directory.path().join(part), 0o755).unwrap();
    }
    disk.create_directory(&local::layout::names(directory.path(), ""), 0o755).unwrap();
    disk.create_directory(&local::layout::children(directory.path()), 0o1777).unwrap();
    claim(&local::open(Arc::new(disk), directory.path(), 0o755, Arc::new(SystemRandom)));
    claim(&Memory::default().backend());
    let requests = in_bucket(&claim, |service| Lossy::new(service, |_| None));
    // A claim with many requests is not tested with a mishap at each of them.
    for at in (0..requests).step_by(1 + requests as usize / MISHAPS_AT_MAX) {
        for mishap in MISHAPS {
            in_bucket(&claim, |service| Lossy::once(service, at, mishap));
        }
    }
}

/// Runs a claim on an empty pool in a bucket. Returns the number of requests.
fn in_bucket(claim: &impl Fn(&Backend), lossy: impl Fn(&Arc<MemoryService>) -> Arc<Lossy>) -> u64 {
    let directory = tempfile::tempdir().unwrap();
    let host = HostDirectory::new(Arc::new(LocalDisk::new()), directory.path());
    let service = lossy(&Arc::new(MemoryService::new()));
    claim(&Backend {
        leases: host.leases(Arc::new(SystemRandom)),
        records: Arc::new(lossy::records(service.clone(), 1).beside(host)),
        segments: Memory::default().backend().segments,
        shared: None,
    });
    service.requests()
}

fn name(namespace: &str, name: &str) -> Key {
    Key::Name { namespace: namespace.into(), name: name.into() }
}

fn listed(backend: &Backend, prefix: &Prefix) -> Vec<Key> {
    let mut found = Vec::new();
    let mut add = |listed: Listed<'_>| {
        if let Listed::Key(key) = listed {
            found.push(key.clone());
        }
        true
    };
    backend.records.list(prefix, &mut add).unwrap();
    found.sort();
    found
}

fn head(epoch: u64, version: u64) -> (Stamp, Vec<u8>) {
    let record = HeadRecord { image_id: IMAGE.0, epoch, version, ..HeadRecord::default() };
    (Stamp::of(&record), encode_message(FrameKind::Head, &record))
}

fn kind<T: std::fmt::Debug>(result: std::io::Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// Runs a claim on an empty store of each kind, and on another one of the same machine.
fn on_each_home(claim: impl Fn(&dyn Home, &dyn Home)) {
    let directory = tempfile::tempdir().unwrap();
    let world = World::system();
    let open = |name: &str| LocalHome::open(&world, &directory.path().join(name)).unwrap();
    claim(&open("one"), &open("other"));
    let machine = MemoryMachine::default();
    claim(&machine.home("/one".as_ref()), &machine.home("/other".as_ref()));
}

#[test]
fn a_store_is_made_once() {
    on_each_home(|home, other| {
        assert_eq!(kind(home.record()), ErrorKind::NotFound);
        home.create(b"record").unwrap();
        assert_eq!(kind(home.create(b"again")), ErrorKind::AlreadyExists);
        assert_eq!(home.record().unwrap(), b"record");
        home.replace(b"another").unwrap();
        assert_eq!(home.record().unwrap(), b"another");
        assert_eq!(kind(other.record()), ErrorKind::NotFound);
        drop(home.lock().unwrap());
        drop(home.lock().unwrap());
        assert!(home.pools().unwrap().is_empty() && home.attached().unwrap().is_empty());
    });
}

#[test]
fn a_pool_is_there_with_its_record() {
    on_each_home(|home, _| {
        home.create(b"record").unwrap();
        let own = At::Own("a/b".into());
        assert_eq!(kind(home.open(&own).map(drop)), ErrorKind::NotFound);
        let made = home.create_pool("a/b", ReadableBy::Owner).unwrap();
        assert!(!home.has_pool("a/b").unwrap() && !home.holds_images("a/b").unwrap());
        made.records.create(&Key::Pool, b"pool").unwrap();
        home.settle_pools().unwrap();
        assert!(home.has_pool("a/b").unwrap() && !home.is_link("a/b"));
        assert_eq!(home.pools().unwrap(), ["a/b"]);
        let opened = home.open(&own).unwrap();
        assert!(opened.access.own && opened.access.writable);
        assert_eq!(opened.backend.records.get(&Key::Pool, BYTES_MAX).unwrap(), b"pool");
        opened.backend.records.create(&Key::Head(IMAGE), b"head").unwrap();
        assert!(home.holds_images("a/b").unwrap());
        opened.backend.records.remove(&Key::Pool).unwrap();
        assert!(!home.has_pool("a/b").unwrap() && home.holds_images("a/b").unwrap());
        home.clear_pool("a/b", &opened.access.directory);
        assert!(home.pools().unwrap().is_empty() && !home.holds_images("a/b").unwrap());
    });
}

#[test]
fn a_pool_of_another_store_is_attached_by_its_place() {
    on_each_home(|home, other| {
        home.create(b"record").unwrap();
        other.create(b"record").unwrap();
        let templates = other.create_pool("templates", ReadableBy::All).unwrap();
        templates.records.create(&Key::Pool, b"pool").unwrap();
        let place = other.open(&At::Own("templates".into())).unwrap().access.directory;
        assert_eq!(kind(home.attachment("tmpl")), ErrorKind::NotFound);
        home.attach("tmpl", b"noted").unwrap();
        assert_eq!(kind(home.attach("tmpl", b"again")), ErrorKind::AlreadyExists);
        assert_eq!(home.attachment("tmpl").unwrap(), b"noted");
        assert_eq!(home.attached().unwrap(), ["tmpl"]);
        let at = At::Elsewhere(place.to_str().unwrap().into());
        let opened = home.open(&at).unwrap();
        assert_eq!(opened.backend.records.get(&Key::Pool, BYTES_MAX).unwrap(), b"pool");
        home.detach("tmpl").unwrap();
        assert_eq!(kind(home.detach("tmpl")), ErrorKind::NotFound);
        assert!(home.attached().unwrap().is_empty());
    });
}

#[test]
fn a_mark_is_made_once_and_has_no_bytes() {
    on_each(|backend| {
        let records = &backend.records;
        let mark = Key::Heir(HeirKey::Mark { parent: ImageId(1), image: IMAGE });
        let set = SegmentSet { author: IMAGE, copies: 0xC0 };
        let waiting = Key::Heir(HeirKey::Waiting(set));
        for key in [&mark, &waiting] {
            records.create(key, &[]).unwrap();
            assert_eq!(kind(records.create(key, &[])), ErrorKind::AlreadyExists, "{key:?}");
            records.settle(key).unwrap();
        }
        assert_eq!(listed(backend, &Prefix::Heirs), [mark.clone(), waiting.clone()]);
        records.remove(&mark).unwrap();
        assert_eq!(kind(records.remove(&mark)), ErrorKind::NotFound);
        assert_eq!(listed(backend, &Prefix::Heirs), [waiting]);
    });
}

#[test]
fn a_head_that_is_gone_is_settled_too() {
    on_each(|backend| {
        backend.records.create(&Key::Head(IMAGE), b"head").unwrap();
        backend.records.settle(&Key::Head(IMAGE)).unwrap();
        backend.records.remove(&Key::Head(IMAGE)).unwrap();
        backend.records.settle(&Key::Head(IMAGE)).unwrap();
    });
}

#[test]
fn a_record_is_created_once() {
    on_each(|backend| {
        let records = &backend.records;
        for key in [Key::Pool, name("", "vm"), Key::Head(IMAGE)] {
            assert_eq!(kind(records.get(&key, BYTES_MAX)), ErrorKind::NotFound, "{key:?}");
            assert!(!records.exists(&key).unwrap(), "{key:?}");
            records.create(&key, b"first").unwrap();
            assert_eq!(kind(records.create(&key, b"second")), ErrorKind::AlreadyExists, "{key:?}");
            assert_eq!(records.get(&key, 5).unwrap(), b"first", "{key:?}");
            assert_eq!(kind(records.get(&key, 4)), ErrorKind::FileTooLarge, "{key:?}");
            assert!(records.exists(&key).unwrap(), "{key:?}");
            records.settle(&key).unwrap();
        }
    });
}

#[test]
fn one_of_many_creates_wins() {
    on_each(|backend| {
        let won: usize = std::thread::scope(|scope| {
            let creators = (0..16u8).map(|n| {
                scope.spawn(move || backend.records.create(&name("", "vm"), &[n]).is_ok())
            });
            let creators: Vec<_> = creators.collect();
            creators.into_iter().map(|creator| usize::from(creator.join().unwrap())).sum()
        });
        assert_eq!(won, 1);
    });
}

#[test]
fn a_head_is_swapped_only_for_the_one_that_was_read() {
    on_each(|backend| {
        let ((first, first_bytes), (second, second_bytes)) = (head(1, 1), head(1, 2));
        let key = Key::Head(IMAGE);
        let lost = backend.records.swap(&key, first, &second_bytes);
        assert!(
            matches!(&lost, Err(SwapError::Unchanged(e)) if e.kind() == ErrorKind::NotFound),
            "{lost:?}"
        );
        backend.records.create(&key, &first_bytes).unwrap();
        backend.records.swap(&key, first, &second_bytes).unwrap();
        let (other, other_bytes) = head(2, 2);
        for stale in [first, other] {
            let lost = backend.records.swap(&key, stale, &other_bytes);
            assert!(matches!(lost, Err(SwapError::Changed)), "{lost:?}");
        }
        assert_eq!(backend.records.get(&key, BYTES_MAX).unwrap(), second_bytes);
        backend.records.swap(&key, second, &other_bytes).unwrap();
        assert_eq!(backend.records.get(&key, BYTES_MAX).unwrap(), other_bytes);
    });
}

#[test]
fn a_damaged_head_is_not_swapped() {
    on_each(|backend| {
        let key = Key::Head(IMAGE);
        backend.records.create(&key, b"garbage").unwrap();
        let refused = backend.records.swap(&key, head(1, 1).0, &head(1, 2).1);
        assert!(matches!(refused, Err(SwapError::Unchanged(_))), "{refused:?}");
        assert_eq!(backend.records.get(&key, BYTES_MAX).unwrap(), b"garbage");
    });
}

#[test]
fn a_record_is_put_whether_it_is_there_or_not() {
    on_each(|backend| {
        backend.records.create(&Key::Head(IMAGE), b"head").unwrap();
        for key in [Key::NameHint(IMAGE), Key::TrashNote(IMAGE), Key::GroupNote(IMAGE)] {
            for bytes in [b"one", b"two"] {
                backend.records.put(&key, bytes).unwrap();
                assert_eq!(backend.records.get(&key, BYTES_MAX).unwrap(), bytes);
            }
        }
    });
}

#[test]
fn a_note_is_put_again_after_it_was_removed() {
    on_each(|backend| {
        let records = &backend.records;
        records.create(&Key::Head(IMAGE), b"head").unwrap();
        for key in [Key::NameHint(IMAGE), Key::TrashNote(IMAGE), Key::GroupNote(IMAGE)] {
            assert_eq!(kind(records.remove(&key)), ErrorKind::NotFound);
            records.put(&key, b"one").unwrap();
            records.remove(&key).unwrap();
            assert_eq!(kind(records.get(&key, BYTES_MAX)), ErrorKind::NotFound);
            assert!(!records.exists(&key).unwrap());
            records.put(&key, b"two").unwrap();
            assert_eq!(records.get(&key, BYTES_MAX).unwrap(), b"two");
        }
        records.remove(&Key::Head(IMAGE)).unwrap();
        assert_eq!(listed(backend, &Prefix::Heads), []);
    });
}

#[test]
fn a_name_moves_to_a_free_one() {
    on_each(|backend| {
        let records = &backend.records;
        records.create(&name("", "a"), b"1").unwrap();
        records.create(&name("", "b"), b"2").unwrap();
        assert_eq!(kind(records.rename(&name("", "a"), &name("", "b"))), ErrorKind::AlreadyExists);
        assert_eq!(kind(records.rename(&name("", "x"), &name("", "c"))), ErrorKind::NotFound);
        records.rename(&name("", "a"), &name("", "c")).unwrap();
        assert_eq!(listed(backend, &Prefix::Names(String::new())), [name("", "b"), name("", "c")]);
        assert_eq!(records.get(&name("", "c"), BYTES_MAX).unwrap(), b"1");
    });
}

#[test]
fn a_name_is_removed_only_where_it_leads_to_what_is_meant() {
    on_each(|backend| {
        let records = &backend.records;
        records.create(&name("", "a"), b"1").unwrap();
        for other in [&b""[..], b"2", b"11"] {
            assert_eq!(kind(records.remove_same(&name("", "a"), other)), ErrorKind::NotFound);
        }
        assert_eq!(records.get(&name("", "a"), BYTES_MAX).unwrap(), b"1");
        records.remove_same(&name("", "a"), b"1").unwrap();
        assert_eq!(kind(records.get(&name("", "a"), BYTES_MAX)), ErrorKind::NotFound);
        assert_eq!(kind(records.remove_same(&name("", "a"), b"1")), ErrorKind::NotFound);
    });
}

#[test]
fn a_group_is_replaced_only_by_who_knows_what_it_is() {
    on_each(|backend| {
        let records = &backend.records;
        let (one, two) = (Key::Group(1), Key::Group(2));
        let missing = records.replace(&one, b"", b"1");
        assert!(matches!(missing, Err(SwapError::Unchanged(_))), "{missing:?}");
        records.create(&one, b"1").unwrap();
        assert_eq!(kind(records.create(&one, b"2")), ErrorKind::AlreadyExists);
        records.create(&two, b"2").unwrap();
        assert_eq!(listed(backend, &Prefix::Groups), [one.clone(), two.clone()]);
        for other in [&b""[..], b"2", b"11"] {
            assert!(matches!(records.replace(&one, other, b"3"), Err(SwapError::Changed)));
        }
        records.replace(&one, b"1", b"three").unwrap();
        assert_eq!(records.get(&one, BYTES_MAX).unwrap(), b"three");
        records.remove(&two).unwrap();
        records.settle(&two).unwrap();
        assert_eq!(listed(backend, &Prefix::Groups), [one]);
    });
}

#[test]
fn a_namespace_goes_when_it_is_empty() {
    on_each(|backend| {
        let (records, team) = (&backend.records, Key::Namespace("team".into()));
        let missing = kind(records.create(&name("team", "vm"), b"1"));
        assert_eq!(missing, ErrorKind::NotFound);
        assert!(records.exists(&Key::Namespace(String::new())).unwrap());
        assert!(!records.exists(&team).unwrap());
        records.create(&team, b"").unwrap();
        assert_eq!(kind(records.create(&team, b"")), ErrorKind::AlreadyExists);
        records.create(&name("team", "vm"), b"1").unwrap();
        records.create(&name("", "vm"), b"2").unwrap();
        assert_eq!(listed(backend, &Prefix::Namespaces), std::slice::from_ref(&team));
        assert_eq!(listed(backend, &Prefix::Names("team".into())), [name("team", "vm")]);
        assert_eq!(kind(records.remove(&team)), ErrorKind::DirectoryNotEmpty);
        records.remove(&name("team", "vm")).unwrap();
        records.settle(&name("team", "vm")).unwrap();
        records.remove(&team).unwrap();
        assert_eq!(kind(records.remove(&team)), ErrorKind::NotFound);
        let gone = records.list(&Prefix::Names("team".into()), &mut |_| true);
        assert_eq!(kind(gone), ErrorKind::NotFound);
        assert_eq!(kind(records.settle(&name("team", "vm"))), ErrorKind::NotFound);
    });
}

#[test]
fn a_head_goes_with_what_is_kept_beside_it() {
    on_each(|backend| {
        backend.records.create(&Key::Head(IMAGE), b"head").unwrap();
        let beside = [Key::NameHint(IMAGE), Key::TrashNote(IMAGE), Key::GroupNote(IMAGE)];
        beside.iter().for_each(|key| backend.records.put(key, b"beside").unwrap());
        drop(backend.leases.take(Lease::Owner(IMAGE), LockMode::Exclusive, false).unwrap());
        assert_eq!(listed(backend, &Prefix::Heads), [Key::Head(IMAGE)]);
        backend.records.remove(&Key::Head(IMAGE)).unwrap();
        assert_eq!(listed(backend, &Prefix::Heads), []);
        for key in &beside {
            assert_eq!(kind(backend.records.get(key, BYTES_MAX)), ErrorKind::NotFound);
        }
        assert_eq!(kind(backend.records.remove(&Key::Head(IMAGE))), ErrorKind::NotFound);
    });
}

#[test]
fn children_and_markers_are_listed_together() {
    on_each(|backend| {
        let key = |image| ChildKey {
            parent_pool: PoolId(1),
            parent_image: ImageId(2),
            snap: SnapId(3),
            child_pool: PoolId(4),
            child_image: ImageId(image),
            clone_format: 2,
        };
        backend.records.create(&Key::Child(key(5)), b"own").unwrap();
        backend.records.create(&Key::Marker(key(6)), b"other").unwrap();
        assert_eq!(listed(backend, &Prefix::Children), [key(5), key(6)].map(Key::Child));
        backend.records.remove(&Key::Marker(key(6))).unwrap();
        assert_eq!(listed(backend, &Prefix::Children), [Key::Child(key(5))]);
        let mut seen = 0;
        backend.records.create(&Key::Child(key(7)), b"own").unwrap();
        let mut first_only = |_: Listed<'_>| {
            seen += 1;
            false
        };
        backend.records.list(&Prefix::Children, &mut first_only).unwrap();
        assert_eq!(seen, 1);
    });
}

#[test]
fn a_segment_is_created_once_and_read_in_ranges() {
    on_each(|backend| {
        let segments = &backend.segments;
        let set = SegmentSet { author: IMAGE, copies: 0 };
        let key = SegmentKey { set, kind: SegmentKind::Data, sequence: 1 };
        assert!(segments.list(set).unwrap().is_empty());
        assert_eq!(kind(segments.create(key, b"head").map(drop)), ErrorKind::NotFound);
        segments.create_set(set).unwrap();
        segments.create_set(set).unwrap();
        let file = segments.create(key, b"head").unwrap();
        file.write_at(4, &[b"data"]).unwrap();
        file.sync().unwrap();
        assert_eq!(kind(segments.create(key, b"x").map(drop)), ErrorKind::AlreadyExists);
        let reader = segments.open(key, false).unwrap();
        let mut buf = [0; 6];
        assert_eq!(reader.read_at(2, &mut buf).unwrap(), 6);
        assert_eq!(&buf, b"addata");
        assert_eq!((segments.sets().unwrap(), segments.list(set).unwrap()), (vec![set], vec![key]));
        assert_eq!(kind(segments.remove_set(set)), ErrorKind::DirectoryNotEmpty);
        assert!(segments.remove(key).unwrap() > 0);
        assert!(reader.is_removed().unwrap());
        assert_eq!(kind(segments.open(key, false).map(drop)), ErrorKind::NotFound);
        assert_eq!(kind(segments.remove(key)), ErrorKind::NotFound);
        segments.settle(key).unwrap();
        segments.remove_set(set).unwrap();
    });
}

#[test]
fn a_segment_that_is_used_again_keeps_what_lies_behind_its_start_and_replaces_no_other() {
    on_each(|backend| {
        let segments = &backend.segments;
        let set = SegmentSet { author: IMAGE, copies: 0 };
        let key = |sequence| SegmentKey { set, kind: SegmentKind::Data, sequence };
        segments.create_set(set).unwrap();
        segments.create(key(1), b"dead....data").unwrap();
        segments.create(key(2), b"another").unwrap();
        assert_eq!(kind(segments.reuse(key(9), key(3), b"new").map(drop)), ErrorKind::NotFound);
        let taken = segments.reuse(key(1), key(2), b"new").map(drop);
        assert_eq!(kind(taken), ErrorKind::AlreadyExists);
        let read = |sequence| {
            let mut buf = [0; 12];
            let n = segments.open(key(sequence), false).unwrap().read_at(0, &mut buf).unwrap();
            buf[..n].to_vec()
        };
        assert_eq!(read(2), b"another");
        let file = segments.reuse(key(1), key(3), b"next").unwrap();
        file.write_at(4, &[b"++"]).unwrap();
        assert_eq!(read(3), b"next++..data");
        assert_eq!(kind(segments.open(key(1), false).map(drop)), ErrorKind::NotFound);
        assert_eq!(segments.list(set).unwrap(), vec![key(2), key(3)]);
        segments.remove(key(2)).unwrap();
        segments.remove(key(3)).unwrap();
        segments.remove_set(set).unwrap();
    });
}

#[test]
fn what_is_punched_out_of_a_segment_reads_as_zeros() {
    on_each(|backend| {
        let set = SegmentSet { author: IMAGE, copies: 0xC0 };
        let key = SegmentKey { set, kind: SegmentKind::Data, sequence: 1 };
        backend.segments.create_set(set).unwrap();
        backend.segments.create(key, &[7; 3 * 4096]).unwrap();
        backend.segments.open(key, true).unwrap().punch(4096, 4096).unwrap();
        let mut buf = [1; 3 * 4096];
        let file: Arc<dyn DiskFile> = backend.segments.open(key, false).unwrap();
        assert_eq!(file.read_at(0, &mut buf).unwrap(), 3 * 4096);
        assert!(buf[..4096].iter().chain(&buf[8192..]).all(|b| *b == 7));
        assert!(buf[4096..8192].iter().all(|b| *b == 0));
    });
}

#[test]
fn a_lease_has_one_exclusive_holder_or_many_who_share_it() {
    on_each(|backend| {
        backend.records.create(&Key::Head(IMAGE), b"head").unwrap();
        let leases = &backend.leases;
        let take = |lease, mode| leases.take(lease, mode, false).unwrap();
        for lease in [Lease::Catalogue, Lease::Owner(IMAGE), Lease::Snapshot(IMAGE, SnapId(1))] {
            assert!(!leases.was_taken(lease), "{lease:?}");
            let first = take(lease, LockMode::Shared);
            let second = take(lease, LockMode::Shared);
            assert!(first.is_some() && second.is_some(), "{lease:?}");
            assert!(take(lease, LockMode::Exclusive).is_none(), "{lease:?}");
            drop((first, second));
            let alone = take(lease, LockMode::Exclusive);
            assert!(alone.is_some() && leases.was_taken(lease), "{lease:?}");
            assert!(take(lease, LockMode::Shared).is_none(), "{lease:?}");
            leases.note_holder(lease, "process 7");
            assert_eq!(leases.holder(lease).as_deref(), Some("process 7"), "{lease:?}");
        }
    });
}

#[test]
fn who_waits_for_a_lease_gets_it() {
    on_each(|backend| {
        let held = backend.leases.take(Lease::Catalogue, LockMode::Exclusive, true).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let taken = backend.leases.take(Lease::Catalogue, LockMode::Exclusive, true);
                taken.unwrap().is_some()
            });
            drop(held);
            assert!(waiter.join().unwrap());
        });
    });
}
