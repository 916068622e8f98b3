//! The `log` crate's output: one line a record, to the early output and the PV console.
//!
//! The early output costs milliseconds a line, so records below `info` go to the PV console only.

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::line::Line;
use super::{clock, console, early};

/// Both consoles as one logger.
struct Consoles;

static CONSOLES: Consoles = Consoles;

/// Makes `log`'s macros write to the consoles, records from `info` up.
pub(super) fn start() {
    // A second start finds the first one's logger, which is the same.
    let _ = log::set_logger(&CONSOLES);
    log::set_max_level(LevelFilter::Info);
}

impl Log for Consoles {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = clock::system_time().0;
        let (seconds, micros) = (now / 1_000_000_000, now / 1_000 % 1_000_000);
        let prefix = prefix_of(record.level());
        let line = Line::of(format_args!(
            "[{seconds:5}.{micros:06}] {prefix}{}",
            record.args()
        ));
        if record.level() <= Level::Info {
            early::write(line.as_bytes());
        }
        console::write(line.as_bytes());
    }

    fn flush(&self) {
        console::flush();
    }
}

const fn prefix_of(level: Level) -> &'static str {
    match level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info => "",
        Level::Debug => "debug: ",
        Level::Trace => "trace: ",
    }
}
