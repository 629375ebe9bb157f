//! The log on standard error. `MARCOT_LOG` chooses what is logged.
//!
//! A server writes log lines. Any other command only reports problems that did not end it, in lines like
//! those of its failures. In both cases one event is one line, since line breaks are escaped.

use std::collections::HashSet;
use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::sync::{Mutex, Once, PoisonError};

use marcot::printable::printable;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::failure::cause_line;
use crate::output::err;

/// The variable that chooses what is logged, such as `debug` or `marcot_serve=trace`.
const LOG_VARIABLE: &str = "MARCOT_LOG";
const LOG_DEFAULT: &str = "info";
/// Largest number of warnings of a command. More tell nothing new, for example when a medium fails block by
/// block.
const WARNINGS_MAX: usize = 50;

static STARTED: Once = Once::new();

/// Starts logging for a server; later calls change nothing.
pub fn start() {
    STARTED.call_once(log_lines);
}

/// Starts to report problems; later calls change nothing. If `MARCOT_LOG` is set, does the same as
/// [`start`].
pub fn start_brief(program: &'static str) {
    STARTED.call_once(|| {
        if std::env::var_os(LOG_VARIABLE).is_some() {
            return log_lines();
        }
        let warnings = Warnings { program, told: Mutex::default() };
        let _ =
            tracing_subscriber::registry().with(warnings.with_filter(LevelFilter::WARN)).try_init();
    });
}

fn log_lines() {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE)
        .or_else(|_| EnvFilter::try_new(LOG_DEFAULT))
        .unwrap_or_default();
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Line(io::stderr()))
        .with_ansi(false)
        // By default, internal errors are reported with a macro that panics if standard error fails.
        .log_internal_errors(false)
        .try_init();
}

/// Writes each buffer as one line, since an event comes in one piece. If the log cannot be
/// written (the disk is full, or its reader has gone), the line is lost and the server goes on.
struct Line<W>(W);

impl<W: Write> Write for Line<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let _ = self.0.write_all(format!("{}\n", printable(text)).as_bytes());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

/// Prints warnings and errors, each once.
struct Warnings {
    program: &'static str,
    told: Mutex<HashSet<String>>,
}

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut sentence = Sentence::default();
        event.record(&mut sentence);
        let kind = if *event.metadata().level() == Level::ERROR { "error" } else { "warning" };
        let text = format!("{kind}: {}", sentence.finish());
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < WARNINGS_MAX && told.insert(text.clone()) {
            err(&cause_line(self.program, &text));
        }
    }
}

/// An event as a sentence: `message (name value, ...): error`.
#[derive(Default)]
struct Sentence {
    message: String,
    details: String,
    error: String,
}

impl Sentence {
    fn finish(self) -> String {
        let Self { mut message, details, error } = self;
        if !details.is_empty() {
            message.push_str(&format!(" ({details})"));
        }
        if !error.is_empty() {
            message.push_str(&format!(": {error}"));
        }
        message
    }
}

impl Visit for Sentence {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "error" => write!(self.error, "{value:?}"),
            name => {
                let comma = if self.details.is_empty() { "" } else { ", " };
                write!(self.details, "{comma}{name} {value:?}")
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const FORGED: &str =
        "no\n2026-01-01T00:00:00.000000Z ERROR marcot: forged\u{1b}[1A\u{9b}2J\r\u{2028}";

    #[test]
    fn an_event_is_one_line_whatever_its_message_and_fields_hold() {
        let log = Shared::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || Line(writer.clone()))
            .with_ansi(false)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let error = marcot::Error::new(marcot::ErrorKind::Invalid, FORGED);
            tracing::warn!(peer = FORGED, image = %FORGED, error = %error.sentence(), ?error, "refused {FORGED}");
            tracing::warn!("second");
        });
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches('\n').count(), 2, "{text}");
        assert!(!text.chars().any(|c| marcot::printable::is_control(c) && c != '\n'), "{text:?}");
        assert!(text.lines().all(|line| line.contains("WARN")), "{text}");
    }

    #[test]
    fn an_event_becomes_a_sentence() {
        let mut sentence =
            Sentence { message: "a pool cannot be opened".into(), ..Sentence::default() };
        assert_eq!(std::mem::take(&mut sentence).finish(), "a pool cannot be opened");
        let full = Sentence {
            message: "a pool cannot be opened".into(),
            details: "pool p".into(),
            error: "it is gone".into(),
        };
        assert_eq!(full.finish(), "a pool cannot be opened (pool p): it is gone");
    }
}
