//! The metadata server of maru, as a library.

pub mod state;
