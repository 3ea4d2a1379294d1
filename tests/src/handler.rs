//! Handlers in the test's own process.

use maru_client::{Config, Error, MaruHandler, StatKind, Stored};

use crate::{ServerProcess, fill};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// A handler with small pages, 256 to a region.
///
/// # Panics
/// When the server's socket has no name.
pub fn config(server: &ServerProcess) -> Config {
    let socket = server.socket();
    let address =
        socket.to_str().and_then(|socket| socket.parse().ok()).expect("a socket's path is an address");
    Config::new().address(address).page_size(PAGE).region_size(1 << 20)
}

/// A handler like that, connected.
///
/// # Panics
/// When the server can't be reached.
pub fn connect(server: &ServerProcess) -> MaruHandler {
    MaruHandler::connect(config(server)).expect("the server can be reached")
}

/// Stores a page with the bytes that belong to its key.
///
/// # Errors
/// Those of the handler.
pub fn store(handler: &MaruHandler, key: &str) -> Result<Stored, Error> {
    let mut page = handler.alloc(PAGE)?;
    fill(key, &mut page);
    handler.store(key, page)
}

/// A figure of the server.
///
/// # Panics
/// When it can't be asked.
pub fn stat(handler: &MaruHandler, kind: StatKind) -> u64 {
    handler.stats().expect("the server tells its figures").get(kind)
}
