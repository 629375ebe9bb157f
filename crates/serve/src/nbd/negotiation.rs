//! The negotiation (fixed newstyle) as a state machine without I/O: bytes in, bytes out.
//!
//! | state    | gets                          | then                                              |
//! |----------|-------------------------------|---------------------------------------------------|
//! | Flags    | client flags                  | Option; unknown flags close                       |
//! | Option   | option header                 | Data; a wrong magic closes                        |
//! | Data     | the option's data             | reply and Option; LIST, INFO, GO, EXPORT_NAME: Ask |
//! | Skip     | data of an option too long    | ERR_TOO_BIG and Option                            |
//! | Ask      | nothing, until it is answered | Option, or over                                   |
//!
//! Where an export is needed, the caller is asked for it ([`Next`]) and answers later
//! ([`Negotiation::answer_list`], [`Negotiation::answer_export`]).
//!
//! Invariant: whatever a client sends, this holds at most [`OPTION_BYTES_MAX`] bytes of it. Apart from the
//! answer to LIST, a call writes at most a few times that.

use marcot::{Error, ErrorKind};

use super::exports::ExportName;
use super::wire::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, BLOCK_BYTES_PREFERRED, CLIENT_FIXED_NEWSTYLE,
    CLIENT_NO_ZEROES, EXPORT_NAME_PADDING_BYTES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES,
    GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, PAYLOAD_BYTES_MAX, STRING_BYTES_MAX, info,
    option, option_reply, transmission_flag,
};

/// Limit on the data of an option, in bytes: a name and hundreds of queries or requests.
pub const OPTION_BYTES_MAX: usize = 16 << 10;

/// Limit on the reply to LIST, in bytes: about a hundred thousand names. Further names are left out.
pub const LIST_BYTES_MAX: usize = 4 << 20;

/// Limit on the options of one negotiation; a client needs about ten.
const OPTIONS_MAX: u32 = 1024;

/// Bytes before an option's data: magic, option, length.
const OPTION_HEADER_BYTES: usize = 16;

/// Bytes of a reply to an option besides its data: magic, option, kind, length.
const OPTION_REPLY_BYTES: usize = 20;

/// What must happen before the negotiation goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// More bytes from the client.
    Receive,
    /// An answer by [`Negotiation::answer_list`].
    List,
    /// An answer by [`Negotiation::answer_export`] for the export with this name.
    Export(String),
    /// Requests follow. The export is that of the last [`Next::Export`].
    Transmit {
        /// Replies may come in chunks.
        structured_replies: bool,
        /// The client wants `base:allocation`.
        allocation_context: bool,
    },
    /// Close the connection once the output is sent.
    Close,
}

/// What a client learns about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its full name and its description.
    pub name: ExportName,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Nothing can be written.
    pub read_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Flags,
    Option,
    Data { option: u32, bytes: usize },
    Skip { option: u32, bytes: u64 },
    AskList,
    AskExport(Asked),
    Over,
}

/// The option for which an export was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    option: u32,
    wants_name: bool,
    wants_description: bool,
    wants_block_size: bool,
}

/// One client's negotiation.
#[derive(Debug)]
pub struct Negotiation {
    state: State,
    options: u32,
    no_zeroes: bool,
    structured_replies: bool,
    /// The export for which `base:allocation` was selected.
    context_of: Option<String>,
    /// The export asked for.
    export: String,
}

impl Negotiation {
    /// Begins a negotiation, and appends the server's greeting to `output`.
    #[must_use]
    pub fn new(output: &mut Vec<u8>) -> Self {
        output.extend(GREETING_MAGIC.to_be_bytes());
        output.extend(OPTION_MAGIC.to_be_bytes());
        output.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        Self {
            state: State::Flags,
            options: 0,
            no_zeroes: false,
            structured_replies: false,
            context_of: None,
            export: String::new(),
        }
    }

    /// Takes bytes off the front of `input` and appends replies to `output`. Returns how many bytes it
    /// took, and what comes next. Call it again with the rest after each answer, and with more bytes after
    /// [`Next::Receive`].
    pub fn advance(&mut self, input: &[u8], output: &mut Vec<u8>) -> (usize, Next) {
        let mut taken = 0;
        loop {
            let rest = &input[taken..];
            let (bytes, next) = self.step(rest, output);
            taken += bytes;
            match next {
                Some(next) => return (taken, next),
                None if taken == input.len() && !self.steps_without_input() => {
                    return (taken, Next::Receive);
                }
                None => {}
            }
        }
    }

    fn steps_without_input(&self) -> bool {
        match self.state {
            State::Flags | State::Option => false,
            State::Data { bytes, .. } => bytes == 0,
            State::Skip { bytes, .. } => bytes == 0,
            State::AskList | State::AskExport(_) | State::Over => true,
        }
    }

    /// Makes one transition. `None` means to go on with the next one.
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> (usize, Option<Next>) {
        match self.state {
            State::Flags => match input.first_chunk::<4>() {
                Some(flags) => (4, self.take_flags(u32::from_be_bytes(*flags))),
                None => (0, Some(Next::Receive)),
            },
            State::Option => match input.first_chunk::<OPTION_HEADER_BYTES>() {
                Some(header) => (OPTION_HEADER_BYTES, self.take_header(header)),
                None => (0, Some(Next::Receive)),
            },
            State::Data { option, bytes } => match input.get(..bytes) {
                Some(data) => (bytes, self.take_option(option, data, output)),
                None => (0, Some(Next::Receive)),
            },
            State::Skip { option, bytes } => self.skip(option, bytes, input, output),
            State::AskList => (0, Some(Next::List)),
            State::AskExport(_) => (0, Some(Next::Export(self.export.clone()))),
            State::Over => (0, Some(Next::Close)),
        }
    }

    fn close(&mut self) -> Option<Next> {
        self.state = State::Over;
        Some(Next::Close)
    }

    fn take_flags(&mut self, flags: u32) -> Option<Next> {
        if flags & !(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES) != 0 {
            return self.close();
        }
        self.no_zeroes = flags & CLIENT_NO_ZEROES != 0;
        self.state = State::Option;
        None
    }

    fn take_header(&mut self, header: &[u8; OPTION_HEADER_BYTES]) -> Option<Next> {
        let [m0, m1, m2, m3, m4, m5, m6, m7, o0, o1, o2, o3, l0, l1, l2, l3] = *header;
        let magic = u64::from_be_bytes([m0, m1, m2, m3, m4, m5, m6, m7]);
        let option = u32::from_be_bytes([o0, o1, o2, o3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        self.options += 1;
        if magic != OPTION_MAGIC || self.options > OPTIONS_MAX {
            return self.close();
        }
        self.state = match usize::try_from(length) {
            Ok(bytes) if bytes <= OPTION_BYTES_MAX => State::Data { option, bytes },
            _ => State::Skip { option, bytes: u64::from(length) },
        };
        None
    }

    fn skip(
        &mut self,
        option: u32,
        bytes: u64,
        input: &[u8],
        output: &mut Vec<u8>,
    ) -> (usize, Option<Next>) {
        let here = input.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
        let left = bytes - here as u64;
        if left > 0 {
            self.state = State::Skip { option, bytes: left };
            return (here, None);
        }
        if option == option::EXPORT_NAME {
            // This option has no way to say no.
            return (here, self.close());
        }
        self.state = State::Option;
        refuse(output, option, option_reply::ERR_TOO_BIG, "the option is too long");
        (here, None)
    }

    fn take_option(&mut self, option: u32, data: &[u8], output: &mut Vec<u8>) -> Option<Next> {
        self.state = State::Option;
        match option {
            option::EXPORT_NAME => self.take_export_name(data),
            option::ABORT => {
                reply(output, option, option_reply::ACK, &[]);
                self.close()
            }
            option::LIST | option::STRUCTURED_REPLY if !data.is_empty() => {
                refuse(output, option, option_reply::ERR_INVALID, "this option takes no data");
                None
            }
            option::LIST => {
                self.state = State::AskList;
                None
            }
            option::STRUCTURED_REPLY => {
                self.structured_replies = true;
                reply(output, option, option_reply::ACK, &[]);
                None
            }
            option::INFO | option::GO => self.take_go(option, data, output),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.take_contexts(option, data, output)
            }
            option::STARTTLS => {
                refuse(output, option, option_reply::ERR_UNSUP, "this server has no TLS");
                None
            }
            _ => {
                refuse(output, option, option_reply::ERR_UNSUP, "unknown option");
                None
            }
        }
    }

    fn take_export_name(&mut self, data: &[u8]) -> Option<Next> {
        let name = str::from_utf8(data).ok().filter(|name| name.len() <= STRING_BYTES_MAX);
        let Some(name) = name else { return self.close() };
        self.ask(name.to_owned(), option::EXPORT_NAME, &[]);
        None
    }

    fn take_go(&mut self, option: u32, data: &[u8], output: &mut Vec<u8>) -> Option<Next> {
        let mut fields = Fields(data);
        let request = fields.string().and_then(|name| {
            let count = fields.u16()?;
            let infos: Option<Vec<u16>> = (0..count).map(|_| fields.u16()).collect();
            fields.is_empty().then_some((name, infos?))
        });
        match request {
            Some((name, infos)) => self.ask(name.to_owned(), option, &infos),
            None => refuse(output, option, option_reply::ERR_INVALID, "malformed option"),
        }
        None
    }

    fn ask(&mut self, export: String, option: u32, infos: &[u16]) {
        self.export = export;
        self.state = State::AskExport(Asked {
            option,
            wants_name: infos.contains(&info::NAME),
            wants_description: infos.contains(&info::DESCRIPTION),
            wants_block_size: infos.contains(&info::BLOCK_SIZE),
        });
    }

    /// Handles the options for metadata contexts. Contexts are the same for every export, so the export need
    /// not exist yet. The GO that must follow finds a wrong name.
    fn take_contexts(&mut self, option: u32, data: &[u8], output: &mut Vec<u8>) -> Option<Next> {
        let set = option == option::SET_META_CONTEXT;
        if set {
            self.context_of = None;
        }
        if !self.structured_replies {
            let why = "metadata contexts need structured replies";
            refuse(output, option, option_reply::ERR_INVALID, why);
            return None;
        }
        let Some((export, queries)) = parse_queries(data) else {
            refuse(output, option, option_reply::ERR_INVALID, "malformed option");
            return None;
        };
        let selected = if set {
            queries.contains(&BASE_ALLOCATION)
        } else {
            queries.is_empty() || queries.iter().any(|q| matches!(*q, "base:" | BASE_ALLOCATION))
        };
        if selected {
            let id = if set { BASE_ALLOCATION_ID } else { 0 };
            let mut context = id.to_be_bytes().to_vec();
            context.extend(BASE_ALLOCATION.as_bytes());
            reply(output, option, option_reply::META_CONTEXT, &context);
            if set {
                self.context_of = Some(export.to_owned());
            }
        }
        reply(output, option, option_reply::ACK, &[]);
        None
    }

    /// Answers [`Next::List`].
    pub fn answer_list(&mut self, exports: Result<&[ExportName], &Error>, output: &mut Vec<u8>) {
        if self.state != State::AskList {
            return;
        }
        match exports {
            Ok(exports) => {
                self.list_is_answered();
                output.extend(list_reply(exports));
            }
            Err(error) => self.refuse_list(error, output),
        }
    }

    /// Notes that the caller has answered [`Next::List`] by a [`list_reply`].
    pub(super) fn list_is_answered(&mut self) {
        if self.state == State::AskList {
            self.state = State::Option;
        }
    }

    /// Answers [`Next::List`] with an error.
    pub(super) fn refuse_list(&mut self, error: &Error, output: &mut Vec<u8>) {
        if self.state == State::AskList {
            self.state = State::Option;
            refuse(output, option::LIST, option_reply::ERR_POLICY, told(error));
        }
    }

    /// Answers [`Next::Export`]. Returns what comes next. Where that is [`Next::Receive`], call
    /// [`Self::advance`] again.
    pub fn answer_export(
        &mut self,
        export: Result<&ExportInfo, &Error>,
        output: &mut Vec<u8>,
    ) -> Next {
        let State::AskExport(asked) = self.state else { return Next::Receive };
        let export = match export {
            Ok(export) => export,
            Err(error) => return self.refuse_export(asked.option, error, output),
        };
        if asked.option == option::EXPORT_NAME {
            output.extend(export.size_bytes.to_be_bytes());
            output.extend(export.transmission_flags().to_be_bytes());
            if !self.no_zeroes {
                output.extend([0; EXPORT_NAME_PADDING_BYTES]);
            }
            return self.transmit();
        }
        tell_infos(&asked, export, output);
        reply(output, asked.option, option_reply::ACK, &[]);
        if asked.option == option::GO {
            return self.transmit();
        }
        self.state = State::Option;
        Next::Receive
    }

    fn transmit(&mut self) -> Next {
        self.state = State::Over;
        Next::Transmit {
            structured_replies: self.structured_replies,
            allocation_context: self.context_of.as_ref() == Some(&self.export),
        }
    }

    fn refuse_export(&mut self, option: u32, error: &Error, output: &mut Vec<u8>) -> Next {
        if option == option::EXPORT_NAME {
            // This option has no way to say no.
            self.state = State::Over;
            return Next::Close;
        }
        self.state = State::Option;
        let kind = match error.kind() {
            ErrorKind::NotFound => option_reply::ERR_UNKNOWN,
            ErrorKind::Fenced | ErrorKind::Interrupted => option_reply::ERR_SHUTDOWN,
            _ => option_reply::ERR_POLICY,
        };
        refuse(output, option, kind, told(error));
        Next::Receive
    }
}

impl ExportInfo {
    fn transmission_flags(&self) -> u16 {
        use transmission_flag as flag;
        let read_only = if self.read_only { flag::READ_ONLY } else { 0 };
        read_only
            | flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::SEND_TRIM
            | flag::SEND_WRITE_ZEROES
            | flag::SEND_DF
            | flag::CAN_MULTI_CONN
            | flag::SEND_CACHE
            | flag::SEND_FAST_ZERO
    }
}

fn tell_infos(asked: &Asked, export: &ExportInfo, output: &mut Vec<u8>) {
    let mut tell = |kind: u16, content: &[&[u8]]| {
        let mut data = kind.to_be_bytes().to_vec();
        content.iter().for_each(|part| data.extend(*part));
        reply(output, asked.option, option_reply::INFO, &data);
    };
    let flags = export.transmission_flags().to_be_bytes();
    tell(info::EXPORT, &[&export.size_bytes.to_be_bytes(), &flags]);
    if asked.wants_name {
        tell(info::NAME, &[cut(&export.name.name).as_bytes()]);
    }
    if asked.wants_description && !export.name.description.is_empty() {
        tell(info::DESCRIPTION, &[cut(&export.name.description).as_bytes()]);
    }
    if asked.wants_block_size {
        let sizes = [1, BLOCK_BYTES_PREFERRED, PAYLOAD_BYTES_MAX].map(u32::to_be_bytes);
        tell(info::BLOCK_SIZE, &[sizes.as_flattened()]);
    }
}

/// The reply to LIST: the same for every client.
#[must_use]
pub fn list_reply(exports: &[ExportName]) -> Vec<u8> {
    let mut output = Vec::new();
    for (told, export) in exports.iter().enumerate() {
        let entry = server_entry(export);
        if output.len() + entry.len() + 2 * OPTION_REPLY_BYTES > LIST_BYTES_MAX {
            let left_out = exports.len() - told;
            tracing::warn!(told, left_out, "the list of exports is too long for one reply");
            break;
        }
        reply(&mut output, option::LIST, option_reply::SERVER, &entry);
    }
    reply(&mut output, option::LIST, option_reply::ACK, &[]);
    output
}

/// The message about an error for a client. The error itself may name files of this machine and images that
/// the client must not know about. So it is only logged.
fn told(error: &Error) -> &str {
    match error.kind() {
        ErrorKind::NotFound => "the export does not exist",
        ErrorKind::Invalid | ErrorKind::NameTooLong => "this is no name of an export",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnly => "the server may not open the export",
        // This message names the image that the client asked for, and the process that has it open.
        ErrorKind::Owned => error.message(),
        ErrorKind::Busy => "the server cannot open the export now; try again later",
        ErrorKind::Corrupt | ErrorKind::NewerFormat => "the server cannot read the export",
        ErrorKind::Fenced | ErrorKind::Interrupted => "the server is being stopped",
        _ => "the server cannot open the export; its log says why",
    }
}

fn server_entry(export: &ExportName) -> Vec<u8> {
    let name = cut(&export.name).as_bytes();
    // A string of the protocol is at most 4096 bytes long.
    let mut entry = (name.len() as u32).to_be_bytes().to_vec();
    entry.extend(name);
    entry.extend(cut(&export.description).as_bytes());
    entry
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(STRING_BYTES_MAX)]
}

fn reply(output: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    output.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    output.extend(option.to_be_bytes());
    output.extend(kind.to_be_bytes());
    // Every caller's data is a few kilobytes at most.
    output.extend((data.len() as u32).to_be_bytes());
    output.extend(data);
}

fn refuse(output: &mut Vec<u8>, option: u32, kind: u32, message: &str) {
    reply(output, option, kind, cut(message).as_bytes());
}

/// The export and the queries of a metadata context option.
fn parse_queries(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut fields = Fields(data);
    let export = fields.string()?;
    let count = fields.u32()?;
    let queries: Option<Vec<&str>> = (0..count).map(|_| fields.string()).collect();
    fields.is_empty().then_some((export, queries?))
}

/// Cuts fields off the front of an option's data.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn string(&mut self) -> Option<&'a str> {
        let bytes = usize::try_from(self.u32()?).ok()?;
        if bytes > STRING_BYTES_MAX {
            return None;
        }
        let (field, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        str::from_utf8(field).ok()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests;
