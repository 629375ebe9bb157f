//! Help in the form of `rbd`: the list of commands, and the help of one command.

use super::model::{Commands, visible};
use super::{CommandSpec, Kind, Opt, options};

/// Lines are at most this long, the blank at their end included.
const LINE_WIDTH: usize = 80;
/// Descriptions in the list of commands begin here.
const LIST_INDENT: usize = 38;
/// Descriptions in the help of a command begin here, or further to the right.
const NAME_WIDTH_MIN: usize = 22;

/// Options in the first lines of a command's help begin here, or further to the left.
const USAGE_INDENT_MAX: usize = 38;

const ABOUT: &str = "Command-line interface for managing Ceph RBD images.";

/// Text that is broken into lines where a piece does not fit any more.
struct Lines {
    text: String,
    indent: usize,
    column: usize,
}

impl Lines {
    /// Begins after `text`, whose last line ends in `column`. Further lines begin at `indent`.
    fn after(text: String, column: usize, indent: usize) -> Self {
        Self { text, indent, column }
    }

    /// A piece that stays whole. A line may be full to the last column only if nothing follows.
    fn push(&mut self, piece: &str, last: bool) {
        let room = if last { LINE_WIDTH } else { LINE_WIDTH - 1 };
        if self.column + piece.len() > room && self.column > self.indent {
            self.break_line();
        }
        self.push_loose(piece);
    }

    fn break_line(&mut self) {
        self.text.push('\n');
        self.column = 0;
    }

    /// Words with blanks between them. Line breaks stay.
    fn push_words(&mut self, words: &str) {
        for (number, line) in words.split('\n').enumerate() {
            if number > 0 {
                self.break_line();
            }
            for word in line.split_inclusive(' ') {
                if self.column + word.len() > LINE_WIDTH && self.column > self.indent {
                    self.trim();
                    self.break_line();
                }
                self.push_cut(word);
            }
        }
        self.trim();
        self.break_line();
    }

    /// A word, cut where it is longer than a line.
    fn push_cut(&mut self, mut word: &str) {
        let room = LINE_WIDTH.saturating_sub(self.indent).max(1);
        while word.trim_end().len() > room && word.is_char_boundary(room) {
            self.push_loose(&word[..room]);
            self.break_line();
            word = &word[room..];
        }
        self.push_loose(word);
    }

    fn push_loose(&mut self, word: &str) {
        if self.column < self.indent {
            self.text.push_str(&" ".repeat(self.indent - self.column));
            self.column = self.indent;
        }
        self.text.push_str(word);
        self.column += word.len();
    }

    fn trim(&mut self) {
        while self.text.ends_with(' ') {
            self.text.pop();
        }
    }
}

/// The list of all commands.
pub fn list(all: Commands, program: &str) -> String {
    let mut text = format!(
        "usage: {program} <command> ...\n\n{ABOUT}\n\nPositional arguments:\n  <command>\n"
    );
    let commands = visible(all);
    for spec in commands.iter().filter(|spec| !spec.own) {
        push_listed(&mut text, spec);
    }
    text.push_str("\nOptional arguments:\n");
    for opt in options::GLOBAL.iter().filter(|opt| !opt.own) {
        text.push_str(&format!("  {:<36}{}\n", option_name(opt), opt.help));
    }
    text.push_str(&format!("\nSee '{program} help <command>' for help on a specific command.\n"));
    text.push_str("\nCommands that Ceph's rbd does not have:\n");
    for spec in commands.iter().filter(|spec| spec.own) {
        push_listed(&mut text, spec);
    }
    text
}

/// A command with its first alias, which is cut short where it is long.
fn listed_name(spec: &CommandSpec) -> String {
    let mut name = spec.words.join(" ");
    if let Some(alias) = spec.aliases.first() {
        let [first @ .., last] = alias else { return name };
        let same = first.len() >= 2 && spec.words.starts_with(first);
        let shown = if same { format!("... {last}") } else { alias.join(" ") };
        name.push_str(&format!(" ({shown})"));
    }
    name
}

fn push_listed(text: &mut String, spec: &CommandSpec) {
    let name = format!("    {}", listed_name(spec));
    text.push_str(&name);
    let mut column = name.len();
    if column >= LIST_INDENT {
        text.push('\n');
        column = 0;
    }
    let mut lines = Lines::after(std::mem::take(text), column, LIST_INDENT);
    lines.push_words(spec.about);
    *text = lines.text;
}

/// `-p [ --pool ] arg`.
fn option_name(opt: &Opt) -> String {
    // Ceph spells this one with an underscore.
    let long = if opt.long == "mon-host" { "mon_host" } else { opt.long };
    let name = match opt.short {
        Some(letter) => format!("-{letter} [ --{long} ]"),
        None => format!("--{long}"),
    };
    match (opt.kind, opt.default) {
        (Kind::Flag, _) => name,
        (_, Some(value)) => format!("{name} arg (={value})"),
        (_, None) => format!("{name} arg"),
    }
}

/// The help of one command, by the words that were typed.
pub fn command(program: &str, spec: &CommandSpec, typed: &[String]) -> String {
    let mut text = format!("usage: {program} {}", typed.join(" "));
    let options: Vec<&Opt> = spec.all_options().filter(|opt| !opt.own).collect();
    let (column, indent) = match text.len() < USAGE_INDENT_MAX {
        true => {
            text.push(' ');
            (text.len(), text.len())
        }
        false => {
            text.push('\n');
            (0, USAGE_INDENT_MAX)
        }
    };
    let mut lines = Lines::after(text, column, indent);
    push_usage(&mut lines, spec, &options);
    text = lines.text;
    text.push_str(&format!("\n{}\n\n", spec.about));
    let described: Vec<&Opt> = options.into_iter().filter(|opt| !opt.deprecated).collect();
    // The place of a value is counted although a flag has none.
    let width = |opt: &&Opt| option_name(opt).len() + usize::from(opt.kind == Kind::Flag);
    let names = described.iter().map(width);
    let names = names.chain(spec.positionals.iter().map(|word| word.name.len() + "-- ".len()));
    let indent = names.map(|len| len + 2).max().unwrap_or(0).max(NAME_WIDTH_MIN) + 1;
    let push_described = |text: &mut String, name: &str, help: &str| {
        text.push_str(name);
        let mut lines = Lines::after(std::mem::take(text), name.len(), indent);
        lines.push_words(&help.replace(" (example:", "\n(example:"));
        *text = lines.text;
    };
    if !spec.positionals.is_empty() {
        text.push_str("Positional arguments\n");
        for word in spec.positionals {
            push_described(&mut text, &format!("  <{}>", word.name), word.help);
        }
        text.push('\n');
    }
    if !described.is_empty() {
        text.push_str("Optional arguments\n");
        for opt in described {
            push_described(&mut text, &format!("  {}", option_name(opt)), opt.help);
        }
        text.push('\n');
    }
    if !spec.notes.is_empty() {
        text.push_str(&format!("{}\n", spec.notes));
    }
    text
}

fn push_usage(lines: &mut Lines, spec: &CommandSpec, options: &[&Opt]) {
    let shown = options.iter().map(|opt| {
        let value = match opt.kind {
            Kind::Flag => String::new(),
            _ => format!(" <{}>", opt.long),
        };
        match opt.required {
            true => format!("--{}{value} ", opt.long),
            false => format!("[--{}{value}] ", opt.long),
        }
    });
    // Lines are broken only before a bracket.
    let mut piece = String::new();
    for shown in shown {
        if shown.starts_with('[') && !piece.is_empty() {
            lines.push(&std::mem::take(&mut piece), false);
        }
        piece.push_str(&shown);
    }
    if !piece.is_empty() {
        lines.push(&piece, true);
    }
    if !options.is_empty() || spec.positionals.is_empty() {
        lines.break_line();
    }
    for word in spec.positionals {
        match word.optional {
            true => lines.push(&format!("[<{}>] ", word.name), true),
            false => lines.push(&format!("<{}> ", word.name), true),
        }
        if word.many {
            lines.push(&format!("[<{}> ...] ", word.name), true);
        }
    }
    if !spec.positionals.is_empty() {
        lines.break_line();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::ALL;

    const OBSERVED: &str = include_str!("../../../../docs/rbd-help.txt");

    /// Commands whose help may differ from that of `rbd`: they have other options, or take other arguments.
    const DIFFERENT: &[&str] =
        &["bench", "export", "import", "trash move", "trash purge", "trash restore"];

    fn different(name: &str) -> bool {
        DIFFERENT.contains(&name) || name.starts_with("device ")
    }

    #[test]
    fn the_help_of_each_command_is_rbds() {
        let mut seen = 0;
        let mut wrong = Vec::new();
        for section in OBSERVED.split("================ rbd help ").skip(2) {
            let (name, text) = section.split_once('\n').unwrap();
            let words: Vec<String> = name.split(' ').map(str::to_owned).collect();
            let spec = ALL.iter().copied().flatten().find(|spec| spec.words == words);
            let Some(spec) = spec.filter(|spec| !spec.absent) else { continue };
            if different(name) {
                continue;
            }
            seen += 1;
            // The file has an empty line after each text.
            let text = text.strip_suffix('\n').unwrap_or(text);
            if command("rbd", spec, &words) != text {
                wrong.push(name);
                print!("{name}:\n{text}\n{}", command("rbd", spec, &words));
            }
        }
        assert!(seen > 50, "{seen}");
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn the_list_of_commands_is_rbds_without_those_that_are_missing() {
        let observed = OBSERVED.split("================ rbd help ").nth(1).unwrap();
        let ours = list(ALL, "rbd");
        let (ours, own) = ours.split_once("\nCommands that Ceph's rbd does not have:\n").unwrap();
        assert!(own.contains("    check  ") && own.contains("    serve "), "{own}");
        let mut observed = observed.lines().skip(1).peekable();
        for line in ours.lines() {
            // What is missing here is passed over.
            while observed.peek().is_some_and(|theirs| *theirs != line) {
                observed.next();
            }
            assert_eq!(observed.next(), Some(line));
        }
    }
}
