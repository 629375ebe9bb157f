//! What was put aside on this host, of images that another host has taken over.

use marcot::{ErrorKind, Result, TailChange, TailInfo};

use crate::pool::Pool;
use crate::stream::export::Trouble;
use crate::stream::wire::{Form, Item, What, encode};

const STREAM: What = What::Difference(Form::One);

impl Pool {
    /// See [`marcot::Pool::tails`].
    ///
    /// # Errors
    /// As there.
    pub fn tails(&self) -> Result<Vec<TailInfo>> {
        self.engine().tails()
    }

    /// See [`marcot::Pool::tail`].
    ///
    /// # Errors
    /// As there.
    pub fn tail(&self, name: &str) -> Result<TailInfo> {
        self.engine().tail(name)
    }

    /// See [`marcot::Pool::remove_tail`].
    ///
    /// # Errors
    /// As there.
    pub fn remove_tail(&self, name: &str) -> Result<()> {
        self.engine().remove_tail(name)
    }

    /// Gives the end of a log to `sink` as a difference that `import-diff` takes: the changes in their order. The size in
    /// it is that of the image now, or what the changes need where that is gone.
    ///
    /// # Errors
    /// As [`marcot::Pool::read_tail`]; those of `sink`.
    pub fn export_tail(
        &self,
        tail: &TailInfo,
        sink: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> std::result::Result<(), Trouble> {
        let pool = self.engine();
        let mut size_bytes = 0;
        pool.read_tail(tail, &mut |change| {
            size_bytes = size_bytes.max(match change {
                TailChange::Write { offset, data } => offset + data.len() as u64,
                TailChange::Discard { offset, length } => offset + length,
            });
            Ok(())
        })
        .map_err(Trouble::Image)?;
        match pool.info(tail.image) {
            Ok(info) => size_bytes = size_bytes.max(info.size_bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Trouble::Image(error)),
        }
        let mut bytes = STREAM.banner().to_vec();
        encode(STREAM, &Item::Size(size_bytes), &mut bytes);
        let mut failed = None;
        let read = pool.read_tail(tail, &mut |change| {
            match change {
                TailChange::Write { offset, data } => {
                    let length = data.len() as u64;
                    encode(STREAM, &Item::Write { offset, length }, &mut bytes);
                    bytes.extend_from_slice(data);
                }
                TailChange::Discard { offset, length } => {
                    encode(STREAM, &Item::Zero { offset, length }, &mut bytes);
                }
            }
            if failed.is_none() {
                failed = sink(&bytes).err();
            }
            bytes.clear();
            Ok(())
        });
        if let Some(error) = failed {
            return Err(Trouble::Sink(error));
        }
        read.map_err(Trouble::Image)?;
        encode(STREAM, &Item::End, &mut bytes);
        sink(&bytes).map_err(Trouble::Sink)
    }
}
