//! One look at a server, or one look every so often, whatever becomes of the server meanwhile.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use maru_client::{Error, MaruHandler};

use crate::cli::{ReportArgs, ServerArgs};
use crate::error::{Answer, CliError};
use crate::report::{Format, Printer, Report};
use crate::server::connect;

/// Moves the cursor to the upper left and clears what is there.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// Shows a report, once or again and again. The first has to succeed; later ones wait for the server to come back.
///
/// # Errors
/// [`CliError`] of the first report, or where nothing can be written.
pub(crate) fn report(
    server: &ServerArgs,
    args: ReportArgs,
    look: impl Fn(&MaruHandler) -> Result<Report, CliError>,
) -> Result<Answer, CliError> {
    let mut maru = connect(server)?;
    let mut printer = Printer::new(io::stdout().lock(), Format::from(args.format));
    let first = look(&maru)?;
    let Some(interval) = args.watch else {
        printer.show(&first)?;
        return Ok(Answer::Yes);
    };
    let clears = printer.format() == Format::Text && io::stdout().is_terminal();
    let mut next = Instant::now();
    let mut report = Ok(first);
    loop {
        match report {
            Ok(report) => {
                if clears {
                    print(CLEAR)?;
                }
                printer.show(&report)?;
            }
            Err(error) => {
                eprintln!("maru: {error}");
                if matches!(
                    error,
                    CliError::Server(Error::SessionEnded | Error::ConnectionLost | Error::Closed)
                ) && let Ok(again) = connect(server)
                {
                    maru = again;
                }
            }
        }
        next = wait(next, interval);
        report = look(&maru);
    }
}

fn print(text: &str) -> Result<(), CliError> {
    // The printer holds the lock, which the same thread may take again.
    io::stdout().write_all(text.as_bytes()).map_err(CliError::Output)
}

/// Sleeps until the next moment of a steady beat; beats that were missed are left out.
fn wait(last: Instant, interval: Duration) -> Instant {
    let now = Instant::now();
    let next = (last + interval).max(now);
    std::thread::sleep(next - now);
    next
}
