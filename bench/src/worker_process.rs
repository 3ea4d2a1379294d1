//! Client processes of the bench's own: started, spoken to, watched, and never left behind.
//!
//! A worker says [`Answer::Ready`], then answers what the parent asks. When its stdin ends it ends too, and it dies with
//! its parent.

use std::env;
use std::fmt::Debug;
use std::io::{self, BufReader, StdinLock, StdoutLock};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::interrupt;
use crate::lines::{receive, send};

/// How often somebody who waits for a worker looks whether Ctrl-C was pressed.
const TICK: Duration = Duration::from_millis(100);

/// A line of a worker.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(crate) enum Answer<T> {
    /// It is connected.
    Ready,
    /// What was asked for.
    Done(T),
    /// It can't go on, and why.
    Failed(String),
}

/// Where a worker hears its parent and answers it.
pub(crate) struct Parent {
    requests: StdinLock<'static>,
    answers: StdoutLock<'static>,
}

impl Parent {
    /// The next request; `None` where the parent wants no more.
    ///
    /// # Errors
    /// [`BenchError`] where the parent is gone.
    pub(crate) fn hear<T: DeserializeOwned>(&mut self) -> Result<Option<T>, BenchError> {
        receive(&mut self.requests).map_err(BenchError::system("talk to the parent process"))
    }

    /// Answers.
    ///
    /// # Errors
    /// [`BenchError`] where the parent is gone.
    pub(crate) fn tell<T: Serialize>(&mut self, answer: &Answer<T>) -> Result<(), BenchError> {
        send(&mut self.answers, answer).map_err(BenchError::system("talk to the parent process"))
    }
}

/// The life of a worker. Failures go to the parent, which shows them.
pub(crate) fn serve(work: impl FnOnce(&mut Parent) -> Result<(), BenchError>) -> ExitCode {
    let mut parent = Parent { requests: io::stdin().lock(), answers: io::stdout().lock() };
    // A parent that was gone before is noticed by the first line that does not come.
    let outcome = set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(BenchError::system("ask to end with the parent process"))
        .and_then(|()| work(&mut parent));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a parent there is nobody left to tell.
            let _ = parent.tell::<()>(&Answer::Failed(error.to_string()));
            ExitCode::FAILURE
        }
    }
}

/// One worker as its parent sees it; killed when dropped.
pub(crate) struct WorkerProcess {
    number: usize,
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl WorkerProcess {
    /// Starts this program again, with the arguments that `complete` adds.
    ///
    /// # Errors
    /// [`BenchError`] where the system refuses.
    pub(crate) fn start(
        number: usize,
        complete: impl FnOnce(&mut Command),
    ) -> Result<WorkerProcess, BenchError> {
        let own = env::current_exe().map_err(BenchError::system("find the path of maru-bench"))?;
        let mut command = Command::new(own);
        complete(&mut command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(BenchError::system("start a client process"))?;
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Ok(WorkerProcess { number, child, requests, answers })
    }

    /// Waits until it is connected.
    ///
    /// # Errors
    /// [`BenchError`] where it fails.
    pub(crate) fn wait_until_ready(&mut self) -> Result<(), BenchError> {
        match self.answer::<IgnoredAny>()? {
            Answer::Ready => Ok(()),
            other => Err(self.confused(&other)),
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// [`BenchError`], with its own words where it has failed.
    pub(crate) fn tell<T: Serialize + ?Sized>(&mut self, request: &T) -> Result<(), BenchError> {
        let requests = self.requests.as_mut().expect("it is taken only by finish");
        if send(requests, request).is_ok() {
            return Ok(());
        }
        // The pipe breaks when the worker ends; its last line, if there is one, says why.
        Err(self.answer::<IgnoredAny>().map_or_else(|error| error, |answer| self.confused(&answer)))
    }

    /// What it has to say next.
    ///
    /// # Errors
    /// [`BenchError`] where it fails or has ended, and where somebody presses Ctrl-C.
    pub(crate) fn done<T: DeserializeOwned + Debug>(&mut self) -> Result<T, BenchError> {
        match self.answer()? {
            Answer::Done(done) => Ok(done),
            other => Err(self.confused(&other)),
        }
    }

    /// Lets it clean up and end.
    ///
    /// # Errors
    /// [`BenchError`] where it fails.
    pub(crate) fn finish(mut self) -> Result<(), BenchError> {
        drop(self.requests.take());
        if let Some(answer) = self.receive::<IgnoredAny>()? {
            return Err(self.confused(&answer));
        }
        let status = self.child.wait().map_err(BenchError::system("wait for a client process"))?;
        if status.success() { Ok(()) } else { Err(BenchError::WorkerEnded { worker: self.number, status }) }
    }

    /// The next line, which it owes.
    fn answer<T: DeserializeOwned>(&mut self) -> Result<Answer<T>, BenchError> {
        if let Some(answer) = self.receive()? {
            return Ok(answer);
        }
        let status = self.child.wait().map_err(BenchError::system("wait for a client process"))?;
        Err(BenchError::WorkerEnded { worker: self.number, status })
    }

    /// The next line; `None` where it has ended.
    fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<Answer<T>>, BenchError> {
        let failed =
            |error: io::Error| BenchError::system(format!("read from client process {}", self.number))(error);
        let interrupted = interrupt::flag()?;
        let tick = Timespec::try_from(TICK).expect("a tick is short");
        while self.answers.buffer().is_empty() {
            match poll(&mut [PollFd::new(self.answers.get_ref(), PollFlags::IN)], Some(&tick)) {
                _ if interrupted.load(Ordering::Relaxed) => return Err(BenchError::Interrupted),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => break,
                Err(error) => return Err(failed(error.into())),
            }
        }
        receive(&mut self.answers).map_err(failed)
    }

    /// What an answer means that was not expected here: a failure, if it is none already.
    fn confused<T: Debug>(&self, answer: &Answer<T>) -> BenchError {
        let message = match answer {
            Answer::Failed(message) => message.clone(),
            other => format!("it answered out of turn: {other:?}"),
        };
        BenchError::Worker { worker: self.number, message }
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        // An error means that it has ended already, which is all that is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
