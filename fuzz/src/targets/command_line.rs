//! What users type, and files they import.

use marcot_cli::size::{parse_bytes, parse_mib, show};
use marcot_cli::{Understood, understand};
use marcot_client::sparse;
use marcot_client::spec::{Pattern, Spec, parse_pool};

const MIB: u64 = 1 << 20;

pub fn size(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (bare_bytes, bare_mib) = (parse_bytes(text), parse_mib(text));
    let Some(bytes) = bare_bytes else {
        // A unit makes both mean the same, and without one the larger may only be too large.
        assert_eq!(bare_mib, None);
        return;
    };
    assert!(bare_mib.is_none_or(|mib| mib == bytes || bytes.checked_mul(MIB) == Some(mib)));
    assert_eq!(parse_bytes(&format!("{bytes}B")), Some(bytes));
    assert_eq!(parse_bytes(&format!("{bytes}")), Some(bytes));
    let shown = show(bytes);
    assert!(shown.len() <= 8 || shown.ends_with(" B"), "{shown}");
    // What is shown without rounding can be typed.
    let typed = shown.replace(" B", "B").replace("iB", "").replace(' ', "");
    if !shown.contains('.') && parse_bytes(&typed).is_some_and(|b| show(b) == shown) {
        assert_eq!(show(parse_bytes(&typed).unwrap_or(0)), shown);
    }
    for (unit, power) in [("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50), ("E", 60)] {
        if bytes.is_multiple_of(1 << power) {
            let typed = format!("{}{unit}", bytes >> power);
            assert_eq!((parse_bytes(&typed), parse_mib(&typed)), (Some(bytes), Some(bytes)));
        }
    }
}

pub fn spec(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for pattern in [Pattern::Existing, Pattern::NewImage, Pattern::NewSnapshot] {
        let Some(spec) = Spec::parse(text, pattern) else { continue };
        let pool = spec.pool.as_ref().map_or(String::new(), |pool| format!("{pool}/"));
        let namespace = spec.namespace.as_ref().map_or(String::new(), |ns| format!("{ns}/"));
        let snap = spec.snap.as_ref().map_or(String::new(), |snap| format!("@{snap}"));
        // Nothing is lost, added or moved.
        assert_eq!(format!("{pool}{namespace}{}{snap}", spec.image), text);
        assert!(!spec.image.is_empty() && spec.snap.as_ref().is_none_or(|snap| !snap.is_empty()));
        if pattern == Pattern::NewImage {
            let parts = [&spec.pool, &spec.namespace, &Some(spec.image), &spec.snap];
            assert!(parts.into_iter().flatten().all(|part| !part.contains(['/', '@'])));
        }
    }
    if let Ok((pool, namespace)) = parse_pool(text) {
        // The last slash divides, also where nothing follows it.
        let shown = format!("{pool}/{}", namespace.as_deref().unwrap_or_default());
        assert_eq!(parse_pool(&shown), Ok((pool, namespace)));
    }
}

/// Arguments are separated by zero bytes or ends of lines.
pub fn arguments(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let arguments: Vec<String> = text.split(['\0', '\n']).map(str::to_owned).collect();
    let understood = understand(&arguments);
    assert!(understood == understand(&arguments));
    match understood {
        Understood::Command(words, positionals) => {
            assert!(!words.is_empty());
            let given = |word: &String| arguments.iter().any(|argument| argument == word);
            assert!(positionals.iter().all(given), "an argument that was not given");
        }
        Understood::General => {}
        Understood::Refused(status, text) => assert!(status > 0 && !text.contains('\0')),
    }
}

/// The first two bytes choose the grain.
pub fn sparse_runs(data: &[u8]) {
    let Some((grain, data)) = data.split_first_chunk::<2>() else { return };
    let grain = usize::from(u16::from_le_bytes(*grain)).max(1);
    let mut end = 0;
    for run in sparse::data_runs(data, grain) {
        assert!(run.start >= end && run.start < run.end && run.end <= data.len());
        assert!(data[end..run.start].iter().all(|byte| *byte == 0), "data is left out");
        end = run.end;
    }
    assert!(data[end..].iter().all(|byte| *byte == 0), "data is left out");
}
