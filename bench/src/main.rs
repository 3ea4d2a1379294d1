//! `maru-bench`: measures a real server with real client processes, one subcommand a question.

mod cli;
mod content;
mod data;
mod drive;
mod error;
mod files;
mod floor;
mod interrupt;
mod latency;
mod lines;
mod load;
mod machine;
mod measure;
mod mix;
mod peers;
mod placement;
mod policy;
mod replay;
mod server_process;
mod target;
mod torture;
mod traffic;
mod upkeep;
mod worker_process;
mod workload;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // That connections are lost is no news where there are outages.
    let level =
        if matches!(&cli.command, Command::TortureClient(args) if args.outages) { "error" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();

    let outcome = match &cli.command {
        Command::Replay(args) => replay::run(args),
        Command::Latency(args) => latency::run(args),
        Command::Load(args) => load::run(args),
        Command::Store(args) => data::store(args),
        Command::Read(args) => data::read(args),
        Command::Floor(args) => floor::run(args),
        Command::Peers(args) => peers::run(args),
        Command::Policy(args) => policy::run(args),
        Command::Torture(args) => torture::run(args),
        Command::Echo(args) => floor::echo(args),
        Command::Client(args) => return drive::work(args),
        Command::TortureClient(args) => return torture::work(args),
        Command::Worker(args) => return replay::work(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("maru-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
