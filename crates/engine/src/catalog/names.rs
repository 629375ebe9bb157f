//! Names of pools, namespaces, images and snapshots.

use std::path::Path;

use marcot_backend::escape;

use crate::error::{ErrorKind, Result, fail};
use crate::printable::printable;

/// Longest name in bytes, after escaping the characters that file names cannot have.
pub const NAME_BYTES_MAX: usize = 230;

/// Prefix of the name of an image that is not complete yet; see [`super::partial`].
pub(crate) const PARTIAL_PREFIX: &str = ".marcot-partial.";

/// Prefix of the name of an image in the trash; see [`super::trash_name`].
pub(crate) const TRASH_PREFIX: &str = ".marcot-trash.";

/// Prefixes of names that only this program gives, and what they mark.
const RESERVED: [(&str, &str); 2] = [
    (PARTIAL_PREFIX, "images that are still being imported"),
    (TRASH_PREFIX, "images in the trash"),
];

/// True for a name that this program accepts. A directory of another user may hold other names. They are
/// left out with a warning: what they lead to is no image, namespace or pool.
pub(crate) fn could_be_given(place: &Path, name: &str) -> bool {
    let why = why_not(name);
    if let Some(why) = &why {
        let (name, place) = (printable(name), place.display());
        tracing::warn!(%place, "the name '{name}' is left out: it {why}");
    }
    why.is_none()
}

/// True for a name that this program accepts.
pub(crate) fn is_acceptable(name: &str) -> bool {
    defect(name).is_none()
}

/// Why a name is not accepted; `None` where it is.
pub(crate) fn why_not(name: &str) -> Option<String> {
    defect(name).map(|(_, why)| why)
}

/// What is wrong with a name.
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

/// Fails where a pool cannot have this name.
pub(crate) fn check_pool_name(name: &str) -> Result<()> {
    check("pool", name)
}

/// Fails where a namespace cannot have this name.
pub(crate) fn check_namespace_name(name: &str) -> Result<()> {
    check("namespace", name)
}

/// Fails where an image cannot have this name.
pub(crate) fn check_image_name(name: &str) -> Result<()> {
    check("image", name)?;
    if let Some((prefix, what)) = RESERVED.iter().find(|(prefix, _)| name.starts_with(prefix)) {
        let name = printable(name);
        let message =
            format!("image name '{name}' must not begin with '{prefix}', which marks {what}");
        return fail(ErrorKind::Invalid, message);
    }
    Ok(())
}

/// Fails where a group, or a snapshot of one, cannot have this name.
pub(crate) fn check_group_name(name: &str) -> Result<()> {
    check("group", name)
}

/// Fails where a snapshot cannot have this name.
///
/// # Errors
/// `Invalid`, `NameTooLong`.
pub fn check_snapshot_name(name: &str) -> Result<()> {
    check("snapshot", name)
}

#[cfg(test)]
mod tests {
    use marcot_backend::unescape;

    use super::*;

    #[test]
    fn names_that_specs_cannot_carry_are_refused() {
        for name in ["", "a/b", "a@b", "a\nb"] {
            assert!(check_image_name(name).is_err(), "{name:?}");
        }
        assert!(check_image_name(&"x".repeat(NAME_BYTES_MAX + 1)).is_err());
        assert!(check_image_name("ceph-temp.img").is_ok());
        assert!(check_image_name(".marcot-partial").is_ok());
        let refused = check_image_name(".marcot-partial.old-backup").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    }

    #[test]
    fn files_that_no_accepted_name_has_are_no_names() {
        let read = |file: &str| unescape(file).filter(|name| is_acceptable(name));
        for file in ["%1b%5b2J", "a%2fb", "a%0ab", "a%40b", "%7f", "", ".x", "%2", "%2x"] {
            assert_eq!(read(file), None, "{file}");
        }
        assert_eq!(read("%2emarcot"), Some(".marcot".to_owned()));
        assert_eq!(read(&"x".repeat(NAME_BYTES_MAX + 1)), None);
    }
}
