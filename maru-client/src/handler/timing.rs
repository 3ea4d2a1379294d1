//! Measuring the calls of a handler, where its configuration says so; elsewhere no clock is read.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use maru_proto::ClientOperation;

use super::{MaruHandler, Pending};
use crate::error::Result;

impl MaruHandler {
    /// Does what a caller blocks for.
    pub(super) fn timed<T>(&self, operation: ClientOperation, call: impl FnOnce() -> T) -> T {
        let Some(times) = &self.shared.call_times else { return call() };
        let began = Instant::now();
        let outcome = call();
        times.record(operation, began.elapsed());
        outcome
    }

    /// What a caller awaits. One that gives up does not count.
    pub(super) fn timed_async<T>(
        &self,
        operation: ClientOperation,
        call: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Pending<T> {
        if self.shared.call_times.is_none() {
            return Box::pin(call);
        }
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let began = Instant::now();
            let outcome = call.await;
            if let Some(times) = &shared.call_times {
                times.record(operation, began.elapsed());
            }
            outcome
        })
    }
}
