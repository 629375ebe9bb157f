//! Names of pools, namespaces, images and snapshots, and how they become file names.

use crate::error::{ErrorKind, Result, fail};

/// Longest name in bytes, after the characters that file names cannot have are escaped.
pub const NAME_BYTES_MAX: usize = 230;

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

fn check(what: &str, name: &str) -> Result<()> {
    if name.is_empty() {
        return fail(ErrorKind::Invalid, format!("{what} name must not be empty"));
    }
    if let Some(bad) = name.chars().find(|c| matches!(c, '/' | '@') || c.is_control()) {
        let message = format!("{what} name '{}' must not contain {bad:?}", name.escape_debug());
        return fail(ErrorKind::Invalid, message);
    }
    if escape(name).len() > NAME_BYTES_MAX {
        return fail(
            ErrorKind::NameTooLong,
            format!("{what} name is longer than {NAME_BYTES_MAX} bytes"),
        );
    }
    Ok(())
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
    check("image", name)
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
    }
}
