//! The name by which this program was called. Its messages begin with that name.

/// The name by which scripts written for Ceph call it.
pub const RBD: &str = "rbd";
/// Its own name.
pub const MARCOT: &str = "marcot";
/// The release of Ceph whose command line this program follows.
const CEPH_RELEASE: &str = "16.2.15";

/// The name of Ceph's program that maps images by NBD.
pub const RBD_NBD: &str = "rbd-nbd";

/// `rbd` when called by that name, `marcot` otherwise.
pub fn name(argv0: &str) -> &'static str {
    if file_name(argv0) == RBD { RBD } else { MARCOT }
}

/// The file name by which a program was called.
pub fn file_name(argv0: &str) -> &str {
    argv0.rsplit('/').next().unwrap_or(argv0)
}

/// The text of `--version`. Under the names of Ceph's programs it has their form, since scripts read the number after
/// `ceph version`: the release that this program follows, and what it is.
pub fn version(program: &str) -> String {
    let own = format!("{MARCOT} {}", env!("CARGO_PKG_VERSION"));
    match program {
        MARCOT => format!("{own}\n"),
        _ => format!("ceph version {CEPH_RELEASE} ({own}) pacific (stable)\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_name_counts() {
        assert_eq!(name("/usr/local/bin/rbd"), RBD);
        assert_eq!(name("rbd"), RBD);
        assert_eq!(name("/opt/rbd/marcot"), MARCOT);
        assert_eq!(name(""), MARCOT);
    }
}
