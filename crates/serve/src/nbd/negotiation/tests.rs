//! The negotiation with clients that send anything.

use proptest::prelude::*;

use super::*;

fn disk() -> ExportInfo {
    let name = ExportName { name: "disk".to_owned(), description: "a disk".to_owned() };
    ExportInfo { name, size_bytes: 1 << 30, read_only: false }
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((infos.len() as u16).to_be_bytes());
    infos.iter().for_each(|info| data.extend(info.to_be_bytes()));
    data
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

/// Feeds `input` in pieces of `step` bytes and answers the questions. Returns the output after the greeting,
/// and how it ended.
fn converse(input: &[u8], step: usize) -> (Vec<u8>, Next) {
    let mut output = Vec::new();
    let mut negotiation = Negotiation::new(&mut output);
    assert_eq!(output.len(), 18);
    output.clear();
    let mut buffer = Vec::new();
    let mut pieces = input.chunks(step);
    loop {
        let (taken, next) = negotiation.advance(&buffer, &mut output);
        buffer.drain(..taken);
        match next {
            Next::Receive => match pieces.next() {
                Some(piece) => buffer.extend(piece),
                None => return (output, Next::Receive),
            },
            Next::List => negotiation.answer_list(Ok(&[disk().name]), &mut output),
            Next::Export(name) => {
                let missing = Error::new(ErrorKind::NotFound, "no such export");
                let disk = disk();
                let known = if name == "disk" { Ok(&disk) } else { Err(&missing) };
                match negotiation.answer_export(known, &mut output) {
                    Next::Receive => {}
                    end => return (output, end),
                }
            }
            end => return (output, end),
        }
    }
}

/// Option, type and data of each reply.
fn replies(mut output: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while !output.is_empty() {
        let word = |at: usize| u32::from_be_bytes(output[at..at + 4].try_into().unwrap());
        assert_eq!(output[..8], OPTION_REPLY_MAGIC.to_be_bytes());
        let end = 20 + word(16) as usize;
        replies.push((word(8), word(12), output[20..end].to_vec()));
        output = &output[end..];
    }
    replies
}

fn kinds(output: &[u8]) -> Vec<u32> {
    replies(output).into_iter().map(|(_, kind, _)| kind).collect()
}

fn session(options: &[Vec<u8>]) -> Vec<u8> {
    let flags = CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES;
    [&flags.to_be_bytes()[..], &options.concat()].concat()
}

#[test]
fn a_modern_client_gets_everything_whatever_the_pieces() {
    let input = session(&[
        option(option::STARTTLS, &[]),
        option(option::EXTENDED_HEADERS, &[]),
        option(option::STRUCTURED_REPLY, &[]),
        option(option::LIST, &[]),
        option(option::LIST_META_CONTEXT, &contexts("disk", &[])),
        option(option::SET_META_CONTEXT, &contexts("disk", &["qemu:x", BASE_ALLOCATION])),
        option(option::INFO, &go("disk", &[info::NAME, info::DESCRIPTION])),
        option(option::GO, &go("disk", &[info::BLOCK_SIZE, 99])),
    ]);
    let (whole, end) = converse(&input, input.len());
    assert_eq!(end, Next::Transmit { structured_replies: true, allocation_context: true });
    use option_reply::{ACK, ERR_UNSUP, INFO, META_CONTEXT, SERVER};
    let want = [
        ERR_UNSUP,
        ERR_UNSUP,
        ACK,
        SERVER,
        ACK,
        META_CONTEXT,
        ACK,
        META_CONTEXT,
        ACK,
        INFO,
        INFO,
        INFO,
        ACK,
        INFO,
        INFO,
        ACK,
    ];
    assert_eq!(kinds(&whole), want);
    for step in [1, 3, 17] {
        assert_eq!(converse(&input, step), (whole.clone(), end.clone()));
    }
}

#[test]
fn export_name_answers_without_a_reply_header() {
    let name = option(option::EXPORT_NAME, b"disk");
    let (output, end) = converse(&session(std::slice::from_ref(&name)), 5);
    assert_eq!(output.len(), 10);
    assert_eq!(output[..8], (1_u64 << 30).to_be_bytes());
    assert_eq!(end, Next::Transmit { structured_replies: false, allocation_context: false });
    let old_client = [&0_u32.to_be_bytes()[..], &name].concat();
    assert_eq!(converse(&old_client, 5).0.len(), 10 + EXPORT_NAME_PADDING_BYTES);
}

#[test]
fn unknown_exports_are_refused_and_export_name_can_only_close() {
    let input = session(&[option(option::GO, &go("nothing", &[])), option(option::ABORT, &[])]);
    let (output, end) = converse(&input, 4);
    assert_eq!(kinds(&output), [option_reply::ERR_UNKNOWN, option_reply::ACK]);
    assert_eq!(end, Next::Close);
    let (output, end) = converse(&session(&[option(option::EXPORT_NAME, b"nothing")]), 4);
    assert_eq!((output.len(), end), (0, Next::Close));
}

#[test]
fn malformed_and_oversized_options_are_refused_one_by_one() {
    let mut long_string = u32::MAX.to_be_bytes().to_vec();
    long_string.extend([0; 4]);
    let input = session(&[
        option(option::GO, b"xx"),
        option(option::GO, &long_string),
        option(option::INFO, &[go("disk", &[]), vec![0]].concat()),
        option(option::LIST, b"data"),
        option(option::SET_META_CONTEXT, &contexts("disk", &[BASE_ALLOCATION])),
        option(77, &vec![1; OPTION_BYTES_MAX + 1]),
        option(78, &[1; 100]),
        option(option::STRUCTURED_REPLY, &[]),
        option(option::SET_META_CONTEXT, b"\0\0\0"),
    ]);
    let (output, end) = converse(&input, 999);
    use option_reply::{ACK, ERR_INVALID, ERR_TOO_BIG, ERR_UNSUP};
    let want = [
        ERR_INVALID,
        ERR_INVALID,
        ERR_INVALID,
        ERR_INVALID,
        ERR_INVALID,
        ERR_TOO_BIG,
        ERR_UNSUP,
        ACK,
        ERR_INVALID,
    ];
    assert_eq!(kinds(&output), want);
    assert_eq!(end, Next::Receive);
}

#[test]
fn a_context_selected_for_another_export_does_not_count() {
    let input = session(&[
        option(option::STRUCTURED_REPLY, &[]),
        option(option::SET_META_CONTEXT, &contexts("other", &[BASE_ALLOCATION])),
        option(option::GO, &go("disk", &[])),
    ]);
    let end = converse(&input, 64).1;
    assert_eq!(end, Next::Transmit { structured_replies: true, allocation_context: false });
}

#[test]
fn base_is_a_wildcard_in_a_listing_only() {
    for (kind, contexts_told) in [(option::LIST_META_CONTEXT, 1), (option::SET_META_CONTEXT, 0)] {
        let queries = contexts("disk", &["base:"]);
        let input = session(&[option(option::STRUCTURED_REPLY, &[]), option(kind, &queries)]);
        let output = converse(&input, 64).0;
        let told = kinds(&output).iter().filter(|k| **k == option_reply::META_CONTEXT).count();
        assert_eq!(told, contexts_told);
    }
}

#[test]
fn wrong_magic_unknown_flags_and_endless_options_close() {
    assert_eq!(converse(&[0xff; 4], 4).1, Next::Close);
    assert_eq!(converse(&session(&[vec![0; 16]]), 4).1, Next::Close);
    let endless: Vec<Vec<u8>> = (0..=OPTIONS_MAX).map(|_| option(99, &[])).collect();
    assert_eq!(converse(&session(&endless), 1 << 20).1, Next::Close);
}

proptest! {
    #[test]
    fn garbage_never_panics(input in prop::collection::vec(any::<u8>(), 0..512), step in 1..64_usize) {
        converse(&input, step);
        converse(&session(&[input]), step);
    }

    #[test]
    fn any_data_in_any_option_is_answered_or_closes(
        number in 0..12_u32,
        data in prop::collection::vec(any::<u8>(), 0..64),
        step in 1..32_usize,
    ) {
        let structured = option(option::STRUCTURED_REPLY, &[]);
        let (output, end) = converse(&session(&[structured, option(number, &data)]), step);
        prop_assert!(output.len() > 20 || end == Next::Close);
    }
}

#[test]
fn a_list_that_is_too_long_ends_properly() {
    let name = |index: u32| ExportName { name: format!("{index:04000}"), ..ExportName::default() };
    let exports: Vec<ExportName> = (0..2000).map(name).collect();
    let reply = list_reply(&exports);
    assert!(reply.len() <= LIST_BYTES_MAX && reply.len() > LIST_BYTES_MAX - 5000);
    let end = &reply[reply.len() - 20..];
    assert_eq!((&end[12..16], &end[16..]), (&[0, 0, 0, 1][..], &[0; 4][..]), "it ends with ACK");
}
