//! Arguments that the commands for files and streams share.

use crate::args::{Args, Kind, Opt};
use crate::failure::{Failure, Outcome};

/// The path that stands for standard input or output.
pub const PIPE: &str = "-";

/// The format of the file: 1 has the bytes of the image, 2 also its metadata and snapshots.
pub const EXPORT_FORMAT: &[Opt] =
    &[Opt::new("export-format", Kind::Choice(&["1", "2"]), "format of image file")];

/// `--path`, or the next argument.
pub fn path_argument(args: &Args, cursor: &mut usize) -> Outcome<String> {
    if let Some(path) = args.text("path").filter(|path| !path.is_empty()) {
        return Ok(path.to_string());
    }
    let path = args.positional(*cursor);
    *cursor += 1;
    path.map(str::to_string).ok_or_else(|| Failure::invalid("path was not specified"))
}

/// True if the format with metadata and snapshots is asked for.
pub fn is_format_2(args: &Args) -> bool {
    args.text("export-format") == Some("2")
}

/// From which length on runs of zeros are not stored, in bytes.
pub fn sparse_grain(args: &Args, bytes_min: usize) -> usize {
    let bytes = args.bytes("sparse-size").unwrap_or_default();
    usize::try_from(bytes).unwrap_or(usize::MAX).max(bytes_min)
}
