//! Help, completions and manual pages, made from the command tables.

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, Command};

use super::{CommandSpec, Kind, Opt, Positional, options};

/// Column at which descriptions start in the list of commands.
const LIST_INDENT: usize = 38;
const LIST_WIDTH: usize = 80;
const ABOUT: &str = "Layered block images: snapshots, clones, templates.";

/// The command tables.
pub type Commands = &'static [&'static [CommandSpec]];

/// All commands in alphabetical order, without hidden ones.
pub fn visible(all: Commands) -> Vec<&'static CommandSpec> {
    let mut commands: Vec<_> = all.iter().copied().flatten().filter(|spec| !spec.hidden).collect();
    commands.sort_by_key(|spec| spec.words);
    commands
}

/// The list of all commands, in `rbd`'s layout.
pub fn command_list(all: Commands, program: &str) -> String {
    let mut text = format!(
        "usage: {program} <command> ...\n\n{ABOUT}\n\nPositional arguments:\n  <command>\n"
    );
    for spec in visible(all) {
        push_listed(&mut text, spec);
    }
    text.push_str("\nOptional arguments:\n");
    for opt in options::GLOBAL {
        let short = opt.short.map(|letter| format!("-{letter} ")).unwrap_or_default();
        let name = match (short.is_empty(), opt.kind == Kind::Flag) {
            (true, true) => format!("--{}", opt.long),
            (true, false) => format!("--{} arg", opt.long),
            (false, true) => format!("{short}[ --{} ]", opt.long),
            (false, false) => format!("{short}[ --{} ] arg", opt.long),
        };
        let note = if opt.own { "" } else { " (accepted and ignored)" };
        text.push_str(&format!("  {name:<36}{}{note}\n", opt.help));
    }
    text.push_str(&format!("\nSee '{program} help <command>' for help on a specific command.\n"));
    text
}

fn push_listed(text: &mut String, spec: &CommandSpec) {
    let mut name = spec.words.join(" ");
    if let Some(alias) = spec.aliases.first() {
        name.push_str(&format!(" ({})", alias.join(" ")));
    }
    let mut line = format!("    {name}");
    if line.len() >= LIST_INDENT {
        text.push_str(&line);
        text.push('\n');
        line.clear();
    }
    line = format!("{line:<LIST_INDENT$}");
    for word in spec.about.split(' ') {
        if line.len() + word.len() >= LIST_WIDTH {
            text.push_str(line.trim_end());
            text.push('\n');
            line = " ".repeat(LIST_INDENT);
        }
        line.push_str(word);
        line.push(' ');
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

/// The help of one command, by the words that were typed.
pub fn command_help(program: &'static str, spec: &'static CommandSpec, typed: &[String]) -> String {
    let name = format!("{program} {}", typed.join(" "));
    let command = describe(Command::new(name.clone()).bin_name(name), program, spec);
    let command = command.args(options::GLOBAL.iter().filter(|o| o.long == "store").map(option));
    command.disable_help_flag(true).term_width(100).render_help_text()
}

trait RenderText {
    fn render_help_text(self) -> String;
}

impl RenderText for Command {
    fn render_help_text(mut self) -> String {
        self.render_long_help().to_string()
    }
}

/// The whole program, for completions and manual pages.
pub fn program(all: Commands, name: &'static str) -> Command {
    let mut program = Command::new(name)
        .about(ABOUT)
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args(options::GLOBAL.iter().map(option));
    for spec in all.iter().copied().flatten() {
        for words in spec.names() {
            program = add(program, name, words, spec, words != spec.words);
        }
    }
    program
}

/// Adds a command. One of two words is added below the command of its first word.
fn add(
    parent: Command,
    program: &'static str,
    words: &'static [&'static str],
    spec: &'static CommandSpec,
    alias: bool,
) -> Command {
    let [first, rest @ ..] = words else { return parent };
    if rest.is_empty() {
        let command = Command::new(*first).hide(spec.hidden || alias);
        return parent.subcommand(describe(command, program, spec));
    }
    let known = parent.get_subcommands().any(|command| command.get_name() == *first);
    let parent = match known {
        true => parent,
        false => parent.subcommand(
            Command::new(*first)
                .about(family(first))
                .disable_help_subcommand(true)
                .disable_help_flag(true),
        ),
    };
    parent.mut_subcommand(*first, |family| add(family, program, rest, spec, alias))
}

fn family(word: &str) -> &'static str {
    match word {
        "snap" => "Snapshots.",
        "deep" => "Copies with snapshots.",
        "group" => "Groups of images.",
        "trash" => "Images in the trash.",
        "pool" => "Pools.",
        "namespace" => "Namespaces.",
        "device" => "Block devices.",
        "config" => "Configuration.",
        "image-meta" => "Metadata of images.",
        "feature" => "Features of images.",
        "lock" => "Advisory locks of images.",
        "object-map" => "Block maps of images.",
        _ => "",
    }
}

fn describe(command: Command, program: &'static str, spec: &'static CommandSpec) -> Command {
    let positionals = spec.positionals.iter().enumerate().map(positional);
    let mut command = command
        .about(spec.about)
        .disable_help_flag(true)
        .args(positionals)
        .args(spec.all_options().map(option));
    if !spec.examples.is_empty() {
        command = command.after_help(examples(program, spec));
    }
    command
}

fn examples(program: &str, spec: &CommandSpec) -> String {
    let mut text = "Examples:".to_string();
    for (line, meaning) in spec.examples {
        text.push_str(&format!("\n  {program} {line}"));
        if !meaning.is_empty() {
            text.push_str(&format!("\n      {meaning}"));
        }
    }
    text
}

fn positional((index, positional): (usize, &'static Positional)) -> Arg {
    let action = if positional.many { ArgAction::Append } else { ArgAction::Set };
    // An option may have the same name.
    Arg::new(format!("<{}>", positional.name))
        .index(index + 1)
        .value_name(positional.name)
        .help(positional.help)
        .action(action)
}

fn option(opt: &'static Opt) -> Arg {
    let arg = Arg::new(opt.long).long(opt.long).help(opt.help);
    let arg = match opt.short {
        Some(letter) => arg.short(letter),
        None => arg,
    };
    match opt.kind {
        Kind::Flag => arg.action(ArgAction::SetTrue),
        Kind::Choice(words) => arg
            .value_name(opt.long)
            .value_parser(PossibleValuesParser::new(words))
            .hide_possible_values(true),
        _ => arg.value_name(opt.long),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::ALL;

    #[test]
    fn the_model_is_one_that_clap_accepts() {
        program(ALL, "marcot").debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        for spec in visible(ALL) {
            assert!(spec.absent || !spec.examples.is_empty(), "{:?}", spec.words);
        }
    }

    #[test]
    fn no_option_means_two_things() {
        let all: Vec<&Opt> =
            ALL.iter().copied().flatten().flat_map(CommandSpec::all_options).collect();
        for a in &all {
            for b in all.iter().filter(|b| a.long == b.long) {
                let flags = (a.kind == Kind::Flag, b.kind == Kind::Flag);
                assert_eq!((flags.0, a.short), (flags.1, b.short), "{}", a.long);
            }
        }
    }

    #[test]
    fn the_list_wraps_as_rbds_does() {
        let text = command_list(ALL, "rbd");
        assert!(text.starts_with("usage: rbd <command> ...\n"));
        assert!(text.contains("\n    snap remove (snap rm)             Delete a snapshot.\n"));
        assert!(text.contains(
            "\n    children                          Display children of an image or its\n\
             \x20                                     snapshot.\n"
        ));
    }
}
