//! Several processes that share a cache of ranges, one of which is killed. The processes are this test itself, called
//! with an environment variable.

#![expect(clippy::disallowed_methods, reason = "the service of the test takes its time")]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use marcot_backend::object::cache::{CHUNK_BYTES, RangeCache, RangeSource};
use marcot_format::PoolId;
use marcot_store::World;

/// The variable that makes this test a reader: its directory, and how long an answer takes in ms.
const READER: &str = "MARCOT_TEST_RANGE_CACHE_READER";
const LENGTH: u64 = 32 << 20;
const READS: u64 = 20;
const PROCESSES: usize = 6;

fn content(range: Range<u64>) -> Vec<u8> {
    range.map(|at| (at / 3 % 251) as u8).collect()
}

/// A service that takes its time, and writes down what it was asked for.
fn service(directory: &Path, takes: Duration) -> Arc<dyn RangeSource> {
    let log = directory.join("asked");
    Arc::new(move |_: &str, range: Range<u64>| {
        let line = format!("{} {}\n", range.start, range.end);
        let mut log = OpenOptions::new().append(true).create(true).open(&log)?;
        log.write_all(line.as_bytes())?;
        std::thread::sleep(takes);
        Ok(content(range.start..range.end.min(LENGTH)))
    })
}

/// The ranges that were asked for.
fn asked(directory: &Path) -> Vec<Range<u64>> {
    let text = std::fs::read_to_string(directory.join("asked")).unwrap_or_default();
    let number = |text: &str| text.parse().unwrap();
    let ranges = text.lines().map(|line| line.split_once(' ').unwrap());
    ranges.map(|(start, end)| number(start)..number(end)).collect()
}

fn read(directory: &Path, takes: Duration) -> io::Result<()> {
    let cache = RangeCache::open(&World::system(), directory.join("cache"), 0)?;
    let object = cache.object(PoolId(1), "segments/1", Some(LENGTH), service(directory, takes));
    for i in 0..READS {
        let (offset, mut buf) = (i * 7 % READS * CHUNK_BYTES + 100, vec![0; 5000]);
        assert_eq!(cache.read(&object, offset, &mut buf)?, buf.len());
        assert!(buf == content(offset..offset + 5000));
    }
    Ok(())
}

/// Not a test of its own: what the processes of the others do.
#[test]
fn a_reader_reads_what_the_service_has() {
    let Some(words) = std::env::var_os(READER) else {
        let directory = tempfile::tempdir().unwrap();
        return read(directory.path(), Duration::ZERO).unwrap();
    };
    let words = words.into_string().unwrap();
    let (takes_ms, directory) = words.split_once(':').unwrap();
    let takes = Duration::from_millis(takes_ms.parse().unwrap());
    read(Path::new(directory), takes).unwrap();
    File::create(PathBuf::from(directory).join(format!("done-{}", std::process::id()))).unwrap();
}

fn start(directory: &Path, takes_ms: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_reader_reads_what_the_service_has", "--nocapture"])
        .env(READER, format!("{takes_ms}:{}", directory.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn finish(directory: &Path, mut reader: Child) {
    assert!(reader.wait().unwrap().success());
    let done = directory.join(format!("done-{}", reader.id()));
    assert!(done.exists(), "it has not read anything");
}

#[test]
fn processes_that_read_the_same_at_once_fetch_it_once() {
    let directory = tempfile::tempdir().unwrap();
    let readers: Vec<_> = (0..PROCESSES).map(|_| start(directory.path(), 20)).collect();
    readers.into_iter().for_each(|reader| finish(directory.path(), reader));
    let mut asked = asked(directory.path());
    asked.sort_unstable_by_key(|range| range.start);
    for (one, next) in asked.iter().zip(&asked[1..]) {
        assert!(one.end <= next.start, "{one:?} and {next:?} overlap");
    }
}

#[test]
fn a_process_that_is_killed_while_it_fetches_delays_nobody() {
    let directory = tempfile::tempdir().unwrap();
    // Its answer takes longer than anybody waits.
    let mut killed = start(directory.path(), 600_000);
    while asked(directory.path()).is_empty() {
        assert!(killed.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    let readers: Vec<_> = (0..PROCESSES).map(|_| start(directory.path(), 1)).collect();
    killed.kill().unwrap();
    killed.wait().unwrap();
    readers.into_iter().for_each(|reader| finish(directory.path(), reader));
}
