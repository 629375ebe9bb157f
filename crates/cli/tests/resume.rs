//! Copies, imports and exports that were interrupted go on when the same command is run again.
#![allow(missing_docs)]

#[path = "common/bucket_host.rs"]
mod bucket_host;
mod common;

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::Duration;

use bucket_host::Host;
use common::noise;
use marcot_s3_test::{ACCESS_KEY, Fault, Kind, Planned, Server};
use rustix::process::{Pid, Signal, kill_process};

const ETIMEDOUT: i32 = 110;
const MIB: usize = 1 << 20;
const SIZE: usize = 48 * MIB;

impl Host<'_> {
    fn start(&self, line: &str) -> Child {
        let mut command = self.world.marcot_command(line);
        self.set_environment(&mut command, ACCESS_KEY);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs a command until its progress is at least this percentage, and sends it a signal. Returns what it has said
    /// on standard error, and true where it was not done by then.
    fn stop_at(&self, line: &str, percent: u32, signal: Signal) -> (String, bool) {
        let (said, status) = self.disturb_at(line, percent, |child| {
            kill_process(Pid::from_child(child), signal).unwrap();
        });
        (said, status != Some(0))
    }

    /// As [`Self::stop_at`], with anything else than a signal. Returns what it has said, and its status.
    fn disturb_at(
        &self,
        line: &str,
        percent: u32,
        disturb: impl FnOnce(&Child),
    ) -> (String, Option<i32>) {
        let mut child = self.start(line);
        let mut output = child.stderr.take().unwrap();
        let mut said = Vec::new();
        let mut byte = [0];
        let reached = |said: &[u8]| {
            let text = String::from_utf8_lossy(said);
            let last = text.rsplit("% complete").nth(1).and_then(|t| t.rsplit(": ").next());
            last.and_then(|number| number.parse::<u32>().ok()).is_some_and(|now| now >= percent)
        };
        while output.read(&mut byte).unwrap() == 1 {
            said.push(byte[0]);
            if byte[0] == b'.' && reached(&said) {
                disturb(&child);
                break;
            }
        }
        output.read_to_end(&mut said).unwrap();
        let ended = child.wait().unwrap();
        (String::from_utf8_lossy(&said).into_owned(), ended.code())
    }

    /// Runs a command that must succeed. Returns what it has said.
    fn ends(&self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(ran.status, 0, "{line}: {}", ran.err);
        ran.err
    }

    fn content(&self, spec: &str) -> Vec<u8> {
        let path = self.world.path("exported");
        self.works(&format!("export --no-progress {spec} {}", path.display()));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        bytes
    }

    /// The number of images of a pool, with those that are not complete.
    fn images(&self, pool: &str) -> String {
        self.works(&format!("pool stats {pool}")).lines().next().unwrap().to_owned()
    }

    /// Forgets what was read from buckets.
    fn empty_cache(&self) {
        let _ = std::fs::remove_dir_all(self.world.path("store/cache"));
    }
}

/// What was there, as a command has said: `going on with 'copy': 32 MiB of 48 MiB are there`.
fn done_bytes(said: &str) -> u64 {
    let (_, rest) = said.split_once("going on with '").expect(said);
    let number = rest.split_once("': ").and_then(|(_, size)| size.split_once(" MiB of 48 MiB"));
    number.unwrap_or_else(|| panic!("{said}")).0.parse::<u64>().unwrap() * MIB as u64
}

/// Every request of a kind takes longer, so that there is time to interrupt.
fn slow(server: &Server, kind: Kind) {
    let fault = Fault::Slow(Duration::from_millis(15));
    server.plan_all(Planned { kind: Some(kind), key: "segments".into(), count: 100_000, fault });
}

/// A pool in a directory, and two in buckets of two services, each with the same image.
struct Pools<'a> {
    host: Host<'a>,
    services: [&'a Server; 2],
    content: Vec<u8>,
}

fn pools<'a>(one: &'a Server, two: &'a Server) -> Pools<'a> {
    let host = Host::new(one);
    host.works("pool create disk");
    host.works("pool create one --backend s3://bucket/one");
    host.works(&format!("pool create two --backend s3://bucket/two --endpoint {}", two.url()));
    let mut content = noise(SIZE);
    // Holes and zeros.
    content[5 * MIB..9 * MIB].fill(0);
    content[SIZE - 3 * MIB..SIZE - 2 * MIB].fill(0);
    let file = host.world.file("content", &content);
    for pool in ["disk", "one", "two"] {
        host.works(&format!("import --no-progress {file} {pool}/vm"));
        host.works(&format!("snap create --no-progress {pool}/vm@s"));
    }
    Pools { host, services: [one, two], content }
}

#[test]
fn a_copy_that_is_killed_again_and_again_between_pools_of_all_kinds_is_whole_in_the_end() {
    let (one, two) = (Server::plain(), Server::plain());
    let Pools { host, services, content } = pools(&one, &two);
    services.into_iter().for_each(|service| slow(service, Kind::Get));
    let mut went_on = 0;
    for from in ["disk", "one", "two"] {
        for to in ["disk", "one", "two"] {
            let line = format!("cp {from}/vm@s {to}/copy");
            for percent in [15, 20, 45, 60, 90] {
                let (said, stopped) = host.stop_at(&line, percent, Signal::KILL);
                went_on += u32::from(said.contains("going on with 'copy': "));
                // It may have got its name just before it was killed. Until then it is hidden.
                let listed = host.works(&format!("ls {to}"));
                if !stopped || listed == "copy\nvm\n" {
                    break;
                }
                assert_eq!(listed, "vm\n");
            }
            if host.works(&format!("ls {to}")) == "vm\n" {
                host.ends(&line);
            }
            assert!(host.content(&format!("{to}/copy")) == content, "{line}");
            assert_eq!(host.images(to), "Total Images: 2", "{line}");
            host.works(&format!("rm --no-progress {to}/copy"));
            host.works(&format!("check --no-progress {to}"));
        }
    }
    assert!(went_on >= 9, "{went_on}");
}

#[test]
fn the_second_run_transfers_only_the_rest() {
    let (one, two) = (Server::plain(), Server::plain());
    let Pools { host, content, .. } = pools(&one, &two);
    let half = SIZE as u64 / 2;
    // From a bucket into a directory.
    host.empty_cache();
    slow(&one, Kind::Get);
    let line = "cp one/vm@s disk/copy";
    let (said, stopped) = host.stop_at(line, 60, Signal::INT);
    assert!(stopped && said.contains("is kept: the same command goes on with it"), "{said}");
    host.empty_cache();
    let before = one.counts().sent_bytes;
    let said = host.ends(line);
    assert!(
        said.contains("going on with 'copy': ") && said.contains("of 48 MiB are there"),
        "{said}"
    );
    let sent = one.counts().sent_bytes - before;
    assert!(sent > 0 && sent < half, "{sent} bytes were read once more");
    assert!(host.content("disk/copy") == content);

    // From a directory into a bucket, and from one service to another. What a flush ships of a segment that is not
    // full is uploaded once more with the segment.
    for (line, copy) in
        [("cp disk/vm@s two/first", "two/first"), ("cp one/vm@s two/second", "two/second")]
    {
        host.empty_cache();
        let (said, stopped) = host.stop_at(line, 60, Signal::INT);
        assert!(stopped, "{said}");
        let before = (one.counts().sent_bytes, two.counts().received_bytes);
        host.empty_cache();
        let rest = SIZE as u64 - done_bytes(&host.ends(line));
        let sent = one.counts().sent_bytes - before.0;
        let received = two.counts().received_bytes - before.1;
        assert!(rest < SIZE as u64 / 3 * 2, "{line}: {rest}");
        assert!(sent < rest + 4 * MIB as u64, "{line}: {sent} of {rest}");
        assert!(
            received > 0 && received < 2 * rest + 3 * MIB as u64,
            "{line}: {received} of {rest}"
        );
        assert!(host.content(copy) == content);
    }
}

#[test]
fn what_has_changed_is_begun_anew() {
    let (one, two) = (Server::plain(), Server::plain());
    let Pools { host, content, .. } = pools(&one, &two);
    slow(&one, Kind::Get);
    let stop = |line: &str| {
        let (said, stopped) = host.stop_at(line, 30, Signal::INT);
        assert!(stopped && said.contains("is kept"), "{line}: {said}");
    };
    stop("cp one/vm@s disk/copy");
    assert_eq!(host.images("disk"), "Total Images: 2");
    // Another snapshot, another layout, another name: none of them is the same copy.
    host.works("snap create --no-progress one/vm@t");
    assert!(!host.ends("cp --no-progress one/vm@s disk/other").contains("going on"));
    assert!(
        !host.ends("cp --no-progress --object-size 8M one/vm@s disk/copy").contains("going on")
    );
    // What was of no use any more is gone.
    assert_eq!(host.images("disk"), "Total Images: 3");
    assert!(host.content("disk/copy") == content);
    host.works("rm --no-progress disk/copy");
    stop("cp one/vm@s disk/copy");
    assert!(!host.ends("cp --no-progress one/vm@t disk/copy").contains("going on"));
    assert!(host.content("disk/copy") == content);
    assert_eq!(host.images("disk"), "Total Images: 3");

    // A collection leaves it alone, unless it is told otherwise.
    stop("cp one/vm@s disk/third");
    host.works("gc --no-progress disk");
    assert_eq!(host.images("disk"), "Total Images: 4");
    host.works("gc --no-progress --interrupted disk");
    assert_eq!(host.images("disk"), "Total Images: 3");
    assert!(!host.ends("cp --no-progress one/vm@s disk/third").contains("going on"));
    // A pool with nothing but such a rest can be removed.
    host.works("pool create empty");
    stop("cp one/vm@s empty/copy");
    host.works("pool rm empty");
}

#[test]
fn an_import_goes_on_while_its_file_is_the_same() {
    let (one, two) = (Server::plain(), Server::plain());
    let Pools { host, mut content, .. } = pools(&one, &two);
    let path = host.world.path("content");
    let date = |at: &str| {
        let touched = std::process::Command::new("touch").args(["-d", at]).arg(&path).status();
        assert!(touched.unwrap().success());
        // The time of the last change of the file's own record has to be past, too.
        std::thread::sleep(Duration::from_secs(3));
    };
    date("2020-01-01");
    for pool in ["disk", "one"] {
        slow(&one, Kind::Put);
        let line = format!("import {} {pool}/disk", path.display());
        let (said, stopped) = host.stop_at(&line, 50, Signal::INT);
        assert!(stopped && said.contains("what is there of 'disk' is kept"), "{said}");
        let said = host.ends(&line);
        assert!(said.contains("going on with 'disk': ") && said.contains("of 48 MiB"), "{said}");
        assert!(host.content(&format!("{pool}/disk")) == content);
    }
    let line = format!("import {} disk/again", path.display());
    let (said, stopped) = host.stop_at(&line, 50, Signal::KILL);
    assert!(stopped, "{said}");
    content[0] ^= 1;
    std::fs::write(&path, &content).unwrap();
    date("2021-01-01");
    assert!(!host.ends(&line).contains("going on"));
    assert!(host.content("disk/again") == content);
}

#[test]
fn an_export_goes_on_and_its_name_appears_when_it_is_complete() {
    let (one, two) = (Server::plain(), Server::plain());
    let Pools { host, content, .. } = pools(&one, &two);
    let left = || {
        let entries = std::fs::read_dir(host.world.path("out")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    };
    std::fs::create_dir(host.world.path("out")).unwrap();
    let file = host.world.path("out/vm.raw");
    let half = SIZE as u64 / 2;
    slow(&one, Kind::Get);
    let partial = [".vm.raw.marcot-partial", ".vm.raw.marcot-partial.note"];
    let line = format!("export one/vm@s {}", file.display());
    host.empty_cache();
    let (said, stopped) = host.stop_at(&line, 60, Signal::INT);
    assert!(stopped && said.contains("is kept: the same command goes on with it"), "{said}");
    assert_eq!(left(), partial);
    host.empty_cache();
    let before = one.counts().sent_bytes;
    let said = host.ends(&line);
    assert!(said.contains("going on with '") && said.contains("of 48 MiB are there"), "{said}");
    let sent = one.counts().sent_bytes - before;
    assert!(sent > 0 && sent < half, "{sent} bytes were read once more");
    assert!(std::fs::read(&file).unwrap() == content);
    assert_eq!(left(), ["vm.raw"]);

    // Killed, and then from another image: it begins anew.
    std::fs::remove_file(&file).unwrap();
    let (said, stopped) = host.stop_at(&line, 30, Signal::KILL);
    assert!(stopped, "{said}");
    assert_eq!(left(), partial);
    let said = host.ends(&format!("export --no-progress disk/vm@s {}", file.display()));
    assert!(!said.contains("going on"), "{said}");
    assert!(std::fs::read(&file).unwrap() == content);
    assert_eq!(left(), ["vm.raw"]);
}

/// A service is gone for longer than a command waits. Then it is back.
fn goes_on_after_an_outage(line: &str, copy: &str, expected: i32, away: impl Fn(&Server)) {
    let (one, two) = (Server::plain(), Server::plain());
    let Pools { host, content, .. } = pools(&one, &two);
    slow(&one, Kind::Get);
    host.empty_cache();
    let (said, status) = host.disturb_at(line, 40, |_| away(&one));
    assert_eq!(status, Some(expected), "{said}");
    assert!(said.contains("is kept: the same command goes on with it"), "{said}");
    one.set_away(None);
    assert!(done_bytes(&host.ends(line)) > SIZE as u64 / 4);
    assert!(host.content(copy) == content);
}

#[test]
fn a_copy_goes_on_after_its_source_was_out_of_reach() {
    let away = |service: &Server| service.set_away(Some(Fault::Cut));
    goes_on_after_an_outage("cp one/vm@s disk/copy", "disk/copy", ETIMEDOUT, away);
}

#[test]
fn a_copy_goes_on_after_its_destination_was_out_of_reach() {
    let away = |service: &Server| service.set_away(Some(Fault::Refuse(503, "SlowDown")));
    goes_on_after_an_outage("cp disk/vm@s one/copy", "one/copy", ETIMEDOUT, away);
}
