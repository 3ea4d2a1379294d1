//! What is asked of a metadata server: which operations, of which keys, as frames of the wire.

pub(crate) mod distribution;
pub(crate) mod figures;
pub(crate) mod keys;
pub(crate) mod maru;
pub(crate) mod mix;
pub(crate) mod stock;
pub(crate) mod wire_client;
