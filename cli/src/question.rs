//! What is asked before anything is lost: of a person, and never of a pipe.

use std::io::{self, IsTerminal};

use crate::error::CliError;

/// Whether somebody says yes.
///
/// # Errors
/// [`CliError`] where nobody can be asked.
pub(crate) fn is_wanted(question: &str) -> Result<bool, CliError> {
    let answer = answer(&format!("{question} [y/N]"), "--yes")?;
    Ok(matches!(answer.as_str(), "y" | "Y" | "yes"))
}

/// What somebody answers; `instead` is the option that answers for them.
///
/// # Errors
/// [`CliError`] where nobody can be asked.
pub(crate) fn answer(question: &str, instead: &'static str) -> Result<String, CliError> {
    if !io::stdin().is_terminal() {
        return Err(CliError::NobodyToAsk(instead));
    }
    eprint!("{question} ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(CliError::Input)?;
    Ok(answer.trim().to_owned())
}
