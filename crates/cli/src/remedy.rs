//! What can be done about a refusal: who has the image open, which clones, snapshots, locks or groups stand in the
//! way, and the command that helps. It is a line of its own, after those of `rbd`.
//!
//! This looks only after a command was refused, so it may take the time to read what is there now. What cannot be
//! read gives no line.

use marcot::ErrorKind;
use marcot_client::inspect::Watcher;
use marcot_client::{Image, ImageInfo, Namespace, Pool};

use crate::args::names;
use crate::args::{Args, CommandSpec};
use crate::commands::locker;
use crate::errno::{EBUSY, EEXIST, EINVAL, ENOTEMPTY, EPERM, EROFS, of_kind};
use crate::layout;
use crate::nearest::{self, Named};
use crate::program;
use crate::session::{Session, parse_image_id};
use crate::shown::{NAMES_MAX, snapshots_of, some_of};
use crate::time;

/// A line that says what can be done, if a command ended with this status because something stands in its way.
pub fn hint(session: &Session, command: &CommandSpec, args: &Args, status: i32) -> Option<String> {
    let (in_group, too_many) = (of_kind(ErrorKind::InGroup), of_kind(ErrorKind::TooMany));
    let statuses = [EPERM, EBUSY, EEXIST, EINVAL, ENOTEMPTY, EROFS, in_group, too_many];
    if !statuses.contains(&status) {
        return None;
    }
    if command.words == ["trash", "remove"] {
        return on_trashed(session, args, status);
    }
    let named = nearest::named(command, args).into_iter().next()?;
    let pool = session.quiet_client()?.pool(named.pool_or_default()).ok()?;
    let program = program_of(session);
    let refused = Refused { program, pool: &pool, named: &named, status };
    match command.words {
        ["feature", "disable"] if status == EINVAL => refused.by_features(args),
        ["namespace", "remove"] if status == EBUSY => refused.by_images_of_namespace(),
        ["pool", "remove"] if status == EBUSY => refused.by_images_of_pool(),
        words => refused.on_image(words),
    }
}

/// The name of the program in commands that help.
fn program_of(session: &Session) -> &'static str {
    match session.program {
        program::RBD => program::RBD,
        _ => program::MARCOT,
    }
}

/// What keeps an image in the trash, which the command line names by its number.
fn on_trashed(session: &Session, args: &Args, status: i32) -> Option<String> {
    let target = names::id_target(args).ok()?;
    let pool = session.quiet_client()?.pool(target.pool_or_default()).ok()?;
    let id = parse_image_id(&target.image)?;
    let (image, trashed) = pool.trashed_image(&target.namespace(), id).ok()?;
    let named = Named { pool: target.pool, namespace: target.namespace, ..Named::default() };
    let refused = Refused { program: program_of(session), pool: &pool, named: &named, status };
    match status {
        EPERM => Some(format!("its deferment ends on {}", time::ctime(trashed.protected_until_s))),
        ENOTEMPTY => refused.by_snapshots_in_trash(&image, id),
        EBUSY => refused.by_user(&image),
        _ => None,
    }
}

/// A command that was refused.
struct Refused<'a> {
    program: &'static str,
    pool: &'a Pool,
    named: &'a Named,
    status: i32,
}

impl Refused<'_> {
    fn on_image(&self, words: &[&str]) -> Option<String> {
        let group_in_the_way = self.status == of_kind(ErrorKind::InGroup)
            || (self.status == EEXIST && words == ["group", "image", "add"]);
        let image = self.image()?;
        let info = image.info().ok()?;
        match words {
            _ if group_in_the_way => self.by_group(&image),
            ["snap", "remove"] if self.status == EBUSY => self.by_protection(&image, &info),
            ["snap", "unprotect"] if self.status == EBUSY => self.by_clones(&info),
            ["snap", "protect"] => None,
            ["snap", "create"] if self.status == of_kind(ErrorKind::TooMany) => {
                self.by_limit(&image, &info)
            }
            ["remove"] if self.status == ENOTEMPTY => self.by_snapshots(&image, &info),
            ["lock", "add"] if self.status == EBUSY => {
                self.by_lock(&image, &info).or_else(|| self.by_user(&image))
            }
            ["migration", "prepare"] if self.status == EBUSY => {
                self.by_group(&image).or_else(|| self.by_user(&image))
            }
            ["migration", "execute" | "commit" | "abort"] if self.status == EINVAL => {
                self.by_no_migration(&image, &info)
            }
            ["migration", "abort"] if self.status == EBUSY => {
                let clones = self.clones(&image, None);
                clones.map(|clones| self.first_free(&clones)).or_else(|| self.by_user(&image))
            }
            ["migration", ..] => None,
            _ if self.status == EROFS => self.by_lock(&image, &info),
            _ if self.status == EBUSY => self.by_user(&image),
            _ => None,
        }
    }

    fn image(&self) -> Option<Image> {
        if self.named.image.is_empty() {
            return None;
        }
        let namespace = Namespace::named(&*self.named.namespace);
        let name = marcot::ImageName::new(&*self.named.image).in_namespace(namespace);
        self.pool.image(name).ok()
    }

    /// `'rbd WORDS NAME'`.
    fn command(&self, words: &str, name: impl std::fmt::Display) -> String {
        format!("'{} {words} {name}'", self.program)
    }

    /// Somebody has the image open.
    fn by_user(&self, image: &Image) -> Option<String> {
        let watcher = image.status().ok()?.into_iter().next()?;
        let Watcher { pid, usage, .. } = &watcher;
        if let Some(device) = usage.strip_prefix("device ") {
            return Some(format!("{} frees it", self.command("device unmap", device)));
        }
        if let Some(directory) = usage.strip_prefix("directory ") {
            return Some(format!("close its file in {directory}, or unmount that"));
        }
        match usage.starts_with("nbd") {
            true => {
                Some(format!("let its NBD clients disconnect, or end the server, process {pid}"))
            }
            false => Some(format!("wait until process {pid} has ended, or end it")),
        }
    }

    /// A snapshot is protected, and may have clones.
    fn by_protection(&self, image: &Image, info: &ImageInfo) -> Option<String> {
        let snap = self.snap(info)?;
        if !snap.protected {
            return None;
        }
        let first = self.command("snap unprotect", image.spec().at(&snap.name));
        match self.clones(image, Some(snap.id)) {
            None => Some(format!("{first} makes it removable")),
            Some(clones) => Some(format!(
                "{first} makes it removable, once its clones are flattened or removed: {clones}"
            )),
        }
    }

    /// A snapshot has clones. The refusal has named them.
    fn by_clones(&self, info: &ImageInfo) -> Option<String> {
        self.snap(info)?;
        let program = self.program;
        Some(format!("flatten them ('{program} flatten') or remove them ('{program} rm')"))
    }

    fn snap<'i>(&self, info: &'i ImageInfo) -> Option<&'i marcot::SnapInfo> {
        info.snapshots.iter().find(|snap| snap.name == self.named.snap && snap.is_of_users())
    }

    /// Names of clones. There may be thousands, so those that are not named are not looked at.
    fn clones(&self, image: &Image, snap: Option<marcot::SnapId>) -> Option<String> {
        let clones = image.some_children(snap, NAMES_MAX + 1).ok()?;
        let names = clones.iter().take(NAMES_MAX).map(|child| match child.in_trash {
            true => format!("{child} (trash {})", child.image_id),
            false => child.to_string(),
        });
        let named = some_of(names)?;
        match clones.len() > NAMES_MAX {
            true => Some(format!("{named} and others")),
            false => Some(named),
        }
    }

    /// An image has snapshots.
    fn by_snapshots(&self, image: &Image, info: &ImageInfo) -> Option<String> {
        if let Some(clones) = self.clones(image, None) {
            return Some(self.first_free(&clones));
        }
        let protected = info.snapshots.iter().filter(|snap| snap.protected && snap.is_of_users());
        let protected = some_of(protected.map(|snap| image.spec().at(&snap.name).to_string()))?;
        let words = self.command("snap unprotect", "SNAPSHOT");
        Some(format!("these are protected until {words}: {protected}"))
    }

    fn first_free(&self, clones: &str) -> String {
        let program = self.program;
        format!(
            "first flatten ('{program} flatten') or remove ('{program} rm') its clones: {clones}"
        )
    }

    /// An image in the trash has snapshots. Commands for snapshots need a name.
    fn by_snapshots_in_trash(&self, image: &Image, id: marcot::ImageId) -> Option<String> {
        let info = image.info().ok()?;
        if let Some(clones) = self.clones(image, None) {
            return Some(self.first_free(&clones));
        }
        let names = snapshots_of(&info.snapshots)?;
        let mut place = format!("{}/", self.pool.name());
        if !self.named.namespace.is_empty() {
            place.push_str(&format!("{}/", self.named.namespace));
        }
        let restore = self.command("trash restore", format!("{place}{id}"));
        Some(format!("{restore} gives it a name again, by which its snapshots can go: {names}"))
    }

    /// An image has nothing to do with a migration.
    fn by_no_migration(&self, image: &Image, info: &ImageInfo) -> Option<String> {
        if info.migration.is_some() {
            return None;
        }
        let words = format!("{} DESTINATION", image.spec());
        Some(format!("{} begins a migration", self.command("migration prepare", words)))
    }

    /// Features cannot be taken from an image.
    fn by_features(&self, args: &Args) -> Option<String> {
        let image = self.image()?;
        let info = image.info().ok()?;
        let words = args.positionals().iter().flat_map(|word| word.split(','));
        let wanted: Vec<&str> = words.filter(|word| layout::is_feature(word)).collect();
        let has = |feature: &str| layout::has_feature(&info, feature);
        if wanted.iter().any(|feature| !layout::DISABLED_LATER.contains(feature)) {
            let words = format!("--image-feature FEATURE {} COPY", image.spec());
            return Some(format!(
                "only {} can be disabled; {} makes a copy with the features that are named",
                layout::DISABLED_LATER.join(", "),
                self.command("deep cp", words)
            ));
        }
        if wanted.iter().any(|feature| !has(feature)) {
            return Some(match layout::shown_features(&info) {
                none if none.is_empty() => format!("{} has no features", image.spec()),
                features => format!("{} has these features: {}", image.spec(), features.join(", ")),
            });
        }
        let words = format!("{} object-map fast-diff exclusive-lock", image.spec());
        Some(format!("{} disables them together", self.command("feature disable", words)))
    }

    /// An image has as many snapshots as it may have.
    fn by_limit(&self, image: &Image, info: &ImageInfo) -> Option<String> {
        let limit = info.snapshot_limit?;
        let command = self.command("snap limit clear", image.spec());
        Some(format!("{limit} snapshots are allowed: remove one, or lift the limit with {command}"))
    }

    /// An image is locked.
    fn by_lock(&self, image: &Image, info: &ImageInfo) -> Option<String> {
        let lock = info.locks.first()?;
        let words = format!("{} {} {}", image.spec(), lock.cookie, locker(lock));
        Some(format!("{} breaks the lock", self.command("lock rm", words)))
    }

    /// An image is in a group.
    fn by_group(&self, image: &Image) -> Option<String> {
        let group = image.group().ok()??;
        let name = marcot::ImageName::new(group.name).in_namespace(group.namespace);
        let words = format!("{}/{name} {}", group.pool, image.spec());
        Some(format!("{} takes it out of its group", self.command("group image rm", words)))
    }

    fn by_images_of_namespace(&self) -> Option<String> {
        let namespace = Namespace::named(&*self.named.namespace);
        let images = self.pool.images(&namespace).ok()?;
        let images = images.into_iter().map(|(name, _)| {
            marcot_client::ImageSpec::new(self.pool.name(), name).in_namespace(&namespace)
        });
        if let Some(images) = some_of(images.map(|spec| spec.to_string())) {
            return Some(format!("remove them first ('{} rm'): {images}", self.program));
        }
        let place = format!("{}/{namespace}", self.pool.name());
        let command = self.command("trash purge", place);
        Some(format!("they are in its trash: {command} empties it"))
    }

    fn by_images_of_pool(&self) -> Option<String> {
        let namespaces = self.pool.namespaces().ok()?.into_iter().map(Namespace::named);
        let images = [Namespace::DEFAULT].into_iter().chain(namespaces).flat_map(|namespace| {
            let images = self.pool.images(&namespace).unwrap_or_default();
            images.into_iter().map(move |(name, _)| (namespace.clone(), name))
        });
        let images = images.map(|(namespace, name)| {
            let spec = marcot_client::ImageSpec::new(self.pool.name(), name);
            spec.in_namespace(&namespace).to_string()
        });
        match some_of(images) {
            Some(images) => Some(format!("remove them first ('{} rm'): {images}", self.program)),
            None => {
                let command = self.command("trash purge", self.pool.name());
                Some(format!("they are in its trash: {command} empties it"))
            }
        }
    }
}
