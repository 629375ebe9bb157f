//! The header of a qcow2 image, and the table of its snapshots. All numbers are big-endian.
//!
//! After `docs/interop/qcow2.rst` of QEMU, versions 2 and 3.

use crate::error::{Error, ErrorKind, Result};
use crate::pages::{Pages, field};
use crate::source::Snapshot;

/// The first four bytes: "QFI" and 0xfb.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Header of version 2, and the least one of version 3.
pub const HEADER_2_BYTES: usize = 72;
/// See [`HEADER_2_BYTES`].
pub const HEADER_3_BYTES: usize = 104;

/// Incompatible features.
pub mod incompatible {
    #![allow(missing_docs, reason = "the names are those of the specification")]
    pub const DIRTY: u64 = 1 << 0;
    pub const CORRUPT: u64 = 1 << 1;
    pub const DATA_FILE: u64 = 1 << 2;
    pub const COMPRESSION_TYPE: u64 = 1 << 3;
    pub const EXTENDED_L2: u64 = 1 << 4;
}

/// Header extensions.
pub mod extension {
    #![allow(missing_docs, reason = "the names are those of the specification")]
    pub const END: u32 = 0;
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub const DATA_FILE_NAME: u32 = 0x4441_5441;
}

/// Clusters have 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Clusters with subclusters have at least 16 KiB.
const CLUSTER_BITS_EXTENDED_MIN: u32 = 14;
/// QEMU's own limits: entries of a first table (32 MiB), snapshots, and the name of a file.
const L1_ENTRIES_MAX: u32 = (32 << 20) / 8;
const SNAPSHOTS_MAX: u32 = 65_536;
const NAME_BYTES_MAX: u32 = 1023;
/// Bytes of a snapshot's extra data, of which 16 are known.
const SNAPSHOT_EXTRA_BYTES_MAX: u32 = 1024;
/// Bytes of all snapshots' names and numbers together.
const SNAPSHOT_TEXT_BYTES_MAX: usize = 16 << 20;
/// Header extensions that are looked at.
const EXTENSIONS_MAX: usize = 64;

/// How clusters are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Deflate, without a header.
    Deflate,
    /// Zstandard.
    Zstd,
}

/// A first table: where it lies and how many entries it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L1 {
    /// In bytes.
    pub offset: u64,
    /// Each leads to a second table.
    pub entries: u32,
}

/// A file that the image needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// As the image names it.
    pub name: String,
    /// As the image names it, if it does.
    pub format: Option<String>,
}

/// What a header says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the bytes of a cluster.
    pub cluster_bits: u32,
    /// Size of the disk in bytes.
    pub size_bytes: u64,
    /// The first table of the present state.
    pub l1: L1,
    /// Second tables have 16 bytes an entry, and clusters 32 parts.
    pub extended_l2: bool,
    /// How clusters are packed.
    pub packing: Packing,
    /// What the disk shows where it has nothing itself.
    pub backing: Option<Needed>,
    /// The file that has the data.
    pub data_file: Option<Needed>,
    snapshots: (u64, u32),
}

impl Header {
    /// Reads and checks it.
    ///
    /// # Errors
    /// `Invalid` if it is no qcow2 image; `Damaged`; `Unsupported`.
    pub fn read(pages: &Pages) -> Result<Self> {
        let mut bytes = [0; HEADER_3_BYTES + 1];
        // A header of version 2 may be shorter than this, but a cluster follows.
        let has = pages.length_bytes().min(bytes.len() as u64) as usize;
        pages.read(0, &mut bytes[..has], "the header")?;
        if bytes[..4] != MAGIC {
            return Err(Error::invalid("it is no qcow2 image"));
        }
        if has < HEADER_2_BYTES {
            return Err(Error::damaged("its header is cut off"));
        }
        let u32_at = |at| u32::from_be_bytes(field(&bytes, at));
        let u64_at = |at| u64::from_be_bytes(field(&bytes, at));
        let version = u32_at(4);
        if !(2..=3).contains(&version) {
            let what = format!("qcow2 images of version {version} are not read, only 2 and 3");
            return Err(Error::unsupported(what));
        }
        let is_3 = version == 3;
        if is_3 && has < HEADER_3_BYTES {
            return Err(Error::damaged("its header is cut off"));
        }
        let features = if is_3 { u64_at(72) } else { 0 };
        check_features(features)?;
        if u32_at(32) != 0 {
            return Err(Error::unsupported(
                "it is encrypted: decrypt it first with 'qemu-img convert'",
            ));
        }
        let cluster_bits = u32_at(20);
        let extended_l2 = features & incompatible::EXTENDED_L2 != 0;
        let least = if extended_l2 { CLUSTER_BITS_EXTENDED_MIN } else { *CLUSTER_BITS.start() };
        if !CLUSTER_BITS.contains(&cluster_bits) || cluster_bits < least {
            return Err(Error::damaged(format!("clusters of 2^{cluster_bits} bytes do not exist")));
        }
        let header_bytes = if is_3 { u32_at(100) } else { HEADER_2_BYTES as u32 };
        if is_3 && (header_bytes < HEADER_3_BYTES as u32 || header_bytes >= 1 << cluster_bits) {
            return Err(Error::damaged(format!("a header of {header_bytes} bytes does not exist")));
        }
        let packing = match features & incompatible::COMPRESSION_TYPE {
            0 => Packing::Deflate,
            _ if header_bytes as usize <= HEADER_3_BYTES => {
                return Err(Error::damaged("its header lacks the kind of compression"));
            }
            _ => match bytes[HEADER_3_BYTES] {
                0 => Packing::Deflate,
                1 => Packing::Zstd,
                other => {
                    return Err(Error::unsupported(format!("compression {other} is not known")));
                }
            },
        };
        let mut header = Self {
            version,
            cluster_bits,
            size_bytes: u64_at(24),
            l1: L1 { offset: u64_at(40), entries: u32_at(36) },
            extended_l2,
            packing,
            backing: None,
            data_file: None,
            snapshots: (u64_at(64), u32_at(60)),
        };
        if header.size_bytes > i64::MAX as u64 {
            return Err(Error::damaged("its size is larger than any disk"));
        }
        header.check_l1(pages, header.l1, header.size_bytes)?;
        let has_data_file = features & incompatible::DATA_FILE != 0;
        header.read_names(pages, header_bytes.into(), (u64_at(8), u32_at(16)), has_data_file)?;
        Ok(header)
    }

    /// Bytes of a cluster.
    #[must_use]
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of an entry of a second table.
    #[must_use]
    pub fn l2_entry_bytes(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Entries of a second table. It has a cluster.
    #[must_use]
    pub fn l2_entries(&self) -> u64 {
        self.cluster_bytes() / self.l2_entry_bytes()
    }

    fn check_l1(&self, pages: &Pages, l1: L1, size_bytes: u64) -> Result<()> {
        let clusters = size_bytes.div_ceil(self.cluster_bytes());
        let needs = clusters.div_ceil(self.l2_entries());
        if l1.entries > L1_ENTRIES_MAX || needs > l1.entries.into() {
            let has = l1.entries;
            let message = format!(
                "its first table has {has} entries, but a disk of {size_bytes} bytes takes {needs}"
            );
            return Err(Error::damaged(message));
        }
        if l1.entries > 0 && !l1.offset.is_multiple_of(self.cluster_bytes()) {
            return Err(Error::damaged("its first table lies at an odd place"));
        }
        pages.require(l1.offset, u64::from(l1.entries) * 8, "the first table")
    }

    /// The names of other files: one behind the header, others in extensions.
    fn read_names(
        &mut self,
        pages: &Pages,
        header_bytes: u64,
        (at, length): (u64, u32),
        has_data_file: bool,
    ) -> Result<()> {
        let end = if at == 0 { self.cluster_bytes() } else { at.min(self.cluster_bytes()) };
        let (mut offset, mut format, mut data_file) = (header_bytes, None, None);
        for _ in 0..EXTENSIONS_MAX {
            if offset + 8 > end.min(pages.length_bytes()) {
                break;
            }
            let mut head = [0; 8];
            pages.read(offset, &mut head, "a header extension")?;
            let (kind, bytes) =
                (u32::from_be_bytes(field(&head, 0)), u32::from_be_bytes(field(&head, 4)));
            offset += 8;
            if kind == extension::END {
                break;
            }
            if u64::from(bytes) > end - offset {
                return Err(Error::damaged("a header extension is longer than the header"));
            }
            match kind {
                extension::BACKING_FORMAT => format = Some(text(pages, offset, bytes)?),
                extension::DATA_FILE_NAME => data_file = Some(text(pages, offset, bytes)?),
                _ => {}
            }
            offset += u64::from(bytes).next_multiple_of(8);
        }
        if at != 0 && length != 0 {
            let name_end = at.checked_add(length.into());
            if name_end.is_none_or(|end| end > self.cluster_bytes()) {
                return Err(Error::damaged("the name of its backing file lies behind the header"));
            }
            self.backing = Some(Needed { name: text(pages, at, length)?, format });
        }
        if has_data_file {
            let unnamed = || Error::damaged("it does not name its data file");
            let name = data_file.ok_or_else(unnamed)?;
            self.data_file = Some(Needed { name, format: Some("raw".into()) });
        }
        Ok(())
    }

    /// Reads the table of snapshots, with the first table of each.
    ///
    /// # Errors
    /// `Damaged`, and those of reading.
    pub fn read_snapshots(&self, pages: &Pages) -> Result<Vec<(Snapshot, L1)>> {
        const ENTRY_BYTES: usize = 40;
        let (mut at, count) = self.snapshots;
        if count > SNAPSHOTS_MAX {
            return Err(Error::damaged(format!("{count} snapshots are more than there can be")));
        }
        let (mut found, mut text_bytes) = (Vec::new(), 0);
        for _ in 0..count {
            let entry: [u8; ENTRY_BYTES] = pages.entry(at, "the table of snapshots")?;
            let u32_at = |at| u32::from_be_bytes(field(&entry, at));
            let l1 = L1 { offset: u64::from_be_bytes(field(&entry, 0)), entries: u32_at(8) };
            let lengths = [12, 14].map(|at| u16::from_be_bytes(field(&entry, at)));
            let extra = u32_at(36);
            if extra > SNAPSHOT_EXTRA_BYTES_MAX {
                return Err(Error::damaged("the table of snapshots makes no sense"));
            }
            at += ENTRY_BYTES as u64;
            let size_bytes = match extra >= 16 {
                true => u64::from_be_bytes(pages.entry(at + 8, "the table of snapshots")?),
                false => self.size_bytes,
            };
            at += u64::from(extra);
            let id = text(pages, at, lengths[0].into())?;
            at += u64::from(lengths[0]);
            let name = text(pages, at, lengths[1].into())?;
            at = (at + u64::from(lengths[1])).next_multiple_of(8);
            text_bytes += id.len() + name.len() + ENTRY_BYTES;
            if text_bytes > SNAPSHOT_TEXT_BYTES_MAX || size_bytes > i64::MAX as u64 {
                return Err(Error::damaged("the table of snapshots makes no sense"));
            }
            self.check_l1(pages, l1, size_bytes)?;
            found.push((Snapshot { name, id, size_bytes }, l1));
        }
        Ok(found)
    }
}

fn check_features(features: u64) -> Result<()> {
    use incompatible::{COMPRESSION_TYPE, CORRUPT, DATA_FILE, DIRTY, EXTENDED_L2};
    if features & CORRUPT != 0 {
        let message =
            "it is marked as corrupt: see what 'qemu-img check' says, and repair it with '-r all'";
        return Err(Error::damaged(message));
    }
    // Of an image that was not closed only the counts of references may be wrong, which reading does not need.
    let unknown = features & !(DIRTY | DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2);
    match unknown {
        0 => Ok(()),
        _ => Err(Error::unsupported(format!(
            "it uses features of qcow2 that are not known ({unknown:#x})"
        ))),
    }
}

fn text(pages: &Pages, at: u64, length: u32) -> Result<String> {
    if length > NAME_BYTES_MAX.max(u16::MAX.into()) {
        return Err(Error::damaged("a name in its header is too long"));
    }
    let mut bytes = vec![0; length as usize];
    pages.read(at, &mut bytes, "a name")?;
    String::from_utf8(bytes)
        .map_err(|_| Error::new(ErrorKind::Unsupported, "a name in its header is not UTF-8"))
}
