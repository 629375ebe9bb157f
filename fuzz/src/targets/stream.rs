//! RBD's streams, from the first byte to a merged difference.

use std::io::Read;

use marcot_client::stream::merge::merge;
use marcot_client::stream::records::Records;
use marcot_client::stream::wire::{Form, What, encode};

/// The items of `what`, encoded again. Ends at the first error.
fn encoded_again(what: What, mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut records = Records::new(bytes.by_ref(), what);
    let mut again = what.banner().to_vec();
    loop {
        match records.next_item() {
            Ok(Some(item)) => encode(what, &item, &mut again),
            Ok(None) => return (again, true),
            Err(_) => return (again, false),
        }
    }
}

/// What is encoded of a stream that can be read is read again, and merging it with itself ends.
pub fn stream(data: &[u8]) {
    let one = What::Difference(Form::One);
    for what in [one, What::Difference(Form::Two), What::Properties, What::Count] {
        let (again, whole) = encoded_again(what, data);
        // Not always the same bytes: a protection has one bit, and its length may be the true one.
        if whole {
            let (twice, whole) = encoded_again(what, &again);
            assert!(whole && twice == again, "{what:?}");
        }
    }
    let half = data.len() / 2;
    let pairs = [(data, data), data.split_at(half)];
    for (first, second) in pairs {
        let mut written = 0;
        let mut sink = |bytes: &[u8]| {
            written += bytes.len();
            Ok(())
        };
        let merged = merge(first, second, &mut sink, &mut |_, _| true);
        // Every record of the result comes from one of the inputs, or is a piece of one.
        assert!(written <= 2 * (first.len() + second.len()) * EXTENT_BYTES + BESIDES_BYTES);
        if merged.is_ok() {
            assert!(matches!(encoded_again(one, first), (_, true)));
        }
    }
}

/// Bytes of the record of an extent.
const EXTENT_BYTES: usize = 17;
/// Bytes of the header of a merged difference, with two names of 4096 bytes, and of its last records.
const BESIDES_BYTES: usize = 10_000;
