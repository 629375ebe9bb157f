//! The content of a store as text: everything that a user can see, and what only `check` and
//! the directories show.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::Path;

use marcot::{CheckOptions, Image, Namespace, Pool, Result, SnapInfo, Store};

/// The state before and after garbage collection of every pool: nothing needed may be removed, and nothing
/// else may stay.
pub fn describe(directory: &Path) -> String {
    let mut text = String::new();
    match Store::open(directory) {
        Ok(store) => {
            show(&store, &mut text);
            for name in store.pools().unwrap_or_default() {
                let collected = store.pool(&name).and_then(|pool| store.gc(&pool, &mut |_, _| {}));
                if let Err(error) = collected {
                    let _ = writeln!(text, "gc of {name}: {error}");
                }
            }
            text.push_str("-- after gc\n");
            show(&store, &mut text);
            litter(&store, &mut text);
        }
        Err(error) => {
            let _ = writeln!(text, "the store does not open: {error}");
        }
    }
    text
}

fn show(store: &Store, text: &mut String) {
    for name in store.pools().unwrap_or_default() {
        let shown = store.pool(&name).and_then(|pool| show_pool(store, &pool, text));
        if let Err(error) = shown {
            let _ = writeln!(text, "pool {name}: {error}");
        }
    }
}

fn show_pool(store: &Store, pool: &Pool, text: &mut String) -> Result<()> {
    for (name, id) in pool.images(&Namespace::DEFAULT)? {
        let info = pool.info(id)?;
        let _ = write!(text, "{}/{name}: {} bytes", pool.name(), info.size_bytes);
        if let Some(parent) = &info.parent {
            let trashed = if parent.trashed { ", removed" } else { "" };
            let _ = write!(
                text,
                ", format {} child of {}/{}@{}{trashed}, overlap {}",
                parent.clone_format,
                parent.pool,
                parent.image,
                if parent.trashed { "?" } else { &parent.snap },
                parent.overlap_bytes
            );
        }
        let _ = writeln!(text, ", content {}", digest(pool.open_read_only(id)));
        for snap in &info.snapshots {
            show_snapshot(store, pool, id, snap, text)?;
        }
        // It must also be possible to open the image.
        let opened = pool.open(id).and_then(Image::close);
        if let Err(error) = opened {
            let _ = writeln!(text, "  cannot be opened: {error}");
        }
    }
    let found = store.check(pool, &CheckOptions::default(), &mut |_, _| {})?.findings;
    for finding in found {
        let _ = writeln!(text, "check of {}: {} {}", pool.name(), finding.image, finding.message);
    }
    Ok(())
}

fn show_snapshot(
    store: &Store,
    pool: &Pool,
    image: marcot::ImageId,
    snap: &SnapInfo,
    text: &mut String,
) -> Result<()> {
    let name = if snap.trashed { &snap.original_name } else { &snap.name };
    let _ = write!(text, "  @{name}: {} bytes", snap.size_bytes);
    for (holds, word) in [(snap.protected, "protected"), (snap.trashed, "removed")] {
        if holds {
            let _ = write!(text, ", {word}");
        }
    }
    let children = store.children(pool, image, Some(snap.id))?;
    for child in children {
        let _ = write!(text, ", child {child}");
    }
    let content = if snap.trashed { None } else { Some(pool.open_snapshot(image, &snap.name)) };
    let _ = writeln!(text, ", content {}", content.map_or_else(String::new, digest));
    Ok(())
}

fn digest(image: Result<Image>) -> String {
    let read = image.and_then(|mut image| {
        let mut content = vec![0; image.size_bytes() as usize];
        image.read_at(0, &mut content)?;
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        Ok(format!("{:016x}", hasher.finish()))
    });
    read.unwrap_or_else(|error| format!("unreadable: {error}"))
}

/// Directories of images without a name, records of children that are gone, temporary files.
fn litter(store: &Store, text: &mut String) {
    for name in store.pools().unwrap_or_default() {
        let Ok(pool) = store.pool(&name) else { continue };
        let count =
            |part: &str| std::fs::read_dir(pool.directory().join(part)).map_or(0, Iterator::count);
        let _ = writeln!(
            text,
            "{name}: {} image directories, {} authors, {} child records, {} temporary files",
            count("images"),
            count("segments"),
            count("children"),
            temporary(pool.directory())
        );
    }
}

fn temporary(directory: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let of_entry = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        usize::from(name.to_string_lossy().ends_with(".tmp")) + temporary(&entry.path())
    };
    entries.flatten().map(of_entry).sum()
}
