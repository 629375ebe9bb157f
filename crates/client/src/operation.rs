//! The names of the operations, as the admission of each operation gets them
//! ([`crate::Options::admission`]).

use std::fmt;

use marcot::ImageId;

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What can be done, by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Operation {
            $($(#[$doc])* $name,)*
        }

        impl Operation {
            /// All of them, for example to count operations by kind.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

operations! {
    /// [`crate::Client::pools`].
    ListPools,
    /// [`crate::Client::create_pool`].
    CreatePool,
    /// [`crate::Client::init_pool`].
    InitPool,
    /// [`crate::Pool::require_levels`].
    RequireLevels,
    /// [`crate::Client::remove_pool`].
    RemovePool,
    /// [`crate::Client::attach_pool`].
    AttachPool,
    /// [`crate::Client::detach_pool`].
    DetachPool,
    /// [`crate::Pool::stats`].
    PoolStats,
    /// [`crate::Pool::check`].
    CheckPool,
    /// [`crate::Pool::collect_garbage`].
    CollectGarbage,
    /// [`crate::Pool::namespaces`].
    ListNamespaces,
    /// [`crate::Pool::create_namespace`].
    CreateNamespace,
    /// [`crate::Pool::remove_namespace`].
    RemoveNamespace,
    /// [`crate::Pool::images`].
    ListImages,
    /// [`crate::Client::image`], [`crate::Pool::image`], [`crate::Pool::image_by_id`],
    /// [`crate::Pool::trashed_image`], [`crate::Pool::migration`].
    FindImage,
    /// [`crate::Pool::create`].
    CreateImage,
    /// [`crate::Pool::rename`].
    RenameImage,
    /// [`crate::Image::remove`], [`crate::Image::give_up`].
    RemoveImage,
    /// [`crate::Image::move_to_trash`].
    MoveToTrash,
    /// [`crate::Pool::trash`].
    ListTrash,
    /// [`crate::Pool::restore`].
    RestoreImage,
    /// [`crate::Pool::begin_image`].
    ImportImage,
    /// [`crate::Image::import_difference`].
    ImportDifference,
    /// [`crate::Image::export_difference`], [`crate::Image::export_whole`].
    ExportStream,
    /// [`crate::Image::copy_into`], [`crate::Snapshot::copy_into`], [`crate::Image::deep_copy_into`].
    CopyImage,
    /// [`crate::Pool::prepare_migration`].
    PrepareMigration,
    /// [`crate::migration::Migration::execute`].
    ExecuteMigration,
    /// [`crate::migration::Migration::commit`].
    CommitMigration,
    /// [`crate::migration::Migration::abort`].
    AbortMigration,
    /// [`crate::Image::info`], [`crate::Snapshot::info`].
    ImageInfo,
    /// [`crate::Image::status`].
    ImageStatus,
    /// [`crate::Image::usage`].
    ImageUsage,
    /// [`crate::Image::diff`].
    DiffImage,
    /// [`crate::Image::content`], [`crate::Snapshot::content`].
    ReadImage,
    /// [`crate::Image::open`], [`crate::Image::open_read_only`], [`crate::Snapshot::open`].
    OpenImage,
    /// [`crate::Image::resize`].
    ResizeImage,
    /// [`crate::Image::flatten`].
    FlattenImage,
    /// [`crate::Image::reclaim`].
    ReclaimImage,
    /// [`crate::Image::sparsify`].
    SparsifyImage,
    /// [`crate::Image::set_metadata`], [`crate::Image::remove_metadata`].
    SetMetadata,
    /// [`crate::Image::change_features`].
    ChangeFeatures,
    /// [`crate::Image::limit_snapshots`].
    LimitSnapshots,
    /// [`crate::Image::locks`].
    ListLocks,
    /// [`crate::Image::add_lock`], [`crate::Image::remove_lock`].
    ChangeLocks,
    /// [`crate::Client::configuration`], [`crate::Pool::configuration`].
    ReadConfiguration,
    /// [`crate::Client::configure`], [`crate::Pool::configure`].
    Configure,
    /// [`crate::Image::children`], [`crate::Image::has_unprotected_child`].
    ListChildren,
    /// [`crate::Image::forget_child`].
    ForgetChild,
    /// [`crate::Image::create_snapshot`].
    CreateSnapshot,
    /// [`crate::Snapshot::remove`].
    RemoveSnapshot,
    /// [`crate::Snapshot::rename`].
    RenameSnapshot,
    /// [`crate::Snapshot::roll_back`].
    RollBackSnapshot,
    /// [`crate::Snapshot::protect`].
    ProtectSnapshot,
    /// [`crate::Snapshot::unprotect`].
    UnprotectSnapshot,
    /// [`crate::Snapshot::clone_into`].
    CloneSnapshot,
    /// [`crate::Image::purge_snapshots`].
    PurgeSnapshots,
    /// [`crate::Pool::groups`], [`crate::group::Group::info`], [`crate::Image::group`],
    /// [`crate::Pool::group_snapshot_names`].
    ListGroups,
    /// [`crate::Pool::create_group`].
    CreateGroup,
    /// [`crate::group::Group::rename`].
    RenameGroup,
    /// [`crate::group::Group::remove`].
    RemoveGroup,
    /// [`crate::group::Group::add`].
    AddToGroup,
    /// [`crate::group::Group::take_out`].
    TakeOutOfGroup,
    /// [`crate::group::Group::create_snapshot`].
    CreateGroupSnapshot,
    /// [`crate::group::Group::remove_snapshot`].
    RemoveGroupSnapshot,
    /// [`crate::group::Group::rename_snapshot`].
    RenameGroupSnapshot,
    /// [`crate::group::Group::roll_back`].
    RollBackGroup,
    /// [`crate::devices::Devices::list`].
    ListDevices,
    /// [`crate::devices::Devices::map`].
    MapDevice,
    /// [`crate::devices::Devices::attach`].
    AttachDevice,
    /// [`crate::devices::Devices::unmap`].
    UnmapDevice,
    /// [`crate::devices::Devices::detach`].
    DetachDevice,
    /// Opening an image for a client of [`crate::exports::StoreExports`].
    ServeImages,
}

/// An operation that a caller is about to begin. [`crate::Options::admission`] decides about it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt<'a> {
    /// The operation.
    pub operation: Operation,
    /// The pool; empty for an operation on the store as a whole.
    pub pool: &'a str,
    /// The image; `None` for an operation on the pool as a whole.
    pub image: Option<ImageId>,
}

impl fmt::Display for Attempt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.operation)?;
        if !self.pool.is_empty() {
            write!(f, " in pool '{}'", self.pool)?;
        }
        match self.image {
            Some(image) => write!(f, " on image {image}"),
            None => Ok(()),
        }
    }
}
