//! The program under the names of Ceph's other programs: `ceph`, `rados`, `rbd-fuse`, `rbd-nbd`, `rbdmap`. Expected words and
//! exit statuses are those that the programs of Ceph 16.2.15 gave, where a cluster and a store can agree.
#![allow(missing_docs)]

mod common;

use common::{Ran, World, prints, says};

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;
const REALLY: &str = "--yes-i-really-really-mean-it";

fn json(ran: &Ran) -> serde_json::Value {
    assert_eq!(ran.status, 0, "{}", ran.err);
    serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {}", ran.out))
}

#[test]
fn pools_are_made_and_removed_with_ceph() {
    let world = World::new();
    let ceph = |line: &str| world.called("ceph", line);
    assert_eq!(ceph("osd pool create vms 8"), says("pool 'vms' created\n", 0));
    assert_eq!(ceph("osd pool create vms 8 8 replicated"), says("pool 'vms' already exists\n", 0));
    assert_eq!(world.called("rados", "lspools"), prints("rbd\nvms\n"));
    assert_eq!(ceph("osd pool ls"), prints("rbd\nvms\n"));
    assert_eq!(ceph("osd pool ls -f json"), prints("\n[\"rbd\",\"vms\"]"));
    let refused = ceph("osd pool rm vms");
    assert_eq!(refused.status, EPERM);
    assert!(refused.err.starts_with("Error EPERM: WARNING: this will *PERMANENTLY DESTROY*"));
    assert_eq!(ceph("osd pool rm vms vms").status, EPERM);
    assert_eq!(ceph(&format!("osd pool rm vms rbd {REALLY}")).status, EPERM);
    let rm = format!("osd pool rm vms vms {REALLY}");
    assert_eq!(ceph(&rm), says("pool 'vms' removed\n", 0));
    assert_eq!(ceph(&rm), says("pool 'vms' does not exist\n", 0));
    assert_eq!(ceph("osd pool ls"), prints("rbd\n"));
}

#[test]
fn a_pool_with_images_is_not_destroyed_by_ceph() {
    let world = World::new();
    world.silently(&["create --size 1M image"]);
    let refused = world.called("ceph", &format!("osd pool delete rbd rbd {REALLY}"));
    assert_eq!(refused.status, EBUSY);
    assert!(refused.err.contains("still holds image image; remove its images first"));
    assert_eq!(world.rbd("ls"), prints("image\n"));
}

#[test]
fn settings_of_pools_are_accepted_and_told_as_they_are() {
    let world = World::new();
    let ceph = |line: &str| world.called("ceph", line);
    let set = ceph("osd pool set rbd size 3 --yes-i-really-mean-it");
    assert_eq!(set.status, 0);
    assert!(set.err.contains("'size' has no effect here"), "{}", set.err);
    assert_eq!(ceph("osd pool get rbd size"), prints("size: 1\n"));
    let all = json(&ceph("osd pool get rbd all --format json"));
    assert_eq!((&all["pool"], &all["size"]), (&"rbd".into(), &1.into()));
    assert_eq!(
        ceph("osd pool get nosuch size"),
        says("Error ENOENT: unrecognized pool 'nosuch'\n", ENOENT)
    );
    assert_eq!(ceph("osd pool get rbd bogus").status, EINVAL);
    assert_eq!(ceph("osd pool set rbd bogus 1").status, EINVAL);
    assert_eq!(ceph("osd pool rename nosuch vms").status, ENOENT);
    assert_eq!(ceph("osd pool rename rbd rbd").status, EEXIST);
    assert_eq!(ceph("osd pool rename rbd vms").status, EOPNOTSUPP);
    assert_eq!(
        ceph("osd pool application enable rbd rbd"),
        says("enabled application 'rbd' on pool 'rbd'\n", 0)
    );
}

#[test]
fn the_store_answers_for_a_cluster() {
    let world = World::new();
    let id = world.called("ceph", "fsid").out;
    assert_eq!(id.trim_end().len(), 36, "{id}");
    assert_eq!(world.called("ceph", "fsid").out, id, "it stays the same");
    let status = json(&world.called("ceph", "-s --format json"));
    assert_eq!(status["fsid"], id.trim_end());
    assert_eq!(status["health"]["status"], "HEALTH_OK");
    assert_eq!(status["pgmap"]["num_pools"], 1);
    let monitors = json(&world.called("ceph", "mon dump -f json"));
    assert_eq!(monitors["mons"][0]["name"], "a");
    let other = World::new();
    assert_ne!(other.called("ceph", "fsid").out, id, "another store is another cluster");
}

#[test]
fn what_is_used_and_free_has_the_keys_that_programs_read() {
    let world = World::new();
    let raw = world.file("raw", &vec![7; 1 << 20]);
    world.silently(&[&format!("import --no-progress {raw} image")]);
    let df = json(&world.called("ceph", "df detail --format json"));
    let pool = &df["pools"][0];
    assert_eq!(pool["name"], "rbd");
    let used = pool["stats"]["bytes_used"].as_u64().unwrap();
    assert!(used >= 1 << 20, "{used}");
    assert_eq!(df["stats"]["total_used_bytes"], used);
    assert!(pool["stats"]["max_avail"].as_u64().unwrap() > 0);
    let percent = pool["stats"]["percent_used"].as_f64().unwrap();
    assert!(percent > 0.0 && percent < 1.0, "{percent}");
    let rados = json(&world.called("rados", "df --format json"));
    assert_eq!(rados["pools"][0]["size_bytes"], used);
    assert_eq!(rados["total_objects"], 1);
    let xml = world.called("ceph", "df detail --format xml").out;
    assert!(xml.contains(&format!("<bytes_used>{used}</bytes_used>")), "{xml}");
    assert!(world.called("ceph", "df").out.contains("--- POOLS ---\n"));
}

#[test]
fn what_only_a_cluster_can_do_is_refused_in_one_sentence() {
    let world = World::new();
    for line in ["osd tree", "auth ls", "mgr module ls", "pg stat"] {
        let ran = world.called("ceph", line);
        assert_eq!((ran.status, ran.out.as_str()), (EOPNOTSUPP, ""), "{line}");
        assert_eq!(ran.err.lines().count(), 1, "{line}: {}", ran.err);
    }
    assert_eq!(world.called("ceph", "bogus").status, EINVAL);
    assert_eq!(world.called("rados", "-p rbd put object file").status, EOPNOTSUPP);
    assert_eq!(world.called("rados", "bogus").status, 1);
}

#[test]
fn the_objects_of_a_pool_are_those_that_name_its_images() {
    let world = World::new();
    assert_eq!(world.called("rados", "-p rbd ls"), prints("rbd_info\n"));
    world.silently(&["create --size 1M --image-feature layering a", "namespace create rbd/ns"]);
    world.silently(&["create --size 1M rbd/ns/b"]);
    let info = json(&world.rbd("info a --format json"));
    let header = format!("rbd_header.{}", info["id"].as_str().unwrap());
    let listed = world.called("rados", "-p rbd ls").out;
    let expected = format!("rbd_directory\nrbd_info\nrbd_namespace\nrbd_id.a\n{header}\n");
    assert_eq!(listed, expected);
    let inner = json(&world.called("rados", "-p rbd -N ns ls -f json"));
    assert_eq!(inner[1], serde_json::json!({"namespace": "ns", "name": "rbd_id.b"}));
    assert_eq!(inner.as_array().unwrap().len(), 4, "{inner}");
    assert!(world.called("rados", "-p rbd ls --all").out.contains("\nns\trbd_id.b\n"));
    let without = world.called("rados", "ls");
    assert_eq!(without, says("either pool name or pg id needs to be specified\n", 1));
    let missing = says("error opening pool nosuch: (2) No such file or directory\n", 1);
    assert_eq!(world.called("rados", "-p nosuch ls"), missing);
    assert_eq!(world.called("rados", "-p nosuch df"), missing);
}

#[test]
fn versions_are_read_as_those_of_ceph() {
    let world = World::new();
    for program in ["rbd", "ceph", "rados", "rbd-nbd", "rbd-fuse"] {
        let ran = world.called(program, "--version");
        assert!(ran.out.starts_with("ceph version 16.2.15 (marcot "), "{program}: {}", ran.out);
    }
    assert!(world.marcot("--version").out.starts_with("marcot "));
}

#[test]
fn rbd_nbd_ends_with_1_whatever_failed() {
    let world = World::new();
    let nbd = |line: &str| world.called("rbd-nbd", line);
    assert_eq!(nbd("list-mapped --format=json"), prints("[]\n"));
    for line in ["map nosuch", "unmap nosuch", "unmap /dev/null", "bogus", "map --bogus x", "map"] {
        let ran = nbd(line);
        assert_eq!((ran.status, ran.out.as_str()), (1, ""), "{line}");
        assert!(ran.err.starts_with("rbd-nbd: "), "{line}: {}", ran.err);
    }
    world.silently(&["create --size 1M image"]);
    let encrypted = nbd("map --encryption-format luks2 image");
    assert!(encrypted.err.contains("encryption of images is not offered"), "{}", encrypted.err);
}

#[test]
fn rbd_fuse_refuses_before_it_mounts() {
    let world = World::new();
    let file = world.file("file", b"");
    let empty = world.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let full = world.path("full");
    std::fs::create_dir_all(full.join("directory")).unwrap();
    let (empty, full) = (empty.to_str().unwrap(), full.to_str().unwrap());
    let refused = [
        (String::new(), "missing mountpoint parameter"),
        ("-p rbd".to_owned(), "missing mountpoint parameter"),
        (format!("{empty} {full}"), "too many arguments"),
        (format!("--bogus {empty}"), "unrecognised option '--bogus'"),
        (format!("-o bogus {empty}"), "unknown option 'bogus'"),
        (format!("-o uid=root {empty}"), "mount option 'uid=root' needs a number"),
        ("/nonexistent".to_owned(), "bad mount point '/nonexistent': No such file or directory"),
        (file, "it is no directory"),
        (full.to_owned(), "it is not empty; if this is safe, use the mount option 'nonempty'"),
        (format!("-p nosuch {empty}"), "error opening pool 'nosuch': (2) No such file"),
        (format!("-s nosuch {empty}"), "namespace 'nosuch' does not exist."),
    ];
    for (line, said) in refused {
        let ran = world.called("rbd-fuse", &line);
        assert_eq!((ran.status, ran.out.as_str()), (1, ""), "{line}: {}", ran.err);
        assert!(ran.err.starts_with("rbd-fuse: ") && ran.err.contains(said), "{line}: {}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{line}: {}", ran.err);
    }
    assert!(world.called("rbd-fuse", "--help").out.starts_with("Usage: rbd-fuse MOUNTPOINT"));
    assert_eq!(world.marcot("directory server").status, 1, "it is started by the program itself");
}

#[test]
fn rbdmap_tells_bad_lines_and_goes_on_without_a_table() {
    let world = World::new();
    let rbdmap = |table: &str| {
        let mut command = world.called_command("rbdmap", "map");
        common::ran(command.env("RBDMAPFILE", table))
    };
    let none = rbdmap("/nonexistent/rbdmap");
    assert_eq!(none.status, 0);
    assert!(none.err.contains("no table /nonexistent/rbdmap"), "{}", none.err);
    let bad = world.file("table", b"# comment\n\nrbd/image options='rw\n");
    let ran = rbdmap(&bad);
    assert_eq!(ran.status, EINVAL);
    assert!(ran.err.contains("table:3: a quotation mark has no end"), "{}", ran.err);
    let missing = world.file("missing", b"rbd/nosuch id=admin\n");
    let ran = rbdmap(&missing);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("rbd/nosuch: "), "{}", ran.err);
    assert_eq!(world.called("rbdmap", "").out, "Usage: rbdmap map | unmap | unmap-all\n");
}
