//! Keys of the records and segments of a pool, the same on every back end.

use std::fmt;

use marcot_format::segment::SegmentKind;
use marcot_format::{ImageId, PoolId, SnapId};

/// The key of a record of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// The pool itself: its number, and the store that owns it.
    Pool,
    /// A namespace. It exists or not, and has no bytes. The default one, `""`, always exists.
    Namespace(String),
    /// The image that a name leads to.
    Name {
        /// The namespace; `""` for the default one.
        namespace: String,
        /// The name.
        name: String,
    },
    /// An image's head.
    Head(ImageId),
    /// The name that an image was given after its head was made. It is a hint that readers verify.
    NameHint(ImageId),
    /// What is noted beside the head of an image in the trash. It goes with the head.
    TrashNote(ImageId),
    /// What is noted beside the head of an image in a group. It goes with the head.
    GroupNote(ImageId),
    /// The group of images with this number.
    Group(u64),
    /// A child of a snapshot, in the child's own pool.
    Child(ChildKey),
    /// The marker that a child in another pool has left in its parent's pool.
    Marker(ChildKey),
    /// A mark that says which image may name whose segments. It exists or not, and has no bytes.
    Heir(HeirKey),
}

/// Records that are listed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prefix {
    /// All namespaces except the default one.
    Namespaces,
    /// The names of a namespace; `""` for the default one.
    Names(String),
    /// The heads of images. An image whose creation or removal was interrupted is listed too, and may have
    /// no head.
    Heads,
    /// Children and markers of children. Both are listed as [`Key::Child`], because their names have the
    /// same form. A record whose child lies in another pool than the listed one is a marker.
    Children,
    /// Marks of heirs.
    Heirs,
    /// The groups of all namespaces.
    Groups,
}

/// What a list shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed<'a> {
    /// A record.
    Key(&'a Key),
    /// Something that is no record, by its name there.
    Other(&'a str),
}

/// The numbers that name the record of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildKey {
    /// The parent's pool.
    pub parent_pool: PoolId,
    /// The parent.
    pub parent_image: ImageId,
    /// The parent's snapshot.
    pub snap: SnapId,
    /// The child's pool.
    pub child_pool: PoolId,
    /// The child.
    pub child_image: ImageId,
    /// Clone format 1 or 2; 0 in records of earlier versions, where only the child's head says it.
    pub clone_format: u32,
}

/// The clone formats that a child's name can say, and what stands before the snapshot's number then. In a
/// name of an earlier version nothing stands there.
const FORMAT_MARKS: [(u32, &str); 3] = [(0, ""), (1, "0"), (2, "00")];

impl ChildKey {
    /// The three names that the record may have. Its writer's version decides which one it has.
    #[must_use]
    pub fn of_all_formats(self) -> [Self; 3] {
        FORMAT_MARKS.map(|(clone_format, _)| Self { clone_format, ..self })
    }

    /// True for two names of one child.
    #[must_use]
    pub fn is_same_child(self, other: Self) -> bool {
        Self { clone_format: 0, ..self } == Self { clone_format: 0, ..other }
    }

    /// Parses a name; `None` where it is no name of a child. Each child of a format has exactly one name, so
    /// another spelling of the same numbers is refused.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('.');
        let mut next = || {
            let text = parts.next()?;
            Some((u64::from_str_radix(text, 16).ok()?, text))
        };
        let (parent_pool, parent_image) = (next()?.0, next()?.0);
        let (snap, snap_text) = next()?;
        let (child_pool, child_image) = (next()?.0, next()?.0);
        if parts.next().is_some() {
            return None;
        }
        let zeros = snap_text.len() - snap_text.trim_start_matches('0').len();
        let format = FORMAT_MARKS.iter().find(|(_, mark)| mark.len() == zeros);
        let key = Self {
            parent_pool: PoolId(parent_pool),
            parent_image: ImageId(parent_image),
            snap: SnapId(snap),
            child_pool: PoolId(child_pool),
            child_image: ImageId(child_image),
            clone_format: format.map_or(0, |f| f.0),
        };
        (key.to_string() == name).then_some(key)
    }
}

impl fmt::Display for ChildKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = FORMAT_MARKS.iter().find(|m| m.0 == self.clone_format).map_or("", |m| m.1);
        write!(
            f,
            "{}.{}.{mark}{:x}.{}.{}",
            self.parent_pool, self.parent_image, self.snap.0, self.child_pool, self.child_image
        )
    }
}

/// A mark of heirs. An heir of an image was cloned from it, and may name the segments that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HeirKey {
    /// The image was cloned from the parent, and may have been flattened since.
    Mark {
        /// The parent; 0 where the parent lies in another pool and the image names segments of this
        /// pool, of any author.
        parent: ImageId,
        /// The image.
        image: ImageId,
    },
    /// The author of these segments is gone. Some of them are kept until no heir names them.
    Waiting(SegmentSet),
}

impl HeirKey {
    /// Parses a name; `None` where it is no name of a mark.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        if let Some((parent, image)) = name.split_once('.') {
            let (parent, image) = (ImageId(number(parent)?), ImageId(number(image)?));
            return Some(Self::Mark { parent, image });
        }
        let (author, copies) = name.split_once('+').unwrap_or((name, "0"));
        let (author, copies) = (ImageId(number(author)?), number(copies)?);
        Some(Self::Waiting(SegmentSet { author, copies }))
    }
}

impl fmt::Display for HeirKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mark { parent, image } => write!(f, "{parent}.{image}"),
            Self::Waiting(SegmentSet { author, copies: 0 }) => author.fmt(f),
            Self::Waiting(SegmentSet { author, copies }) => write!(f, "{author}+{copies:016x}"),
        }
    }
}

/// A set of segments: those that one author wrote in this pool, or one set of copies of an author's
/// segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentSet {
    /// The image that wrote them.
    pub author: ImageId,
    /// The number of the set of copies; 0 where the author wrote the segments here itself.
    pub copies: u64,
}

/// The key of a segment of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentKey {
    /// The set that it belongs to.
    pub set: SegmentSet,
    /// Data, map or table.
    pub kind: SegmentKind,
    /// Its number in the author's series of that kind.
    pub sequence: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_parsed_from_the_name_that_it_has() {
        let (parent, image) = (ImageId(1), ImageId(0xAB));
        let waiting = |copies| HeirKey::Waiting(SegmentSet { author: image, copies });
        for (key, name) in [
            (HeirKey::Mark { parent, image }, "0000000000000001.00000000000000ab"),
            (waiting(0), "00000000000000ab"),
            (waiting(2), "00000000000000ab+0000000000000002"),
        ] {
            assert_eq!(key.to_string(), name);
            assert_eq!(HeirKey::parse(name), Some(key));
        }
        for bad in ["", "x", "1.", ".1", "1.2.3", "1+", "1+x"] {
            assert_eq!(HeirKey::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_child_is_parsed_from_the_name_that_it_has_in_each_format() {
        let key = ChildKey {
            parent_pool: PoolId(1),
            parent_image: ImageId(2),
            snap: SnapId(3),
            child_pool: PoolId(4),
            child_image: ImageId(u64::MAX),
            clone_format: 0,
        };
        for (format, snap) in [(0, "3"), (1, "03"), (2, "003")] {
            let key = ChildKey { clone_format: format, ..key };
            let name = format!(
                "0000000000000001.0000000000000002.{snap}.0000000000000004.ffffffffffffffff"
            );
            assert_eq!(key.to_string(), name);
            assert_eq!(ChildKey::parse(&name), Some(key));
        }
        for bad in
            ["", "1.2.3.4", "1.2.3.4.5.6", "x.2.3.4.5", ".1.2.3.4", "1.2.3.4.5", "1.2.3.4.5."]
        {
            assert_eq!(ChildKey::parse(bad), None, "{bad}");
        }
    }
}
