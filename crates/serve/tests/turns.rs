//! Short requests that take much time take turns with those of other clients.

mod support;

use std::os::unix::net::UnixStream;

use marcot_serve::host::{HostHandle, HostOptions, ImageHost};
use marcot_serve::nbd::NbdConnection;
use support::memory_device::{MemoryDevice, Probes};
use support::nbd_client::{BLOCK_STATUS, CACHE, NbdClient, request};

/// A little more than is searched in a round.
const SIZE_BYTES: u64 = (1 << 30) + (64 << 10);

/// Requests that a client sends at once. There is room for all their replies.
const REQUESTS: u64 = 60;

fn host() -> (HostHandle, Probes) {
    let device = MemoryDevice::new(SIZE_BYTES);
    let probe = device.probe();
    (ImageHost::start(Box::new(device), HostOptions::default()).unwrap(), probe)
}

/// A client that has sent `received` before its image's thread reads from it.
fn attach(host: &HostHandle, received: Vec<u8>) -> NbdClient {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let settings = NbdConnection {
        structured_replies: true,
        allocation_context: true,
        received,
        ..NbdConnection::default()
    };
    host.attach_nbd(theirs.into(), settings).unwrap();
    NbdClient::new(ours)
}

/// Asks [`REQUESTS`] times for the runs of nearly the whole image.
fn many_long_looks(offset: u64) -> Vec<u8> {
    let length = u32::try_from(SIZE_BYTES - offset).unwrap();
    (0..REQUESTS).flat_map(|cookie| request(BLOCK_STATUS, 0, cookie, offset, length)).collect()
}

fn take_replies(client: &mut NbdClient) {
    for _ in 0..REQUESTS {
        assert_eq!(client.chunk().kind, 5, "runs");
    }
}

#[test]
fn a_read_does_not_wait_for_all_searches_of_another_client() {
    let (host, probe) = host();
    let mut flood = attach(&host, many_long_looks(0));
    let mut reader = NbdClient::new({
        let (ours, theirs) = UnixStream::pair().unwrap();
        host.attach_nbd(theirs.into(), NbdConnection::default()).unwrap();
        ours
    });
    assert_eq!(reader.read(0, 512).unwrap(), [0; 512]);
    take_replies(&mut flood);
    let before = probe.get().looked_before_reads[0];
    assert!(before < REQUESTS as usize / 2, "the read waited for {before} of {REQUESTS} requests");
}

#[test]
fn clients_with_long_searches_take_turns() {
    let (host, probe) = host();
    let mut clients: Vec<_> = (0..3).map(|i| attach(&host, many_long_looks(i * 4096))).collect();
    clients.iter_mut().for_each(take_replies);
    let looked = std::mem::take(&mut probe.get().looked_at);
    assert_eq!(looked.len(), 3 * REQUESTS as usize);
    // From the point where all have come, to where the first has ended.
    let from = (0..3).filter_map(|i| looked.iter().position(|at| *at == i * 4096)).max().unwrap();
    let to = (0..3).filter_map(|i| looked.iter().rposition(|at| *at == i * 4096)).min().unwrap();
    for three in looked[from..to].chunks_exact(3) {
        let mut three = three.to_vec();
        three.sort_unstable();
        assert_eq!(three, [0, 4096, 8192], "in {looked:?}");
    }
}

#[test]
fn of_a_long_hint_only_the_beginning_is_followed() {
    let (host, probe) = host();
    let mut client = attach(&host, Vec::new());
    client.send(&request(CACHE, 0, 7, 4096, 1 << 29));
    assert_eq!(client.simple(), (0, 7));
    assert_eq!(probe.get().cached, [(4096, 32 << 20)]);
}
