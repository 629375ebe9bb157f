//! `rbd-fuse`: a directory of images, in the form of that program. It is `marcot mount` with other names of options.

use super::Program;
use crate::commands::mount;
use crate::failure::{Failure, STATUS_USAGE};
use crate::output::out;

/// Options with a value: letter, long name, and their name here.
const VALUES: &[(&str, &str, &str)] = &[
    ("-c", "--conf", "--conf"),
    ("-p", "--poolname", "--pool"),
    ("-r", "--image", "--image"),
    ("-s", "--namespace", "--namespace"),
    ("-o", "--options", "--options"),
];
const USAGE: &str = "Usage: rbd-fuse MOUNTPOINT [OPTIONS]

Mounts a directory in which each image of a pool is a file.

  -p, --poolname POOL    pool of the images [default: rbd]
  -s, --namespace NAME   their namespace [default: none]
  -r, --image IMAGE      show only this image
  -o OPTION,...          mount options: ro, allow_other, allow_root, default_permissions, nonempty,
                         uid=N, gid=N, umask=M, and those of mount; libfuse's for speed are accepted
  -f                     serve in this process, and log to standard error
  -d                     the same
  -c, --conf FILE        accepted
  --store DIRECTORY      store [default: MARCOT_STORE, else per user]
  -V, --version          show the version
  -h, --help             show this

Extended attributes of the directory say what new files are like: user.rbdfuse.imagesize,
user.rbdfuse.imageorder and user.rbdfuse.imagefeatures. 'umount MOUNTPOINT' ends it.
";

/// The program.
pub const RBD_FUSE: Program = Program {
    arrange,
    help: |_| out(USAGE),
    without_command: |_| Err(missing()),
    unknown: |_, _| missing(),
    status: Some(STATUS_USAGE),
    ..Program::new("rbd-fuse", &[&[mount::DIRECTORY]])
};

fn missing() -> Failure {
    Failure::usage("missing mountpoint parameter")
}

/// Puts the arguments into the form of `mount`.
fn arrange(arguments: Vec<String>) -> Vec<String> {
    if arguments.is_empty() {
        return arguments;
    }
    if arguments.iter().any(|argument| matches!(argument.as_str(), "-h" | "--help")) {
        return vec!["--help".to_owned()];
    }
    if arguments.iter().any(|argument| matches!(argument.as_str(), "-V" | "--version")) {
        return vec!["--version".to_owned()];
    }
    let mut arranged = vec!["mount".to_owned()];
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        match valued(&argument) {
            None => arranged.push(argument),
            Some((name, Some(value))) => arranged.push(format!("{name}={value}")),
            Some((name, None)) => match rest.next() {
                Some(value) => arranged.push(format!("{name}={value}")),
                None => arranged.push(name.to_owned()),
            },
        }
    }
    arranged
}

/// The name that an option with a value has here, and the value if it is in the same argument.
fn valued(argument: &str) -> Option<(&'static str, Option<&str>)> {
    VALUES.iter().find_map(|(letter, long, name)| {
        if argument == *long {
            return Some((*name, None));
        }
        if let Some(value) = argument.strip_prefix(long).and_then(|rest| rest.strip_prefix('=')) {
            return Some((*name, Some(value)));
        }
        let value = argument.strip_prefix(letter)?;
        Some((*name, Some(value).filter(|value| !value.is_empty())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arranged(line: &str) -> String {
        arrange(line.split_whitespace().map(str::to_owned).collect()).join(" ")
    }

    #[test]
    fn options_have_the_names_of_mount() {
        assert_eq!(arranged("-p vms /mnt -f"), "mount --pool=vms /mnt -f");
        assert_eq!(arranged("/mnt -pvms -sns"), "mount /mnt --pool=vms --namespace=ns");
        assert_eq!(arranged("--poolname=vms --image=a /mnt"), "mount --pool=vms --image=a /mnt");
        assert_eq!(
            arranged("-s ns -r a -o ro -c f /mnt"),
            "mount --namespace=ns --image=a --options=ro --conf=f /mnt"
        );
        assert_eq!(arranged("--help -p x"), "--help");
        assert_eq!(arranged("-V"), "--version");
        assert_eq!(arranged("/mnt -p"), "mount /mnt --pool");
        assert_eq!(arranged(""), "");
    }
}
