//! Known bytes, written as `docs/format.md` shows them, and changes to them.

/// The bytes of a text. Each byte has two hexadecimal digits. Text behind a bar is a comment. `00 x 16`
/// stands for sixteen times the bytes before the `x`.
pub fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.lines() {
        let digits = line.split('|').next().unwrap();
        let (digits, times) = digits.split_once('x').unwrap_or((digits, "1"));
        let digits: String = digits.split_whitespace().collect();
        let row: Vec<u8> = (0..digits.len() / 2)
            .map(|i| u8::from_str_radix(&digits[i * 2..i * 2 + 2], 16).unwrap())
            .collect();
        bytes.extend(row.repeat(times.trim().parse().unwrap()));
    }
    bytes
}

/// The bytes with `new` from `at` on.
pub fn changed(bytes: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

/// CRC-32C, bit by bit as the document defines it, so that a mistake in the crate cannot hide here.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    !crc
}

/// The bytes with a correct checksum at `at` for the first `length` bytes.
pub fn sealed(bytes: &[u8], at: usize, length: usize) -> Vec<u8> {
    let empty = changed(bytes, at, &[0; 4]);
    changed(bytes, at, &crc32c(&empty[..length]).to_le_bytes())
}

#[test]
fn texts_and_checksums_are_read_as_they_are_written() {
    assert_eq!(bytes("01 ff | one\n  a1b2 x 2 | twice\n\n"), [1, 255, 0xa1, 0xb2, 0xa1, 0xb2]);
    assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    assert_eq!(crc32c(&[0; 4096]), 0x98F9_4189);
}
