//! `copy`: a full, independent copy of an image or snapshot.

use marcot::CreateOptions;

use super::DEST_IMAGE_SPEC;
use super::import::GRAIN_BYTES;
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, Positional, options};
use crate::content::{self, Content};
use crate::failure::{EINVAL, Failure, Outcome};
use crate::incoming::Incoming;
use crate::layout;
use crate::progress::Progress;
use crate::session::Session;
use crate::signals;

const ERROR: &str = "copy failed";

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[CommandSpec {
    words: &["copy"],
    aliases: &[&["cp"]],
    about: "Copy src image to dest.",
    positionals: &[
        Positional::one(
            "source-image-or-snap-spec",
            "source image or snapshot specification \
             (example: [<pool-name>/[<namespace>/]]<image-name>[@<snap-name>])",
        ),
        DEST_IMAGE_SPEC,
    ],
    options: &[
        options::SNAP,
        options::DEST,
        options::CREATION,
        options::SPARSE_SIZE,
        options::NO_PROGRESS,
    ],
    examples: &[
        ("cp vm-1 vm-1-copy", "without snapshots and without parent"),
        ("cp vm-1@before-upgrade backup/vm-1", "of a snapshot, into another pool"),
    ],
    hidden: false,
    run: copy,
}];

fn copy(session: &Session, args: &Args) -> Outcome {
    let mut cursor = 0;
    let source = names::target(args, &mut cursor, Wanted::IMAGE_OR_SNAP)?;
    let dest = names::target(args, &mut cursor, Wanted::DEST)?;
    layout::refuse_what_would_lie(args)?;
    let order = layout::order(args, ERROR)?;
    let image = session.find(&source)?;
    let info = image.info()?;
    let snap = match source.snap.as_str() {
        "" => None,
        name => Some(image.snapshot(name)?),
    };
    let dest_pool = session.pool_of(&dest)?;
    let mut progress = session.bytes("Image copy");
    if order.is_some_and(|order| order < info.order) {
        progress.fail();
        let cause = "the object size must not be smaller than that of the source";
        return Err(Failure::errno(ERROR, EINVAL).because(cause));
    }
    let outcome = (|| {
        let options = CreateOptions {
            size_bytes: snap.as_ref().map_or(info.size_bytes, |s| s.size_bytes),
            order: order.unwrap_or(info.order),
            features: info.features.clone(),
        };
        let store = session.store()?;
        let incoming = Incoming::begin(store, &dest_pool, &dest.namespace, &dest.image, &options)
            .map_err(failed)?;
        let mut source = content::open(&image.pool, image.id, snap.as_ref()).map_err(failed)?;
        let piece_bytes = 1 << info.order;
        transfer(source.as_mut(), incoming, piece_bytes, &mut progress)?;
        source.close().map_err(failed)
    })();
    progress.end(outcome)
}

fn transfer(
    source: &mut dyn Content,
    mut incoming: Incoming<'_>,
    piece_bytes: u64,
    progress: &mut Progress,
) -> Outcome {
    let size_bytes = source.size_bytes();
    content::walk::<marcot::Error>(source, piece_bytes, |offset, length, data| {
        match data {
            Some(data) => incoming.write(offset, data, GRAIN_BYTES as usize)?,
            None => incoming.check_interrupted()?,
        }
        progress.pass(offset + length, piece_bytes, size_bytes);
        Ok(())
    })
    .map_err(failed)?;
    incoming.finish().map_err(failed)
}

fn failed(error: marcot::Error) -> Failure {
    if error.kind() == marcot::ErrorKind::Interrupted {
        return Failure::new(signals::status(), format!("{ERROR}: interrupted"));
    }
    Failure::engine(ERROR, &error)
}
