//! `maru top`: the server's rates, operations, instances and pools, live in a terminal.

mod model;
mod sample;
#[cfg(test)]
mod tests;
mod view;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use maru_client::{Error, MaruHandler};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use crate::cli::{ServerArgs, TopArgs};
use crate::error::{Answer, CliError};
use crate::server::connect;

use model::Model;
use sample::Sample;

/// Draws until the user has seen enough, whatever becomes of the server meanwhile.
///
/// # Errors
/// [`CliError`] where there is no terminal, or no server in the beginning.
pub(crate) fn run(server: &ServerArgs, args: &TopArgs) -> Result<Answer, CliError> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(CliError::NoTerminal);
    }
    let mut maru = connect(server)?;
    let mut model = Model::new(Sample::take(&maru)?, args.interval);
    // Gives the terminal back as it was also where this program fails.
    let mut terminal = ratatui::try_init().map_err(CliError::Output)?;
    let outcome = watch(&mut terminal, &mut model, |model| look(server, &mut maru, model));
    ratatui::restore();
    outcome.map(|()| Answer::Yes)
}

fn watch(
    terminal: &mut DefaultTerminal,
    model: &mut Model,
    mut look: impl FnMut(&mut Model),
) -> Result<(), CliError> {
    let mut next = Instant::now() + model.interval;
    while !model.is_done {
        terminal.draw(|frame| view::draw(frame, model)).map_err(CliError::Output)?;
        let left = next.saturating_duration_since(Instant::now());
        if event::poll(left).map_err(CliError::Output)? {
            // Anything else, such as another size, is seen to by drawing again.
            if let Event::Key(key) = event::read().map_err(CliError::Output)?
                && key.kind != KeyEventKind::Release
            {
                model.press(key);
            }
        } else {
            if !model.is_paused {
                look(model);
            }
            next = Instant::now() + model.interval;
        }
    }
    Ok(())
}

fn look(server: &ServerArgs, maru: &mut MaruHandler, model: &mut Model) {
    match Sample::take(maru) {
        Ok(sample) => model.update(sample),
        Err(error) => {
            model.fail(error.to_string());
            let is_over = matches!(
                error,
                CliError::Server(Error::SessionEnded | Error::ConnectionLost | Error::Closed)
            );
            // A moment is all that the keys can wait.
            let again = ServerArgs { timeout: server.timeout.min(Duration::from_secs(1)), ..server.clone() };
            if is_over && let Ok(again) = connect(&again) {
                *maru = again;
            }
        }
    }
}
