//! What NBD clients send.

use marcot::{Error, ErrorKind};
use marcot_serve::nbd::ExportName;
use marcot_serve::nbd::negotiation::{ExportInfo, Negotiation, Next};
use marcot_serve::nbd::request::{Limits, Parsed, REQUEST_BYTES, parse};
use marcot_serve::nbd::wire::{REQUEST_MAGIC, command};

/// Turns of one negotiation: more would be a loop that takes nothing.
const TURNS_MAX: usize = 100_000;

/// The same bytes at once and in pieces must lead to the same answers and the same end.
pub fn negotiation(data: &[u8]) {
    let whole = negotiate(data, usize::MAX);
    // The first byte is as good as any to choose the size of the pieces.
    let piece = usize::from(data.first().copied().unwrap_or(0) % 31) + 1;
    assert!(whole == negotiate(data, piece), "pieces of {piece} bytes change the answers");
}

/// The output and how it ended; an end is of no account where bytes ran out first.
fn negotiate(data: &[u8], piece: usize) -> (Vec<u8>, Option<Next>) {
    let mut output = Vec::new();
    let mut negotiation = Negotiation::new(&mut output);
    let export = ExportInfo {
        name: ExportName { name: "rbd/vm".into(), description: "of a test".into() },
        size_bytes: 1 << 30,
        read_only: false,
    };
    let missing = Error::new(ErrorKind::NotFound, "no such export");
    let (mut at, mut end) = (0, piece.min(data.len()));
    for _ in 0..TURNS_MAX {
        let (taken, next) = negotiation.advance(&data[at..end], &mut output);
        assert!(taken <= end - at);
        at += taken;
        let next = match next {
            Next::List => {
                negotiation.answer_list(Ok(std::slice::from_ref(&export.name)), &mut output);
                continue;
            }
            Next::Export(name) => {
                let found = if name.len().is_multiple_of(2) { Ok(&export) } else { Err(&missing) };
                negotiation.answer_export(found, &mut output)
            }
            Next::Receive if end == data.len() => return (output, None),
            Next::Receive => {
                end = end.saturating_add(piece).min(data.len());
                continue;
            }
            over => over,
        };
        if matches!(next, Next::Close | Next::Transmit { .. }) {
            return (output, Some(next));
        }
    }
    panic!("a negotiation without end");
}

/// A stream of requests, cut as the server cuts it.
pub fn requests(data: &[u8]) {
    let shape = data.first().copied().unwrap_or(0);
    let limits = Limits {
        size_bytes: if shape & 8 == 0 { 1 << 20 } else { u64::MAX },
        read_only: shape & 1 != 0,
        structured_replies: shape & 2 != 0,
        allocation_context: shape & 4 != 0,
    };
    let mut rest = data.get(1..).unwrap_or_default();
    loop {
        let request = match parse(rest) {
            Parsed::Incomplete => {
                assert!(rest.len() < REQUEST_BYTES);
                return;
            }
            // As if the client had got this right, so that what follows is looked at.
            Parsed::BadMagic(_) => {
                let mut mended = [0; REQUEST_BYTES];
                mended.copy_from_slice(&rest[..REQUEST_BYTES]);
                mended[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
                let Parsed::Request(request) = parse(&mended) else { panic!("not mended") };
                request
            }
            Parsed::Request(request) => request,
        };
        let payload = request.payload_bytes() as usize;
        assert!(payload == 0 || request.command == command::WRITE);
        if request.check(&limits).is_ok() {
            let ranged = !matches!(request.command, command::FLUSH | command::DISC);
            let end = request.offset.checked_add(u64::from(request.length));
            assert!(!ranged || end.is_some_and(|end| end <= limits.size_bytes));
            assert!(!(limits.read_only && request.command == command::WRITE));
        }
        rest = rest.get(REQUEST_BYTES + payload..).unwrap_or_default();
    }
}
