//! Timestamps as `rbd` prints them, in the local time zone.
//!
//! The C library knows the time zone; the few calls into it are kept here.

use std::mem::MaybeUninit;

/// Now, in seconds since 1970.
pub fn now_s() -> i64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec
}

/// `Mon Nov 23 07:14:52 2026`.
pub fn ctime(seconds_since_epoch: i64) -> String {
    format_local(seconds_since_epoch, c"%a %b %e %H:%M:%S %Y")
}

/// `2026-11-23T07:14:55.211+0000`, now.
pub fn log_stamp() -> String {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let seconds = now.tv_sec;
    let millis = now.tv_nsec / 1_000_000;
    let zone = format_local(seconds, c"%z");
    format!("{}.{millis:03}{zone}", format_local(seconds, c"%Y-%m-%dT%H:%M:%S"))
}

/// `2026-11-27 19:31:00`.
pub fn date_and_minute(seconds_since_epoch: i64) -> String {
    format_local(seconds_since_epoch, c"%Y-%m-%d %H:%M:00")
}

/// How far the clock of this machine is ahead of UTC at a time, in seconds.
pub fn ahead_of_utc_s(seconds_since_epoch: i64) -> i64 {
    local(seconds_since_epoch).tm_gmtoff
}

fn local(seconds_since_epoch: i64) -> libc::tm {
    let seconds = libc::time_t::try_from(seconds_since_epoch).unwrap_or(0);
    let mut broken_down = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call; `localtime_r` fills `broken_down` or returns null, and all-zero
    // bytes are a valid `tm` in either case.
    unsafe {
        libc::localtime_r(&seconds, broken_down.as_mut_ptr());
        broken_down.assume_init()
    }
}

fn format_local(seconds_since_epoch: i64, format: &std::ffi::CStr) -> String {
    let broken_down = local(seconds_since_epoch);
    let mut text = [0u8; 64];
    // SAFETY: the pointers are valid for the call. `strftime` writes at most `text.len()` bytes and returns how many.
    let written = unsafe {
        libc::strftime(text.as_mut_ptr().cast(), text.len(), format.as_ptr(), &broken_down)
    };
    String::from_utf8_lossy(&text[..written]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctime_has_the_asctime_form() {
        let text = ctime(1_795_418_092);
        assert_eq!(text.len(), "Mon Nov 23 07:14:52 2026".len());
        assert!(text.ends_with("2026"), "{text}");
    }

    #[test]
    fn log_stamps_have_milliseconds_and_zone() {
        let text = log_stamp();
        assert_eq!(text.len(), "2026-11-23T07:14:55.211+0000".len(), "{text}");
    }
}
