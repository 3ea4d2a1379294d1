//! The real `maru top` in a pseudo terminal, on a real server.

mod common;

use common::terminal::InTerminal;
use common::{command, maru_at};
use maru_tests::{ClientConfig, ClientProcess, Command, ServerProcess};

#[test]
fn top_shows_a_server_at_work_and_gives_the_terminal_back() {
    let mut server = ServerProcess::start(&[]);
    let reporting = ClientConfig { report_stats: true, ..ClientConfig::new(&server.socket(), "engine-0") };
    let mut engine = ClientProcess::connect_with(reporting);
    let keys = (0..50).map(|n| format!("chunk-{n}")).collect::<Vec<_>>();
    engine.each(Command::BatchStore(keys.clone(), 4096));
    engine.each(Command::Pin(keys[..7].to_vec()));

    let mut top = InTerminal::start(command(&server.socket(), &["top", "--interval", "100ms"]));
    top.wait_for(&[
        "maru top",
        "entries 50",
        "pins 7",
        "engine-0",
        "BATCH_REGISTER_KV",
        "2.0 MiB of 16.0 MiB in regions",
    ]);
    assert!(!top.echoes(), "keys are taken as they come");
    engine.count(Command::Acquire(keys));
    top.wait_for(&["pins 57", "hits", "BATCH_LOOKUP_KV"]);

    top.press("3");
    top.wait_for(&["connections", "slack", "200.0 KiB", "latency of their calls"]);
    // Once the engine has reported, its line has a time instead of a dash.
    top.wait_to_see("how long calls of engine-0 take", |screen| {
        screen.lines().any(|line| line.contains("engine-0") && (line.contains("us ") || line.contains("ns ")))
    });
    top.press("2");
    let operations = top.wait_for(&["p99.9", "BATCH_LOOKUP_KV"]);
    let looked_up = operations.lines().find(|line| line.contains("BATCH_LOOKUP_KV")).unwrap();
    assert!(
        looked_up.contains("us") && !looked_up.contains(" - "),
        "it tells how long that took: {looked_up}"
    );
    top.press("p");
    top.wait_for(&["paused"]);
    top.press("p");

    // The server goes, and comes back as another run.
    server.kill();
    top.wait_for(&["release 0.1.0  run 1", "the connection to the server is lost"]);
    server.restart(&[]);
    top.wait_for(&["run 2"]);

    top.press("q");
    assert!(top.ends_well());
    assert!(top.echoes(), "the terminal is as it was");
}

#[test]
fn top_without_a_terminal_says_what_does_without() {
    let server = ServerProcess::start(&[]);
    let said = maru_at(&server.socket(), &["top"]);
    assert_eq!(said.code, 5);
    assert!(said.stderr.contains("maru status --watch"), "{}", said.stderr);
}

#[test]
fn somebody_at_a_terminal_is_asked_before_pins_are_released() {
    let server = ServerProcess::start(&[]);
    let mut engine = ClientProcess::connect(&server, "engine-0");
    engine.each(Command::Store(vec!["a".to_owned()], 100));
    engine.each(Command::Pin(vec!["a".to_owned()]));
    for (answer, left) in [("n\r", "1"), ("y\r", "0")] {
        let mut asked = InTerminal::start(command(&server.socket(), &["pins", "--release"]));
        asked.wait_for(&["Release 1 pin by name on 1 entry? [y/N]"]);
        asked.press(answer);
        assert_eq!(asked.ends_well(), left == "0");
        let status = maru_at(&server.socket(), &["status"]);
        assert_eq!(status.line("pins"), left);
    }
}
