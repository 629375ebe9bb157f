//! Keys of the objects of images: segments and logs.

use marcot_format::ImageId;
use marcot_format::segment::SegmentKind;

use crate::local::layout;
use crate::{SegmentKey, SegmentSet};

const SEGMENTS: &str = "segments/";

/// Prefix of all segments.
pub(super) fn segments() -> &'static str {
    SEGMENTS
}

/// Prefix of the segments of a set.
pub(super) fn set(set: SegmentSet) -> String {
    match set.copies {
        0 => format!("{SEGMENTS}{}/", set.author),
        copies => format!("{SEGMENTS}{copies:016x}.{}/", set.author),
    }
}

/// The object of a segment.
pub(super) fn segment(key: SegmentKey) -> String {
    let letter = key.kind.letter();
    format!("{}{letter}{:08x}", set(key.set), key.sequence)
}

/// The segment that an object holds; `None` where it holds none.
pub(super) fn parse_segment(object: &str) -> Option<SegmentKey> {
    let (set, name) = object.strip_prefix(SEGMENTS)?.split_once('/')?;
    let set = layout::parse_set(set)?;
    let (kind, sequence): (SegmentKind, u32) = layout::parse_segment(name)?;
    Some(SegmentKey { set, kind, sequence })
}

/// Prefix of the parts of an image's log.
pub(super) fn log(image: ImageId) -> String {
    format!("log/{image}/")
}

/// A part of an image's log, or a fence.
pub(super) fn log_part(image: ImageId, number: u64) -> String {
    format!("{}{number:016x}", log(image))
}

/// The image to which an object belongs, or all objects with this prefix: its records, its log, and the segments that
/// it has written. `None` for the objects of a pool.
pub(super) fn image_of(key: &str) -> Option<ImageId> {
    let mut parts = key.splitn(3, '/');
    let (kind, number) = (parts.next()?, parts.next()?);
    // A prefix that ends within the number may be that of several images.
    parts.next()?;
    match kind {
        "images" | "log" => layout::parse_image(number),
        "segments" => layout::parse_set(number).map(|set| set.author),
        _ => None,
    }
}

/// The number of a part of an image's log, or of a fence; `None` where the object is neither.
pub(super) fn parse_log_part(image: ImageId, object: &str) -> Option<u64> {
    let number = u64::from_str_radix(object.strip_prefix(&log(image))?, 16).ok()?;
    (log_part(image, number) == object).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_of_an_object_is_in_its_key() {
        let image = ImageId(0xAB);
        for key in [
            log_part(image, 1),
            log(image),
            set(SegmentSet { author: image, copies: 7 }),
            format!("images/{image}/head"),
            "segments/00000000000000ab/d00000001".to_owned(),
        ] {
            assert_eq!(image_of(&key), Some(image), "{key}");
        }
        for key in ["pool", "", "images/", "images/00000000000000ab", "names/00000000000000ab/3f"] {
            assert_eq!(image_of(key), None, "{key}");
        }
        assert_eq!(image_of("children/1.2.3.4.5"), None);
    }

    #[test]
    fn a_part_of_a_log_is_parsed_from_the_key_that_it_has() {
        let image = ImageId(0xAB);
        assert_eq!(parse_log_part(image, &log_part(image, 41)), Some(41));
        assert_eq!(parse_log_part(image, &log_part(ImageId(0xAC), 41)), None);
        assert_eq!(parse_log_part(image, "log/00000000000000ab/29"), None);
    }

    #[test]
    fn a_segment_is_parsed_from_the_key_that_it_has() {
        for copies in [0, 7] {
            let set = SegmentSet { author: ImageId(0xAB), copies };
            let key = SegmentKey { set, kind: SegmentKind::Map, sequence: 12 };
            assert_eq!(parse_segment(&segment(key)), Some(key));
        }
        for bad in ["segments/", "segments/1/m0", "segments/00000000000000ab/x00000001", "log/1/2"]
        {
            assert_eq!(parse_segment(bad), None, "{bad}");
        }
    }
}
