//! Real servers and processes for tests: dev-only, no crate of the binary depends on it.
//!
//! - [`PgCluster`]: a private PostgreSQL of any installed version, logical replication on
//! - [`Alluvium`]: the program as a child process: run, stop, `kill -9`, output kept in files
//! - [`check`]: the independent comparer (PostgreSQL against the lake, through DuckDB and delta-rs)
//! - [`history`]: random histories of a small table, with a model of what they leave
//! - [`workload`]: the seeded random workload
//! - [`sql`]: schemas used by several tests: every type, the Shop database
//!
//! Invariant: whatever is started here is gone when its value is dropped, and also when the test's
//! process is killed.

pub mod check;
pub mod history;
mod pg;
mod process;
pub mod sql;
mod tools;
pub mod workload;

pub use pg::{PgBuilder, PgCluster};
pub use process::{Alluvium, Finished};
