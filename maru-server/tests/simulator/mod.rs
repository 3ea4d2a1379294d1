//! A seeded simulation of the server and its clients: the real service and state, a clock that only the simulation moves,
//! connections that are queues of bytes, and faults between any two frames.

mod client;
mod comparison;
mod connection;
mod conversation;
mod ending;
mod faults;
mod memory;
mod operations;
mod random;
mod request;
mod server;
mod trace;
mod world;

pub(crate) use trace::Trace;
pub(crate) use world::World;
