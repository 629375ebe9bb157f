//! What was put aside on this host: `HOST/aside/N.T`, the directory of an image's segments as the owner left it whom
//! another host has replaced. `N` is the image, and `T` the term that this host began then.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use marcot_format::ImageId;
use marcot_format::segment::SegmentKind;
use marcot_store::DiskFile;

use super::segments::Inner;
use crate::Tail;
use crate::local::layout;

/// The directory of a host for all of them.
pub(super) const ASIDE: &str = "aside";

/// The image of a name, where it is one of these names. Nothing else may become a part of a path.
fn parse(name: &str) -> Option<ImageId> {
    let (image, term) = name.split_once('.')?;
    let is_term = term.len() == 16 && u64::from_str_radix(term, 16).is_ok();
    layout::parse_image(image).filter(|found| is_term && found.to_string() == image)
}

impl Inner {
    fn tail_path(&self, name: &str) -> io::Result<PathBuf> {
        match parse(name) {
            Some(_) => Ok(self.host.path.join(ASIDE).join(name)),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// See [`crate::Shipping::tails`].
    pub(super) fn tails(&self) -> io::Result<Vec<Tail>> {
        let (disk, aside) = (&self.host.disk, self.host.path.join(ASIDE));
        let names = match disk.list(&aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            names => names?,
        };
        let mut tails = Vec::new();
        for name in names {
            let Some(image) = parse(&name) else { continue };
            match self.measure(&aside.join(&name)) {
                Ok((since_s, bytes)) => tails.push(Tail { name, image, since_s, bytes }),
                // Somebody removes it at this moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        tails.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tails)
    }

    /// When a directory was filled, and what its files take.
    fn measure(&self, path: &Path) -> io::Result<(i64, u64)> {
        let disk = &self.host.disk;
        let since_s = disk.modified_s(path)?;
        let mut bytes = 0;
        for file in disk.list(path)? {
            bytes += disk.open(&path.join(file), false)?.allocated_bytes()?;
        }
        Ok((since_s, bytes))
    }

    /// See [`crate::Shipping::open_tail`].
    pub(super) fn open_tail(&self, name: &str) -> io::Result<Vec<(u32, Arc<dyn DiskFile>)>> {
        let (disk, path) = (&self.host.disk, self.tail_path(name)?);
        let mut opened = Vec::new();
        for file in disk.list(&path)? {
            if let Some((SegmentKind::Data, sequence)) = layout::parse_segment(&file) {
                opened.push((sequence, disk.open(&path.join(&file), false)?));
            }
        }
        opened.sort_by_key(|(sequence, _)| *sequence);
        Ok(opened)
    }

    /// See [`crate::Shipping::remove_tail`].
    pub(super) fn remove_tail(&self, name: &str) -> io::Result<()> {
        let (disk, path) = (&self.host.disk, self.tail_path(name)?);
        for file in disk.list(&path)? {
            disk.remove_file(&path.join(file))?;
        }
        disk.remove_directory(&path)?;
        disk.sync_directory(&self.host.path.join(ASIDE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_an_image_and_a_term_are_accepted() {
        let image = ImageId(0xabc);
        let name = format!("{image}.0000000000000002");
        assert_eq!(parse(&name), Some(image));
        for other in ["", "..", "../x", &name[1..], &format!("{name}/.."), &format!("{image}.2")] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
