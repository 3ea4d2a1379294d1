//! Futures without an executor: waited for, or given up.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use maru_client::Pending;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for the answer.
pub(super) fn wait<T>(mut pending: Pending<T>) -> maru_client::Result<T> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match pending.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(answer) => return answer,
            Poll::Pending => thread::park(),
        }
    }
}

/// Lets the request be sent, and does not wait for the answer.
pub(super) fn give_up<T>(mut pending: Pending<T>) {
    let _ = Pin::as_mut(&mut pending).poll(&mut Context::from_waker(Waker::noop()));
}
