//! Requests and the connections that carry them.

mod blocking;
mod control;
pub(crate) mod request;
mod slots;
mod stream;

pub(crate) use blocking::{Backlog, Connection};
pub(crate) use control::{Control, hello};
pub(crate) use stream::Stream;
