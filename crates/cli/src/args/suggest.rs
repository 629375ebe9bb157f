//! Suggestions for an unknown command.

use super::CommandSpec;

/// A suggestion may differ in one letter, and in one more for each this many letters.
const LETTERS_A_MISTAKE: usize = 4;

/// A suggestion for `typed`, which is no command, if there is one.
pub fn hint(
    commands: &'static [&'static [CommandSpec]],
    program: &str,
    typed: &[String],
) -> Option<String> {
    if let Some(near) = nearest(commands, typed) {
        return Some(format!("did you mean '{program} {near}'?"));
    }
    let family = typed.first()?;
    let mut members: Vec<&str> = names(commands)
        .filter_map(|name| match name {
            [first, second] if first == family => Some(*second),
            _ => None,
        })
        .collect();
    members.sort_unstable();
    members.dedup();
    let said = format!("the commands that begin with '{family}' are: {}", members.join(", "));
    (!members.is_empty()).then_some(said)
}

fn names(
    commands: &'static [&'static [CommandSpec]],
) -> impl Iterator<Item = &'static [&'static str]> {
    commands.iter().copied().flatten().filter(|spec| !spec.hidden).flat_map(CommandSpec::names)
}

/// The command that is nearest to the first words, if it is near enough. A first word that several
/// commands have is taken as correct.
fn nearest(commands: &'static [&'static [CommandSpec]], typed: &[String]) -> Option<String> {
    let first = typed.first().map(String::as_str);
    let family = names(commands).any(|name| name.len() > 1 && name.first().copied() == first);
    let possible = names(commands).filter(|name| !family || name.first().copied() == first);
    let near = |name: &'static [&'static str]| {
        let begin = typed.get(..name.len()).unwrap_or(typed).join(" ");
        let name = name.join(" ");
        let mistakes = distance(&begin, &name);
        (mistakes <= 1 + name.len() / LETTERS_A_MISTAKE && mistakes < name.len() / 2 + 1)
            .then_some((mistakes, name))
    };
    possible.filter_map(near).min().map(|(_, name)| name)
}

/// The nearest of some names to one that does not exist, if one is near enough. Names that differ only in digits are no
/// mistakes of each other: `vm-2` may be gone, and `vm-1` is another machine.
pub fn nearest_of(typed: &str, names: Vec<String>) -> Option<String> {
    const LETTERS_MIN: usize = 3;
    let letters = typed.chars().count();
    let digits_apart = |name: &str| {
        let without =
            |text: &str| -> String { text.chars().filter(|c| !c.is_ascii_digit()).collect() };
        without(name) == without(typed)
    };
    let near = |name: String| {
        let mistakes = distance(typed, &name);
        let most = 1 + letters / LETTERS_A_MISTAKE;
        let near = mistakes <= most && letters >= LETTERS_MIN && !digits_apart(&name);
        near.then_some((mistakes, name))
    };
    names.into_iter().filter_map(near).min().map(|(_, name)| name)
}

/// How many letters must be inserted, removed, replaced or swapped with the next one to change `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::ALL;

    fn hint_for(line: &str) -> Option<String> {
        let typed: Vec<String> = line.split(' ').map(str::to_string).collect();
        hint(ALL, "marcot", &typed)
    }

    #[test]
    fn the_nearest_command_is_suggested() {
        for (typed, meant) in [
            ("snap creat img@s", "snap create"),
            ("snpa create img@s", "snap create"),
            ("snap protct", "snap protect"),
            ("snap lst img", "snap list"),
            ("creat img", "create"),
            ("lst", "list"),
            ("sl", "ls"),
            ("clon a@s b", "clone"),
            ("flaten b", "flatten"),
            ("resise b", "resize"),
            ("childs a", "children"),
            ("pool creat p", "pool create"),
            ("device mpa x", "device map"),
            ("namespace crate x", "namespace create"),
        ] {
            assert_eq!(hint_for(typed), Some(format!("did you mean 'marcot {meant}'?")), "{typed}");
        }
        for typed in ["bogus", "x", "frobnicate the image", "日本"] {
            assert_eq!(hint_for(typed), None, "{typed}");
        }
        assert!(
            hint_for("snap bogus").unwrap().starts_with("the commands that begin with 'snap' are")
        );
        let family = hint_for("namespace frobnicate").unwrap();
        assert!(family.ends_with("are: create, list, ls, remove, rm"), "{family}");
    }

    #[test]
    fn the_nearest_name_is_suggested_unless_it_is_another_number() {
        let names = || ["template", "vm-1", "web", "kubernetes"].map(str::to_owned).to_vec();
        for (typed, meant) in [
            ("tempalte", Some("template")),
            ("kubernets", Some("kubernetes")),
            ("wbe", Some("web")),
            ("vm-2", None),
            ("vm-12", None),
            ("we", None),
            ("database", None),
        ] {
            assert_eq!(nearest_of(typed, names()).as_deref(), meant, "{typed}");
        }
    }

    /// The names in the list of commands that `rbd help` prints.
    fn commands_of_rbd() -> Vec<&'static str> {
        const NAME: std::ops::Range<usize> = 4..38;
        let help = include_str!("../../../../docs/rbd-help.txt");
        let (_, list) = help.split_once("  <command>\n").unwrap();
        let (list, _) = list.split_once("\nOptional arguments").unwrap();
        let entries = list.lines().filter(|line| !line[NAME.start..].starts_with(' '));
        entries
            .map(|line| {
                let name = line.get(NAME).unwrap_or(&line[NAME.start..]);
                name.split(" (").next().unwrap_or(name).trim()
            })
            .collect()
    }

    #[test]
    fn every_command_of_rbd_is_there() {
        let there = |name: &str| names(ALL).any(|words| words.join(" ") == name);
        let all = commands_of_rbd();
        assert!(
            all.len() > 100 && all.contains(&"snap create") && all.contains(&"list"),
            "{all:?}"
        );
        let missing: Vec<_> = all.into_iter().filter(|name| !there(name)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
