//! Names of pools, namespaces, images and snapshots, and how they become file names.

use std::path::Path;

use crate::error::{ErrorKind, Result, fail};
use crate::printable::printable;

/// Longest name in bytes, after the characters that file names cannot have are escaped.
pub const NAME_BYTES_MAX: usize = 230;

/// Begins the name of an image that is not whole yet; see [`super::partial`].
pub(crate) const PARTIAL_PREFIX: &str = ".marcot-partial.";

/// Directory of names of the default namespace; `@` occurs in no namespace's name.
pub(crate) const DEFAULT_NAMESPACE: &str = "@";

fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'-' | b'_' | b'.' | b'+' | b' ' | b':' | b',' | b'=')
        || byte >= 0x80
}

/// The file name for a name: bytes that may trouble a shell or a file system become `%xx`.
pub(crate) fn escape(name: &str) -> String {
    let mut out: Vec<u8> = Vec::with_capacity(name.len());
    for (i, byte) in name.bytes().enumerate() {
        if plain(byte) && !(i == 0 && matches!(byte, b'.' | b' ')) {
            out.push(byte);
        } else {
            out.extend(format!("%{byte:02x}").bytes());
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The name for a file name that [`escape`] made; `None` for any other.
pub(crate) fn unescape(file: &str) -> Option<String> {
    let bytes = file.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] == b'%' {
            let digits = file.get(i + 1..i + 3)?;
            out.push(u8::from_str_radix(digits, 16).ok()?);
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    let name = String::from_utf8(out).ok()?;
    (escape(&name) == file).then_some(name)
}

/// The name for a file of `directory`; `None` where it is no name that anybody could have given. A
/// directory of others may hold such files, and what they lead to is no image, namespace or pool.
pub(crate) fn read_name(directory: &Path, file: &str) -> Option<String> {
    let name = unescape(file)?;
    if let Some((_, why)) = defect(&name) {
        let (name, directory) = (printable(&name), directory.display());
        tracing::warn!(%directory, "the name '{name}' is left out: it {why}");
        return None;
    }
    Some(name)
}

/// True for a name that could be given.
pub(crate) fn is_acceptable(name: &str) -> bool {
    defect(name).is_none()
}

/// What speaks against a name.
fn defect(name: &str) -> Option<(ErrorKind, String)> {
    if name.is_empty() {
        return Some((ErrorKind::Invalid, "must not be empty".to_owned()));
    }
    if let Some(bad) = name.chars().find(|c| matches!(c, '/' | '@') || c.is_control()) {
        let why = format!("must not contain '{}'", printable(bad.encode_utf8(&mut [0; 4])));
        return Some((ErrorKind::Invalid, why));
    }
    if escape(name).len() > NAME_BYTES_MAX {
        let why = format!("is longer than {NAME_BYTES_MAX} bytes");
        return Some((ErrorKind::NameTooLong, why));
    }
    None
}

fn check(what: &str, name: &str) -> Result<()> {
    match defect(name) {
        None => Ok(()),
        Some((ErrorKind::NameTooLong, why)) => {
            fail(ErrorKind::NameTooLong, format!("{what} name {why}"))
        }
        Some((kind, why)) => fail(kind, format!("{what} name '{}' {why}", printable(name))),
    }
}

/// Accepts a pool's name.
pub(crate) fn check_pool_name(name: &str) -> Result<()> {
    check("pool", name)
}

/// Accepts a namespace's name.
pub(crate) fn check_namespace_name(name: &str) -> Result<()> {
    check("namespace", name)
}

/// Accepts an image's name.
pub(crate) fn check_image_name(name: &str) -> Result<()> {
    check("image", name)?;
    if name.starts_with(PARTIAL_PREFIX) {
        let message = format!(
            "image name '{}' must not begin with '{PARTIAL_PREFIX}', which marks images that are still \
             being imported",
            printable(name)
        );
        return fail(ErrorKind::Invalid, message);
    }
    Ok(())
}

/// Accepts a snapshot's name.
pub(crate) fn check_snapshot_name(name: &str) -> Result<()> {
    check("snapshot", name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_accepted_name_has_one_file_name(name in "[^/@\\x00-\\x1f\\x7f]{1,40}") {
            let file = escape(&name);
            prop_assert!(!file.starts_with('.') && !file.contains('/') && file != "@");
            prop_assert_eq!(unescape(&file), Some(name));
        }

        #[test]
        fn no_file_name_panics(file in ".*") {
            let _ = unescape(&file);
        }
    }

    #[test]
    fn names_that_specs_cannot_carry_are_refused() {
        for name in ["", "a/b", "a@b", "a\nb"] {
            assert!(check_image_name(name).is_err(), "{name:?}");
        }
        assert!(check_image_name(&"x".repeat(NAME_BYTES_MAX + 1)).is_err());
        assert!(check_image_name("ceph-temp.img").is_ok());
        assert!(check_image_name(".marcot-partial").is_ok());
        let refused = check_image_name(".marcot-partial.old-backup").unwrap_err();
        assert_eq!(refused.errno(), 22, "{refused}");
    }

    #[test]
    fn files_that_no_accepted_name_has_are_no_names() {
        let directory = Path::new("names");
        for file in ["%1b%5b2J", "a%2fb", "a%0ab", "a%40b", "%7f", "", ".x", "%2", "%2x"] {
            assert_eq!(read_name(directory, file), None, "{file}");
        }
        assert_eq!(read_name(directory, "%2emarcot"), Some(".marcot".to_owned()));
        assert_eq!(read_name(directory, &"x".repeat(NAME_BYTES_MAX + 1)), None);
    }
}
