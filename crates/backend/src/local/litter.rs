//! Temporary files of records, which an interrupted write leaves behind.

use std::path::{Path, PathBuf};

use marcot_store::Disk;

use super::{Place, layout};
use crate::{Beside, ChildKey, Leftover};

/// Limit on the temporary files of a directory that are listed, because other users may fill `children`.
const LEFTOVERS_MAX: usize = 100_000;

/// Hexadecimal digits that tell temporary files of one name apart.
const UNIQUE_DIGITS: usize = 16;

/// The name of the file that a temporary file was to become; `None` for any other file.
fn temporary_for(file: &str) -> Option<&str> {
    let inner = file.strip_prefix('.')?.strip_suffix(".tmp")?;
    let (name, unique) = inner.rsplit_once('.')?;
    let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (!name.is_empty() && unique.len() == UNIQUE_DIGITS && unique.bytes().all(digits))
        .then_some(name)
}

/// Temporary files, sorted; none where the directory cannot be listed.
pub(super) fn leftovers(place: &Place, at: &Beside) -> Vec<Leftover> {
    let directory: PathBuf = match at {
        Beside::Pool => place.directory.clone(),
        Beside::Names(namespace) => layout::names(&place.directory, namespace),
        Beside::Head(image) => layout::image(&place.directory, *image),
        Beside::Children => layout::children(&place.directory),
        Beside::Groups => layout::groups(&place.directory),
    };
    leftovers_in(&*place.disk, &directory)
}

/// Temporary files of any directory, sorted; none where it cannot be listed.
pub fn leftovers_in(disk: &dyn Disk, directory: &Path) -> Vec<Leftover> {
    let mut found = Vec::new();
    // In a directory that cannot be listed nothing can be removed either.
    let _ = disk.visit(directory, &mut |file| {
        if let Some((file, name)) =
            file.to_str().and_then(|file| Some((file, temporary_for(file)?)))
        {
            let path = directory.join(file);
            let child = ChildKey::parse(name);
            let written_s = disk.modified_s(&path).ok();
            found.push(Leftover { shown: path.to_string_lossy().into_owned(), child, written_s });
        }
        found.len() < LEFTOVERS_MAX
    });
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_files_are_told_from_others() {
        assert_eq!(temporary_for(".head.0123456789abcdef.tmp"), Some("head"));
        assert_eq!(temporary_for(".a.b.0123456789abcdef.tmp"), Some("a.b"));
        for other in [
            "head",
            ".tmp",
            ".head.tmp",
            "..0123456789abcdef.tmp",
            "head.0123456789abcdef.tmp",
            ".head.0123456789abcde.tmp",
            ".head.0123456789abcdeg.tmp",
            ".head.0123456789ABCDEF.tmp",
            ".head.0123456789abcdef.tmp~",
        ] {
            assert_eq!(temporary_for(other), None, "{other}");
        }
    }
}
