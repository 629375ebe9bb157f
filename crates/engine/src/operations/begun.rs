//! Images whose creation was cut off before they had a name.
//!
//! Where such an image was begun on this host, the pool's lock tells that nobody is making it any more, and a
//! collection takes it back. In a pool in a bucket it may have been begun on another host. Only that host can tell
//! whether it is still at work, and it may be gone for good. Then an operator who knows has two ways:
//! `check --repair` gives the image its name, and [`Pool::take_back`] removes it.

use marcot_format::ImageId;
use marcot_format::record::HeadRecord;

use crate::catalog::naming::NamedImages;
use crate::catalog::pool::Pool;
use crate::error::{ErrorKind, Result, fail};
use crate::fault::{self, Fault};

/// An image that another host has begun to make. It has no name, and may get one at any moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BegunImage {
    /// Its number.
    pub id: ImageId,
    /// The name that it was to have, `pool/image` or `pool/namespace/image`.
    pub label: String,
    /// The name of the host.
    pub host: String,
    /// When it was begun by that host's clock, in seconds since 1970.
    pub created_s: i64,
}

/// Who has begun an image that has no name.
pub(crate) enum Begun {
    Here,
    Elsewhere(BegunImage),
}

impl Pool {
    /// Who has begun an image, where it was never finished; `None` for any other image. Nobody can have written it.
    pub(crate) fn begun(&self, head: &HeadRecord, named: &mut NamedImages) -> Option<Begun> {
        // A name that cannot be read must not lead to the loss of the image.
        let nameless = head.epoch == 0
            && head.snapshots.is_empty()
            && self.is_nameless(head, named).is_ok_and(|nameless| nameless);
        if !nameless {
            return None;
        }
        let owner = head.owner.as_ref();
        let here = self.segments().shipping().is_none_or(|shipping| {
            let host = shipping.host().host;
            owner.is_some_and(|owner| owner.host == host) || fault::is(Fault::OthersTakenBack)
        });
        if here {
            return Some(Begun::Here);
        }
        Some(Begun::Elsewhere(BegunImage {
            id: ImageId(head.image_id),
            label: self.image_label(head),
            host: owner.map_or_else(String::new, |owner| owner.host_name.clone()),
            created_s: head.created_s,
        }))
    }

    /// Removes an image that was begun on some host and never finished. If that host is still at work all the same, its
    /// command may say that the image was made, and leave a name that leads to nothing. `check --repair` removes that.
    ///
    /// # Errors
    /// `NotFound` where there is no such image; `Exists` where it is finished; `Busy` where it is being changed;
    /// `ReadOnly`.
    pub fn take_back(&self, image: ImageId) -> Result<()> {
        self.check_writable()?;
        let head = match self.read_head(image) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let message = format!("pool '{}' has no image with the id {image}", self.name());
                return fail(ErrorKind::NotFound, message);
            }
            head => head?,
        };
        let named = &mut NamedImages::default();
        if !head.removing && self.begun(&head, named).is_none() {
            let message = format!("{} is finished: 'rm' removes it", self.image_label(&head));
            return fail(ErrorKind::Exists, message);
        }
        match self.finish_removal(image, &head)? {
            true => Ok(()),
            false => fail(ErrorKind::Busy, format!("image {image} is being changed; try again")),
        }
    }
}
