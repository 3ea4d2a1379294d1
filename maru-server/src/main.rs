//! The binary `maru-server`: options, logging, exit code.

use std::process::ExitCode;

use maru_server::{Configuration, ConfigurationError, LogFormat};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let configuration = match Configuration::load() {
        Ok(configuration) => configuration,
        Err(ConfigurationError::CommandLine(error)) => error.exit(),
        Err(error) => return fail(&error.to_string()),
    };
    let options = &configuration.options;
    let filter = match EnvFilter::try_new(&options.log) {
        Ok(filter) => filter,
        Err(error) => return fail(&format!("--log {}: {error}", options.log)),
    };
    if options.check_config {
        if let Err(error) = configuration.check() {
            return fail(&error.to_string());
        }
        print!("{configuration}");
        return ExitCode::SUCCESS;
    }
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match options.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => {
            log.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
        }
    }
    for variable in &configuration.unknown_variables {
        tracing::warn!(variable, "set in the environment, but there is no such option");
    }
    match maru_server::run(options, || Configuration::load().map(|again| again.options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("maru-server: {message}");
    ExitCode::FAILURE
}
