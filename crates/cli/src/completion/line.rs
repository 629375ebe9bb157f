//! What belongs behind the cursor, by the tables of commands.

use crate::args::model::{Commands, visible};
use crate::args::{CommandSpec, Kind, Opt, options};

/// A kind of name to be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// A pool.
    Pool,
    /// A pool, or a namespace of one.
    PoolOrNamespace,
    /// A namespace of the pool that an option names.
    Namespace,
    /// An image; with `snap`, a snapshot of it may follow, or has to.
    Image(Snap),
    /// A group, and perhaps a snapshot of it.
    Group(Snap),
    /// A snapshot of the image that another word names.
    Snapshot,
    /// The number of an image in the trash.
    Trashed,
    /// What was put aside on this host, of the pool that another word names.
    Tail,
    /// A file.
    File,
}

/// Whether a snapshot is part of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snap {
    /// Never.
    No,
    /// Perhaps.
    Maybe,
    /// Always.
    Yes,
}

/// What belongs behind the cursor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The word so far, where candidates are compared with it.
    pub prefix: String,
    /// What stands in the word before the name: `--pool=`.
    pub before: String,
    /// Candidates that need no store.
    pub fixed: Vec<String>,
    /// Names to be looked up.
    pub names: Vec<Name>,
    /// `--store`.
    pub store: Option<String>,
    /// `--pool` and `--namespace`, where the names are looked up.
    pub pool: Option<String>,
    /// See `pool`.
    pub namespace: Option<String>,
    /// The image that is named already.
    pub image: Option<String>,
}

/// A word of the line that is no option.
type Given = (&'static Opt, String);

/// The line before the cursor.
struct Line {
    words: Vec<String>,
    given: Vec<Given>,
    /// An option that waits for its value.
    open: Option<&'static Opt>,
}

/// What belongs in the place of the last word.
pub fn wanted(commands: Commands, words: &[String]) -> Option<Wanted> {
    let (current, before) = words.split_last()?;
    let line = read(commands, before);
    let value = |long: &str| {
        line.given.iter().find(|(opt, _)| opt.long == long).map(|(_, value)| value.clone())
    };
    let mut wanted = Wanted {
        prefix: current.clone(),
        store: value("store"),
        pool: value("pool"),
        namespace: value("namespace"),
        image: value("image"),
        ..Wanted::default()
    };
    if let Some(opt) = line.open {
        wanted.value_of(opt, "");
        return Some(wanted);
    }
    let all: Vec<&'static CommandSpec> = commands.iter().copied().flatten().collect();
    let helped = line.words.first().is_some_and(|word| word == "help");
    let typed = if helped { &line.words[1..] } else { &line.words[..] };
    let found = longest(&all, typed);
    if let Some((name, _)) = current.split_once('=').filter(|(name, _)| name.starts_with("--")) {
        let long = name.trim_start_matches('-');
        let opt = option(commands, |opt| opt.long == long)?;
        wanted.value_of(opt, &format!("{name}="));
        return Some(wanted);
    }
    if current.starts_with('-') {
        let of_command = found.iter().flat_map(|(spec, _)| spec.all_options());
        let shown = options::GLOBAL.iter().chain(of_command);
        let shown = shown.filter(|opt| !opt.deprecated && value(opt.long).is_none());
        wanted.fixed = shown.map(|opt| format!("--{}", opt.long)).collect();
        return Some(wanted);
    }
    wanted.fixed = next_words(commands, typed);
    if line.words.is_empty() {
        wanted.fixed.push("help".to_owned());
    }
    if let (Some((spec, used)), false) = (found, helped) {
        let index = typed.len() - used;
        let positional = spec.positionals.get(index);
        let last = spec.positionals.last().filter(|last| last.many);
        if wanted.image.is_none() && index > 0 {
            wanted.image = typed.get(used).cloned();
        }
        if let Some(positional) = positional.or(last) {
            wanted.names = of_positional(positional.name);
            if positional.name == "shell" {
                wanted.fixed =
                    ["bash", "elvish", "fish", "powershell", "zsh"].map(Into::into).into();
            }
        }
    }
    Some(wanted)
}

impl Wanted {
    /// A value of an option. `before` is what stands in the word before it.
    fn value_of(&mut self, opt: &Opt, before: &str) {
        before.clone_into(&mut self.before);
        if let Kind::Choice(words) = opt.kind {
            self.fixed = words.iter().map(|word| format!("{before}{word}")).collect();
        }
        self.names = of_option(opt.long);
    }
}

/// The first option of all commands for which `is` is true.
fn option(commands: Commands, is: impl Fn(&Opt) -> bool) -> Option<&'static Opt> {
    let of_commands = commands.iter().copied().flatten().flat_map(CommandSpec::all_options);
    options::GLOBAL.iter().chain(of_commands).find(|opt| is(opt))
}

fn read(commands: Commands, before: &[String]) -> Line {
    let mut line = Line { words: Vec::new(), given: Vec::new(), open: None };
    for word in before {
        if let Some(opt) = line.open.take() {
            line.given.push((opt, word.clone()));
        } else if let Some(long) = word.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (long, None),
            };
            line.take(option(commands, |opt| opt.long == name), value);
        } else if let Some(letters) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) {
            let letter = letters.chars().next().unwrap_or('-');
            let value = &letters[letter.len_utf8()..];
            let opt = option(commands, |opt| opt.short == Some(letter));
            line.take(opt, Some(value).filter(|value| !value.is_empty()));
        } else {
            line.words.push(word.clone());
        }
    }
    line
}

impl Line {
    fn take(&mut self, opt: Option<&'static Opt>, value: Option<&str>) {
        match (opt, value) {
            (Some(opt), Some(value)) => self.given.push((opt, value.to_owned())),
            (Some(opt), None) if opt.kind != Kind::Flag => self.open = Some(opt),
            (Some(opt), None) => self.given.push((opt, String::new())),
            (None, _) => {}
        }
    }
}

/// The command that the most of the first words name, and how many words those are.
fn longest(
    all: &[&'static CommandSpec],
    typed: &[String],
) -> Option<(&'static CommandSpec, usize)> {
    let names = all.iter().flat_map(|spec| spec.names().map(move |name| (*spec, name)));
    let fits = |name: &[&str]| {
        name.len() <= typed.len() && name.iter().zip(typed).all(|(have, word)| have == word)
    };
    let fitting = names.filter(|(_, name)| fits(name));
    fitting.map(|(spec, name)| (spec, name.len())).max_by_key(|(_, used)| *used)
}

/// The words that can follow those typed in the name of a command.
fn next_words(commands: Commands, typed: &[String]) -> Vec<String> {
    let names = visible(commands).into_iter().flat_map(|spec| spec.names());
    let follows = |name: &&'static [&'static str]| {
        name.len() > typed.len() && name.iter().zip(typed).all(|(have, word)| have == word)
    };
    names.filter(follows).map(|name| name[typed.len()].to_owned()).collect()
}

fn of_positional(name: &str) -> Vec<Name> {
    vec![match name {
        "pool-name" | "pool" => Name::Pool,
        "pool-spec" => Name::PoolOrNamespace,
        "image-spec" | "source-image-spec" | "dest-image-spec" | "image" => Name::Image(Snap::No),
        "image-or-snap-spec" | "source-image-or-snap-spec" | "image-or-snap-or-device-spec" => {
            Name::Image(Snap::Maybe)
        }
        "snap-spec" | "source-snap-spec" | "dest-snap-spec" => Name::Image(Snap::Yes),
        "group-spec" | "source-group-spec" | "dest-group-spec" => Name::Group(Snap::No),
        "group-snap-spec" => Name::Group(Snap::Yes),
        "image-id" => Name::Trashed,
        "tail-id" => Name::Tail,
        "path-name" | "diff-path" | "diff1-path" | "diff2-path" | "directory"
        | "passphrase-file" => Name::File,
        _ => return Vec::new(),
    }]
}

fn of_option(long: &str) -> Vec<Name> {
    vec![match long {
        "pool" | "dest-pool" | "data-pool" | "image-pool" | "group-pool" | "journal-pool" => {
            Name::Pool
        }
        "namespace" | "dest-namespace" | "image-namespace" | "group-namespace" => Name::Namespace,
        "image" | "dest" => Name::Image(Snap::No),
        "group" | "dest-group" => Name::Group(Snap::No),
        "snap" | "from-snap" => Name::Snapshot,
        "image-id" => Name::Trashed,
        "path" | "store" | "conf" | "keyfile" | "keyring" | "quiesce-hook" => Name::File,
        _ => return Vec::new(),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::ALL;

    fn of(line: &str) -> Wanted {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        wanted(ALL, &words).unwrap()
    }

    #[test]
    fn words_of_commands_follow_each_other() {
        assert!(of("").fixed.iter().any(|word| word == "clone"));
        let snap = of("snap ").fixed;
        assert!(snap.contains(&"create".to_owned()) && snap.contains(&"ls".to_owned()), "{snap:?}");
        assert!(!of("snap ").fixed.contains(&"clone".to_owned()));
        assert_eq!(
            of("trash purge schedule st").fixed.iter().filter(|w| *w == "status").count(),
            1
        );
        assert!(of("help sn").fixed.contains(&"snap".to_owned()));
        assert!(of("help info ").names.is_empty());
    }

    #[test]
    fn arguments_are_names_of_their_kind() {
        for (line, name) in [
            ("info ", Name::Image(Snap::Maybe)),
            ("rm v", Name::Image(Snap::No)),
            ("snap protect vm", Name::Image(Snap::Yes)),
            ("clone ", Name::Image(Snap::Yes)),
            ("clone a@s ", Name::Image(Snap::No)),
            ("ls ", Name::PoolOrNamespace),
            ("pool stats ", Name::PoolOrNamespace),
            ("group snap create ", Name::Group(Snap::Yes)),
            ("export a ", Name::File),
            ("info --pool ", Name::Pool),
            ("info -p ", Name::Pool),
            ("info --pool=", Name::Pool),
            ("--pool rbd info --image ", Name::Image(Snap::No)),
            ("trash restore ", Name::Trashed),
            ("tail rm gold ", Name::Tail),
        ] {
            assert_eq!(of(line).names, [name], "{line}");
        }
    }

    #[test]
    fn options_are_those_of_the_command_that_are_not_there_yet() {
        let wanted = of("snap ls --format json --");
        assert!(wanted.fixed.contains(&"--all".to_owned()), "{wanted:?}");
        assert!(!wanted.fixed.contains(&"--format".to_owned()));
        assert!(!wanted.fixed.contains(&"--size".to_owned()));
        assert_eq!(of("info --format ").fixed, ["plain", "json", "xml"]);
        let given = of("info --format=j");
        assert_eq!(given.fixed, ["--format=plain", "--format=json", "--format=xml"]);
    }

    #[test]
    fn every_line_of_words_is_taken() {
        for line in ["- ", "-", "--", "-é x", "--=", "help", "help help ", "a b c d e f ", "-p"] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            // An option that does not exist has no values; nothing panics.
            let found = wanted(ALL, &words);
            assert!(found.is_some() || line == "--=", "{line}");
        }
    }
}
