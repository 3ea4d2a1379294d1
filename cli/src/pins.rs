//! `maru pins`: what is pinned, by whom and for how long; and the release of pins by name that somebody forgot.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::{self, Write};

use maru_client::{HeldPinsRecord, MaruHandler, PinQuery, Released};

use crate::cli::{PinsArgs, ServerArgs};
use crate::error::{Answer, CliError, explained};
use crate::keys::holder;
use crate::question;
use crate::report::{Format, Printer, Report, Row, Value};
use crate::server::{connect, instances, names};

/// Lists the pins, the oldest first, and releases those by name where that is asked for; whether none of those stayed.
///
/// # Errors
/// [`CliError`] where the server can't be asked, or refuses.
pub(crate) fn run(server: &ServerArgs, args: &PinsArgs) -> Result<Answer, CliError> {
    let maru = connect(server)?;
    let names = names(&instances(&maru)?.0);
    let mut pins = list(&maru, args, &names)?;
    pins.sort_by_key(|pins| (Reverse(pins.held_s.get()), pins.instance.get(), pins.digest));
    let mut printer = Printer::new(io::stdout().lock(), Format::from(args.format));
    if !args.release {
        printer.show(&report(&pins, &names, None))?;
        return Ok(Answer::Yes);
    }
    release(&maru, &pins, &names, args.yes, &mut printer)
}

fn list(
    maru: &MaruHandler,
    args: &PinsArgs,
    names: &HashMap<u32, String>,
) -> Result<Vec<HeldPinsRecord>, CliError> {
    let query = PinQuery { digest: args.digest, instance: None, held: args.older_than.unwrap_or_default() };
    let Some(name) = &args.instance else { return maru.pins(&query).map_err(explained) };
    // Several instances may bear one name.
    let mut all = Vec::new();
    for (number, _) in names.iter().filter(|(_, other)| *other == name) {
        all.extend(maru.pins(&PinQuery { instance: Some(*number), ..query }).map_err(explained)?);
    }
    Ok(all)
}

fn report(pins: &[HeldPinsRecord], names: &HashMap<u32, String>, outcomes: Option<&[Outcome]>) -> Report {
    let row = |(n, pins): (usize, &HeldPinsRecord)| {
        let mut row = vec![("digest", Value::Text(pins.digest.to_string()))];
        row.extend(holder(pins, names).0);
        row.push(("length_bytes", Value::Bytes(pins.length.get())));
        if let Some(outcome) = outcomes.and_then(|outcomes| outcomes.get(n)) {
            row.push(("outcome", Value::Text(outcome.text().to_owned())));
        }
        Row(row)
    };
    Report::List("pins", pins.iter().enumerate().map(row).collect())
}

/// What became of the pins of one instance on one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// There are no pins by name: a reader lives, and is not disturbed.
    Guard,
    /// Nobody was told to release it.
    Kept,
    Tried(Released),
}

impl Outcome {
    fn text(self) -> &'static str {
        match self {
            Outcome::Guard => "stays: a guard",
            Outcome::Kept => "stays",
            Outcome::Tried(Released::Released) => "released",
            Outcome::Tried(Released::NotPinned) => "stays: pinned anew since",
            Outcome::Tried(Released::NotFound) => "gone already",
        }
    }
}

fn release(
    maru: &MaruHandler,
    pins: &[HeldPinsRecord],
    names: &HashMap<u32, String>,
    is_confirmed: bool,
    printer: &mut Printer<impl Write>,
) -> Result<Answer, CliError> {
    let named = pins.iter().filter(|pins| pins.named.get() > 0).copied().collect::<Vec<_>>();
    let guarded = pins.iter().filter(|pins| pins.guards.get() > 0).count() as u64;
    let mut is_wanted = true;
    if !is_confirmed && !named.is_empty() {
        if printer.format() == Format::Text {
            printer.show(&report(pins, names, None))?;
        }
        let count = named.iter().map(|pins| u64::from(pins.named.get())).sum::<u64>();
        let (pins, entries) = (number(count, "pin", "pins"), number(named.len() as u64, "entry", "entries"));
        is_wanted = question::is_wanted(&format!("Release {pins} by name on {entries}?"))?;
    }
    let mut released =
        if is_wanted { maru.release_pins(&named).map_err(explained)? } else { Vec::new() }.into_iter();
    let outcomes = pins.iter().map(|pins| match pins.named.get() {
        0 => Outcome::Guard,
        _ => released.next().map_or(Outcome::Kept, Outcome::Tried),
    });
    let outcomes = outcomes.collect::<Vec<_>>();
    printer.show(&report(pins, names, Some(&outcomes)))?;
    if guarded > 0 {
        printer.say(&format!(
            "held by guards: {}. A reader that lives may be looking at the bytes; they go when it drops them, or with its \
             process.",
            number(guarded, "entry", "entries")
        ))?;
    }
    let stayed = |outcome: &Outcome| matches!(outcome, Outcome::Kept | Outcome::Tried(Released::NotPinned));
    Ok(Answer::yes_if(!outcomes.iter().any(stayed)))
}

fn number(count: u64, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}
