use std::os::unix::fs::symlink;

use super::*;

/// Names in a directory instead of `/dev`, with a link instead of a node, because making nodes needs root.
fn names(scratch: &Path, link: &[&str]) -> DeviceNames {
    let link: Vec<String> = link.iter().map(ToString::to_string).collect();
    symlink("/dev/loop77", scratch.join("rbd0")).unwrap();
    let mut names =
        DeviceNames { directory: scratch.to_owned(), node: Some("rbd0".into()), link: None };
    names.link(Path::new("/dev/loop77"), &link);
    names
}

#[test]
fn links_lead_to_the_node_and_go_with_it() {
    let scratch = tempfile::tempdir().unwrap();
    let names = names(scratch.path(), &["pool", "space", "image@snap"]);
    let link = scratch.path().join("rbd/pool/space/image@snap");
    assert_eq!(std::fs::read_link(&link).unwrap(), Path::new("../../../rbd0"));
    assert_eq!(names.node().unwrap(), scratch.path().join("rbd0"));
    names.remove(Path::new("/dev/loop77"));
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn a_link_follows_its_image() {
    let scratch = tempfile::tempdir().unwrap();
    let mut names = names(scratch.path(), &["pool", "old"]);
    names.link(Path::new("/dev/loop77"), &link_of("pool", "", "new", ""));
    assert!(std::fs::symlink_metadata(scratch.path().join("rbd/pool/old")).is_err());
    assert!(std::fs::symlink_metadata(scratch.path().join("rbd/pool/new")).is_ok());
}

#[test]
fn no_name_leads_out_of_the_directory() {
    for bad in [["..", "image"], ["pool", ".."], ["pool", "."], ["a/b", "image"], ["pool", ""]] {
        let outer = tempfile::tempdir().unwrap();
        let scratch = outer.path().join("dev");
        std::fs::create_dir(&scratch).unwrap();
        let names = names(&scratch, &bad);
        assert_eq!(names.link, None, "{bad:?}");
        assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1, "{bad:?}");
    }
}

#[test]
fn a_link_in_the_place_of_a_directory_is_not_followed() {
    let scratch = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), scratch.path().join("rbd")).unwrap();
    assert_eq!(names(scratch.path(), &["pool", "image"]).link, None);
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn what_is_not_ours_is_neither_replaced_nor_removed() {
    let scratch = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(scratch.path().join("rbd/pool")).unwrap();
    symlink("../../rbd9", scratch.path().join("rbd/pool/image")).unwrap();
    std::fs::write(scratch.path().join("rbd9"), "").unwrap();
    let names = names(scratch.path(), &["pool", "image"]);
    assert_eq!(names.link, None);
    names.remove(Path::new("/dev/loop78"));
    assert!(std::fs::symlink_metadata(scratch.path().join("rbd0")).is_ok());
    assert!(std::fs::symlink_metadata(scratch.path().join("rbd/pool/image")).is_ok());
}

#[test]
fn links_to_nodes_that_are_gone_are_swept() {
    let scratch = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(scratch.path().join("rbd/pool/space")).unwrap();
    symlink("../../rbd5", scratch.path().join("rbd/pool/gone")).unwrap();
    symlink("../../../rbd5p1", scratch.path().join("rbd/pool/space/gone-part1")).unwrap();
    symlink("/etc/none", scratch.path().join("rbd/pool/strange")).unwrap();
    Tree::open(scratch.path()).unwrap().sweep_links();
    let left = |path: &str| std::fs::symlink_metadata(scratch.path().join(path)).is_ok();
    assert!(!left("rbd/pool/gone") && !left("rbd/pool/space") && left("rbd/pool/strange"));
}
