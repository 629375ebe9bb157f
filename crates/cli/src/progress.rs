//! Progress on standard error: `rbd`'s lines, or, on a terminal, a bar with the rate and the time left.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::failure::Outcome;
use crate::output::err_as_it_is;

/// The unit of a progress bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Short work: `rbd`'s lines, also on a terminal.
    Steps,
    /// Long work measured in bytes.
    Bytes,
    /// Long work measured in other parts. The work defines them.
    Parts,
}

enum Face {
    Silent,
    Lines,
    /// A bar that is drawn only when the first progress is reported.
    Waiting(Measure),
    Bar(ProgressBar),
}

/// The progress of one piece of work.
pub struct Progress {
    label: &'static str,
    face: Face,
    percent: u64,
    /// If set, lines show the percentages of this many parts, whatever the work counts.
    parts: Option<u64>,
}

impl Progress {
    /// Shows `label`, unless `silent` (`--no-progress`).
    pub fn new(label: &'static str, measure: Measure, silent: bool) -> Self {
        let face = match measure {
            _ if silent => Face::Silent,
            Measure::Steps => Face::Lines,
            _ if !std::io::stderr().is_terminal() => Face::Lines,
            Measure::Bytes | Measure::Parts => Face::Waiting(measure),
        };
        Self { label, face, percent: 0, parts: None }
    }

    /// Reports that `done` of `total` is done. The percentage is shown each time it grows.
    pub fn update(&mut self, done: u64, total: u64) {
        if let Face::Waiting(measure) = self.face {
            self.face = Face::Bar(bar(self.label, measure, total));
        }
        if let Face::Bar(bar) = &self.face {
            bar.set_length(total);
            bar.set_position(done);
        }
        let percent = match self.parts {
            Some(parts) => percent_of(rescale(done, total, parts), parts),
            None => percent_of(done, total),
        };
        if percent > self.percent {
            self.percent = percent;
            if matches!(self.face, Face::Lines) {
                err_as_it_is(&format!("\r{}: {percent}% complete...", self.label));
            }
        }
    }

    /// Makes lines show the percentages of `parts` steps, as `rbd` does with objects.
    pub fn count_in(&mut self, parts: u64) {
        self.parts = Some(parts);
    }

    /// As [`Self::update`], but without the end, which [`Self::finish`] shows. `rbd` does so
    /// where it counts the parts before the current one.
    pub fn update_before_end(&mut self, done: u64, total: u64) {
        if done < total {
            self.update(done, total);
        }
    }

    /// As [`Self::update`] for every multiple of `step` up to `done`, and for the end, but at a cost that
    /// does not depend on the number of steps.
    pub fn pass(&mut self, done: u64, step: u64, total: u64) {
        while let Some(part) = self.next_part(step, total).filter(|part| *part <= done) {
            self.update(part, total);
        }
        self.update(if done == total { done } else { done / step * step }, total);
    }

    /// As [`Self::pass`], but without the end, which [`Self::finish`] shows.
    pub fn pass_before_end(&mut self, done: u64, step: u64, total: u64) {
        let last = done.min(total.saturating_sub(1)) / step * step;
        self.pass(last, step, total);
    }

    /// The next value at which the percentage grows: a multiple of `step`, or the end.
    fn next_part(&self, step: u64, total: u64) -> Option<u64> {
        let percent = u128::from(self.percent + 1);
        let bytes = u64::try_from((u128::from(total) * percent).div_ceil(100)).ok()?;
        (percent <= 100 && total > 0).then(|| bytes.next_multiple_of(step).min(total))
    }

    /// Shows the lines that `rbd` shows for parts `first` to `total - 1`, unless they were
    /// shown already: work that takes `rbd` a step for each object is often a single step here. On a
    /// terminal, nothing is shown.
    pub fn catch_up(&mut self, first: u64, total: u64) {
        if !matches!(self.face, Face::Lines) {
            return;
        }
        self.parts = None;
        for part in telling_parts(first, total) {
            self.update(part, total);
        }
    }

    /// The last line: `100% complete...done.`
    pub fn finish(self) {
        self.last_line(100, "done");
    }

    /// The last line: `failed.`
    pub fn fail(self) {
        let percent = self.percent;
        self.last_line(percent, "failed");
    }

    /// The line of a failed part of the work; the work itself then fails with another one, as with `rbd`.
    pub fn tell_failed(&self) {
        if matches!(self.face, Face::Lines) {
            let percent = self.percent;
            err_as_it_is(&format!("\r{}: {percent}% complete...failed.\n", self.label));
        }
    }

    /// Finishes or fails as `outcome` says.
    pub fn end<T>(self, outcome: Outcome<T>) -> Outcome<T> {
        match &outcome {
            Ok(_) => self.finish(),
            Err(_) => self.fail(),
        }
        outcome
    }

    fn last_line(self, percent: u64, word: &str) {
        let start = match self.face {
            Face::Silent => return,
            Face::Lines => "\r",
            Face::Waiting(_) => "",
            Face::Bar(bar) => {
                bar.finish_and_clear();
                ""
            }
        };
        err_as_it_is(&format!("{start}{}: {percent}% complete...{word}.\n", self.label));
    }
}

fn bar(label: &'static str, measure: Measure, total: u64) -> ProgressBar {
    let numbers = match measure {
        Measure::Bytes => "{bytes}/{total_bytes} {bytes_per_sec}",
        Measure::Steps | Measure::Parts => "{pos}/{len} {per_sec}",
    };
    let template = format!("{{prefix}}: {{percent:>3}}% [{{bar:30}}] {numbers} ETA {{eta}}");
    let style = ProgressStyle::with_template(&template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    bar.set_style(style);
    bar.set_prefix(label);
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// The parts from `first` on at which the percentage grows, except the last part.
fn telling_parts(first: u64, total: u64) -> impl Iterator<Item = u64> {
    // A percentage grows at most a hundred times, however many parts there are.
    (percent_of(first, total)..100)
        .map(move |percent| {
            let part = (u128::from(total) * u128::from(percent)).div_ceil(100);
            u64::try_from(part).unwrap_or(u64::MAX).max(first)
        })
        .filter(move |part| *part < total)
}

/// How many of `parts` are done when `done` of `total` is.
fn rescale(done: u64, total: u64, parts: u64) -> u64 {
    let behind = u128::from(done) * u128::from(parts) / u128::from(total.max(1));
    u64::try_from(behind).unwrap_or(parts).min(parts)
}

fn percent_of(done: u64, total: u64) -> u64 {
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    u64::try_from(percent.min(100)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn catching_up_passes_every_percentage_that_parts_have() {
        let percents = |first, total| -> Vec<u64> {
            telling_parts(first, total).map(|part| percent_of(part, total)).collect()
        };
        let eight = percents(1, 8);
        assert!([12, 25, 37, 50, 62, 75, 87].iter().all(|p| eight.contains(p)), "{eight:?}");
        assert!(eight.iter().all(|p| *p == 0 || p % 12 < 4 && *p < 100), "{eight:?}");
        assert!(percents(0, 0).is_empty());
        assert_eq!(percents(256, 512).first(), Some(&50));
        assert_eq!(percents(0, 2560), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn passing_many_parts_shows_what_updating_each_of_them_does() {
        let percents = |parts: &[(u64, u64)], each: bool| {
            let (step, total) = (4, 1001);
            let mut progress = Progress::new("", Measure::Steps, true);
            let mut shown = Vec::new();
            for (from, to) in parts {
                let stops = (from / step + 1..=to / step).map(|n| n * step);
                let stops = stops.chain((*to == total).then_some(total));
                for stop in if each { stops.collect() } else { vec![*to] } {
                    if each {
                        progress.update(stop, total);
                    } else {
                        progress.pass(stop, step, total);
                    }
                    shown.push(progress.percent);
                }
            }
            shown.last().copied()
        };
        for parts in [&[(0, 1001)][..], &[(0, 3), (3, 500), (500, 999)], &[(0, 1000)]] {
            assert_eq!(percents(parts, true), percents(parts, false), "{parts:?}");
        }
        let mut progress = Progress::new("", Measure::Steps, true);
        let stops = std::iter::from_fn(|| {
            let part = progress.next_part(1 << 12, 1 << 60)?;
            progress.update(part, 1 << 60);
            Some(part)
        });
        assert_eq!(stops.count(), 100);
    }

    #[test]
    fn work_is_shown_in_the_parts_that_are_asked_for() {
        assert_eq!(rescale(1, 3, 2), 0);
        assert_eq!(rescale(2, 3, 2), 1);
        assert_eq!(rescale(u64::MAX, u64::MAX, 7), 7);
        assert_eq!(rescale(1, 0, 7), 7);
    }

    #[test]
    fn percentages_round_down_and_survive_empty_work() {
        assert_eq!(percent_of(4_194_304, 10_000_000), 41);
        assert_eq!(percent_of(0, 0), 0);
        assert_eq!(percent_of(u64::MAX, u64::MAX), 100);
        assert_eq!(percent_of(5, 0), 100);
    }
}
