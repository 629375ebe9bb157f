use super::*;

/// Decodes `bytes` in the portions that the decoder wants. Data is kept as a sum.
fn decode(what: What, mut bytes: &[u8]) -> Result<Vec<Item<'_>>, (Part, Option<Refusal>)> {
    let mut decoder = Decoder::new(what);
    let mut items = Vec::new();
    while !decoder.ended() {
        let part = decoder.part();
        let (now, rest) = bytes.split_at_checked(decoder.wants()).ok_or((part, None::<Refusal>))?;
        bytes = rest;
        items.extend(decoder.feed(now).map_err(|refusal| (part, Some(refusal)))?);
    }
    assert!(bytes.is_empty(), "{} bytes are left", bytes.len());
    Ok(items)
}

fn encoded(what: What, items: &[Item<'_>]) -> Vec<u8> {
    let mut bytes = what.banner().to_vec();
    for item in items {
        encode(what, item, &mut bytes);
    }
    bytes
}

fn difference() -> Vec<Item<'static>> {
    vec![
        Item::From("monday".to_owned()),
        Item::To("tuesday".to_owned()),
        Item::Protected(true),
        Item::Size(1 << 40),
        Item::Write { offset: 4096, length: 3 },
        Item::Data { offset: 4096, bytes: b"abc" },
        Item::Write { offset: 8192, length: 0 },
        Item::Zero { offset: 1 << 30, length: 1 << 22 },
        Item::End,
    ]
}

#[test]
fn what_is_encoded_is_decoded_again() {
    for form in [Form::One, Form::Two] {
        let what = What::Difference(form);
        assert_eq!(decode(what, &encoded(what, &difference())), Ok(difference()), "{form:?}");
    }
    let properties = vec![
        Item::Order(22),
        Item::Features(61),
        Item::StripeUnit(1 << 22),
        Item::StripeCount(1),
        Item::Meta("key".to_owned(), "value".to_owned()),
        Item::Meta(String::new(), String::new()),
        Item::End,
    ];
    let bytes = encoded(What::Properties, &properties);
    assert_eq!(decode(What::Properties, &bytes), Ok(properties));
    let count = vec![Item::Count(7)];
    assert_eq!(decode(What::Count, &encoded(What::Count, &count)), Ok(count));
}

#[test]
fn the_bytes_are_rbds() {
    // `rbd export-diff a@s0` of an image of 16 MiB without data.
    let items = [Item::To("s0".to_owned()), Item::Size(16 << 20), Item::End];
    let bytes = encoded(What::Difference(Form::One), &items);
    assert_eq!(bytes, b"rbd diff v1\nt\x02\0\0\0s0s\0\0\0\x01\0\0\0\0e");
    // A protected snapshot: the record declares eight bytes and has one.
    let bytes = encoded(What::Difference(Form::Two), &[Item::Protected(true), Item::End]);
    assert_eq!(bytes, b"rbd diff v2\np\x08\0\0\0\0\0\0\0\x01e");
}

#[test]
fn a_protection_that_declares_its_true_length_is_read_too() {
    let what = What::Difference(Form::Two);
    let bytes = b"rbd diff v2\np\x01\0\0\0\0\0\0\0\x01e";
    assert_eq!(decode(what, bytes), Ok(vec![Item::Protected(true), Item::End]));
}

#[test]
fn a_stream_that_is_cut_anywhere_lacks_a_part() {
    for form in [Form::One, Form::Two] {
        let what = What::Difference(form);
        let bytes = encoded(what, &difference());
        for length in 0..bytes.len() {
            let outcome = decode(what, &bytes[..length]);
            assert!(matches!(outcome, Err((_, None))), "{form:?} {length}: {outcome:?}");
        }
    }
}

#[test]
fn what_is_no_stream_is_refused() {
    let one = What::Difference(Form::One);
    let two = What::Difference(Form::Two);
    let refusal = |what, bytes: &[u8]| decode(what, bytes).err().and_then(|(_, why)| why);
    assert_eq!(refusal(one, two.banner()), Some(Refusal::Banner(two.banner().to_vec())));
    assert_eq!(refusal(one, b"rbd diff v1\nx"), Some(Refusal::Tag(b'x')));
    assert_eq!(refusal(one, b"rbd diff v1\nf\x01\x10\0\0"), Some(Refusal::TooLong));
    assert_eq!(refusal(one, b"rbd diff v1\nt\x01\0\0\0\xff"), Some(Refusal::NotText));
    // The record of the size says that it has seven bytes.
    let bytes = b"rbd diff v2\ns\x07\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    assert_eq!(refusal(two, bytes), Some(Refusal::Length(b's')));
}

#[test]
fn a_property_that_is_not_known_is_skipped_by_its_length() {
    let bytes = b"rbd image v2\nx\x03\0\0\0\0\0\0\0abcO\x08\0\0\0\0\0\0\0\x16\0\0\0\0\0\0\0E";
    let items = vec![Item::Unknown(b'x'), Item::Order(22), Item::End];
    assert_eq!(decode(What::Properties, bytes), Ok(items));
}

#[test]
fn a_record_of_an_exbibyte_is_wanted_in_pieces() {
    let mut decoder = Decoder::new(What::Difference(Form::One));
    let mut bytes = encoded(What::Difference(Form::One), &[]);
    encode(
        What::Difference(Form::One),
        &Item::Write { offset: u64::MAX, length: u64::MAX },
        &mut bytes,
    );
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let (now, later) = rest.split_at(decoder.wants());
        decoder.feed(now).unwrap();
        rest = later;
    }
    assert_eq!((decoder.part(), decoder.wants()), (Part::Data, PIECE_BYTES_MAX));
    let piece = vec![1; PIECE_BYTES_MAX];
    let item = decoder.feed(&piece).unwrap();
    assert!(matches!(item, Some(Item::Data { offset: u64::MAX, .. })), "{item:?}");
    assert_eq!(decoder.pass_data(), u64::MAX - PIECE_BYTES_MAX as u64);
    assert_eq!(decoder.part(), Part::Tag);
}
