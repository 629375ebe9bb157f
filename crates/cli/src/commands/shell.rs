//! `completion`, `complete` and `man`: completions and manual pages, made from the command tables.

use std::path::Path;

use clap::ValueEnum;
use clap_complete::Shell;

use crate::args::{Args, CommandSpec, Positional, model};
use crate::completion;
use crate::failure::{Failure, Outcome};
use crate::output::{out, out_bytes};
use crate::program::MARCOT;
use crate::session::Session;

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["completion"], "Print a completion script for a shell.", script)
        .own()
        .positionals(&[Positional::one("shell", "bash, elvish, fish, powershell or zsh")])
        .examples(&[
            (
                "completion bash > /etc/bash_completion.d/marcot",
                "names of pools, images, snapshots too",
            ),
            ("completion zsh > /usr/local/share/zsh/site-functions/_marcot", ""),
            ("completion fish > ~/.config/fish/completions/marcot.fish", ""),
        ]),
    CommandSpec::new(&["complete"], "Print what completes the last word, for shells.", complete)
        .own()
        .positionals(&[WORDS])
        .examples(&[("complete -- snap create rbd/v", "one candidate a line")])
        .hidden(),
    CommandSpec::new(&["man"], "Write the manual pages into a directory.", man)
        .positionals(&[Positional::one("directory", "where to write them")])
        .examples(&[("man /usr/local/share/man/man1", "")])
        .hidden(),
];

const WORDS: Positional =
    Positional { many: true, ..Positional::one("words", "the words of the line") };

/// Never fails: a shell shows what is said in the middle of the line.
fn complete(session: &Session, args: &Args) -> Outcome {
    let found = completion::candidates(super::ALL, session.program, args.positionals());
    // Nobody is there to be told.
    let _ = out(&found.iter().map(|candidate| format!("{candidate}\n")).collect::<String>());
    Ok(())
}

fn script(session: &Session, args: &Args) -> Outcome {
    let shell = args.positional(0).and_then(|name| Shell::from_str(name, true).ok());
    let shell = shell.ok_or_else(|| {
        Failure::invalid("shell was not specified: bash, elvish, fish, powershell or zsh")
    })?;
    if let Some(script) = completion::script(shell, session.program) {
        return out(&script);
    }
    let mut script = Vec::new();
    let mut command = model::program(super::ALL, session.program);
    clap_complete::generate(shell, &mut command, session.program, &mut script);
    out_bytes(&script).map_err(|error| Failure::io("error writing the script", &error))
}

fn man(_session: &Session, args: &Args) -> Outcome {
    let directory = args.positional(0);
    let directory = directory.ok_or_else(|| Failure::invalid("directory was not specified"))?;
    let failed = |error| Failure::io(format!("error writing to {directory}"), &error);
    std::fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(model::program(super::ALL, MARCOT), Path::new(directory))
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::model::visible;

    #[test]
    fn every_command_has_a_manual_page_with_its_options_and_examples() {
        let directory = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(model::program(super::super::ALL, MARCOT), directory.path())
            .unwrap();
        // As they stand in the source of a page.
        let written = |text: &str| text.replace('-', "\\-");
        let commands = visible(super::super::ALL);
        assert!(commands.len() > 100, "{}", commands.len());
        for spec in commands {
            let name = spec.words.join("-");
            let page = directory.path().join(format!("{MARCOT}-{name}.1"));
            let page =
                std::fs::read_to_string(&page).unwrap_or_else(|_| panic!("no page for {name}"));
            for opt in spec.all_options() {
                let option = written(&format!("--{}", opt.long));
                assert!(page.contains(&option), "{name} {option}");
            }
            let begin = spec.about.split(['-', '\'']).next().unwrap_or_default();
            assert!(page.contains(begin.trim_end()), "{name}");
            assert!(spec.examples.is_empty() || page.contains("Examples:"), "{name}");
        }
    }
}
