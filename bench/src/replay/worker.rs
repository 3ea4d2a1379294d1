//! One client process: acquires, verifies and stores what the parent names.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use maru_client::{Address, Config, Error, MaruHandler, PageMut, Prefix, Stored};

use super::protocol::Outcome;
use crate::cli::{WorkerArgs, coverage};
use crate::content::{Content, Coverage};
use crate::error::BenchError;
use crate::worker_process::{Answer, serve};
use crate::workload::count;

/// Serves the parent until it wants no more.
pub(crate) fn run(args: &WorkerArgs) -> ExitCode {
    serve(|parent| {
        let mut worker = Worker::connect(args)?;
        parent.tell::<Outcome>(&Answer::Ready)?;
        while let Some(chunks) = parent.hear::<Vec<u64>>()? {
            parent.tell(&Answer::Done(worker.replay(&chunks)?))?;
        }
        worker.handler.close();
        Ok(())
    })
}

struct Worker {
    handler: MaruHandler,
    coverage: Coverage,
    /// One chunk, made up outside of the pool, as the memory of an engine would hold it.
    source: Vec<u8>,
    /// Requests to the server that the parent knows of.
    rpcs_told: u64,
}

impl Worker {
    fn connect(args: &WorkerArgs) -> Result<Worker, BenchError> {
        let config = Config::new()
            .address(Address::Unix(args.socket.clone()))
            .instance_id(&args.instance)
            .page_size(args.chunk_size)
            .region_size(args.region_size)
            .auto_expand(true);
        Ok(Worker {
            handler: MaruHandler::connect(config)?,
            coverage: coverage(args.sparse),
            source: vec![0; args.chunk_size],
            rpcs_told: 0,
        })
    }

    /// One request: reads what is known of it and stores the rest, while the guards of the first part are held.
    fn replay(&mut self, chunks: &[u64]) -> Result<Outcome, BenchError> {
        let mut outcome = Outcome::default();
        let keys = chunks.iter().copied().map(key).collect::<Vec<_>>();
        let began = Instant::now();
        let prefix = self.handler.acquire(&keys)?;
        outcome.acquire_ns = nanoseconds(began.elapsed());

        outcome.prefix_hit_chunks = count(prefix.len());
        self.verify(chunks, &prefix, &mut outcome);
        self.store(&chunks[prefix.len()..], &mut outcome)?;
        drop(prefix);

        let rpcs = self.handler.client_stats().rpcs;
        outcome.rpcs = rpcs - self.rpcs_told;
        self.rpcs_told = rpcs;
        Ok(outcome)
    }

    fn verify(&self, chunks: &[u64], prefix: &Prefix, outcome: &mut Outcome) {
        for (&chunk, bytes) in chunks.iter().zip(prefix.iter()) {
            outcome.bytes_read += count(bytes.len());
            if bytes.len() != self.source.len() {
                outcome.wrong_bytes += count(bytes.len().max(self.source.len()));
                continue;
            }
            let content = Content::of(chunk);
            for range in content.ranges(self.coverage, bytes.len()) {
                outcome.wrong_bytes += content.wrong_bytes(range.start, &bytes[range]);
            }
        }
    }

    /// Stores the chunks for which there is room, together: once the pool is full, the rest of them is not tried.
    fn store(&mut self, chunks: &[u64], outcome: &mut Outcome) -> Result<(), BenchError> {
        let mut keys = Vec::with_capacity(chunks.len());
        let mut pages = Vec::with_capacity(chunks.len());
        let mut written = Vec::with_capacity(chunks.len());
        for &chunk in chunks {
            let Some((page, took)) = self.write(chunk)? else {
                break;
            };
            keys.push(key(chunk));
            pages.push(page);
            written.push(took);
        }
        outcome.chunks_not_stored += count(chunks.len() - keys.len());
        if keys.is_empty() {
            return Ok(());
        }

        let began = Instant::now();
        let results = self.handler.batch_store(&keys, pages)?;
        // All chunks of the batch wait for the one request, which each has its share of.
        let share = nanoseconds(began.elapsed()) / count(keys.len());
        for ((&chunk, result), took) in chunks.iter().zip(results).zip(written) {
            match result {
                Ok(Stored::Stored) => {
                    outcome.bytes_stored += count(self.source.len());
                    outcome.store_ns.push(took + share);
                }
                Ok(Stored::AlreadyExists) => {}
                Err(status) => return Err(BenchError::Refused { chunk, status }),
            }
        }
        Ok(())
    }

    /// A page with the content of a chunk, and how long it took to get and to write it; `None` if the pool is full.
    fn write(&mut self, chunk: u64) -> Result<Option<(PageMut, u64)>, BenchError> {
        let content = Content::of(chunk);
        if self.coverage == Coverage::Whole {
            content.fill(0, &mut self.source);
        }
        let began = Instant::now();
        let mut page = match self.handler.alloc(self.source.len()) {
            Ok(page) => page,
            Err(Error::PoolExhausted) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match self.coverage {
            Coverage::Whole => page.copy_from_slice(&self.source),
            Coverage::Sparse => {
                for range in content.ranges(self.coverage, page.len()) {
                    content.fill(range.start, &mut page[range]);
                }
            }
        }
        Ok(Some((page, nanoseconds(began.elapsed()))))
    }
}

/// The key that a chunk is stored under.
fn key(chunk: u64) -> [u8; 8] {
    chunk.to_le_bytes()
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
