//! A request on entries: who asks, when, and how far along its keys it is.

use std::time::Duration;

use super::InstanceNumber;
use super::eviction::Chain;

/// One request for keys that continue each other.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub(super) caller: InstanceNumber,
    pub(super) now: Duration,
    pub(super) chain: Chain,
}

impl Request {
    /// A request for so many keys, before its first.
    pub fn new(caller: InstanceNumber, now: Duration, keys: usize) -> Request {
        Request { caller, now, chain: Chain::of(keys) }
    }
}
