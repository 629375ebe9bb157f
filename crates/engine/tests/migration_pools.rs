//! Migration between pools: a pool of another store that holds one of the images stays until the migration ends, and an
//! abort costs what has changed.

mod support;

use std::fs;
use std::path::Path;

use std::sync::atomic::Ordering;

use marcot::{CreateOptions, ErrorKind, ImageName, Limits, Pool, PoolOptions, Store};
use support::{MIB, assert_sound, changed, faulty_world, pattern, run};

fn quiet(_: u64, _: u64) {}

/// A store with the image `a` in its pool `rbd`, and another store's pool attached as `away`.
fn stores(directory: &Path) -> (Store, Pool, Pool) {
    let other = Store::open(&directory.join("other")).unwrap();
    let store = Store::open(&directory.join("store")).unwrap();
    let away = store.pool_attach("away", other.pool("rbd").unwrap().directory()).unwrap();
    let own = store.pool("rbd").unwrap();
    (store, own, away)
}

fn image_in(pool: &Pool) {
    let id = pool.create("a", &CreateOptions::sized(MIB)).unwrap();
    changed(pool, id, |image| image.write_at(0, &pattern(1, 4096)).unwrap());
}

fn prepare(store: &Store, from: &Pool, to: &Pool) {
    let name = ImageName::new("a");
    let options = CreateOptions::default().into();
    store.prepare_migration((from, &name), (to, &name), &options).unwrap();
}

fn refusal(store: &Store) -> String {
    let refused = store.pool_detach("away").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    refused.sentence().to_string()
}

#[test]
fn a_pool_is_not_detached_while_it_holds_the_source_of_a_migration() {
    let directory = tempfile::tempdir().unwrap();
    let (store, own, away) = stores(directory.path());
    image_in(&away);
    prepare(&store, &away, &own);
    let wanted = "away/a is being migrated to pool 'rbd'; end that with 'migration commit' or 'migration abort' first";
    assert_eq!(refusal(&store), wanted);
    // The target tells it too, where the directory of the pool is gone.
    let gone = directory.path().join("gone");
    fs::rename(away.directory(), &gone).unwrap();
    let again = Store::open(store.directory()).unwrap();
    let wanted = "rbd/a is being migrated from pool 'away'; end that with 'migration commit' or 'migration abort' first";
    assert_eq!(refusal(&again), wanted);
    fs::rename(&gone, away.directory()).unwrap();
    let target = own.find("a").unwrap();
    let migration = store.migration(&own, target).unwrap();
    store.abort_migration(&migration, &mut quiet).unwrap();
    store.pool_detach("away").unwrap();
    assert_sound(&store, &own);
}

#[test]
fn a_pool_is_not_detached_while_it_holds_the_target_of_a_migration() {
    let directory = tempfile::tempdir().unwrap();
    let (store, own, away) = stores(directory.path());
    image_in(&own);
    prepare(&store, &own, &away);
    refusal(&store);
    let target = away.find("a").unwrap();
    run(&away, target, |image| image.migrate(&mut quiet)).unwrap();
    refusal(&store);
    let migration = store.migration(&away, target).unwrap();
    store.remove_migrated(&migration, &mut quiet).unwrap();
    refusal(&store);
    run(&away, target, marcot::Image::end_migration).unwrap();
    store.pool_detach("away").unwrap();
    assert_sound(&store, &own);
}

#[test]
fn a_migration_within_a_pool_concerns_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _, away) = stores(directory.path());
    image_in(&away);
    prepare(&store, &away, &away);
    store.pool_detach("away").unwrap();
}

#[test]
fn an_abort_reads_what_has_changed_and_not_what_exists() {
    const BYTES: u64 = 24 * MIB;
    for (snapshot, executed) in [(false, false), (true, false), (true, true)] {
        let directory = tempfile::tempdir().unwrap();
        let (world, faults) = faulty_world();
        let store = Store::open_with(world, directory.path(), Limits::default()).unwrap();
        store.pool_create("tank", &PoolOptions::default()).unwrap();
        let (pool, dest) = (store.pool("rbd").unwrap(), store.pool("tank").unwrap());
        let id = pool.create("a", &CreateOptions::sized(BYTES)).unwrap();
        let mut wanted = pattern(1, BYTES as usize);
        changed(&pool, id, |image| {
            image.write_at(0, &wanted).unwrap();
            if snapshot {
                image.snapshot("s").unwrap();
            }
        });
        prepare(&store, &pool, &dest);
        let target = dest.find("a").unwrap();
        changed(&dest, target, |image| {
            image.write_at(5 * MIB, &pattern(2, 8192)).unwrap();
            image.discard(9 * MIB, MIB).unwrap();
        });
        wanted[5 * MIB as usize..][..8192].copy_from_slice(&pattern(2, 8192));
        wanted[9 * MIB as usize..][..MIB as usize].fill(0);
        if executed {
            run(&dest, target, |image| image.migrate(&mut quiet)).unwrap();
        }
        let migration = store.migration(&dest, target).unwrap();
        let before = faults.read_bytes.load(Ordering::Relaxed);
        store.abort_migration(&migration, &mut quiet).unwrap();
        let read = faults.read_bytes.load(Ordering::Relaxed) - before;
        assert!(read < 2 * MIB as i64, "{read} bytes were read");
        let mut bytes = vec![0; BYTES as usize];
        pool.open_read_only(id).unwrap().read_at(0, &mut bytes).unwrap();
        assert!(bytes == wanted);
        assert_sound(&store, &pool);
    }
}
