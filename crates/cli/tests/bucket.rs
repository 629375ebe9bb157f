//! Pools in buckets on the command line, with a small S3 service over HTTP.
#![allow(missing_docs)]

#[path = "common/bucket_host.rs"]
mod bucket_host;
mod common;

use bucket_host::Host;
use marcot_s3_test::{ACCESS_KEY, Dialect, Options, Server};

const EINVAL: i32 = 22;
const EACCES: i32 = 13;
const EEXIST: i32 = 17;
const ENOENT: i32 = 2;
const EBUSY: i32 = 16;
const EOPNOTSUPP: i32 = 95;
const ETIMEDOUT: i32 = 110;

#[test]
fn a_template_in_a_bucket_is_cloned_on_another_host() {
    let server = Server::plain();
    let (one, two) = (Host::new(&server), Host::new(&server));
    one.works("pool create templates --backend s3://bucket/prefix --cache-size 1G");
    assert_eq!(one.works("pool ls"), "rbd\ntemplates\n");
    let long = one.works("pool ls -l");
    let row = long.lines().last().unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(row, ["templates", "read-write", "s3://bucket/prefix"]);
    let content: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    let file = one.world.file("debian.raw", &content);
    one.works(&format!("import --no-progress {file} templates/debian"));
    one.works("snap create --no-progress templates/debian@12");
    one.works("snap protect templates/debian@12");

    two.works("pool attach templates --backend s3://bucket/prefix");
    two.works("pool create vms");
    two.works("clone templates/debian@12 vms/web-01");
    two.works("clone templates/debian@12 templates/web-02");
    let exported = two.world.path("web.raw");
    for image in ["vms/web-01", "templates/web-02"] {
        two.works(&format!("export --no-progress {image} {}", exported.display()));
        assert!(std::fs::read(&exported).unwrap() == content, "{image} has other bytes");
        std::fs::remove_file(&exported).unwrap();
    }
    assert_eq!(one.works("ls templates"), "debian\nweb-02\n");
    one.refuses(16, "", "snap unprotect templates/debian@12");
    two.refuses(EBUSY, "still holds image", "pool rm templates");

    two.works("flatten --no-progress vms/web-01");
    two.works("rm --no-progress templates/web-02");
    one.works("snap unprotect templates/debian@12");
    one.works("snap rm --no-progress templates/debian@12");
    one.works("rm --no-progress templates/debian");
    two.works("pool detach templates");
    one.works("pool rm templates");
    assert_eq!(one.works("pool ls"), "rbd\n");
    two.works(&format!("export --no-progress vms/web-01 {}", exported.display()));
    assert!(std::fs::read(&exported).unwrap() == content);
}

#[test]
fn bad_input_is_refused_with_one_sentence_and_changes_nothing() {
    let server = Server::plain();
    let host = Host::new(&server);
    let create = "pool create gold --backend";
    for (status, words, line) in [
        (EINVAL, "not a known back end", format!("{create} ftp://bucket/prefix")),
        (EINVAL, "is no bucket", format!("{create} /srv/pool")),
        (EINVAL, "names no bucket", format!("{create} s3://")),
        (EINVAL, "must not have a user", format!("{create} s3://a:b@bucket/prefix")),
        (EINVAL, "", format!("{create} s3://missing/prefix")),
        (EINVAL, "at least", format!("{create} s3://bucket/prefix --cache-size 1M")),
        (EINVAL, "--readable-by", format!("{create} s3://bucket/prefix --readable-by all")),
        (EINVAL, "--region is for", "pool create gold --region eu-central-1".to_owned()),
        (EINVAL, "--flush is for", "pool attach gold --backend /srv --flush local".to_owned()),
        (1, "--flush", format!("{create} s3://bucket/prefix --flush sometimes")),
        (ENOENT, "holds no pool", "pool attach gold --backend s3://bucket/prefix".to_owned()),
    ] {
        host.refuses(status, words, &line);
    }
    assert_eq!(host.works("pool ls"), "rbd\n");
    let ran = host.run_as("AKNOBODY", &format!("{create} s3://bucket/prefix"));
    assert_eq!(ran.status, EACCES, "{}", ran.err);
    assert!(server.names("bucket").is_empty(), "{:?}", server.names("bucket"));

    host.works(&format!("{create} s3://bucket/prefix"));
    host.refuses(EEXIST, "pool attach", "pool create again --backend s3://bucket/prefix");
    host.refuses(EEXIST, "holds objects", "pool create above --backend s3://bucket");
    host.refuses(EEXIST, "already exists", &format!("{create} s3://bucket/other"));
}

#[test]
fn a_cache_that_is_no_directory_is_named() {
    let server = Server::plain();
    let host = Host::new(&server);
    let file = host.world.path("file");
    std::fs::write(&file, "").unwrap();
    let create = "pool create gold --backend s3://bucket/prefix --cache";
    let words = format!("{} cannot be used as a cache: not a directory", file.display());
    host.refuses(EINVAL, &words, &format!("{create} {}", file.display()));
    assert_eq!(host.works("pool ls"), "rbd\n");
    assert!(server.names("bucket").is_empty(), "{:?}", server.names("bucket"));
}

#[test]
fn that_nobody_is_at_the_endpoint_is_told_in_one_sentence() {
    let server = Server::plain();
    let host = Host::new(&server);
    host.works("pool create gold --backend s3://bucket/prefix");
    // Whoever listened there is gone.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", socket.local_addr().unwrap());
    drop(socket);
    for line in ["pool create other", "pool attach other"] {
        let line = format!("{line} --backend s3://bucket/other --endpoint {nobody}");
        let ran = host.run_as(ACCESS_KEY, &line);
        assert_eq!(ran.status, ETIMEDOUT, "{}", ran.err);
        assert!(ran.err.contains("it refuses connections"), "{}", ran.err);
        assert!(!ran.err.contains("waiting for it"), "{}", ran.err);
    }
    assert_eq!(host.works("pool ls"), "gold\nrbd\n");
}

#[test]
fn an_empty_pool_is_removed_by_any_store_that_uses_it() {
    let server = Server::plain();
    let (maker, other, third) = (Host::new(&server), Host::new(&server), Host::new(&server));
    maker.works("pool create gold --backend s3://bucket/prefix");
    maker.works("create gold/vm --size 1M");
    other.works("pool attach gold --backend s3://bucket/prefix");
    third.works("pool attach gold --backend s3://bucket/prefix");
    other.refuses(EBUSY, "still holds image", "pool rm gold");
    other.works("rm --no-progress gold/vm");
    other.works("pool rm gold");
    assert_eq!(other.works("pool ls"), "rbd\n");
    // For the others it is gone, and they can forget it.
    maker.works("pool rm gold");
    third.works("pool rm gold");
    for host in [&maker, &third] {
        assert_eq!(host.works("pool ls"), "rbd\n");
    }
    maker.works("pool create gold --backend s3://bucket/prefix");
}

#[test]
fn a_service_that_lacks_a_guarantee_is_refused_by_its_name() {
    for (dialect, words) in [
        (Dialect { ignores_if_none_match: true, ..Dialect::default() }, "create once"),
        (Dialect { ignores_if_match: true, ..Dialect::default() }, "no swap if changed"),
    ] {
        let server = Server::start(Options { dialect, ..Options::default() });
        let host = Host::new(&server);
        let create = "pool create gold --backend s3://bucket/prefix";
        host.refuses(EOPNOTSUPP, words, create);
        assert_eq!(host.works("pool ls"), "rbd\n");
        assert!(server.names("bucket").is_empty(), "{:?}", server.names("bucket"));
    }
}

#[test]
fn a_service_that_wants_bare_etags_is_talked_to_so_by_every_command() {
    let dialect = Dialect { bare_etags: true, ..Dialect::default() };
    let server = Server::start(Options { dialect, ..Options::default() });
    let host = Host::new(&server);
    host.works("pool create gold --backend s3://bucket/prefix");
    host.works("create gold/vm --size 1M");
    host.works("rename gold/vm gold/db");
    host.works("resize --no-progress gold/db --size 2M");
    assert_eq!(host.works("ls gold"), "db\n");
}

#[test]
fn an_image_is_not_migrated_into_a_bucket_or_out_of_it() {
    let server = Server::plain();
    let host = Host::new(&server);
    host.works("pool create gold --backend s3://bucket/prefix");
    host.works("create vm --size 1M");
    host.works("create gold/vm --size 1M");
    host.refuses(EOPNOTSUPP, "'deep copy' copies", "migration prepare vm gold/other");
    host.refuses(EOPNOTSUPP, "'deep copy' copies", "migration prepare gold/vm other");
    assert_eq!(host.works("ls") + &host.works("ls gold"), "vm\nvm\n");
}
