//! Parsing and printing sizes by `rbd`'s rules.

const KIB: u64 = 1024;
/// The unit of a bare number for `--size`.
const MIB: u64 = 1024 * 1024;
/// Length of the longest rounded size: digits, blank and unit.
const ROUNDED_CHARS_MAX: usize = 7;
const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Bytes of `text`. A bare number counts MiB.
pub fn parse_mib(text: &str) -> Option<u64> {
    parse(text, MIB)
}

/// Bytes of `text`. A bare number counts bytes.
pub fn parse_bytes(text: &str) -> Option<u64> {
    parse(text, 1)
}

/// A decimal number and a unit of `BKMGTPE`; one character after the unit is ignored.
fn parse(text: &str, bare_unit_bytes: u64) -> Option<u64> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let number: u64 = digits[..end].parse().ok()?;
    let mut suffix = digits[end..].chars();
    let unit_bytes = match suffix.next() {
        None => bare_unit_bytes,
        Some(unit) => unit_bytes(unit)?,
    };
    if suffix.count() > 1 {
        return None;
    }
    number.checked_mul(unit_bytes)
}

fn unit_bytes(unit: char) -> Option<u64> {
    let power = "BKMGTPE".find(unit)?;
    Some(KIB.pow(u32::try_from(power).ok()?))
}

/// `10 GiB`, `1.5 KiB`, `0 B`.
pub fn show(bytes: u64) -> String {
    let mut power = 0;
    let mut whole = bytes;
    while whole >= KIB {
        whole /= KIB;
        power += 1;
    }
    let unit = UNITS[power];
    let unit_bytes = KIB.pow(power as u32);
    if bytes.is_multiple_of(unit_bytes) {
        return format!("{whole} {unit}");
    }
    let number = bytes as f64 / unit_bytes as f64;
    [2, 1]
        .into_iter()
        .map(|decimals| format!("{number:.decimals$} {unit}"))
        .find(|text| text.len() <= ROUNDED_CHARS_MAX)
        .unwrap_or_else(|| format!("{number:.0} {unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_in_follow_rbd() {
        for (text, bytes) in [
            ("1024", 1 << 30),
            ("1024M", 1 << 30),
            ("1G", 1 << 30),
            ("10GB", 10 << 30),
            ("10Gi", 10 << 30),
            ("10Mx", 10 << 20),
            ("0", 0),
            ("+5", 5 << 20),
            ("007", 7 << 20),
            ("15E", 15 << 60),
            ("3B", 3),
        ] {
            assert_eq!(parse_mib(text), Some(bytes), "{text}");
        }
        for text in [
            "10GiB",
            "10Kii",
            "10g",
            "1m",
            "1.5G",
            "5.",
            "-1",
            "-1G",
            "abc",
            "10Q",
            "",
            " 10G",
            "10 G",
            "0x10",
            "16E",
            "18446744073709551615",
            "99999999999999999999",
        ] {
            assert_eq!(parse_mib(text), None, "{text}");
        }
        assert_eq!(parse_bytes("4096"), Some(4096));
    }

    #[test]
    fn sizes_out_follow_rbd() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1535, "1.5 KiB"),
            (3_000_000, "2.9 MiB"),
            (1023 << 20, "1023 MiB"),
            (1025 << 20, "1.0 GiB"),
            (1 << 30, "1 GiB"),
            (1500 << 20, "1.5 GiB"),
            (10100 << 20, "9.9 GiB"),
            (10239 << 20, "10 GiB"),
            (102_399 << 20, "100 GiB"),
            (123_456 << 20, "121 GiB"),
            (1_048_575 << 20, "1024 GiB"),
            (15 << 60, "15 EiB"),
        ] {
            assert_eq!(show(bytes), text);
        }
    }
}
