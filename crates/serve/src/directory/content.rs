//! Requests to the content of open files.

use std::sync::{Arc, Mutex, PoisonError};

use fuser::{Errno, ReplyData, ReplyEmpty, ReplyLseek, ReplyWrite};
use marcot::{Error, ErrorKind, Extent, Result};

use super::Reader;
use super::files::{Files, Hosted, Way, in_background, report};
use crate::control::{Command, Reply};
use crate::fuse_mounts::{answer, errno};
use crate::host::{Completion, DeviceRequest};

/// As for the kernel. A write or a size that no image can have is a file that is too big.
pub(super) fn size_errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::Invalid | ErrorKind::OutOfRange => Errno::EFBIG,
        _ => errno(error),
    }
}

/// How many of `size` bytes at `offset` lie in an image.
fn within(size: u32, offset: u64, size_bytes: u64) -> usize {
    u64::from(size).min(size_bytes.saturating_sub(offset)) as usize
}

pub(super) fn read(
    files: &Arc<Files>,
    way: &Way,
    number: u64,
    offset: u64,
    size: u32,
    reply: ReplyData,
) {
    let answer = move |outcome: Result<Vec<u8>>| match outcome {
        Ok(bytes) => reply.data(&bytes),
        Err(error) => reply.error(errno(&error)),
    };
    match way {
        Way::Here(hosted) => {
            let length = within(size, offset, hosted.size_bytes());
            if length == 0 {
                return answer(Ok(Vec::new()));
            }
            hosted.host.submit(DeviceRequest::Read { offset, length }, Completion::new(answer));
        }
        Way::Elsewhere(reader) => {
            let (files, reader) = (Arc::clone(files), Arc::clone(reader));
            in_background(move || {
                let image = files.entry(number);
                answer(image.and_then(|image| {
                    read_elsewhere(&reader, offset, within(size, offset, image.size_bytes))
                }));
            });
        }
    }
}

fn read_elsewhere(reader: &Mutex<Box<dyn Reader>>, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    if length > 0 {
        reader.lock().unwrap_or_else(PoisonError::into_inner).read(offset, &mut bytes)?;
    }
    Ok(bytes)
}

pub(super) fn write(
    files: &Arc<Files>,
    hosted: &Arc<Hosted>,
    offset: u64,
    data: &[u8],
    reply: ReplyWrite,
) {
    let length = data.len() as u32;
    let Some(end) = offset.checked_add(u64::from(length)) else {
        return reply.error(Errno::EFBIG);
    };
    let done = Completion::new(move |outcome| match outcome {
        Ok(_) => reply.written(length),
        Err(error) => reply.error(size_errno(&error)),
    });
    let request = DeviceRequest::Write { offset, data: data.to_vec(), fua: false };
    if end <= hosted.size_bytes() {
        return hosted.host.submit(request, done);
    }
    let (files, hosted) = (Arc::clone(files), Arc::clone(hosted));
    in_background(move || match files.grow(&hosted, end) {
        Ok(()) => hosted.host.submit(request, done),
        Err(error) => {
            report(hosted.number, "refused to grow", &error);
            done.fail(error);
        }
    });
}

/// Makes holes. Nothing else is offered: space is never reserved.
pub(super) fn fallocate(hosted: &Hosted, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
    let zeroes = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
    let size_bytes = hosted.size_bytes();
    let grows = mode & libc::FALLOC_FL_KEEP_SIZE == 0
        && offset.checked_add(length).is_none_or(|end| end > size_bytes);
    if mode & zeroes == 0 || grows {
        return reply.error(Errno::EOPNOTSUPP);
    }
    let length = length.min(size_bytes.saturating_sub(offset));
    if length == 0 {
        return reply.ok();
    }
    hosted.host.submit(DeviceRequest::Discard { offset, length, fua: false }, answer(reply));
}

/// Finds the next data or the next hole.
pub(super) fn lseek(
    files: &Arc<Files>,
    way: Way,
    number: u64,
    offset: i64,
    data: bool,
    reply: ReplyLseek,
) {
    let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
    let files = Arc::clone(files);
    in_background(move || {
        let image = files.entry(number);
        let found = image.and_then(|image| seek(&way, offset, image.size_bytes, data));
        match found.map(|found| found.and_then(|offset| i64::try_from(offset).ok())) {
            Ok(Some(offset)) => reply.offset(offset),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(errno(&error)),
        }
    });
}

/// The first byte of data, or of a hole, from `offset` on; `None` if none follows. The end counts as a hole.
fn seek(way: &Way, offset: u64, size_bytes: u64, data: bool) -> Result<Option<u64>> {
    if offset >= size_bytes {
        return Ok(None);
    }
    let mut at = offset;
    while at < size_bytes {
        let begin = at;
        for extent in extents(way, at, size_bytes - at)? {
            let end = (extent.offset + extent.length).min(size_bytes);
            if extent.data == data && end > at {
                return Ok(Some(at.max(extent.offset)));
            }
            at = at.max(end);
        }
        if at == begin {
            break;
        }
    }
    Ok((!data).then_some(size_bytes))
}

fn extents(way: &Way, offset: u64, length: u64) -> Result<Vec<Extent>> {
    match way {
        Way::Elsewhere(reader) => {
            reader.lock().unwrap_or_else(PoisonError::into_inner).extents(offset, length)
        }
        Way::Here(hosted) => {
            match hosted.host.execute(Command::Extents { offset, length }, &mut |_, _| {})? {
                Reply::Extents { extents } => Ok(extents.into_iter().map(Extent::from).collect()),
                _ => Err(Error::new(ErrorKind::Io, "the image gave another answer than extents")),
            }
        }
    }
}
