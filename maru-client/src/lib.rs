//! The client of maru.
