//! The local disk keeps the contract of `Disk`, with and without `io_uring`.

use std::path::Path;
use std::sync::Arc;

use marcot_store::{
    AlignedBytes, AsyncRead, AsyncWrite, Disk, DiskFile, FileRead, IoCompletion, LocalDisk,
    LockMode, publish_new, replace,
};

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

/// A file of 64 blocks. None of them is in the page cache, if the file system can drop it.
fn cold_file(directory: &Path) -> (LocalDisk, Arc<dyn DiskFile>) {
    let disk = LocalDisk::new();
    let file = disk.create_new(&directory.join("file"), 0o600).unwrap();
    let data: Vec<u8> = (0..64_u8).flat_map(|block| [block; 4096]).collect();
    file.write_at(0, &[&data]).unwrap();
    file.sync().unwrap();
    file.drop_cache();
    (disk, file)
}

#[test]
fn unsynced_bytes_survive_write_out_and_a_drop_of_the_cache() {
    let directory = tempfile::tempdir().unwrap();
    let disk = LocalDisk::new();
    let file = disk.create_new(&directory.path().join("file"), 0o600).unwrap();
    let data: Vec<u8> = (0..64_u8).flat_map(|block| [block; 4096]).collect();
    file.write_at(0, &[&data]).unwrap();
    file.write_out(0, data.len() as u64 / 2);
    file.drop_cached(0, data.len() as u64);
    // Some blocks are overwritten while they may be in flight.
    file.write_at(0, &[&[9; 16 * 4096]]).unwrap();
    file.drop_cached(0, data.len() as u64);
    let mut found = vec![0; data.len()];
    assert_eq!(file.read_at(0, &mut found).unwrap(), data.len());
    assert!(found[..16 * 4096].iter().all(|byte| *byte == 9));
    assert!(found[16 * 4096..] == data[16 * 4096..]);
}

fn read_in_flight(number: u64, file: &Arc<dyn DiskFile>) -> AsyncRead {
    let (file, buf, result) = (Arc::clone(file), vec![0; 4096], Ok(0));
    AsyncRead { number, file, offset: number * 4096, buf, result }
}

#[test]
fn asynchronous_reads_complete_and_their_descriptor_is_readable_then() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, file) = cold_file(directory.path());
    // A kernel may refuse rings. Then there is no asynchronous I/O.
    let Some(mut reads) = disk.async_io() else { return };
    for number in 0..64 {
        assert!(reads.has_room());
        reads.start(read_in_flight(number, &file));
    }
    // Beyond the end of the file: fewer bytes.
    reads.start(read_in_flight(64, &file));
    reads.submit();
    let mut completed = 0;
    while completed < 65 {
        // SAFETY: the descriptor lives as long as `reads`.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(reads.raw_fd().unwrap()) };
        let mut polled = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => {
                assert_eq!(ready.unwrap(), 1, "{completed} have completed, and no more for 30 s")
            }
        }
        while let Some(landing) = reads.take() {
            let IoCompletion::Read(read) = landing else { panic!("nothing was written") };
            completed += 1;
            let want = if read.number < 64 { 4096 } else { 0 };
            assert_eq!(read.result.unwrap(), want);
            assert!(read.buf[..want].iter().all(|b| u64::from(*b) == read.number));
        }
    }
    assert!(reads.take().is_none());
}

#[test]
fn asynchronous_reads_can_be_dropped_in_flight() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, file) = cold_file(directory.path());
    for submitted in [false, true] {
        let Some(mut reads) = disk.async_io() else { return };
        (0..64).for_each(|number| reads.start(read_in_flight(number, &file)));
        if submitted {
            reads.submit();
        }
    }
}

#[test]
fn cached_bytes_are_read_without_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let (_, file) = cold_file(directory.path());
    let mut buf = vec![0; 4096];
    file.read_at(8192, &mut buf).unwrap();
    match file.read_cached_at(8192, &mut buf) {
        Ok(n) => assert!(n == 4096 && buf.iter().all(|b| *b == 2)),
        // Some file systems do not know what is cached.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::Unsupported),
    }
}

#[test]
fn asynchronous_writes_bypass_the_page_cache_and_are_seen_by_all() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, file) = cold_file(directory.path());
    let Some(mut io) = disk.async_io() else { return };
    // Some file systems have no direct writes.
    let Ok(direct) = file.direct() else { return };
    assert!(io.takes_writes());
    let mut before = vec![0; 4096];
    file.read_at(8 * 4096, &mut before).unwrap();
    file.reserve(0, 128 * 4096).unwrap();
    assert_eq!(file.length().unwrap(), 128 * 4096);
    for number in 0..8 {
        let mut data = AlignedBytes::with_capacity(8 * 4096);
        data.extend_from_slice(&[100 + number as u8; 8 * 4096]);
        let (file, offset) = (Arc::clone(&direct), number * 8 * 4096);
        io.start_write(AsyncWrite { number, file, offset, data, result: Ok(0) });
    }
    io.submit();
    let mut completed = Vec::new();
    while completed.len() < 8 {
        io.wait();
        let Some(IoCompletion::Write(write)) = io.take() else {
            panic!("a write that has completed")
        };
        assert_eq!(write.result.unwrap(), 8 * 4096);
        completed.push(write.number);
    }
    completed.sort_unstable();
    assert_eq!(completed, [0, 1, 2, 3, 4, 5, 6, 7]);
    io.wait();
    assert!(io.take().is_none(), "waiting for nothing ends at once");
    let mut found = vec![0xEE; 128 * 4096];
    assert_eq!(file.read_at(0, &mut found).unwrap(), found.len());
    for (block, bytes) in found.chunks_exact(4096).enumerate() {
        let byte = if block < 64 { 100 + block as u8 / 8 } else { 0 };
        assert!(bytes.iter().all(|b| *b == byte), "block {block}");
    }
}

#[test]
fn await_writers_waits_for_direct_writes_that_another_process_left_in_flight() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, file) = cold_file(directory.path());
    let Ok(direct) = file.direct() else { return };
    let again = disk.open(&directory.path().join("file"), false).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || {
        again.await_writers();
        sender.send(()).unwrap();
    });
    let moment = std::time::Duration::from_millis(50);
    assert!(receiver.recv_timeout(moment).is_err(), "a writer has it open");
    drop(direct);
    waiting.join().unwrap();
    // A process that has waited does not keep others from writing.
    file.direct().unwrap();
}
