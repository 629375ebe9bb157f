//! The values of configuration keys: which are acceptable, and their normal form. The rules and the words for
//! values that are refused are Ceph's.

/// The values that a key takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// `true` or `false`, or a number.
    Flag,
    /// A whole number from the first to the last, perhaps with a decimal unit: `5K` is 5000.
    Integer(u64, u64),
    /// As [`Self::Integer`], but a power of two.
    PowerOfTwo(u64, u64),
    /// Bytes, perhaps with a binary unit: `5K` is 5120.
    Bytes,
    /// A number with a fraction, from the first to the last.
    Float(f64, f64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Names of features with commas, or their number.
    Features,
    /// Any text.
    Text,
}

/// The features that have a name, and their bits.
const FEATURES: [(&str, u64); 10] = [
    ("layering", 1),
    ("striping", 2),
    ("exclusive-lock", 4),
    ("object-map", 8),
    ("fast-diff", 16),
    ("deep-flatten", 32),
    ("journaling", 64),
    ("data-pool", 128),
    ("operations", 256),
    ("migrating", 512),
];

/// Units by their first letter, from thousands on.
const UNITS: [u8; 6] = *b"KMGTPE";

impl Kind {
    /// The normal form of a value, as `config global get` shows it.
    ///
    /// # Errors
    /// Ceph's words for a value that is not acceptable.
    pub fn normal(self, value: &str) -> Result<String, String> {
        match self {
            Self::Text => Ok(value.to_owned()),
            Self::Flag if value.eq_ignore_ascii_case("true") => Ok("true".to_owned()),
            Self::Flag if value.eq_ignore_ascii_case("false") => Ok("false".to_owned()),
            Self::Flag => integer(value).map(|number| (number != 0).to_string()),
            Self::Integer(least, most) => {
                let number = decimal(value)?;
                within(number, least, most)?;
                Ok(number.to_string())
            }
            Self::PowerOfTwo(least, most) => {
                let number = decimal(value)?;
                if number & number.wrapping_sub(1) != 0 {
                    return Err("value must be a power of two".to_owned());
                }
                within(number, least, most)?;
                Ok(number.to_string())
            }
            Self::Bytes => binary(value).map(|bytes| bytes.to_string()),
            Self::Float(least, most) => {
                let number = float(value)?;
                within(number, least, most)?;
                Ok(format!("{number:.6}"))
            }
            Self::Choice(words) if words.contains(&value) => Ok(value.to_owned()),
            Self::Choice(words) => {
                let words = words.join(", ");
                Err(format!("'{value}' is not one of the permitted values: {words}"))
            }
            Self::Features => features(value).map(|bits| bits.to_string()).ok_or_else(String::new),
        }
    }
}

fn within<T: PartialOrd + std::fmt::Display>(number: T, least: T, most: T) -> Result<(), String> {
    if number < least {
        return Err(format!("Value '{number}' is below minimum {least}"));
    }
    if number > most {
        return Err(format!("Value '{number}' exceeds maximum {most}"));
    }
    Ok(())
}

/// A whole number without a unit.
fn integer(text: &str) -> Result<i64, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("Expected option value to be integer, got '{text}'"));
    }
    text.parse().map_err(|_| format!("The option value '{text}' seems to be invalid"))
}

fn has_only_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'+' || byte == b'-')
}

/// A number whose unit counts in thousands.
fn decimal(text: &str) -> Result<u64, String> {
    let Some(last) = text.bytes().last() else {
        return Err("strict_sistrtoll: value not specified".to_owned());
    };
    let unit = UNITS.iter().position(|unit| *unit == last);
    let (digits, factor) = match unit {
        _ if has_only_digits(text) => (text, 1),
        Some(unit) => (&text[..text.len() - 1], 1000_u64.pow(unit as u32 + 1)),
        None if last == b'B' => (text, 1),
        None => return Err("strict_si_cast: unit prefix not recognized".to_owned()),
    };
    scaled(integer(digits)?, factor, "strict_si_cast")
}

/// A number whose unit counts in powers of 1024.
fn binary(text: &str) -> Result<u64, String> {
    if text.is_empty() {
        return Err("strict_iecstrtoll: value not specified".to_owned());
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '+' && c != '-');
    let (digits, unit) = text.split_at(end.unwrap_or(text.len()));
    if unit.len() > 2 {
        return Err("strict_iecstrtoll: illegal prefix (length > 2)".to_owned());
    }
    let letter = unit.bytes().next();
    let factor = match letter {
        None | Some(b'B') => 1,
        Some(letter) => match UNITS.iter().position(|unit| *unit == letter) {
            Some(unit) => 1024_u64.pow(unit as u32 + 1),
            None => return Err("strict_iecstrtoll: unit prefix not recognized".to_owned()),
        },
    };
    scaled(integer(digits)?, factor, "strict_iecstrtoll")
}

fn scaled(number: i64, factor: u64, who: &str) -> Result<u64, String> {
    let number =
        u64::try_from(number).map_err(|_| format!("{who}: value should not be negative"))?;
    let scaled = number.checked_mul(factor).filter(|scaled| i64::try_from(*scaled).is_ok());
    scaled.ok_or_else(|| format!("{who}: value seems to be too large"))
}

fn float(text: &str) -> Result<f64, String> {
    if let Ok(number) = text.parse::<f64>()
        && number.is_finite()
    {
        return Ok(number);
    }
    let begins =
        (1..text.len()).any(|end| text.is_char_boundary(end) && text[..end].parse::<f64>().is_ok());
    Err(match begins {
        true => format!("strict_strtod: garbage at end of string. got: '{text}'"),
        false => format!("strict_strtod: expected double, got: '{text}'"),
    })
}

/// The bits of features that are given by name or by number.
fn features(text: &str) -> Option<u64> {
    if let Ok(bits) = text.parse() {
        return Some(bits);
    }
    text.split(',').filter(|name| !name.is_empty()).try_fold(0, |bits, name| {
        let (_, bit) = FEATURES.iter().find(|(known, _)| *known == name)?;
        Some(bits | bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_cephs_normal_form() {
        let integer = Kind::Integer(0, u64::MAX);
        let float = Kind::Float(f64::MIN, f64::MAX);
        for (kind, given, normal) in [
            (Kind::Flag, "TRUE", "true"),
            (Kind::Flag, "0", "false"),
            (Kind::Flag, "2", "true"),
            (integer, "5K", "5000"),
            (integer, "+5", "5"),
            (integer, "007", "7"),
            (Kind::Bytes, "64M", "67108864"),
            (Kind::Bytes, "64MB", "67108864"),
            (Kind::Bytes, "64Mi", "67108864"),
            (float, "1e3", "1000.000000"),
            (float, ".5", "0.500000"),
            (Kind::Features, "layering,deep-flatten", "33"),
            (Kind::Features, "3", "3"),
            (Kind::Text, "", ""),
        ] {
            assert_eq!(kind.normal(given).as_deref(), Ok(normal), "{kind:?} {given}");
        }
    }

    #[test]
    fn values_are_refused_in_cephs_words() {
        let integer = Kind::Integer(1, u64::MAX);
        let float = Kind::Float(f64::MIN, f64::MAX);
        for (kind, given, words) in [
            (Kind::Flag, "yes", "Expected option value to be integer, got 'yes'"),
            (integer, "5Ki", "strict_si_cast: unit prefix not recognized"),
            (integer, "5KB", "Expected option value to be integer, got '5KB'"),
            (integer, "5 M", "Expected option value to be integer, got '5 '"),
            (integer, "", "strict_sistrtoll: value not specified"),
            (integer, "0", "Value '0' is below minimum 1"),
            (
                integer,
                "18446744073709551616",
                "The option value '18446744073709551616' seems to be invalid",
            ),
            (Kind::Bytes, "64m", "strict_iecstrtoll: unit prefix not recognized"),
            (float, "abc", "strict_strtod: expected double, got: 'abc'"),
            (float, "1x", "strict_strtod: garbage at end of string. got: '1x'"),
            (Kind::PowerOfTwo(4096, 8192), "4095", "value must be a power of two"),
            (Kind::Choice(&["a", "b"]), "c", "'c' is not one of the permitted values: a, b"),
            (Kind::Features, "bogus", ""),
        ] {
            assert_eq!(kind.normal(given).unwrap_err(), words, "{kind:?} {given}");
        }
    }
}
