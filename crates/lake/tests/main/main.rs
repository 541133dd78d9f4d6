//! Tables end to end: written through the public API, read back from their files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod bronze;
mod cleaning;
mod clustering;
mod compaction;
mod copy;
mod errors;
mod evolve;
mod foreign;
mod history;
mod index;
mod support;
mod types;
