//! When something is to be done again and again: intervals with a start, as RBD reads and shows them.

use std::fmt;
use std::str::FromStr;

/// Seconds of a minute.
const MINUTE_S: i64 = 60;
const HOUR_MINUTES: u32 = 60;
const DAY_MINUTES: u32 = 24 * HOUR_MINUTES;
/// Greatest distance from UTC, in minutes. Real ones go up to 14 hours.
const OFFSET_MINUTES_MAX: i32 = 24 * 60 - 1;

/// Whole minutes, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval {
    minutes: u32,
}

/// A time of day, by the clock of the machine that acts, or at a distance from UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StartTime {
    minute_of_day: u32,
    offset_minutes: Option<i32>,
}

/// An interval and the time of day that it counts from. Without that it counts from midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScheduleItem {
    /// The interval.
    pub interval: Interval,
    /// The time of day.
    pub start: Option<StartTime>,
}

impl FromStr for Interval {
    type Err = String;

    /// Digits, and perhaps `d`, `h` or `m`; minutes without a letter.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("Invalid interval ({text})");
        let (digits, factor) = match text.as_bytes().last() {
            Some(b'd') => (&text[..text.len() - 1], DAY_MINUTES),
            Some(b'h') => (&text[..text.len() - 1], HOUR_MINUTES),
            Some(b'm') => (&text[..text.len() - 1], 1),
            _ => (text, 1),
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refused());
        }
        let minutes = digits.parse().ok().and_then(|number: u32| number.checked_mul(factor));
        let minutes = minutes.filter(|minutes| *minutes > 0).ok_or_else(refused)?;
        Ok(Self { minutes })
    }
}

impl fmt::Display for Interval {
    /// In the largest unit that gives a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.minutes {
            minutes if minutes % DAY_MINUTES == 0 => write!(f, "{}d", minutes / DAY_MINUTES),
            minutes if minutes % HOUR_MINUTES == 0 => write!(f, "{}h", minutes / HOUR_MINUTES),
            minutes => write!(f, "{minutes}m"),
        }
    }
}

impl StartTime {
    /// A time in the forms of ISO 8601: `14:00`, `14:00:00`, `14:00+02:00`, `14:00Z`, each perhaps after a date and
    /// `T` or a blank. Date, seconds and their fractions are read and left out, as RBD does. A date alone means
    /// midnight.
    fn parse(text: &str) -> Result<Self, String> {
        let unknown = || format!("Unknown string format: {text}");
        let mut rest = text.trim();
        let dated = date_length(rest);
        if let Some(length) = dated {
            rest = rest[length..].trim_start();
        }
        rest = rest.strip_prefix('T').unwrap_or(rest);
        if rest.is_empty() && dated.is_some() {
            return Ok(Self { minute_of_day: 0, offset_minutes: None });
        }
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != ':' && c != '.');
        let (clock, zone) = rest.split_at(end.unwrap_or(rest.len()));
        let mut parts = clock.split(':');
        let mut part = |name: &str, most: u32| match parts.next() {
            None => Ok(None),
            Some(digits) => {
                let number = two_digits(digits).ok_or_else(unknown)?;
                match number <= most {
                    true => Ok(Some(number)),
                    false => Err(format!("{name} must be in 0..{most}: {text}")),
                }
            }
        };
        let hour = part("hour", 23)?.ok_or_else(unknown)?;
        let minute = part("minute", 59)?.ok_or_else(unknown)?;
        // Seconds may have a fraction.
        if let Some(seconds) = parts.next() {
            let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
            let number = two_digits(whole).ok_or_else(unknown)?;
            if number > 59 {
                return Err(format!("second must be in 0..59: {text}"));
            }
            if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(unknown());
            }
        }
        if parts.next().is_some() {
            return Err(unknown());
        }
        let offset_minutes = offset(zone.trim()).ok_or_else(unknown)?;
        Ok(Self { minute_of_day: hour * HOUR_MINUTES + minute, offset_minutes })
    }
}

/// The length of a date at the beginning, `2026-11-28`.
fn date_length(text: &str) -> Option<usize> {
    const FORM: &str = "dddd-dd-dd";
    let fits = |(form, byte): (u8, u8)| match form {
        b'd' => byte.is_ascii_digit(),
        form => byte == form,
    };
    let begin = text.as_bytes().get(..FORM.len())?;
    FORM.bytes().zip(begin.iter().copied()).all(fits).then_some(FORM.len())
}

fn two_digits(digits: &str) -> Option<u32> {
    let known = matches!(digits.len(), 1 | 2) && digits.bytes().all(|byte| byte.is_ascii_digit());
    known.then(|| digits.parse().ok())?
}

/// The distance from UTC in minutes; nothing for no zone.
fn offset(zone: &str) -> Option<Option<i32>> {
    let (sign, digits) = match zone.as_bytes().first() {
        None => return Some(None),
        Some(b'Z') if zone.len() == 1 => return Some(Some(0)),
        Some(b'+') => (1, &zone[1..]),
        Some(b'-') => (-1, &zone[1..]),
        Some(_) => return None,
    };
    let (hours, minutes) = match digits.split_once(':') {
        Some(parts) => parts,
        None if digits.is_char_boundary(2.min(digits.len())) => {
            digits.split_at(2.min(digits.len()))
        }
        None => return None,
    };
    let minutes = if minutes.is_empty() { 0 } else { two_digits(minutes)? };
    let total = i32::try_from(two_digits(hours)? * HOUR_MINUTES + minutes).ok()?;
    (total <= OFFSET_MINUTES_MAX).then_some(Some(sign * total))
}

impl FromStr for StartTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|why| format!("Invalid start time {text}: {why}"))
    }
}

impl fmt::Display for StartTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hour, minute) = (self.minute_of_day / HOUR_MINUTES, self.minute_of_day % HOUR_MINUTES);
        write!(f, "{hour:02}:{minute:02}:00")?;
        let Some(offset) = self.offset_minutes else { return Ok(()) };
        let sign = if offset < 0 { '-' } else { '+' };
        let offset = offset.unsigned_abs();
        write!(f, "{sign}{:02}:{:02}", offset / HOUR_MINUTES, offset % HOUR_MINUTES)
    }
}

impl ScheduleItem {
    /// The last time at or before `now_s`, and the first one after it, in seconds since 1970. `local_s` is how
    /// far the clock of this machine is ahead of UTC, in seconds.
    #[must_use]
    pub fn around(&self, now_s: i64, local_s: i64) -> (i64, i64) {
        let period_s = i64::from(self.interval.minutes) * MINUTE_S;
        let start = self.start.unwrap_or(StartTime { minute_of_day: 0, offset_minutes: None });
        let ahead_s = start.offset_minutes.map_or(local_s, |minutes| i64::from(minutes) * MINUTE_S);
        let start_s = i64::from(start.minute_of_day) * MINUTE_S - ahead_s;
        let last_s = start_s + (now_s - start_s).div_euclid(period_s) * period_s;
        (last_s, last_s + period_s)
    }
}

impl fmt::Display for ScheduleItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "every {}", self.interval)?;
        match self.start {
            Some(start) => write!(f, " starting at {start}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(interval: &str, start: &str) -> ScheduleItem {
        let start = (!start.is_empty()).then(|| start.parse().unwrap());
        ScheduleItem { interval: interval.parse().unwrap(), start }
    }

    /// As RBD 16.2.15 showed them.
    #[test]
    fn intervals_and_times_are_shown_as_rbd_shows_them() {
        for (interval, start, shown) in [
            ("10", "", "every 10m"),
            ("60m", "", "every 1h"),
            ("1440m", "", "every 1d"),
            ("48h", "", "every 2d"),
            ("01d", "", "every 1d"),
            ("1d", "14:00:00-05:00", "every 1d starting at 14:00:00-05:00"),
            ("1d", "14:00", "every 1d starting at 14:00:00"),
            ("1d", "1:00", "every 1d starting at 01:00:00"),
            ("1d", "01:00:30.5", "every 1d starting at 01:00:00"),
            ("1d", "2026-11-28T04:00", "every 1d starting at 04:00:00"),
            ("1d", "2026-11-28", "every 1d starting at 00:00:00"),
            ("1d", "23:00Z", "every 1d starting at 23:00:00+00:00"),
            ("1d", "14:00 +0200", "every 1d starting at 14:00:00+02:00"),
            ("1d", "14:00+02", "every 1d starting at 14:00:00+02:00"),
            ("1d", "T14:00", "every 1d starting at 14:00:00"),
        ] {
            assert_eq!(item(interval, start).to_string(), shown, "{interval} {start}");
        }
    }

    #[test]
    fn what_is_no_interval_or_time_is_refused_in_rbds_words() {
        for text in ["1x", "1D", "1dd", "1.5h", " 1d", "", "d", "+1d", "0d", "0", "99999999999d"] {
            let why = text.parse::<Interval>().unwrap_err();
            assert_eq!(why, format!("Invalid interval ({text})"));
        }
        for (text, why) in [
            ("bogus", "Unknown string format: bogus"),
            ("25:00", "hour must be in 0..23: 25:00"),
            ("24:00", "hour must be in 0..23: 24:00"),
            ("14:60", "minute must be in 0..59: 14:60"),
            ("14:00:61", "second must be in 0..59: 14:00:61"),
            ("14:00+", "Unknown string format: 14:00+"),
            ("14:00+é", "Unknown string format: 14:00+é"),
            ("14:00+99:00", "Unknown string format: 14:00+99:00"),
            ("14:00:00:00", "Unknown string format: 14:00:00:00"),
            ("14:", "Unknown string format: 14:"),
            ("", "Unknown string format: "),
        ] {
            let refused = text.parse::<StartTime>().unwrap_err();
            assert_eq!(refused, format!("Invalid start time {text}: {why}"));
        }
    }

    #[test]
    fn the_times_around_now_follow_the_clock_that_the_start_names() {
        const DAY_S: i64 = 24 * 3600;
        const HOUR_S: i64 = 3600;
        // 12:34:56 UTC on some day.
        let midnight_s = 20_000 * DAY_S;
        let now_s = midnight_s + 12 * HOUR_S + 34 * 60 + 56;
        let around = |interval, start, local_s| {
            let (last_s, next_s) = item(interval, start).around(now_s, local_s);
            (last_s - midnight_s, next_s - midnight_s)
        };
        assert_eq!(around("1d", "", 0), (0, DAY_S));
        assert_eq!(around("1d", "14:00", 0), (-10 * HOUR_S, 14 * HOUR_S));
        assert_eq!(around("1d", "14:00", 2 * HOUR_S), (12 * HOUR_S, DAY_S + 12 * HOUR_S));
        assert_eq!(around("1d", "14:00-05:00", 2 * HOUR_S), (-5 * HOUR_S, 19 * HOUR_S));
        assert_eq!(around("2h", "01:30", 0), (11 * HOUR_S + 1800, 13 * HOUR_S + 1800));
        assert_eq!(around("1m", "", 0), (12 * HOUR_S + 34 * 60, 12 * HOUR_S + 35 * 60));
        // A point counts as reached in its first second.
        let at = item("1d", "").around(midnight_s, 0);
        assert_eq!(at, (midnight_s, midnight_s + DAY_S));
    }
}
