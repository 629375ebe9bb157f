//! What the kernel says about its block devices in `/sys`.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Dev, major, minor};

/// A partition of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number in the partition table.
    pub number: u32,
    /// Its device, such as `/dev/loop0p1`.
    pub device: PathBuf,
}

fn directory(device: &Path) -> Option<PathBuf> {
    let name = device.strip_prefix("/dev").ok()?.to_str()?;
    (!name.contains('/')).then(|| Path::new("/sys/class/block").join(name))
}

/// The partitions of a device, as the kernel knows them now.
#[must_use]
pub fn partitions(device: &Path) -> Vec<Partition> {
    let entries = directory(device).and_then(|d| std::fs::read_dir(d).ok());
    let whole = device.file_name().unwrap_or_default().as_encoded_bytes();
    let partition = |entry: std::fs::DirEntry| {
        if !entry.file_name().as_encoded_bytes().starts_with(whole) {
            return None;
        }
        let number = std::fs::read_to_string(entry.path().join("partition")).ok()?;
        let device = Path::new("/dev").join(entry.file_name());
        Some(Partition { number: number.trim_end().parse().ok()?, device })
    };
    let mut found: Vec<Partition> =
        entries.into_iter().flatten().flatten().filter_map(partition).collect();
    found.sort_by_key(|p| p.number);
    found
}

/// The device with a number, such as `/dev/loop0`.
pub(super) fn device_of(number: Dev) -> Option<PathBuf> {
    let link = format!("/sys/dev/block/{}:{}", major(number), minor(number));
    let target = std::fs::read_link(link).ok()?;
    Some(Path::new("/dev").join(target.file_name()?))
}

/// The device behind a path, by the kernel's name.
pub(super) fn device_at(path: &Path) -> Option<PathBuf> {
    let metadata = std::fs::metadata(path).ok().filter(|m| m.file_type().is_block_device())?;
    device_of(metadata.rdev())
}

/// The whole device behind a path: a device, a partition of it, or a link to either.
#[must_use]
pub fn whole_device(path: &Path) -> Option<PathBuf> {
    let metadata = std::fs::metadata(path).ok().filter(|m| m.file_type().is_block_device())?;
    let number = metadata.rdev();
    let link = format!("/sys/dev/block/{}:{}", major(number), minor(number));
    let directory = std::fs::canonicalize(link).ok()?;
    let whole = match directory.join("partition").exists() {
        true => directory.parent()?,
        false => &directory,
    };
    Some(Path::new("/dev").join(whole.file_name()?))
}

/// The file behind a loop device; `None` where there is none.
pub(super) fn backing_file(device: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(directory(device)?.join("loop/backing_file")).ok()?;
    Some(PathBuf::from(text.strip_suffix('\n').unwrap_or(&text)))
}

/// Loop devices that show a file in `directory`.
pub(super) fn loop_devices_of(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
    let devices = entries.map(|entry| Path::new("/dev").join(entry.file_name()));
    let shows =
        |device: &PathBuf| backing_file(device).is_some_and(|file| file.starts_with(directory));
    devices.filter(shows).collect()
}

/// A device, its partitions, and what is built on them (volumes, RAID), as `/dev/NAME`.
pub(super) fn with_holders(device: &Path) -> Vec<PathBuf> {
    let mut found = vec![device.to_owned()];
    let mut next = 0;
    while let Some(device) = found.get(next).cloned() {
        next += 1;
        let holders = directory(&device).map(|d| d.join("holders"));
        let holders =
            holders.and_then(|d| std::fs::read_dir(d).ok()).into_iter().flatten().flatten();
        let holders = holders.map(|entry| Path::new("/dev").join(entry.file_name()));
        let above: Vec<_> =
            holders.chain(partitions(&device).into_iter().map(|p| p.device)).collect();
        for device in above {
            if !found.contains(&device) {
                found.push(device);
            }
        }
    }
    found
}

/// The number of a device, in the form of `/proc/self/mountinfo`.
pub(super) fn number_text(device: &Path) -> Option<String> {
    let text = std::fs::read_to_string(directory(device)?.join("dev")).ok()?;
    Some(text.trim_end().to_owned())
}

/// The label of an NBD device; empty where it has none, `None` where it is not connected.
pub(super) fn nbd_label(device: &Path) -> Option<String> {
    let directory = directory(device)?;
    std::fs::metadata(directory.join("pid")).ok()?;
    let label = std::fs::read_to_string(directory.join("backend")).unwrap_or_default();
    Some(label.trim_end_matches('\n').to_owned())
}

/// True for a loop or NBD device that shows nothing, or a loop device that shows something else than
/// an image.
pub(super) fn is_gone(device: &Path) -> bool {
    let name = device.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if name.starts_with("nbd") {
        return nbd_label(device).is_none();
    }
    let of_image = |file: PathBuf| {
        let mount = file.parent().and_then(Path::extension);
        mount.is_some_and(|extension| extension == "mount")
    };
    name.starts_with("loop") && !backing_file(device).is_some_and(of_image)
}
