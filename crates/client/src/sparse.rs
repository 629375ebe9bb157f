//! Finding the runs of bytes that are not zero, which have to be stored.

/// The runs of `data` that are not zero, as ranges. `data` is checked in steps of `grain_bytes`.
pub fn data_runs(data: &[u8], grain_bytes: usize) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (i, grain) in data.chunks(grain_bytes.max(1)).enumerate() {
        if is_zero(grain) {
            continue;
        }
        let start = i * grain_bytes.max(1);
        let end = start + grain.len();
        match runs.last_mut() {
            Some(run) if run.end == start => run.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

/// True if every byte is zero. Written so that the compiler can compare many bytes at a time.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_grains_make_one_run() {
        let mut data = vec![0u8; 40];
        data[9] = 1;
        data[10] = 1;
        data[38] = 1;
        assert_eq!(data_runs(&data, 10), [0..20, 30..40]);
        assert!(data_runs(&data[11..30], 10).is_empty());
        assert_eq!(data_runs(&[1; 7], 10).first(), Some(&(0..7)));
    }
}
