//! `watch`: prints a line whenever the record of an image changes.

use std::io::Read as _;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::IMAGE_SPEC;
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, options};
use crate::failure::Outcome;
use crate::output::{line, out};
use crate::session::{self, Session};
use crate::signals;

/// How often the record is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] =
    &[CommandSpec::new(&["watch"], "Watch events on image.", watch)
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE])
        .examples(&[("watch vm-1", "until Enter is pressed")])];

fn watch(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, Wanted::IMAGE)?;
    let image = session.find(&target)?;
    let mut before = session::info(&image)?;
    out("press enter to exit...\n")?;
    signals::catch_and_watch();
    let mut count = 0_u64;
    while !key_pressed() && !signals::stop_asked() {
        let now = session::info(&image)?;
        if now != before {
            count += 1;
            let (id, pid) = (now.id, std::process::id());
            let by = now.owned_by.unwrap_or_default();
            let event = format!("notify_id={count}, cookie={pid}, notifier_id={by}, bl.length=0");
            out(&line(&format!("rbd_header.{id} received notification: {event}")))?;
            before = now;
        }
    }
    Ok(())
}

/// Waits for a short time. Returns true if the user has pressed Enter, or standard input has ended.
fn key_pressed() -> bool {
    let input = std::io::stdin();
    let wait = Timespec::try_from(LOOK_INTERVAL).ok();
    let mut fds = [PollFd::new(&input, PollFlags::IN)];
    match poll(&mut fds, wait.as_ref()) {
        Ok(0) | Err(_) => false,
        Ok(_) => input.lock().read(&mut [0; 1]).is_ok(),
    }
}
