//! Reads a command line by `rbd`'s rules.
//!
//! The words that are neither options nor their values are the command's name and then its arguments; they
//! may stand anywhere. The parser accepts `--opt value`, `--opt=value`, `-p value`, `-pvalue` and bundles of
//! letters. `--` ends the options. Names of options cannot be shortened.

use super::{Args, CommandSpec, Kind, Opt, options, suggest};
use crate::failure::Failure;
use crate::size;

/// Options that may be given more than once.
const REPEATED: &[&str] = &["image-feature", "options"];

/// What a command line asks for.
pub enum Request {
    /// Run a command.
    Run(&'static CommandSpec, Args),
    /// Show one command's help; the words are those typed.
    CommandHelp(&'static CommandSpec, Vec<String>),
    /// Show all commands.
    Help,
    /// Show the version.
    Version,
    /// No such command: show all commands and an error.
    Unknown(Vec<String>),
    /// Refuse the command line.
    Bad(Failure),
}

/// A piece of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Word(String),
    /// A known option with its value.
    Given(&'static str, String),
    /// The same, given by its letter.
    Lettered(&'static Opt, String),
    /// A configuration option, passed to every command.
    Config(String, String),
    /// An unknown option, as typed.
    Strange(String),
    /// A known option that lacks its value.
    Valueless(&'static str),
    /// A known option with an equal sign that nothing follows.
    NothingGiven(&'static str),
    /// A known option that takes no value, with one.
    Superfluous(&'static str),
}

/// Reads `arguments`, which do not contain the program's own name.
pub fn parse(commands: &'static [&'static [CommandSpec]], arguments: &[String]) -> Request {
    let pieces = split(commands, arguments);
    let words: Vec<String> = pieces.iter().filter_map(word_of).map(str::to_string).collect();
    let wants = |long| {
        pieces.iter().any(|piece| match piece {
            Piece::Given(name, _) => *name == long,
            Piece::Lettered(opt, _) => opt.long == long,
            _ => false,
        })
    };
    if wants("version") {
        return Request::Version;
    }
    if words.first().is_some_and(|w| w == "help") {
        return help(commands, &words[1..]);
    }
    if words.is_empty() {
        return pieces.into_iter().find_map(refuse_without_command).unwrap_or(Request::Help);
    }
    if wants("help") {
        return help(commands, &words);
    }
    match find(commands, &words) {
        None => Request::Unknown(words),
        Some((spec, _)) if spec.absent => Request::Run(spec, Args::default()),
        Some((spec, used)) => match collect(spec, pieces, used) {
            Ok(args) => Request::Run(spec, args),
            Err(failure) => Request::Bad(failure),
        },
    }
}

/// The configuration options among the arguments, by their names with underscores.
pub fn config_of(
    commands: &'static [&'static [CommandSpec]],
    arguments: &[String],
) -> Vec<(String, String)> {
    let config = |piece| match piece {
        Piece::Config(name, value) => Some((name, value)),
        _ => None,
    };
    split(commands, arguments).into_iter().filter_map(config).collect()
}

fn refuse_without_command(piece: Piece) -> Option<Request> {
    match piece {
        Piece::Strange(typed) => Some(Request::Bad(unrecognised(&typed))),
        _ => None,
    }
}

fn help(commands: &'static [&'static [CommandSpec]], words: &[String]) -> Request {
    if words.is_empty() {
        return Request::Help;
    }
    match find(commands, words) {
        Some((spec, used)) => Request::CommandHelp(spec, words[..used].to_vec()),
        None => Request::Unknown(words.to_vec()),
    }
}

/// The command that is named by the most leading words, and how many words name it.
fn find(
    commands: &'static [&'static [CommandSpec]],
    words: &[String],
) -> Option<(&'static CommandSpec, usize)> {
    let named = |name: &[&str]| {
        name.len() <= words.len() && name.iter().zip(words).all(|(have, given)| have == given)
    };
    commands
        .iter()
        .copied()
        .flatten()
        .flat_map(|spec| spec.names().map(move |name| (spec, name)))
        .filter(|(_, name)| named(name))
        .map(|(spec, name)| (spec, name.len()))
        .max_by_key(|(_, used)| *used)
}

fn word_of(piece: &Piece) -> Option<&str> {
    match piece {
        Piece::Word(word) => Some(word),
        _ => None,
    }
}

/// The options of all commands, by name and by letter. An option has the same kind in all commands.
struct Known {
    all: Vec<&'static Opt>,
}

impl Known {
    fn of(commands: &'static [&'static [CommandSpec]]) -> Self {
        let of_commands = commands.iter().copied().flatten().flat_map(CommandSpec::all_options);
        Self { all: options::GLOBAL.iter().chain(of_commands).collect() }
    }

    fn long(&self, name: &str) -> Option<&'static Opt> {
        let name = match name {
            "mon_host" => "mon-host",
            "user" => "id",
            name => name,
        };
        self.all.iter().copied().find(|opt| opt.long == name)
    }

    fn short(&self, letter: char) -> Option<&'static Opt> {
        self.all.iter().copied().find(|opt| opt.short == Some(letter))
    }

    /// True if `text` begins with an option that is known.
    fn starts_option(&self, text: &str) -> bool {
        match text.strip_prefix("--") {
            Some("") => true,
            Some(long) => {
                let name = long.split('=').next().unwrap_or(long);
                self.long(name).is_some() || is_config(name)
            }
            None => {
                let letter = text.strip_prefix('-').and_then(|rest| rest.chars().next());
                letter.is_some_and(|letter| self.short(letter).is_some())
            }
        }
    }
}

fn split(commands: &'static [&'static [CommandSpec]], arguments: &[String]) -> Vec<Piece> {
    let known = Known::of(commands);
    let mut pieces = Vec::new();
    let mut rest = arguments.iter().map(String::as_str).peekable();
    while let Some(text) = rest.next() {
        let mut value_of = |opt: &'static Opt, inline: Option<&str>| {
            let next = || rest.next_if(|text| !known.starts_option(text));
            take_value(opt, inline, next)
        };
        if text == "--" {
            pieces.extend(rest.map(|word| Piece::Word(word.to_string())));
            break;
        }
        if let Some(long) = text.strip_prefix("--") {
            let (name, inline) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (long, None),
            };
            pieces.push(match known.long(name) {
                Some(opt) => value_of(opt, inline),
                None if is_config(name) => {
                    let value = inline.or_else(|| rest.next()).unwrap_or_default();
                    Piece::Config(name.replace('-', "_"), value.to_string())
                }
                None => Piece::Strange(format!("--{name}")),
            });
        } else if text.len() > 1 && text.starts_with('-') {
            split_letters(&known, &text[1..], &mut value_of, &mut pieces);
        } else {
            pieces.push(Piece::Word(text.to_string()));
        }
    }
    pieces
}

/// Splits a bundle of letters: flags, and perhaps at its end an option whose value follows.
fn split_letters(
    known: &Known,
    letters: &str,
    value_of: &mut dyn FnMut(&'static Opt, Option<&str>) -> Piece,
    pieces: &mut Vec<Piece>,
) {
    for (i, letter) in letters.char_indices() {
        let Some(opt) = known.short(letter) else {
            pieces.push(Piece::Strange(format!("-{}", &letters[i..])));
            return;
        };
        if opt.kind == Kind::Flag {
            pieces.push(Piece::Lettered(opt, String::new()));
            continue;
        }
        let attached = &letters[i + letter.len_utf8()..];
        pieces.push(match value_of(opt, (!attached.is_empty()).then_some(attached)) {
            Piece::Given(_, value) => Piece::Lettered(opt, value),
            other => other,
        });
        return;
    }
}

fn take_value<'a>(
    opt: &'static Opt,
    inline: Option<&'a str>,
    next: impl FnOnce() -> Option<&'a str>,
) -> Piece {
    if inline == Some("") {
        return Piece::NothingGiven(opt.long);
    }
    if opt.kind == Kind::Flag {
        return match inline {
            Some(_) => Piece::Superfluous(opt.long),
            None => Piece::Given(opt.long, String::new()),
        };
    }
    match inline.or_else(next) {
        Some(value) => Piece::Given(opt.long, value.to_string()),
        None => Piece::Valueless(opt.long),
    }
}

/// True for the name of a Ceph configuration option. All commands accept these.
fn is_config(name: &str) -> bool {
    let name = name.replace('-', "_");
    ["rbd_", "debug_", "rados_", "mon_", "auth_", "log_", "osd_", "ms_", "admin_socket", "client_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

fn collect(spec: &CommandSpec, pieces: Vec<Piece>, used_words: usize) -> Result<Args, Failure> {
    let mut args = Args::default();
    let mut words_seen = 0;
    for piece in pieces {
        match piece {
            Piece::Word(word) => {
                words_seen += 1;
                if words_seen > used_words {
                    args.positionals.push(word);
                }
            }
            Piece::Given(long, value) => {
                check_accepted(spec, long)?;
                args.values.push((long, value));
            }
            Piece::Lettered(opt, value) => {
                if find_option(spec, opt.long).is_none() {
                    let letter = opt.short.map(String::from).unwrap_or_default();
                    return Err(unrecognised(&format!("-{letter}")));
                }
                args.values.push((opt.long, value));
            }
            Piece::Config(name, value) => args.config.push((name, value)),
            Piece::Strange(typed) => return Err(unrecognised_by(spec, &typed)),
            // These two also for an option that the command does not have.
            Piece::NothingGiven(long) => {
                return Err(Failure::usage(format!(
                    "the argument for option '--{long}' should follow immediately after the equal sign"
                )));
            }
            Piece::Superfluous(long) => {
                let message = format!("option '--{long}' does not take any arguments");
                return Err(Failure::usage(message));
            }
            Piece::Valueless(long) => {
                check_accepted(spec, long)?;
                let message = format!("the required argument for option '--{long}' is missing");
                return Err(Failure::usage(message));
            }
        }
    }
    let many = spec.positionals.last().is_some_and(|p| p.many);
    if !many && args.positionals.len() > spec.positionals.len() {
        return Err(Failure::usage("too many arguments"));
    }
    check_values(spec, &args)?;
    Ok(args)
}

fn find_option(spec: &CommandSpec, long: &str) -> Option<&'static Opt> {
    options::GLOBAL.iter().chain(spec.all_options()).find(|opt| opt.long == long)
}

fn check_accepted(spec: &CommandSpec, long: &str) -> Result<(), Failure> {
    match find_option(spec, long) {
        Some(_) => Ok(()),
        None => Err(unrecognised_by(spec, &format!("--{long}"))),
    }
}

/// The same with the nearest option of the command.
fn unrecognised_by(spec: &CommandSpec, typed: &str) -> Failure {
    let options = options::GLOBAL.iter().chain(spec.all_options());
    let options = options.map(|opt| format!("--{}", opt.long)).collect();
    let near = typed.starts_with("--").then(|| suggest::nearest_of(typed, options)).flatten();
    match near {
        Some(near) => unrecognised(typed).then_hint(format!("did you mean '{near}'?")),
        None => unrecognised(typed),
    }
}

fn unrecognised(typed: &str) -> Failure {
    Failure::usage(format!("unrecognised option '{typed}'"))
}

fn check_values(spec: &CommandSpec, args: &Args) -> Result<(), Failure> {
    for (i, (long, value)) in args.values.iter().enumerate() {
        let repeats = args.values[..i].iter().any(|(earlier, _)| earlier == long);
        if repeats && !REPEATED.contains(long) {
            let message = format!("option '--{long}' cannot be specified more than once");
            return Err(Failure::usage(message));
        }
        let Some(opt) = find_option(spec, long) else { continue };
        let number = matches!(opt.kind, Kind::Integer | Kind::Float);
        if number && !value.is_empty() && !acceptable(opt.kind, value) {
            let message = format!("the argument ('{value}') for option '--{long}' is invalid");
            return Err(Failure::usage(message));
        }
        if !acceptable(opt.kind, value) {
            let failure = invalid_argument(long);
            return Err(match wanted(opt.kind) {
                Some(wanted) => failure.because(format!("'{value}' is not {wanted}")),
                None => failure,
            });
        }
    }
    Ok(())
}

/// `rbd`'s sentence for an option whose value is not acceptable.
pub fn invalid_argument(long: &str) -> Failure {
    Failure::usage(format!("the argument for option '--{long}' is invalid"))
}

/// A description of the values that an option takes, for the error about another value.
fn wanted(kind: Kind) -> Option<String> {
    const SIZE: &str = "a whole number with B, K, M, G, T, P or E";
    match kind {
        Kind::Flag | Kind::Text => None,
        Kind::SizeMib => Some(format!("a size, which is {SIZE}; without a letter it counts MiB")),
        Kind::BytesWithin(first, last) => Some(format!("a size from {first} to {last} bytes")),
        Kind::Bytes => Some(format!("a size, which is {SIZE}; without a letter it counts bytes")),
        Kind::Integer | Kind::Float => Some("a number".to_string()),
        Kind::Range(first, last) => Some(format!("a number from {first} to {last}")),
        Kind::Choice(words) => Some(format!("one of {}", words.join(", "))),
    }
}

fn acceptable(kind: Kind, value: &str) -> bool {
    match kind {
        Kind::Flag | Kind::Text => true,
        Kind::SizeMib => size::parse_mib(value).is_some(),
        Kind::Bytes => size::parse_bytes(value).is_some(),
        Kind::BytesWithin(first, last) => {
            size::parse_bytes(value).is_some_and(|bytes| (first..=last).contains(&bytes))
        }
        Kind::Integer => parse_integer(value).is_some(),
        Kind::Float => value.parse::<f64>().is_ok(),
        Kind::Range(first, last) => {
            parse_integer(value).is_some_and(|number| (first..=last).contains(&number))
        }
        Kind::Choice(words) => words.contains(&value),
    }
}

/// A decimal number, perhaps with a plus sign.
pub fn parse_integer(text: &str) -> Option<u64> {
    text.parse().ok()
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
