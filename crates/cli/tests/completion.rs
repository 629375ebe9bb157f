//! What shells offer behind the cursor: the candidates themselves, and with real shells.
#![allow(missing_docs)]

mod common;

use std::process::{Command, Stdio};

use common::{Ran, World, prints, ran};

fn world() -> World {
    let world = World::new();
    world.silently(&[
        "namespace create rbd/staging",
        "create vm-1 --size 4M",
        "create vm-2 --size 4M",
    ]);
    world.silently(&["create template --size 4M", "snap create template@golden --no-progress"]);
    world
        .silently(&["snap create template@good --no-progress", "create rbd/staging/web --size 4M"]);
    world.silently(&["group create databases", "create gone --size 4M", "trash mv gone"]);
    assert_eq!(world.marcot("pool create tank").status, 0);
    world
}

/// The candidates for a line; a blank at its end begins a new word.
fn offered(world: &World, line: &str) -> Vec<String> {
    let mut command = world.marcot_command("complete --");
    let done = ran(command.args(line.split(' ')).stdin(Stdio::null()));
    assert_eq!((done.status, done.err.as_str()), (0, ""), "{line}");
    done.out.lines().map(str::to_owned).collect()
}

#[test]
fn names_are_those_of_the_store() {
    let world = world();
    for (line, expected) in [
        ("info vm", vec!["vm-1", "vm-2"]),
        ("info t", vec!["tank/", "template"]),
        ("info template@", vec!["template@golden", "template@good"]),
        ("info rbd/template@gol", vec!["rbd/template@golden"]),
        ("info rbd/s", vec!["rbd/staging/"]),
        ("info rbd/staging/", vec!["rbd/staging/web"]),
        ("info tank/", vec![]),
        ("clone templ", vec!["template@"]),
        ("clone template@golden vm", vec!["vm-1", "vm-2"]),
        ("rm template@", vec![]),
        ("ls ", vec!["rbd", "tank"]),
        ("ls rbd/", vec!["rbd/staging"]),
        ("info --pool ", vec!["rbd", "tank"]),
        ("info -p t", vec!["tank"]),
        ("info --pool=t", vec!["--pool=tank"]),
        ("-p rbd --namespace staging info ", vec!["web"]),
        ("info --image template --snap go", vec!["golden", "good"]),
        ("group info d", vec![]),
        ("group image ls ", vec!["databases", "rbd/", "tank/"]),
        ("snap cre", vec!["create"]),
        ("trash purge sch", vec!["schedule"]),
        ("snap ls --form", vec!["--format"]),
        ("snap ls --format ", vec!["json", "plain", "xml"]),
        ("bogus ", vec![]),
    ] {
        assert_eq!(offered(&world, line), expected, "{line}");
    }
    let [id] = &offered(&world, "trash restore ")[..] else { panic!("one image in the trash") };
    assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
}

#[test]
fn where_nothing_can_be_read_nothing_is_offered_or_made() {
    let world = World::new();
    assert!(offered(&world, "info x").is_empty());
    assert!(!world.path("store").exists(), "completion has made a store");
    world.silently(&["create vm --size 4M"]);
    std::fs::write(world.path("store/store"), b"nonsense").ok();
    for line in ["info v", "--store /nowhere info v", "--store", "--", "info --pool"] {
        offered(&world, line);
    }
    assert_eq!(world.marcot("complete"), prints(""));
}

/// Runs a script with a shell, which `scripts/test` has installed, the store and the link `rbd` on its path.
fn with_shell(world: &World, shell: &str, script: &str) -> Ran {
    let path = format!("{}:{}", world.path("").display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(shell);
    command.args(["-c", script]).env("PATH", path).env("MARCOT_STORE", world.path("store"));
    ran(command.current_dir(world.path("")).env("HOME", world.path("")).stdin(Stdio::null()))
}

#[test]
fn bash_completes_what_is_behind_its_word_breaks() {
    let world = world();
    // What readline sets before it calls the function. It divides words at '@' and '='.
    let script = r#"
        source <(rbd completion bash) || exit 1
        complete -p rbd >/dev/null || exit 2
        offer() {
            COMP_LINE="rbd $1" COMP_POINT=$((${#1} + 4)) COMPREPLY=()
            _rbd_complete
            echo "$1: ${COMPREPLY[*]}"
        }
        offer 'info vm'
        offer 'info template@go'
        offer 'info --format=j'
        offer 'info rbd/stag'
        offer 'snap ls '
        offer 'bogus '
    "#;
    let shown = with_shell(&world, "bash", script);
    let expected = "info vm: vm-1 vm-2\n\
                    info template@go: @golden @good\n\
                    info --format=j: json\n\
                    info rbd/stag: rbd/staging/\n\
                    snap ls : rbd/ tank/ template vm-1 vm-2\n\
                    bogus : \n";
    assert_eq!(shown, prints(expected));
}

/// A person at a prompt: types into a shell in a terminal of `script`, once the shell is ready, and waits until the
/// command has run. The key tab completes the image, and then the snapshot.
fn typed_into(world: &World, shell: &str, begin: &str) {
    let script = format!(
        r#"there() {{ until [ -e "$1" ]; do sleep 0.05; done; }}
        (printf '{begin}; touch ready\n'; there ready
         printf 'rbd snap protect templ\tgold\t; touch over\n'; there over; printf 'exit\n') |
            timeout 120 script -qefc '{shell}' terminal >/dev/null || cat terminal"#
    );
    let shown = with_shell(world, "bash", &script);
    let listed = world.rbd("snap ls template --format json").out;
    let golden = listed.split("\"golden\"").nth(1).unwrap_or_default();
    assert!(golden.split('}').next().unwrap().contains("\"protected\":\"true\""), "{shown:?}");
}

#[test]
fn the_key_tab_completes_names_in_bash() {
    let world = world();
    typed_into(&world, "bash --norc --noprofile -i", "source <(rbd completion bash)");
}

#[test]
fn the_key_tab_completes_names_in_zsh() {
    let world = world();
    let begin =
        "rbd completion zsh > _rbd; fpath=($PWD $fpath); autoload -Uz compinit; compinit -u";
    typed_into(&world, "zsh -f -i", begin);
}

#[test]
fn fish_asks_for_names() {
    let world = world();
    let script = "rbd completion fish | source; complete -C 'rbd info vm'; complete -C 'rbd info template@gol'";
    let shown = with_shell(&world, "fish", script);
    assert_eq!(shown, prints("vm-1\nvm-2\ntemplate@golden\n"));
}
