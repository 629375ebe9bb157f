//! Which pool, namespace, image and snapshot a command line names, by argument, by options, or by
//! both. The precedence is that of `rbd`.
//!
//! `--image` is itself parsed as a spec, and then no positional argument is consumed for it. A
//! spec takes precedence over `--pool`, `--namespace` and `--snap`. `--group` is a name and no spec.

use marcot_client::spec::{self, Pattern, Spec};
use marcot_client::{DEFAULT_POOL, ImageName, ImageSpec, Namespace};

use super::Args;
use crate::failure::{Failure, Outcome};

/// Which options name the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `--pool`, `--namespace`, `--image`, `--snap`.
    Source,
    /// `--dest-pool`, `--dest-namespace`, `--dest`, `--dest-snap`.
    Dest,
    /// `--pool`, `--namespace`, `--group`, `--snap`: a group, or a snapshot of it.
    Group,
    /// `--dest-pool`, `--dest-namespace`, `--dest-group`.
    DestGroup,
    /// `--group-pool`, `--group-namespace`, `--group`: the group of a member.
    GroupOfMember,
    /// `--image-pool`, `--image-namespace`, `--image`: the member.
    Member,
}

impl Role {
    /// Names of the options for pool, namespace, image and snapshot.
    fn keys(self) -> [&'static str; 4] {
        match self {
            Self::Source => ["pool", "namespace", "image", "snap"],
            Self::Dest => ["dest-pool", "dest-namespace", "dest", "dest-snap"],
            Self::Group => ["pool", "namespace", "group", "snap"],
            Self::DestGroup => ["dest-pool", "dest-namespace", "dest-group", ""],
            Self::GroupOfMember => ["group-pool", "group-namespace", "group", ""],
            Self::Member => ["image-pool", "image-namespace", "image", ""],
        }
    }

    /// Whether the option for the name takes a spec.
    fn takes_spec(self) -> bool {
        matches!(self, Self::Source | Self::Dest | Self::Member)
    }

    /// A group and an image of one command line.
    fn is_of_member(self) -> bool {
        matches!(self, Self::GroupOfMember | Self::Member)
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Source | Self::Dest | Self::Member => "image",
            Self::Group | Self::DestGroup | Self::GroupOfMember => "group",
        }
    }

    fn adjective(self) -> &'static str {
        match self {
            Self::Source | Self::Group | Self::GroupOfMember | Self::Member => "",
            Self::Dest | Self::DestGroup => "destination ",
        }
    }
}

/// Whether a snapshot may, must or must not be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapRule {
    /// Refused.
    None,
    /// Accepted.
    Permitted,
    /// Required.
    Required,
}

/// Which name to read from the command line.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Which options name it.
    pub role: Role,
    /// Whether a snapshot is accepted.
    pub snap: SnapRule,
    /// How a spec is parsed.
    pub pattern: Pattern,
    /// Whether the image may be missing.
    pub image_required: bool,
}

impl Wanted {
    /// An image that must exist.
    pub const IMAGE: Self = Self {
        role: Role::Source,
        snap: SnapRule::None,
        pattern: Pattern::Existing,
        image_required: true,
    };
    /// An image or a snapshot of it, which must exist.
    pub const IMAGE_OR_SNAP: Self = Self { snap: SnapRule::Permitted, ..Self::IMAGE };
    /// A snapshot that must exist.
    pub const SNAP: Self = Self { snap: SnapRule::Required, ..Self::IMAGE };
    /// An image to create.
    pub const NEW_IMAGE: Self = Self { pattern: Pattern::NewImage, ..Self::IMAGE };
    /// A destination image to create.
    pub const DEST: Self = Self { role: Role::Dest, ..Self::NEW_IMAGE };

    /// The same, for commands where the image may be missing or be given by `--image-id`.
    #[must_use]
    pub const fn optional(mut self) -> Self {
        self.image_required = false;
        self
    }
}

/// The names that were given; empty for a name that was not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Target {
    /// Pool, or empty for the default pool.
    pub pool: String,
    /// Namespace.
    pub namespace: String,
    /// Image.
    pub image: String,
    /// Snapshot.
    pub snap: String,
}

impl Target {
    /// The pool, or the default pool.
    pub fn pool_or_default(&self) -> &str {
        if self.pool.is_empty() { DEFAULT_POOL } else { &self.pool }
    }

    /// The namespace.
    pub fn namespace(&self) -> Namespace {
        Namespace::named(self.namespace.as_str())
    }

    /// What the image is called in its pool.
    pub fn name(&self) -> ImageName {
        ImageName::new(self.image.as_str()).in_namespace(self.namespace())
    }

    /// The full name.
    pub fn spec(&self) -> ImageSpec {
        let snapshot = (!self.snap.is_empty()).then(|| self.snap.clone());
        let spec = ImageSpec::new(self.pool_or_default(), self.image.as_str());
        ImageSpec { snapshot, ..spec.in_namespace(self.namespace()) }
    }

    fn apply(&mut self, found: Spec) {
        if let Some(pool) = found.pool {
            self.pool = pool;
            self.namespace = found.namespace.unwrap_or_default();
        }
        self.image = found.image;
        if let Some(snap) = found.snap {
            self.snap = snap;
        }
    }

    fn apply_text(&mut self, text: &str, pattern: Pattern) -> Outcome {
        let found = Spec::parse(text, pattern)
            .ok_or_else(|| Failure::invalid(format!("invalid spec '{text}'")))?;
        self.apply(found);
        Ok(())
    }
}

/// Reads the name that `wanted` describes. Takes positional arguments from `cursor` on.
pub fn target(args: &Args, cursor: &mut usize, wanted: Wanted) -> Outcome<Target> {
    let target = gather(args, cursor, wanted)?;
    if wanted.image_required && target.image.is_empty() {
        let (adjective, noun) = (wanted.role.adjective(), wanted.role.noun());
        return Err(Failure::invalid(format!("{adjective}{noun} name was not specified")));
    }
    // The value of the option, also where a spec counts instead. Of a member `rbd` does not look at it.
    let namespace = args.text(wanted.role.keys()[1]).unwrap_or_default();
    if !wanted.role.is_of_member() && spec::check_namespace(namespace).is_err() {
        return Err(Failure::invalid(format!("invalid namespace name '{namespace}'")));
    }
    check_snapshot(&target, wanted)?;
    Ok(target)
}

fn gather(args: &Args, cursor: &mut usize, wanted: Wanted) -> Outcome<Target> {
    let option = |key: &str| args.text(key).unwrap_or_default().to_string();
    let [pool, namespace, image, snap] = wanted.role.keys();
    let mut target = Target {
        pool: option(pool),
        namespace: option(namespace),
        image: String::new(),
        snap: option(snap),
    };
    let named = option(image);
    if !named.is_empty() {
        match wanted.role.takes_spec() {
            true => target.apply_text(&named, wanted.pattern)?,
            false => target.image = named,
        }
        return Ok(target);
    }
    if let Some(text) = args.positional(*cursor) {
        target.apply_text(text, wanted.pattern)?;
    }
    *cursor += 1;
    Ok(target)
}

fn check_snapshot(target: &Target, wanted: Wanted) -> Outcome {
    // `rbd` does not say of which of two groups a snapshot was named.
    let adjective = match wanted.role {
        Role::DestGroup => "",
        role => role.adjective(),
    };
    let snap = &target.snap;
    match wanted.snap {
        SnapRule::None if !snap.is_empty() => Err(Failure::invalid(format!(
            "{adjective}snapshot name specified for a command that doesn't use it"
        ))),
        SnapRule::Required if snap.is_empty() => {
            Err(Failure::invalid(format!("{adjective}snapshot name was not specified")))
        }
        _ if wanted.pattern == Pattern::NewSnapshot && snap.contains(['/', '@']) => {
            Err(Failure::invalid(format!("invalid snap name '{snap}'")))
        }
        _ => Ok(()),
    }
}

/// A pool, perhaps a namespace, and the number of an image as text, by options or argument.
pub fn id_target(args: &Args) -> Outcome<Target> {
    let option = |key: &str| args.text(key).unwrap_or_default().to_string();
    let mut target =
        Target { pool: option("pool"), namespace: option("namespace"), ..Target::default() };
    // As with `rbd`, only the argument is a spec.
    match args.text("image-id").filter(|text| !text.is_empty()) {
        Some(text) => text.clone_into(&mut target.image),
        None => match args.positional(0) {
            Some(text) => target.apply_text(text, Pattern::NewImage)?,
            None => return Err(Failure::invalid("image id was not specified")),
        },
    }
    match target.snap.is_empty() {
        true => Ok(target),
        false => Err(Failure::invalid("snapshot name specified for a command that doesn't use it")),
    }
}

/// A pool, and perhaps a namespace, by argument or options. Options take precedence.
pub fn pool_target(args: &Args) -> Outcome<Target> {
    let mut target = Target {
        pool: args.text("pool").unwrap_or_default().to_string(),
        namespace: args.text("namespace").unwrap_or_default().to_string(),
        ..Target::default()
    };
    if let (true, Some(text)) = (target.pool.is_empty(), args.positional(0)) {
        let (pool, namespace) = spec::parse_pool(text).map_err(Failure::invalid)?;
        target.pool = pool;
        if let Some(namespace) = namespace {
            target.namespace = namespace;
        }
    }
    spec::check_namespace(&target.namespace).map_err(Failure::invalid)?;
    Ok(target)
}

/// The pool that is named by an option or an argument, for commands that take no namespace.
pub fn pool_word(args: &Args) -> Option<&str> {
    let named = args.text("pool").filter(|pool| !pool.is_empty());
    named.or_else(|| args.positional(0)).filter(|pool| !pool.is_empty())
}

/// Refuses a name that no pool can have.
pub fn check_pool(pool: &str) -> Outcome {
    match pool.contains(['/', '@']) {
        true => Err(Failure::invalid(format!("invalid pool '{pool}'"))),
        false => Ok(()),
    }
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
