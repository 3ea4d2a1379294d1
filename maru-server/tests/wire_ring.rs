//! The wire through the ring driver.

mod common;

#[path = "cases/hostile.rs"]
mod hostile;
#[path = "cases/operator.rs"]
mod operator;
#[path = "cases/wire.rs"]
mod wire;

const DRIVER: &str = "ring";
