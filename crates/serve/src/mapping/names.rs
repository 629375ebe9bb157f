//! The names that RBD gives to a mapped image, for programs that find devices by these names:
//!
//! ```text
//!   /dev/rbd0, /dev/rbd0p1                          the device again, and its partitions
//!   /dev/rbd/POOL/[NAMESPACE/]IMAGE[@SNAP]          links to them
//!   /dev/rbd/POOL/[NAMESPACE/]IMAGE[@SNAP]-part1
//! ```
//!
//! A node has the device number of the loop or NBD device under it. Where the system forbids making nodes,
//! the name is a link to that device. If a name cannot be made, the device is used without it.
//!
//! Invariants:
//! - A name that exists already is never replaced. It is removed only if this module makes such names: a node
//!   or link `rbdN` to a loop or NBD device, or a link below `rbd/` to such a name.
//! - No name leads out of the directory: a part that is `.` or `..` or holds `/` gets no link.

use std::fs::Metadata;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dev, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, makedev, openat, statat,
};
use rustix::io::Errno;

use super::sysfs::{self, Partition};

/// Variable that gives another directory than `/dev` for the names, for containers.
pub const DEVICE_VARIABLE: &str = "MARCOT_DEV_DIR";
const DEVICE_DIRECTORY: &str = "/dev";
/// Directory of the links, and what the names of nodes begin with.
const RBD: &str = "rbd";
const LINK_DIRECTORY_MODE: u32 = 0o755;
/// Longest file name in bytes.
const FILE_NAME_BYTES_MAX: usize = 255;
/// How often making a link is tried at most. Another process may remove an empty directory above it meanwhile.
const ATTEMPTS_MAX: u32 = 10;
/// Pools, namespaces, images.
const LINK_DEPTH_MAX: u32 = 3;

/// The names that were made for a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeviceNames {
    /// The directory of the names: `/dev`.
    directory: PathBuf,
    /// `rbdN`, where it was made.
    node: Option<String>,
    /// The parts of the link, where it was made: pool, namespace if any, and image.
    link: Option<Vec<String>>,
}

impl DeviceNames {
    /// The node, such as `/dev/rbd0`.
    #[must_use]
    pub fn node(&self) -> Option<PathBuf> {
        self.node.as_ref().map(|node| self.directory.join(node))
    }

    /// True where they can be the names of device number `id`.
    pub(super) fn are_of(&self, id: u32) -> bool {
        self.node.as_ref().is_none_or(|node| *node == node_name(id))
    }

    /// Makes the names of device number `id`.
    #[must_use]
    pub fn make(id: u32, device: &Path, link: &[String]) -> Self {
        let mut names = Self { directory: device_directory(), ..Self::default() };
        let Some(tree) = Tree::open(&names.directory) else { return names };
        let node = node_name(id);
        match tree.make_node(&node, device) {
            Ok(()) => names.node = Some(node),
            Err(error) => {
                tracing::debug!(node, %error, "device without a name of RBD's");
                return names;
            }
        }
        names.link_in(&tree, device, link);
        names
    }

    /// Gives the device another link.
    pub fn link(&mut self, device: &Path, link: &[String]) {
        if let Some(tree) = Tree::open(&self.directory) {
            self.link_in(&tree, device, link);
        }
    }

    fn link_in(&mut self, tree: &Tree, device: &Path, link: &[String]) {
        let Some(node) = &self.node else { return };
        if let Some(old) = self.link.take() {
            for partition in sysfs::partitions(device) {
                tree.remove_link(&part_link(&old, partition.number), &part_node(node, &partition));
            }
            tree.remove_link(&old, node);
        }
        match tree.make_link(link, node) {
            Ok(()) => self.link = Some(link.to_vec()),
            Err(error) => tracing::warn!(link = link.join("/"), %error, "device without a link"),
        }
        self.follow_partitions_in(tree, device);
    }

    /// Makes names for the device's present partitions, and removes names of partitions that are gone.
    pub fn follow_partitions(&self, device: &Path) {
        if let Some(tree) = Tree::open(&self.directory) {
            self.follow_partitions_in(&tree, device);
        }
    }

    fn follow_partitions_in(&self, tree: &Tree, device: &Path) {
        let Some(node) = &self.node else { return };
        if !tree.is_ours(node, device) {
            return;
        }
        let partitions = sysfs::partitions(device);
        let wanted: Vec<String> = partitions.iter().map(|p| part_node(node, p)).collect();
        for name in tree.partitions_of(node) {
            let made = wanted.iter().position(|w| *w == name).map(|i| &partitions[i]);
            if !made.is_some_and(|p| tree.is_ours(&name, &p.device)) {
                self.remove_partition(tree, &name);
            }
        }
        for (partition, name) in partitions.iter().zip(&wanted) {
            let linked = match tree.make_node(name, &partition.device) {
                Ok(()) | Err(Errno::EXIST) => self.link.as_ref().map_or(Ok(()), |link| {
                    tree.make_link(&part_link(link, partition.number), name)
                }),
                Err(error) => Err(error),
            };
            if let Err(error) = linked {
                tracing::debug!(name, %error, "partition without a name of RBD's");
            }
        }
    }

    fn remove_partition(&self, tree: &Tree, name: &str) {
        let number = name.rsplit('p').next().and_then(|n| n.parse().ok());
        if let (Some(link), Some(number)) = (&self.link, number) {
            tree.remove_link(&part_link(link, number), name);
        }
        tree.remove(name);
    }

    /// Removes the names that still belong to this device.
    pub fn remove(&self, device: &Path) {
        let (Some(tree), Some(node)) = (Tree::open(&self.directory), &self.node) else { return };
        if let Some(link) = &self.link {
            tree.remove_link(link, node);
        }
        if tree.is_ours(node, device) {
            for name in tree.partitions_of(node) {
                self.remove_partition(&tree, &name);
            }
            tree.remove(node);
        }
        tree.sweep_links();
    }
}

/// True where no device has the name `rbdN`.
#[must_use]
pub fn is_free(id: u32) -> bool {
    let path = device_directory().join(node_name(id));
    std::fs::symlink_metadata(path).is_err()
}

/// Removes names of devices that are gone. Names in `kept` are in use and stay.
pub fn sweep(kept: &[&DeviceNames]) {
    let Some(tree) = Tree::open(&device_directory()) else { return };
    for name in tree.names() {
        let whole = name.strip_prefix(RBD).is_some_and(is_number);
        let known = kept.iter().any(|k| k.node.as_ref() == Some(&name) && k.directory == tree.path);
        if whole && !known && tree.device_is_gone(&name) {
            for partition in tree.partitions_of(&name) {
                tree.remove(&partition);
            }
            tree.remove(&name);
        }
    }
    tree.sweep_links();
}

/// The parts of the link for an image; none where a part cannot be a file name.
#[must_use]
pub fn link_of(pool: &str, namespace: &str, image: &str, snap: &str) -> Vec<String> {
    let last = if snap.is_empty() { image.to_owned() } else { format!("{image}@{snap}") };
    let middle = (!namespace.is_empty()).then(|| namespace.to_owned());
    std::iter::once(pool.to_owned()).chain(middle).chain([last]).collect()
}

/// The directory of devices, in which the names are made: `/dev`, or what [`DEVICE_VARIABLE`] says.
#[must_use]
pub fn device_directory() -> PathBuf {
    let set = std::env::var_os(DEVICE_VARIABLE).filter(|v| !v.is_empty());
    let directory = set.map_or_else(|| PathBuf::from(DEVICE_DIRECTORY), PathBuf::from);
    std::path::absolute(&directory).unwrap_or(directory)
}

fn node_name(id: u32) -> String {
    format!("{RBD}{id}")
}

fn part_node(node: &str, partition: &Partition) -> String {
    format!("{node}p{}", partition.number)
}

fn part_link(link: &[String], number: u32) -> Vec<String> {
    let mut link = link.to_vec();
    if let Some(last) = link.last_mut() {
        last.push_str(&format!("-part{number}"));
    }
    link
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_file_name(part: &str) -> bool {
    let plain = !part.contains(|c: char| c == '/' || c.is_control());
    plain && !matches!(part, "" | "." | "..") && part.len() <= FILE_NAME_BYTES_MAX
}

/// The directory of the names.
struct Tree {
    path: PathBuf,
    fd: OwnedFd,
    /// Device nodes in this directory can be opened.
    nodes: bool,
}

const OPEN_DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Tree {
    fn open(path: &Path) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty()).ok()?;
        let mounted = rustix::fs::fstatvfs(&fd).ok()?.f_flag;
        let nodes = !mounted.contains(rustix::fs::StatVfsMountFlags::NODEV);
        Some(Self { path: path.to_owned(), fd, nodes })
    }

    fn stat(&self, name: &str) -> Option<Stat> {
        statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()
    }

    fn names(&self) -> Vec<String> {
        let Ok(entries) = Dir::read_from(&self.fd) else { return Vec::new() };
        let name = |e: rustix::fs::DirEntry| Some(e.file_name().to_str().ok()?.to_owned());
        entries.filter_map(|entry| name(entry.ok()?)).collect()
    }

    fn partitions_of(&self, node: &str) -> Vec<String> {
        let of_node = |name: &String| {
            name.strip_prefix(node).and_then(|rest| rest.strip_prefix('p')).is_some_and(is_number)
        };
        let made_here = |name: &String| {
            let kind = self.stat(name).map(|s| FileType::from_raw_mode(s.st_mode));
            matches!(kind, Some(FileType::BlockDevice | FileType::Symlink))
        };
        self.names().into_iter().filter(of_node).filter(made_here).collect()
    }

    /// Makes `name` a node with the number and rights of `device`, or a link to it.
    fn make_node(&self, name: &str, device: &Path) -> rustix::io::Result<()> {
        if self.is_ours(name, device) {
            return Ok(());
        }
        let made = match std::fs::metadata(device) {
            Ok(of) if self.nodes => self.make_block_device(name, &of),
            _ => Err(Errno::PERM),
        };
        match made {
            Err(Errno::PERM | Errno::ACCESS) => rustix::fs::symlinkat(device, &self.fd, name),
            made => made,
        }
    }

    fn make_block_device(&self, name: &str, of: &Metadata) -> rustix::io::Result<()> {
        let number = uniform(of.rdev());
        rustix::fs::mknodat(&self.fd, name, FileType::BlockDevice, Mode::empty(), number)?;
        // Owner and permissions are those of the device. Where that fails only root can use the node.
        let (user, group) = (Uid::from_raw(of.uid()), Gid::from_raw(of.gid()));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let _ = rustix::fs::chownat(&self.fd, name, Some(user), Some(group), flags);
        let mode = Mode::from_raw_mode(of.mode() & 0o666);
        let _ = rustix::fs::chmodat(&self.fd, name, mode, AtFlags::empty());
        Ok(())
    }

    /// True where `name` is a node with the number of `device`, or a link to it.
    fn is_ours(&self, name: &str, device: &Path) -> bool {
        let Some(stat) = self.stat(name) else { return false };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => {
                let of_device = std::fs::metadata(device);
                of_device.is_ok_and(|of| uniform(of.rdev()) == uniform(stat.st_rdev))
            }
            FileType::Symlink => {
                self.target(&self.fd, name).is_some_and(|t| Path::new(&t) == device)
            }
            _ => false,
        }
    }

    /// True for a node or link `rbdN` that this module made for a device that is gone.
    fn device_is_gone(&self, name: &str) -> bool {
        let Some(stat) = self.stat(name) else { return false };
        let device = match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => sysfs::device_of(uniform(stat.st_rdev)),
            FileType::Symlink => self.target(&self.fd, name).map(PathBuf::from),
            _ => None,
        };
        device.is_some_and(|device| sysfs::is_gone(&device))
    }

    fn target(&self, directory: &OwnedFd, name: &str) -> Option<String> {
        rustix::fs::readlinkat(directory, name, Vec::new()).ok()?.into_string().ok()
    }

    fn remove(&self, name: &str) {
        let _ = rustix::fs::unlinkat(&self.fd, name, AtFlags::empty());
    }

    /// Makes `rbd/PARTS` a link to `node`. It is no error if the link exists.
    fn make_link(&self, parts: &[String], node: &str) -> rustix::io::Result<()> {
        let Some((last, above)) = parts.split_last() else { return Err(Errno::INVAL) };
        if !parts.iter().all(|part| is_file_name(part)) {
            return Err(Errno::INVAL);
        }
        let target = target_of(parts, node);
        for _ in 0..ATTEMPTS_MAX {
            let directory = match self.open_parents(above, true) {
                Err(Errno::NOENT) => continue,
                directory => directory?,
            };
            match rustix::fs::symlinkat(&target, &directory, last.as_str()) {
                // Another process has removed the empty directory.
                Err(Errno::NOENT) => {}
                Err(Errno::EXIST) if self.target(&directory, last).as_ref() == Some(&target) => {
                    return Ok(());
                }
                made => return made,
            }
        }
        Err(Errno::NOENT)
    }

    /// Removes `rbd/PARTS` where it is a link to `node`, and directories above it that are then empty.
    fn remove_link(&self, parts: &[String], node: &str) {
        let Some((last, above)) = parts.split_last() else { return };
        if !parts.iter().all(|part| is_file_name(part)) {
            return;
        }
        let Ok(directory) = self.open_parents(above, false) else { return };
        if self.target(&directory, last) == Some(target_of(parts, node)) {
            let _ = rustix::fs::unlinkat(&directory, last.as_str(), AtFlags::empty());
        }
    }

    fn open_parents(&self, parts: &[String], make: bool) -> rustix::io::Result<OwnedFd> {
        let mut directory = openat(&self.fd, ".", OPEN_DIRECTORY, Mode::empty())?;
        for part in std::iter::once(RBD).chain(parts.iter().map(String::as_str)) {
            if make {
                let mode = Mode::from_raw_mode(LINK_DIRECTORY_MODE);
                match rustix::fs::mkdirat(&directory, part, mode) {
                    Ok(()) => {
                        // Set despite the umask: the names are for everybody who may use the devices.
                        let _ = rustix::fs::chmodat(&directory, part, mode, AtFlags::empty());
                    }
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
            }
            directory = openat(&directory, part, OPEN_DIRECTORY, Mode::empty())?;
        }
        Ok(directory)
    }

    /// Removes links below `rbd/` to nodes that are gone, and directories that are then empty.
    fn sweep_links(&self) {
        if let Ok(links) = openat(&self.fd, RBD, OPEN_DIRECTORY, Mode::empty()) {
            self.sweep_directory(&links, LINK_DEPTH_MAX);
            drop(links);
            let _ = rustix::fs::unlinkat(&self.fd, RBD, AtFlags::REMOVEDIR);
        }
    }

    fn sweep_directory(&self, directory: &OwnedFd, depth: u32) {
        let Ok(entries) = Dir::read_from(directory) else { return };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") {
                continue;
            }
            if let Some(target) = self.target(directory, name) {
                let node = target.trim_start_matches("../");
                let number = node.strip_prefix(RBD).unwrap_or_default();
                let made_here = target.starts_with("../") && number.split('p').all(is_number);
                if made_here && self.stat(node).is_none() {
                    let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
                }
            } else if depth > 0
                && let Ok(below) = openat(directory, name, OPEN_DIRECTORY, Mode::empty())
            {
                self.sweep_directory(&below, depth - 1);
                let _ = rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR);
            }
        }
    }
}

/// The target of a link `rbd/PARTS`.
fn target_of(parts: &[String], node: &str) -> String {
    format!("{}{node}", "../".repeat(parts.len()))
}

/// A device number in one form, whatever its source.
fn uniform(number: Dev) -> Dev {
    makedev(rustix::fs::major(number), rustix::fs::minor(number))
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
