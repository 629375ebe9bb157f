//! The local disk keeps the contract of `Disk`, with and without `io_uring`.

use marcot_store::{Disk, FileRead, LocalDisk, LockMode, publish_new, replace};

fn disks() -> [LocalDisk; 2] {
    [LocalDisk::new(), LocalDisk::plain()]
}

#[test]
fn a_batch_reads_what_was_written_and_stops_at_the_end() {
    for disk in disks() {
        let dir = tempfile::tempdir().unwrap();
        let file = disk.create_new(&dir.path().join("f"), 0o600).unwrap();
        let data: Vec<u8> = (0..400_000u32).map(|i| (i % 251) as u8).collect();
        let parts: Vec<&[u8]> = data.chunks(131).collect();
        file.write_at(0, &parts).unwrap();
        file.sync().unwrap();
        let mut bufs = vec![vec![0u8; 4096]; 300];
        let mut reads: Vec<FileRead<'_>> = bufs
            .iter_mut()
            .enumerate()
            .map(|(i, buf)| FileRead { file: &*file, offset: i as u64 * 1531, buf, result: Ok(0) })
            .collect();
        disk.read_batch(&mut reads);
        for (i, read) in reads.iter().enumerate() {
            let at = i * 1531;
            let want = &data[at.min(data.len())..(at + 4096).min(data.len())];
            assert_eq!(read.result.as_ref().unwrap(), &want.len());
            assert_eq!(&read.buf[..want.len()], want);
        }
    }
}

#[test]
fn names_are_published_once_and_replaced_whole() {
    let disk = LocalDisk::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("name");
    publish_new(&disk, &path, 1, 0o600, b"one").unwrap();
    let second = publish_new(&disk, &path, 2, 0o600, b"two").unwrap_err();
    assert_eq!(second.kind(), std::io::ErrorKind::AlreadyExists);
    replace(&disk, &path, 3, 0o600, b"three").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"three");
    assert_eq!(disk.list(dir.path()).unwrap(), ["name"]);
}

#[test]
fn an_exclusive_lock_excludes_others_until_dropped() {
    let disk = LocalDisk::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let held = disk.lock(&path, LockMode::Exclusive, false).unwrap();
    assert!(held.is_some());
    assert!(disk.lock(&path, LockMode::Shared, false).unwrap().is_none());
    drop(held);
    let one = disk.lock(&path, LockMode::Shared, false).unwrap();
    let two = disk.lock(&path, LockMode::Shared, false).unwrap();
    assert!(one.is_some() && two.is_some());
}

#[test]
fn a_punched_range_reads_as_zeros_and_gives_space_back() {
    let disk = LocalDisk::new();
    let dir = tempfile::tempdir().unwrap();
    let file = disk.create_new(&dir.path().join("f"), 0o600).unwrap();
    file.write_at(0, &[&[7u8; 1 << 20]]).unwrap();
    file.sync().unwrap();
    let before = file.allocated_bytes().unwrap();
    file.punch(4096, 512 << 10).unwrap();
    assert!(file.allocated_bytes().unwrap() < before);
    let mut buf = [1u8; 8192];
    file.read_at(0, &mut buf).unwrap();
    assert!(buf[..4096].iter().all(|b| *b == 7) && buf[4096..].iter().all(|b| *b == 0));
}
