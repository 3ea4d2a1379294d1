//! A report: rows of named values, shown as text for people, as JSON or as CSV, from one description.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use maru_client::Latencies;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::cli::FormatArgs;
use crate::error::CliError;

/// How a report is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One object a line.
    Json,
    /// One line of names, one line a row.
    Csv,
}

impl From<FormatArgs> for Format {
    fn from(args: FormatArgs) -> Format {
        match args {
            FormatArgs { json: true, .. } => Format::Json,
            FormatArgs { csv: true, .. } => Format::Csv,
            _ => Format::Text,
        }
    }
}

/// One value. Programs get numbers in the unit that the name ends in, people what reads well.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// Words.
    Text(String),
    /// A plain number.
    Count(u64),
    /// Bytes; the name ends in `_bytes`.
    Bytes(u64),
    /// Whole seconds; the name ends in `_s`.
    Seconds(u64),
    /// Milliseconds; the name ends in `_ms`.
    Milliseconds(u64),
    /// Nanoseconds; the name ends in `_ns`.
    Nanoseconds(u64),
    /// A share of a whole, 0 to 1.
    Ratio(f64),
    /// Yes or no.
    Flag(bool),
    /// There is no such value here.
    Absent,
    /// Rows of their own.
    Rows(Vec<Row>),
}

impl Value {
    /// The share that a part is of a whole; absent without a whole.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a share of large numbers needs no more digits than a float has"
    )]
    pub(crate) fn ratio(part: u64, whole: u64) -> Value {
        if whole == 0 { Value::Absent } else { Value::Ratio(part as f64 / whole as f64) }
    }

    /// What so many percent of the calls took at most; absent without any.
    pub(crate) fn percentile(calls: &Latencies, percent: f64) -> Value {
        let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        calls.percentile(percent).map_or(Value::Absent, |took| Value::Nanoseconds(nanoseconds(took)))
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        match self {
            // What comes from others must not move the cursor of a terminal.
            Value::Text(text) => text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect(),
            Value::Count(count) => count.to_string(),
            Value::Bytes(bytes) => ByteSize(*bytes).display().iec().to_string(),
            Value::Seconds(seconds) => humantime::format_duration(Duration::from_secs(*seconds)).to_string(),
            Value::Milliseconds(ms) => humantime::format_duration(Duration::from_millis(*ms)).to_string(),
            Value::Nanoseconds(ns) => short(Duration::from_nanos(*ns)),
            Value::Ratio(ratio) => format!("{:.1} %", ratio * 100.0),
            Value::Flag(flag) => if *flag { "yes" } else { "no" }.to_owned(),
            Value::Absent => "-".to_owned(),
            Value::Rows(rows) => rows.len().to_string(),
        }
    }

    /// For programs that read CSV.
    fn field(&self) -> String {
        match self {
            Value::Text(text) => text.clone(),
            Value::Count(n)
            | Value::Bytes(n)
            | Value::Seconds(n)
            | Value::Milliseconds(n)
            | Value::Nanoseconds(n) => n.to_string(),
            Value::Ratio(ratio) => ratio.to_string(),
            Value::Flag(flag) => flag.to_string(),
            Value::Absent => String::new(),
            Value::Rows(rows) => rows.len().to_string(),
        }
    }

    fn is_number(&self) -> bool {
        !matches!(self, Value::Text(_) | Value::Flag(_))
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Text(text) => serializer.serialize_str(text),
            Value::Count(n)
            | Value::Bytes(n)
            | Value::Seconds(n)
            | Value::Milliseconds(n)
            | Value::Nanoseconds(n) => serializer.serialize_u64(*n),
            Value::Ratio(ratio) => serializer.serialize_f64(*ratio),
            Value::Flag(flag) => serializer.serialize_bool(*flag),
            Value::Absent => serializer.serialize_none(),
            Value::Rows(rows) => serializer.collect_seq(rows),
        }
    }
}

/// Values under their names, in order. A name is that of JSON and CSV; people see it without its unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Row(pub(crate) Vec<(&'static str, Value)>);

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// What a command shows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Report {
    /// One thing.
    One(Row),
    /// A list, with its name.
    List(&'static str, Vec<Row>),
}

impl Report {
    fn rows(&self) -> &[Row] {
        match self {
            Report::One(row) => std::slice::from_ref(row),
            Report::List(_, rows) => rows,
        }
    }
}

/// A report of one moment, as JSON.
struct Timed<'a>(&'a str, &'a Report);

impl Serialize for Timed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Timed(time, report) = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("time", time)?;
        match report {
            Report::One(row) => {
                for (name, value) in &row.0 {
                    map.serialize_entry(name, value)?;
                }
            }
            Report::List(name, rows) => map.serialize_entry(name, rows)?,
        }
        map.end()
    }
}

/// Shows reports, one or several after each other, in one format.
pub(crate) struct Printer<W> {
    out: W,
    format: Format,
    /// Whether a report was shown.
    has_shown: bool,
    /// Whether CSV has named its columns.
    has_named: bool,
}

impl<W: Write> Printer<W> {
    /// One that has shown nothing.
    pub(crate) fn new(out: W, format: Format) -> Printer<W> {
        Printer { out, format, has_shown: false, has_named: false }
    }

    /// The format.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Shows a report as of now.
    ///
    /// # Errors
    /// [`CliError::Output`].
    pub(crate) fn show(&mut self, report: &Report) -> Result<(), CliError> {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        self.show_at(&now, report).and_then(|()| self.out.flush()).map_err(CliError::Output)
    }

    /// Writes a line that belongs to no report, for people alone.
    ///
    /// # Errors
    /// [`CliError::Output`].
    pub(crate) fn say(&mut self, line: &str) -> Result<(), CliError> {
        if self.format != Format::Text {
            return Ok(());
        }
        writeln!(self.out, "{line}").and_then(|()| self.out.flush()).map_err(CliError::Output)
    }

    fn show_at(&mut self, time: &str, report: &Report) -> io::Result<()> {
        let is_first = !std::mem::replace(&mut self.has_shown, true);
        match self.format {
            Format::Json => {
                serde_json::to_writer(&mut self.out, &Timed(time, report))?;
                writeln!(self.out)
            }
            Format::Csv => {
                // A list that is empty has no columns to name.
                let names = !self.has_named;
                self.has_named |= !report.rows().is_empty();
                csv(&mut self.out, time, report.rows(), names)
            }
            Format::Text => {
                if !is_first {
                    writeln!(self.out)?;
                }
                match report {
                    Report::One(row) => one(&mut self.out, row),
                    Report::List(name, rows) if rows.is_empty() => writeln!(self.out, "no {name}"),
                    Report::List(_, rows) => table(&mut self.out, rows),
                }
            }
        }
    }
}

fn csv(out: impl Write, time: &str, rows: &[Row], names: bool) -> io::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    if let Some(first) = rows.first().filter(|_| names) {
        csv.write_record(std::iter::once("time").chain(first.0.iter().map(|(name, _)| *name)))?;
    }
    for row in rows {
        csv.write_record(
            std::iter::once(time.to_owned()).chain(row.0.iter().map(|(_, value)| value.field())),
        )?;
    }
    csv.flush()
}

/// A name as people read it: without its unit.
fn title(name: &str) -> String {
    let bare = ["_bytes", "_ns", "_ms", "_s"].iter().find_map(|unit| name.strip_suffix(unit)).unwrap_or(name);
    bare.replace('_', " ")
}

/// One value a line; rows of their own below.
fn one(out: &mut impl Write, row: &Row) -> io::Result<()> {
    let width = row.0.iter().map(|(name, _)| title(name).chars().count()).max().unwrap_or(0);
    for (name, value) in &row.0 {
        writeln!(out, "{:width$}  {}", title(name), value.text())?;
        if let Value::Rows(rows) = value {
            table(out, rows)?;
        }
    }
    Ok(())
}

/// Columns of equal width, numbers to the right.
fn table(out: &mut impl Write, rows: &[Row]) -> io::Result<()> {
    let Some(first) = rows.first() else { return Ok(()) };
    let titles = first.0.iter().map(|(name, _)| title(name)).collect::<Vec<_>>();
    let cells = rows.iter().map(|row| row.0.iter().map(|(_, value)| value.text()).collect::<Vec<_>>());
    let lines = std::iter::once(titles).chain(cells).collect::<Vec<_>>();
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths = (0..first.0.len()).map(|column| width(column).unwrap_or(0)).collect::<Vec<_>>();
    // A column of numbers may have places without one.
    let is_number =
        |column: usize| rows.iter().all(|row| row.0.get(column).is_some_and(|(_, value)| value.is_number()));
    for line in &lines {
        let padded = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if is_number(column) { format!("{cell:>width$}") } else { format!("{cell:width$}") }
        });
        writeln!(out, "{}", padded.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// How long one frame or call takes, in two or three digits. What takes longer than the server can say takes more than 17 s.
pub(crate) fn short(duration: Duration) -> String {
    const UNITS: [(u128, &str); 4] = [(1, "ns"), (1_000, "us"), (1_000_000, "ms"), (1_000_000_000, "s")];
    const LONGEST: Duration = Duration::from_nanos(1 << 34);
    if duration > LONGEST {
        return "> 17s".to_owned();
    }
    let nanos = duration.as_nanos();
    let (unit, name) = *UNITS.iter().rev().find(|(unit, _)| nanos >= *unit).unwrap_or(&UNITS[0]);
    match (nanos / unit, nanos % unit * 10 / unit) {
        (whole, tenths) if whole < 10 && unit > 1 => format!("{whole}.{tenths}{name}"),
        (whole, _) => format!("{whole}{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-01-01T00:00:00Z";

    fn rows() -> Vec<Row> {
        let row = |name: &str, bytes, age| {
            Row(vec![
                ("name", Value::Text(name.to_owned())),
                ("used_bytes", Value::Bytes(bytes)),
                ("age_s", age),
            ])
        };
        vec![row("a, \"b\"", 1536, Value::Seconds(61)), row("longer name", 0, Value::Absent)]
    }

    fn shown(format: Format, reports: &[Report]) -> String {
        let mut printer = Printer::new(Vec::new(), format);
        reports.iter().for_each(|report| printer.show_at(TIME, report).unwrap());
        String::from_utf8(printer.out).unwrap()
    }

    #[test]
    fn people_see_columns_in_units_that_read_well() {
        let expected =
            "name            used    age\na, \"b\"       1.5 KiB  1m 1s\nlonger name      0 B      -\n";
        assert_eq!(shown(Format::Text, &[Report::List("things", rows())]), expected);
    }

    #[test]
    fn people_are_told_of_an_empty_list() {
        assert_eq!(shown(Format::Text, &[Report::List("pins", Vec::new())]), "no pins\n");
    }

    #[test]
    fn people_see_one_thing_a_line_at_a_time_with_its_lists() {
        let row = Row(vec![
            ("hit_ratio", Value::ratio(1, 3)),
            ("grace_left_ms", Value::Milliseconds(1500)),
            ("things", Value::Rows(vec![Row(vec![("n", Value::Count(7))])])),
        ]);
        let expected = "hit ratio   33.3 %\ngrace left  1s 500ms\nthings      1\nn\n7\n";
        assert_eq!(shown(Format::Text, &[Report::One(row)]), expected);
    }

    #[test]
    fn programs_get_numbers_in_the_unit_of_the_name() {
        let json = shown(Format::Json, &[Report::List("things", rows())]);
        let expected = r#"{"time":"2026-01-01T00:00:00Z","things":[{"name":"a, \"b\"","used_bytes":1536,"age_s":61},{"name":"longer name","used_bytes":0,"age_s":null}]}"#;
        assert_eq!(json.trim_end(), expected);
        let one = shown(Format::Json, &[Report::One(Row(vec![("ok", Value::Flag(true))]))]);
        assert_eq!(one.trim_end(), r#"{"time":"2026-01-01T00:00:00Z","ok":true}"#);
    }

    #[test]
    fn csv_names_its_columns_once() {
        let (empty, report) = (Report::List("things", Vec::new()), Report::List("things", rows()));
        let lines = shown(Format::Csv, &[empty, report.clone(), report]);
        let lines = lines.lines().collect::<Vec<_>>();
        assert_eq!(lines[0], "time,name,used_bytes,age_s");
        assert_eq!(lines[1], "2026-01-01T00:00:00Z,\"a, \"\"b\"\"\",1536,61");
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn what_others_call_themselves_moves_no_cursor() {
        assert_eq!(Value::Text("\u{1b}[2Jx".to_owned()).text(), "\u{fffd}[2Jx");
    }

    #[test]
    fn short_times_have_two_or_three_digits() {
        for (ns, expected) in [
            (0, "0ns"),
            (999, "999ns"),
            (1_000, "1.0us"),
            (9_999, "9.9us"),
            (27_000_000, "27ms"),
            (1_500_000_000, "1.5s"),
            (1 << 34, "17s"),
            (u64::MAX, "> 17s"),
        ] {
            assert_eq!(Value::Nanoseconds(ns).text(), expected);
        }
    }

    #[test]
    fn a_share_of_nothing_is_no_share() {
        assert_eq!(Value::ratio(0, 0), Value::Absent);
        assert_eq!(Value::ratio(1, 2), Value::Ratio(0.5));
    }
}
