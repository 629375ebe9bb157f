//! Groups. Owners are in this process, each behind its control socket: for the client that is the same as owners
//! in other processes.
#![allow(missing_docs)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use marcot::{CreateOptions, ErrorKind, Namespace, PoolOptions};
use marcot_client::group::Group;
use marcot_client::{Client, Image, ImageSpec, Options, Quiesce};
use marcot_serve::control::message::{Answer, encode_answer};
use marcot_serve::control::{
    Client as Connection, Command, GroupStep, Patience, Place, Reply, SOCKET_NAME,
};
use marcot_serve::host::{DeviceRequest, HostHandle, HostOptions, ImageHost};

const SIZE_BYTES: u64 = 1 << 20;
const HERE: Namespace = Namespace::DEFAULT;
/// Snapshots that are taken while the members are written.
const SNAPSHOTS: usize = 5;

struct World {
    client: Client,
    group: Group,
    members: Vec<Image>,
    _directory: tempfile::TempDir,
}

/// A group with members in two pools.
fn world(members: &[&str]) -> World {
    let directory = tempfile::tempdir().unwrap();
    let client = Client::open(directory.path(), Options::new()).unwrap();
    client.create_pool("tank", &PoolOptions::default()).unwrap();
    let group = client.pool("rbd").unwrap().create_group(&HERE, "g").unwrap();
    let members = members.iter().map(|spec| {
        let spec = ImageSpec::parse(spec).unwrap();
        let image = client.create(&spec, &CreateOptions::sized(SIZE_BYTES)).unwrap();
        group.add(&image).unwrap();
        image
    });
    let members = members.collect();
    World { client, group, members, _directory: directory }
}

fn own(image: &Image) -> HostHandle {
    let (pool, id) = (image.pool().engine(), image.id());
    let control = Some(Place::of(pool, id));
    let options = HostOptions { name: image.spec().to_string(), control, ..HostOptions::default() };
    ImageHost::start(Box::new(pool.open(id).unwrap()), options).unwrap()
}

fn write(host: &HostHandle, number: u64) {
    let data = number.to_le_bytes().to_vec();
    host.submit_and_wait(DeviceRequest::Write { offset: 0, data, fua: false }).unwrap();
}

fn parts(image: &Image) -> usize {
    image.info().unwrap().snapshots.len()
}

#[test]
fn a_snapshot_of_a_group_is_one_moment_of_all_members_while_they_are_written() {
    let world = world(&["rbd/a", "tank/b", "rbd/idle"]);
    let hosts: Vec<HostHandle> = world.members[..2].iter().map(own).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (hosts, stop) = (hosts.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                // The second member is written only after the first one has acknowledged.
                hosts.iter().for_each(|host| write(host, number));
            }
            number
        })
    };
    for n in 0..SNAPSHOTS {
        world.group.create_snapshot(&format!("s{n}"), Quiesce::Required).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let last = writer.join().unwrap();
    let mut seen = Vec::new();
    for n in 0..SNAPSHOTS {
        world.group.roll_back(&format!("s{n}"), &mut |_, _| {}).unwrap();
        let numbers: Vec<u64> = hosts
            .iter()
            .map(|host| {
                let read = DeviceRequest::Read { offset: 0, length: 8 };
                u64::from_le_bytes(host.submit_and_wait(read).unwrap().try_into().unwrap())
            })
            .collect();
        let (a, b) = (numbers[0], numbers[1]);
        assert!(b <= a && a <= b + 1, "s{n}: {a} and {b}");
        seen.push(a);
    }
    assert!(seen.is_sorted() && seen[SNAPSHOTS - 1] <= last, "{seen:?}");
    assert!(seen[SNAPSHOTS - 1] > seen[0], "writes went on between snapshots: {seen:?}");
    for host in hosts {
        host.stop().unwrap();
    }
    assert!(world.members.iter().all(|image| parts(image) == SNAPSHOTS));
    world.group.remove().unwrap();
    assert!(world.members.iter().all(|image| parts(image) == 0));
}

/// Owns an image, takes part in the first two steps, and then has no space and ends.
fn fails_to_take_its_part(image: &Image) -> std::thread::JoinHandle<()> {
    let (pool, id) = (image.pool().engine(), image.id());
    let mut open = Some(pool.open(id).unwrap());
    let path = pool.image_directory(id).join(SOCKET_NAME);
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        for step in 0..3 {
            assert!(socket.read(&mut [0; 4096]).unwrap() > 0);
            let mut bytes = Vec::new();
            encode_answer(&Answer::Begun, &mut bytes).unwrap();
            let answer = match step {
                2 => Answer::from(&marcot::Error::new(ErrorKind::NoSpace, "no space")),
                _ => Answer::Reply { reply: Reply::Done },
            };
            encode_answer(&answer, &mut bytes).unwrap();
            if step == 2 {
                std::fs::remove_file(&path).unwrap();
                open.take().unwrap().close().unwrap();
            }
            socket.write_all(&bytes).unwrap();
        }
    })
}

#[test]
fn a_snapshot_that_fails_leaves_no_part_of_itself_and_everybody_is_served_again() {
    let mut world = world(&["rbd/a", "rbd/b"]);
    world.members.sort_by_key(Image::id);
    let host = own(&world.members[0]);
    let failing = fails_to_take_its_part(&world.members[1]);
    let failed = world.group.create_snapshot("s", Quiesce::Required).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::NoSpace, "{failed}");
    failing.join().unwrap();
    write(&host, 1);
    assert!(world.group.info().unwrap().snapshots.is_empty());
    assert!(world.members.iter().all(|image| parts(image) == 0));
    world.group.create_snapshot("s", Quiesce::Required).unwrap();
    assert_eq!(world.members.iter().map(parts).sum::<usize>(), 2);
    host.stop().unwrap();
}

#[test]
fn who_holds_an_image_and_goes_does_not_keep_it() {
    let world = world(&["rbd/a"]);
    let host = own(&world.members[0]);
    let (pool, id) = (world.members[0].pool().engine(), world.members[0].id());
    let place = Place::of(pool, id);
    let hold = |owner: &mut Connection, step| {
        owner.ask(&Command::ForGroup { step }, &mut |_, _| {}).map(drop)
    };
    let mut owner = Connection::connect(&place, &Patience::default()).unwrap();
    hold(&mut owner, GroupStep::Quiesce { ignore_errors: false }).unwrap();
    hold(&mut owner, GroupStep::Hold).unwrap();
    let waiting = {
        let host = host.clone();
        std::thread::spawn(move || write(&host, 1))
    };
    let refused = owner.ask(&Command::Flush, &mut |_, _| {}).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    assert!(!waiting.is_finished());
    drop(owner);
    waiting.join().unwrap();
    // A part that is not taken while the image is held would be of another moment.
    let mut owner = Connection::connect(&place, &Patience::default()).unwrap();
    let step = GroupStep::Create(
        marcot::GroupSnapshotId { pool: pool.id(), group: 1, snapshot: 2 }.into(),
    );
    assert_eq!(hold(&mut owner, step).unwrap_err().kind(), ErrorKind::Interrupted);
    drop(owner);
    host.stop().unwrap();
    assert_eq!(parts(&world.members[0]), 0);
}

#[test]
fn a_member_is_not_removed_and_its_parts_are_no_snapshots_of_its_user() {
    let world = world(&["rbd/a", "tank/b"]);
    let image = &world.members[1];
    assert_eq!(image.remove(&mut |_, _| {}).unwrap_err().kind(), ErrorKind::InGroup);
    image.create_snapshot("mine", Quiesce::Skip).unwrap();
    world.group.create_snapshot("s", Quiesce::Skip).unwrap();
    let part = image.info().unwrap().snapshots.into_iter().find(|s| s.group.is_some()).unwrap();
    let named = image.snapshot(&part.name);
    assert_eq!(named.open().err().unwrap().kind(), ErrorKind::NotFound);
    assert_eq!(named.protect().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(named.rename("x").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(named.roll_back(&mut |_, _| {}).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(image.purge_snapshots(&mut |_, _| {}).unwrap().removed, 1);
    // Also where it is in the trash, or has left the group.
    image.move_to_trash(None).unwrap();
    let other = world.client.pool("rbd").unwrap().create_group(&HERE, "h").unwrap();
    assert_eq!(other.add(image).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(other.take_out(image).unwrap_err().kind(), ErrorKind::InGroup);
    world.group.create_snapshot("t", Quiesce::Skip).unwrap();
    world.group.take_out(image).unwrap();
    assert_eq!(parts(image), 2);
    world.group.remove_snapshot("s").unwrap();
    world.group.remove_snapshot("t").unwrap();
    assert_eq!(parts(image), 0);
    let renamed = world.group.rename("other").unwrap();
    assert_eq!(world.members[0].group().unwrap().unwrap().name, "other");
    renamed.remove().unwrap();
    assert!(world.members[0].group().unwrap().is_none());
    world.members[0].remove(&mut |_, _| {}).unwrap();
}
