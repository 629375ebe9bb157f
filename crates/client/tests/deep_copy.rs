//! Deep copies: every state of the copy reads as that of the source, and the copy has the same parent.
#![allow(missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use marcot::{CreateOptions, ErrorKind};
use marcot_client::CloneOptions;
use marcot_client::deep_copy::DeepCopy;
use marcot_client::layering::Children;
use marcot_client::{Client, Image, ImageSpec, Interrupt, Options, Pool};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;
/// Changes of the source in a history.
const CHANGES: usize = 24;
/// Changes in all; `MARCOT_TEST_STEPS` makes it more.
const STEPS: usize = 3 * CHANGES;

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

struct World {
    client: Client,
    pool: Pool,
    tank: Pool,
    _directory: tempfile::TempDir,
}

fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let client = Client::open(directory.path(), Options::new()).unwrap();
    let tank = client.create_pool("tank", &marcot::PoolOptions::default()).unwrap();
    let pool = client.pool("rbd").unwrap();
    World { client, pool, tank, _directory: directory }
}

impl World {
    fn create(&self, name: &str) -> Image {
        let size_bytes = BLOCKS * BLOCK as u64;
        self.client
            .create(&ImageSpec::parse(name).unwrap(), &CreateOptions::sized(size_bytes))
            .unwrap()
    }

    /// A clone of a template that has data in every block.
    fn clone_of_template(&self) -> Image {
        let template = self.create("template");
        change(&template, |open| {
            for block in 0..BLOCKS {
                open.write_at(block * BLOCK as u64, &[200; BLOCK]).unwrap();
            }
            open.snapshot("s").unwrap();
            open.protect("s").unwrap();
        });
        template.snapshot("s").clone_into(&self.pool, "source", &CloneOptions::default()).unwrap()
    }
}

fn change(image: &Image, change: impl FnOnce(&mut marcot::Image)) {
    let mut open = image.open().unwrap();
    change(&mut open);
    open.close().unwrap();
}

/// The content of a state; `None`: that of now.
fn content(image: &Image, snapshot: Option<&str>) -> Vec<u8> {
    let mut content = match snapshot {
        Some(name) => image.snapshot(name).content().unwrap(),
        None => image.content().unwrap(),
    };
    let mut bytes = vec![0; content.size_bytes() as usize];
    content.read(0, &mut bytes).unwrap();
    content.close().unwrap();
    bytes
}

fn assert_same_states(source: &Image, copy: &Image, what: &str) {
    let (info, copied) = (source.info().unwrap(), copy.info().unwrap());
    let shown = |info: &marcot::ImageInfo| -> Vec<_> {
        info.snapshots.iter().map(|s| (s.name.clone(), s.size_bytes, s.protected)).collect()
    };
    assert_eq!(shown(&info), shown(&copied), "{what}");
    assert_eq!(info.metadata, copied.metadata, "{what}");
    let states = info.snapshots.iter().map(|snapshot| Some(snapshot.name.as_str())).chain([None]);
    for state in states {
        assert!(content(source, state) == content(copy, state), "{what}: {state:?}");
    }
}

fn quiet(_: u64, _: u64) {}

/// Changes an image in one of the ways in which its states come to differ.
fn change_somehow(
    open: &mut marcot::Image,
    snapshots: &mut Vec<String>,
    numbers: &mut Numbers,
    n: usize,
) {
    let blocks = open.size_bytes() / BLOCK as u64;
    let start = numbers.below(blocks);
    let length = (numbers.below(8) + 1).min(blocks - start) * BLOCK as u64;
    let start = start * BLOCK as u64;
    match numbers.below(10) {
        0..4 => open.write_at(start, &vec![n as u8 + 1; length as usize]).unwrap(),
        4 | 5 => open.discard(start, length).unwrap(),
        6 => open.resize((numbers.below(BLOCKS) + 1) * BLOCK as u64, true).unwrap(),
        7 | 8 => {
            let name = format!("s{n}");
            open.snapshot(&name).unwrap();
            snapshots.push(name.clone());
            if numbers.below(2) == 0 {
                open.protect(&name).unwrap();
            }
        }
        _ if snapshots.is_empty() => {}
        _ => {
            let which = numbers.below(snapshots.len() as u64) as usize;
            open.roll_back(&snapshots[which]).unwrap();
        }
    }
}

#[test]
fn every_state_of_a_copy_reads_as_that_of_the_source_whatever_its_history() {
    let steps = std::env::var("MARCOT_TEST_STEPS").ok().and_then(|text| text.parse().ok());
    for seed in 0..steps.unwrap_or(STEPS).div_ceil(CHANGES) as u64 {
        let world = world();
        let mut numbers = Numbers(seed);
        let cloned = seed % 2 == 0;
        let source = if cloned { world.clone_of_template() } else { world.create("source") };
        source.set_metadata("key", &seed.to_string()).unwrap();
        change(&source, |open| {
            let mut snapshots = Vec::new();
            (0..CHANGES).for_each(|n| change_somehow(open, &mut snapshots, &mut numbers, n));
        });
        for (name, flatten) in [("copy", false), ("flat", true)] {
            let what = DeepCopy { flatten, ..DeepCopy::default() };
            let copy = source.deep_copy_into(&world.tank, name, what, &mut quiet).unwrap();
            assert_same_states(&source, &copy, &format!("history {seed}, {name}"));
            let (of_source, of_copy) = (source.info().unwrap().parent, copy.info().unwrap().parent);
            let bytes =
                |parent: Option<marcot::ParentInfo>| parent.map(|parent| parent.overlap_bytes);
            match flatten {
                true => assert!(of_copy.is_none()),
                // It is never more, and less only where a snapshot was rolled back to.
                false => assert!(
                    bytes(of_copy.clone()) <= bytes(of_source) && of_copy.is_some() == cloned
                ),
            }
        }
    }
}

#[test]
fn a_copy_of_a_clone_stores_only_what_the_clone_has_written() {
    let world = world();
    let source = world.clone_of_template();
    change(&source, |open| {
        open.write_at(0, &[1; BLOCK]).unwrap();
        open.snapshot("one").unwrap();
        open.discard(8 * BLOCK as u64, 8 * BLOCK as u64).unwrap();
    });
    let copy = source.deep_copy_into(&world.pool, "copy", DeepCopy::default(), &mut quiet).unwrap();
    assert_same_states(&source, &copy, "a clone");
    let written =
        |image: &Image| image.usage().unwrap().iter().map(|row| row.used_bytes).sum::<u64>();
    assert_eq!(written(&copy), written(&source));
    let parent = copy.info().unwrap().parent.unwrap();
    assert_eq!((parent.image.as_str(), parent.snap.as_str()), ("template", "s"));
}

#[test]
fn a_copy_up_to_a_snapshot_ends_with_it() {
    let world = world();
    let source = world.create("source");
    for n in 1..4u8 {
        change(&source, |open| {
            open.write_at(0, &[n; BLOCK]).unwrap();
            open.snapshot(&format!("s{n}")).unwrap();
        });
    }
    let what = DeepCopy { up_to: Some("s2"), ..DeepCopy::default() };
    let copy = source.deep_copy_into(&world.pool, "copy", what.clone(), &mut quiet).unwrap();
    let names: Vec<String> = copy.info().unwrap().snapshots.into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["s1", "s2"]);
    assert!(content(&copy, None) == content(&source, Some("s2")));
    let taken = source.deep_copy_into(&world.pool, "copy", what, &mut quiet).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Exists);
    let what = DeepCopy { up_to: Some("nosuch"), ..DeepCopy::default() };
    let missing = source.deep_copy_into(&world.pool, "other", what, &mut quiet).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn a_copy_that_is_interrupted_leaves_nothing_and_its_parent_has_no_child_by_it() {
    let directory = tempfile::tempdir().unwrap();
    let came = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&came);
    let options = Options::new().interrupt(Interrupt::when(move || seen.load(Ordering::Relaxed)));
    let client = Client::open(directory.path(), options).unwrap();
    let pool = client.pool("rbd").unwrap();
    let tank = client.create_pool("tank", &marcot::PoolOptions::default()).unwrap();
    let world = World { client, pool, tank, _directory: directory };
    let source = world.clone_of_template();
    change(&source, |open| {
        open.snapshot("one").unwrap();
        open.protect("one").unwrap();
        open.write_at(0, &[1; BLOCK]).unwrap();
    });
    let interrupt = &mut |_, _| came.store(true, Ordering::Relaxed);
    let broken = source.deep_copy_into(&world.tank, "copy", DeepCopy::default(), interrupt);
    came.store(false, Ordering::Relaxed);
    let broken = broken.unwrap_err();
    assert_eq!(broken.kind(), ErrorKind::Interrupted);
    assert!(world.tank.engine().image_names(&marcot::Namespace::DEFAULT).unwrap().is_empty());
    let template = world.pool.image("template").unwrap();
    assert_eq!(template.children(Children::Direct, None).unwrap().len(), 1);
    source.deep_copy_into(&world.tank, "copy", DeepCopy::default(), &mut quiet).unwrap();
    assert_eq!(template.children(Children::Direct, None).unwrap().len(), 2);
}
