//! Every screen from a model that no server was needed for.

use std::time::{Duration, Instant};

use maru_client::ClientOperation;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::model::{Model, Order, View};
use super::sample::{Calls, Figures, Instance, Latency, Pool, Sample};
use super::view;

fn instance(number: u32, name: &str, allocated: u64, pins: u64) -> Instance {
    Instance {
        number,
        name: name.to_owned(),
        connections: 2,
        regions: 1,
        allocated,
        used: allocated / 2,
        entries: 7,
        pins,
        oldest_pin: (pins > 0).then_some(Duration::from_secs(3661)),
        grace_left: None,
        calls: Vec::new(),
    }
}

fn sample(at: Instant, frames: u64) -> Sample {
    let figures = Figures {
        epoch: 3,
        uptime: Duration::from_millis(90_500),
        connections: 4,
        entries: 1234,
        stored_bytes: 3 << 30,
        pins: 5,
        hits: frames,
        misses: frames / 3,
        frames,
        ..Figures::default()
    };
    Sample {
        at,
        release: Some("9.8.7".to_owned()),
        address: "/run/maru/maru.sock".to_owned(),
        figures,
        frames: vec![("REGISTER_KV", 10), ("LOOKUP_KV", frames)],
        latencies: Vec::new(),
        instances: vec![instance(1, "engine-a", 1 << 20, 5), instance(2, "engine-b", 1 << 30, 0)],
        pools: vec![Pool { path: "/dev/shm/maru-0".to_owned(), size: 4 << 30, free: 1 << 30 }],
    }
}

/// After two looks, a second apart, in which there were 3000 look-ups.
fn model() -> Model {
    let begin = Instant::now();
    let mut model = Model::new(sample(begin, 6000), Duration::from_secs(1));
    model.update(sample(begin + Duration::from_secs(1), 9000));
    model
}

fn press(model: &mut Model, code: KeyCode) {
    model.press(KeyEvent::new(code, KeyModifiers::NONE));
}

/// The screen as text.
fn screen(model: &Model, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(frame, model)).unwrap();
    terminal.backend().to_string()
}

fn line<'a>(screen: &'a str, part: &str) -> &'a str {
    screen.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("no {part:?} in\n{screen}"))
}

/// The cells of the line of a table that begins so.
fn cells<'a>(screen: &'a str, name: &str) -> Vec<&'a str> {
    let is_between = |c: char| c.is_whitespace() || "│\"".contains(c);
    line(screen, name).split(is_between).filter(|cell| !cell.is_empty()).collect()
}

#[test]
fn the_overview_has_a_little_of_everything() {
    let screen = screen(&model(), 120, 24);
    assert!(
        line(&screen, "maru top").contains("/run/maru/maru.sock  release 9.8.7  run 3  up 1m 30s"),
        "{screen}"
    );
    assert!(
        line(&screen, "entries 1234").contains("(3.0 GiB)  pinned 0  pins 5  orphans 0  hits 75.0 %"),
        "{screen}"
    );
    assert!(line(&screen, "instances 2").contains("connections 4"), "{screen}");
    assert!(line(&screen, "/dev/shm/maru-0").contains("3.0 GiB of 4.0 GiB in regions"), "{screen}");
    assert!(screen.contains("frames/s 3000, at most 3000") && screen.contains("evictions/s 0"), "{screen}");
    assert!(screen.contains("LOOKUP_KV") && screen.contains("engine-a"), "{screen}");
    assert!(screen.contains("1 overview") && screen.contains("q quit"), "{screen}");
}

#[test]
fn operations_have_rates_and_a_dash_for_what_no_server_tells() {
    let mut model = model();
    press(&mut model, KeyCode::Char('2'));
    let before = screen(&model, 100, 20);
    let lookup = cells(&before, "LOOKUP_KV");
    assert_eq!(lookup, ["LOOKUP_KV", "3000", "9000", "-", "-", "-"], "{before}");
    assert!(before.find("LOOKUP_KV") < before.find("REGISTER_KV"), "what is asked for most is first");

    let [p50, p99, p999] = [3, 950, 27_000].map(Duration::from_micros);
    model.sample.latencies = vec![Latency { operation: "LOOKUP_KV", p50, p99, p999 }];
    let told = screen(&model, 100, 20);
    let lookup = cells(&told, "LOOKUP_KV");
    assert_eq!(lookup[3..], ["3.0us", "950us", "27ms"], "{told}");
}

#[test]
fn instances_come_in_the_order_that_was_chosen() {
    let mut model = model();
    press(&mut model, KeyCode::Char('3'));
    let is_first = |model: &Model, name: &str, other: &str| {
        let screen = screen(model, 120, 20);
        screen.find(name) < screen.find(other)
    };
    assert!(is_first(&model, "engine-b", "engine-a"), "by memory");
    press(&mut model, KeyCode::Char('o'));
    assert!(model.order == Order::Pins && is_first(&model, "engine-a", "engine-b"));
    press(&mut model, KeyCode::Char('o'));
    assert!(model.order == Order::Number && is_first(&model, "engine-a", "engine-b"));
    let screen = screen(&model, 120, 20);
    assert!(
        line(&screen, "engine-a").contains("1h 1m") && line(&screen, "engine-a").contains("512.0 KiB"),
        "{screen}"
    );
}

#[test]
fn instances_that_report_show_how_long_their_calls_take_and_others_a_dash() {
    let mut model = model();
    let calls = |operation, p50, p99| Calls {
        operation,
        p50: Duration::from_nanos(p50),
        p99: Duration::from_nanos(p99),
    };
    model.sample.instances[0].calls =
        vec![calls(None, 640, 27_000), calls(Some(ClientOperation::Alloc), 96, 120)];
    for view in ['1', '3'] {
        press(&mut model, KeyCode::Char(view));
        let screen = screen(&model, 120, 24);
        assert!(screen.contains("latency of their calls"), "{screen}");
        assert!(line(&screen, "engine-a").contains("640ns  27us"), "{screen}");
        assert!(line(&screen, "engine-b").contains("    -     -"), "{screen}");
    }
    press(&mut model, KeyCode::Char('c'));
    let alloc = screen(&model, 120, 24);
    assert!(
        alloc.contains("latency of their alloc") && line(&alloc, "engine-a").contains(" 96ns 120ns"),
        "{alloc}"
    );
    press(&mut model, KeyCode::Char('c'));
    assert!(
        line(&screen(&model, 120, 24), "engine-a").contains("    -     -"),
        "none of its calls was a store"
    );
    for _ in 2..=ClientOperation::ALL.len() {
        press(&mut model, KeyCode::Char('c'));
    }
    assert_eq!(model.calls, None, "after the last operation come all");
}

#[test]
fn an_instance_without_connections_says_what_is_left_of_its_grace() {
    let mut model = model();
    press(&mut model, KeyCode::Char('3'));
    model.sample.instances[0].grace_left = Some(Duration::from_millis(7900));
    assert!(line(&screen(&model, 120, 20), "engine-a").contains("gone, 7s"));
}

#[test]
fn keys_switch_views_pause_and_quit() {
    let mut model = model();
    for expected in [View::Operations, View::Instances, View::Overview] {
        press(&mut model, KeyCode::Tab);
        assert_eq!(model.view, expected);
    }
    press(&mut model, KeyCode::Char('p'));
    assert!(model.is_paused && line(&screen(&model, 120, 20), "maru top").contains("paused"));
    press(&mut model, KeyCode::Char(' '));
    press(&mut model, KeyCode::Char('x'));
    assert!(!model.is_paused && !model.is_done);
    press(&mut model, KeyCode::Char('q'));
    assert!(model.is_done);
    let mut other = self::model();
    other.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
    assert!(other.is_done);
}

#[test]
fn trouble_is_said_until_the_server_is_back_and_counts_anew() {
    let mut model = model();
    model.fail("the connection to the server is lost".to_owned());
    assert!(line(&screen(&model, 120, 20), "maru top").contains("is lost"));
    let mut restarted = sample(model.sample.at + Duration::from_secs(2), 100);
    restarted.figures.epoch = 4;
    model.update(restarted);
    assert_eq!(model.frame_rates.back(), Some(&50), "100 frames in two seconds");
    assert!(!screen(&model, 120, 20).contains("is lost"));
}

#[test]
fn no_screen_is_too_small() {
    let mut model = model();
    for view in View::ALL {
        model.view = view;
        for (width, height) in [(1, 1), (10, 3), (40, 8), (300, 80)] {
            screen(&model, width, height);
        }
    }
}
