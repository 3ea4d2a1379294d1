//! The wire through the plain driver.

mod common;

#[path = "cases/hostile.rs"]
mod hostile;
#[path = "cases/operator.rs"]
mod operator;
#[path = "cases/wire.rs"]
mod wire;

const DRIVER: &str = "plain";
