//! `maru pool wipe`: memory is no pool any more.

use maru_proto::{PoolHeader, PoolHeaderError};
use maru_server::pool::IdlePool;

use super::{OTHER_HOSTS, printer};
use crate::cli::WipeArgs;
use crate::error::{Answer, CliError};
use crate::question;
use crate::report::{Report, Row, Value};

/// What stands for the UUID of a pool that does not say which it is.
const UNREADABLE: &str = "unreadable";

/// Wipes a pool; whether that was wanted.
///
/// # Errors
/// [`CliError`] where it is none, another one than is meant, or in use.
pub(super) fn run(args: &WipeArgs) -> Result<Answer, CliError> {
    let pool = IdlePool::take(&args.path)?;
    let header = pool.header();
    let name = header.map_or(UNREADABLE.to_owned(), |header| header.uuid().to_string());
    let mut printer = printer(args.json);
    if let Some(meant) = &args.yes {
        if !is_meant(meant, &name) {
            let (path, found, meant) = (args.path.clone(), found(header), meant.clone());
            return Err(CliError::OtherPool { path, found, meant });
        }
    } else {
        let path = args.path.display();
        eprintln!("{path} is {}. All that is in it will be lost.\n{OTHER_HOSTS}", found(header));
        let asked = match header {
            Ok(_) => "Type its UUID to wipe it:".to_owned(),
            Err(_) => format!("Type the word {UNREADABLE} to wipe it:"),
        };
        if !is_meant(&question::answer(&asked, "--yes UUID")?, &name) {
            printer.say("nothing is changed")?;
            return Ok(Answer::No);
        }
    }
    pool.wipe()?;
    printer.show(&Report::One(Row(vec![
        ("path", Value::Text(args.path.display().to_string())),
        ("uuid", header.map_or(Value::Absent, |header| Value::Text(header.uuid().to_string()))),
        ("wiped", Value::Flag(true)),
    ])))?;
    Ok(Answer::Yes)
}

fn is_meant(meant: &str, name: &str) -> bool {
    meant.eq_ignore_ascii_case(name)
}

fn found(header: Result<PoolHeader, PoolHeaderError>) -> String {
    match header {
        Ok(header) => format!("the pool {}, incarnation {}", header.uuid(), header.incarnation()),
        Err(error) => format!("a pool, but {UNREADABLE}: {error}"),
    }
}
