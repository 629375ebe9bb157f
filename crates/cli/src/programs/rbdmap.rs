//! `rbdmap`: maps the images of a table when the machine starts, and unmaps them when it stops.
//!
//! The table has a line for each image: `[POOL/]IMAGE[@SNAP] NAME=VALUE,NAME='VALUE',...`; what follows `#` is a
//! comment. The names are options of `rbd device map` without their dashes.

use std::path::{Path, PathBuf};
use std::process::Command;

use marcot_client::ImageSpec;
use marcot_client::devices;

use super::Program;
use crate::args::{Args, CommandSpec};
use crate::errno::EINVAL;
use crate::failure::{Failure, Outcome, STATUS_USAGE};
use crate::output::{err, line, out, warn};
use crate::program;
use crate::session::Session;

/// Names the table, if not [`TABLE`].
const TABLE_VARIABLE: &str = "RBDMAPFILE";
const TABLE: &str = "/etc/ceph/rbdmap";
/// Programs that run after an image is mapped and before it is unmapped, by the image's specification.
const HOOKS: &str = "/etc/ceph/rbd.d";
/// The directory of links to mapped images, among the devices.
const LINKS: &str = "rbd";
const USAGE: &str = "Usage: rbdmap map | unmap | unmap-all\n";

/// The program.
pub const RBDMAP: Program = Program {
    help: |_| out(USAGE),
    unknown: |_, _| Failure::bare(STATUS_USAGE, USAGE.trim_end()),
    ..Program::new("rbdmap", &[COMMANDS])
};

const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["map"], "Map the images of the table.", map),
    CommandSpec::new(&["unmap"], "Unmap the images of the table.", unmap),
    CommandSpec::new(&["unmap-all"], "Unmap all images.", unmap_all),
];

/// A line of the table.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    /// `POOL/IMAGE[@SNAP]`.
    spec: String,
    /// Arguments for `rbd device map`.
    arguments: Vec<String>,
}

impl Entry {
    /// Reads a line; nothing where it names no image.
    fn parse(text: &str) -> Result<Option<Self>, String> {
        let text = text.trim();
        let (spec, parameters) = text.split_once([' ', '\t']).unwrap_or((text, ""));
        if spec.is_empty() || spec.starts_with('#') {
            return Ok(None);
        }
        let spec = match spec.contains('/') {
            true => spec.to_owned(),
            false => format!("rbd/{spec}"),
        };
        Ok(Some(Self { spec, arguments: arguments(parameters.trim())? }))
    }

    /// The device, if the image is mapped.
    fn mapped(&self, session: &Session) -> Outcome<Option<PathBuf>> {
        let spec = ImageSpec::parse(&self.spec)?;
        let record = session.devices()?.find(session.client().ok(), &spec)?;
        Ok(record.map(|record| record.device))
    }
}

/// The arguments in `id=admin,options='rw,noudev'`.
fn arguments(parameters: &str) -> Result<Vec<String>, String> {
    let (mut arguments, mut current, mut quoted) = (Vec::new(), String::new(), false);
    let mut finish = |text: &mut String| {
        let parameter = std::mem::take(text);
        if !parameter.is_empty() {
            arguments.push(format!("--{parameter}"));
        }
    };
    for c in parameters.chars() {
        match c {
            '\'' => quoted = !quoted,
            ',' if !quoted => finish(&mut current),
            '#' if !quoted => break,
            c => current.push(c),
        }
    }
    if quoted {
        return Err("a quotation mark has no end".to_owned());
    }
    current.truncate(current.trim_end().len());
    finish(&mut current);
    Ok(arguments)
}

/// The entries of the table. Nothing is there where there is no table, as with Ceph's `rbdmap`.
fn entries(session: &Session) -> Outcome<Vec<Entry>> {
    let path = std::env::var_os(TABLE_VARIABLE).map_or_else(|| PathBuf::from(TABLE), PathBuf::from);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            warn(session.program, &format!("no table {}: nothing to do", path.display()));
            return Ok(Vec::new());
        }
        Err(e) => return Err(Failure::io(format!("error reading {}", path.display()), &e)),
    };
    let bad = |number: usize, why: String| {
        Failure::new(EINVAL, format!("{}:{}: {why}", path.display(), number + 1))
    };
    let read = |(number, text): (usize, &str)| {
        Entry::parse(text).map_err(|why| bad(number, why)).transpose()
    };
    text.lines().enumerate().filter_map(read).collect()
}

/// The link to a mapped image.
fn link(spec: &str) -> PathBuf {
    devices::device_directory().join(LINKS).join(spec)
}

/// What became of the images of the table.
#[derive(Default)]
struct Tally {
    failed: u64,
}

impl Tally {
    fn note(&mut self, session: &Session, what: &str, outcome: Result<(), String>) {
        if let Err(why) = outcome {
            self.failed += 1;
            warn(session.program, &format!("{what}: {why}"));
        }
    }

    fn end(&self) -> Outcome {
        match self.failed {
            0 => Ok(()),
            _ => Err(Failure::quiet(STATUS_USAGE)),
        }
    }
}

/// Runs this program as `rbd` with these arguments. Its text comes back when it failed.
fn rbd(arguments: &[&str]) -> Result<(), String> {
    use std::os::unix::process::CommandExt;
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(program);
    command.arg0(program::RBD).args(arguments);
    finished(&mut command)
}

/// Runs a program to its end. Its text comes back when it failed.
fn finished(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(std::process::Stdio::null()).output().map_err(|e| e.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(text.trim_end().lines().last().unwrap_or("failed").to_owned())
        }
    }
}

fn hook(spec: &str, action: &str) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let hook = Path::new(HOOKS).join(spec);
    let runs =
        std::fs::metadata(&hook).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    match runs {
        true => finished(Command::new(&hook).arg(action).arg(link(spec)))
            .map_err(|why| format!("{}: {why}", hook.display())),
        false => Ok(()),
    }
}

fn map(session: &Session, _args: &Args) -> Outcome {
    let mut tally = Tally::default();
    for entry in entries(session)? {
        if entry.mapped(session)?.is_some() {
            continue;
        }
        tally.note(session, &entry.spec, map_one(&entry));
    }
    tally.end()
}

fn map_one(entry: &Entry) -> Result<(), String> {
    let mut arguments = vec!["device", "map", entry.spec.as_str()];
    arguments.extend(entry.arguments.iter().map(String::as_str));
    rbd(&arguments)?;
    // A line of fstab says whether it is to be mounted, and where.
    let link = link(&entry.spec);
    if finished(Command::new("mount").arg("--fake").arg(&link)).is_ok() {
        finished(Command::new("mount").arg("-n").arg(&link))?;
    }
    hook(&entry.spec, "map")
}

fn unmap(session: &Session, _args: &Args) -> Outcome {
    let mut tally = Tally::default();
    for entry in entries(session)? {
        if let Some(device) = entry.mapped(session)? {
            tally.note(session, &entry.spec, unmap_one(&entry.spec, &device));
        }
    }
    tally.end()
}

fn unmap_all(session: &Session, _args: &Args) -> Outcome {
    let mut tally = Tally::default();
    for mapped in session.devices()?.list()? {
        let spec = ImageSpec::new(&*mapped.pool, &*mapped.image)
            .in_namespace(&*mapped.namespace)
            .at(&*mapped.snap)
            .to_string();
        tally.note(session, &spec, unmap_one(&spec, &mapped.device));
    }
    tally.end()
}

fn unmap_one(spec: &str, device: &Path) -> Result<(), String> {
    hook(spec, "unmap")?;
    for place in mount_points(device)? {
        finished(Command::new("umount").arg(&place))?;
        err(&line(&format!("unmounted {place}")));
    }
    let device = device.to_str().ok_or("the device's name is not UTF-8")?;
    rbd(&["device", "unmap", device])
}

/// Where a device is mounted, under whichever of its names, the last mount first.
fn mount_points(device: &Path) -> Result<Vec<String>, String> {
    use std::os::unix::fs::MetadataExt;
    let number = std::fs::metadata(device).map_err(|e| e.to_string())?.rdev();
    let source = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let output = Command::new("findmnt")
        .args(["--noheadings", "--output", "TARGET", "--raw", "--source", &source])
        .output()
        .map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().rev().map(unescaped).collect())
}

/// A path of `findmnt --raw`, in which blanks and the like are `\xNN`.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("\\x") {
        let code = rest.get(at + 2..at + 4).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let Some(code) = code else { break };
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        bytes.push(code);
        rest = &rest[at + 4..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> Option<(String, Vec<String>)> {
        Entry::parse(text).unwrap().map(|entry| (entry.spec, entry.arguments))
    }

    #[test]
    fn a_line_names_an_image_and_options_of_map() {
        let line = "vms/web-01@s\tid=admin,keyring=/etc/ceph/keyring,options='rw,noudev'";
        let arguments = ["--id=admin", "--keyring=/etc/ceph/keyring", "--options=rw,noudev"];
        assert_eq!(entry(line), Some(("vms/web-01@s".into(), arguments.map(String::from).into())));
        assert_eq!(entry("web-01"), Some(("rbd/web-01".into(), Vec::new())));
        assert_eq!(
            entry("  p/ns/i  id=a # the old one"),
            Some(("p/ns/i".into(), vec!["--id=a".into()]))
        );
        assert_eq!(entry("p/i\tread-only"), Some(("p/i".into(), vec!["--read-only".into()])));
    }

    #[test]
    fn comments_and_empty_lines_name_nothing() {
        assert_eq!(entry(""), None);
        assert_eq!(entry("# RbdDevice Parameters"), None);
        assert_eq!(entry("   "), None);
    }

    #[test]
    fn a_quotation_mark_without_an_end_is_refused() {
        assert!(Entry::parse("p/i options='rw").is_err());
    }

    #[test]
    fn escaped_places_are_read() {
        assert_eq!(unescaped("/mnt/a\\x20b\\x5cc"), "/mnt/a b\\c");
        assert_eq!(unescaped("/mnt/a"), "/mnt/a");
    }
}
