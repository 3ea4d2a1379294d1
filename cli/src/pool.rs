//! `maru pool`: memory of this host is made a pool, shown and wiped, without a server.

mod init;
mod show;
mod wipe;

use std::io;

use crate::cli::PoolCommand;
use crate::error::{Answer, CliError};
use crate::report::{Format, Printer};

/// What is asked before memory is given another use.
const OTHER_HOSTS: &str = "No server of this host uses it; servers of other hosts can't be seen from here.";

/// Does what is asked.
///
/// # Errors
/// [`CliError`] where that can't be done.
pub(crate) fn run(command: &PoolCommand) -> Result<Answer, CliError> {
    match command {
        PoolCommand::Init(args) => init::run(args),
        PoolCommand::Show(args) => show::run(args),
        PoolCommand::Wipe(args) => wipe::run(args),
    }
}

fn printer(json: bool) -> Printer<io::StdoutLock<'static>> {
    Printer::new(io::stdout().lock(), if json { Format::Json } else { Format::Text })
}
