//! An image's thread and its NBD clients, over socket pairs.

mod support;

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use marcot::ErrorKind;
use marcot_serve::host::{Completion, DeviceRequest, HostHandle, HostOptions, ImageHost};
use marcot_serve::nbd::NbdConnection;
use marcot_serve::nbd::wire::command_flag::{DF, FUA, REQ_ONE};
use support::memory_device::{MemoryDevice, Probes};
use support::nbd_client::{
    BLOCK_STATUS, CACHE, DISC, FLUSH, NbdClient, READ, TRIM, WRITE, WRITE_ZEROES, request, write,
};

const SIZE_BYTES: u64 = 64 << 20;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EPERM: u32 = 1;

fn host() -> (HostHandle, Probes) {
    serve(MemoryDevice::new(SIZE_BYTES))
}

fn serve(device: MemoryDevice) -> (HostHandle, Probes) {
    let probe = device.probe();
    (ImageHost::start(Box::new(device), HostOptions::default()).unwrap(), probe)
}

fn attach(host: &HostHandle) -> NbdClient {
    attach_with(host, NbdConnection::default())
}

fn attach_structured(host: &HostHandle) -> NbdClient {
    let settings = NbdConnection {
        structured_replies: true,
        allocation_context: true,
        ..NbdConnection::default()
    };
    attach_with(host, settings)
}

fn attach_with(host: &HostHandle, settings: NbdConnection) -> NbdClient {
    let (ours, theirs) = UnixStream::pair().unwrap();
    host.attach_nbd(theirs.into(), settings).unwrap();
    NbdClient::new(ours)
}

#[test]
fn what_is_written_is_read() {
    let (host, _) = host();
    let mut client = attach(&host);
    assert_eq!(client.write(0, 1000, &[7; 5000]), 0);
    assert_eq!(client.read(999, 5002).unwrap(), [&[0][..], &[7; 5000], &[0]].concat());
    assert_eq!(client.ask(TRIM, 0, 0, 4096), 0);
    assert_eq!(client.ask(WRITE_ZEROES, 2, 5000, 1000), 0);
    let want = [vec![0; 4096], vec![7; 904], vec![0; 1000]].concat();
    assert_eq!(client.read(0, 6000).unwrap(), want);
    host.stop().unwrap();
}

#[test]
fn bytes_received_during_the_negotiation_are_requests() {
    let (host, _) = host();
    let received = [write(0, 9, 0, b"early"), request(READ, 0, 10, 0, 5)].concat();
    let mut client = attach_with(&host, NbdConnection { received, ..NbdConnection::default() });
    assert_eq!(client.simple(), (0, 9));
    assert_eq!(client.simple(), (0, 10));
    assert_eq!(client.bytes(5), b"early");
}

#[test]
fn requests_sent_together_are_carried_out_together() {
    let (host, probe) = host();
    let requests: Vec<u8> = (0..32).flat_map(|i| write(0, i, i * 4096, &[i as u8; 4096])).collect();
    let received = requests;
    let mut client = attach_with(&host, NbdConnection { received, ..NbdConnection::default() });
    for cookie in 0..32 {
        assert_eq!(client.simple(), (0, cookie));
    }
    assert_eq!(probe.get().write_batches, [32]);
}

#[test]
fn a_read_sees_the_overlapping_write_before_it_and_not_the_one_after() {
    let (host, _) = host();
    let received = [
        write(0, 1, 0, &[1; 8192]),
        request(READ, 0, 2, 4096, 1),
        write(0, 3, 4096, &[2; 10]),
        request(TRIM, 0, 4, 0, 4096),
        request(READ, 0, 5, 4095, 2),
        write(0, 6, 0, &[3; 10]),
        request(READ, 0, 7, 0, 1),
    ]
    .concat();
    let mut client = attach_with(&host, NbdConnection { received, ..NbdConnection::default() });
    let mut data = Vec::new();
    for (cookie, length) in [(1, 0), (2, 1), (3, 0), (4, 0), (5, 2), (6, 0), (7, 1)] {
        assert_eq!(client.simple(), (0, cookie));
        data.push(client.bytes(length));
    }
    assert_eq!(data, [vec![], vec![1], vec![], vec![], vec![0, 2], vec![], vec![3]]);
}

#[test]
fn one_byte_at_a_time_is_as_good() {
    let (host, _) = host();
    let mut client = attach(&host);
    for byte in [write(0, 1, 4090, b"slow client"), request(READ, 0, 2, 4090, 11)].concat() {
        client.send(&[byte]);
    }
    assert_eq!(client.simple(), (0, 1));
    assert_eq!(client.simple(), (0, 2));
    assert_eq!(client.bytes(11), b"slow client");
}

#[test]
fn a_flush_covers_writes_acknowledged_on_other_connections() {
    let (host, probe) = host();
    let (mut first, mut second) = (attach(&host), attach(&host));
    assert_eq!(host.connections(), 2);
    assert_eq!(first.write(0, 0, &[1; 4096]), 0);
    assert_eq!(probe.get().unflushed_bytes, 4096);
    assert_eq!(second.ask(FLUSH, 0, 0, 0), 0);
    assert_eq!(probe.get().unflushed_bytes, 0);
    assert_eq!(first.write(FUA, 0, &[1; 4096]), 0);
    assert_eq!(probe.get().unflushed_bytes, 0);
    assert_eq!(second.read(0, 1).unwrap(), [1]);
}

#[test]
fn one_flush_serves_everyone_in_the_round() {
    let (host, probe) = host();
    let received: Vec<u8> = (0..10)
        .flat_map(|i| [write(FUA, i, 0, b"x"), request(FLUSH, 0, 100 + i, 0, 0)].concat())
        .collect();
    let mut client = attach_with(&host, NbdConnection { received, ..NbdConnection::default() });
    for _ in 0..20 {
        assert_eq!(client.simple().0, 0);
    }
    assert_eq!(probe.get().flushes, 1);
}

#[test]
fn refused_requests_leave_the_connection_good() {
    let (host, _) = host();
    let mut client = attach(&host);
    assert_eq!(client.read(SIZE_BYTES, 1), Err(EINVAL));
    assert_eq!(client.write(0, SIZE_BYTES - 1, &[1; 100_000]), ENOSPC);
    assert_eq!(client.ask(TRIM, 0, u64::MAX, u32::MAX), EINVAL);
    assert_eq!(client.ask(77, 0, 0, 1), EINVAL);
    assert_eq!(client.ask(FLUSH, 0x8000, 0, 0), EINVAL);
    assert_eq!(client.ask(BLOCK_STATUS, 0, 0, 512), EINVAL);
    // A payload much longer than allowed is skipped, not stored.
    client.send(&request(WRITE, 0, 8, 0, 48 << 20));
    (0..48).for_each(|_| client.send(&vec![1; 1 << 20]));
    assert_eq!(client.simple(), (EINVAL, 8));
    assert_eq!(client.read(0, 4).unwrap(), [0; 4]);
}

#[test]
fn the_largest_request_goes_through() {
    let (host, _) = host();
    let mut client = attach(&host);
    let data: Vec<u8> = (0..32_u32 << 20).map(|i| (i % 253) as u8).collect();
    assert_eq!(client.write(0, 4097, &data), 0);
    assert!(client.read(4097, 32 << 20).unwrap() == data);
}

#[test]
fn a_client_that_does_not_take_its_replies_waits_alone() {
    let (host, _) = host();
    let mut slow = attach(&host);
    for cookie in 0..200 {
        slow.send(&request(READ, 0, cookie, 0, 1 << 20));
    }
    let mut other = attach(&host);
    assert_eq!(other.write(0, 0, &[5; 4096]), 0);
    assert_eq!(other.read(0, 1).unwrap(), [5]);
    for cookie in 0..200 {
        assert_eq!(slow.simple(), (0, cookie));
        slow.bytes(1 << 20);
    }
}

#[test]
fn a_stream_that_makes_no_sense_closes_that_connection_only() {
    let (host, _) = host();
    let (mut bad, mut good) = (attach(&host), attach(&host));
    bad.send(&[write(0, 1, 0, b"ok"), vec![0xee; 100]].concat());
    assert_eq!(bad.simple(), (0, 1));
    assert!(bad.is_closed());
    assert_eq!(good.read(0, 2).unwrap(), b"ok");
    good.send(&request(DISC, 0, 0, 0, 0));
    assert!(good.is_closed());
}

#[test]
fn a_damaged_block_fails_the_reads_that_touch_it() {
    let (host, probe) = host();
    probe.get().corrupt_at = Some(8192);
    let received: Vec<u8> = (0..4).flat_map(|i| request(READ, 0, i, i * 4096, 4096)).collect();
    let mut client = attach_with(&host, NbdConnection { received, ..NbdConnection::default() });
    for cookie in 0..4 {
        let failed = cookie == 2;
        assert_eq!(client.simple(), (if failed { EIO } else { 0 }, cookie));
        client.bytes(if failed { 0 } else { 4096 });
    }
}

#[test]
fn a_full_medium_is_told_and_survived() {
    let (host, probe) = host();
    let mut client = attach(&host);
    probe.get().fail_writes = Some(ErrorKind::NoSpace);
    assert_eq!(client.write(0, 0, b"x"), ENOSPC);
    probe.get().fail_writes = None;
    assert_eq!(client.write(0, 0, b"x"), 0);
}

#[test]
fn a_read_only_image_refuses_writes() {
    let (host, _) = serve(MemoryDevice::new(SIZE_BYTES).read_only());
    let mut client = attach(&host);
    assert_eq!(client.write(0, 0, b"x"), EPERM);
    assert_eq!(client.ask(TRIM, 0, 0, 4096), EPERM);
    assert_eq!(client.read(0, 1).unwrap(), [0]);
}

#[test]
fn a_poisoned_image_answers_and_then_ends() {
    let (host, probe) = host();
    let mut client = attach(&host);
    probe.get().fail_flushes = Some(ErrorKind::Poisoned);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), EIO);
    assert!(client.is_closed());
    assert_eq!(host.wait().unwrap_err().kind(), ErrorKind::Poisoned);
    assert!(host.is_over() && probe.get().closed);
    assert_eq!(host.submit_and_wait(DeviceRequest::Flush).unwrap_err().kind(), ErrorKind::Fenced);
}

#[test]
fn structured_reads_tell_holes() {
    let (host, _) = host();
    let mut client = attach_structured(&host);
    assert_eq!(client.write(0, 64 << 10, &[1; 4096]), 0);
    client.send(&request(READ, 0, 5, 0, 256 << 10));
    let hole = client.chunk();
    assert_eq!((hole.done, hole.kind, hole.cookie), (false, 2, 5));
    assert_eq!(hole.payload, [&0_u64.to_be_bytes()[..], &65536_u32.to_be_bytes()].concat());
    let data = client.chunk();
    assert_eq!((data.done, data.kind, data.payload.len()), (false, 1, 8 + 4096));
    assert_eq!(data.payload[8..], [1; 4096]);
    let last = client.chunk();
    assert_eq!((last.done, last.kind), (true, 2));

    client.send(&request(READ, DF, 6, 0, 256 << 10));
    let whole = client.chunk();
    assert_eq!((whole.done, whole.kind, whole.payload.len()), (true, 1, 8 + (256 << 10)));
}

#[test]
fn structured_errors_carry_a_sentence() {
    let (host, probe) = host();
    let mut client = attach_structured(&host);
    assert_eq!(client.write(0, 0, &[1; 256 << 10]), 0);
    probe.get().corrupt_at = Some(100_000);
    client.send(&request(READ, 0, 5, 0, 256 << 10));
    let error = client.chunk();
    assert_eq!((error.done, error.kind), (true, 0x8001));
    assert_eq!(error.payload[..4], EIO.to_be_bytes());
    assert!(String::from_utf8_lossy(&error.payload[6..]).contains("verification"));
}

#[test]
fn block_status_tells_runs() {
    let (host, _) = host();
    let mut client = attach_structured(&host);
    assert_eq!(client.write(0, 4096, &[1; 8192]), 0);
    let mut status = |flags| {
        client.send(&request(BLOCK_STATUS, flags, 1, 0, 1 << 20));
        let chunk = client.chunk();
        assert_eq!(
            (chunk.done, chunk.kind, chunk.payload[..4].to_vec()),
            (true, 5, vec![0, 0, 0, 1])
        );
        let words = chunk.payload[4..].chunks(4);
        words.map(|w| u32::from_be_bytes(w.try_into().unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(status(0), [4096, 3, 8192, 0, (1 << 20) - 12288, 3]);
    assert_eq!(status(REQ_ONE), [4096, 3]);
    assert_eq!(client.ask(CACHE, 0, 0, 4096), 0);
}

#[test]
fn in_process_requests_meet_the_same_device() {
    let (host, _) = host();
    let write = DeviceRequest::Write { offset: 10, data: b"inside".to_vec(), fua: true };
    host.submit_and_wait(write).unwrap();
    let read = DeviceRequest::Read { offset: 10, length: 6 };
    assert_eq!(host.submit_and_wait(read).unwrap(), b"inside");
    assert_eq!(attach(&host).read(10, 6).unwrap(), b"inside");
    let discard = DeviceRequest::Discard { offset: 0, length: SIZE_BYTES + 1, fua: false };
    assert_eq!(host.submit_and_wait(discard).unwrap_err().kind(), ErrorKind::OutOfRange);
    host.submit_and_wait(DeviceRequest::Flush).unwrap();
}

#[test]
fn dropping_the_last_handle_closes_the_device() {
    let (host, probe) = host();
    let client = attach(&host);
    drop(host);
    for _ in 0..500 {
        if probe.get().closed {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(client);
    panic!("still open");
}

#[test]
fn background_work_runs_when_idle_and_under_load() {
    let (host, probe) = host();
    probe.get().steps_with_more = 100;
    while probe.get().steps <= 100 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let before = probe.get().steps;
    let mut client = attach(&host);
    while probe.get().steps < before + 3 {
        assert_eq!(client.write(0, 0, b"load"), 0);
    }
}

#[test]
fn an_idle_device_gives_memory_back_once_and_is_then_left_alone() {
    let (host, probe) = host();
    let mut client = attach(&host);
    assert_eq!(client.write(0, 0, b"work"), 0);
    let start = Instant::now();
    while probe.get().memory_calls == 0 {
        assert!(start.elapsed() < Duration::from_secs(30), "nobody told it");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(start.elapsed() > Duration::from_secs(5), "a client that pauses is not idle yet");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(probe.get().memory_calls, 1);
}

/// A host whose reads all stay in flight until [`Probes::complete`].
fn slow_host() -> (HostHandle, Probes) {
    let (host, probe) = host();
    probe.get().in_flight = true;
    (host, probe)
}

#[test]
fn a_read_that_waits_for_the_medium_holds_nobody_up() {
    let (host, probe) = slow_host();
    let (mut client, mut other) = (attach(&host), attach(&host));
    client.send(&request(READ, 0, 1, 0, 4096));
    client.send(&request(READ, 0, 2, 8192, 512));
    probe.await_completions(2);
    assert_eq!(client.write(0, 4096, &[5; 4096]), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    probe.get().in_flight = false;
    assert_eq!(other.read(4096, 4096).unwrap(), [5; 4096]);
    // They complete in another order than they were sent.
    probe.complete(1, |_| Ok(2));
    assert_eq!(client.simple(), (0, 2));
    assert_eq!(client.bytes(512), [2; 512]);
    probe.complete(1, |_| Ok(1));
    assert_eq!(client.simple(), (0, 1));
    assert_eq!(client.bytes(4096), [1; 4096]);
    assert_eq!(client.read(4096, 1).unwrap(), [5]);
}

#[test]
fn asynchronous_reads_are_answered_in_chunks_and_so_are_their_errors() {
    let (host, probe) = slow_host();
    let mut client = attach_structured(&host);
    client.send(&request(READ, 0, 1, 4096, 4096));
    client.send(&request(READ, 0, 2, 8192, 4096));
    probe.await_completions(2);
    probe.complete(2, |offset| match offset {
        4096 => Ok(9),
        _ => Err(marcot::Error::new(ErrorKind::Corrupt, "block 2 does not match its checksum")),
    });
    let mut chunks = [client.chunk(), client.chunk()];
    chunks.sort_by_key(|chunk| chunk.cookie);
    let [good, bad] = chunks;
    assert!(good.done && good.cookie == 1 && good.payload[8..] == [9; 4096]);
    assert_eq!(good.payload[..8], 4096_u64.to_be_bytes());
    assert!(bad.done && bad.cookie == 2 && bad.payload[..4] == EIO.to_be_bytes());
    assert!(bad.payload.ends_with(b"does not match its checksum"));
}

#[test]
fn a_client_gets_no_completion_of_a_client_that_left() {
    let (host, probe) = slow_host();
    let mut gone = attach(&host);
    gone.send(&request(READ, 0, 1, 0, 4096));
    probe.await_completions(1);
    drop(gone);
    while host.connections() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    // The next client has the index of the first.
    probe.get().in_flight = false;
    let mut client = attach(&host);
    probe.complete(1, |_| Ok(1));
    assert_eq!(client.read(0, 4096).unwrap(), [0; 4096]);
    client.send(&request(DISC, 0, 2, 0, 0));
    assert!(client.is_closed(), "nothing else has come");
}

#[test]
fn a_client_that_disconnects_still_gets_its_reads_in_flight() {
    let (host, probe) = slow_host();
    let mut client = attach(&host);
    client.send(&request(READ, 0, 1, 0, 4096));
    client.send(&request(DISC, 0, 2, 0, 0));
    probe.await_completions(1);
    probe.complete(1, |_| Ok(1));
    assert_eq!(client.simple(), (0, 1));
    assert_eq!(client.bytes(4096), [1; 4096]);
    assert!(client.is_closed());
}

#[test]
fn the_reads_in_flight_of_a_client_are_limited() {
    let (host, probe) = slow_host();
    let mut client = attach(&host);
    for cookie in 0..10 {
        client.send(&request(READ, 0, cookie, 0, 1 << 20));
    }
    // Replies of 4 MiB are kept for a client, with their headers.
    probe.await_completions(3);
    std::thread::sleep(Duration::from_millis(50));
    let mut seen = 0;
    while seen < 10 {
        let reads_in_flight = probe.get().reads_in_flight.len();
        assert!(reads_in_flight <= 3, "{reads_in_flight} are under way");
        probe.complete(reads_in_flight, |_| Ok(7));
        for _ in 0..reads_in_flight {
            assert_eq!(client.simple().0, 0);
            assert_eq!(client.bytes(1 << 20), [7; 1 << 20]);
        }
        seen += reads_in_flight;
        probe.await_completions((10 - seen).min(3));
    }
}

#[test]
fn a_write_in_flight_is_answered_when_it_is_stored() {
    let (host, probe) = host();
    probe.get().async_writes = true;
    let (mut client, mut other) = (attach(&host), attach(&host));
    client.send(&write(0, 1, 0, &[1; 4096]));
    probe.await_batches(1);
    other.send(&write(0, 2, 8192, &[2; 512]));
    probe.await_batches(2);
    // Neither write has been answered, so the first answer is that to this read.
    assert_eq!(client.read(0, 4096).unwrap(), [1; 4096]);
    assert_eq!(other.read(8192, 512).unwrap(), [2; 512]);
    probe.tell_written(Ok(2));
    assert_eq!(client.simple(), (0, 1));
    assert_eq!(other.read(8192, 512).unwrap(), [2; 512]);
    probe.tell_written(Ok(3));
    assert_eq!(other.simple(), (0, 2));
}

#[test]
fn a_write_that_asks_for_a_flush_is_answered_after_it() {
    let (host, probe) = host();
    probe.get().async_writes = true;
    let mut client = attach(&host);
    client.send(&write(FUA, 1, 0, &[1; 4096]));
    assert_eq!(client.simple(), (0, 1));
    assert_eq!(probe.get().flushes, 1);
    probe.tell_written(Ok(2));
    assert_eq!(client.read(0, 1).unwrap(), [1], "it is not answered twice");
}

#[test]
fn a_client_that_disconnects_still_gets_answers_to_its_writes() {
    let (host, probe) = host();
    probe.get().async_writes = true;
    let mut client = attach(&host);
    client.send(&write(0, 1, 0, &[1; 4096]));
    client.send(&request(DISC, 0, 2, 0, 0));
    probe.await_batches(1);
    probe.tell_written(Ok(2));
    assert_eq!(client.simple(), (0, 1));
    assert!(client.is_closed());
}

#[test]
fn writes_that_will_never_be_stored_fail_and_the_image_is_given_up() {
    let (host, probe) = host();
    probe.get().async_writes = true;
    let mut client = attach(&host);
    client.send(&write(0, 1, 0, &[1; 4096]));
    probe.await_batches(1);
    let (sender, receiver) = std::sync::mpsc::channel();
    let completion = Completion::new(move |outcome| sender.send(outcome).unwrap());
    host.submit(DeviceRequest::Write { offset: 0, data: vec![2; 512], fua: false }, completion);
    probe.await_batches(2);
    assert!(receiver.try_recv().is_err(), "it is under way");
    probe.tell_written(Err(marcot::Error::new(ErrorKind::Poisoned, "the medium is gone")));
    assert_eq!(client.simple(), (EIO, 1));
    assert!(client.is_closed());
    let outcome = receiver.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Poisoned);
}

#[test]
fn requests_of_the_process_wait_for_completions_too() {
    let (host, probe) = host();
    probe.get().async_writes = true;
    let (sender, receiver) = std::sync::mpsc::channel();
    let completion = Completion::new(move |outcome| sender.send(outcome).unwrap());
    host.submit(DeviceRequest::Write { offset: 0, data: vec![2; 512], fua: false }, completion);
    probe.await_batches(1);
    std::thread::sleep(Duration::from_millis(20));
    assert!(receiver.try_recv().is_err(), "it is under way");
    probe.tell_written(Ok(2));
    assert!(receiver.recv_timeout(Duration::from_secs(30)).unwrap().is_ok());
}

#[test]
fn clients_are_served_while_a_flush_is_under_way() {
    let (host, probe) = host();
    probe.get().async_flushes = true;
    let (mut client, mut other) = (attach(&host), attach(&host));
    client.send(&request(FLUSH, 0, 1, 0, 0));
    assert_eq!(other.read(0, 512).unwrap(), [0; 512]);
    other.send(&write(FUA, 2, 0, &[1; 4096]));
    // Neither has been answered, so the first answers are those to these requests.
    assert_eq!(client.read(8192, 512).unwrap(), [0; 512]);
    assert_eq!(other.read(0, 4096).unwrap(), [1; 4096]);
    assert_eq!(probe.get().flushes, 2);
    probe.get().flushed = Some(Ok(2));
    assert_eq!(client.simple(), (0, 1));
    assert_eq!(other.read(0, 4096).unwrap(), [1; 4096]);
    probe.get().flushes_under_way = 1;
    probe.get().flushed = Some(Ok(3));
    assert_eq!(other.simple(), (0, 2));
}

#[test]
fn a_client_that_disconnects_still_gets_the_answer_to_its_flush() {
    let (host, probe) = host();
    probe.get().async_flushes = true;
    let mut client = attach(&host);
    client.send(&request(FLUSH, 0, 1, 0, 0));
    client.send(&request(DISC, 0, 2, 0, 0));
    await_flushes(&probe, 1);
    probe.get().flushed = Some(Ok(2));
    assert_eq!(client.simple(), (0, 1));
    assert!(client.is_closed());
}

#[test]
fn a_flush_that_fails_later_fails_for_all_who_wait_and_the_image_is_given_up() {
    let (host, probe) = host();
    probe.get().async_flushes = true;
    let mut client = attach(&host);
    client.send(&request(FLUSH, 0, 1, 0, 0));
    await_flushes(&probe, 1);
    let (sender, receiver) = std::sync::mpsc::channel();
    let completion = Completion::new(move |outcome| sender.send(outcome).unwrap());
    host.submit(DeviceRequest::Flush, completion);
    await_flushes(&probe, 2);
    assert!(receiver.try_recv().is_err(), "it is under way");
    probe.get().flushed = Some(Err(marcot::Error::new(ErrorKind::Fenced, "taken over")));
    assert_eq!(client.simple().1, 1);
    let outcome = receiver.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Fenced);
    assert!(client.is_closed());
}

/// Waits until this many flushes have come.
fn await_flushes(probe: &Probes, count: usize) {
    for _ in 0..3000 {
        if probe.get().flushes == count {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{} flushes have come, not {count}", probe.get().flushes);
}

#[test]
fn a_host_stops_with_reads_in_flight() {
    let (host, probe) = slow_host();
    let mut client = attach(&host);
    client.send(&request(READ, 0, 1, 0, 4096));
    probe.await_completions(1);
    drop(host);
    assert!(client.is_closed());
    for _ in 0..1000 {
        if probe.get().closed {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the device was not closed");
}

// --- requests in parts ------------------------------------------------------------------------------

/// Longer than a request that is received, or answered, as a whole.
const LONG_BYTES: u32 = (9 << 20) + 777;

fn pattern(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// The data of a structured reply to a READ.
fn structured_data(client: &mut NbdClient, offset: u64, length: u32) -> Vec<u8> {
    let mut data = vec![0; length as usize];
    loop {
        let chunk = client.chunk();
        let at = u64::from_be_bytes(chunk.payload[..8].try_into().unwrap()) - offset;
        if chunk.kind == 1 {
            data[at as usize..][..chunk.payload.len() - 8].copy_from_slice(&chunk.payload[8..]);
        }
        if chunk.done {
            return data;
        }
    }
}

#[test]
fn long_requests_in_parts_are_as_good_as_whole_ones() {
    let (host, probe) = host();
    let (mut simple, mut structured) = (attach(&host), attach_structured(&host));
    let data = pattern(LONG_BYTES);
    let requests = [write(FUA, 1, 1001, &data), request(READ, 0, 2, 1000, 3)].concat();
    let sender = std::thread::spawn({
        let mut stream = simple.0.try_clone().unwrap();
        move || std::io::Write::write_all(&mut stream, &requests).unwrap()
    });
    assert_eq!(simple.simple(), (0, 1), "one reply for all parts");
    assert_eq!(simple.simple(), (0, 2));
    assert_eq!(simple.bytes(3), [0, data[0], data[1]]);
    sender.join().unwrap();
    assert!(probe.get().write_batches.len() > 2, "written in parts");
    assert_eq!(probe.get().unflushed_bytes, 0, "the flush came after the last part");
    assert!(simple.read(1001, LONG_BYTES).unwrap() == data);
    structured.send(&request(READ, 0, 3, 1001, LONG_BYTES));
    structured.send(&request(READ, 0, 4, 0, 1));
    assert!(structured_data(&mut structured, 1001, LONG_BYTES) == data);
    assert_eq!(structured.chunk().cookie, 4);
    host.stop().unwrap();
}

#[test]
fn a_failure_in_a_part_is_the_outcome_of_the_whole() {
    let (host, probe) = host();
    let mut client = attach_structured(&host);
    let data = pattern(LONG_BYTES);
    probe.get().fail_writes = Some(ErrorKind::NoSpace);
    client.send(&write(0, 1, 0, &data));
    let error = client.chunk();
    assert_eq!(
        (error.done, error.cookie, &error.payload[..4]),
        (true, 1, &ENOSPC.to_be_bytes()[..])
    );
    probe.get().fail_writes = None;
    client.send(&write(0, 2, 0, &data));
    assert_eq!(client.simple(), (0, 2));
    probe.get().corrupt_at = Some(8 << 20);
    client.send(&request(READ, 0, 3, 0, LONG_BYTES));
    let last = loop {
        let chunk = client.chunk();
        if chunk.done {
            break chunk;
        }
    };
    assert_eq!((last.cookie, &last.payload[..4]), (3, &EIO.to_be_bytes()[..]));
    client.send(&request(READ, 0, 4, 5, 1));
    assert_eq!(client.chunk().cookie, 4, "the connection is good for more");
}

// --- images of an odd size --------------------------------------------------------------------------

const ODD_BYTES: u64 = 1_000_001;
const WHOLE_SECTORS_BYTES: u64 = 1_000_448;

#[test]
fn an_odd_image_is_shown_in_whole_sectors_and_zeros_change_nothing() {
    let (host, _) = serve(MemoryDevice::new(ODD_BYTES));
    assert_eq!(host.size_bytes(), WHOLE_SECTORS_BYTES);
    let mut client = attach(&host);
    let last = WHOLE_SECTORS_BYTES - 512;
    assert_eq!(client.write(0, last, &[&[7; 65][..], &[0; 447]].concat()), 0);
    assert_eq!(client.write(0, ODD_BYTES, &[0; 447]), 0);
    assert_eq!(client.read(last, 512).unwrap(), [&[7; 65][..], &[0; 447]].concat());
    assert_eq!(client.read(ODD_BYTES, 447).unwrap(), [0; 447]);
    assert_eq!(client.read(WHOLE_SECTORS_BYTES, 1), Err(EINVAL));
    assert_eq!(client.ask(TRIM, 0, last, 512), 0);
    assert_eq!(client.ask(WRITE_ZEROES, 0, ODD_BYTES, 447), 0);
    assert_eq!(client.ask(CACHE, 0, 0, WHOLE_SECTORS_BYTES as u32), 0);
    let usage = host.execute(marcot_serve::control::Command::Usage, &mut |_, _| {}).unwrap();
    let marcot_serve::control::Reply::Usage { rows } = usage else { panic!() };
    assert_eq!(rows[0].provisioned_bytes, ODD_BYTES, "it has not grown");
    let mut structured = attach_structured(&host);
    structured.send(&request(BLOCK_STATUS, REQ_ONE, 1, ODD_BYTES, 447));
    assert_eq!(
        structured.chunk().payload[4..],
        [447_u32.to_be_bytes(), 3_u32.to_be_bytes()].concat()
    );
}

#[test]
fn an_odd_image_grows_when_something_is_written_behind_its_end() {
    let (host, probe) = serve(MemoryDevice::new(ODD_BYTES));
    probe.get().in_flight = true;
    let mut client = attach(&host);
    let data = pattern(512);
    assert_eq!(client.write(0, WHOLE_SECTORS_BYTES - 512, &data), 0);
    let usage = host.execute(marcot_serve::control::Command::Usage, &mut |_, _| {}).unwrap();
    let marcot_serve::control::Reply::Usage { rows } = usage else { panic!() };
    assert_eq!(rows[0].provisioned_bytes, WHOLE_SECTORS_BYTES);
    probe.get().in_flight = false;
    assert_eq!(client.read(WHOLE_SECTORS_BYTES - 512, 512).unwrap(), data);
    assert_eq!(client.write(0, WHOLE_SECTORS_BYTES, &[1]), ENOSPC);
}

#[test]
fn a_read_only_image_of_an_odd_size_is_shown_as_it_is() {
    let (host, _) = serve(MemoryDevice::new(ODD_BYTES).read_only());
    assert_eq!(host.size_bytes(), ODD_BYTES);
    assert_eq!(attach(&host).read(ODD_BYTES - 1, 2), Err(EINVAL));
    let device = Box::new(MemoryDevice::new(ODD_BYTES).read_only());
    let host = ImageHost::start_for_kernel(device, HostOptions::default()).unwrap();
    assert_eq!(attach(&host).read(ODD_BYTES - 1, 448).unwrap(), [0; 448]);
    assert_eq!(attach(&host).write(0, ODD_BYTES, &[1]), EPERM);
}
