//! A pseudo terminal with a program in it.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use maru_tests::{PATIENCE, wait_until};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

const ROWS: NonZero<u16> = NonZero::new(30).unwrap();
const COLUMNS: NonZero<u16> = NonZero::new(120).unwrap();

/// A program in a terminal of its own.
pub struct InTerminal {
    child: Child,
    keyboard: File,
    /// Held so that the terminal can be looked at when the program has ended.
    device: OwnedFd,
    shown: Receiver<Vec<u8>>,
    screen: vt100::Parser,
}

impl InTerminal {
    pub fn start(mut command: Command) -> InTerminal {
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
    pub fn wait_for(&mut self, parts: &[&str]) -> String {
        self.wait_to_see(&format!("all of {parts:?}"), |screen| {
            parts.iter().all(|part| screen.contains(part))
        })
    }

    /// Waits until the screen is as wanted.
    pub fn wait_to_see(&mut self, what: &str, is_wanted: impl Fn(&str) -> bool) -> String {
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

    pub fn press(&mut self, key: &str) {
        self.keyboard.write_all(key.as_bytes()).unwrap();
    }

    /// Whether the terminal shows what is typed, as before.
    pub fn echoes(&self) -> bool {
        tcgetattr(&self.device).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    /// Waits until the program ended; whether with success.
    pub fn ends_well(&mut self) -> bool {
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
