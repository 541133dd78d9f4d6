//! The program as a user runs it, against real PostgreSQL servers, judged by the independent
//! comparer through DuckDB and delta-rs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod bad_input;
mod care;
mod crash;
mod crash_matrix;
mod equality;
mod feed;
mod foreign;
mod fresh;
mod http;
mod life;
mod many_tables;
mod merge_mode;
mod rebuild;
mod resync;
mod settings;
mod setup;
mod spark;
mod streamed;
mod travel;
mod tuples;
mod two_phase;
mod wire;
