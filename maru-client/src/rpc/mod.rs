//! Requests and the connections that carry them.

mod blocking;
mod control;
pub mod fuzzing;
mod input;
mod output;
mod pipelined;
pub(crate) mod request;
mod slots;
mod stream;
mod tls;

use std::future::Future;
use std::time::Duration;

use maru_proto::KeyDigest;

use crate::error::Result;
use crate::page::PageLocation;
use crate::pins::PinKind;

pub(crate) use blocking::Connection;
pub(crate) use control::{Control, exchange_first, hello};
pub(crate) use pipelined::Pipelined;
pub(crate) use request::Request;
pub(crate) use stream::{Stream, connect_unix};

/// A way to have a request answered. The blocking connection answers at the first poll, so one piece of code serves
/// callers that block and callers that await.
pub(crate) trait Transport: Sync {
    /// Sends a request and waits for its answer.
    fn call<R: Request + Sync>(&self, request: &R) -> impl Future<Output = Result<R::Response>> + Send;
}

/// Where late answers go, and where pins that guards gave up come from.
pub(crate) trait Backlog: Send + Sync {
    /// Hands over the pins to be released by the way.
    fn releases(&self, send: &mut dyn FnMut(PinKind, &[KeyDigest]));
    /// Pins that were taken for nobody.
    fn unpin(&self, kind: PinKind, digests: Vec<KeyDigest>);
    /// Pages that the server handed back.
    fn reclaim(&self, pages: Vec<PageLocation>);
    /// Pages of which nobody waits to learn whether they are stored, and no answer will tell.
    fn doubt(&self, pages: Vec<PageLocation>);
    /// The connection is of no use any more.
    fn lost(&self);
    /// Pages of which it is known now whether they are stored.
    fn settle(&self, pages: Vec<(PageLocation, bool)>);
    /// The server has answered a request that was sent [then](crate::lease::now).
    fn answered(&self, sent: Duration);
}
