//! The admission of operations.
#![allow(missing_docs)]

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use marcot::{
    CheckOptions, CloneOptions, CreateOptions, ErrorKind, ImageId, Namespace, PoolOptions, SnapId,
};
use marcot_client::content::States;
use marcot_client::deep_copy::DeepCopy;
use marcot_client::devices::{Devices, MapRequest, ProgramWords};
use marcot_client::exports::StoreExports;
use marcot_client::inspect::Diff;
use marcot_client::layering::Children;
use marcot_client::stream::export;
use marcot_client::stream::import::{self, Difference};
use marcot_client::{Client, Error, Image, ImageSpec, Operation, Options, Quiesce, Result};
use marcot_serve::mapping::MappedRecord;
use marcot_serve::nbd::Exports;

type Call = (Operation, Box<dyn Fn() -> Result<()>>);

fn quiet(_: u64, _: u64) {}

/// Imports a difference that breaks off at once.
fn import_difference(image: &Image) -> Result<()> {
    let source = &mut std::io::empty();
    let difference = Difference { source, file: None, grain_bytes: 4096, may_protect: true };
    let imported = image.import_difference(difference, &mut |_, _, _| {});
    imported.map_err(|failed| match failed.trouble {
        import::Trouble::Image(error) => error,
        other => Error::new(ErrorKind::Invalid, format!("{other:?}")),
    })
}

fn exported(outcome: std::result::Result<(), export::Trouble>) -> Result<()> {
    outcome.map_err(|trouble| match trouble {
        export::Trouble::Image(error) => error,
        export::Trouble::Sink(error) => Error::new(ErrorKind::Io, error.to_string()),
    })
}

/// Calls every operation, on the image `a` with the snapshot `s`.
fn calls(client: &Client) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut add = |operation, call: Box<dyn Fn() -> Result<()>>| calls.push((operation, call));
    macro_rules! call {
        ($operation:ident, $name:ident: $of:expr => $call:expr) => {{
            let $name = $of;
            add(Operation::$operation, Box::new(move || ($call).map(drop)));
        }};
    }
    let pool = client.pool("rbd").unwrap();
    let id = pool.engine().find("a").unwrap();
    let image = || pool.known_image("a", id);
    let snapshot = || image().snapshot("s");
    let options = CreateOptions::sized(1 << 20);
    let new = options.clone();
    call!(ListPools, c: client.clone() => c.pools());
    call!(CreatePool, c: client.clone() => c.create_pool("p", &PoolOptions::default()));
    call!(InitPool, c: client.clone() => c.init_pool("rbd"));
    call!(RemovePool, c: client.clone() => c.remove_pool("p"));
    call!(AttachPool, c: client.clone() => c.attach_pool("q", c.directory()));
    call!(DetachPool, c: client.clone() => c.detach_pool("q"));
    call!(PoolStats, p: pool.clone() => p.stats());
    call!(RequireLevels, p: pool.clone() => p.require_levels(None, None));
    call!(CheckPool, p: pool.clone() => p.check(&CheckOptions::default(), &mut quiet));
    call!(CollectGarbage, p: pool.clone() => p.collect_garbage(&mut quiet));
    call!(ListNamespaces, p: pool.clone() => p.namespaces());
    call!(CreateNamespace, p: pool.clone() => p.create_namespace("n"));
    call!(RemoveNamespace, p: pool.clone() => p.remove_namespace("n"));
    call!(ListImages, p: pool.clone() => p.images(&Namespace::DEFAULT));
    call!(FindImage, p: pool.clone() => p.image("a"));
    call!(FindImage, p: pool.clone() => p.image_by_id(&Namespace::DEFAULT, id));
    call!(FindImage, c: client.clone() => c.image(&ImageSpec::new("rbd", "a")));
    call!(CreateImage, p: pool.clone() => p.create("b", &new));
    call!(ImportImage, p: pool.clone() => p.begin_image("c", &options));
    call!(RenameImage, p: pool.clone() => p.rename("b", "d"));
    call!(RenameImage, i: pool.known_image("d", id) => i.rename("b"));
    call!(MoveToTrash, i: image() => i.move_to_trash(None));
    call!(FindImage, p: pool.clone() => p.trashed_image(&Namespace::DEFAULT, id));
    call!(ListTrash, p: pool.clone() => p.trash(&Namespace::DEFAULT));
    call!(RestoreImage, p: pool.clone() => p.restore(&Namespace::DEFAULT, id, None));
    call!(ImageInfo, i: image() => i.info());
    call!(ImageInfo, i: image() => i.metadata());
    call!(ImageInfo, s: snapshot() => s.info());
    call!(ImageStatus, i: image() => i.status());
    call!(ImageUsage, i: image() => i.usage());
    call!(DiffImage, i: image() => i.diff(&Diff { length: 4096, ..Diff::default() }));
    call!(ReadImage, i: image() => i.content());
    call!(ReadImage, s: snapshot() => s.content());
    call!(ImportDifference, i: image() => import_difference(&i));
    call!(ExportStream, i: image() => exported(i.export_difference(
        States::default(), false, &mut |_| Ok(()), &mut quiet)));
    call!(ExportStream, i: image() => exported(i.export_whole(
        &[], &mut |_| Ok(()), &mut quiet)));
    call!(OpenImage, i: image() => i.open());
    call!(OpenImage, i: image() => i.open_read_only());
    call!(OpenImage, s: snapshot() => s.open());
    call!(ResizeImage, i: image() => i.resize(2 << 20, false, &mut quiet));
    call!(SparsifyImage, i: image() => i.sparsify(4096, 4096, &mut quiet));
    call!(ReclaimImage, i: image() => i.reclaim());
    call!(SetMetadata, i: image() => i.set_metadata("k", "v"));
    call!(SetMetadata, i: image() => i.remove_metadata("k"));
    call!(ChangeFeatures, i: image() => i.change_features(&["exclusive-lock".into()], true));
    call!(LimitSnapshots, i: image() => i.limit_snapshots(Some(9)));
    call!(ListLocks, i: image() => i.locks());
    call!(ChangeLocks, i: image() => i.remove_lock(1, "c"));
    call!(ReadConfiguration, c: client.clone() => c.configuration());
    call!(ReadConfiguration, p: pool.clone() => p.configuration());
    call!(Configure, c: client.clone() => c.configure("global", "rbd_cache", Some("true")));
    call!(Configure, p: pool.clone() => p.configure("rbd_cache", Some("true")));
    call!(CreateSnapshot, i: image() => i.create_snapshot("t", Quiesce::Skip));
    call!(ProtectSnapshot, s: snapshot() => s.protect());
    let (p, s) = (pool.clone(), snapshot());
    call!(CloneSnapshot, x: (p, s) => x.1.clone_into(&x.0, "e", &CloneOptions::default()));
    let (p, i) = (pool.clone(), image());
    call!(CopyImage, x: (p, i) => x.1.copy_into(&x.0, "f", None, &mut quiet));
    let (p, s) = (pool.clone(), snapshot());
    call!(CopyImage, x: (p, s) => x.1.copy_into(&x.0, "g", None, &mut quiet));
    let (p, i) = (pool.clone(), image());
    call!(CopyImage, x: (p, i) => x.1.deep_copy_into(&x.0, "deep", DeepCopy::default(), &mut quiet));
    call!(ListChildren, i: image() => i.children(Children::Descendants, None::<SnapId>));
    call!(ListChildren, i: image() => i.has_unprotected_child());
    call!(FlattenImage, i: image() => i.flatten(&mut quiet));
    call!(RollBackSnapshot, s: snapshot() => s.roll_back(&mut quiet));
    call!(UnprotectSnapshot, s: snapshot() => s.unprotect());
    call!(RenameSnapshot, i: image() => i.snapshot("t").rename("u"));
    call!(RemoveSnapshot, i: image() => i.snapshot("u").remove(false, &mut quiet));
    call!(PurgeSnapshots, i: image() => i.purge_snapshots(&mut quiet));
    let group = || pool.group(&Namespace::DEFAULT, "g");
    call!(ListGroups, p: pool.clone() => p.groups(&Namespace::DEFAULT));
    call!(CreateGroup, p: pool.clone() => p.create_group(&Namespace::DEFAULT, "g"));
    call!(ListGroups, g: group() => g.info());
    call!(AddToGroup, x: (group(), image()) => x.0.add(&x.1));
    call!(ListGroups, i: image() => i.group());
    call!(CreateGroupSnapshot, g: group() => g.create_snapshot("s", Quiesce::Required));
    call!(RenameGroupSnapshot, g: group() => g.rename_snapshot("s", "t"));
    call!(RollBackGroup, g: group() => g.roll_back("t", &mut quiet));
    call!(RemoveGroupSnapshot, g: group() => g.remove_snapshot("t"));
    call!(TakeOutOfGroup, x: (group(), image()) => x.0.take_out(&x.1));
    call!(RenameGroup, g: group() => g.rename("h"));
    call!(RemoveGroup, p: pool.clone() => p.group(&Namespace::DEFAULT, "h").remove());
    call!(PrepareMigration, p: pool.clone() => p.prepare_migration("a", &p, "o", &CreateOptions::default().into()));
    let moved = pool.engine().find("n").unwrap();
    let migration =
        || pool.known_migration(client.store().migration(pool.engine(), moved).unwrap());
    call!(FindImage, p: pool.clone() => p.migration("n"));
    call!(ExecuteMigration, m: migration() => m.execute(&mut quiet));
    call!(CommitMigration, m: migration() => m.commit(&mut quiet));
    call!(AbortMigration, m: migration() => m.abort(&mut quiet));
    call!(RemoveImage, i: image() => i.remove(&mut quiet));
    call!(RemoveImage, i: image() => i.give_up(&mut quiet));
    calls
}

/// Operations on devices and exports. They are only tested with an admission that refuses: without it they
/// need a kernel, or ask for several operations.
fn refused_only(client: &Client, options: Options) -> Vec<Call> {
    const WORDS: ProgramWords = ProgramWords { server: &["true"], quiesce: &["true"] };
    let pool = client.pool("rbd").unwrap();
    let image = pool.known_image("a", pool.engine().find("a").unwrap());
    let request = MapRequest::default;
    let devices =
        Arc::new(Devices::open_in(&client.directory().join("run"), options, WORDS).unwrap());
    let record: MappedRecord = serde_json::from_str(
        r#"{"id": 65535, "pid": 1, "boot": "", "store": "/", "pool": "rbd", "namespace": "",
            "image": "a", "image_number": 1, "snap": "", "snap_number": 0, "device": "/dev/nbd65535",
            "driver": "nbd", "read_only": false, "label": "", "cookie": "",
            "names": {"directory": "/dev", "node": null, "link": null}}"#,
    )
    .unwrap();
    let (d, i) = (Arc::clone(&devices), image.clone());
    let map = move || d.map(&i, None, &request()).map(drop).map_err(Error::from);
    let (d, i) = (Arc::clone(&devices), image);
    let attach = move || {
        let attached = d.attach(&i, None, "/dev/nbd65535", &request(), false);
        attached.map(drop).map_err(Error::from)
    };
    let (d, r) = (Arc::clone(&devices), record.clone());
    let unmap = move || d.unmap(&r, false).map(drop);
    let (d, r) = (Arc::clone(&devices), record);
    let detach = move || d.detach(&r);
    let exports = StoreExports::new(client, Vec::new(), false);
    let childless = pool.known_image("a", pool.engine().find("a").unwrap());
    vec![
        (Operation::ForgetChild, Box::new(move || childless.forget_child(ImageId(1)))),
        (Operation::ListDevices, Box::new(move || devices.list().map(drop))),
        (Operation::MapDevice, Box::new(map)),
        (Operation::AttachDevice, Box::new(attach)),
        (Operation::UnmapDevice, Box::new(unmap)),
        (Operation::DetachDevice, Box::new(detach)),
        (Operation::ServeImages, Box::new(move || exports.open("rbd/a").map(drop))),
    ]
}

/// A store with an image and a snapshot, a client with an admission, and the operations that it asked for.
fn asking(
    admit: impl Fn(Operation) -> bool + Send + Sync + 'static,
) -> (tempfile::TempDir, Client, Options, Arc<Mutex<Vec<Operation>>>) {
    let directory = tempfile::tempdir().unwrap();
    let client = Client::open(directory.path(), Options::new()).unwrap();
    let options = CreateOptions::sized(1 << 20);
    let image = client.create(&ImageSpec::new("rbd", "a"), &options).unwrap();
    image.create_snapshot("s", Quiesce::Skip).unwrap();
    client.create(&ImageSpec::new("rbd", "m"), &options).unwrap();
    let pool = client.pool("rbd").unwrap();
    pool.prepare_migration("m", &pool, "n", &options.clone().into()).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let options = Options::new().admission(move |attempt| {
        log.lock().unwrap().push(attempt.operation);
        match admit(attempt.operation) {
            true => Ok(()),
            false => {
                Err(Error::new(ErrorKind::PermissionDenied, format!("not allowed: {attempt}")))
            }
        }
    });
    let client = Client::open(directory.path(), options.clone()).unwrap();
    (directory, client, options, asked)
}

#[test]
fn an_operation_that_is_not_admitted_changes_nothing() {
    // Serving an export needs two operations: the image is looked up before it is opened.
    let looking = Arc::new(AtomicBool::new(false));
    let may_look = Arc::clone(&looking);
    let admit =
        move |operation| operation == Operation::FindImage && may_look.load(Ordering::Relaxed);
    let (_directory, client, options, asked) = asking(admit);
    let before = client.pool("rbd").unwrap().engine().images(&Namespace::DEFAULT).unwrap();
    let mut seen = HashSet::new();
    let mut all = calls(&client);
    all.extend(refused_only(&client, options));
    for (operation, call) in all {
        looking.store(operation == Operation::ServeImages, Ordering::Relaxed);
        asked.lock().unwrap().clear();
        let error = call().expect_err(&format!("{operation:?}"));
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{operation:?}: {error}");
        assert_eq!(asked.lock().unwrap().last(), Some(&operation));
        seen.insert(operation);
    }
    assert_eq!(seen, Operation::ALL.iter().copied().collect());
    let pool = client.pool("rbd").unwrap();
    assert_eq!(pool.engine().images(&Namespace::DEFAULT).unwrap(), before);
    assert!(!client.directory().join("pools/p").exists());
    let info = pool.engine().info(pool.engine().find("a").unwrap()).unwrap();
    assert_eq!((info.size_bytes, info.snapshots.len()), (1 << 20, 1));
    assert!(!info.snapshots[0].protected && info.metadata.is_empty());
}

#[test]
fn an_operation_asks_for_admission_once() {
    let (_directory, client, _, asked) = asking(|_| true);
    for (operation, call) in calls(&client) {
        asked.lock().unwrap().clear();
        // Some fail after the others. This test only counts how often they ask.
        let _ = call();
        assert_eq!(*asked.lock().unwrap(), [operation]);
    }
}
