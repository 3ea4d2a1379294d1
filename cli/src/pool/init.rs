//! `maru pool init`: a device becomes a pool.

use bytesize::ByteSize;
use maru_server::pool::BareDevice;

use super::{OTHER_HOSTS, printer};
use crate::cli::InitArgs;
use crate::error::{Answer, CliError};
use crate::question;
use crate::report::{Report, Row, Value};

/// Makes a device a pool; whether that was wanted.
///
/// # Errors
/// [`CliError`] where it can't become one, is one, or is in use.
pub(super) fn run(args: &InitArgs) -> Result<Answer, CliError> {
    let device = BareDevice::take(&args.path)?;
    // As a server takes it that is started in another folder.
    let path = std::path::absolute(&args.path).unwrap_or_else(|_| args.path.clone()).display().to_string();
    let (size, granularity) = (device.size(), device.granularity());
    let mut printer = printer(args.json);
    if !args.yes {
        let found = if device.is_blank() {
            "nothing but zeros: nobody seems to have written there"
        } else {
            "something else than zeros: somebody has written there"
        };
        eprintln!(
            "{path} has {}, and regions in it will be multiples of {}. Its first {} hold {found}.\n{OTHER_HOSTS}",
            iec(size),
            iec(granularity),
            iec(device.header_bytes())
        );
        if !question::is_wanted("Make it a pool? What is on it is lost.")? {
            printer.say("nothing is changed")?;
            return Ok(Answer::No);
        }
    }
    let identity = device.init();
    printer.show(&Report::One(Row(vec![
        ("path", Value::Text(path.clone())),
        ("uuid", Value::Text(identity.uuid.to_string())),
        ("incarnation", Value::Count(identity.incarnation)),
        ("size_bytes", Value::Bytes(size)),
        ("granularity_bytes", Value::Bytes(granularity)),
        ("server_option", Value::Text(format!("--pool devdax:{path}"))),
    ])))?;
    Ok(Answer::Yes)
}

fn iec(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}
