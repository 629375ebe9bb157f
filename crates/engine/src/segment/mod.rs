//! Segment files: their names, a bounded cache of open ones, and writing new ones.

mod files;
mod pages;

use std::fmt;
use std::path::{Path, PathBuf};

use marcot_format::segment::SegmentKind;
use marcot_format::{ImageId, PoolId};

pub(crate) use files::{Authors, Files, Place};
pub(crate) use pages::{PageWriter, WrittenPages};

/// A segment by what it is called everywhere, not only in one root's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SegmentName {
    /// Where it lies.
    pub pool: PoolId,
    /// The set of copies that it belongs to; 0: its author wrote it there.
    pub copies: u64,
    /// Who wrote it.
    pub author: ImageId,
    /// Series.
    pub kind: SegmentKind,
    /// Number in the series.
    pub sequence: u32,
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{:08x}", self.author, self.kind.letter(), self.sequence)
    }
}

/// Directory of an author's segments in a pool; with `copies`, of copies of them that belong to that
/// set.
pub(crate) fn author_directory(pool_directory: &Path, author: ImageId, copies: u64) -> PathBuf {
    let name = match copies {
        0 => author.to_string(),
        set => format!("{set:016x}.{author}"),
    };
    pool_directory.join("segments").join(name)
}

/// The author, and the set of copies, that a directory is for; `None` for what is none of ours.
pub(crate) fn parse_author_directory(name: &str) -> Option<(ImageId, u64)> {
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    match name.split_once('.') {
        None => Some((ImageId(number(name)?), 0)),
        Some((set, author)) => Some((ImageId(number(author)?), number(set).filter(|n| *n != 0)?)),
    }
}

/// File name of a segment within its author's directory.
pub(crate) fn file_name(kind: SegmentKind, sequence: u32) -> String {
    format!("{}{sequence:08x}", kind.letter())
}

/// The segment that a file name stands for; `None` for files of other kinds.
pub(crate) fn parse_file_name(name: &str) -> Option<(SegmentKind, u32)> {
    let kind = match name.as_bytes().first()? {
        b'd' => SegmentKind::Data,
        b'm' => SegmentKind::Map,
        b't' => SegmentKind::Table,
        _ => return None,
    };
    let digits = name.get(1..)?;
    if digits.len() != 8 {
        return None;
    }
    Some((kind, u32::from_str_radix(digits, 16).ok()?))
}
