//! One client process as the supervisor sees it.

use std::env;
use std::io::BufReader;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::protocol::{Message, Orders};
use super::site::Site;
use crate::cli::{Memory, TortureArgs};
use crate::error::BenchError;
use crate::lines::{receive, send};
use crate::mix::mix;

/// How long a client may take to end: its last audit included.
const END_LIMIT: Duration = Duration::from_secs(90);
/// How often it is looked whether it has.
const TICK: Duration = Duration::from_millis(2);

/// A client process; killed when dropped.
#[derive(Debug)]
pub(super) struct Client {
    name: String,
    child: Child,
    orders: Option<ChildStdin>,
    /// Passes on what the client says; ends with it.
    listener: Option<JoinHandle<()>>,
}

impl Client {
    /// Starts the client of this number for the `life`th time, on its host.
    ///
    /// # Errors
    /// [`BenchError`] where the system refuses.
    pub(super) fn start(
        args: &TortureArgs,
        site: &Site,
        (number, life): (u16, u64),
        orders: &Orders,
        heard: &Sender<(u16, Message)>,
    ) -> Result<Client, BenchError> {
        let own = env::current_exe().map_err(BenchError::system("find the path of maru-bench"))?;
        let name = format!("torture-{number}-{life}");
        let seed = mix(args.seed ^ mix(u64::from(number) << 32 | life));
        let mut command = Command::new(own);
        command.arg("torture-client");
        site.place(number, &mut command);
        let mut child = command
            .args(["--instance", &name])
            .args(["--number", &number.to_string()])
            .args(["--keys", &args.keys.to_string()])
            .args(["--chunk-size", &args.chunk_size.to_string()])
            .args(["--seed", &seed.to_string()])
            .args(args.has_outages().then_some("--outages"))
            .args(args.may_end_sessions().then_some("--sessions-end"))
            .args((args.memory == Memory::NotCoherent).then_some("--checksum"))
            .args(args.may_evict().then_some("--may-evict"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(BenchError::system("start a client process"))?;
        let mut says = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let heard = heard.clone();
        let listener = thread::spawn(move || {
            // A line that ends in the middle is the last of a client that was killed.
            while let Ok(Some(message)) = receive::<Message>(&mut says) {
                if heard.send((number, message)).is_err() {
                    return;
                }
            }
        });
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // One that has ended already is noticed as such.
        let _ = send(&mut stdin, orders);
        Ok(Client { name, child, orders: Some(stdin), listener: Some(listener) })
    }

    /// The name of its instance.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// How it ended, if it has. Everything that it said was heard then.
    ///
    /// # Errors
    /// [`BenchError`] where the system does not tell.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>, BenchError> {
        let status = self.child.try_wait().map_err(BenchError::system("wait for a client process"))?;
        if status.is_some() {
            self.listen_to_the_end();
        }
        Ok(status)
    }

    /// Kills it. Everything that it said was heard then.
    pub(super) fn kill(&mut self) {
        // An error means that it has ended already, which is all that is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.listen_to_the_end();
    }

    /// Lets it end by itself, and waits for it, doing something meanwhile that it may need; `None` where it does not end.
    ///
    /// # Errors
    /// Those of [`Client::ended`] and of what is done meanwhile.
    pub(super) fn finish(
        &mut self,
        mut meanwhile: impl FnMut() -> Result<(), BenchError>,
    ) -> Result<Option<ExitStatus>, BenchError> {
        self.resume()?;
        drop(self.orders.take());
        let began = Instant::now();
        while began.elapsed() < END_LIMIT {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            meanwhile()?;
            thread::sleep(TICK);
        }
        self.kill();
        Ok(None)
    }

    /// Stops it where it stands.
    ///
    /// # Errors
    /// [`BenchError`] where the system refuses.
    pub(super) fn pause(&self) -> Result<(), BenchError> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// [`BenchError`] where the system refuses.
    pub(super) fn resume(&self) -> Result<(), BenchError> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), BenchError> {
        // The process was not waited for, so the number is still its own, also where it has ended.
        kill_process(Pid::from_child(&self.child), signal)
            .map_err(BenchError::system("signal a client process"))
    }

    fn listen_to_the_end(&mut self) {
        if let Some(listener) = self.listener.take() {
            // It has nothing to panic about, and a client is the sum of what was heard of it either way.
            let _ = listener.join();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.kill();
    }
}
