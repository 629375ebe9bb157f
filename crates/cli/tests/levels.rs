//! A pool says which level of the format a program must know to write it, and to read it.
#![allow(missing_docs)]

#[path = "common/bucket_host.rs"]
mod bucket_host;
mod common;

use std::collections::BTreeMap;
use std::path::Path;

use bucket_host::Host;
use common::noise;
use marcot_format::frame::{FORMAT_LEVEL, FrameKind, decode_message, encode_message};
use marcot_format::record::{ObjectRecord, PoolRecord};
use marcot_s3_test::{BUCKET, Server};

const EROFS: i32 = 30;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;
const MIB: usize = 1 << 20;

/// A pool in a directory and one in a bucket, with what is done to both.
struct Pools<'a> {
    host: &'a Host<'a>,
    server: &'a Server,
}

impl Pools<'_> {
    const NAMES: [&'static str; 2] = ["local", "remote"];

    fn file(&self) -> std::path::PathBuf {
        self.host.world.path("store/pools/local/pool")
    }

    fn record(&self, pool: &str) -> PoolRecord {
        let bytes = match pool {
            "local" => std::fs::read(self.file()).unwrap(),
            _ => self.object().body,
        };
        decode_message(FrameKind::Pool, &bytes).unwrap().0
    }

    fn object(&self) -> ObjectRecord {
        let stored = self.server.bytes(BUCKET, "prefix/pool").unwrap();
        decode_message(FrameKind::Object, &stored).unwrap().0
    }

    /// What a newer program has stored.
    fn set(&self, pool: &str, read_level: u32, write_level: u32) {
        let record = PoolRecord { read_level, write_level, ..self.record(pool) };
        match pool {
            "local" => std::fs::write(self.file(), record.to_file()).unwrap(),
            _ => {
                let mut object = self.object();
                object.body = record.to_file();
                let bytes = encode_message(FrameKind::Object, &object);
                self.server.store(BUCKET, "prefix/pool", bytes);
            }
        }
    }

    /// All bytes of both.
    fn bytes(&self) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        gather(&self.host.world.path("store/pools/local"), &mut found);
        for name in self.server.names(BUCKET) {
            let bytes = self.server.bytes(BUCKET, &name).unwrap();
            found.insert(name, bytes);
        }
        found
    }
}

fn gather(directory: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.insert(path.display().to_string(), Vec::new());
            gather(&path, found);
        } else {
            found.insert(path.display().to_string(), std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn a_pool_of_a_newer_level_is_read_and_not_written_and_nothing_in_it_changes() {
    let server = Server::plain();
    let host = Host::new(&server);
    let pools = Pools { host: &host, server: &server };
    host.works("pool create local");
    host.works("pool create remote --backend s3://bucket/prefix");
    let content = noise(MIB);
    let file = host.world.file("content", &content);
    for pool in Pools::NAMES {
        assert_eq!(pools.record(pool).write_level, FORMAT_LEVEL);
        host.works(&format!("import --no-progress {file} {pool}/vm"));
        host.works(&format!("snap create --no-progress {pool}/vm@s"));
        host.works(&format!("snap protect {pool}/vm@s"));
        assert!(!host.works(&format!("info {pool}/vm")).contains("read_only"));
        pools.set(pool, 0, FORMAT_LEVEL + 1);
    }
    let before = pools.bytes();
    for pool in Pools::NAMES {
        let newer = format!("know level {} of the format", FORMAT_LEVEL + 1);
        for line in [
            format!("create {pool}/other --size 1M"),
            format!("import --no-progress {file} {pool}/other"),
            format!("cp --no-progress {pool}/vm {pool}/other"),
            format!("clone {pool}/vm@s {pool}/other"),
            format!("rename {pool}/vm {pool}/other"),
            format!("resize --no-progress {pool}/vm --size 2M"),
            format!("snap create --no-progress {pool}/vm@t"),
            format!("snap unprotect {pool}/vm@s"),
            format!("flatten --no-progress {pool}/vm"),
            format!("rm --no-progress {pool}/vm"),
            format!("trash mv {pool}/vm"),
            format!("image-meta set {pool}/vm key value"),
            format!("lock add {pool}/vm lock"),
            format!("group create {pool}/group"),
            format!("namespace create {pool}/namespace"),
            format!("config pool set {pool} rbd_cache true"),
            format!("pool init {pool}"),
            format!("pool require {pool}"),
            format!("pool rm {pool}"),
            format!("gc --no-progress {pool}"),
        ] {
            let ran = host.run(&line);
            assert_eq!(ran.status, EROFS, "{line}: {}", ran.err);
            assert!(ran.err.contains(&newer), "{line}: {}", ran.err);
        }
        let path = host.world.path("exported");
        host.works(&format!("export --no-progress {pool}/vm@s {}", path.display()));
        assert!(std::fs::read(&path).unwrap() == content);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(host.works(&format!("ls {pool}")), "vm\n");
        let shown = host.works(&format!("info {pool}/vm"));
        assert!(shown.contains("\n\tread_only: pool ") && shown.contains(&newer), "{shown}");
        assert!(
            host.works(&format!("info {pool}/vm --format json")).contains("\"read_only\":\"pool")
        );
        let checked = host.works(&format!("check --repair --no-progress {pool}"));
        assert!(checked.contains(&newer) && checked.contains("all is well"), "{checked}");
        let levels = format!("\"levels\":{{\"read\":1,\"write\":{},\"known\":", FORMAT_LEVEL + 1);
        for line in ["check --no-progress --format json", "pool stats -l --format json"] {
            let shown = host.works(&format!("{line} {pool}"));
            assert!(shown.contains(&levels), "{shown}");
        }
        let stats = host.works(&format!("pool stats -l {pool}"));
        let (newer, known) = (FORMAT_LEVEL + 1, FORMAT_LEVEL);
        let said =
            format!("Format Level: 1 to read, {newer} to write; this program knows {known}\n");
        assert!(stats.contains(&said), "{stats}");
    }
    let changed = |(name, bytes): &(&String, &Vec<u8>)| before.get(*name) != Some(*bytes);
    let after = pools.bytes();
    // Readers lock empty files.
    let left = after.iter().filter(changed).filter(|(_, bytes)| !bytes.is_empty());
    let changed: Vec<&String> = left.map(|(name, _)| name).collect();
    assert!(
        changed.is_empty() && before.keys().all(|name| after.contains_key(name)),
        "{changed:?}"
    );
    // A clone elsewhere needs no more than reading, and a marker, which the pool's owner has to store.
    for pool in Pools::NAMES {
        pools.set(pool, FORMAT_LEVEL + 1, FORMAT_LEVEL + 1);
    }
    let before = pools.bytes();
    let unreadable =
        format!("it can be read only by programs that know level {}", FORMAT_LEVEL + 1);
    for pool in Pools::NAMES {
        for line in [
            format!("ls {pool}"),
            format!("info {pool}/vm"),
            format!("export --no-progress {pool}/vm -"),
            format!("create {pool}/other --size 1M"),
            format!("pool require {pool}"),
        ] {
            host.refuses(EOPNOTSUPP, &unreadable, &line);
        }
    }
    assert!(pools.bytes() == before);
    assert!(host.works("pool ls -l").contains(&unreadable));
}

#[test]
fn levels_are_raised_by_a_command_and_never_lowered() {
    let server = Server::plain();
    let host = Host::new(&server);
    let pools = Pools { host: &host, server: &server };
    host.works("pool create local");
    host.works("pool create remote --backend s3://bucket/prefix");
    for pool in Pools::NAMES {
        // A pool of an earlier version.
        pools.set(pool, 0, 0);
        let before = pools.record(pool);
        let levels = || (pools.record(pool).read_level, pools.record(pool).write_level);
        let beyond = FORMAT_LEVEL + 1;
        for option in ["--write-level", "--read-level"] {
            let line = format!("pool require {pool} {option} {beyond}");
            let known = format!("this marcot knows the format up to level {FORMAT_LEVEL}");
            host.refuses(EINVAL, &known, &line);
        }
        host.works(&format!("pool require {pool} --write-level 1 --read-level 1"));
        assert!(pools.record(pool) == before, "nothing was to be changed");
        host.works(&format!("pool require {pool}"));
        assert_eq!(levels(), (1, FORMAT_LEVEL));
        let lower = format!("pool require {pool} --write-level 1");
        host.refuses(EINVAL, "levels are never lowered", &lower);
        // Other changes of the record keep them.
        host.works(&format!("config pool set {pool} rbd_cache true"));
        assert_eq!(levels(), (1, FORMAT_LEVEL));
        host.works(&format!("pool require {pool} --read-level {FORMAT_LEVEL}"));
        assert_eq!(levels(), (FORMAT_LEVEL, FORMAT_LEVEL));
        host.works(&format!("create {pool}/vm --size 1M"));
        assert_eq!(host.works(&format!("ls {pool}")), "vm\n");
    }
}
