//! Images in a bucket that one host serves, and what other hosts see of it; and a service that goes away.
#![allow(missing_docs)]

#[path = "common/bucket_guest.rs"]
mod bucket_guest;
#[path = "common/bucket_host.rs"]
mod bucket_host;
mod common;
#[path = "../../serve/tests/support/nbd_client.rs"]
mod nbd_client;
#[path = "common/server.rs"]
mod server;

use bucket_guest::serve;
use bucket_host::Host;
use common::{await_that, noise};
use marcot_s3_test::{Fault, SECRET_KEY, Server};
use nbd_client::{FLUSH, GO, NbdClient, TRIM, ask, option_reply};

const EIO: u32 = 5;
/// This bit is set in replies to options that are refused.
const ERROR_REPLY: u32 = 1 << 31;
const EBUSY: i32 = 16;
const ENOENT: i32 = 2;
/// What is kept of an image's requests.
const IMAGE_COUNT_BYTES: u64 = 56;

#[test]
fn guests_get_errors_after_the_time_out_and_go_on_when_the_service_is_back() {
    let service = Server::plain();
    let (host, other) = (Host::new(&service), Host::new(&service));
    host.works("pool create gold --backend s3://bucket/prefix");
    host.works("create gold/vm --size 4M");
    let mut server = serve(&host, "--io-timeout 1 gold");
    let mut client = NbdClient::connect(&server.socket, "gold/vm");
    let content = noise(1 << 20);
    assert_eq!(client.write(0, 0, &content[..1 << 19]), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);

    service.set_away(Some(Fault::Cut));
    assert_eq!(client.write(0, 1 << 19, &content[1 << 19..]), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), EIO);
    assert!(client.read(0, 1 << 20).unwrap() == content);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), EIO);

    service.set_away(None);
    await_that("a flush succeeds", || client.ask(FLUSH, 0, 0, 0) == 0);
    drop(client);
    assert_eq!(server.stop(), Some(0));
    let log = std::fs::read_to_string(&server.log).unwrap();
    assert_eq!(log.matches("waiting for it").count(), 1, "{log}");
    assert_eq!(log.matches("works again").count(), 1, "{log}");
    assert!(!log.contains(SECRET_KEY), "{log}");

    other.works("pool attach gold --backend s3://bucket/prefix");
    let exported = other.world.path("vm.raw");
    other.works(&format!("export --no-progress gold/vm {}", exported.display()));
    assert!(std::fs::read(exported).unwrap()[..1 << 20] == content);
}

#[test]
fn status_and_info_tell_which_host_has_an_image_open() {
    let service = Server::plain();
    let (one, two) = (Host::new(&service), Host::new(&service));
    one.works("pool create gold --backend s3://bucket/prefix");
    one.works("create gold/vm --size 4M");
    two.works("pool attach gold --backend s3://bucket/prefix");
    assert_eq!(two.works("status gold/vm"), "Watchers: none\n");
    assert!(!two.works("info gold/vm").contains("owner:"));

    let server = serve(&one, "gold");
    let client = NbdClient::connect(&server.socket, "gold/vm");
    let here = one.works("status gold/vm");
    assert!(here.starts_with("Watchers:\n\twatcher=127.0.0.1:0/"), "{here}");
    assert!(here.contains("\nOwner: host ") && !here.contains(';'), "{here}");
    let elsewhere = two.works("status gold/vm");
    assert!(elsewhere.contains(", process ") && elsewhere.contains("device map --force"));
    assert!(elsewhere.starts_with("Watchers:\n\twatcher=") && !elsewhere.contains("127.0.0.1"));
    assert!(two.works("status gold/vm --format json").contains("\"state\":\"elsewhere\""));
    assert!(two.works("info gold/vm").contains("\n\towner: host "));
    assert!(two.works("info gold/vm --format json").contains("\"owner\":{\"host\":"));
    two.refuses(EBUSY, "is open on host", "snap create --no-progress gold/vm@s");

    // It is killed.
    drop(server);
    drop(client);
    let ended = one.works("status gold/vm");
    assert!(ended.starts_with("Watchers: none\nOwner: host "), "{ended}");
    assert!(ended.contains("has ended without closing the image"), "{ended}");
    one.works("snap create --no-progress gold/vm@s");
    assert_eq!(two.works("status gold/vm"), "Watchers: none\n");
}

#[test]
fn pool_stats_counts_the_requests_as_the_service_does() {
    let service = Server::plain();
    let host = Host::new(&service);
    host.works("pool create gold --backend s3://bucket/prefix");
    host.works("create gold/vm --size 4M");
    let server = serve(&host, "gold");
    let mut client = NbdClient::connect(&server.socket, "gold/vm");
    assert_eq!(client.write(0, 0, &noise(1 << 20)), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    drop(client);
    // It is killed, and its requests count all the same.
    drop(server);
    host.works("snap create --no-progress gold/vm@s");
    let shown = host.works("pool stats -l gold --format json");
    let counts = service.counts();
    let number = |name: &str| -> u64 {
        let rest = shown.split(&format!("\"{name}\":")).nth(1).expect(name);
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    assert_eq!(number("put"), counts.puts);
    assert_eq!((number("list"), number("delete")), (counts.lists, counts.deletes));
    assert_eq!(number("get"), counts.gets + counts.heads);
    assert!(number("sent_bytes") > 1 << 20 && number("sent_bytes") <= counts.received_bytes);
    let plain = host.works("pool stats -l gold");
    assert!(plain.contains("Requests of This Host: ") && plain.contains(" USD\n"), "{plain}");
    assert!(!host.works("pool stats -l rbd").contains("Requests"));
}

#[test]
fn what_was_acknowledged_on_a_host_that_was_replaced_is_listed_exported_and_removed() {
    const MIB: u64 = 1 << 20;
    let service = Server::plain();
    let (one, two) = (Host::new(&service), Host::new(&service));
    one.works("pool create gold --backend s3://bucket/prefix --flush local");
    one.works("create gold/vm --size 4M");
    two.works("pool attach gold --backend s3://bucket/prefix --flush local");
    assert_eq!(one.works("tail ls gold"), "");
    let server = serve(&one, "gold");
    let mut client = NbdClient::connect(&server.socket, "gold/vm");
    assert_eq!(client.write(0, 0, &[1; 4096]), 0);
    // The service is away, so that this stays on the host.
    service.set_away(Some(Fault::Cut));
    let tail = noise(100_000);
    assert_eq!(client.write(0, MIB, &tail), 0);
    assert_eq!(client.ask(TRIM, 0, 0, 4096), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    drop((client, server));
    service.set_away(None);
    let mut server = serve(&two, "--force gold");
    let mut client = NbdClient::connect(&server.socket, "gold/vm");
    assert!(client.read(MIB, 4096).unwrap() == [0; 4096]);
    assert_eq!(client.write(0, 2 * MIB, &[2; 4096]), 0);
    drop(client);
    assert_eq!(server.stop(), Some(0));

    // The first host owns it again. What it had is no part of the image.
    one.works("resize --no-progress gold/vm --size 5M");
    let shown = one.works("tail ls gold --format json");
    let tails: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let [found] = tails.as_array().unwrap().as_slice() else { panic!("{shown}") };
    assert_eq!(found["image"], "gold/vm");
    assert!(found["size"].as_u64().unwrap() > tail.len() as u64, "{shown}");
    let id = found["id"].as_str().unwrap();
    assert!(one.works("tail ls gold").contains(id));
    assert_eq!(two.works("tail ls gold"), "");

    let (diff, raw) = (one.world.path("tail.diff"), one.world.path("look.raw"));
    one.works(&format!("tail export gold {id} {}", diff.display()));
    one.works("create look --size 4M");
    one.works(&format!("import-diff --no-progress {} look", diff.display()));
    one.works(&format!("export --no-progress look {}", raw.display()));
    let content = std::fs::read(&raw).unwrap();
    assert_eq!(content.len(), 5 << 20);
    assert!(content[MIB as usize..MIB as usize + tail.len()] == tail);
    assert!(content[..4096] == [0; 4096] && content[2 << 20..].iter().all(|byte| *byte == 0));

    const ENOENT: i32 = 2;
    for other in ["../vm", "0000000000000001.0000000000000001"] {
        one.refuses(ENOENT, "was put aside", &format!("tail rm gold {other}"));
        one.refuses(ENOENT, "was put aside", &format!("tail export gold {other} -"));
    }
    one.works(&format!("tail rm gold {id}"));
    assert_eq!(one.works("tail ls gold"), "");
    one.refuses(ENOENT, "was put aside", &format!("tail rm gold {id}"));
}

/// The number of an image, as keys have it.
fn number_of(host: &Host<'_>, image: &str) -> String {
    let info: serde_json::Value =
        serde_json::from_str(&host.works(&format!("info {image} --format json"))).unwrap();
    info["id"].as_str().unwrap().to_owned()
}

#[test]
fn pool_stats_counts_the_requests_of_each_image_as_the_service_does() {
    let service = Server::plain();
    let host = Host::new(&service);
    host.works("pool create gold --backend s3://bucket/prefix");
    host.works("pool create vms");
    let source = host.world.path("source.raw");
    std::fs::write(&source, noise(3 << 20)).unwrap();
    host.works(&format!("import --no-progress {} gold/template", source.display()));
    host.works("snap create --no-progress gold/template@1");
    host.works("snap protect gold/template@1");
    for clone in ["gold/web", "gold/gone", "vms/web"] {
        host.works(&format!("clone gold/template@1 {clone}"));
    }
    let numbers = ["template", "web", "gone"].map(|name| number_of(&host, &format!("gold/{name}")));
    let server = serve(&host, "gold");
    let mut client = NbdClient::connect(&server.socket, "gold/web");
    assert_eq!(client.write(0, 0, &noise(1 << 20)), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    drop(client);
    // It is killed, and its requests count all the same.
    drop(server);
    let exported = host.world.path("web.raw");
    host.works(&format!("export --no-progress vms/web {}", exported.display()));
    host.works("rm --no-progress gold/gone");

    let shown = host.works("pool stats -l gold --format json");
    let stats: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let images = stats["image_requests"].as_array().unwrap();
    assert_eq!(images.len(), 2, "{shown}");
    for (name, number) in ["template", "web"].iter().zip(&numbers) {
        let image = images.iter().find(|image| image["name"] == *name).expect(name);
        let counts = service.counts_of(&format!("/{number}/"));
        assert_eq!(image["put"], counts.puts, "{name}");
        assert_eq!(image["get"], counts.gets + counts.heads, "{name}");
        assert_eq!(image["list"], counts.lists, "{name}");
        assert_eq!(image["delete"], counts.deletes, "{name}");
        assert_eq!(image["sent_bytes"], counts.received_bytes, "{name}");
        // The service's errors have bodies too.
        let received_bytes = image["received_bytes"].as_u64().unwrap();
        assert!(received_bytes > 0 && received_bytes <= counts.sent_bytes, "{name}: {shown}");
        let (many, gets) = (counts.puts + counts.lists, counts.gets + counts.heads);
        let cost_usd = (5.0 * many as f64 + 0.4 * gets as f64) / 1e6;
        assert!((image["cost_usd"].as_f64().unwrap() - cost_usd).abs() < 1e-9, "{name}: {shown}");
    }
    assert!(service.counts_of(&format!("/{}/", numbers[2])).total() > 0);
    let plain = host.works("pool stats -l gold");
    let lines: Vec<&str> = plain.lines().skip_while(|line| !line.starts_with("IMAGE")).collect();
    assert!(lines.len() == 3 && lines[1].starts_with("template "), "{plain}");

    // What was counted for an image that is gone does not stay for ever.
    host.works("gc --no-progress gold");
    let directories = std::fs::read_dir(host.world.path("store/host")).unwrap();
    let shards = directories.map(|entry| entry.unwrap().path().join("requests.d"));
    let files = shards.flat_map(|shards| std::fs::read_dir(shards).unwrap());
    let bytes: u64 = files.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(bytes, 2 * IMAGE_COUNT_BYTES);
}

#[test]
fn a_clone_on_a_host_that_is_gone_is_shown_with_its_host_and_forgotten_by_force() {
    let service = Server::plain();
    let (one, two) = (Host::new(&service), Host::new(&service));
    one.works("pool create gold --backend s3://bucket/prefix");
    one.works("create gold/template --size 4M");
    one.works("snap create --no-progress gold/template@1");
    one.works("snap protect gold/template@1");
    two.works("pool attach gold --backend s3://bucket/prefix");
    two.works("pool create vms");
    two.works("clone gold/template@1 vms/web");
    two.works("clone gold/template@1 gold/web");
    drop(two);

    let listed = one.works("children --all gold/template@1");
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!((lines.len(), lines[0]), (2, "gold/web"), "{listed}");
    assert!(lines[1].starts_with("vms/web (on host ") && lines[1].contains(") (id "), "{listed}");
    let id = lines[1].rsplit("(id ").next().unwrap().trim_end_matches(')');
    let document = one.works("children --all gold/template@1 --format json");
    assert!(document.contains("\"host\":") && document.contains(id), "{document}");
    one.works("rm --no-progress gold/web");
    one.refuses(EBUSY, "vms/web (on host", "snap unprotect gold/template@1");

    one.refuses(ENOENT, "has no child with the id", "forget-child gold/template@1 1234");
    let forget = format!("forget-child gold/template@1 {id}");
    one.refuses(EBUSY, "may still exist", &forget);
    assert!(one.works("children gold/template@1").contains("vms/web"));
    one.works(&format!("{forget} --force"));
    one.refuses(ENOENT, "has no child with the id", &format!("{forget} --force"));
    assert_eq!(one.works("children --all gold/template@1"), "");
    one.works("snap unprotect gold/template@1");
}

#[test]
fn a_server_does_not_take_an_image_back_for_clients_that_connect_again() {
    let service = Server::plain();
    let (one, two) = (Host::new(&service), Host::new(&service));
    one.works("pool create gold --backend s3://bucket/prefix");
    one.works("create gold/vm --size 4M");
    two.works("pool attach gold --backend s3://bucket/prefix");
    let content = noise(1 << 16);
    let written = |client: &mut NbdClient, offset: u64| {
        (client.write(0, offset, &content), client.ask(FLUSH, 0, 0, 0))
    };

    let first = serve(&one, "--force gold");
    let mut stale = NbdClient::connect(&first.socket, "gold/vm");
    assert_eq!(written(&mut stale, 0), (0, 0));
    let second = serve(&two, "--force gold");
    let mut client = NbdClient::connect(&second.socket, "gold/vm");
    assert_eq!(written(&mut client, 1 << 16), (0, 0));

    // The first server does not know yet. Its client notices with the next flush, and connects again.
    let (_, flushed) = written(&mut stale, 0);
    assert_ne!(flushed, 0);
    let (answer, _) = option_reply(&mut ask(&first.socket, GO, "gold/vm"));
    assert_ne!(answer & ERROR_REPLY, 0);
    assert_eq!(written(&mut client, 2 << 16), (0, 0));

    // An operator who wants it back says so again.
    drop(first);
    let first = serve(&one, "--force gold");
    let mut back = NbdClient::connect(&first.socket, "gold/vm");
    assert!(back.read(2 << 16, 1 << 16).unwrap() == content);
    assert_ne!(written(&mut client, 0).1, 0);
}

#[test]
fn what_another_host_has_begun_to_make_is_shown_and_taken_back() {
    let service = Server::plain();
    let (one, two) = (Host::new(&service), Host::new(&service));
    one.works("pool create gold --backend s3://bucket/prefix");
    two.works("pool attach gold --backend s3://bucket/prefix");
    // The directory in which the name is to be.
    one.works("create gold/vm --size 4M");
    one.works("rm --no-progress gold/vm");
    let directories: Vec<(String, Vec<u8>)> = service
        .names("bucket")
        .into_iter()
        .filter(|key| key.contains("/names/"))
        .map(|key| (key.clone(), service.bytes("bucket", &key).unwrap()))
        .collect();
    two.works("create gold/vm --size 4M");
    let id = number_of(&two, "gold/vm");
    // As if that host had been lost before it had stored the name.
    for (key, bytes) in directories {
        service.store("bucket", &key, bytes);
    }

    assert_eq!(one.works("ls gold"), "");
    let shown = one.works("gc --no-progress gold");
    let lines: Vec<&str> =
        shown.lines().skip_while(|line| !line.starts_with("BEGUN BY ANOTHER HOST")).collect();
    assert_eq!(lines.len(), 2, "{shown}");
    assert!(lines[1].starts_with("gold/vm") && lines[1].contains(&id), "{shown}");
    let document = one.works("gc --no-progress gold --format json");
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    let begun = &document["begun_elsewhere"][0];
    assert_eq!((&begun["id"], &begun["image"]), (&id.as_str().into(), &"gold/vm".into()));
    assert!(!begun["host"].as_str().unwrap().is_empty());
    let words = format!("'gc --take-back {id}' removes the image");
    assert!(one.works("check --no-progress gold").contains(&words));

    one.works(&format!("gc --take-back {id} gold"));
    assert!(one.works("check --no-progress gold").contains("all is well"));
    assert!(!one.works("gc --no-progress gold").contains("BEGUN"));
    one.refuses(ENOENT, "has no image with the id", &format!("gc --take-back {id} gold"));
}
