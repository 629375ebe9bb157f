//! Names of partial images: images that are still being imported or copied. Users do not see them.
//!
//! A partial image has a name made of its own number. Users cannot give such names. An image whose
//! name has this form, but with another number, is a user's image and stays.

use marcot_format::ImageId;

use super::names::PARTIAL_PREFIX;

pub(crate) fn partial_name(image: ImageId) -> String {
    format!("{PARTIAL_PREFIX}{image}")
}

/// True for a name of the form that partial images have. Users cannot give such names, and lists leave
/// them out. An image is partial only if the number in the name is its own.
#[must_use]
pub fn is_partial_name(name: &str) -> bool {
    let number = name.strip_prefix(PARTIAL_PREFIX);
    let number = number.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    number.is_some_and(|number| name == partial_name(ImageId(number)))
}
