//! The layering session, command by command, in `rbd`'s own words.
#![allow(missing_docs)]

mod common;

use common::{World, noise, prints, says, without_log};

const MIB: usize = 1 << 20;

fn template(world: &World) {
    world.file("t.raw", &noise(8 * MIB));
    world.silently(&[
        "pool create kubernetes",
        "import --no-progress t.raw kubernetes/t",
        "snap create --no-progress kubernetes/t@temp",
    ]);
}

#[test]
fn a_protected_snapshot_is_not_removed() {
    let world = World::new();
    template(&world);
    world.silently(&["snap protect kubernetes/t@temp"]);
    assert_eq!(
        without_log(world.rbd("snap rm kubernetes/t@temp")),
        says(
            "\rRemoving snap: 0% complete...failed.\n\
             rbd: snapshot 'temp' is protected from removal.\n",
            16
        )
    );
    assert_eq!(
        world.rbd("snap protect kubernetes/t@temp"),
        says("rbd: snap is already protected\n", 16)
    );
}

#[test]
fn only_a_protected_snapshot_is_cloned() {
    let world = World::new();
    template(&world);
    let refused = world.rbd("clone kubernetes/t@temp kubernetes/c");
    assert!(refused.err.contains("parent snapshot must be protected"), "{}", refused.err);
    assert_eq!(without_log(refused), says("rbd: clone error: (22) Invalid argument\n", 22));
    world.silently(&[
        "snap protect kubernetes/t@temp",
        "clone kubernetes/t@temp kubernetes/c",
        "clone kubernetes/t@temp other",
    ]);
    assert_eq!(world.rbd("children kubernetes/t@temp"), prints("kubernetes/c\nrbd/other\n"));
    assert_eq!(world.rbd("export --no-progress other o.raw"), prints(""));
    assert!(std::fs::read(world.path("o.raw")).unwrap() == noise(8 * MIB));
}

#[test]
fn children_keep_a_snapshot_protected_and_are_named() {
    let world = World::new();
    template(&world);
    world.silently(&["snap protect kubernetes/t@temp", "clone kubernetes/t@temp kubernetes/c"]);
    assert_eq!(
        world.marcot("snap unprotect kubernetes/t@temp"),
        says(
            "marcot: snapshot 'temp' has children: kubernetes/c\n\
             marcot: unprotecting snap failed: (16) Device or resource busy\n\
             marcot: flatten them ('marcot flatten') or remove them ('marcot rm')\n",
            16
        )
    );
    let flattened = world.rbd("flatten kubernetes/c");
    assert_eq!(
        flattened.err,
        "\rImage flatten: 50% complete...\rImage flatten: 100% complete...done.\n"
    );
    world.silently(&["snap unprotect kubernetes/t@temp"]);
    assert_eq!(world.rbd("rm kubernetes/t").status, 39);
    world.silently(&["snap rm --no-progress kubernetes/t@temp", "rm --no-progress kubernetes/t"]);
    world.silently(&["export --no-progress kubernetes/c c.raw"]);
    assert!(std::fs::read(world.path("c.raw")).unwrap() == noise(8 * MIB));
}

#[test]
fn rollback_brings_content_and_size_back() {
    let world = World::new();
    template(&world);
    world.silently(&[
        "resize --no-progress --allow-shrink -s 2 kubernetes/t",
        "snap rollback --no-progress kubernetes/t@temp",
        "export --no-progress kubernetes/t back.raw",
    ]);
    assert!(std::fs::read(world.path("back.raw")).unwrap() == noise(8 * MIB));
}

#[test]
fn tables_have_rbds_columns() {
    let world = World::new();
    template(&world);
    world.silently(&["snap protect kubernetes/t@temp", "clone kubernetes/t@temp kubernetes/c"]);
    assert_eq!(
        world.rbd("ls -l kubernetes"),
        prints(
            "NAME    SIZE   PARENT             FMT  PROT  LOCK\n\
             c       8 MiB  kubernetes/t@temp    2            \n\
             t       8 MiB                       2            \n\
             t@temp  8 MiB                       2  yes       \n"
        )
    );
    let listed = world.rbd("snap ls kubernetes/t").out;
    let header = "SNAPID  NAME  SIZE   PROTECTED  TIMESTAMP               \n";
    assert!(listed.starts_with(header), "{listed}");
    assert!(listed.contains("     1  temp  8 MiB  yes        "), "{listed}");
    let info = world.rbd("info kubernetes/c").out;
    assert!(info.ends_with("\tparent: kubernetes/t@temp\n\toverlap: 8 MiB\n"), "{info}");
}

#[test]
fn a_format_2_clone_needs_no_protection() {
    let world = World::new();
    template(&world);
    world.silently(&[
        "--rbd-default-clone-format 2 clone kubernetes/t@temp kubernetes/c",
        "snap rm --no-progress kubernetes/t@temp",
    ]);
    assert_eq!(world.rbd("snap ls kubernetes/t"), prints(""));
    assert!(world.rbd("rm kubernetes/t").err.contains("snapshots with linked clones"));
    world.silently(&["rm --no-progress kubernetes/c", "rm --no-progress kubernetes/t"]);
}

#[test]
fn check_finds_nothing_after_a_session() {
    let world = World::new();
    template(&world);
    world.silently(&["snap protect kubernetes/t@temp", "clone kubernetes/t@temp c"]);
    let checked = world.rbd("check --all --no-progress");
    assert_eq!(checked.status, 0, "{checked:?}");
    assert_eq!(checked.out.matches("all is well").count(), 2, "{checked:?}");
}

#[test]
fn children_in_another_store_are_told_by_their_names_now() {
    let world = World::new();
    template(&world);
    world.silently(&[
        "snap protect kubernetes/t@temp",
        "--store other pool attach k --backend store/pools/kubernetes",
        "--store other namespace create rbd/n",
        "--store other create rbd/n/unrelated --size 1M",
        "--store other clone --rbd-default-clone-format 2 k/t@temp rbd/n/inside",
        "--store other clone k/t@temp rbd/first",
        "--store other rename rbd/first rbd/second",
    ]);
    assert_eq!(world.rbd("children kubernetes/t@temp"), prints("rbd/second\nrbd/n/inside\n"));
    // Only the child's own store can flatten it.
    let refused = world.rbd("snap rm --no-progress --force kubernetes/t@temp");
    assert!(
        refused.err.contains("a child in another store") && refused.status == 16,
        "{refused:?}"
    );
    // The child's pool cannot be reached, so the names in the marker are shown.
    std::fs::rename(world.path("other"), world.path("away")).unwrap();
    let children = world.rbd("children kubernetes/t@temp");
    assert_eq!((children.out.lines().count(), children.status), (2, 0), "{children:?}");
    std::fs::rename(world.path("away"), world.path("other")).unwrap();
    world.silently(&[
        "--store other flatten --no-progress rbd/n/inside",
        "--store other rm --no-progress rbd/second",
        "snap rm --no-progress --force kubernetes/t@temp",
    ]);
}

#[test]
fn an_image_is_found_by_its_number() {
    let world = World::new();
    world.silently(&["create a --size 16M", "rename a b", "namespace create rbd/n"]);
    let info = world.rbd("info b").out;
    let id = info.lines().find_map(|line| line.trim().strip_prefix("id: ")).unwrap();
    assert_eq!(world.rbd(&format!("info --image-id {id}")), prints(&info));
    for missing in [
        format!("--image-id 0{id}"),
        "--image-id b".into(),
        format!("-p rbd --namespace n --image-id {id}"),
    ] {
        assert_eq!(world.rbd(&format!("info {missing}")).status, 2, "{missing}");
    }
}
