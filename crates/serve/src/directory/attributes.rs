//! What the kernel is told of the directory and its files, and the attributes by which users choose what new
//! images are like.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use marcot::{Error, ErrorKind, Result};

use super::{ImageEntry, NewImage};

/// RBD's permissions of the directory and of the files.
const DIRECTORY_MODE: u16 = 0o755;
const FILE_MODE: u16 = 0o666;
/// Unit of `st_blocks`, in bytes.
const STAT_BLOCK_BYTES: u64 = 512;
const SIZE: &str = "user.rbdfuse.imagesize";
const ORDER: &str = "user.rbdfuse.imageorder";
const FEATURES: &str = "user.rbdfuse.imagefeatures";

/// Names of the directory's attributes.
pub(super) const NAMES: [&str; 3] = [SIZE, ORDER, FEATURES];

/// Owner and permissions of the files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Access {
    /// User; `None`: the one who mounted it.
    pub uid: Option<u32>,
    /// Group; `None`: the one who mounted it.
    pub gid: Option<u32>,
    /// Permissions that are taken away.
    pub umask: u16,
}

impl Access {
    fn attributes(self, inode: INodeNo, kind: FileType, mode: u16) -> FileAttr {
        FileAttr {
            ino: inode,
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: mode & !self.umask,
            nlink: 1,
            uid: self.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
            gid: self.gid.unwrap_or_else(|| rustix::process::getegid().as_raw()),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// Of the directory.
    pub(super) fn of_directory(self, modified: SystemTime) -> FileAttr {
        let attributes = self.attributes(INodeNo::ROOT, FileType::Directory, DIRECTORY_MODE);
        FileAttr {
            nlink: 2,
            size: 1024,
            blocks: 1,
            atime: modified,
            mtime: modified,
            ctime: modified,
            ..attributes
        }
    }

    /// Of an image's file.
    pub(super) fn of_image(self, image: &ImageEntry) -> FileAttr {
        let inode = INodeNo(image.number);
        let modified = time(image.modified_s);
        FileAttr {
            size: image.size_bytes,
            blocks: image.size_bytes.div_ceil(STAT_BLOCK_BYTES),
            atime: modified,
            mtime: modified,
            ctime: modified,
            crtime: time(image.created_s),
            blksize: 1u32.checked_shl(image.order).unwrap_or(4096),
            ..self.attributes(inode, FileType::RegularFile, FILE_MODE)
        }
    }
}

fn time(seconds: i64) -> SystemTime {
    let since = u64::try_from(seconds).unwrap_or(0);
    UNIX_EPOCH.checked_add(Duration::from_secs(since)).unwrap_or(UNIX_EPOCH)
}

impl NewImage {
    /// The value of an attribute of the directory; `None` if it has no such attribute.
    pub(super) fn attribute(&self, name: &str) -> Option<u64> {
        match name {
            SIZE => Some(self.size_bytes),
            ORDER => Some(self.order),
            FEATURES => Some(self.features),
            _ => None,
        }
    }

    /// The same with another value of an attribute: a number that is decimal, octal after `0`, or hexadecimal after
    /// `0x`.
    ///
    /// # Errors
    /// `Invalid` for another attribute, and for what is no number.
    pub(super) fn with_attribute(self, name: &str, value: &[u8]) -> Result<Self> {
        let bad =
            || Error::new(ErrorKind::Invalid, format!("'{name}' cannot be set to this value"));
        let number = std::str::from_utf8(value).ok().and_then(parse).ok_or_else(bad)?;
        match name {
            SIZE => Ok(Self { size_bytes: number, ..self }),
            ORDER => Ok(Self { order: number, ..self }),
            FEATURES => Ok(Self { features: number, ..self }),
            _ => Err(bad()),
        }
    }
}

/// A number as the C library's `strtoull` reads it, but nothing may follow it.
fn parse(text: &str) -> Option<u64> {
    // `setfattr` and scripts may send the string's final NUL.
    let text = text.trim_end_matches('\0').trim();
    let digits = |text: &str, radix| {
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        u64::from_str_radix(text, radix).ok().filter(|_| plain)
    };
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => digits(hex, 16),
        None if text.len() > 1 && text.starts_with('0') => digits(&text[1..], 8),
        None => digits(text, 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_octal_and_hexadecimal_and_nothing_follows_them() {
        assert_eq!(parse("1048576"), Some(1 << 20));
        assert_eq!(parse("0x100000\0"), Some(1 << 20));
        assert_eq!(parse("010"), Some(8));
        assert_eq!(parse("0"), Some(0));
        for bad in ["", "abc", "1M", "-1", "+1", "0x", "1 2", "99999999999999999999"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn attributes_are_set_by_their_names() {
        let new = NewImage::default().with_attribute(ORDER, b"20").unwrap();
        assert_eq!(new.attribute(ORDER), Some(20));
        assert_eq!(new.attribute(SIZE), Some(1 << 30));
        assert_eq!(new.attribute("user.other"), None);
        assert!(new.with_attribute("user.other", b"1").is_err());
        assert!(new.with_attribute(SIZE, b"many").is_err());
    }
}
