//! Where the bytes of a qcow2 disk are.
//!
//! The first table leads to second tables, and these to clusters:
//!
//! ```text
//! first table     bits 9-55   where the second table lies; 0: there is none
//! second table    bit 62      the cluster is packed: see `packed`
//!                 bits 9-55   where the cluster lies
//!                 bit 0       it reads as zeros (without subclusters)
//!                 bit 63      with a data file: it is there, also at byte 0
//! extended entry  8 bytes as above, then 32 bits "reads as zeros" and 32 bits "is there", a bit each for a
//!                 32nd of the cluster, the first in the lowest bit
//! ```

use std::io::Read;
use std::sync::Arc;

use super::header::{Header, L1, Packing};
use crate::error::{Error, Result};
use crate::mapped::{Map, Place, Run};
use crate::pages::{Pages, field};

/// Bits 9 to 55.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const IS_PACKED: u64 = 1 << 62;
const IS_THERE: u64 = 1 << 63;
const IS_ZERO: u64 = 1;
const SUBCLUSTERS: u64 = 32;
/// What frames of Zstandard may take, in bytes. A cluster has at most 2 MiB.
const WINDOW_BYTES_MAX: u64 = 8 << 20;

/// One state of a disk.
pub struct State {
    /// Its container.
    pub pages: Arc<Pages>,
    /// Its header.
    pub header: Arc<Header>,
    /// Its first table.
    pub l1: L1,
    /// Its size in bytes.
    pub size_bytes: u64,
}

impl State {
    /// The entry of the cluster with this index; `None` where there is no second table. With subclusters, their bits.
    fn entry(&self, cluster: u64) -> Result<Option<(u64, u64)>> {
        let header = &self.header;
        let index = cluster / header.l2_entries();
        let at = self.l1.offset + index * 8;
        let l1 = u64::from_be_bytes(self.pages.entry(at, "the first table")?);
        let l2 = l1 & OFFSET_MASK;
        if l2 == 0 {
            return Ok(None);
        }
        if !l2.is_multiple_of(header.cluster_bytes()) {
            return Err(Error::damaged(format!("a second table lies at an odd place, byte {l2}")));
        }
        let at = l2 + cluster % header.l2_entries() * header.l2_entry_bytes();
        if header.extended_l2 {
            let entry: [u8; 16] = self.pages.entry(at, "a second table")?;
            let numbers = [0, 8].map(|at| u64::from_be_bytes(field(&entry, at)));
            return Ok(Some((numbers[0], numbers[1])));
        }
        Ok(Some((u64::from_be_bytes(self.pages.entry(at, "a second table")?), 0)))
    }

    /// Where the cluster lies that an entry names.
    fn cluster(&self, entry: u64) -> Result<Option<u64>> {
        let at = entry & OFFSET_MASK;
        if !at.is_multiple_of(self.header.cluster_bytes()) {
            return Err(Error::damaged(format!("a cluster lies at an odd place, byte {at}")));
        }
        let at_0 = self.header.data_file.is_some() && entry & IS_THERE != 0;
        Ok((at != 0 || at_0).then_some(at))
    }

    /// The place of a subcluster, and how many from it on are of the same kind.
    fn subcluster(&self, entry: u64, bits: u64, first: u64) -> Result<(Place, u64)> {
        let there = |n: u64| bits >> n & 1 != 0;
        let zero = |n: u64| bits >> (n + SUBCLUSTERS) & 1 != 0;
        if bits & (bits >> SUBCLUSTERS) & u64::from(u32::MAX) != 0 {
            return Err(Error::damaged("a part of a cluster is there and reads as zeros"));
        }
        let kind = |n| (there(n), zero(n));
        let same = (first..SUBCLUSTERS).take_while(|n| kind(*n) == kind(first)).count() as u64;
        let place = match kind(first) {
            (_, true) => Place::Zero,
            (false, false) => Place::Below,
            (true, false) => {
                let nowhere = || Error::damaged("a cluster is there, but nowhere");
                let cluster = self.cluster(entry)?.ok_or_else(nowhere)?;
                let subcluster_bytes = self.header.cluster_bytes() / SUBCLUSTERS;
                Place::Plain(cluster + first * subcluster_bytes)
            }
        };
        Ok((place, same))
    }

    /// Where a packed cluster lies, and how many bytes it has at most: the entry has the number of sectors of 512 bytes
    /// behind the first in its upper bits.
    fn packed(&self, entry: u64) -> (u64, u64) {
        let offset_bits = 62 - (self.header.cluster_bits - 8);
        let at = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & !(IS_THERE | IS_PACKED)) >> offset_bits;
        (at, (sectors + 1) * 512 - at % 512)
    }
}

impl Map for State {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn run(&self, offset: u64) -> Result<Run> {
        let header = &self.header;
        let cluster_bytes = header.cluster_bytes();
        let (cluster, within) = (offset / cluster_bytes, offset % cluster_bytes);
        let Some((entry, bits)) = self.entry(cluster)? else {
            let covered = cluster_bytes * header.l2_entries();
            return Ok(Run { place: Place::Below, length: covered - offset % covered });
        };
        let rest = cluster_bytes - within;
        if entry & IS_PACKED != 0 {
            if header.data_file.is_some() {
                return Err(Error::damaged("a cluster is packed, but there is a data file"));
            }
            let place = Place::Packed { at: entry, unit: offset - within };
            return Ok(Run { place, length: rest });
        }
        if header.extended_l2 {
            let subcluster_bytes = cluster_bytes / SUBCLUSTERS;
            let first = within / subcluster_bytes;
            let (place, same) = self.subcluster(entry, bits, first)?;
            let length = (first + same) * subcluster_bytes - within;
            let place = match place {
                Place::Plain(at) => Place::Plain(at + within % subcluster_bytes),
                other => other,
            };
            return Ok(Run { place, length });
        }
        let place = match self.cluster(entry)? {
            _ if header.version >= 3 && entry & IS_ZERO != 0 => Place::Zero,
            Some(at) => Place::Plain(at + within),
            None => Place::Below,
        };
        Ok(Run { place, length: rest })
    }

    fn unpack(&self, entry: u64, _: u64) -> Result<Vec<u8>> {
        let (at, length) = self.packed(entry);
        // The file may end in the last sector.
        let has = self.pages.length_bytes();
        self.pages.require(at, 1, "a packed cluster")?;
        let length = match length.min(has - at) {
            there if there + 512 > length => there,
            _ => {
                let message = format!("the packed cluster at byte {at} is cut off");
                return Err(Error::damaged(message));
            }
        };
        // At most 2 clusters and a sector: the number of sectors has `cluster_bits - 8` bits.
        let mut packed = vec![0; length as usize];
        self.pages.read(at, &mut packed, "a packed cluster")?;
        let mut cluster = vec![0; self.header.cluster_bytes() as usize];
        let unpacked = match self.header.packing {
            Packing::Deflate => inflate(&packed, &mut cluster),
            Packing::Zstd => unzstd(&packed, &mut cluster),
        };
        let broken =
            |()| Error::damaged(format!("the packed cluster at byte {at} cannot be unpacked"));
        unpacked.map_err(broken).map(|()| cluster)
    }
}

fn inflate(packed: &[u8], out: &mut [u8]) -> std::result::Result<(), ()> {
    let mut decoder = flate2::read::DeflateDecoder::new(packed);
    decoder.read_exact(out).map_err(drop)
}

fn unzstd(packed: &[u8], out: &mut [u8]) -> std::result::Result<(), ()> {
    use ruzstd::decoding::StreamingDecoder;
    let decoder = StreamingDecoder::new_with_max_window_size(packed, WINDOW_BYTES_MAX);
    decoder.map_err(drop)?.read_exact(out).map_err(drop)
}
