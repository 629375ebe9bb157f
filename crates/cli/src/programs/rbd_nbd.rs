//! `rbd-nbd`: images as block devices, in the form of that program. It serves a device as `rbd device` does.

use super::Program;
use crate::args::{Args, CommandSpec, Kind, Opt, options};
use crate::commands::device;
use crate::errno::EOPNOTSUPP;
use crate::failure::{Failure, Outcome, STATUS_USAGE};
use crate::program;
use crate::session::Session;

/// Options of `rbd-nbd` that `rbd device` does not have.
const OWN: &[Opt] = &[
    Opt::new(
        "max_part",
        Kind::Integer,
        "accepted: the kernel decides how many partitions it shows",
    ),
    Opt::new("nbds_max", Kind::Integer, "accepted: netlink makes devices as they are needed"),
    Opt::new("timeout", Kind::Integer, "accepted: a request may take as long as it takes"),
    Opt::new("notrim", Kind::Flag, "accepted"),
    options::SNAP_ID,
];
const ENCRYPTION: &[Opt] = &[
    Opt::new("encryption-format", Kind::Text, "not offered"),
    Opt::new("encryption-passphrase-file", Kind::Text, "not offered"),
];
const DEVICE: &[Opt] = &[Opt::new("device", Kind::Text, "device path (/dev/nbd{num})")];

/// The program.
pub const RBD_NBD: Program = Program {
    without_command: |_| Err(Failure::usage("must specify command")),
    unknown: |_, words| {
        let first = words.first().map_or("", String::as_str);
        Failure::usage(format!("unknown command: {first}"))
    },
    status: Some(STATUS_USAGE),
    ..Program::new(program::RBD_NBD, &[COMMANDS])
};

const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["map"], "Map an image to a block device.", map)
        .positionals(&[device::IMAGE_OR_SNAP])
        .options(&[options::SNAP, device::MAP, DEVICE, OWN, ENCRYPTION])
        .examples(&[("map --try-netlink rbd/vm-1", "prints the device")]),
    CommandSpec::new(&["attach"], "Serve a device again whose server has died.", attach)
        .positionals(&[device::IMAGE_OR_SNAP])
        .options(&[options::SNAP, device::MAP, DEVICE, device::FORCE, OWN, ENCRYPTION])
        .examples(&[("attach --device /dev/nbd0 rbd/vm-1", "without unmounting it")]),
    CommandSpec::new(&["unmap"], "Unmap a device.", device::unmap)
        .positionals(&[device::SPEC_OR_DEVICE])
        .options(&[options::SNAP, device::UNMAP, OWN])
        .examples(&[("unmap /dev/nbd0", "or the image's specification")]),
    CommandSpec::new(
        &["detach"],
        "End the server of a device and keep the device.",
        device::detach,
    )
    .positionals(&[device::SPEC_OR_DEVICE])
    .options(&[options::SNAP, device::DETACH, OWN])
    .examples(&[("detach /dev/nbd0", "its users wait for 'attach'")]),
    CommandSpec::new(&["list-mapped"], "List mapped devices.", device::list)
        .options(&[options::FORMAT])
        .examples(&[("list-mapped --format json", "for programs")]),
];

fn map(session: &Session, args: &Args) -> Outcome {
    refuse_encryption(args)?;
    if let Some(device) = args.text("device") {
        let message = format!("--device {device}: the kernel chooses the device of 'map'");
        return Err(Failure::new(EOPNOTSUPP, message)
            .then("leave --device out, and read its name from the output"));
    }
    device::map(session, args)
}

fn attach(session: &Session, args: &Args) -> Outcome {
    refuse_encryption(args)?;
    device::attach(session, args)
}

fn refuse_encryption(args: &Args) -> Outcome {
    match args.text("encryption-format") {
        None => Ok(()),
        Some(_) => Err(Failure::new(
            EOPNOTSUPP,
            "encryption of images is not offered; encrypt the device itself (cryptsetup)",
        )),
    }
}
