use std::os::unix::fs::symlink;

use super::*;

fn record(id: u32) -> MappedRecord {
    MappedRecord {
        id,
        pid: 1,
        boot: boot(),
        store: "/store".into(),
        pool: "rbd".into(),
        namespace: String::new(),
        image: "a".into(),
        image_number: 7,
        snap: String::new(),
        snap_number: 0,
        device: "/dev/loop0".into(),
        driver: Driver::Fuse,
        read_only: false,
        label: "rbd/a".into(),
        cookie: String::new(),
        names: DeviceNames::default(),
    }
}

fn registry() -> (tempfile::TempDir, Registry) {
    let scratch = tempfile::tempdir().unwrap();
    let registry = Registry::open_in(&scratch.path().join("run")).unwrap();
    (scratch, registry)
}

#[test]
fn records_are_listed_by_number_and_removed() {
    let (_scratch, registry) = registry();
    for id in [10, 2] {
        registry.write(&record(id)).unwrap();
    }
    let ids = |r: &Registry| r.list().unwrap().records.iter().map(|r| r.id).collect::<Vec<_>>();
    assert_eq!(ids(&registry), [2, 10]);
    assert_eq!(registry.read(2).unwrap(), Some(record(2)));
    registry.remove(2);
    assert_eq!(ids(&registry), [10]);
}

#[test]
fn records_that_make_no_sense_or_are_not_ours_are_left_out_and_reported() {
    let (scratch, registry) = registry();
    let run = registry.directory().to_owned();
    let write = |id: u32, record: &MappedRecord| {
        std::fs::write(run.join(record_name(id)), serde_json::to_vec(record).unwrap()).unwrap();
    };
    write(0, &record(1));
    write(1, &MappedRecord { device: "/dev/sda".into(), ..record(1) });
    write(2, &MappedRecord { device: "/dev/nbd0".into(), ..record(2) });
    write(3, &MappedRecord { image: String::new(), ..record(3) });
    write(4, &MappedRecord { store: "store".into(), ..record(4) });
    std::fs::write(run.join("5.json"), "{}").unwrap();
    std::fs::write(run.join("6.json"), vec![b' '; RECORD_BYTES_MAX as usize + 1]).unwrap();
    write(7, &record(7));
    std::fs::rename(run.join("7.json"), scratch.path().join("record")).unwrap();
    symlink(scratch.path().join("record"), run.join("7.json")).unwrap();
    write(8, &record(8));
    let listing = registry.list().unwrap();
    assert_eq!(listing.records, [record(8)]);
    assert_eq!(listing.refused.len(), 8, "{:?}", listing.refused);
}

#[test]
fn a_number_is_reserved_once_and_free_again_when_its_command_has_gone() {
    let (_scratch, registry) = registry();
    let first = registry.reserve(|_| true).unwrap();
    assert_eq!(first.id, 0);
    assert_eq!(registry.reserve(|id| id != 1).unwrap().id, 2);
    registry.write(&record(1)).unwrap();
    assert_eq!(registry.reserve(|_| true).unwrap().id, 2);
    drop(first);
    assert_eq!(registry.reserve(|_| true).unwrap().id, 0);
}

#[test]
fn endings_are_told_until_they_are_taken_back() {
    let (_scratch, registry) = registry();
    assert!(!registry.ends_by(0, Ending::Force));
    registry.set_ending(0, Ending::Force).unwrap();
    assert!(registry.ends_by(0, Ending::Force) && !registry.ends_by(0, Ending::Detach));
    registry.clear_endings(0);
    assert!(!registry.ends_by(0, Ending::Force));
}

#[test]
fn nobody_serves_a_device_because_a_record_says_so() {
    let (_scratch, registry) = registry();
    // This process is alive, but does not hold the lock.
    registry.write(&MappedRecord { pid: std::process::id(), ..record(0) }).unwrap();
    assert!(registry.server(0).unwrap().is_none());
}
