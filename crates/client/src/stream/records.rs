//! Reading a stream from a source, item by item.

use std::io::{self, Read};

use super::wire::{Decoder, Item, Part, Refusal, What};

/// A stream that cannot be read on.
#[derive(Debug)]
pub struct Unreadable {
    /// What was wanted.
    pub part: Part,
    /// Why there is none.
    pub why: Why,
}

/// Why a stream cannot be read on.
#[derive(Debug)]
pub enum Why {
    /// It ends here.
    Ended,
    /// The source fails.
    Source(io::Error),
    /// These are not the bytes of such a stream.
    Refused(Refusal),
}

/// The items of a stream.
pub struct Records<R> {
    source: R,
    decoder: Decoder,
    buffer: Vec<u8>,
    at: u64,
}

impl<R: Read> Records<R> {
    /// The items of `what`, from a source that is at its start.
    pub fn new(source: R, what: What) -> Self {
        Self { source, decoder: Decoder::new(what), buffer: Vec::new(), at: 0 }
    }

    /// Goes on with `what`, which follows in the same source.
    pub fn follow_with(&mut self, what: What) {
        self.decoder = Decoder::new(what);
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Reads the start of `what`, for callers that tell an error there from later ones.
    ///
    /// # Errors
    /// The stream starts with something else, or ends.
    pub fn read_banner(&mut self) -> Result<(), Unreadable> {
        if self.decoder.part() == Part::Banner { self.step().map(drop) } else { Ok(()) }
    }

    /// The next item; `None` after the end.
    ///
    /// # Errors
    /// The stream ends in the middle, is not such a stream, or cannot be read.
    pub fn next_item(&mut self) -> Result<Option<Item<'_>>, Unreadable> {
        while !self.decoder.ended() {
            let before = self.decoder.part();
            // Decodes into the buffer of this reader, which the item may point into.
            let whole = self.fill(self.decoder.wants())?;
            let fed = self.decoder.feed(&self.buffer[..whole]);
            match fed.map_err(|refusal| refused(before, refusal))? {
                // The borrow checker does not see that the loop ends with the item.
                Some(Item::Data { offset, .. }) => {
                    return Ok(Some(Item::Data { offset, bytes: &self.buffer[..whole] }));
                }
                Some(Item::End) => return Ok(Some(Item::End)),
                Some(item) => return Ok(Some(owned(item))),
                None => {}
            }
        }
        Ok(None)
    }

    /// Passes over the data of the write that was read last.
    ///
    /// # Errors
    /// The stream ends before the data does.
    pub fn pass_data(&mut self, pass: impl FnOnce(&mut R, u64) -> bool) -> Result<(), Unreadable> {
        let bytes = self.decoder.pass_data();
        self.at += bytes;
        match pass(&mut self.source, bytes) {
            true => Ok(()),
            false => Err(Unreadable { part: Part::Data, why: Why::Ended }),
        }
    }

    /// The next piece of the data of a write, of at most `bytes_max`; empty if there is no more.
    ///
    /// # Errors
    /// The stream ends before the data does.
    pub fn next_data(&mut self, bytes_max: u64) -> Result<&[u8], Unreadable> {
        if self.decoder.part() != Part::Data {
            return Ok(&[]);
        }
        let wanted = usize::try_from(bytes_max).unwrap_or(usize::MAX).min(self.decoder.wants());
        let whole = self.fill(wanted)?;
        // Data is never refused.
        let _ = self.decoder.feed(&self.buffer[..whole]);
        Ok(&self.buffer[..whole])
    }

    fn step(&mut self) -> Result<(), Unreadable> {
        let part = self.decoder.part();
        let whole = self.fill(self.decoder.wants())?;
        let fed = self.decoder.feed(&self.buffer[..whole]);
        fed.map(drop).map_err(|refusal| refused(part, refusal))
    }

    /// Reads as much of the part that the decoder wants, and returns how many bytes that is.
    fn fill(&mut self, wanted: usize) -> Result<usize, Unreadable> {
        let part = self.decoder.part();
        // Grows with what comes, not with what is announced.
        let mut filled = 0;
        while filled < wanted {
            if self.buffer.len() == filled {
                let more = (filled.max(GROWN_BYTES_MIN)).min(wanted - filled);
                self.buffer.resize(filled + more, 0);
            }
            let end = self.buffer.len().min(wanted);
            match self.source.read(&mut self.buffer[filled..end]) {
                Ok(0) => return Err(Unreadable { part, why: Why::Ended }),
                Ok(bytes) => filled += bytes,
                Err(error) => return Err(Unreadable { part, why: Why::Source(error) }),
            }
        }
        self.at += filled as u64;
        Ok(filled)
    }
}

/// First size of the buffer, in bytes.
const GROWN_BYTES_MIN: usize = 4096;

fn refused(part: Part, refusal: Refusal) -> Unreadable {
    Unreadable { part, why: Why::Refused(refusal) }
}

/// An item that points into no buffer.
fn owned(item: Item<'_>) -> Item<'static> {
    match item {
        Item::Data { offset, .. } => Item::Data { offset, bytes: &[] },
        Item::From(name) => Item::From(name),
        Item::To(name) => Item::To(name),
        Item::Protected(protected) => Item::Protected(protected),
        Item::Size(bytes) => Item::Size(bytes),
        Item::Write { offset, length } => Item::Write { offset, length },
        Item::Zero { offset, length } => Item::Zero { offset, length },
        Item::Order(order) => Item::Order(order),
        Item::Features(bits) => Item::Features(bits),
        Item::StripeUnit(bytes) => Item::StripeUnit(bytes),
        Item::StripeCount(count) => Item::StripeCount(count),
        Item::Meta(key, value) => Item::Meta(key, value),
        Item::Unknown(tag) => Item::Unknown(tag),
        Item::Count(count) => Item::Count(count),
        Item::End => Item::End,
    }
}
