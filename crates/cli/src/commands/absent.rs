//! Commands of `rbd` that are not offered. They say so, and what to use instead.

use super::IMAGE_SPEC;
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::errno::EOPNOTSUPP;
use crate::failure::{Failure, Outcome};
use crate::output::{line, out};
use crate::session::Session;

const NO_MIRROR: &str = "mirroring is not offered: copy changes to another machine with \
                         'export-diff' and 'import-diff'";
const NO_JOURNAL: &str = "image journals are not offered: every image is crash-consistent \
                          without one, and 'export-diff' gives the changes since a snapshot";
const NO_ENCRYPTION: &str =
    "encryption is not available yet: format the mapped device with cryptsetup instead";

fn mirror(_: &Session, _: &Args) -> Outcome {
    Err(Failure::new(EOPNOTSUPP, NO_MIRROR))
}

fn journal(_: &Session, _: &Args) -> Outcome {
    Err(Failure::new(EOPNOTSUPP, NO_JOURNAL))
}

/// There is no persistent cache, so it is always clean.
fn flush_cache(session: &Session, args: &Args) -> Outcome {
    find(session, args)?;
    out(&line(&format!("{}: persistent cache is clean or disabled", session.program)))
}

fn invalidate_cache(session: &Session, args: &Args) -> Outcome {
    find(session, args)
}

fn find(session: &Session, args: &Args) -> Outcome {
    let image_id = args.image_id();
    let wanted = if image_id.is_some() { Wanted::IMAGE.optional() } else { Wanted::IMAGE };
    let target = names::target(args, &mut 0, wanted)?;
    // As with `rbd`, the name counts where both are given.
    session.find_by(&target, image_id.filter(|_| target.image.is_empty())).map(drop)
}

const CIPHER: &[Opt] = &[Opt::new(
    "cipher-alg",
    Kind::Choice(&["aes-128", "aes-256"]),
    "encryption algorithm [possible values: aes-128, aes-256 (default)]",
)];
const ENCRYPTION_FORMAT: Positional =
    Positional::one("format", "encryption format [possible values: luks1, luks2]");
const PASSPHRASE_FILE: Positional = Positional::one(
    "passphrase-file",
    "path of file containing passphrase for unlocking the image",
);

fn encryption(session: &Session, args: &Args) -> Outcome {
    let mut cursor = 0;
    let target = names::target(args, &mut cursor, Wanted::IMAGE)?;
    let format = args.positional(cursor);
    let format = format.ok_or_else(|| Failure::invalid("must specify format."))?;
    if !["luks1", "luks2"].contains(&format) {
        return Err(Failure::new(EOPNOTSUPP, "unsupported encryption format"));
    }
    let file = args.positional(cursor + 1);
    let file = file.ok_or_else(|| Failure::invalid("must specify passphrase-file."))?;
    session.find(&target)?;
    std::fs::File::open(file)
        .map_err(|error| Failure::io(format!("unable to open passphrase file {file}"), &error))?;
    Err(Failure::new(EOPNOTSUPP, NO_ENCRYPTION))
}

/// A command that takes any arguments, and refuses them all.
const fn refused(
    words: &'static [&'static str],
    about: &'static str,
    run: fn(&Session, &Args) -> Outcome,
) -> CommandSpec {
    CommandSpec::new(words, about, run).absent()
}

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["encryption", "format"], "Format image to an encrypted format.", encryption)
        .positionals(&[IMAGE_SPEC, ENCRYPTION_FORMAT, PASSPHRASE_FILE])
        .options(&[options::IMAGE, CIPHER])
        .examples(&[("encryption format vm-1 luks2 passphrase", "not available yet")]),
    refused(
        &["journal", "client", "disconnect"],
        "Flag image journal client as disconnected.",
        journal,
    ),
    refused(&["journal", "export"], "Export image journal.", journal),
    refused(&["journal", "import"], "Import image journal.", journal),
    refused(&["journal", "info"], "Show information about image journal.", journal),
    refused(&["journal", "inspect"], "Inspect image journal for structural errors.", journal),
    refused(&["journal", "reset"], "Reset image journal.", journal),
    refused(&["journal", "status"], "Show status of image journal.", journal),
    refused(
        &["mirror", "image", "demote"],
        "Demote an image to non-primary for RBD mirroring.",
        mirror,
    ),
    refused(&["mirror", "image", "disable"], "Disable RBD mirroring for an image.", mirror),
    refused(&["mirror", "image", "enable"], "Enable RBD mirroring for an image.", mirror),
    refused(
        &["mirror", "image", "promote"],
        "Promote an image to primary for RBD mirroring.",
        mirror,
    ),
    refused(
        &["mirror", "image", "resync"],
        "Force resync to primary image for RBD mirroring.",
        mirror,
    ),
    refused(&["mirror", "image", "snapshot"], "Create RBD mirroring image snapshot.", mirror),
    refused(&["mirror", "image", "status"], "Show RBD mirroring status for an image.", mirror),
    refused(&["mirror", "pool", "demote"], "Demote all primary images in the pool.", mirror),
    refused(
        &["mirror", "pool", "disable"],
        "Disable RBD mirroring by default within a pool.",
        mirror,
    ),
    refused(
        &["mirror", "pool", "enable"],
        "Enable RBD mirroring by default within a pool.",
        mirror,
    ),
    refused(
        &["mirror", "pool", "info"],
        "Show information about the pool mirroring configuration.",
        mirror,
    ),
    refused(&["mirror", "pool", "peer", "add"], "Add a mirroring peer to a pool.", mirror),
    refused(
        &["mirror", "pool", "peer", "bootstrap", "create"],
        "Create a peer bootstrap token to import in a remote cluster",
        mirror,
    ),
    refused(
        &["mirror", "pool", "peer", "bootstrap", "import"],
        "Import a peer bootstrap token created from a remote cluster",
        mirror,
    ),
    refused(&["mirror", "pool", "peer", "remove"], "Remove a mirroring peer from a pool.", mirror),
    refused(&["mirror", "pool", "peer", "set"], "Update mirroring peer settings.", mirror),
    refused(&["mirror", "pool", "promote"], "Promote all non-primary images in the pool.", mirror),
    refused(
        &["mirror", "pool", "status"],
        "Show status for all mirrored images in the pool.",
        mirror,
    ),
    refused(&["mirror", "snapshot", "schedule", "add"], "Add mirror snapshot schedule.", mirror),
    refused(&["mirror", "snapshot", "schedule", "list"], "List mirror snapshot schedule.", mirror)
        .aliases(&[&["mirror", "snapshot", "schedule", "ls"]]),
    refused(
        &["mirror", "snapshot", "schedule", "remove"],
        "Remove mirror snapshot schedule.",
        mirror,
    )
    .aliases(&[&["mirror", "snapshot", "schedule", "rm"]]),
    refused(
        &["mirror", "snapshot", "schedule", "status"],
        "Show mirror snapshot schedule status.",
        mirror,
    ),
    CommandSpec::new(&["persistent-cache", "flush"], "Flush persistent cache.", flush_cache)
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE, &[options::IMAGE_ID]])
        .examples(&[("persistent-cache flush vm-1", "there is no such cache here")]),
    CommandSpec::new(
        &["persistent-cache", "invalidate"],
        "Invalidate (discard) existing / dirty persistent cache.",
        invalidate_cache,
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[options::IMAGE, &[options::IMAGE_ID]])
    .examples(&[("persistent-cache invalidate vm-1", "there is no such cache here")]),
];
