//! The columns of the lists, and numbers as `rbd` writes them.

use marcot_client::perf::ImageRates;

/// Longest number with a unit that is shown with a fraction.
const ROUNDED_CHARS_MAX: usize = 7;

/// What is shown of an image, and sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Column {
    /// Writes per second.
    #[default]
    WriteOps,
    /// Reads per second.
    ReadOps,
    /// Bytes written per second.
    WriteBytes,
    /// Bytes read per second.
    ReadBytes,
    /// Time of a write.
    WriteLatency,
    /// Time of a read.
    ReadLatency,
}

impl Column {
    /// All of them, from left to right.
    pub const ALL: [Self; 6] = [
        Self::WriteOps,
        Self::ReadOps,
        Self::WriteBytes,
        Self::ReadBytes,
        Self::WriteLatency,
        Self::ReadLatency,
    ];
    /// What they are called on the command line.
    pub const WORDS: [&'static str; 6] =
        ["write-ops", "read-ops", "write-bytes", "read-bytes", "write-latency", "read-latency"];
    const KEYS: [&'static str; 6] =
        ["write_ops", "read_ops", "write_bytes", "read_bytes", "write_latency", "read_latency"];
    const HEADERS: [&'static str; 6] =
        ["WRITES OPS", "READS OPS", "WRITE BYTES", "READ BYTES", "WRITE LAT", "READ LAT"];
    const SHORT_HEADERS: [&'static str; 6] =
        ["WRITES", "READS", "WR BYTES", "RD BYTES", "WR LAT", "RD LAT"];

    fn index(self) -> usize {
        Self::ALL.iter().position(|column| *column == self).unwrap_or(0)
    }

    /// The column with a name on the command line.
    pub fn named(word: &str) -> Option<Self> {
        let index = Self::WORDS.iter().position(|there| *there == word)?;
        Self::ALL.get(index).copied()
    }

    /// Its name in documents.
    pub fn key(self) -> &'static str {
        Self::KEYS[self.index()]
    }

    /// Its name on a screen, short on a narrow one.
    pub fn header(self, wide: bool) -> &'static str {
        let names = if wide { &Self::HEADERS } else { &Self::SHORT_HEADERS };
        names[self.index()]
    }

    /// The column to the right; the last one stays.
    pub fn after(self) -> Self {
        Self::ALL.get(self.index() + 1).copied().unwrap_or(self)
    }

    /// The column to the left; the first one stays.
    pub fn before(self) -> Self {
        Self::ALL[self.index().saturating_sub(1)]
    }

    /// Its number for an image.
    pub fn of(self, image: &ImageRates) -> f64 {
        match self {
            Self::WriteOps => image.writes.requests,
            Self::ReadOps => image.reads.requests,
            Self::WriteBytes => image.writes.bytes,
            Self::ReadBytes => image.reads.bytes,
            Self::WriteLatency => image.writes.latency_ns,
            Self::ReadLatency => image.reads.latency_ns,
        }
    }

    /// The same for people.
    pub fn text(self, image: &ImageRates) -> String {
        let number = self.of(image);
        match self {
            Self::WriteOps | Self::ReadOps => format!("{}/s", si_text(number)),
            Self::WriteBytes | Self::ReadBytes => {
                format!("{}/s", crate::size::show(number as u64))
            }
            Self::WriteLatency | Self::ReadLatency => latency_text(number),
        }
    }
}

/// A number in thousands: `7`, `4.62k`, `12k`. Fractions of a whole number are left out.
pub fn si_text(number: f64) -> String {
    const UNITS: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let whole = number as u64;
    let (mut factor, mut power) = (1u64, 0);
    while whole / factor >= 1000 && power + 1 < UNITS.len() {
        factor *= 1000;
        power += 1;
    }
    let unit = UNITS[power];
    if whole.is_multiple_of(factor) {
        return format!("{}{unit}", whole / factor);
    }
    let scaled = whole as f64 / factor as f64;
    let rounded = [2, 1].map(|decimals| format!("{scaled:.decimals$}{unit}"));
    let fits = rounded.into_iter().find(|text| text.len() <= ROUNDED_CHARS_MAX);
    fits.unwrap_or_else(|| format!("{scaled:.0}{unit}"))
}

/// Nanoseconds in the unit that suits: `812.89 us`.
pub fn latency_text(nanoseconds: f64) -> String {
    let (mut number, mut unit) = (nanoseconds, "ns");
    for larger in ["us", "ms", "s"] {
        if number < 1000.0 {
            break;
        }
        (number, unit) = (number / 1000.0, larger);
    }
    format!("{number:.2} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_rbd_writes_them() {
        for (number, text) in
            [(0.0, "0"), (999.9, "999"), (1000.0, "1k"), (4620.7, "4.62k"), (1_250_000.0, "1.25M")]
        {
            assert_eq!(si_text(number), text);
        }
        for (number, text) in
            [(0.0, "0.00 ns"), (812_890.0, "812.89 us"), (1.36e6, "1.36 ms"), (2.5e9, "2.50 s")]
        {
            assert_eq!(latency_text(number), text);
        }
    }

    #[test]
    fn columns_are_left_at_no_edge() {
        assert_eq!(Column::WriteOps.before(), Column::WriteOps);
        assert_eq!(Column::WriteOps.after(), Column::ReadOps);
        assert_eq!(Column::ReadLatency.after(), Column::ReadLatency);
        assert!(Column::ALL.iter().zip(Column::WORDS).all(|(c, w)| Column::named(w) == Some(*c)));
    }
}
