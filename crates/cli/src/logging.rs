//! Log lines of long-running commands, on standard error. `MARCOT_LOG` chooses what is shown.

use tracing_subscriber::EnvFilter;

/// Names what is logged, such as `debug` or `marcot_serve=trace`.
const LOG_VARIABLE: &str = "MARCOT_LOG";
const LOG_DEFAULT: &str = "info";

/// Starts logging; later calls change nothing.
pub fn start() {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE)
        .or_else(|_| EnvFilter::try_new(LOG_DEFAULT))
        .unwrap_or_default();
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
}
