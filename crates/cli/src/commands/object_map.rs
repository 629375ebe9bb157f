//! `object-map check`, `object-map rebuild`.
//!
//! The block map of an image is part of its data and is always exact, so there is nothing to rebuild. Both
//! commands read all of it and verify its checksums.

use marcot_client::inspect::Diff;

use super::IMAGE_OR_SNAP_SPEC;
use super::image::objects;
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, options};
use crate::errno::{EINVAL, EROFS};
use crate::failure::{Failure, Outcome};
use crate::layout::has_feature;
use crate::session::{self, Session};

const EXAMPLE: &str = "reads the block map, which is always exact";

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["object-map", "check"], "Verify the object map is correct.", check)
        .positionals(&[IMAGE_OR_SNAP_SPEC])
        .options(&[options::SNAP, options::NO_PROGRESS])
        .examples(&[("object-map check vm-1", EXAMPLE)]),
    CommandSpec::new(&["object-map", "rebuild"], "Rebuild an invalid object map.", rebuild)
        .positionals(&[IMAGE_OR_SNAP_SPEC])
        .options(&[options::SNAP, options::NO_PROGRESS])
        .examples(&[("object-map rebuild vm-1@v1", EXAMPLE)]),
];

fn check(session: &Session, args: &Args) -> Outcome {
    verify(session, args, "Object Map Check", "checking object map failed")
}

fn rebuild(session: &Session, args: &Args) -> Outcome {
    verify(session, args, "Object Map Rebuild", "rebuilding object map failed")
}

fn verify(session: &Session, args: &Args, label: &'static str, failed: &'static str) -> Outcome {
    let target = names::target(args, &mut 0, Wanted::IMAGE_OR_SNAP)?;
    let image = session.find(&target)?;
    let info = session::info(&image)?;
    let snap = Some(target.snap.as_str()).filter(|name| !name.is_empty());
    let size_bytes = match snap {
        Some(name) => session::snapshot(&image, name)?.size_bytes,
        None => info.size_bytes,
    };
    let mut progress = session.parts(label);
    progress.count_in(objects(size_bytes, info.order));
    let outcome = if !has_feature(&info, "object-map") {
        let failure = Failure::errno(failed, EINVAL);
        Err(failure.because("image must support object-map feature"))
    } else if let (None, Some(lock)) = (snap, info.locks.first()) {
        let cause = format!("the image is locked by client.{}", lock.client);
        Err(Failure::errno(failed, EROFS).because(cause))
    } else {
        let whole = Diff { from: None, to: snap, offset: 0, length: size_bytes };
        image.diff(&whole).map(drop).map_err(|error| Failure::engine(failed, &error))
    };
    if outcome.is_ok() {
        progress.catch_up(1, objects(size_bytes, info.order));
    }
    progress.end(outcome)
}
