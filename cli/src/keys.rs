//! `maru keys`: whether an entry is there, where, and who keeps it there.

use std::collections::HashMap;
use std::io;

use maru_client::{HeldPinsRecord, KeyDigest, MaruHandler, PinQuery};

use crate::cli::{KeysArgs, ServerArgs};
use crate::error::{Answer, CliError, explained};
use crate::report::{Format, Printer, Report, Row, Value};
use crate::server::{connect, instances, names};

/// Shows each key; whether all are there.
///
/// # Errors
/// [`CliError`] where the server can't be asked.
pub(crate) fn run(server: &ServerArgs, args: &KeysArgs) -> Result<Answer, CliError> {
    let maru = connect(server)?;
    let names = names(&instances(&maru)?.0);
    let mut asked = Vec::new();
    for key in &args.key {
        asked.push((Some(key.as_str()), maru.digest(key.as_str())?));
    }
    asked.extend(args.digest.iter().map(|digest| (None, *digest)));
    let (mut rows, mut missing) = (Vec::new(), 0);
    for (key, digest) in asked {
        let (row, is_there) = look(&maru, key, digest, &names)?;
        missing += usize::from(!is_there);
        rows.push(row);
    }
    let mut printer = Printer::new(io::stdout().lock(), if args.json { Format::Json } else { Format::Text });
    if args.json {
        printer.show(&Report::List("keys", rows))?;
    } else {
        rows.into_iter().try_for_each(|row| printer.show(&Report::One(row)))?;
    }
    Ok(Answer::yes_if(missing == 0))
}

fn look(
    maru: &MaruHandler,
    key: Option<&str>,
    digest: KeyDigest,
    names: &HashMap<u32, String>,
) -> Result<(Row, bool), CliError> {
    let mut row = Vec::new();
    if let Some(key) = key {
        row.push(("key", Value::Text(key.to_owned())));
    }
    row.push(("digest", Value::Text(digest.to_string())));
    let entry = maru.entry(digest).map_err(explained)?;
    row.push(("there", Value::Flag(entry.is_some())));
    if let Some(entry) = entry {
        let query = PinQuery { digest: Some(digest), ..PinQuery::default() };
        let holders = maru.pins(&query).map_err(explained)?;
        let (owner, checksum) = (entry.owner.get(), entry.checksum.get());
        row.extend([
            ("region", Value::Count(entry.region_id.get().into())),
            ("page", Value::Count(entry.page_index.get().into())),
            ("offset_bytes", Value::Count(entry.offset.get())),
            ("length_bytes", Value::Bytes(entry.length.get())),
            ("generation", Value::Count(entry.generation.get().into())),
            ("checksum", if checksum == 0 { Value::Absent } else { Value::Text(format!("{checksum:08x}")) }),
            ("owner", if owner == 0 { Value::Absent } else { Value::Count(owner.into()) }),
            ("owner_name", names.get(&owner).map_or(Value::Absent, |name| Value::Text(name.clone()))),
            ("pins", Value::Count(entry.pins.get().into())),
            ("holders", Value::Rows(holders.iter().map(|pins| holder(pins, names)).collect())),
        ]);
    }
    Ok((Row(row), entry.is_some()))
}

/// Who has how many pins of which kind, and for how long.
pub(crate) fn holder(pins: &HeldPinsRecord, names: &HashMap<u32, String>) -> Row {
    let instance = pins.instance.get();
    Row(vec![
        ("instance", Value::Count(instance.into())),
        ("name", names.get(&instance).map_or(Value::Absent, |name| Value::Text(name.clone()))),
        ("guards", Value::Count(pins.guards.get().into())),
        ("by_name", Value::Count(pins.named.get().into())),
        ("held_s", Value::Seconds(pins.held_s.get())),
    ])
}
