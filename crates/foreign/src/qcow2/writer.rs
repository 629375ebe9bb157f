//! Writing a qcow2 image, version 3, from its first byte to its last.
//!
//! What is written follows from a map of which clusters have data. So the tables can come first, and the file is written in
//! one go, also into a pipe:
//!
//! ```text
//! cluster 0        header
//! then             refcount table, refcount blocks, first table, second tables, clusters with data in order
//! ```
//!
//! Every cluster of the file is used once. After `docs/interop/qcow2.rst` of QEMU.

use super::header::MAGIC;
use crate::error::{Error, Result};

/// log2 of the bytes of a cluster.
pub const CLUSTER_BITS: u32 = 16;
/// Bytes of a cluster.
pub const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// Entries of a second table.
const L2_ENTRIES: u64 = CLUSTER_BYTES / 8;
/// Counts of references in a block of them: 2 bytes each.
const REFCOUNTS: u64 = CLUSTER_BYTES / 2;
/// Entries of a first table that QEMU opens.
const L1_ENTRIES_MAX: u64 = (32 << 20) / 8;
const HEADER_BYTES: usize = 112;
/// Used once, and by this entry only.
const COPIED: u64 = 1 << 63;

/// A set of the clusters of a disk that have data: a bit each, for the parts that have any.
#[derive(Debug, Default)]
pub struct Clusters {
    /// Index of a second table, and a bit for each of its clusters.
    tables: Vec<(u64, Box<[u64]>)>,
}

impl Clusters {
    /// Adds the clusters of a range, which lies behind all ranges that were added before, or in their last cluster.
    pub fn add(&mut self, offset: u64, length: u64) {
        if length == 0 {
            return;
        }
        for cluster in offset / CLUSTER_BYTES..=(offset + length - 1) / CLUSTER_BYTES {
            let table = cluster / L2_ENTRIES;
            if self.tables.last().is_none_or(|(last, _)| *last != table) {
                self.tables.push((table, vec![0; L2_ENTRIES as usize / 64].into()));
            }
            let within = (cluster % L2_ENTRIES) as usize;
            if let Some((_, bits)) = self.tables.last_mut() {
                bits[within / 64] |= 1 << (within % 64);
            }
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        let counts = self.tables.iter().flat_map(|(_, bits)| bits.iter());
        counts.map(|bits| u64::from(bits.count_ones())).sum()
    }

    /// Their indices, in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.tables.iter().flat_map(|(table, bits)| {
            let has = |within: &u64| bits[*within as usize / 64] >> (within % 64) & 1 != 0;
            (0..L2_ENTRIES).filter(has).map(move |within| table * L2_ENTRIES + within)
        })
    }
}

/// Where everything lies in the file, in clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    size_bytes: u64,
    refcount_table_clusters: u64,
    refcount_blocks: u64,
    l1_entries: u64,
    l1: u64,
    l2: u64,
    data: u64,
    end: u64,
}

impl Layout {
    /// For a disk of `size_bytes` with these clusters.
    ///
    /// # Errors
    /// `Unsupported` for a disk that is larger than a qcow2 image with clusters of 64 KiB can be.
    pub fn new(size_bytes: u64, clusters: &Clusters) -> Result<Self> {
        let l1_entries = size_bytes.div_ceil(CLUSTER_BYTES * L2_ENTRIES);
        if l1_entries > L1_ENTRIES_MAX {
            return Err(Error::unsupported("a disk of this size does not fit into qcow2"));
        }
        let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER_BYTES);
        let fixed = 1 + l1_clusters + clusters.tables.len() as u64 + clusters.count();
        // The counts of references count themselves too.
        let (mut blocks, mut table) = (1, 1);
        loop {
            let all = fixed + blocks + table;
            let (needs, holds) = (all.div_ceil(REFCOUNTS), blocks);
            let table_needs = (needs * 8).div_ceil(CLUSTER_BYTES);
            if needs <= holds && table_needs <= table {
                break;
            }
            (blocks, table) = (needs.max(blocks), table_needs.max(table));
        }
        let l1 = 1 + table + blocks;
        let l2 = l1 + l1_clusters;
        let data = l2 + clusters.tables.len() as u64;
        let end = data + clusters.count();
        let (refcount_table_clusters, refcount_blocks) = (table, blocks);
        Ok(Self {
            size_bytes,
            refcount_table_clusters,
            refcount_blocks,
            l1_entries,
            l1,
            l2,
            data,
            end,
        })
    }

    /// Length of the file in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.end * CLUSTER_BYTES
    }

    /// Gives `append` all that comes before the data, in pieces of one cluster.
    ///
    /// # Errors
    /// Those of `append`.
    pub fn write_tables<E>(
        &self,
        clusters: &Clusters,
        append: &mut dyn FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        append(&self.header())?;
        let first_block = 1 + self.refcount_table_clusters;
        let blocks = first_block..first_block + self.refcount_blocks;
        let table = blocks.map(|block| block * CLUSTER_BYTES);
        append_numbers(table, self.refcount_table_clusters, append)?;
        for block in 0..self.refcount_blocks {
            let used = self.end.saturating_sub(block * REFCOUNTS).min(REFCOUNTS);
            let mut bytes = vec![0; CLUSTER_BYTES as usize];
            for count in bytes.chunks_exact_mut(2).take(used as usize) {
                count.copy_from_slice(&1_u16.to_be_bytes());
            }
            append(&bytes)?;
        }
        let mut tables = clusters.tables.iter().zip(self.l2..).peekable();
        let l1 = (0..self.l1_entries).map(|index| {
            match tables.next_if(|((table, _), _)| *table == index) {
                Some((_, at)) => (at * CLUSTER_BYTES) | COPIED,
                None => 0,
            }
        });
        append_numbers(l1, self.l2 - self.l1, append)?;
        let mut place = self.data;
        for (_, bits) in &clusters.tables {
            let entries = (0..L2_ENTRIES).map(|within| {
                let has = bits[within as usize / 64] >> (within % 64) & 1 != 0;
                place += u64::from(has);
                if has { ((place - 1) * CLUSTER_BYTES) | COPIED } else { 0 }
            });
            append_numbers(entries, 1, append)?;
        }
        Ok(())
    }

    fn header(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(CLUSTER_BYTES as usize);
        bytes.extend(MAGIC);
        bytes.extend(3_u32.to_be_bytes());
        // No backing file.
        bytes.extend([0; 12]);
        bytes.extend(CLUSTER_BITS.to_be_bytes());
        bytes.extend(self.size_bytes.to_be_bytes());
        // Not encrypted.
        bytes.extend(0_u32.to_be_bytes());
        // At most L1_ENTRIES_MAX.
        bytes.extend((self.l1_entries as u32).to_be_bytes());
        bytes.extend((self.l1 * CLUSTER_BYTES).to_be_bytes());
        bytes.extend(CLUSTER_BYTES.to_be_bytes());
        bytes.extend((self.refcount_table_clusters as u32).to_be_bytes());
        // No snapshots, no features.
        bytes.extend([0; 4 + 8 + 3 * 8]);
        // log2 of the bits of a count of references.
        bytes.extend(4_u32.to_be_bytes());
        bytes.extend((HEADER_BYTES as u32).to_be_bytes());
        // The kind of compression, and an extension that ends the header.
        bytes.resize(CLUSTER_BYTES as usize, 0);
        bytes
    }
}

/// Appends numbers in whole clusters, with zeros behind them.
fn append_numbers<E>(
    mut numbers: impl Iterator<Item = u64>,
    clusters: u64,
    append: &mut dyn FnMut(&[u8]) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    for _ in 0..clusters {
        let mut bytes = vec![0; CLUSTER_BYTES as usize];
        for (place, number) in bytes.chunks_exact_mut(8).zip(&mut numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        append(&bytes)?;
    }
    Ok(())
}
