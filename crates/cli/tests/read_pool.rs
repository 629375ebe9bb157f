//! `docs/read_pool.py`, which was written from `docs/format.md` alone, reads pools in buckets as marcot does.
#![allow(missing_docs)]

#[path = "common/bucket_host.rs"]
mod bucket_host;
mod common;
#[path = "../../serve/tests/support/nbd_client.rs"]
mod nbd_client;
#[path = "common/server.rs"]
mod server;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bucket_host::Host;
use common::noise;
use marcot_s3_test::{ACCESS_KEY, BUCKET, Options, Server};
use nbd_client::{FLUSH, NbdClient};

const MIB: usize = 1 << 20;
/// The pool of the known bytes, and its image.
const KNOWN: &str = include_str!("../../../docs/example-bucket.txt");

fn public() -> Server {
    Server::start(Options { public: true, ..Options::default() })
}

fn serve(host: &Host<'_>, options: &str) -> server::Server {
    server::Server::start_prepared(&host.world, options, |command| {
        host.set_environment(command, ACCESS_KEY);
    })
}

fn read_pool(pool: &str, spec: &str, length: usize, others: &[&str]) -> Output {
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/read_pool.py");
    let mut command = Command::new("python3");
    command.arg("-B").arg(reader).args([pool, spec, "0", &length.to_string()]).args(others);
    command.output().unwrap()
}

/// What the document's reader reads.
fn read(pool: &str, spec: &str, length: usize, others: &[&str]) -> Vec<u8> {
    let Output { status, stdout, stderr } = read_pool(pool, spec, length, others);
    assert!(status.success(), "{pool} {spec}: {}", String::from_utf8_lossy(&stderr));
    stdout
}

/// A copy of all objects as files.
fn download(server: &Server, directory: &Path) -> PathBuf {
    for name in server.names(BUCKET) {
        let path = directory.join(&name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, server.bytes(BUCKET, &name).unwrap()).unwrap();
    }
    directory.to_owned()
}

impl Host<'_> {
    fn exported(&self, spec: &str) -> Vec<u8> {
        let path = self.world.path("exported");
        self.works(&format!("export --no-progress {spec} {}", path.display()));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        bytes
    }
}

/// A template in one bucket, clones in another and in a directory; one clone flattened with its snapshot, one
/// renamed, one in a namespace.
fn family(host: &Host<'_>) {
    host.works("pool create base --backend s3://bucket/base");
    host.works("pool create gold --backend s3://bucket/gold");
    host.works("pool create vms");
    let template = host.world.file("template.raw", &noise(MIB));
    host.works(&format!("import --no-progress {template} base/template"));
    host.works("snap create --no-progress base/template@1");
    host.works("snap protect base/template@1");
    host.works("namespace create gold/team");
    for clone in ["gold/web", "gold/flat", "gold/team/web", "vms/web"] {
        host.works(&format!("clone --rbd-default-clone-format 2 base/template@1 {clone}"));
    }
    host.works("snap create --no-progress gold/flat@s");
    host.works("flatten --no-progress gold/flat");
    // Its name moves from one directory of names to another.
    host.works("rename gold/flat gold/independent");
    host.works("snap create --no-progress gold/web@first");
}

/// What an owner leaves that is killed: a log in parts, of several flushes and more than one part.
fn leave_a_log(host: &Host<'_>, content: &mut [u8]) {
    let server = serve(host, "gold");
    let mut client = NbdClient::connect(&server.socket, "gold/web");
    for (n, at) in [0, 100_000, 4096 * 7, 900_000].into_iter().enumerate() {
        let data = &noise(MIB)[n * 1000..][..40_000];
        assert_eq!(client.write(0, at as u64, data), 0);
        assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
        content[at..at + data.len()].copy_from_slice(data);
    }
    drop(server);
}

#[test]
fn the_documents_reader_reads_a_pool_in_a_bucket_as_marcot_does() {
    let service = public();
    let host = Host::new(&service);
    family(&host);
    let mut content = noise(MIB);
    leave_a_log(&host, &mut content);

    let url = |prefix: &str| format!("{}/{BUCKET}/{prefix}", service.url());
    let (base, gold) = (url("base"), url("gold"));
    assert!(service.names(BUCKET).iter().any(|name| name.starts_with("gold/log/")));
    assert!(read(&gold, "web", MIB, &[&base]) == content, "the log of a killed owner");
    let tree = download(&service, &host.world.path("tree"));
    let in_tree = |prefix: &str| tree.join(prefix).to_str().unwrap().to_owned();
    assert!(read(&in_tree("gold"), "web", MIB, &[&in_tree("base")]) == content);

    // marcot replays the log of the killed owner, which the next reading finds in a root.
    assert!(host.exported("gold/web") == content);
    assert!(read(&gold, "web", MIB, &[&base]) == content, "after the log was replayed");
    let vms = host.world.path("store/pools/vms");
    for (spec, others) in [
        ("gold/web@first", vec![base.as_str()]),
        ("gold/team/web", vec![&base]),
        // It names nothing in the template's pool any more.
        ("gold/independent", vec![]),
        ("gold/independent@s", vec![]),
        ("base/template", vec![]),
        ("vms/web", vec![&base]),
    ] {
        let (pool, image) = spec.split_once('/').unwrap();
        let place = if pool == "vms" { vms.to_str().unwrap().to_owned() } else { url(pool) };
        assert!(read(&place, image, MIB, &others) == host.exported(spec), "{spec}");
    }
}

#[test]
fn the_documents_reader_sees_no_log_of_an_owner_that_was_replaced() {
    let service = public();
    let (one, two) = (Host::new(&service), Host::new(&service));
    family(&one);
    let mut content = noise(MIB);
    leave_a_log(&one, &mut content);
    for pool in ["base", "gold"] {
        two.works(&format!("pool attach {pool} --backend s3://bucket/{pool}"));
    }
    // The second host takes the image over: there are parts of the first owner, a fence, and parts of the second.
    let server = serve(&two, "--force gold");
    let mut client = NbdClient::connect(&server.socket, "gold/web");
    assert!(client.read(0, MIB as u32).unwrap() == content);
    assert_eq!(client.write(0, 4096, &[7; 9000]), 0);
    content[4096..4096 + 9000].fill(7);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    drop(server);
    let url = |prefix: &str| format!("{}/{BUCKET}/{prefix}", service.url());
    assert!(read(&url("gold"), "web", MIB, &[&url("base")]) == content);
    assert!(two.exported("gold/web") == content);
}

#[test]
fn the_documents_reader_refuses_what_does_not_verify() {
    let service = public();
    let host = Host::new(&service);
    family(&host);
    let mut content = noise(MIB);
    leave_a_log(&host, &mut content);
    let url = |prefix: &str| format!("{}/{BUCKET}/{prefix}", service.url());
    let (base, gold) = (url("base"), url("gold"));
    let refused = |words: &str| {
        let output = read_pool(&gold, "web", MIB, &[&base]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.starts_with("read_pool: "), "{said}");
        assert!(said.contains(words) && said.lines().count() == 1, "{said}");
    };
    let named = |part: &str| -> String {
        service.names(BUCKET).into_iter().find(|name| name.contains(part)).unwrap()
    };
    // A byte of any object: it is not needed for these bytes, or they are refused.
    let mut refusals = 0;
    for part in ["gold/pool", "/head", "gold/names/", "gold/log/", "base/segments/"] {
        for name in service.names(BUCKET).into_iter().filter(|name| name.contains(part)) {
            let sound = service.bytes(BUCKET, &name).unwrap();
            let mut bytes = sound.clone();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            service.store(BUCKET, &name, bytes);
            let output = read_pool(&gold, "web", MIB, &[&base]);
            let read = output.status.success() && output.stdout == content;
            assert!(read || output.status.code() == Some(1), "{name}");
            refusals += u32::from(!read);
            service.store(BUCKET, &name, sound);
        }
    }
    assert!(refusals >= 5, "{refusals}");
    // The second part of the log under the number of the first.
    let first = named("gold/log/");
    let sound = service.bytes(BUCKET, &first).unwrap();
    let number = |n: u64| format!("{}{n:016x}", &first[..first.len() - 16]);
    let at = u64::from_str_radix(&first[first.len() - 16..], 16).unwrap();
    service.store(BUCKET, &first, service.bytes(BUCKET, &number(at + 1)).unwrap());
    refused("is a part of another log");
    service.store(BUCKET, &first, sound);
    assert!(read(&gold, "web", MIB, &[&base]) == content);
    assert!(read_pool(&gold, "absent", MIB, &[]).status.code() == Some(1));
    assert!(read_pool(&url("nothing"), "web", MIB, &[]).status.code() == Some(1));
}

#[test]
fn both_read_the_documents_bucket() {
    let service = public();
    for object in KNOWN.split("\n@ ").skip(1) {
        let (name, rows) = object.split_once('\n').unwrap();
        service.store(BUCKET, &format!("example/{name}"), bytes(rows));
    }
    let mut before = vec![b'A'; 8192];
    before[4096..].fill(0);
    let mut content = before.clone();
    content[4096..4096 + 15].copy_from_slice(b"hello, block 1\n");
    let place = format!("{}/{BUCKET}/example", service.url());
    assert!(read(&place, "tiny", 8192, &[]) == content);
    assert!(read(&place, "tiny@before", 8192, &[]) == before);
    let tree = download(&service, &tempfile::tempdir().unwrap().keep());
    assert!(read(tree.join("example").to_str().unwrap(), "tiny", 8192, &[]) == content);
    std::fs::remove_dir_all(tree).unwrap();

    let host = Host::new(&service);
    host.works("pool attach gold --backend s3://bucket/example");
    // The image needs its owner. Who takes it over sees the log.
    assert!(host.exported("gold/tiny@before") == before);
    let server = serve(&host, "--force gold");
    let mut client = NbdClient::connect(&server.socket, "gold/tiny");
    assert!(client.read(0, 8192).unwrap() == content);
}

/// The bytes of a text: two hexadecimal digits each, `x` and a number for a repetition, a bar before a comment.
fn bytes(text: &str) -> Vec<u8> {
    let row = |line: &str| {
        let (digits, times) = match line.split('|').next().unwrap().split_once('x') {
            Some((digits, times)) => (digits, times.trim().parse().unwrap()),
            None => (line.split('|').next().unwrap(), 1),
        };
        let digits: Vec<char> = digits.chars().filter(|digit| !digit.is_whitespace()).collect();
        let byte =
            |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
        digits.chunks(2).map(byte).collect::<Vec<u8>>().repeat(times)
    };
    text.lines().flat_map(row).collect()
}
