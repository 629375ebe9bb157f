//! Images: finding and making them, and the handle with their operations.

use std::fmt;

use marcot::{CreateOptions, Error, ErrorKind, ImageId, ImageInfo, ImageName, Namespace, Result};

use crate::client::Client;
use crate::image_spec::ImageSpec;
use crate::operation::Operation;
use crate::pool::Pool;

/// An image of a pool, whoever has it open. Cheap to clone. The handle keeps nothing open.
///
/// It stands for the image's number, so it stays the same image when that is renamed.
#[derive(Clone)]
pub struct Image {
    pool: Pool,
    name: ImageName,
    id: ImageId,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("spec", &self.spec()).field("id", &self.id).finish()
    }
}

impl Client {
    /// The image that a name leads to now. It stays the same image when it is renamed.
    ///
    /// # Errors
    /// Those of [`Self::pool`]; `NotFound` for the image or its namespace; `Invalid` if `spec` names a
    /// snapshot: use [`Image::snapshot`].
    pub fn image(&self, spec: &ImageSpec) -> Result<Image> {
        spec.refuse_snapshot()?;
        self.pool(&spec.pool)?.image(spec.name())
    }

    /// Creates an image that reads as zeros.
    ///
    /// # Errors
    /// Those of [`Self::pool`] and [`Pool::create`].
    pub fn create(&self, spec: &ImageSpec, options: &CreateOptions) -> Result<Image> {
        spec.refuse_snapshot()?;
        self.pool(&spec.pool)?.create(spec.name(), options)
    }
}

impl Pool {
    /// The image that a name leads to now. It stays the same image when it is renamed.
    ///
    /// # Errors
    /// `NotFound` for the image or its namespace; `Corrupt`.
    pub fn image(&self, name: impl Into<ImageName>) -> Result<Image> {
        let name = name.into();
        self.operate(Operation::FindImage, || {
            let id = self.engine().find(&name)?;
            Ok(self.known_image(&name, id))
        })
    }

    /// The image with this number, if it is in this namespace and has a name.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Corrupt`, `NewerFormat` for its head.
    pub fn image_by_id(&self, namespace: &Namespace, id: ImageId) -> Result<Image> {
        self.operate(Operation::FindImage, || {
            let name = self.engine().name_of_image(namespace, id)?.ok_or_else(|| {
                let message = format!("there is no image with the number {id}");
                Error::new(ErrorKind::NotFound, message)
            })?;
            Ok(self.known_image(ImageName::new(name).in_namespace(namespace), id))
        })
    }

    /// An image whose name and number the caller knows, as from [`Self::images`]. Nothing is read.
    #[must_use]
    pub fn known_image(&self, name: impl Into<ImageName>, id: ImageId) -> Image {
        Image { pool: self.clone(), name: name.into(), id }
    }

    /// Creates an image that reads as zeros.
    ///
    /// # Errors
    /// `Exists`; `Invalid`, `NameTooLong` for its name, `Invalid` for its size; `NotFound` for the
    /// namespace; `ReadOnly`.
    pub fn create(&self, name: impl Into<ImageName>, options: &CreateOptions) -> Result<Image> {
        let name = name.into();
        self.operate(Operation::CreateImage, || {
            let id = self.engine().create(&name, options)?;
            Ok(self.known_image(&name, id))
        })
    }
}

impl Image {
    /// Its pool.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Its number in the pool, which it keeps under every name.
    #[must_use]
    pub fn id(&self) -> ImageId {
        self.id
    }

    /// Its name when it was looked up.
    #[must_use]
    pub fn spec(&self) -> ImageSpec {
        ImageSpec::new(self.pool.name(), self.name.name()).in_namespace(self.name.namespace())
    }

    pub(crate) fn client(&self) -> &Client {
        self.pool.client()
    }

    pub(crate) fn engine_pool(&self) -> &marcot::Pool {
        self.pool.engine()
    }

    pub(crate) fn name(&self) -> &ImageName {
        &self.name
    }

    pub(crate) fn operate<T>(
        &self,
        operation: Operation,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.client().operate(operation, self.pool.name(), Some(self.id), work)
    }

    /// Its current name, for messages: `pool/[namespace/]image`. Works also if its head is damaged.
    #[must_use]
    pub fn label(&self) -> String {
        self.engine_pool().label_by_names(self.id)
    }

    /// Its name as recorded in its head.
    pub(crate) fn spec_of(&self, info: &ImageInfo) -> ImageSpec {
        let spec = ImageSpec::new(self.pool.name(), info.name.as_str());
        spec.in_namespace(&info.namespace)
    }

    /// As [`Self::label`], with the name in the head.
    pub(crate) fn label_now(&self) -> String {
        match self.engine_pool().info(self.id) {
            Ok(info) => self.spec_of(&info).to_string(),
            Err(_) => "the image".to_string(),
        }
    }

    /// Reads the records of the image and its snapshots. Works while the image is in use.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `NewerFormat`.
    pub fn info(&self) -> Result<ImageInfo> {
        self.operate(Operation::ImageInfo, || self.engine_pool().info(self.id))
    }

    /// Opens the image for writing, in this process alone, until it is closed. A process that keeps it
    /// open without using it is asked to close it, and one that is about to close it is waited for.
    ///
    /// # Errors
    /// `Owned`, naming the user, if it is in use; `ReadOnly`, also if it is locked; `NotFound`, `Corrupt`, `NewerFormat`.
    pub fn open(&self) -> Result<marcot::Image> {
        let open = || self.engine_pool().open(self.id).and_then(marcot::Image::unlocked);
        self.operate(Operation::OpenImage, || self.for_itself(open))
    }

    /// Takes the image over from another host that has it open, in a pool of several hosts. What that host has not
    /// flushed is lost. Returns false where no other host has it open.
    ///
    /// # Errors
    /// `Fenced` where another host takes it over at the same time; as [`Self::open`].
    pub fn take_over(&self) -> Result<bool> {
        self.operate(Operation::OpenImage, || self.engine_pool().end_other_owner(self.id))
    }

    /// Opens the image for reading, as it is on disk now.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `NewerFormat`.
    pub fn open_read_only(&self) -> Result<marcot::Image> {
        self.operate(Operation::OpenImage, || self.engine_pool().open_read_only(self.id))
    }
}
