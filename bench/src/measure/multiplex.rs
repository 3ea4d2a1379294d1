//! Many connections driven by one thread: what a server can answer, where a thread a connection would be what is measured.

use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;

use super::channel::{Wait, lost};
use super::recorder::{Sample, nanoseconds};
use super::run::{Outcome, Protocol, Worker};
use crate::error::BenchError;

/// Drives connections in a closed loop, one request of each in flight: first for a while that does not count, then for
/// as long as is to be measured.
pub(crate) fn run<P: Protocol>(
    mut workers: Vec<Worker<P>>,
    warm_up: Duration,
    duration: Duration,
) -> Result<Outcome, BenchError> {
    let failed = || BenchError::system("watch many connections");
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed())?;
    for (number, worker) in workers.iter().enumerate() {
        let data = epoll::EventData::new_u64(number as u64);
        epoll::add(&epoll, worker.channel.fd(), data, epoll::EventFlags::IN).map_err(failed())?;
    }
    let mut sent = vec![Instant::now(); workers.len()];
    for worker in &mut workers {
        worker.protocol.request(worker.channel.out());
        worker.channel.flush().map_err(lost(P::PEER))?;
    }
    let mut sample = Sample::new();
    let mut events = Vec::with_capacity(workers.len());
    let begin = Instant::now() + warm_up;
    let mut now = Instant::now();
    while now < begin + duration {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None).map_err(failed())?;
        for event in &events {
            let number = usize::try_from(event.data.u64()).expect("numbers of connections are usize");
            let worker = &mut workers[number];
            worker.channel.exchange(Wait::No).map_err(lost(P::PEER))?;
            while let Some(bytes) = worker.protocol.response(worker.channel.input())? {
                worker.channel.consume(bytes);
                now = Instant::now();
                if now >= begin {
                    sample.latency += nanoseconds(now - sent[number]);
                }
                sent[number] = now;
                worker.protocol.request(worker.channel.out());
                worker.channel.flush().map_err(lost(P::PEER))?;
            }
        }
        now = Instant::now();
    }
    for mut worker in workers {
        // The answer to the last request comes before anything else can be said.
        let bytes = loop {
            match worker.protocol.response(worker.channel.input())? {
                Some(bytes) => break bytes,
                None => worker.channel.exchange(Wait::Answer).map_err(lost(P::PEER))?,
            }
        };
        worker.channel.consume(bytes);
        worker.protocol.finish(&mut worker.channel)?;
    }
    Ok(Outcome::new(sample, now - begin))
}
