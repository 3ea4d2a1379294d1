//! `maru doctor`: what a server needs of this host, and whether one answers; each fault with what to do about it.

mod checks;
mod facts;
mod pool_checks;

use std::io;

use crate::cli::{DoctorArgs, ServerArgs};
use crate::error::{Answer, CliError};
use crate::report::{Format, Printer, Report, Row, Value};

use checks::{Finding, Verdict};

/// Shows all findings; whether nothing is wrong.
///
/// # Errors
/// [`CliError::Output`].
pub(crate) fn run(server: &ServerArgs, args: &DoctorArgs) -> Result<Answer, CliError> {
    let findings = checks::judge(&facts::gather(server, args));
    let format = if args.json { Format::Json } else { Format::Text };
    let mut printer = Printer::new(io::stdout().lock(), format);
    if args.json {
        printer.show(&Report::List("checks", findings.iter().map(row).collect()))?;
    }
    for finding in &findings {
        printer.say(&format!("{:5}  {:10}  {}", finding.verdict.name(), finding.check, finding.found))?;
        if let Some(fix) = &finding.fix {
            printer.say(&format!("{:17}  {fix}", "", fix = fix))?;
        }
    }
    Ok(Answer::yes_if(findings.iter().all(|finding| finding.verdict != Verdict::Wrong)))
}

fn row(finding: &Finding) -> Row {
    let fix = finding.fix.as_ref();
    Row(vec![
        ("check", Value::Text(finding.check.to_owned())),
        ("verdict", Value::Text(finding.verdict.name().to_owned())),
        ("found", Value::Text(finding.found.clone())),
        ("fix", fix.map_or(Value::Absent, |fix| Value::Text(fix.clone()))),
    ])
}
