//! The real `maru top` in a pseudo terminal, on a real server.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use common::{command, maru_at};
use maru_tests::{ClientConfig, ClientProcess, Command, PATIENCE, ServerProcess, wait_until};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

const ROWS: NonZero<u16> = NonZero::new(30).unwrap();
const COLUMNS: NonZero<u16> = NonZero::new(120).unwrap();

/// A program in a terminal of its own.
struct InTerminal {
    child: Child,
    keyboard: File,
    /// Held so that the terminal can be looked at when the program has ended.
    device: OwnedFd,
    shown: Receiver<Vec<u8>>,
    screen: vt100::Parser,
}

impl InTerminal {
    fn start(mut command: std::process::Command) -> InTerminal {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        tcsetwinsize(
            &keyboard,
            Winsize { ws_row: ROWS.get(), ws_col: COLUMNS.get(), ws_xpixel: 0, ws_ypixel: 0 },
        )
        .unwrap();
        let path = ptsname(&keyboard, Vec::new()).unwrap();
        let device = File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap();
        let end = || Stdio::from(device.try_clone().unwrap());
        let child =
            command.env("TERM", "xterm-256color").stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let keyboard = File::from(keyboard);
        let mut output = keyboard.try_clone().unwrap();
        let (sender, shown) = channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count) = output.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let screen = vt100::Parser::new(ROWS, COLUMNS, 0);
        InTerminal { child, keyboard, device: device.into(), shown, screen }
    }

    /// Waits until all these are on the screen at once.
    fn wait_for(&mut self, parts: &[&str]) -> String {
        self.wait_to_see(&format!("all of {parts:?}"), |screen| {
            parts.iter().all(|part| screen.contains(part))
        })
    }

    /// Waits until the screen is as wanted.
    fn wait_to_see(&mut self, what: &str, is_wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let contents = self.screen.screen().contents();
            if is_wanted(&contents) {
                return contents;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.shown.recv_timeout(left) {
                Ok(bytes) => self.screen.process(&bytes),
                Err(_) => panic!("not {what} in\n{contents}"),
            }
        }
    }

    fn press(&mut self, key: &str) {
        self.keyboard.write_all(key.as_bytes()).unwrap();
    }

    /// Whether the terminal shows what is typed, as before.
    fn echoes(&self) -> bool {
        tcgetattr(&self.device).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    /// Waits until the program ended; whether with success.
    fn ends_well(&mut self) -> bool {
        let mut status = None;
        wait_until("it ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.is_some_and(|status| status.success())
    }
}

impl Drop for InTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

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
