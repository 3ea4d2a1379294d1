//! How `maru top` draws its model. Nothing but the model and the size of the screen decides what is drawn.

use std::time::Duration;

use bytesize::ByteSize;
use maru_client::ClientOperation;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Block, Cell, Gauge, Paragraph, Row, Sparkline, Table};

use super::model::{Model, View};
use super::sample::{Calls, Latency};
use crate::report::short;

const HEAD: Style = Style::new().add_modifier(Modifier::BOLD);

/// Draws the whole screen.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let pools = u16::try_from(model.sample.pools.len()).unwrap_or(u16::MAX).clamp(1, 4);
    let [title, figures, bars, body, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Length(pools),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_title(frame, title, model);
    draw_figures(frame, figures, model);
    draw_pools(frame, bars, model);
    match model.view {
        View::Overview => draw_overview(frame, body, model),
        View::Operations => draw_operations(frame, body, model),
        View::Instances => draw_instances(frame, body, model),
    }
    draw_keys(frame, keys, model);
}

fn draw_title(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let sample = &model.sample;
    let release = sample.release.as_deref().unwrap_or("-");
    let uptime = duration(Duration::from_secs(sample.figures.uptime.as_secs()));
    let mut spans = vec![
        Span::styled("maru top", HEAD),
        Span::raw(format!(
            "  {}  release {release}  run {}  up {uptime}",
            sample.address, sample.figures.epoch
        )),
    ];
    if model.is_paused {
        spans.push("  paused".yellow().bold());
    }
    if let Some(trouble) = &model.trouble {
        spans.push(format!("  {trouble}").red().bold());
    }
    frame.render_widget(Paragraph::new(Line::from(spans)), area);
}

fn draw_figures(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let figures = &model.sample.figures;
    let hit_ratio = model.hit_ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.1} %", ratio * 100.0));
    let first = format!(
        "entries {} ({})  pinned {}  pins {}  orphans {}  hits {hit_ratio}",
        figures.entries,
        bytes(figures.stored_bytes),
        figures.pinned_entries,
        figures.pins,
        figures.orphans,
    );
    let second = format!(
        "instances {}  connections {}  evictions {}  refused {}",
        model.sample.instances.len(),
        figures.connections,
        figures.evictions,
        figures.refused,
    );
    frame.render_widget(Paragraph::new(vec![Line::from(first), Line::from(second)]), area);
}

fn draw_pools(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let rows = area.rows();
    for (pool, row) in model.sample.pools.iter().zip(rows) {
        let used = pool.size.saturating_sub(pool.free);
        let ratio = if pool.size == 0 { 0.0 } else { ratio(used, pool.size) };
        let colour = if ratio > 0.95 { Color::Red } else { Color::Green };
        let label = format!("{}  {} of {} in regions", pool.path, bytes(used), bytes(pool.size));
        let gauge =
            Gauge::default().ratio(ratio.clamp(0.0, 1.0)).label(label).gauge_style(colour).use_unicode(true);
        frame.render_widget(gauge, row);
    }
}

fn draw_overview(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let [lines, tables] = Layout::vertical([Constraint::Length(5), Constraint::Min(0)]).areas(area);
    let [left, right] = Layout::horizontal([Constraint::Fill(2), Constraint::Fill(1)]).areas(lines);
    draw_rates(frame, left, "frames/s", model.frame_rates.iter().copied());
    draw_rates(frame, right, "evictions/s", model.eviction_rates.iter().copied());
    let [left, right] = Layout::horizontal([Constraint::Fill(5), Constraint::Fill(4)]).areas(tables);
    draw_operations(frame, left, model);
    draw_instances(frame, right, model);
}

fn draw_rates(
    frame: &mut Frame<'_>,
    area: Rect,
    name: &str,
    rates: impl DoubleEndedIterator<Item = u64> + Clone,
) {
    let now = rates.clone().next_back().map_or_else(|| "-".to_owned(), |rate| rate.to_string());
    // The last ones, so that the newest is at the right edge.
    let mut shown = rates.rev().take(usize::from(area.width)).collect::<Vec<_>>();
    shown.reverse();
    let highest = shown.iter().copied().max().unwrap_or(0);
    let block = Block::bordered().title(format!(" {name} {now}, at most {highest} "));
    frame.render_widget(Sparkline::default().data(shown).style(Color::Cyan).block(block), area);
}

fn draw_operations(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let rows = model.operations.iter().map(|operation| {
        let latency = model.latency(operation.name);
        let of = |tell: fn(&Latency) -> Duration| {
            latency.map_or_else(|| "-".to_owned(), |latency| short(tell(latency)))
        };
        Row::new([
            Cell::from(operation.name),
            number(format!("{:.0}", operation.rate)),
            number(operation.frames.to_string()),
            number(of(|latency| latency.p50)),
            number(of(|latency| latency.p99)),
            number(of(|latency| latency.p999)),
        ])
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(7),
    ];
    let head = head(["operation", "frames/s", "frames", "p50", "p99", "p99.9"]);
    frame.render_widget(
        Table::new(rows, widths).header(head).block(Block::bordered().title(" operations ")),
        area,
    );
}

fn draw_instances(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let instances = model.instances().into_iter().map(|place| &model.sample.instances[place]);
    let (is_broad, is_wide) = (area.width > 60, area.width > 80);
    let rows = instances.map(|instance| {
        let age = instance.oldest_pin.map_or_else(|| "-".to_owned(), duration);
        let link = match instance.grace_left {
            Some(left) => format!("gone, {}", duration(Duration::from_secs(left.as_secs()))),
            None => instance.connections.to_string(),
        };
        let mut cells = vec![
            Cell::from(printable(&instance.name)),
            number(bytes(instance.allocated)),
            number(bytes(instance.used)),
            number(instance.pins.to_string()),
        ];
        if is_broad {
            cells.push(number(age));
        }
        let calls = model.calls_of(instance);
        let took =
            |tell: fn(&Calls) -> Duration| calls.map_or_else(|| "-".to_owned(), |calls| short(tell(calls)));
        cells.extend([number(took(|calls| calls.p50)), number(took(|calls| calls.p99))]);
        if is_wide {
            let slack = instance.allocated.saturating_sub(instance.used);
            cells.extend([
                number(instance.number.to_string()),
                number(instance.regions.to_string()),
                number(instance.entries.to_string()),
                number(bytes(slack)),
                number(link),
            ]);
        }
        let row = Row::new(cells);
        if instance.grace_left.is_some() { row.style(Color::DarkGray) } else { row }
    });
    let mut names = vec!["instance", "memory", "used", "pins"];
    let mut widths = vec![Constraint::Fill(1)];
    widths.extend([9, 9, 6].map(Constraint::Length));
    if is_broad {
        names.push("oldest");
        widths.push(Constraint::Length(7));
    }
    names.extend(["p50", "p99"]);
    widths.extend([5, 5].map(Constraint::Length));
    if is_wide {
        names.extend(["number", "regions", "entries", "slack", "connections"]);
        widths.extend([6, 7, 8, 10, 11].map(Constraint::Length));
    }
    let calls = model.calls.map_or("calls", ClientOperation::name);
    let title = format!(" instances by {}, latency of their {calls} ", model.order.name());
    let head = head(names);
    frame.render_widget(Table::new(rows, widths).header(head).block(Block::bordered().title(title)), area);
}

fn draw_keys(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let mut spans = Vec::new();
    for (view, key) in View::ALL.iter().zip(1..) {
        let style = if *view == model.view { HEAD.add_modifier(Modifier::REVERSED) } else { Style::new() };
        spans.extend([Span::styled(format!(" {key} {} ", view.name()), style), Span::raw(" ")]);
    }
    let interval = humantime::format_duration(model.interval);
    spans.push(Span::raw(format!(" p pause  o order  c calls  q quit    every {interval}")));
    frame.render_widget(Paragraph::new(Line::from(spans)), area);
}

/// The names of columns; all but the first are of numbers.
fn head<'a>(names: impl IntoIterator<Item = &'a str>) -> Row<'a> {
    let cells = names.into_iter().enumerate();
    Row::new(cells.map(|(n, name)| if n == 0 { Cell::from(name) } else { number(name.to_owned()) }))
        .style(HEAD)
}

fn number(text: String) -> Cell<'static> {
    Cell::from(Text::from(text).right_aligned())
}

/// What others call themselves moves no cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn bytes(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// The larger two units of a duration.
fn duration(duration: Duration) -> String {
    let text = humantime::format_duration(duration).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[expect(clippy::cast_precision_loss, reason = "a bar has some hundred steps")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}
