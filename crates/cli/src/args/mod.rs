//! The command line: what each command accepts, and what one command line contains.
//!
//! `rbd` takes options and words in any order, even options before the command, and has its own
//! sentence for each mistake. So tables describe the commands ([`CommandSpec`], one a
//! command, beside the code that runs it). [`parse`] reads a command line by `rbd`'s rules,
//! and [`model`] turns the same tables into help, completions and manual pages.

pub mod help;
pub mod model;
pub mod names;
pub mod options;
pub mod parse;
pub mod suggest;

use crate::failure::{Failure, Outcome};
use crate::session::Session;
use crate::size;

/// The kind of value that an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Flag,
    /// Any text.
    Text,
    /// A size; a bare number counts MiB.
    SizeMib,
    /// A size; a bare number counts bytes.
    Bytes,
    /// A size in bytes from the first to the last.
    BytesWithin(u64, u64),
    /// A number that is not negative.
    Integer,
    /// A number with a fraction.
    Float,
    /// A number from the first to the last.
    Range(u64, u64),
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// An option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opt {
    /// Name after `--`.
    pub long: &'static str,
    /// Letter after `-`.
    pub short: Option<char>,
    /// The kind of its value.
    pub kind: Kind,
    /// For the help text.
    pub help: &'static str,
    /// The command needs it.
    pub required: bool,
    /// `rbd` has no such option.
    pub own: bool,
    /// `rbd` accepts it, but does not describe it any more.
    pub deprecated: bool,
    /// The value that `rbd`'s help shows beside the name.
    pub default: Option<&'static str>,
}

impl Opt {
    /// An option without a letter.
    pub const fn new(long: &'static str, kind: Kind, help: &'static str) -> Self {
        Self {
            long,
            short: None,
            kind,
            help,
            required: false,
            own: false,
            deprecated: false,
            default: None,
        }
    }

    /// The same option, which the command needs.
    #[must_use]
    pub const fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// The same option, which `rbd` does not have.
    #[must_use]
    pub const fn own(self) -> Self {
        Self { own: true, ..self }
    }

    /// The same option, which `rbd` does not describe any more.
    #[must_use]
    pub const fn deprecated(self) -> Self {
        Self { deprecated: true, ..self }
    }

    /// The same option, whose value where it is missing `rbd`'s help shows beside its name.
    #[must_use]
    pub const fn with_default(self, value: &'static str) -> Self {
        Self { default: Some(value), ..self }
    }

    /// The same option with a letter.
    #[must_use]
    pub const fn letter(mut self, short: char) -> Self {
        self.short = Some(short);
        self
    }
}

/// A positional argument.
#[derive(Debug, Clone, Copy)]
pub struct Positional {
    /// Name in angle brackets.
    pub name: &'static str,
    /// For the help text.
    pub help: &'static str,
    /// Takes all arguments that follow.
    pub many: bool,
    /// May be missing. `rbd` says so for few of those that may.
    pub optional: bool,
}

impl Positional {
    /// An argument that takes one word.
    pub const fn one(name: &'static str, help: &'static str) -> Self {
        Self { name, help, many: false, optional: false }
    }

    /// The same, which may be missing.
    #[must_use]
    pub const fn optional(self) -> Self {
        Self { optional: true, ..self }
    }
}

/// A command, its options, and the code behind it.
pub struct CommandSpec {
    /// The words that name it: `snap`, `create`.
    pub words: &'static [&'static str],
    /// Other words that name it.
    pub aliases: &'static [&'static [&'static str]],
    /// One sentence.
    pub about: &'static str,
    /// Arguments by position.
    pub positionals: &'static [Positional],
    /// Groups of options.
    pub options: &'static [&'static [Opt]],
    /// Example command lines for the help, without the program's name, each with an explanation.
    pub examples: &'static [(&'static str, &'static str)],
    /// `rbd`'s text after the options in the help.
    pub notes: &'static str,
    /// Not shown in the lists of commands.
    pub hidden: bool,
    /// `rbd` has no such command.
    pub own: bool,
    /// A command of `rbd` that is not offered. It takes any arguments, and says so.
    pub absent: bool,
    /// Runs it.
    pub run: fn(&Session, &Args) -> Outcome,
}

impl CommandSpec {
    /// A command without arguments and options.
    pub const fn new(
        words: &'static [&'static str],
        about: &'static str,
        run: fn(&Session, &Args) -> Outcome,
    ) -> Self {
        Self {
            words,
            aliases: &[],
            about,
            positionals: &[],
            options: &[],
            examples: &[],
            notes: "",
            hidden: false,
            own: false,
            absent: false,
            run,
        }
    }

    /// The same with other words for it.
    pub const fn aliases(self, aliases: &'static [&'static [&'static str]]) -> Self {
        Self { aliases, ..self }
    }

    /// The same with arguments by position.
    pub const fn positionals(self, positionals: &'static [Positional]) -> Self {
        Self { positionals, ..self }
    }

    /// The same with groups of options.
    pub const fn options(self, options: &'static [&'static [Opt]]) -> Self {
        Self { options, ..self }
    }

    /// The same with command lines to show in the help.
    pub const fn examples(self, examples: &'static [(&'static str, &'static str)]) -> Self {
        Self { examples, ..self }
    }

    /// The same with `rbd`'s text after the options in the help.
    pub const fn notes(self, notes: &'static str) -> Self {
        Self { notes, ..self }
    }

    /// The same, which `rbd` does not have.
    pub const fn own(self) -> Self {
        Self { own: true, ..self }
    }

    /// The same, left out of the lists.
    pub const fn hidden(self) -> Self {
        Self { hidden: true, ..self }
    }

    /// The same, not offered.
    pub const fn absent(self) -> Self {
        Self { absent: true, ..self }
    }

    /// All its options.
    pub fn all_options(&self) -> impl Iterator<Item = &'static Opt> {
        self.options.iter().copied().flatten()
    }

    /// Its own words and its aliases.
    pub fn names(&self) -> impl Iterator<Item = &'static [&'static str]> {
        std::iter::once(self.words).chain(self.aliases.iter().copied())
    }
}

/// The options and arguments of a command line.
#[derive(Debug, Default)]
pub struct Args {
    values: Vec<(&'static str, String)>,
    positionals: Vec<String>,
    config: Vec<(String, String)>,
}

impl Args {
    /// The text given for an option.
    pub fn text(&self, long: &str) -> Option<&str> {
        self.values.iter().find(|(name, _)| *name == long).map(|(_, value)| value.as_str())
    }

    /// Every text given for an option that may be repeated.
    pub fn texts(&self, long: &str) -> impl Iterator<Item = &str> {
        self.values.iter().filter(move |(name, _)| *name == long).map(|(_, value)| value.as_str())
    }

    /// True if the option was given.
    pub fn flag(&self, long: &str) -> bool {
        self.text(long).is_some()
    }

    /// The bytes given for a size option.
    pub fn bytes(&self, long: &str) -> Option<u64> {
        self.text(long).and_then(size::parse_bytes)
    }

    /// The bytes given for a size option whose bare numbers count MiB.
    pub fn bytes_of_mib(&self, long: &str) -> Option<u64> {
        self.text(long).and_then(size::parse_mib)
    }

    /// The number given for an option.
    pub fn integer(&self, long: &str) -> Option<u64> {
        self.text(long).and_then(parse::parse_integer)
    }

    /// The number with a fraction given for an option.
    pub fn float(&self, long: &str) -> Option<f64> {
        self.text(long).and_then(|text| text.parse().ok())
    }

    /// The argument at a position; empty text counts as missing.
    pub fn positional(&self, index: usize) -> Option<&str> {
        self.positionals.get(index).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// All arguments by position.
    pub fn positionals(&self) -> &[String] {
        &self.positionals
    }

    /// The value of `--image-id`. An empty one counts as none.
    pub fn image_id(&self) -> Option<&str> {
        self.text("image-id").filter(|text| !text.is_empty())
    }

    /// The last value given to a configuration option such as `rbd_default_clone_format`.
    pub fn config(&self, name: &str) -> Option<&str> {
        self.config.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The requested output format.
    pub fn format(&self) -> Outcome<crate::output::Format> {
        crate::output::Format::choose(self.text("format"), self.flag("pretty-format"))
    }

    /// A required option's text.
    pub fn require(&self, long: &str) -> Outcome<&str> {
        self.text(long)
            .ok_or_else(|| Failure::invalid(format!("the option '--{long}' is required")))
    }
}
