//! `device list`, `map`, `unmap`, `attach`, `detach`: images as block devices of this machine.
//!
//! This file reads the command line and prints the results. [`marcot_client::devices`] does the work, and
//! `map_options` parses the device specific options.

mod map_options;

use std::path::{Path, PathBuf};

use marcot::ErrorKind;
use marcot_client::devices::server::{DeviceEnding, DeviceServer, Job, Stop};
use marcot_client::devices::{
    self, Devices, Driver, MapFailure, MapRequest, MappedDevice, MappedRecord, QuiesceBy,
    REATTACH_TIMEOUT_S, Unmapped,
};
use marcot_client::{Image, ImageSpec};

use super::IMAGE_OR_SNAP_SPEC;
use super::serve::io_timeout;
use crate::args::names::{self, Target, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::errno::{EBUSY, EINVAL, EOPNOTSUPP};
use crate::failure::{Failure, Outcome, strerror};
use crate::output::{Align, Format, Node, Table, out, output_open, warn};
use crate::program::RBD_NBD;
use crate::session::{self, Session};
use crate::shown::shown_device;
use crate::{logging, signals};
use map_options::MapOptions;

/// Scripts for `rbd` also use `krbd` and `ggate`.
const TYPE: &[Opt] = &[Opt::new(
    "device-type",
    Kind::Choice(&["nbd", "fuse", "krbd", "ggate"]),
    "device type [nbd, fuse; default: what the machine has]",
)
.letter('t')];
/// Options of `map`.
pub const MAP: &[Opt] = &[
    Opt::new("read-only", Kind::Flag, "let nobody write"),
    Opt::new("exclusive", Kind::Flag, "accepted: an image always has one writer"),
    Opt::new("show-cookie", Kind::Flag, "print the device's cookie too"),
    Opt::new("cookie", Kind::Text, "what to know the device by [default: a random one]"),
    Opt::new("quiesce", Kind::Flag, "freeze file systems on the device while a snapshot is taken"),
    Opt::new(
        "quiesce-hook",
        Kind::Text,
        "instead, run 'HOOK DEVICE quiesce' before and 'HOOK DEVICE unquiesce' after a snapshot",
    ),
    Opt::new("try-netlink", Kind::Flag, "accepted: netlink is always used"),
    Opt::new(
        "reattach-timeout",
        Kind::Integer,
        "seconds that users of an nbd device wait for 'device attach' [default: 3600]",
    ),
    options::IO_TIMEOUT,
    Opt::new(
        "options",
        Kind::Text,
        "device specific options, comma separated: ro, rw; those of RBD's drivers are accepted",
    )
    .letter('o'),
];
const TAKE_OVER: &[Opt] = &[Opt::new(
    "force",
    Kind::Flag,
    "take the image over from another host that has it open and is gone for good; what that host has not flushed is lost",
)];
/// Options of `unmap`.
pub const UNMAP: &[Opt] = &[
    Opt::new("force", Kind::Flag, "also if it is in use: its users get I/O errors"),
    Opt::new("options", Kind::Text, "device specific options, comma separated: force").letter('o'),
];
/// Options of `detach`.
pub const DETACH: &[Opt] = &[Opt::new("options", Kind::Text, "accepted and ignored").letter('o')];
const DEVICE: &[Opt] = &[Opt::new("device", Kind::Text, "specify device path")];
/// `--force` of `attach`.
pub const FORCE: &[Opt] =
    &[Opt::new("force", Kind::Flag, "attach though the device has another cookie")];
/// An image or a snapshot.
pub const IMAGE_OR_SNAP: Positional = IMAGE_OR_SNAP_SPEC;
/// An image, a snapshot, or a device.
pub const SPEC_OR_DEVICE: Positional = Positional::one(
    "image-or-snap-or-device-spec",
    "image, snapshot, or device specification \
     ([<pool-name>/[<namespace>/]]<image-name>[@<snap-name>] or <device-path>)",
);

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["device", "list"], "List mapped rbd images.", list)
        .aliases(&[&["showmapped"], &["device", "ls"]])
        .options(&[TYPE, options::FORMAT])
        .examples(&[
            ("device list", "images, snapshots and their devices"),
            ("device list -t nbd", "those of the NBD driver, with their cookies"),
        ]),
    CommandSpec::new(&["device", "map"], "Map an image to a block device.", map)
        .aliases(&[&["map"]])
        .positionals(&[IMAGE_OR_SNAP_SPEC])
        .options(&[TYPE, options::SNAP, MAP, TAKE_OVER, &[options::MAP_MEMORY]])
        .examples(&[
            ("device map vm-1", "prints the device; /dev/rbd/rbd/vm-1 is a link to it"),
            ("device map template@v1", "a snapshot, read-only"),
            ("device map --quiesce vm-1", "snapshots find its file system clean"),
            ("device map --force bucket/vm-1", "though another host has it open, which is gone"),
        ]),
    CommandSpec::new(&["device", "unmap"], "Unmap a rbd device.", unmap)
        .aliases(&[&["unmap"]])
        .positionals(&[SPEC_OR_DEVICE])
        .options(&[TYPE, options::SNAP, UNMAP])
        .examples(&[
            ("device unmap /dev/nbd0", "by device, or a partition of it, or a link to it"),
            ("device unmap vm-1", "by image"),
            ("device unmap -o force vm-1", "though it is mounted; what was not synced is lost"),
        ]),
    CommandSpec::new(&["device", "attach"], "Attach image to device.", attach)
        .positionals(&[IMAGE_OR_SNAP_SPEC])
        .options(&[TYPE, options::SNAP, DEVICE, FORCE, MAP, &[options::MAP_MEMORY]])
        .examples(&[(
            "device attach --device /dev/nbd0 vm-1",
            "serves it again if its server has died",
        )]),
    CommandSpec::new(&["device", "detach"], "Detach image from device.", detach)
        .positionals(&[SPEC_OR_DEVICE])
        .options(&[TYPE, options::SNAP, DETACH])
        .examples(&[(
            "device detach /dev/nbd0",
            "its users wait until 'device attach' gives it another server",
        )]),
    CommandSpec::new(
        &["device", "server"],
        "Serve a device; started by 'device map'.",
        serve_device,
    )
    .hidden(),
    CommandSpec::new(
        &["device", "quiesce"],
        "Freeze or thaw what is mounted from a device; the default quiesce hook.",
        quiesce,
    )
    .positionals(&[
        Positional::one("device", "device"),
        Positional::one("action", "quiesce or unquiesce"),
    ])
    .hidden(),
];

/// The process that serves a device. It reads its job, reports, and serves until SIGTERM.
fn serve_device(_session: &Session, _args: &Args) -> Outcome {
    logging::start();
    let job = Job::read(&mut std::io::stdin()).map_err(|error| match error.kind() {
        ErrorKind::Invalid => Failure::usage("'device server' is started by 'device map'"),
        _ => Failure::engine("device server", &error),
    })?;
    signals::catch();
    let server = DeviceServer::start(&job).map_err(|e| Failure::engine("map failed", &e))?;
    match server.wait(&Signals) {
        DeviceEnding::Detach => {
            server.detach().map_err(|error| Failure::engine("detach failed", &error))
        }
        DeviceEnding::Unmap(how) => {
            server.unmap(how).map_err(|error| Failure::engine("unmap failed", &error))
        }
    }
}

/// SIGINT and SIGTERM.
pub struct Signals;

impl Stop for Signals {
    fn asked(&self) -> bool {
        signals::stop_asked()
    }

    fn refused(&self) {
        signals::catch();
    }
}

fn quiesce(_session: &Session, args: &Args) -> Outcome {
    let device = Path::new(args.positional(0).unwrap_or_default());
    match args.positional(1).unwrap_or_default() {
        action @ ("quiesce" | "unquiesce") => Ok(devices::quiesce(device, action)?),
        _ => Err(Failure::usage("'device quiesce' is called with DEVICE quiesce|unquiesce")),
    }
}

/// The driver for `nbd` or `fuse`. For all other names, the machine decides.
fn kind(args: &Args) -> Outcome<Option<Driver>> {
    match args.text("device-type") {
        Some("ggate") => Err(Failure::new(EOPNOTSUPP, "ggate is only supported on FreeBSD")),
        Some("nbd") => Ok(Some(Driver::Nbd)),
        Some("fuse") => Ok(Some(Driver::Fuse)),
        _ => Ok(None),
    }
}

/// `device list`, also in the form of `rbd-nbd`.
pub fn list(session: &Session, args: &Args) -> Outcome {
    let format = args.format()?;
    let kind = kind(args)?;
    let mut mapped = session.devices()?.list()?;
    mapped.retain(|m| kind.is_none_or(|kind| m.driver == kind));
    Rows { program: session.program, kind }.print(format, &mapped)
}

/// The snapshot of a device, or a dash if it shows the image itself.
fn shown_snap(mapped: &MappedRecord) -> &str {
    if mapped.snap.is_empty() { "-" } else { &mapped.snap }
}

/// The list of devices, and how to show it.
struct Rows {
    program: &'static str,
    kind: Option<Driver>,
}

impl Rows {
    fn device(&self, mapped: &MappedRecord) -> String {
        shown_device(self.program, self.kind, &mapped.device, mapped.names.node())
    }

    fn print(&self, format: Format, mapped: &[MappedRecord]) -> Outcome {
        let document = || ("devices", Node::array("device", mapped.iter().map(|m| self.node(m))));
        format.print(|| self.table(mapped), document)
    }

    /// True for a list with cookies. `rbd-nbd` lists them; the kernel's RBD driver has none.
    fn shows_cookies(&self) -> bool {
        self.kind == Some(Driver::Nbd) || self.program == RBD_NBD
    }

    fn table(&self, mapped: &[MappedRecord]) -> String {
        let cookie = self.shows_cookies().then_some("cookie");
        let headers = ["id", "pool", "namespace", "image", "snap", "device"];
        let mut table = headers
            .into_iter()
            .chain(cookie)
            .fold(Table::new(), |table, name| table.column(name, Align::Left));
        for m in mapped {
            let (id, device) = (m.id.to_string(), self.device(m));
            let cells = [&id, &m.pool, &m.namespace, &m.image, shown_snap(m), &device];
            let cookie = cookie.map(|_| m.cookie.as_str());
            table.row(cells.into_iter().chain(cookie).map(str::to_string).collect());
        }
        table.render()
    }

    fn node(&self, mapped: &MappedRecord) -> Node {
        // Plug-ins read both forms by these types and names.
        let (id, name, snap) = match self.shows_cookies() {
            true => (u64::from(mapped.id).into(), "image", mapped.snap.as_str()),
            false => (mapped.id.to_string().as_str().into(), "name", shown_snap(mapped)),
        };
        let mut members: Vec<(&'static str, Node)> = vec![
            ("id", id),
            ("pool", mapped.pool.as_str().into()),
            ("namespace", mapped.namespace.as_str().into()),
            (name, mapped.image.as_str().into()),
            ("snap", snap.into()),
            ("device", self.device(mapped).as_str().into()),
        ];
        if self.shows_cookies() {
            members.push(("cookie", mapped.cookie.as_str().into()));
        }
        Node::Object(members)
    }
}

/// `device map`.
pub fn map(session: &Session, args: &Args) -> Outcome {
    map_to(session, args, None)
}

/// `device attach`.
pub fn attach(session: &Session, args: &Args) -> Outcome {
    map_to(session, args, Some(args.require("device")?))
}

fn map_to(session: &Session, args: &Args, device: Option<&str>) -> Outcome {
    // Without standard output, the device's name could not be printed, but the device would stay.
    output_open()?;
    let target = names::target(args, &mut 0, Wanted::IMAGE_OR_SNAP)?;
    let kind = kind(args)?;
    let given = MapOptions::of(args)?;
    let image = session.find(&target)?;
    let snap = match target.snap.as_str() {
        "" => None,
        name => Some(session::snapshot(&image, name)?.name),
    };
    let request = MapRequest {
        read_only: given.read_only,
        driver: kind,
        cookie: given.cookie,
        quiesce: match (given.quiesce, given.quiesce_hook) {
            (_, Some(hook)) => QuiesceBy::Hook(hook_path(&hook)?),
            (true, None) => QuiesceBy::Freeze,
            (false, None) => QuiesceBy::Nothing,
        },
        reattach_timeout_s: given.reattach_timeout_s.unwrap_or(REATTACH_TIMEOUT_S),
        io_timeout: io_timeout(given.io_timeout_s),
    };
    if device.is_none() && snap.is_none() && args.flag("force") {
        image.take_over()?;
    }
    let devices = session.devices()?;
    let mapped = match device {
        None => devices.map(&image, snap.as_deref(), &request),
        Some(device) => {
            devices.attach(&image, snap.as_deref(), device, &request, args.flag("force"))
        }
    };
    let mapped = mapped.map_err(|failure| map_failed(session, &image, failure))?;
    tell_of_lacking_bytes(session, &target.spec(), &mapped);
    let mut line = shown_device(session.program, kind, &mapped.device, mapped.node.clone());
    if given.show_cookie {
        line.push_str(&format!(" {}", mapped.cookie));
    }
    out(&format!("{line}\n")).map_err(|failure| match device {
        Some(device) => failure.then(format!("{device} is served again all the same")),
        None => taken_back(&devices, &mapped, failure),
    })
}

/// Unmaps a device that was mapped just now, since its name could not be printed. For a script, a status other
/// than 0 says that nothing is mapped.
fn taken_back(devices: &Devices, mapped: &MappedDevice, failure: Failure) -> Failure {
    match unmapped(&mapped.device, devices.take_back(mapped)) {
        Ok(()) => failure.then("the device was unmapped again, for nobody was told its name"),
        Err(why) => {
            let device = mapped.device.display();
            let stays = format!("{device} stays mapped; 'device unmap {device}' takes it away");
            failure.because(why.sentence()).then(stays)
        }
    }
}

fn map_failed(session: &Session, image: &Image, failure: MapFailure) -> Failure {
    let map = |why: String| Failure::errno("map failed", EBUSY).because(why);
    let attach = |errno, why: String| Failure::errno("attach failed", errno).because(why);
    match failure {
        MapFailure::Mapped { record, served } => {
            let device = shown_device(session.program, None, &record.device, record.names.node());
            let dead = "whose server has died; see 'device attach' and 'device unmap'";
            map(match served {
                true => format!("{} is mapped already as {device}", image.spec()),
                false => format!("{} is mapped already as {device}, {dead}", image.spec()),
            })
        }
        MapFailure::Open { .. } => map(format!("{failure}; see 'status'")),
        MapFailure::NotShown { .. } => Failure::invalid(failure.to_string()),
        MapFailure::OtherCookie { .. } => {
            attach(EINVAL, format!("{failure}; '--force' attaches it all the same"))
        }
        MapFailure::AtWork { .. } | MapFailure::Served { .. } => attach(EBUSY, failure.to_string()),
        MapFailure::Server(error) => Failure::engine("map failed", &error),
        MapFailure::Before(error) => error.into(),
        failure => marcot::Error::from(failure).into(),
    }
}

fn tell_of_lacking_bytes(session: &Session, spec: &ImageSpec, mapped: &MappedDevice) {
    if mapped.lacking_bytes > 0 {
        let message = format!(
            "the size of {spec} is no multiple of 512: {} lacks its last {} bytes; '-t fuse' shows them",
            mapped.device.display(),
            mapped.lacking_bytes
        );
        warn(session.program, &message);
    }
}

/// The absolute path of a hook, since the server runs in another directory.
fn hook_path(hook: &str) -> Outcome<PathBuf> {
    if !hook.contains('/') {
        return Ok(PathBuf::from(hook));
    }
    std::fs::canonicalize(hook).map_err(|e| Failure::io(format!("cannot find '{hook}'"), &e))
}

/// `device unmap`.
pub fn unmap(session: &Session, args: &Args) -> Outcome {
    kind(args)?;
    let force = map_options::force(args)? || args.flag("force");
    let devices = session.devices()?;
    let record = mapped(session, &devices, args, "unmap")?;
    unmapped(&record.device, devices.unmap(&record, force))
}

/// Converts the result of unmapping a device to messages.
fn unmapped(device: &Path, outcome: marcot::Result<Unmapped>) -> Outcome {
    match outcome.map_err(|error| Failure::engine("unmap failed", &error))? {
        Unmapped::Gone => Ok(()),
        Unmapped::InUse(by) => {
            let device = device.display();
            let why = format!("{device} is in use ({by}); '-o force' takes it away all the same");
            Err(Failure::errno("unmap failed", EBUSY).because(why))
        }
    }
}

/// `device detach`.
pub fn detach(session: &Session, args: &Args) -> Outcome {
    kind(args)?;
    MapOptions::of(args)?;
    let devices = session.devices()?;
    let record = mapped(session, &devices, args, "detach")?;
    devices.detach(&record).map_err(|error| Failure::engine("detach failed", &error))
}

/// The device that the command line names, by its path or by its image.
fn mapped(
    session: &Session,
    devices: &Devices,
    args: &Args,
    command: &str,
) -> Outcome<MappedRecord> {
    if let Some(path) = args.positional(0).filter(|text| text.starts_with('/')) {
        let found = devices.find_device(path)?;
        return found.ok_or_else(|| not_a_device(path, command));
    }
    let target = names::target(args, &mut 0, Wanted::IMAGE_OR_SNAP.optional())?;
    if target.image.is_empty() {
        let message = format!("{command} requires either image name or device path");
        return Err(Failure::invalid(message));
    }
    let found = devices.find(session.client().ok(), &target.spec())?;
    found.ok_or_else(|| not_mapped(session.program, &target, command))
}

fn not_a_device(path: &str, command: &str) -> Failure {
    use std::os::unix::fs::FileTypeExt;
    let block = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
    let what = if block { "is not a mapped device" } else { "is not a block device" };
    command_failed(format!("'{path}' {what}"), command)
}

/// In the words of the program, by which plug-ins know that there is nothing left to do.
fn not_mapped(program: &str, target: &Target, command: &str) -> Failure {
    match program == RBD_NBD {
        true => Failure::invalid(format!("{} is not mapped", target.spec())),
        false => {
            command_failed(format!("{}: not a mapped image or snapshot", target.spec()), command)
        }
    }
}

fn command_failed(why: String, command: &str) -> Failure {
    Failure::invalid(why).then(format!("{command} failed: ({EINVAL}) {}", strerror(EINVAL)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: u32, namespace: &str, image: &str, snap: &str) -> MappedRecord {
        let json = serde_json::json!({
            "id": id, "pid": 1, "boot": "", "store": "/store", "pool": "rbd", "namespace": namespace,
            "image": image, "image_number": 1, "snap": snap, "snap_number": 0,
            "device": format!("/dev/nbd{id}"), "driver": "nbd", "read_only": false, "label": "",
            "cookie": "vol", "names": {"directory": "/dev", "node": format!("rbd{id}"), "link": null},
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_table_is_rbds() {
        let rows = Rows { program: "rbd", kind: None };
        assert_eq!(
            rows.table(&[record(0, "", "img", ""), record(10, "ns1", "long-name", "snap1")]),
            "id  pool  namespace  image      snap   device    \n\
             0   rbd              img        -      /dev/rbd0 \n\
             10  rbd   ns1        long-name  snap1  /dev/rbd10\n"
        );
    }

    #[test]
    fn the_kernels_name_is_shown_by_marcot_and_for_the_driver_nbd() {
        let shown = |program, kind| Rows { program, kind }.table(&[record(0, "", "a", "")]);
        assert!(shown("marcot", None).contains("/dev/nbd0"));
        let nbd = shown("rbd", Some(Driver::Nbd));
        assert!(
            nbd.contains("/dev/nbd0") && nbd.contains("cookie") && nbd.contains("vol"),
            "{nbd}"
        );
    }

    #[test]
    fn the_error_for_an_image_that_is_not_mapped_has_rbds_words() {
        let target = Target { image: "a".into(), ..Target::default() };
        assert_eq!(
            not_mapped("rbd", &target, "unmap").render("rbd"),
            "rbd: rbd/a: not a mapped image or snapshot\n\
             rbd: unmap failed: (22) Invalid argument\n"
        );
        let said = not_mapped(RBD_NBD, &target, "unmap").render(RBD_NBD);
        assert_eq!(said, "rbd-nbd: rbd/a is not mapped\n");
    }
}
