//! `image-meta get`, `list`, `remove`, `set`.

use super::IMAGE_SPEC;
use crate::args::names::{self, Target, Wanted};
use crate::args::{Args, CommandSpec, Positional, options};
use crate::errno::{self, ENOENT};
use crate::failure::{Failure, Outcome, strerror};
use crate::output::{Align, Node, Table};
use crate::session::{self, Session};

const KEY: Positional = Positional::one("key", "image meta key");
const VALUE: Positional = Positional::one("value", "image meta value");

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(
        &["image-meta", "get"],
        "Image metadata get the value associated with the key.",
        get,
    )
    .positionals(&[IMAGE_SPEC, KEY])
    .options(&[options::IMAGE])
    .examples(&[("image-meta get vm-1 owner", "")]),
    CommandSpec::new(&["image-meta", "list"], "Image metadata list keys with values.", list)
        .aliases(&[&["image-meta", "ls"]])
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE, options::FORMAT])
        .examples(&[("image-meta ls vm-1", "the image's notes and its configuration")]),
    CommandSpec::new(
        &["image-meta", "remove"],
        "Image metadata remove the key and value associated.",
        remove,
    )
    .aliases(&[&["image-meta", "rm"]])
    .positionals(&[IMAGE_SPEC, KEY])
    .options(&[options::IMAGE])
    .examples(&[("image-meta rm vm-1 owner", "")]),
    CommandSpec::new(&["image-meta", "set"], "Image metadata set key with value.", set)
        .positionals(&[IMAGE_SPEC, KEY, VALUE])
        .options(&[options::IMAGE])
        .examples(&[("image-meta set vm-1 owner alice", "works while the image is in use")]),
];

/// The image and the next `count` arguments, which are `what`.
pub fn image_and<'a, const N: usize>(
    args: &'a Args,
    what: [&str; N],
) -> Outcome<(Target, [&'a str; N])> {
    let mut cursor = 0;
    let target = names::target(args, &mut cursor, Wanted::IMAGE)?;
    let mut words = [""; N];
    for (word, what) in words.iter_mut().zip(what) {
        let missing = || Failure::invalid(format!("{what} was not specified"));
        *word = args.positional(cursor).ok_or_else(missing)?;
        cursor += 1;
    }
    Ok((target, words))
}

/// `WHAT of image : (2) No such file or directory`: RBD leaves the image's name out.
fn of_image(what: &str, status: i32) -> String {
    format!("{what} of image : ({status}) {}", strerror(status))
}

fn get(session: &Session, args: &Args) -> Outcome {
    let (target, [key]) = image_and(args, ["metadata key"])?;
    let image = session.find(&target)?;
    let metadata = session::info(&image)?.metadata;
    match metadata.iter().find(|(there, _)| there == key) {
        Some((_, value)) => crate::output::out(&crate::output::line(value)),
        None => {
            let first = of_image(&format!("failed to get metadata {key}"), ENOENT);
            let second = format!("getting metadata failed: ({ENOENT}) {}", strerror(ENOENT));
            Err(Failure::bare(ENOENT, first).then(second))
        }
    }
}

fn list(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, Wanted::IMAGE)?;
    let format = args.format()?;
    let image = session.find(&target)?;
    let mut metadata = session::info(&image)?.metadata;
    metadata.sort_unstable();
    if metadata.is_empty() {
        // RBD has no empty list in JSON and XML here: it prints nothing.
        let plain = format == crate::output::Format::Plain;
        let none = "There are 0 metadata on this image.\n";
        return if plain { crate::output::out(none) } else { Ok(()) };
    }
    let document = || {
        let members = metadata.iter().map(|(key, value)| (key.clone(), value.as_str().into()));
        ("metadatas", Node::Map(members.collect()))
    };
    format.print(|| plain(&metadata), document)
}

fn plain(metadata: &[(String, String)]) -> String {
    let head = match metadata.len() {
        1 => "There is 1 metadatum on this image:\n\n".to_string(),
        count => format!("There are {count} metadata on this image:\n\n"),
    };
    let mut table = Table::new().column("Key", Align::Left).column("Value", Align::Left);
    for (key, value) in metadata {
        table.row(vec![key.clone(), value.clone()]);
    }
    head + &table.render()
}

fn remove(session: &Session, args: &Args) -> Outcome {
    let (target, [key]) = image_and(args, ["metadata key"])?;
    let image = session.find(&target)?;
    image.remove_metadata(key).map_err(|error| {
        let status = errno::of(&error);
        let second = format!("removing metadata failed: ({status}) {}", strerror(status));
        if error.kind() != marcot::ErrorKind::NotFound {
            return Failure::engine("removing metadata failed", &error);
        }
        Failure::new(status, of_image(&format!("no existing metadata key {key}"), status))
            .then(second)
    })
}

fn set(session: &Session, args: &Args) -> Outcome {
    let (target, [key, value]) = image_and(args, ["metadata key", "metadata value"])?;
    let image = session.find(&target)?;
    image.set_metadata(key, value).map_err(|error| {
        let status = errno::of(&error);
        let first = of_image(&format!("failed to set metadata {key}"), status);
        let second = format!("setting metadata failed: ({status}) {}", strerror(status));
        Failure::bare(status, first).then(second).because(error.sentence())
    })
}
