//! Names of images on their way in, which users do not see before they are whole.
//!
//! Such an image has a name made of its own number, which no user can give to an image. An image whose
//! name only looks like one of those is somebody's, and stays.

use marcot_format::ImageId;

use super::names::PARTIAL_PREFIX;

pub(crate) fn partial_name(image: ImageId) -> String {
    format!("{PARTIAL_PREFIX}{image}")
}

/// True for a name that partial images have, and that nobody can give to another: to be left out of
/// lists. Only the image's own number shows that it is partial.
#[must_use]
pub fn is_partial_name(name: &str) -> bool {
    let number = name.strip_prefix(PARTIAL_PREFIX);
    let number = number.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    number.is_some_and(|number| name == partial_name(ImageId(number)))
}
