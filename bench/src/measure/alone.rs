//! One connection driven by a thread of its own, in as few system calls as it takes: one to send, one to receive.

use std::time::Instant;

use super::channel::{Wait, lost};
use super::connection::{Connection, Until};
use super::recorder::Recorder;
use super::run::{Orders, Protocol};
use crate::error::BenchError;

/// Drives the connection until it is told to stop or has made its requests.
pub(super) fn drive<P: Protocol>(
    mut connection: Connection<P>,
    orders: &Orders,
    recorder: &Recorder,
) -> Result<(), BenchError> {
    loop {
        let stop = orders.stop() || connection.is_spent();
        if connection.is_idle() && stop {
            recorder.record(|sample| connection.leave(sample));
            return connection.protocol.finish(&mut connection.channel);
        }
        if connection.is_idle() && connection.protocol.is_short() {
            let began = Instant::now();
            connection.protocol.restock(&mut connection.channel)?;
            recorder.record(|sample| sample.paused += began.elapsed());
        }
        let now = Instant::now();
        if !stop {
            connection.request(now, orders.counting());
        }
        let wait = match connection.wait(now, stop) {
            Until::Answer => Wait::Answer,
            Until::Due(left) if left.is_zero() => Wait::No,
            Until::Due(left) => Wait::UpTo(left),
        };
        connection.channel.exchange(wait).map_err(lost(P::PEER))?;
        if !connection.channel.input().is_empty() {
            let now = Instant::now();
            recorder.record(|sample| connection.take_answers(now, sample))?;
        }
    }
}
