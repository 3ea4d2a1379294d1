//! `maru`: what an operator of a maru-server sees and does, one subcommand a question.

mod calls;
mod cli;
mod doctor;
mod error;
mod keys;
mod pins;
mod pool;
mod pools;
mod question;
mod report;
mod server;
mod status;
mod top;
mod usage;
mod watch;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Cli, Command};
use error::Answer;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let server = &cli.server;
    let outcome = match &cli.command {
        Command::Status(args) => watch::report(server, *args, status::look),
        Command::Pools(args) => watch::report(server, *args, pools::look),
        Command::Pool(command) => pool::run(command),
        Command::Usage(args) => watch::report(server, *args, usage::look),
        Command::Calls(args) => watch::report(server, *args, calls::look),
        Command::Keys(args) => keys::run(server, args),
        Command::Pins(args) => pins::run(server, args),
        Command::Top(args) => top::run(server, args),
        Command::Doctor(args) => doctor::run(server, args),
        Command::Bench => Ok(hint_at_bench()),
        Command::Completions(args) => {
            clap_complete::generate(args.shell, &mut Cli::command(), "maru", &mut io::stdout());
            Ok(Answer::Yes)
        }
    };
    match outcome {
        Ok(answer) => answer.into(),
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("maru: {error}");
            error.exit_code()
        }
    }
}

fn hint_at_bench() -> Answer {
    println!(
        "maru-bench measures this machine, with a server of its own:\n\
         \n  maru-bench replay              the main job, every byte verified\
         \n  maru-bench latency             how long a request takes\
         \n  maru-bench load                how many requests a second\
         \n  maru-bench read, store         how fast chunks are read and stored\
         \n  maru-bench floor               each of it beside what the machine can do at all\
         \n  maru-bench torture             whether anything is lost when everything is killed\n\
         \nEach has --help; --connect SOCKET measures a server that runs already."
    );
    Answer::Yes
}
