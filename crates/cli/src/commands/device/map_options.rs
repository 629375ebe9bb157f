//! Device specific options (`-o`): those of RBD's kernel driver and of `rbd-nbd`.
//!
//! Most of them tune a client of a cluster and have no effect here. They are accepted so that scripts run
//! unchanged. Unknown options are refused, as by `rbd`.

use crate::args::Args;
use crate::failure::{Failure, Outcome};

/// Options without a value that have no effect here.
const IGNORED: &[&str] = &[
    "abort_on_full",
    "cephx_require_signatures",
    "cephx_sign_messages",
    "crc",
    "exclusive",
    "lock_on_read",
    "nocephx_require_signatures",
    "nocephx_sign_messages",
    "nocrc",
    "noshare",
    "notcp_nodelay",
    "notrim",
    "noudev",
    "rxbounce",
    "share",
    "tcp_nodelay",
    "try-netlink",
    "udev",
];
/// Options with a value that have no effect here.
const IGNORED_WITH_VALUE: &[&str] = &[
    "alloc_size",
    "compression_hint",
    "crush_location",
    "fsid",
    "ip",
    "lock_timeout",
    "max_part",
    "mount_timeout",
    "ms_mode",
    "nbds_max",
    "osd_idle_ttl",
    "osdkeepalive",
    "queue_depth",
    "read_from_replica",
    "timeout",
];
/// Prefixes of settings of the RBD client, which may have a value. They have no effect here.
const IGNORED_PREFIXES: &[&str] = &["rbd_", "norbd_"];

/// The options of `map` and `attach`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MapOptions {
    /// Make the device read-only.
    pub read_only: bool,
    /// Print the cookie.
    pub show_cookie: bool,
    /// A string by which the user identifies the device.
    pub cookie: Option<String>,
    /// Pause writes to the device while a snapshot is taken.
    pub quiesce: bool,
    /// The program that does so.
    pub quiesce_hook: Option<String>,
    /// Seconds to wait for another server.
    pub reattach_timeout_s: Option<u64>,
    /// Seconds to wait for a service before requests fail.
    pub io_timeout_s: Option<u64>,
}

impl MapOptions {
    /// Reads them from a command line. `-o` takes precedence over other options.
    pub fn of(args: &Args) -> Outcome<Self> {
        let mut options = Self {
            read_only: args.flag("read-only"),
            show_cookie: args.flag("show-cookie"),
            cookie: args.text("cookie").map(ToOwned::to_owned),
            quiesce: args.flag("quiesce"),
            quiesce_hook: args.text("quiesce-hook").map(ToOwned::to_owned),
            reattach_timeout_s: args.integer("reattach-timeout"),
            io_timeout_s: args.integer("io-timeout"),
        };
        for option in given(args) {
            options.take(option)?;
        }
        Ok(options)
    }

    fn take(&mut self, option: &str) -> Outcome {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        let text = || {
            let value = value.filter(|value| !value.is_empty());
            value.ok_or_else(|| refused(format!("{name} option requires a value")))
        };
        let seconds = || {
            let seconds = text()?;
            let invalid = || refused(format!("invalid {name} value '{seconds}'"));
            seconds.parse().map_err(|_| invalid())
        };
        match name {
            "ro" | "read_only" | "read-only" => self.read_only = true,
            "rw" => self.read_only = false,
            "show-cookie" => self.show_cookie = true,
            "cookie" => self.cookie = Some(text()?.to_owned()),
            "quiesce" => self.quiesce = true,
            "quiesce-hook" => self.quiesce_hook = Some(text()?.to_owned()),
            "reattach-timeout" => self.reattach_timeout_s = Some(seconds()?),
            // The kernel's RBD driver has the second one.
            "io-timeout" | "osd_request_timeout" => self.io_timeout_s = Some(seconds()?),
            _ if IGNORED.contains(&name) => {}
            _ if IGNORED_WITH_VALUE.contains(&name) => {
                text()?;
            }
            _ if IGNORED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) => {}
            _ => return Err(refused(format!("unknown map option '{option}'"))),
        }
        Ok(())
    }
}

fn refused(why: String) -> Failure {
    Failure::invalid(why).then("couldn't parse map options")
}

/// All options in all `-o`.
fn given(args: &Args) -> impl Iterator<Item = &str> {
    args.texts("options").flat_map(|list| list.split(',')).filter(|option| !option.is_empty())
}

/// True if `unmap` has the option `force`.
pub fn force(args: &Args) -> Outcome<bool> {
    let mut force = false;
    for option in given(args) {
        match option {
            "force" => force = true,
            // Whether udev makes and removes the links. Here the server always does.
            "udev" | "noudev" => {}
            other => {
                return Err(Failure::invalid(format!("unknown unmap option '{other}'"))
                    .then("couldn't parse unmap options"));
            }
        }
    }
    Ok(force)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(options: &[&str]) -> Outcome<MapOptions> {
        let mut taken = MapOptions::default();
        options.iter().try_for_each(|option| taken.take(option)).map(|()| taken)
    }

    #[test]
    fn options_of_rbds_drivers_are_accepted() {
        for name in ["noudev", "rxbounce", "queue_depth=128", "read_from_replica=balance", "nocrc"]
        {
            assert_eq!(taken(&[name]).unwrap(), MapOptions::default(), "{name}");
        }
        for name in ["alloc_size=65536", "ms_mode=prefer-crc", "norbd_cache", "rbd_cache=false"] {
            assert_eq!(taken(&[name]).unwrap(), MapOptions::default(), "{name}");
        }
        for name in
            ["crush_location=host:a|rack:b", "compression_hint=none", "lock_on_read", "udev"]
        {
            assert_eq!(taken(&[name]).unwrap(), MapOptions::default(), "{name}");
        }
    }

    #[test]
    fn the_last_of_ro_and_rw_counts() {
        assert!(taken(&["rw", "ro"]).unwrap().read_only);
        assert!(!taken(&["ro", "rw"]).unwrap().read_only);
    }

    #[test]
    fn an_unknown_option_is_refused_in_rbds_words() {
        assert_eq!(
            taken(&["bogus"]).unwrap_err().render("rbd"),
            "rbd: unknown map option 'bogus'\nrbd: couldn't parse map options\n"
        );
        assert_eq!(taken(&["bogus=1"]).unwrap_err().status, 22);
        assert!(taken(&["queue_depth"]).unwrap_err().render("rbd").contains("requires a value"));
        assert!(taken(&["reattach-timeout=x"]).is_err());
        assert!(taken(&["osd_request_timeout=x"]).is_err());
    }

    #[test]
    fn both_drivers_names_for_the_time_that_a_request_may_take_mean_the_same() {
        for option in ["io-timeout=30", "osd_request_timeout=30"] {
            assert_eq!(taken(&[option]).unwrap().io_timeout_s, Some(30), "{option}");
        }
    }
}
