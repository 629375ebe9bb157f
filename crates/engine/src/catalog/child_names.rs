//! File names of the records of children: they tell who was cloned from what, in numbers.

use std::path::Path;

use marcot_format::PoolId;
use marcot_format::record::ChildRecord;

use super::litter::temporary_for;

/// The numbers in a record's file name: parent pool, image, snapshot; child pool, image.
pub(super) type Key = (u64, u64, u64, u64, u64);

/// Clone formats that a record's file name can tell, and what comes before the snapshot's number then.
/// A name of an earlier version has nothing there.
pub(super) const FORMAT_MARKS: [(u32, &str); 3] = [(0, ""), (1, "0"), (2, "00")];

/// The file name of a record; `clone_format` 0: as earlier versions wrote it.
pub(super) fn file_name(record: &ChildRecord, clone_format: u32) -> String {
    let mark = FORMAT_MARKS.iter().find(|(format, _)| *format == clone_format).map_or("", |m| m.1);
    format!(
        "{:016x}.{:016x}.{mark}{:x}.{:016x}.{:016x}",
        record.parent_pool_id,
        record.parent_image_id,
        record.parent_snap_id,
        record.child_pool_id,
        record.child_image_id
    )
}

/// The clone format that a record's file name tells; 0 where only the child can.
pub(super) fn format_in_file_name(name: &str) -> u32 {
    let number = name.split('.').nth(2).unwrap_or_default();
    let zeros = number.len() - number.trim_start_matches('0').len();
    FORMAT_MARKS.iter().find(|(_, mark)| mark.len() == zeros).map_or(0, |m| m.0)
}

/// The numbers that a record's file name is made of; `None` for other files.
pub(super) fn parse_file_name(name: &str) -> Option<Key> {
    let mut parts = name.split('.').map(|p| u64::from_str_radix(p, 16).ok());
    let mut next = || parts.next().flatten();
    let key = (next()?, next()?, next()?, next()?, next()?);
    parts.next().is_none().then_some(key)
}

/// True for the temporary file of a record of a child in the pool with that number.
pub(super) fn temporary_of_pool(path: &Path, child_pool: PoolId) -> bool {
    let file = path.file_name().and_then(|name| name.to_str()).and_then(temporary_for);
    file.and_then(parse_file_name).is_some_and(|key| key.3 == child_pool.0)
}

/// True for a whole record that was written under another file name.
pub(super) fn is_of_another_name(record: &ChildRecord, key: Key) -> bool {
    let told = (
        record.parent_pool_id,
        record.parent_image_id,
        record.parent_snap_id,
        record.child_pool_id,
        record.child_image_id,
    );
    *record != ChildRecord::default() && told != key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_names_survive_the_trip() {
        let record = ChildRecord {
            parent_pool_id: 1,
            parent_image_id: 2,
            parent_snap_id: 3,
            child_pool_id: 4,
            child_image_id: u64::MAX,
            ..ChildRecord::default()
        };
        for format in 0..=2 {
            let name = file_name(&record, format);
            assert_eq!(parse_file_name(&name), Some((1, 2, 3, 4, u64::MAX)), "{name}");
            assert_eq!(format_in_file_name(&name), format, "{name}");
        }
        for bad in ["", "1.2.3.4", "1.2.3.4.5.6", "x.2.3.4.5", ".1.2.3.4"] {
            assert_eq!(parse_file_name(bad), None, "{bad}");
        }
    }
}
