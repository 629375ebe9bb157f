//! `copy`: a full, independent copy of an image or snapshot.

use super::DEST_IMAGE_SPEC;
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, Positional, options};
use crate::failure::{Failure, Outcome};
use crate::layout;
use crate::session::{self, Session};
use crate::signals;

const ERROR: &str = "copy failed";

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] =
    &[CommandSpec::new(&["copy"], "Copy src image to dest.", copy)
        .aliases(&[&["cp"]])
        .positionals(&[
            Positional::one(
                "source-image-or-snap-spec",
                "source image or snapshot specification \
             (example: [<pool-name>/[<namespace>/]]<image-name>[@<snap-name>])",
            ),
            DEST_IMAGE_SPEC,
        ])
        .options(&[
            options::SNAP,
            options::DEST,
            options::CREATION,
            options::SPARSE_SIZE,
            options::NO_PROGRESS,
        ])
        .examples(&[
            ("cp vm-1 vm-1-copy", "without snapshots and without parent"),
            ("cp vm-1@before-upgrade backup/vm-1", "of a snapshot, into another pool"),
        ])];

fn copy(session: &Session, args: &Args) -> Outcome {
    let mut cursor = 0;
    let source = names::target(args, &mut cursor, Wanted::IMAGE_OR_SNAP)?;
    let dest = names::target(args, &mut cursor, Wanted::DEST)?;
    layout::refuse_what_would_lie(args)?;
    let order = layout::order(args, ERROR)?;
    let image = session.find(&source)?;
    let info = session::info(&image)?;
    if !source.snap.is_empty() {
        session::snapshot(&image, &source.snap)?;
    }
    let pool = session.pool_of(&dest)?;
    let mut progress = session.bytes("Image copy");
    let object_bytes = 1 << info.order;
    let mut report = |done, total| progress.pass(done, object_bytes, total);
    signals::catch_and_watch();
    let copied = match source.snap.as_str() {
        "" => image.copy_into(&pool, dest.name(), order, &mut report),
        snap => image.snapshot(snap).copy_into(&pool, dest.name(), order, &mut report),
    };
    progress.end(copied.map(drop).map_err(failed))
}

fn failed(error: marcot::Error) -> Failure {
    if error.kind() == marcot::ErrorKind::Interrupted {
        return Failure::new(signals::status(), format!("{ERROR}: interrupted"));
    }
    Failure::engine(ERROR, &error)
}
