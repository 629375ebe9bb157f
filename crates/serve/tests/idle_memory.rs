//! The memory of images and connections while they are idle.
//!
//! It is the only test of its process, because it measures the process.

mod support;

use std::os::unix::net::UnixStream;
use std::time::Duration;

use marcot_serve::host::{HostOptions, ImageHost};
use marcot_serve::nbd::NbdConnection;
use support::memory_device::MemoryDevice;
use support::nbd_client::NbdClient;

const IMAGES: usize = 100;

/// Limit for each image, in bytes. A thousand images with one client each then take a fifth of a GiB.
const BYTES_PER_IMAGE_MAX: usize = 200 << 10;

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[test]
fn idle_images_and_connections_are_small_even_after_large_requests() {
    let before = resident_bytes();
    let mut kept = Vec::new();
    for _ in 0..IMAGES {
        let device = Box::new(MemoryDevice::new(64 << 20));
        let host = ImageHost::start(device, HostOptions::default()).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        host.attach_nbd(theirs.into(), NbdConnection::default()).unwrap();
        let mut client = NbdClient::new(ours);
        assert_eq!(client.write(0, 0, &[0; 4096]), 0);
        drop(client.read(1 << 20, 4 << 20).unwrap());
        kept.push((host, client));
    }
    // The time of two rounds of housekeeping, which are a second apart, and some more.
    std::thread::sleep(Duration::from_millis(2600));
    let each = resident_bytes().saturating_sub(before) / IMAGES;
    assert!(each < BYTES_PER_IMAGE_MAX, "{each} bytes per idle image and connection");
}
