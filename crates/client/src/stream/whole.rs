//! A whole image of a stream, with its metadata and snapshots.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use marcot::Result;

use super::import::{Known, Target, Trouble, apply};
use super::records::{Records, Unreadable, Why};
use super::wire::{Form, Item, Part, Refusal, What};
use crate::incoming::Incoming;

/// Largest sum of the metadata of an image in bytes. A head can hold no more.
const METADATA_BYTES_MAX: usize = 16 << 20;
/// What a piece of metadata counts beside its bytes, so that their number is bounded too.
const META_BYTES_BESIDES: usize = 64;

/// What a stream tells of an image before its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Properties {
    /// log2 of the size of objects.
    pub order: Option<u64>,
    /// Features, a bit for each.
    pub features: Option<u64>,
    /// Bytes of a stripe.
    pub stripe_unit: Option<u64>,
    /// Objects that stripes are spread over.
    pub stripe_count: Option<u64>,
    /// Keys and values.
    pub metadata: BTreeMap<String, String>,
    /// Properties that are not known.
    pub unknown: Vec<u8>,
}

impl Properties {
    /// Reads the properties at the start of a stream. Its differences follow.
    ///
    /// # Errors
    /// The stream ends or is no stream of an image.
    pub fn read<R: Read>(records: &mut Records<R>) -> std::result::Result<Self, Unreadable> {
        let mut found = Self::default();
        let mut bytes = 0;
        while let Some(item) = records.next_item()? {
            match item {
                Item::Order(order) => found.order = Some(order),
                Item::Features(bits) => found.features = Some(bits),
                Item::StripeUnit(bytes) => found.stripe_unit = Some(bytes),
                Item::StripeCount(count) => found.stripe_count = Some(count),
                Item::Meta(key, value) => {
                    bytes += key.len() + value.len() + META_BYTES_BESIDES;
                    if bytes > METADATA_BYTES_MAX {
                        let why = Why::Refused(Refusal::TooLong);
                        return Err(Unreadable { part: Part::MetaValue, why });
                    }
                    found.metadata.insert(key, value);
                }
                // Each is told once: their number is not bounded.
                Item::Unknown(tag) if !found.unknown.contains(&tag) => found.unknown.push(tag),
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Why the content of an image is not imported.
#[derive(Debug)]
pub enum WholeTrouble {
    /// The number of differences cannot be read.
    Count(Unreadable),
    /// A difference cannot be imported.
    Difference(Trouble),
}

impl Incoming {
    /// Reads the differences of a stream whose properties have been read, into this image, and takes
    /// its snapshots. Runs of zeros of at least `grain_bytes` are not stored. Protected snapshots are refused unless it
    /// `may_protect` some: with RBD it needs the feature `layering` for that. `progress` gets how many differences are
    /// done, and how many there are.
    ///
    /// # Errors
    /// The stream ends or makes no sense; those of writing. The image is not complete then: drop it.
    pub fn take_differences<R: Read>(
        &mut self,
        records: &mut Records<R>,
        grain_bytes: usize,
        may_protect: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> std::result::Result<(), WholeTrouble> {
        let count = read_count(records).map_err(WholeTrouble::Count)?;
        let mut names = HashSet::new();
        for done in 0..count {
            records.follow_with(What::Difference(Form::Two));
            let mut target = Whole { image: self, taken: None };
            let has = |name: &str| names.contains(name);
            let known = Known { has_snapshot: &has, may_protect };
            apply(records, &mut target, grain_bytes, known, &mut |_, _, _| {})
                .map_err(WholeTrouble::Difference)?;
            names.extend(target.taken);
            progress(done + 1, count);
        }
        Ok(())
    }
}

fn read_count<R: Read>(records: &mut Records<R>) -> std::result::Result<u64, Unreadable> {
    records.follow_with(What::Count);
    let mut count = 0;
    while let Some(item) = records.next_item()? {
        if let Item::Count(found) = item {
            count = found;
        }
    }
    Ok(count)
}

/// An image that nobody sees yet.
struct Whole<'a> {
    image: &'a mut Incoming,
    taken: Option<String>,
}

impl Target for Whole<'_> {
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn resize(&mut self, size_bytes: u64) -> Result<()> {
        self.image.resize(size_bytes)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.image.write_run(offset, data)
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        self.image.zero(offset, length)
    }

    fn finish(&mut self, snapshot: Option<(&str, bool)>) -> Result<()> {
        let Some((name, protected)) = snapshot else { return self.image.check_interrupted() };
        self.taken = Some(name.to_owned());
        self.image.snapshot(name, protected)
    }
}
