//! A stream kept in a temporary file without a name, so that it can be read at any place.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// How much is read at a time, and the step in which zeros become holes, in bytes.
const PIECE_BYTES: usize = 1 << 20;
const GRAIN_BYTES: usize = 4096;

/// The directory for temporary files: `TMPDIR`, else `/var/tmp`, which is no memory as `/tmp` may be.
#[must_use]
pub fn directory() -> PathBuf {
    let given = std::env::var_os("TMPDIR").filter(|path| !path.is_empty());
    given.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// Reads `stream` to its end. The file disappears with its last handle, also if the process is killed.
///
/// # Errors
/// Those of reading, and `Io` if the file cannot be written.
pub fn keep(stream: &mut dyn Read) -> Result<File> {
    let not_written = |error: std::io::Error| {
        let place = directory();
        let message = format!("a copy of it in '{}' cannot be written: {error}", place.display());
        Error::io(message, error)
    };
    let file = tempfile::tempfile_in(directory()).map_err(not_written)?;
    let (mut piece, mut offset) = (vec![0; PIECE_BYTES], 0);
    loop {
        let filled = fill(stream, &mut piece)?;
        for (n, grain) in piece[..filled].chunks(GRAIN_BYTES).enumerate() {
            if grain.iter().any(|byte| *byte != 0) {
                let at = offset + (n * GRAIN_BYTES) as u64;
                file.write_all_at(grain, at).map_err(not_written)?;
            }
        }
        offset += filled as u64;
        if filled < piece.len() {
            file.set_len(offset).map_err(not_written)?;
            return Ok(file);
        }
    }
}

/// Reads until `buffer` is full or the stream ends. Returns how many bytes there were.
///
/// # Errors
/// Those of reading.
pub fn fill(stream: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..])? {
            0 => break,
            bytes => filled += bytes,
        }
    }
    Ok(filled)
}
