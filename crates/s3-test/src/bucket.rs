//! The buckets of the service, and what its requests do to them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::faults::Dialect;
use crate::http::{Answer, Request};

/// Objects in a list.
const PAGE_OBJECTS: usize = 1000;

/// One object.
#[derive(Debug, Clone)]
pub struct Object {
    bytes: Arc<Vec<u8>>,
    etag: String,
    stored_s: i64,
    changed: Instant,
}

/// A bucket.
#[derive(Debug, Default)]
pub struct Bucket {
    objects: BTreeMap<String, Object>,
    /// What objects were before their last change.
    before: BTreeMap<String, Object>,
    /// The objects before each of the last changes, the oldest first.
    past: VecDeque<BTreeMap<String, Object>>,
    changes: u64,
}

/// An answer to a request that failed, as S3 gives it. `secrets` are repeated in it, as some services do.
pub fn failure(status: u16, code: &str, secrets: &str) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{code}</Message>\
         <StringToSign>{}</StringToSign></Error>",
        escaped(secrets)
    );
    let mut headers = vec![("content-type", "application/xml".to_string())];
    if (300..400).contains(&status) {
        // A client that followed it would send its request again.
        headers.push(("location", "/elsewhere/object".to_string()));
    }
    Answer { status, headers, body: body.into_bytes() }
}

/// Text for XML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// An ETag in quotes that follows from the bytes, or from the number of the change.
fn etag(bytes: &[u8], change: Option<u64>) -> String {
    let mut low = 0xcbf2_9ce4_8422_2325_u64;
    let mut high = 0x8422_2325_cbf2_9ce4_u64;
    let number = change.unwrap_or_default().to_le_bytes();
    for byte in bytes.iter().chain(&number) {
        low = (low ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        high = (high.rotate_left(5) ^ u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    format!("\"{low:016x}{high:016x}\"")
}

impl Bucket {
    /// The condition of a request, or the answer where it does not hold.
    pub fn check(&self, key: &str, request: &Request, dialect: &Dialect) -> Result<(), Answer> {
        let found = self.objects.get(key);
        let lost = || {
            let (status, code) = dialect.lost_race.unwrap_or((412, "PreconditionFailed"));
            Err(failure(status, code, ""))
        };
        if request.header("if-none-match") == Some("*")
            && !dialect.ignores_if_none_match
            && found.is_some()
        {
            return lost();
        }
        if let Some(wanted) = request.header("if-match").filter(|_| !dialect.ignores_if_match) {
            match found {
                None if dialect.swap_creates => {}
                None if dialect.lost_race.is_some() => return lost(),
                None => return Err(failure(404, "NoSuchKey", "")),
                Some(object) => {
                    let bare = object.etag.trim_matches('"');
                    let holds = wanted == bare || (wanted == object.etag && !dialect.bare_etags);
                    if !holds || dialect.no_swaps {
                        return lost();
                    }
                }
            }
        }
        let recent =
            |interval: &Duration| found.is_some_and(|object| object.changed.elapsed() < *interval);
        if dialect.change_interval.as_ref().is_some_and(recent) {
            return Err(failure(429, "SlowDown", ""));
        }
        Ok(())
    }

    /// Stores an object.
    pub fn put(&mut self, key: &str, bytes: Vec<u8>, dialect: &Dialect, now_s: i64) -> Answer {
        self.remember(key, dialect);
        self.changes += 1;
        let etag = etag(&bytes, dialect.new_etags.then_some(self.changes));
        let object = Object {
            bytes: Arc::new(bytes),
            etag: etag.clone(),
            stored_s: now_s,
            changed: Instant::now(),
        };
        self.objects.insert(key.to_string(), object);
        Answer { status: 200, headers: vec![("etag", etag)], body: Vec::new() }
    }

    /// Removes an object.
    pub fn delete(&mut self, key: &str, dialect: &Dialect) -> Answer {
        self.remember(key, dialect);
        self.objects.remove(key);
        Answer { status: 204, ..Answer::default() }
    }

    fn remember(&mut self, key: &str, dialect: &Dialect) {
        if dialect.stale_reads
            && let Some(object) = self.objects.get(key)
        {
            self.before.insert(key.to_string(), object.clone());
        }
        if dialect.stale_lists > 0 {
            self.past.push_back(self.objects.clone());
            while self.past.len() > dialect.stale_lists {
                self.past.pop_front();
            }
        }
    }

    /// Reads an object or a part of it.
    pub fn get(&self, key: &str, request: &Request, dialect: &Dialect) -> Answer {
        let old = self.before.get(key).filter(|_| dialect.stale_reads);
        let Some(object) = old.or_else(|| self.objects.get(key)) else {
            return failure(404, "NoSuchKey", "");
        };
        let mut headers = vec![
            ("etag", object.etag.clone()),
            ("last-modified", http_date(object.stored_s)),
            ("content-type", "application/octet-stream".to_string()),
        ];
        let length = object.bytes.len();
        let range = request.header("range").filter(|_| !dialect.no_ranges);
        let Some((start, end)) = range.and_then(|range| parsed_range(range, length)) else {
            return Answer { status: 200, headers, body: object.bytes.to_vec() };
        };
        if start >= length && !dialect.empty_parts {
            return failure(416, "InvalidRange", "");
        }
        headers.push(("content-range", format!("bytes {start}-{}/{length}", end.max(1) - 1)));
        Answer {
            status: 206,
            headers,
            body: object.bytes.get(start..end).unwrap_or_default().to_vec(),
        }
    }

    /// A part of a list.
    pub fn list(&self, bucket: &str, request: &Request, dialect: &Dialect) -> Answer {
        let value = |name: &str| request.query.get(name).cloned().unwrap_or_default();
        let prefix = value("prefix");
        let after = [value("start-after"), value("continuation-token")].into_iter().max();
        let after = after.unwrap_or_default();
        let most = if dialect.page_objects == 0 { PAGE_OBJECTS } else { dialect.page_objects };
        let most = value("max-keys").parse().map_or(most, |wanted: usize| wanted.min(most));
        let old = self.past.front().filter(|_| dialect.stale_lists > 0);
        let objects = old.unwrap_or(&self.objects);
        let mut found = objects
            .range::<str, _>((Bound::Excluded(after.as_str()), Bound::Unbounded))
            .filter(|(key, _)| key.starts_with(&prefix));
        let page: Vec<_> = found.by_ref().take(most).collect();
        let more = found.next().is_some();
        let mut body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult><Name>{}</Name>\
             <Prefix>{}</Prefix><KeyCount>{}</KeyCount><IsTruncated>{more}</IsTruncated>",
            escaped(bucket),
            escaped(&prefix),
            page.len()
        );
        if let Some((last, _)) = page.last().filter(|_| more) {
            body.push_str(&format!(
                "<NextContinuationToken>{}</NextContinuationToken>",
                escaped(last)
            ));
        }
        for (key, object) in page {
            body.push_str(&format!(
                "<Contents><Key>{}</Key><LastModified>{}</LastModified><ETag>{}</ETag><Size>{}</Size>\
                 <StorageClass>STANDARD</StorageClass></Contents>",
                escaped(key),
                iso_date(object.stored_s),
                escaped(&object.etag),
                object.bytes.len()
            ));
        }
        body.push_str("</ListBucketResult>");
        let headers = vec![("content-type", "application/xml".to_string())];
        Answer { status: 200, headers, body: body.into_bytes() }
    }

    /// The keys of all objects.
    pub fn keys(&self) -> Vec<String> {
        self.objects.keys().cloned().collect()
    }

    /// The bytes of an object.
    pub fn bytes(&self, key: &str) -> Option<Vec<u8>> {
        self.objects.get(key).map(|object| object.bytes.to_vec())
    }
}

/// The first byte of a range and the one behind its last; `None` for what is not such a range.
fn parsed_range(range: &str, length: usize) -> Option<(usize, usize)> {
    let (start, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let start: usize = start.parse().ok()?;
    let end = if last.is_empty() { length } else { last.parse::<usize>().ok()? + 1 };
    Some((start, end.min(length).max(start)))
}

/// Year, month and day of a number of days since 1970.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// A number of days since 1970.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * shifted_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - 719_468
}

fn iso_date(s: i64) -> String {
    let (year, month, day) = civil(s.div_euclid(86_400));
    let of_day = s.rem_euclid(86_400);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z")
}

fn http_date(s: i64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let since = s.div_euclid(86_400);
    let (year, month, day) = civil(since);
    let weekday = DAYS[usize::try_from(since.rem_euclid(7)).unwrap_or_default()];
    let month = MONTHS[usize::try_from(month - 1).unwrap_or_default()];
    let of_day = s.rem_euclid(86_400);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

/// Seconds since 1970 of the time in a signature: `20261127T084332Z`.
pub fn signature_time(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let day = days(number(0, 4)?, number(4, 6)?, number(6, 8)?);
    Some(day * 86_400 + number(9, 11)? * 3600 + number(11, 13)? * 60 + number(13, 15)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(http_date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(http_date(1_795_769_012), "Fri, 27 Nov 2026 08:43:32 GMT");
        assert_eq!(iso_date(1_795_769_012), "2026-11-27T08:43:32.000Z");
        assert_eq!(signature_time("20261127T084332Z"), Some(1_795_769_012));
        assert_eq!(civil(days(2024, 2, 29)), (2024, 2, 29));
    }

    #[test]
    fn ranges_end_with_the_object() {
        assert_eq!(parsed_range("bytes=2-5", 10), Some((2, 6)));
        assert_eq!(parsed_range("bytes=2-50", 10), Some((2, 10)));
        assert_eq!(parsed_range("bytes=12-50", 10), Some((12, 12)));
        assert_eq!(parsed_range("bytes=4-", 10), Some((4, 10)));
    }
}
