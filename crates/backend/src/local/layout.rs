//! The layout of a pool's directory. Only this file knows it.
//!
//! ```text
//! POOL/pool                           the pool's record
//! POOL/names/@/NAME                   a name (@: the default namespace)
//! POOL/names/NAMESPACE/NAME
//! POOL/images/NUMBER/head             an image's head
//! POOL/images/NUMBER/name             the name that it was given later (a hint)
//! POOL/images/NUMBER/trash            its name and times, while it is in the trash
//! POOL/images/NUMBER/group            the group that it is in
//! POOL/groups/NUMBER                  a group of images
//! POOL/children/P.I.S.p.i             a child, or a marker; may be writable by others
//! POOL/heirs/...                      marks of heirs, see [`HeirKey`]
//! POOL/segments/AUTHOR/dSSSSSSSS      a data segment; m: map, t: table
//! POOL/segments/SET.AUTHOR/...        a set of copies of an author's segments
//!
//! POOL/lock                           lease of the catalogue
//! POOL/readers                        lease of readers of any head
//! POOL/gc.lock                        lease of collecting the pool
//! POOL/images/NUMBER/lock             lease of the image's owner
//! POOL/images/NUMBER/readers          lease of readers of the head
//! POOL/images/NUMBER/snap-N           lease of readers of a snapshot
//! POOL/images/NUMBER/owner.sock       the owner's control socket
//! POOL/reserve                        space kept back on the medium
//! ```

use std::path::{Path, PathBuf};

use marcot_format::ImageId;
use marcot_format::segment::SegmentKind;

use crate::{HeirKey, Key, Lease, Prefix, SegmentKey, SegmentSet};

/// Directory of the names of the default namespace; `@` occurs in no namespace's name.
pub const DEFAULT_NAMESPACE: &str = "@";

/// Directories of a pool that are made with it, and have its permission bits.
pub const PARTS: [&str; 3] = [NAMES, IMAGES, SEGMENTS];

const POOL: &str = "pool";
const NAMES: &str = "names";
const IMAGES: &str = "images";
const SEGMENTS: &str = "segments";
const HEAD: &str = "head";

/// The pool's record.
#[must_use]
pub fn pool(directory: &Path) -> PathBuf {
    directory.join(POOL)
}

/// The directory of namespaces.
#[must_use]
pub fn namespaces(directory: &Path) -> PathBuf {
    directory.join(NAMES)
}

/// The directory of the names of a namespace; `""` for the default one.
#[must_use]
pub fn names(directory: &Path, namespace: &str) -> PathBuf {
    let part = match namespace {
        "" => DEFAULT_NAMESPACE.to_owned(),
        namespace => escape(namespace),
    };
    namespaces(directory).join(part)
}

/// The directory of groups.
#[must_use]
pub fn groups(directory: &Path) -> PathBuf {
    directory.join("groups")
}

/// A number as names have it: 16 hexadecimal digits.
fn parse_number(text: &str) -> Option<u64> {
    let number = u64::from_str_radix(text, 16).ok()?;
    (format!("{number:016x}") == text).then_some(number)
}

/// The directory of images.
#[must_use]
pub fn images(directory: &Path) -> PathBuf {
    directory.join(IMAGES)
}

/// The directory of an image.
#[must_use]
pub fn image(directory: &Path, image: ImageId) -> PathBuf {
    images(directory).join(image.to_string())
}

/// The image that a directory of [`images`] is for.
#[must_use]
pub fn parse_image(name: &str) -> Option<ImageId> {
    u64::from_str_radix(name, 16).ok().map(ImageId)
}

/// The directory of children.
#[must_use]
pub fn children(directory: &Path) -> PathBuf {
    directory.join(marcot_store::SHARED_DIRECTORY)
}

/// The directory of marks of heirs.
#[must_use]
pub fn heirs(directory: &Path) -> PathBuf {
    directory.join("heirs")
}

/// The directory of segments.
#[must_use]
pub fn segments(directory: &Path) -> PathBuf {
    directory.join(SEGMENTS)
}

/// The file of the reserve.
#[must_use]
pub fn reserve(directory: &Path) -> PathBuf {
    directory.join("reserve")
}

/// The file of a record; for a namespace, its directory.
#[must_use]
pub fn record(directory: &Path, key: &Key) -> PathBuf {
    match key {
        Key::Pool => pool(directory),
        Key::Namespace(namespace) => names(directory, namespace),
        Key::Name { namespace, name } => names(directory, namespace).join(escape(name)),
        Key::Head(id) => image(directory, *id).join(HEAD),
        Key::NameHint(id) => image(directory, *id).join("name"),
        Key::TrashNote(id) => image(directory, *id).join("trash"),
        Key::GroupNote(id) => image(directory, *id).join("group"),
        Key::Group(number) => groups(directory).join(format!("{number:016x}")),
        Key::Heir(heir) => heirs(directory).join(heir.to_string()),
        Key::Child(child) | Key::Marker(child) => children(directory).join(child.to_string()),
    }
}

/// The directory of the records with a prefix.
#[must_use]
pub fn prefix(directory: &Path, prefix: &Prefix) -> PathBuf {
    match prefix {
        Prefix::Namespaces => namespaces(directory),
        Prefix::Names(namespace) => names(directory, namespace),
        Prefix::Heads => images(directory),
        Prefix::Children => children(directory),
        Prefix::Heirs => heirs(directory),
        Prefix::Groups => groups(directory),
    }
}

/// The key of the record with this file name, under a prefix.
#[must_use]
pub fn parse_record(prefix: &Prefix, file: &str) -> Option<Key> {
    match prefix {
        Prefix::Namespaces if file == DEFAULT_NAMESPACE => None,
        Prefix::Namespaces => Some(Key::Namespace(unescape(file)?)),
        Prefix::Names(namespace) => {
            Some(Key::Name { namespace: namespace.clone(), name: unescape(file)? })
        }
        Prefix::Heads => parse_image(file).map(Key::Head),
        Prefix::Children => crate::ChildKey::parse(file).map(Key::Child),
        Prefix::Heirs => HeirKey::parse(file).map(Key::Heir),
        Prefix::Groups => parse_number(file).map(Key::Group),
    }
}

/// The directory of a set of segments.
#[must_use]
pub fn set(directory: &Path, set: SegmentSet) -> PathBuf {
    let name = match set.copies {
        0 => set.author.to_string(),
        copies => format!("{copies:016x}.{}", set.author),
    };
    segments(directory).join(name)
}

/// The set that a directory of [`segments`] is for; `None` for any other name.
#[must_use]
pub fn parse_set(name: &str) -> Option<SegmentSet> {
    let (author, copies) = match name.split_once('.') {
        None => (parse_number(name)?, 0),
        Some((copies, author)) => {
            (parse_number(author)?, parse_number(copies).filter(|n| *n != 0)?)
        }
    };
    Some(SegmentSet { author: ImageId(author), copies })
}

/// The file of a segment.
#[must_use]
pub fn segment(directory: &Path, key: SegmentKey) -> PathBuf {
    set(directory, key.set).join(segment_name(key.kind, key.sequence))
}

fn segment_name(kind: SegmentKind, sequence: u32) -> String {
    format!("{}{sequence:08x}", kind.letter())
}

/// The kind and the number of the segment with this file name.
#[must_use]
pub fn parse_segment(file: &str) -> Option<(SegmentKind, u32)> {
    let kind = match file.as_bytes().first()? {
        b'd' => SegmentKind::Data,
        b'm' => SegmentKind::Map,
        b't' => SegmentKind::Table,
        _ => return None,
    };
    let sequence = u32::from_str_radix(file.get(1..)?, 16).ok()?;
    (segment_name(kind, sequence) == file).then_some((kind, sequence))
}

/// The file whose lock is a lease.
#[must_use]
pub fn lease(directory: &Path, lease: Lease) -> PathBuf {
    match lease {
        Lease::Catalogue => directory.join("lock"),
        Lease::Collection => directory.join("gc.lock"),
        Lease::AnyReader => directory.join("readers"),
        Lease::Owner(id) => image(directory, id).join("lock"),
        Lease::Readers(id) => image(directory, id).join("readers"),
        Lease::Snapshot(id, snap) => image(directory, id).join(format!("snap-{snap}")),
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'-' | b'_' | b'.' | b'+' | b' ' | b':' | b',' | b'=')
        || byte >= 0x80
}

/// The file name for a name. Bytes that may trouble a shell or a file system become `%xx`.
#[must_use]
pub fn escape(name: &str) -> String {
    let mut out: Vec<u8> = Vec::with_capacity(name.len());
    for (i, byte) in name.bytes().enumerate() {
        if is_plain(byte) && !(i == 0 && matches!(byte, b'.' | b' ')) {
            out.push(byte);
        } else {
            out.extend(format!("%{byte:02x}").bytes());
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The name for a file name that [`escape`] has made; `None` for any other file name.
#[must_use]
pub fn unescape(file: &str) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use marcot_format::{PoolId, SnapId};
    use proptest::prelude::*;

    use super::*;
    use crate::ChildKey;

    const IMAGE: ImageId = ImageId(0xA1);

    #[test]
    fn everything_lies_where_the_format_says() {
        let directory = Path::new("/p");
        let name = |namespace: &str| Key::Name { namespace: namespace.into(), name: "a/b".into() };
        let child = ChildKey {
            parent_pool: PoolId(1),
            parent_image: ImageId(2),
            snap: SnapId(3),
            child_pool: PoolId(4),
            child_image: ImageId(5),
            clone_format: 1,
        };
        let heir = HeirKey::Mark { parent: ImageId(2), image: IMAGE };
        let child_path =
            "/p/children/0000000000000001.0000000000000002.03.0000000000000004.0000000000000005";
        for (key, path) in [
            (Key::Pool, "/p/pool"),
            (Key::Namespace("a@".into()), "/p/names/a%40"),
            (Key::Namespace(String::new()), "/p/names/@"),
            (name(""), "/p/names/@/a%2fb"),
            (name("team"), "/p/names/team/a%2fb"),
            (Key::Head(IMAGE), "/p/images/00000000000000a1/head"),
            (Key::NameHint(IMAGE), "/p/images/00000000000000a1/name"),
            (Key::TrashNote(IMAGE), "/p/images/00000000000000a1/trash"),
            (Key::GroupNote(IMAGE), "/p/images/00000000000000a1/group"),
            (Key::Group(0xB1), "/p/groups/00000000000000b1"),
            (Key::Heir(heir), "/p/heirs/0000000000000002.00000000000000a1"),
            (Key::Child(child), child_path),
            (Key::Marker(child), child_path),
        ] {
            assert_eq!(record(directory, &key), Path::new(path), "{key:?}");
        }
        for (held, path) in [
            (Lease::Catalogue, "/p/lock"),
            (Lease::Collection, "/p/gc.lock"),
            (Lease::AnyReader, "/p/readers"),
            (Lease::Owner(IMAGE), "/p/images/00000000000000a1/lock"),
            (Lease::Readers(IMAGE), "/p/images/00000000000000a1/readers"),
            (Lease::Snapshot(IMAGE, SnapId(7)), "/p/images/00000000000000a1/snap-7"),
        ] {
            assert_eq!(lease(directory, held), Path::new(path), "{held:?}");
        }
        let own = SegmentSet { author: IMAGE, copies: 0 };
        let copies = SegmentSet { author: IMAGE, copies: 0xC0 };
        for (set, kind, path) in [
            (own, SegmentKind::Data, "/p/segments/00000000000000a1/d00000012"),
            (own, SegmentKind::Map, "/p/segments/00000000000000a1/m00000012"),
            (copies, SegmentKind::Table, "/p/segments/00000000000000c0.00000000000000a1/t00000012"),
        ] {
            let key = SegmentKey { set, kind, sequence: 0x12 };
            assert_eq!(segment(directory, key), Path::new(path), "{key:?}");
        }
    }

    #[test]
    fn file_names_are_parsed_back() {
        let key = Key::Namespace("x".into());
        assert_eq!(parse_record(&Prefix::Namespaces, "x"), Some(key));
        assert_eq!(parse_record(&Prefix::Namespaces, "@"), None);
        assert_eq!(parse_record(&Prefix::Heads, "a1"), Some(Key::Head(IMAGE)));
        assert_eq!(parse_record(&Prefix::Heads, "x"), None);
        for set in [0, 0xC0].map(|copies| SegmentSet { author: IMAGE, copies }) {
            let path = super::set(Path::new("p"), set);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(parse_set(name), Some(set));
        }
        for bad in [
            "",
            "ab",
            "00000000000000AB",
            "+0000000000000ab",
            "00000000000000abc",
            ".",
            "0000000000000000.00000000000000ab",
            "cd.00000000000000ab",
            "00000000000000cd.",
            "00000000000000cd.00000000000000ab.00000000000000ab",
            "00000000000000cd.ab",
        ] {
            assert_eq!(parse_set(bad), None, "{bad}");
        }
        for kind in [SegmentKind::Data, SegmentKind::Map, SegmentKind::Table] {
            for sequence in [0, 1, 0xABCD, u32::MAX] {
                assert_eq!(parse_segment(&segment_name(kind, sequence)), Some((kind, sequence)));
            }
        }
        for bad in [
            "",
            "d",
            "d1",
            "d0000001",
            "d000000001",
            "d0000000g",
            "D00000001",
            "x00000001",
            "d+0000001",
            "d0000000A",
            "d00000001 ",
            "\u{e4}0000001",
            "d\u{e4}000001",
            ".d00000001",
        ] {
            assert_eq!(parse_segment(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_name_has_one_file_name(name in "[^/@\\x00-\\x1f\\x7f]{1,40}") {
            let file = escape(&name);
            prop_assert!(!file.starts_with('.') && !file.contains('/') && file != DEFAULT_NAMESPACE);
            prop_assert_eq!(unescape(&file), Some(name));
        }

        #[test]
        fn no_file_name_panics(file in ".*") {
            let _ = unescape(&file);
            let _ = parse_segment(&file);
            let _ = parse_set(&file);
            let _ = crate::ChildKey::parse(&file);
        }
    }
}
