//! Every mistake gets `rbd`'s sentence and status, and changes nothing.
#![allow(missing_docs)]

mod common;

use common::{World, prints, says, without_log};

#[test]
fn mistakes_have_rbds_words_and_status() {
    let world = World::new();
    world.silently(&["create a --size 16M", "snap create --no-progress a@s"]);
    world.silently(&["create empty --size 0", "snap create --no-progress empty@s"]);
    world.silently(&["snap protect empty@s"]);
    for (line, err, status) in [
        ("create a --size 1G", "rbd: create error: (17) File exists\n", 17),
        ("create b", "rbd: must specify --size <M/G/T>\n", 22),
        ("create b --size -1", "rbd: the argument for option '--size' is invalid\n", 1),
        ("create b --size 1.5G", "rbd: the argument for option '--size' is invalid\n", 1),
        ("create b --size 16E", "rbd: the argument for option '--size' is invalid\n", 1),
        (
            "create b@x --size 1",
            "rbd: snapshot name specified for a command that doesn't use it\n",
            22,
        ),
        ("create rbd/ --size 1", "rbd: invalid spec 'rbd/'\n", 22),
        ("create b --size 1 --order 11", "rbd: the argument for option '--order' is invalid\n", 1),
        (
            "create b --size 1 --object-size 1K",
            "rbd: create error: (33) Numerical argument out of domain\n",
            33,
        ),
        ("info nosuch", "rbd: error opening image nosuch: (2) No such file or directory\n", 2),
        ("info nopool/a", "rbd: error opening pool 'nopool': (2) No such file or directory\n", 2),
        ("info rbd/nons/a", "rbd: namespace 'nons' does not exist.\n", 2),
        ("info a@nosuch", "error setting snapshot context: (2) No such file or directory\n", 2),
        (
            "info a --pretty-format",
            "rbd: --pretty-format only works when --format is json or xml\n",
            22,
        ),
        ("info a --bogus", "rbd: unrecognised option '--bogus'\n", 1),
        ("info", "rbd: image name was not specified\n", 22),
        ("info a b", "rbd: too many arguments\n", 1),
        (
            "ls nopool",
            "rbd: error opening pool 'nopool': (2) No such file or directory\nrbd: listing images failed: (2) No such file or directory\n",
            2,
        ),
        ("resize a --size 16M", "rbd: new size is equal to original size \n", 22),
        (
            "resize a --size 8M",
            "rbd: shrinking an image is only allowed with the --allow-shrink flag\n",
            22,
        ),
        ("rename a a", "rbd: rename error: (17) File exists\n", 17),
        ("rename nosuch b", "rbd: rename error: (2) No such file or directory\n", 2),
        ("rm nosuch --no-progress", "rbd: delete error: (2) No such file or directory\n", 2),
        (
            "snap create a@s",
            "\rCreating snap: 0% complete...failed.\nrbd: failed to create snapshot: (17) File exists\n",
            17,
        ),
        ("snap rm a", "rbd: snapshot name was not specified\n", 22),
        ("snap unprotect a@s", "rbd: snap is already unprotected\n", 22),
        (
            "snap unprotect a@nosuch",
            "rbd: unprotecting snap failed: (2) No such file or directory\n",
            2,
        ),
        ("clone a@s", "rbd: destination image name was not specified\n", 22),
        ("clone empty@s b", "rbd: clone error: (22) Invalid argument\n", 22),
        (
            "flatten a",
            "\rImage flatten: 0% complete...failed.\nrbd: flatten error: (22) Invalid argument\n",
            22,
        ),
        ("children a@nosuch", "rbd: snapshot does not exist.\n", 2),
        (
            "du nosuch",
            "specified image nosuch is not found.\nrbd: du failed: (2) No such file or directory\n",
            2,
        ),
        ("diff a --from-snap nosuch", "rbd: diff error: (2) No such file or directory\n", 2),
        ("namespace create ns", "rbd: namespace name was not specified\n", 22),
        ("bench a", "rbd: --io-type must be specified.\n", 22),
        ("bench a --io-type read --io-size 0", "rbd: --io-size should be greater than zero.\n", 22),
    ] {
        assert_eq!(without_log(world.rbd(line)), says(err, status), "{line}");
    }
    let refused = world.marcot("clone empty@s b");
    assert!(refused.err.contains("rbd/empty@s is empty (0 bytes)"), "{refused:?}");
    assert_eq!(world.rbd("ls"), prints("a\nempty\n"));
    assert_eq!(world.rbd("status a"), prints("Watchers: none\n"));
}

#[test]
fn an_unknown_command_shows_the_list() {
    let world = World::new();
    let ran = without_log(world.rbd("snap bogus"));
    assert_eq!((ran.status, ran.err.as_str()), (1, "error: unknown option 'snap bogus'\n\n"));
    assert_eq!(ran.out, world.rbd("help").out);
    for (line, hint) in
        [("snap creat img@s", "marcot: did you mean 'marcot snap create'?\n"), ("bogus", "")]
    {
        let ran = world.marcot(line);
        let said = format!("{hint}error: unknown option '{line}'\n\n");
        assert_eq!((ran.status, ran.err), (1, said));
    }
    let ran = world.rbd("mirror pool info");
    assert!(ran.status == 95 && ran.err.starts_with("rbd: mirroring is not offered: "), "{ran:?}");
}

#[test]
fn what_would_lie_is_refused() {
    let world = World::new();
    for option in ["--mirror-image-mode journal", "--image-feature exclusive-lock,journaling"] {
        let ran = world.marcot(&format!("create a --size 1 {option}"));
        assert_eq!(ran.status, 95, "{ran:?}");
        assert_eq!(ran.err.lines().count(), 1, "{ran:?}");
    }
    assert_eq!(world.rbd("ls"), prints(""));
}

#[test]
fn a_store_that_cannot_be_made_is_told_once() {
    let world = World::new();
    let file = world.file("file", b"");
    let ran = world.marcot(&format!("--store {file}/store ls"));
    assert_ne!(ran.status, 0);
    assert!(!ran.err.contains("panicked") && ran.err.starts_with("marcot: "), "{}", ran.err);
}

#[test]
fn an_address_that_cannot_be_listened_on_is_named_with_its_errno_and_the_remedy() {
    let world = World::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let in_use = format!("--tcp {}", taken.local_addr().unwrap());
    let socket = world.path("taken.sock");
    let _server = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let long = format!("--socket {}", "x".repeat(120));
    for (options, status, words) in [
        (in_use.as_str(), 98, "give another port"),
        ("--tcp 192.0.2.1:10809", 99, "not an address of this machine"),
        ("--tcp 127.0.0.1", 22, "cannot listen on '127.0.0.1'"),
        ("--tcp 127.0.0.1:http", 22, "cannot listen on '127.0.0.1:http'"),
        ("--tcp 127.0.0.1:99999", 22, "cannot listen on '127.0.0.1:99999'"),
        ("--tcp :", 22, "cannot listen on ':'"),
        ("--socket taken.sock", 98, "another server answers"),
        ("--socket nowhere/sock", 2, "its directory must exist"),
        ("--socket rbd", 17, "not a socket"),
        (long.as_str(), 22, "is 120 bytes long; Linux allows 107"),
    ] {
        let ran = world.marcot(&format!("serve {options}"));
        assert_eq!(ran.status, status, "{options}: {ran:?}");
        assert!(ran.err.contains(words), "{options}: {ran:?}");
        assert_eq!(ran.err.lines().count(), 1, "{options}: {ran:?}");
    }
}

#[test]
fn a_damaged_head_costs_one_row_and_rm_force_ends_it() {
    let world = World::new();
    world.silently(&["create a --size 16M", "snap create --no-progress a@s", "snap protect a@s"]);
    world.silently(&["clone a@s b", "create c --size 16M"]);
    let images = std::fs::read_dir(world.path("store/pools/rbd/images")).unwrap();
    let number = world.rbd("info b --format json").out;
    let number = number.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap().to_string();
    let image = images.map(|i| i.unwrap().path()).find(|p| p.ends_with(&number)).unwrap();
    std::fs::write(image.join("head"), "rot").unwrap();
    for command in ["ls -l", "du"] {
        let ran = world.marcot(command);
        assert_eq!(ran.status, 5, "{ran:?}");
        assert!(ran.out.contains("\na ") && ran.out.contains("\nc "), "{ran:?}");
        let named = ran.err.lines().filter(|line| line.contains("image 'b' is left out: "));
        assert_eq!(named.count(), 1, "{ran:?}");
    }
    let refused = world.marcot("rm --no-progress b");
    assert_eq!(refused.status, 5, "{refused:?}");
    assert!(refused.err.contains("'rm --force'"), "{refused:?}");
    assert_eq!(world.marcot("gc --no-progress rbd").status, 5);
    assert_eq!(world.marcot("snap unprotect a@s").status, 5);
    assert_eq!(world.marcot("rm --no-progress --force b"), prints(""));
    assert_eq!(world.marcot("gc --no-progress rbd").status, 0);
    assert_eq!(world.marcot("snap unprotect a@s"), prints(""));
    assert_eq!(world.marcot("ls"), prints("a\nc\n"));
    assert_eq!(world.marcot("ls -l").status, 0);
    assert_eq!(world.marcot("check --no-progress rbd").status, 0);
}

#[test]
fn help_has_examples_and_completions_are_made() {
    let world = World::new();
    for command in ["create", "snap create", "clone", "import", "serve", "check"] {
        let help = world.marcot(&format!("{command} --help"));
        assert_eq!(help.status, 0);
        assert!(help.out.contains("Examples:\n  marcot "), "{command}: {}", help.out);
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(world.marcot(&format!("completion {shell}")).out.len() > 300, "{shell}");
    }
    assert_eq!(world.marcot("man pages"), prints(""));
    assert!(world.path("pages/marcot.1").exists());
    assert!(world.path("pages/marcot-snap-create.1").exists());
}

#[test]
fn a_message_names_the_thing_and_the_remedy() {
    let world = World::new();
    world.silently(&["create a --size 16M", "snap create --no-progress a@s"]);
    world.silently(&["snap create --no-progress a@p", "snap protect a@p", "clone a@p kid"]);
    let there = world.file("there", b"x");
    let file = world.file("file", b"");
    let export = format!("export a {there}");
    let store = format!("--store {file} ls");
    for (line, status, words) in [
        ("info nosuch", 2, "image 'nosuch' does not exist in pool 'rbd'"),
        ("create a --size 1G", 17, "image 'a' already exists in pool 'rbd'"),
        ("snap create a@s", 17, "rbd/a already has a snapshot 's'"),
        ("info a@nosuch", 2, "image 'a' has no snapshot 'nosuch'"),
        ("export a@nosuch x", 2, "image rbd/a has no snapshot 'nosuch'"),
        ("snap rollback a@nosuch", 2, "'nosuch'"),
        ("diff a --from-snap nosuch", 2, "there is no snapshot 'nosuch'"),
        ("clone a@s b", 22, "protect it with 'snap protect rbd/a@s'"),
        ("snap unprotect a@p", 16, "has children: rbd/"),
        ("snap rm a@p", 16, "snapshot 'p' is protected from removal"),
        (export.as_str(), 17, "there' exists already; nothing is overwritten"),
        (store.as_str(), 20, "choose a store with --store or MARCOT_STORE"),
        ("create b --size 1.5G", 1, "'1.5G' is not a size"),
        ("create b --size 1 --order 11", 1, "'11' is not a number from 12 to 25"),
        ("ls --format yaml", 1, "'yaml' is not one of plain, json, xml"),
        ("create b --size 1 --image-feature x", 1, "'x' is none of the features layering, "),
    ] {
        let ran = world.marcot(line);
        assert_eq!(ran.status, status, "{line}: {ran:?}");
        assert!(ran.err.contains(words), "{line}: {ran:?}");
        let mut lines: Vec<&str> = ran.err.lines().collect();
        lines.dedup();
        assert_eq!(lines.len(), ran.err.lines().count(), "said twice: {ran:?}");
        assert!(!ran.err.contains("os error") && !ran.err.contains("Error {"), "{ran:?}");
    }
}
