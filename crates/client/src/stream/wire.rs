//! The bytes of RBD's streams, encoded and decoded. No input and no output happens here.
//!
//! [`Decoder`] says how many bytes it wants next ([`Decoder::wants`]), and makes an [`Item`] of them. It never
//! wants more than [`PIECE_BYTES_MAX`] at a time, whatever a stream announces.

/// Largest number of bytes that a decoder wants at a time; longer data comes in pieces.
pub const PIECE_BYTES_MAX: usize = 4 << 20;
/// Longest name of a snapshot in a stream, in bytes. RBD refuses longer ones too.
pub const NAME_BYTES_MAX: u32 = 4096;
/// Longest key or value of metadata, in bytes: what an image can have.
pub const META_BYTES_MAX: u32 = 64 << 10;

/// The length that RBD writes into the record of a snapshot's protection, whose content is one byte.
const PROTECTED_LENGTH: u64 = 8;
/// Bytes of the two numbers of an extent.
const EXTENT_BYTES: usize = 16;

/// How the records of a difference are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Records have no length: `export-diff`.
    One,
    /// Each record but the last has its length: the differences of `export --export-format 2`.
    Two,
}

/// What is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A difference.
    Difference(Form),
    /// The properties at the start of an image.
    Properties,
    /// The number of differences that follow the properties.
    Count,
}

impl What {
    /// The bytes that it starts with.
    #[must_use]
    pub fn banner(self) -> &'static [u8] {
        match self {
            Self::Difference(Form::One) => b"rbd diff v1\n",
            Self::Difference(Form::Two) => b"rbd diff v2\n",
            Self::Properties => b"rbd image v2\n",
            Self::Count => b"rbd image diffs v2\n",
        }
    }

    fn end(self) -> u8 {
        if self == Self::Properties { b'E' } else { b'e' }
    }

    fn sized(self) -> bool {
        self != Self::Difference(Form::One)
    }
}

/// A part of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item<'a> {
    /// The snapshot with which the difference begins.
    From(String),
    /// The snapshot to take at the end.
    To(String),
    /// Whether that snapshot is protected.
    Protected(bool),
    /// The size of the image in bytes.
    Size(u64),
    /// Data follows: so many bytes for this place. [`Item::Data`] has them.
    Write {
        /// First byte in the image.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// A piece of data.
    Data {
        /// Its place in the image.
        offset: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// A range that reads as zeros.
    Zero {
        /// First byte in the image.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// log2 of the size of objects.
    Order(u64),
    /// Features, a bit for each.
    Features(u64),
    /// Bytes of a stripe.
    StripeUnit(u64),
    /// Objects that stripes are spread over.
    StripeCount(u64),
    /// A key of the metadata and its value.
    Meta(String, String),
    /// A property that is not known; its content is skipped.
    Unknown(u8),
    /// How many differences follow.
    Count(u64),
    /// Nothing follows.
    End,
}

/// The part of a stream that was wanted when it ended or could not be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The bytes at the start.
    Banner,
    /// The kind of a record.
    Tag,
    /// The length of a record.
    Length,
    /// The snapshot with which a difference begins.
    From,
    /// The snapshot with which it ends.
    To,
    /// Its protection.
    Protected,
    /// The size of the image.
    Size,
    /// The place and length of data or zeros.
    Extent,
    /// Data.
    Data,
    /// A property of an image.
    Property,
    /// A key of metadata.
    MetaKey,
    /// A value of metadata.
    MetaValue,
    /// The content of a property that is not known.
    Skipped,
    /// The number of differences.
    Count,
}

/// Why bytes are not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// They do not start as they should, but with these bytes.
    Banner(Vec<u8>),
    /// A text is longer than such a text may be.
    TooLong,
    /// A text is not UTF-8.
    NotText,
    /// No record of a difference begins like this.
    Tag(u8),
    /// A record is not as long as it says.
    Length(u8),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Banner,
    Tag,
    Length(u8),
    /// Fixed content of a record.
    Body(u8),
    /// The length of a text of at most so many bytes. The key of metadata comes before its value.
    TextLength(u8, u32, Option<String>),
    Text(u8, u32, Option<String>),
    Data {
        offset: u64,
        left: u64,
    },
    Skip {
        left: u64,
    },
    Count,
    Ended,
}

/// Decodes one thing of a stream.
#[derive(Debug, Clone)]
pub struct Decoder {
    what: What,
    state: State,
    /// The length of the record, where it has one.
    declared: u64,
}

fn u32_of(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_le_bytes)
}

fn u64_of(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

/// As many of `left` bytes as are wanted at a time.
fn piece(left: u64) -> usize {
    usize::try_from(left).unwrap_or(PIECE_BYTES_MAX).min(PIECE_BYTES_MAX)
}

impl Decoder {
    /// A decoder at the start of `what`.
    #[must_use]
    pub fn new(what: What) -> Self {
        Self { what, state: State::Banner, declared: 0 }
    }

    /// How many bytes it wants next; 0 after the end.
    #[must_use]
    pub fn wants(&self) -> usize {
        match &self.state {
            State::Banner => self.what.banner().len(),
            State::Tag => 1,
            State::Length(_) | State::Count => 8,
            State::Body(b'p') => 1,
            State::Body(b'w' | b'z') => EXTENT_BYTES,
            State::Body(_) => 8,
            State::TextLength(..) => 4,
            State::Text(_, length, _) => *length as usize,
            State::Data { left, .. } | State::Skip { left } => piece(*left),
            State::Ended => 0,
        }
    }

    /// What it wants next.
    #[must_use]
    pub fn part(&self) -> Part {
        let text = |tag, key: &Option<String>| match (tag, key) {
            (b'f', _) => Part::From,
            (b't', _) => Part::To,
            (_, None) => Part::MetaKey,
            (_, Some(_)) => Part::MetaValue,
        };
        match &self.state {
            State::Banner => Part::Banner,
            State::Tag | State::Ended => Part::Tag,
            State::Length(_) => Part::Length,
            State::Body(b'p') => Part::Protected,
            State::Body(b's') => Part::Size,
            State::Body(b'w' | b'z') => Part::Extent,
            State::Body(_) => Part::Property,
            State::TextLength(tag, _, key) | State::Text(tag, _, key) => text(*tag, key),
            State::Data { .. } => Part::Data,
            State::Skip { .. } => Part::Skipped,
            State::Count => Part::Count,
        }
    }

    /// True after the last item.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Passes over the data that it wants next, and returns how many bytes the caller has to leave out.
    pub fn pass_data(&mut self) -> u64 {
        match self.state {
            State::Data { left, .. } => {
                self.state = State::Tag;
                left
            }
            _ => 0,
        }
    }

    /// Takes the bytes that it wants: exactly [`Self::wants`] of them.
    ///
    /// # Errors
    /// The bytes are not part of such a stream. Nothing can be decoded after that.
    pub fn feed<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<Item<'a>>, Refusal> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Banner if bytes != self.what.banner() => Err(Refusal::Banner(bytes.to_vec())),
            State::Banner => {
                self.state = if self.what == What::Count { State::Count } else { State::Tag };
                Ok(None)
            }
            State::Count => Ok(Some(Item::Count(u64_of(bytes)))),
            State::Tag => self.begin(bytes.first().copied().unwrap_or_default()),
            State::Length(tag) => {
                self.declared = u64_of(bytes);
                self.enter(tag)
            }
            State::Body(tag) => self.body(tag, bytes).map(Some),
            State::TextLength(tag, most, key) => {
                let length = u32_of(bytes);
                if length > most {
                    return Err(Refusal::TooLong);
                }
                self.state = State::Text(tag, length, key);
                if length == 0 { self.feed(&[]) } else { Ok(None) }
            }
            State::Text(tag, _, key) => self.text(tag, key, bytes),
            State::Data { offset, left } => {
                let length = bytes.len() as u64;
                self.state = match left.saturating_sub(length) {
                    0 => State::Tag,
                    left => State::Data { offset: offset.saturating_add(length), left },
                };
                Ok(Some(Item::Data { offset, bytes }))
            }
            State::Skip { left } => {
                self.state = match left.saturating_sub(bytes.len() as u64) {
                    0 => State::Tag,
                    left => State::Skip { left },
                };
                Ok(None)
            }
            State::Ended => Ok(None),
        }
    }

    fn begin(&mut self, tag: u8) -> Result<Option<Item<'static>>, Refusal> {
        if tag == self.what.end() {
            return Ok(Some(Item::End));
        }
        if self.what.sized() {
            self.state = State::Length(tag);
            return Ok(None);
        }
        self.enter(tag)
    }

    /// Chooses what follows a tag and the length of its record.
    fn enter(&mut self, tag: u8) -> Result<Option<Item<'static>>, Refusal> {
        let known: &[u8] = match self.what {
            What::Properties => b"OTUCM",
            _ => b"ftpswz",
        };
        if !known.contains(&tag) {
            // A difference with a record that is not known cannot be imported faithfully.
            if self.what != What::Properties {
                return Err(Refusal::Tag(tag));
            }
            self.state = match self.declared {
                0 => State::Tag,
                left => State::Skip { left },
            };
            return Ok(Some(Item::Unknown(tag)));
        }
        self.state = match tag {
            b'f' | b't' => State::TextLength(tag, NAME_BYTES_MAX, None),
            b'M' => State::TextLength(tag, self.meta_bytes_max(), None),
            _ => State::Body(tag),
        };
        Ok(None)
    }

    /// The longest text of a record of metadata: no longer than the record.
    fn meta_bytes_max(&self) -> u32 {
        u32::try_from(self.declared).unwrap_or(u32::MAX).min(META_BYTES_MAX)
    }

    /// Fails if a record of `length` bytes says that it has another length.
    fn check_length(&self, tag: u8, length: u64) -> Result<(), Refusal> {
        match self.what.sized() && self.declared != length {
            true => Err(Refusal::Length(tag)),
            false => Ok(()),
        }
    }

    fn body(&mut self, tag: u8, bytes: &[u8]) -> Result<Item<'static>, Refusal> {
        self.state = State::Tag;
        if matches!(tag, b'w' | b'z') {
            let (offset, length) = bytes.split_at_checked(8).unwrap_or_default();
            let (offset, length) = (u64_of(offset), u64_of(length));
            let data = if tag == b'w' { length } else { 0 };
            self.check_length(tag, data.saturating_add(EXTENT_BYTES as u64))?;
            if tag == b'z' {
                return Ok(Item::Zero { offset, length });
            }
            if length > 0 {
                self.state = State::Data { offset, left: length };
            }
            return Ok(Item::Write { offset, length });
        }
        // RBD says 8 for the one byte of `p`. Whoever corrects that will say 1.
        if tag == b'p' {
            return Ok(Item::Protected(bytes != [0]));
        }
        self.check_length(tag, 8)?;
        let number = u64_of(bytes);
        Ok(match tag {
            b's' => Item::Size(number),
            b'O' => Item::Order(number),
            b'T' => Item::Features(number),
            b'U' => Item::StripeUnit(number),
            _ => Item::StripeCount(number),
        })
    }

    fn text(
        &mut self,
        tag: u8,
        key: Option<String>,
        bytes: &[u8],
    ) -> Result<Option<Item<'static>>, Refusal> {
        let text = String::from_utf8(bytes.to_vec()).map_err(|_| Refusal::NotText)?;
        let length = 4 + text.len() as u64;
        self.state = State::Tag;
        Ok(Some(match (tag, key) {
            (b'M', None) => {
                self.state = State::TextLength(tag, self.meta_bytes_max(), Some(text));
                return Ok(None);
            }
            (b'M', Some(key)) => {
                self.check_length(tag, 4 + key.len() as u64 + length)?;
                Item::Meta(key, text)
            }
            (b'f', _) => {
                self.check_length(tag, length)?;
                Item::From(text)
            }
            _ => {
                self.check_length(tag, length)?;
                Item::To(text)
            }
        }))
    }
}

/// Appends an item as it stands in `what`. [`Item::Write`] is to be followed by its data, in any number of
/// pieces. Items that `what` does not have add nothing.
pub fn encode(what: What, item: &Item<'_>, out: &mut Vec<u8>) {
    let number = |number: u64| number.to_le_bytes().to_vec();
    let text = |text: &str| {
        // Nobody has a text of 4 GiB: it came from a head or a command line.
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        [&length.to_le_bytes()[..], text.as_bytes()].concat()
    };
    let extent = |offset: u64, length: u64| [offset.to_le_bytes(), length.to_le_bytes()].concat();
    let (tag, body, length) = match item {
        Item::End => return out.push(what.end()),
        Item::Count(count) => return out.extend(count.to_le_bytes()),
        Item::Data { bytes, .. } => return out.extend_from_slice(bytes),
        Item::Unknown(_) => return,
        Item::From(name) => (b'f', text(name), None),
        Item::To(name) => (b't', text(name), None),
        Item::Protected(protected) => (b'p', vec![u8::from(*protected)], Some(PROTECTED_LENGTH)),
        Item::Size(bytes) => (b's', number(*bytes), None),
        Item::Write { offset, length } => {
            let body = extent(*offset, *length);
            (b'w', body, Some(length.saturating_add(EXTENT_BYTES as u64)))
        }
        Item::Zero { offset, length } => (b'z', extent(*offset, *length), None),
        Item::Order(order) => (b'O', number(*order), None),
        Item::Features(bits) => (b'T', number(*bits), None),
        Item::StripeUnit(bytes) => (b'U', number(*bytes), None),
        Item::StripeCount(count) => (b'C', number(*count), None),
        Item::Meta(key, value) => (b'M', [text(key), text(value)].concat(), None),
    };
    out.push(tag);
    if what.sized() {
        out.extend(length.unwrap_or(body.len() as u64).to_le_bytes());
    }
    out.extend(body);
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
