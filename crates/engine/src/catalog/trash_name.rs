//! Names of images in the trash. Users cannot give such names, and do not see them.

use marcot_format::ImageId;

use super::names::TRASH_PREFIX;

/// The name of an image in the trash.
pub(crate) fn trash_name(image: ImageId) -> String {
    format!("{TRASH_PREFIX}{image}")
}

/// The number in a name of the form that images in the trash have. Users cannot give such names. An image is
/// in the trash only if the number in its name is its own.
#[must_use]
pub fn number_in_trash_name(name: &str) -> Option<ImageId> {
    let digits = name.strip_prefix(TRASH_PREFIX)?;
    let image = ImageId(u64::from_str_radix(digits, 16).ok()?);
    (name == trash_name(image)).then_some(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::names::check_image_name;
    use crate::error::ErrorKind;

    #[test]
    fn only_a_name_made_of_a_number_is_one_of_the_trash() {
        let image = ImageId(0xAB);
        assert_eq!(number_in_trash_name(&trash_name(image)), Some(image));
        for name in ["", "ab", TRASH_PREFIX, &format!("{TRASH_PREFIX}ab"), ".marcot-trash.x"] {
            assert_eq!(number_in_trash_name(name), None, "{name}");
        }
        let own = format!("{TRASH_PREFIX}mine");
        assert_eq!(check_image_name(&own).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
