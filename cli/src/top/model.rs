//! What `maru top` shows: the last samples, the rates between them, and what the user has chosen. It changes by samples and
//! keys alone, so that every screen can be had in a test.

use std::collections::VecDeque;
use std::time::Duration;

use maru_client::ClientOperation;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::sample::{Calls, Instance, Latency, Sample};

/// Rates that are kept: as many as a wide terminal has columns.
const KEPT: usize = 240;

/// What fills the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// A little of everything.
    Overview,
    /// Every operation.
    Operations,
    /// Every instance.
    Instances,
}

impl View {
    /// All views, in the order of their keys.
    pub(super) const ALL: [View; 3] = [View::Overview, View::Operations, View::Instances];

    /// What it is called.
    pub(super) fn name(self) -> &'static str {
        match self {
            View::Overview => "overview",
            View::Operations => "operations",
            View::Instances => "instances",
        }
    }

    fn next(self) -> View {
        match self {
            View::Overview => View::Operations,
            View::Operations => View::Instances,
            View::Instances => View::Overview,
        }
    }
}

/// How instances are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// By the memory that they have.
    Memory,
    /// By their pins.
    Pins,
    /// By their number, which is that of their age.
    Number,
}

impl Order {
    /// What it is called.
    pub(super) fn name(self) -> &'static str {
        match self {
            Order::Memory => "memory",
            Order::Pins => "pins",
            Order::Number => "number",
        }
    }

    fn next(self) -> Order {
        match self {
            Order::Memory => Order::Pins,
            Order::Pins => Order::Number,
            Order::Number => Order::Memory,
        }
    }
}

/// What an operation does.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Operation {
    /// Its name.
    pub(super) name: &'static str,
    /// Frames since the server's start.
    pub(super) frames: u64,
    /// Frames a second between the last two samples.
    pub(super) rate: f64,
}

/// All that is shown.
#[derive(Debug)]
pub(super) struct Model {
    /// How often the server is looked at.
    pub(super) interval: Duration,
    /// What fills the screen.
    pub(super) view: View,
    /// How instances are ordered.
    pub(super) order: Order,
    /// Of which calls instances show how long they take; `None` for all.
    pub(super) calls: Option<ClientOperation>,
    /// Whether the screen stays as it is.
    pub(super) is_paused: bool,
    /// Whether the user has seen enough.
    pub(super) is_done: bool,
    /// Why the server could not be looked at the last time.
    pub(super) trouble: Option<String>,
    /// What was seen last.
    pub(super) sample: Sample,
    /// Operations, those that are asked for most first.
    pub(super) operations: Vec<Operation>,
    /// Frames a second, the last at the back.
    pub(super) frame_rates: VecDeque<u64>,
    /// Evictions a second, likewise.
    pub(super) eviction_rates: VecDeque<u64>,
    /// The share of look-ups that hit between the last two samples; `None` where there were none.
    pub(super) hit_ratio: Option<f64>,
}

impl Model {
    /// The first screen.
    pub(super) fn new(sample: Sample, interval: Duration) -> Model {
        let operations = sample.frames.iter().map(|&(name, frames)| Operation { name, frames, rate: 0.0 });
        Model {
            interval,
            view: View::Overview,
            order: Order::Memory,
            calls: None,
            is_paused: false,
            is_done: false,
            trouble: None,
            operations: sorted(operations.collect()),
            frame_rates: VecDeque::new(),
            eviction_rates: VecDeque::new(),
            hit_ratio: None,
            sample,
        }
    }

    /// Takes in another look at the server.
    pub(super) fn update(&mut self, next: Sample) {
        self.trouble = None;
        let last = &self.sample;
        let seconds = next.at.saturating_duration_since(last.at).as_secs_f64();
        // After a restart the server counts from 0.
        let goes_on = next.figures.epoch == last.figures.epoch;
        let grown = |now: u64, before: u64| if goes_on { now.saturating_sub(before) } else { now };
        let rate = |grown: u64| if seconds > 0.0 { as_float(grown) / seconds } else { 0.0 };
        let before =
            |name| last.frames.iter().find(|(other, _)| *other == name).map_or(0, |(_, frames)| *frames);
        let operations = next.frames.iter().map(|&(name, frames)| Operation {
            name,
            frames,
            rate: rate(grown(frames, before(name))),
        });
        self.operations = sorted(operations.collect());
        push(&mut self.frame_rates, rate(grown(next.figures.frames, last.figures.frames)));
        push(&mut self.eviction_rates, rate(grown(next.figures.evictions, last.figures.evictions)));
        let hits = grown(next.figures.hits, last.figures.hits);
        let lookups = hits + grown(next.figures.misses, last.figures.misses);
        self.hit_ratio = (lookups > 0).then(|| as_float(hits) / as_float(lookups));
        self.sample = next;
    }

    /// Takes note that the server could not be looked at.
    pub(super) fn fail(&mut self, why: String) {
        self.trouble = Some(why);
    }

    /// Does what a key asks for.
    pub(super) fn press(&mut self, key: KeyEvent) {
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => self.is_done = true,
            KeyCode::Char('q') | KeyCode::Esc => self.is_done = true,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('o') => self.order = self.order.next(),
            KeyCode::Char('c') => self.calls = self.next_calls(),
            KeyCode::Tab => self.view = self.view.next(),
            KeyCode::Char(digit @ '1'..='3') => {
                let place = usize::from(u8::try_from(digit).unwrap_or(b'1') - b'1');
                self.view = View::ALL[place];
            }
            _ => {}
        }
    }

    /// All calls, then those of each operation.
    fn next_calls(&self) -> Option<ClientOperation> {
        let mut operations = ClientOperation::ALL.iter().copied();
        match self.calls {
            None => operations.next(),
            Some(shown) => operations.find(|operation| *operation > shown),
        }
    }

    /// How long the chosen calls of an instance take, where it reports that.
    pub(super) fn calls_of<'a>(&self, instance: &'a Instance) -> Option<&'a Calls> {
        instance.calls.iter().find(|calls| calls.operation == self.calls)
    }

    /// How long an operation takes, where the server tells.
    pub(super) fn latency(&self, operation: &str) -> Option<&Latency> {
        self.sample.latencies.iter().find(|latency| latency.operation == operation)
    }

    /// Instances in the chosen order, by their place in the sample.
    pub(super) fn instances(&self) -> Vec<usize> {
        let instances = &self.sample.instances;
        let mut places = (0..instances.len()).collect::<Vec<_>>();
        // The sample has them by number, and sorting keeps that among equals.
        match self.order {
            Order::Memory => places.sort_by_key(|&place| std::cmp::Reverse(instances[place].allocated)),
            Order::Pins => places.sort_by_key(|&place| std::cmp::Reverse(instances[place].pins)),
            Order::Number => {}
        }
        places
    }
}

fn sorted(mut operations: Vec<Operation>) -> Vec<Operation> {
    operations.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(b.frames.cmp(&a.frames)));
    operations
}

#[expect(clippy::cast_precision_loss, reason = "what is shown has three digits")]
fn as_float(count: u64) -> f64 {
    count as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is positive, and shown as a bar"
)]
fn push(rates: &mut VecDeque<u64>, rate: f64) {
    if rates.len() == KEPT {
        rates.pop_front();
    }
    rates.push_back(rate.round() as u64);
}
