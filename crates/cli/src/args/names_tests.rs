use super::*;

fn args(values: &[(&'static str, &str)], positionals: &[&str]) -> Args {
    Args {
        values: values.iter().map(|(k, v)| (*k, (*v).to_string())).collect(),
        positionals: positionals.iter().map(|p| (*p).to_string()).collect(),
        config: Vec::new(),
    }
}

fn found(args: &Args, wanted: Wanted) -> Result<[String; 4], String> {
    target(args, &mut 0, wanted)
        .map(|t| [t.pool, t.namespace, t.image, t.snap])
        .map_err(|failure| failure.render("rbd").trim_end().to_string())
}

fn four(parts: [&str; 4]) -> Result<[String; 4], String> {
    Ok(parts.map(str::to_string))
}

#[test]
fn the_spec_wins_over_options() {
    let given = args(&[("pool", "nopool"), ("snap", "s8")], &["rbd/a@s9"]);
    assert_eq!(found(&given, Wanted::SNAP), four(["rbd", "", "a", "s9"]));
    let given = args(&[("namespace", "n")], &["a"]);
    assert_eq!(found(&given, Wanted::IMAGE), four(["", "n", "a", ""]));
}

#[test]
fn an_image_option_is_a_spec_and_leaves_the_argument_for_what_follows() {
    let given = args(&[("image", "rbd/q"), ("snap", "s")], &["d5"]);
    let mut cursor = 0;
    let source = target(&given, &mut cursor, Wanted::SNAP).unwrap();
    let dest = target(&given, &mut cursor, Wanted::DEST).unwrap();
    assert_eq!((source.image.as_str(), source.snap.as_str()), ("q", "s"));
    assert_eq!(dest.image, "d5");
}

#[test]
fn an_error_names_what_is_missing() {
    let none = args(&[], &[]);
    assert_eq!(found(&none, Wanted::IMAGE).unwrap_err(), "rbd: image name was not specified");
    assert_eq!(
        found(&none, Wanted::DEST).unwrap_err(),
        "rbd: destination image name was not specified"
    );
    assert_eq!(
        found(&args(&[], &["a"]), Wanted::SNAP).unwrap_err(),
        "rbd: snapshot name was not specified"
    );
    assert_eq!(
        found(&args(&[], &["a@s"]), Wanted::IMAGE).unwrap_err(),
        "rbd: snapshot name specified for a command that doesn't use it"
    );
    assert_eq!(
        found(&args(&[], &["rbd/"]), Wanted::NEW_IMAGE).unwrap_err(),
        "rbd: invalid spec 'rbd/'"
    );
}

#[test]
fn a_new_snapshot_has_no_slash_or_at() {
    let wanted = Wanted { pattern: Pattern::NewSnapshot, ..Wanted::SNAP };
    let given = args(&[("snap", "x@y")], &["i"]);
    assert_eq!(found(&given, wanted).unwrap_err(), "rbd: invalid snap name 'x@y'");
}

#[test]
fn pool_options_win_over_the_pool_argument() {
    let target = pool_target(&args(&[("pool", "p")], &["q/n"])).unwrap();
    assert_eq!((target.pool.as_str(), target.namespace.as_str()), ("p", ""));
    let target = pool_target(&args(&[], &["q/n"])).unwrap();
    assert_eq!((target.pool.as_str(), target.namespace.as_str()), ("q", "n"));
}
