//! `maru pool show`: which pool memory is, and who uses it.

use std::path::{Path, PathBuf};

use maru_proto::{PoolHeader, PoolHeaderError, PoolKind};
use maru_server::examination::{self, HeaderFacts, PoolLock, PoolPlace};

use super::printer;
use crate::cli::ShowArgs;
use crate::error::{Answer, CliError};
use crate::report::{Format, Report, Row, Value};

/// Shows each place; whether all that were named are pools.
///
/// # Errors
/// [`CliError`] where one can't be looked at.
pub(super) fn run(args: &ShowArgs) -> Result<Answer, CliError> {
    let failed = |path: PathBuf| |source| CliError::Look { path, source };
    let is_scan = args.path.is_empty();
    let paths =
        if is_scan { examination::dax_devices().map_err(failed("/dev".into()))? } else { args.path.clone() };
    let (mut rows, mut pools) = (Vec::new(), 0);
    for path in &paths {
        let place = examination::pool(path).map_err(failed(path.clone()))?;
        let shown = Shown::of(path, &place);
        pools += usize::from(shown.is_pool());
        rows.push(shown.row());
    }
    let mut printer = printer(args.json);
    if printer.format() == Format::Json {
        printer.show(&Report::List("pools", rows))?;
    } else if rows.is_empty() {
        printer.say("no /dev/dax* here; name a device or a folder")?;
    } else {
        rows.into_iter().try_for_each(|row| printer.show(&Report::One(row)))?;
    }
    // Devices of a host that are no pools are nothing out of order.
    Ok(Answer::yes_if(is_scan || pools == paths.len()))
}

/// One place, of whatever kind.
struct Shown<'a> {
    path: &'a Path,
    kind: PoolKind,
    header: Option<HeaderFacts>,
    lock: PoolLock,
    place: &'a PoolPlace,
}

impl Shown<'_> {
    fn of<'a>(path: &'a Path, place: &'a PoolPlace) -> Shown<'a> {
        let (kind, header, lock) = match place {
            PoolPlace::Device(device) => (PoolKind::DevDax, device.header, device.lock),
            PoolPlace::Folder(folder) => (folder.kind, folder.header, folder.lock),
        };
        Shown { path, kind, header, lock, place }
    }

    fn is_pool(&self) -> bool {
        self.header.is_some_and(|facts| facts.header.is_ok())
    }

    fn row(&self) -> Row {
        let header = self.header.and_then(|facts| facts.header.ok());
        let slot = |slot: usize| {
            self.header.map_or(Value::Absent, |facts| Value::Text(slot_text(facts.slots[slot])))
        };
        let (size, alignment) = match self.place {
            PoolPlace::Device(device) => {
                (Value::Bytes(device.size), device.alignment.map_or(Value::Absent, Value::Bytes))
            }
            PoolPlace::Folder(_) => (Value::Absent, Value::Absent),
        };
        let (free, regions) = match self.place {
            PoolPlace::Device(_) => (Value::Absent, Value::Absent),
            PoolPlace::Folder(folder) => (Value::Bytes(folder.free), Value::Bytes(folder.region_bytes)),
        };
        Row(vec![
            ("path", Value::Text(self.path.display().to_string())),
            ("kind", Value::Text(self.kind.name().to_owned())),
            ("uuid", header.map_or(Value::Absent, |header| Value::Text(header.uuid().to_string()))),
            ("incarnation", header.map_or(Value::Absent, |header| Value::Count(header.incarnation()))),
            ("in_use", self.in_use()),
            ("size_bytes", size),
            ("alignment_bytes", alignment),
            ("free_bytes", free),
            ("regions_bytes", regions),
            ("slot_0", slot(0)),
            ("slot_1", slot(1)),
            ("to_do", self.to_do().map_or(Value::Absent, Value::Text)),
        ])
    }

    /// Whether a server of this host uses it.
    fn in_use(&self) -> Value {
        match self.lock {
            PoolLock::Held => Value::Flag(true),
            PoolLock::Unused | PoolLock::Left => Value::Flag(false),
            PoolLock::Unknown => Value::Absent,
        }
    }

    /// What it takes to make it a pool, where it is none.
    fn to_do(&self) -> Option<String> {
        let path = self.path.display();
        let Some(facts) = self.header else { return Some("run this as the server's user".to_owned()) };
        match (facts.header.err()?, self.place) {
            (PoolHeaderError::Missing, PoolPlace::Device(device)) if device.size < device.least_size => {
                let least = Value::Bytes(device.least_size).text();
                Some(format!("choose a larger device: it takes at least {least}"))
            }
            (PoolHeaderError::Missing, PoolPlace::Device(_)) => {
                Some(format!("if nothing on it is needed: maru pool init {path}"))
            }
            (PoolHeaderError::Missing, PoolPlace::Folder(_)) => {
                Some("nothing: the server makes a pool of a folder by itself".to_owned())
            }
            (PoolHeaderError::Version(_), _) => {
                Some(format!("run that version; if nothing in it is needed: maru pool wipe {path}"))
            }
            (PoolHeaderError::Damaged, _) => {
                Some(format!("nothing in it can be found any more: maru pool wipe {path}"))
            }
        }
    }
}

fn slot_text(slot: Result<PoolHeader, PoolHeaderError>) -> String {
    match slot {
        Ok(header) => format!("incarnation {}", header.incarnation()),
        Err(PoolHeaderError::Missing) => "empty".to_owned(),
        Err(PoolHeaderError::Damaged) => "damaged".to_owned(),
        Err(PoolHeaderError::Version(version)) => format!("of another version, format {version}"),
    }
}
