//! The name by which this program was called. Its messages begin with that name.

/// The name by which scripts written for Ceph call it.
pub const RBD: &str = "rbd";
/// Its own name.
pub const MARCOT: &str = "marcot";

/// The name of Ceph's program that maps images by NBD.
pub const RBD_NBD: &str = "rbd-nbd";

/// `rbd` or `rbd-nbd` when called by that name, `marcot` otherwise.
pub fn name(argv0: &str) -> &'static str {
    let file = argv0.rsplit('/').next().unwrap_or(argv0);
    [RBD, RBD_NBD].into_iter().find(|name| *name == file).unwrap_or(MARCOT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_name_counts() {
        assert_eq!(name("/usr/local/bin/rbd"), RBD);
        assert_eq!(name("rbd"), RBD);
        assert_eq!(name("/usr/bin/rbd-nbd"), RBD_NBD);
        assert_eq!(name("/opt/rbd/marcot"), MARCOT);
        assert_eq!(name(""), MARCOT);
    }
}
