//! `export --export-format qcow2`: an image or snapshot as a qcow2 file.

use marcot_client::content::Content;
use marcot_foreign::qcow2::writer::{CLUSTER_BYTES, Clusters, Layout};

use super::sink::Sink;
use crate::errno::EOPNOTSUPP;
use crate::failure::{Failure, Outcome};
use crate::progress::Progress;

/// How much is read at a time, in bytes.
const PIECE_BYTES: u64 = 4 << 20;

/// Writes `content`. Clusters without data are left out. `unreadable` makes the failure for content that cannot be read,
/// `unwritable` that for the file.
pub fn export_qcow2(
    content: &mut dyn Content,
    sink: &mut Sink,
    progress: &mut Progress,
    unreadable: &dyn Fn(marcot::Error) -> Failure,
    unwritable: &dyn Fn(std::io::Error) -> Failure,
) -> Outcome {
    let size_bytes = content.size_bytes();
    let clusters = clusters_of(content).map_err(unreadable)?;
    let layout = Layout::new(size_bytes, &clusters)
        .map_err(|error| Failure::errno("export error", EOPNOTSUPP).because(error))?;
    let mut append = |bytes: &[u8]| sink.append(bytes);
    layout.write_tables(&clusters, &mut append).map_err(unwritable)?;
    let mut indices = clusters.iter().peekable();
    let mut buffer = Vec::new();
    while let Some(first) = indices.next() {
        let mut end = first + 1;
        while (end - first) * CLUSTER_BYTES < PIECE_BYTES && indices.next_if_eq(&end).is_some() {
            end += 1;
        }
        let offset = first * CLUSTER_BYTES;
        let length = (end * CLUSTER_BYTES).min(size_bytes) - offset;
        // At most PIECE_BYTES. The last cluster of the file is a whole one, too.
        buffer.clear();
        buffer.resize(((end - first) * CLUSTER_BYTES) as usize, 0);
        content.read(offset, &mut buffer[..length as usize]).map_err(unreadable)?;
        sink.append(&buffer).map_err(unwritable)?;
        progress.pass_before_end(offset + length, PIECE_BYTES, size_bytes);
    }
    sink.finish_stream().map_err(unwritable)
}

/// The clusters that have data.
fn clusters_of(content: &mut dyn Content) -> marcot::Result<Clusters> {
    let size_bytes = content.size_bytes();
    let (mut clusters, mut offset) = (Clusters::default(), 0);
    while offset < size_bytes {
        let start = offset;
        for extent in content.extents(offset, size_bytes - offset)? {
            offset = (extent.offset + extent.length).min(size_bytes);
            if extent.data {
                clusters.add(extent.offset, offset - extent.offset);
            }
        }
        if offset == start {
            let message = "the map of the image goes nowhere";
            return Err(marcot::Error::new(marcot::ErrorKind::Io, message));
        }
    }
    Ok(clusters)
}
