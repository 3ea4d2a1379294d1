//! `replay`: the requests of a serving engine against a real server, by real client processes, byte by byte.
//!
//! The parent starts the server and the workers, gives each request to one worker in turn, waits for its answer, and
//! adds the answers up. Only workers touch the pool.

mod parent;
mod plan;
mod protocol;
mod report;
mod worker;

pub(crate) use parent::run;
pub(crate) use worker::run as work;
