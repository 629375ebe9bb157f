use super::*;
use crate::args::{Args, CommandSpec, Positional};
use crate::failure::Outcome;
use crate::session::Session;

const INFO_OPTIONS: &[&[Opt]] = &[options::SNAP, options::FORMAT];
const CREATE_OPTIONS: &[&[Opt]] = &[options::IMAGE, options::SIZE, options::NO_PROGRESS];

const IMAGE_SPEC: &[Positional] = &[Positional::one("image-spec", "")];

fn nothing(_: &Session, _: &Args) -> Outcome {
    Ok(())
}

const fn command(
    words: &'static [&'static str],
    aliases: &'static [&'static [&'static str]],
    options: &'static [&'static [Opt]],
) -> CommandSpec {
    CommandSpec::new(words, "", nothing).aliases(aliases).positionals(IMAGE_SPEC).options(options)
}

static LIST: &[CommandSpec] = &[
    command(&["info"], &[], INFO_OPTIONS),
    command(&["create"], &[], CREATE_OPTIONS),
    command(&["snap", "list"], &[&["snap", "ls"]], INFO_OPTIONS),
];
static COMMANDS: &[&[CommandSpec]] = &[LIST];

fn request(line: &str) -> Request {
    let arguments: Vec<String> = line.split(' ').map(str::to_string).collect();
    parse(COMMANDS, &arguments)
}

fn run(line: &str) -> (&'static CommandSpec, Args) {
    match request(line) {
        Request::Run(spec, args) => (spec, args),
        Request::Bad(failure) => panic!("{line}: {failure:?}"),
        _ => panic!("{line}: not run"),
    }
}

fn refusal(line: &str) -> String {
    match request(line) {
        Request::Bad(failure) => {
            assert_eq!(failure.status, 1, "{line}");
            failure.render("rbd").trim_end().to_string()
        }
        _ => panic!("{line}: not refused"),
    }
}

#[test]
fn options_may_stand_before_the_command() {
    let (spec, args) = run("--pool rbd --image a info --format json");
    assert_eq!(spec.words, ["info"]);
    assert_eq!(args.text("pool"), Some("rbd"));
    assert_eq!(args.text("image"), Some("a"));
    assert!(args.positionals().is_empty());
}

#[test]
fn every_way_to_give_a_value_is_understood() {
    for line in ["create -s5G a", "create -s 5G a", "create --size=5G a", "-s5G create a"] {
        assert_eq!(run(line).1.bytes_of_mib("size"), Some(5 << 30), "{line}");
    }
}

#[test]
fn two_words_and_aliases_name_a_command() {
    assert_eq!(run("snap ls a").0.words, ["snap", "list"]);
    assert_eq!(run("snap ls a").1.positional(0), Some("a"));
}

#[test]
fn configuration_options_follow_any_command() {
    let (_, args) = run("--rbd-default-clone-format 2 info a --rbd_cache=false");
    assert_eq!(args.config("rbd_default_clone_format"), Some("2"));
    assert_eq!(args.config("rbd_cache"), Some("false"));
}

#[test]
fn mistakes_are_reported_in_rbds_words() {
    for (line, message) in [
        ("info a --bogus", "rbd: unrecognised option '--bogus'"),
        ("info a -x", "rbd: unrecognised option '-x'"),
        ("info a --no-progress", "rbd: unrecognised option '--no-progress'"),
        ("info a --form json", "rbd: unrecognised option '--form'"),
        ("info a --format", "rbd: the required argument for option '--format' is missing"),
        ("info a -p", "rbd: the required argument for option '--pool' is missing"),
        ("info a --format yaml", "rbd: the argument for option '--format' is invalid"),
        (
            "info a --size=",
            "rbd: the argument for option '--size' should follow immediately after the equal sign",
        ),
        ("info a --pretty-format=x", "rbd: option '--pretty-format' does not take any arguments"),
        ("create a --size -1", "rbd: the argument for option '--size' is invalid"),
        ("create a --size 1 --size 2", "rbd: option '--size' cannot be specified more than once"),
        ("info a b", "rbd: too many arguments"),
    ] {
        // Lines before and behind it help on. They have the form of a log line of the Ceph client.
        let refusal = refusal(line);
        let said: Vec<_> = refusal.lines().filter(|line| !line.contains(" -1 librbd: ")).collect();
        assert_eq!(said, [message], "{line}");
    }
}

#[test]
fn two_dashes_end_the_options() {
    assert_eq!(run("info -- -odd").1.positional(0), Some("-odd"));
}

#[test]
fn unknown_words_are_all_repeated() {
    match request("snap bogus -p rbd") {
        Request::Unknown(words) => assert_eq!(words, ["snap", "bogus"]),
        _ => panic!("not unknown"),
    }
}

#[test]
fn help_is_found_anywhere() {
    assert!(
        matches!(request("create --help"), Request::CommandHelp(spec, _) if spec.words == ["create"])
    );
    assert!(
        matches!(request("help snap ls"), Request::CommandHelp(_, words) if words == ["snap", "ls"])
    );
    assert!(matches!(request("--help"), Request::Help));
    assert!(matches!(request("-v"), Request::Version));
    assert!(matches!(request("help bogus"), Request::Unknown(_)));
}
