//! Two differences that follow each other, made into one.
//!
//! Both are read once and side by side, so their size does not matter. The result is the one that `rbd
//! merge-diff` writes, record by record: where both have something, the second one counts.

use std::io::{self, Read};

use super::records::{Records, Unreadable, Why};
use super::wire::{Form, Item, Part, Refusal, What, encode};

const DIFFERENCE: What = What::Difference(Form::One);

/// Which of the two differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The earlier one.
    First,
    /// The later one.
    Second,
}

/// Why two differences are not merged.
#[derive(Debug)]
pub enum Trouble {
    /// What stands before the data cannot be read.
    Header(Side, Unreadable),
    /// The first does not end with the snapshot that the second begins with.
    NotConsecutive,
    /// The place and length of the next data or zeros cannot be read.
    Chunk(Side, Unreadable),
    /// There is something else than data and zeros, or some without length.
    NoChunk(Side),
    /// Data comes before other data that it follows in the image: the two places.
    OutOfOrder(Side, u64, u64),
    /// Data cannot be read.
    Data(Side, Unreadable),
    /// Data that the second difference replaces cannot be passed over.
    Passed(Unreadable),
    /// The start of the result cannot be written.
    SinkHeader(io::Error),
    /// The result cannot be written on.
    Sink(io::Error),
    /// The caller interrupts.
    Interrupted,
}

/// What stands before the data of a difference.
#[derive(Debug, Default)]
struct Header {
    from: String,
    to: String,
    size_bytes: u64,
}

/// A difference that is being read.
struct Input<R> {
    side: Side,
    records: Records<R>,
    header: Header,
    /// What came after the header.
    pending: Option<Result<Item<'static>, Unreadable>>,
    /// What is left of the current extent.
    offset: u64,
    length: u64,
    kind: Kind,
    ended: bool,
}

/// What an extent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Zeros,
    /// Beyond the end of the result: it covers what the other side has there, and is not written.
    Nothing,
}

impl<R: Read> Input<R> {
    fn open(side: Side, source: R) -> Result<Self, Trouble> {
        let mut records = Records::new(source, DIFFERENCE);
        let mut header = Header::default();
        let pending = loop {
            match records.next_item() {
                Ok(Some(Item::From(name))) => header.from = name,
                Ok(Some(Item::To(name))) => header.to = name,
                Ok(Some(Item::Size(bytes))) => header.size_bytes = bytes,
                Ok(Some(Item::Write { offset, length })) => {
                    break Ok(Item::Write { offset, length });
                }
                Ok(Some(Item::Zero { offset, length })) => {
                    break Ok(Item::Zero { offset, length });
                }
                Ok(Some(Item::End) | None) => break Ok(Item::End),
                Ok(Some(_)) => return Err(Trouble::NoChunk(side)),
                // Something else than a header begins here.
                Err(error) if is_tag(&error) || error.part == Part::Extent => break Err(error),
                Err(error) => return Err(Trouble::Header(side, error)),
            }
        };
        let kind = Kind::Zeros;
        let pending = Some(pending);
        Ok(Self { side, records, header, pending, offset: 0, length: 0, kind, ended: false })
    }

    /// Reads the next extent, or the end: what follows then as far as the end of the `other` side.
    fn advance(&mut self, other_bytes: u64) -> Result<(), Trouble> {
        let last = self.offset;
        let next = match self.pending.take() {
            Some(pending) => pending,
            None => self.records.next_item().map(|item| match item {
                Some(Item::Write { offset, length }) => Item::Write { offset, length },
                Some(Item::Zero { offset, length }) => Item::Zero { offset, length },
                Some(Item::End) | None => Item::End,
                Some(_) => Item::Unknown(0),
            }),
        };
        (self.offset, self.length, self.kind) = match next {
            Err(error) if is_tag(&error) => return Err(Trouble::NoChunk(self.side)),
            Err(error) => return Err(Trouble::Chunk(self.side, error)),
            Ok(Item::Write { offset, length }) => (offset, length, Kind::Data),
            Ok(Item::Zero { offset, length }) => (offset, length, Kind::Zeros),
            Ok(Item::End) => {
                self.ended = true;
                let kind = if self.side == Side::First { Kind::Zeros } else { Kind::Nothing };
                let size_bytes = self.header.size_bytes;
                (size_bytes, other_bytes.saturating_sub(size_bytes), kind)
            }
            Ok(_) => return Err(Trouble::NoChunk(self.side)),
        };
        // An extent ends within what a number can say.
        let sensible =
            self.ended || (self.length > 0 && self.offset.checked_add(self.length).is_some());
        match sensible {
            false => Err(Trouble::NoChunk(self.side)),
            true if last > self.offset => Err(Trouble::OutOfOrder(self.side, last, self.offset)),
            true => Ok(()),
        }
    }

    fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// Writes the next `length` bytes.
    fn write(&mut self, length: u64, output: &mut Output<'_>) -> Result<(), Trouble> {
        let offset = self.offset;
        self.offset += length;
        self.length -= length;
        match self.kind {
            Kind::Nothing => Ok(()),
            Kind::Zeros => output.put(&Item::Zero { offset, length }),
            Kind::Data => {
                output.put(&Item::Write { offset, length })?;
                let side = self.side;
                self.data(length, &mut |bytes| output.put_bytes(bytes))
                    .map_err(|trouble| trouble.unwrap_or_else(|error| Trouble::Data(side, error)))
            }
        }
    }

    /// Passes over the next `length` bytes.
    fn pass(&mut self, length: u64) -> Result<(), Trouble> {
        self.offset += length;
        self.length -= length;
        if self.kind != Kind::Data {
            return Ok(());
        }
        let passed = self.data(length, &mut |_| Ok(()));
        passed.map_err(|trouble| trouble.unwrap_or_else(Trouble::Passed))
    }

    fn data(
        &mut self,
        length: u64,
        each: &mut dyn FnMut(&[u8]) -> Result<(), Trouble>,
    ) -> Result<(), Broken> {
        let mut left = length;
        while left > 0 {
            let bytes = self.records.next_data(left).map_err(Broken::Source)?;
            if bytes.is_empty() {
                break;
            }
            each(bytes).map_err(Broken::Output)?;
            left -= bytes.len() as u64;
        }
        Ok(())
    }
}

/// What broke while data was passed on.
enum Broken {
    Source(Unreadable),
    Output(Trouble),
}

impl Broken {
    fn unwrap_or_else(self, source: impl FnOnce(Unreadable) -> Trouble) -> Trouble {
        match self {
            Self::Source(error) => source(error),
            Self::Output(trouble) => trouble,
        }
    }
}

fn is_tag(error: &Unreadable) -> bool {
    matches!(error.why, Why::Refused(Refusal::Tag(_)))
}

/// Where the result goes.
struct Output<'a> {
    sink: &'a mut dyn FnMut(&[u8]) -> io::Result<()>,
    record: Vec<u8>,
}

impl Output<'_> {
    fn put(&mut self, item: &Item<'_>) -> Result<(), Trouble> {
        self.record.clear();
        encode(DIFFERENCE, item, &mut self.record);
        (self.sink)(&self.record).map_err(Trouble::Sink)
    }

    fn put_bytes(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        (self.sink)(bytes).map_err(Trouble::Sink)
    }
}

/// Merges two differences. `progress` gets (done, total), and returns false to end the work.
///
/// # Errors
/// One of them cannot be read, or is not in order; they do not fit; those of `sink`.
pub fn merge(
    first: impl Read,
    second: impl Read,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<(), Trouble> {
    let mut first = Input::open(Side::First, first)?;
    let mut second = Input::open(Side::Second, second)?;
    if first.header.to != second.header.from {
        return Err(Trouble::NotConsecutive);
    }
    let mut header = DIFFERENCE.banner().to_vec();
    let (from, to) = (&first.header.from, &second.header.to);
    if !from.is_empty() {
        encode(DIFFERENCE, &Item::From(from.clone()), &mut header);
    }
    if !to.is_empty() {
        encode(DIFFERENCE, &Item::To(to.clone()), &mut header);
    }
    let (first_bytes, second_bytes) = (first.header.size_bytes, second.header.size_bytes);
    encode(DIFFERENCE, &Item::Size(second_bytes), &mut header);
    sink(&header).map_err(Trouble::SinkHeader)?;
    let mut output = Output { sink, record: Vec::new() };
    let total = first_bytes.max(second_bytes).saturating_mul(2);
    while !(first.ended && second.ended) {
        if !progress(first.offset.saturating_add(second.offset), total) {
            return Err(Trouble::Interrupted);
        }
        if !first.ended && first.length == 0 {
            first.advance(second_bytes)?;
        }
        if !second.ended && second.length == 0 {
            second.advance(first_bytes)?;
        }
        // What only the first has before the next extent of the second.
        if first.offset < second.offset && first.length > 0 {
            first.write(first.length.min(second.offset - first.offset), &mut output)?;
            if first.length == 0 {
                continue;
            }
        }
        // What the second replaces.
        if first.offset < second.end() && first.length > 0 {
            first.pass(first.length.min(second.end() - first.offset))?;
            if first.length == 0 {
                continue;
            }
        }
        // The first has data behind its own end.
        if second.length == 0 && first.length > 0 {
            return Err(Trouble::NoChunk(Side::First));
        }
        second.write(second.length, &mut output)?;
    }
    output.put(&Item::End)
}
