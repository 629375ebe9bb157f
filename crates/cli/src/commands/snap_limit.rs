//! `snap limit set`, `snap limit clear`.

use marcot::ErrorKind;

use super::IMAGE_SPEC;
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, options};
use crate::errno::ERANGE;
use crate::failure::{Failure, Outcome};
use crate::session::Session;

const LIMIT: &[Opt] = &[Opt::new("limit", Kind::Integer, "maximum allowed snapshot count")];
/// RBD's number for no limit.
const UNLIMITED: u64 = u64::MAX;

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["snap", "limit", "clear"], "Remove snapshot limit.", clear)
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE])
        .examples(&[("snap limit clear vm-1", "")]),
    CommandSpec::new(&["snap", "limit", "set"], "Limit the number of snapshots.", set)
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE, LIMIT])
        .examples(&[("snap limit set vm-1 --limit 10", "'snap create' then refuses the 11th")]),
];

fn clear(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, Wanted::IMAGE)?;
    let image = session.find(&target)?;
    let failed = |error| Failure::engine("clearing snapshot limit failed", &error);
    image.limit_snapshots(None).map_err(failed)
}

fn set(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "setting snapshot limit failed";
    let target = names::target(args, &mut 0, Wanted::IMAGE)?;
    let missing = || Failure::new(ERANGE, "must specify --limit <num>");
    let limit = args.integer("limit").ok_or_else(missing)?;
    let image = session.find(&target)?;
    let limit = Some(limit).filter(|limit| *limit != UNLIMITED);
    image.limit_snapshots(limit).map_err(|error| match error.kind() {
        ErrorKind::OutOfRange => Failure::errno(ERROR, ERANGE).because(error.sentence()),
        _ => Failure::engine(ERROR, &error),
    })
}
