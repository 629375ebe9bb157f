//! `sparsify`: data of zeros becomes holes.

use super::IMAGE_SPEC;
use super::image::objects;
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, options};
use crate::errno::EINVAL;
use crate::failure::{Failure, Outcome};
use crate::session::{self, Session};

/// The smallest piece that becomes a hole, and the one without `--sparse-size`.
const SPARSE_BYTES_MIN: u64 = 4096;

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] =
    &[CommandSpec::new(&["sparsify"], "Reclaim space for zeroed image extents.", sparsify)
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE, options::NO_PROGRESS, options::SPARSE_SIZE])
        .examples(&[("sparsify vm-1", "works while the image is in use")])];

fn sparsify(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "sparsify error";
    let target = names::target(args, &mut 0, Wanted::IMAGE)?;
    let image = session.find(&target)?;
    let info = session::info(&image)?;
    let object_bytes = 1 << info.order;
    let piece_bytes = args.bytes("sparse-size").unwrap_or(SPARSE_BYTES_MIN);
    let mut progress = session.parts("Image sparsify");
    if !piece_bytes.is_power_of_two() || !(SPARSE_BYTES_MIN..=object_bytes).contains(&piece_bytes) {
        progress.fail();
        let cause = format!(
            "the sparse size is a power of two from {SPARSE_BYTES_MIN} to the object size, {object_bytes}"
        );
        return Err(Failure::errno(ERROR, EINVAL).because(cause));
    }
    progress.count_in(objects(info.size_bytes, info.order));
    let mut report = |done, total| progress.update_before_end(done, total);
    let outcome = image.sparsify(piece_bytes, object_bytes, &mut report);
    progress.end(outcome.map_err(|error| Failure::engine(ERROR, &error)))
}
