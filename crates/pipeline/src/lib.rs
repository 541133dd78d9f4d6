//! Wiring: from the project file to a running pipeline. No data logic.
//!
//! ```text
//! source-postgres::capture ─► stream (cuts) ─► owner (one per table) ─► lake: bronze, silver
//!                                  ▲                    │ durable
//!                                  └── acknowledge ◄────┘
//! ```
//!
//! - [`project`]: the project file
//! - [`run`]: the pipeline from start to end
//! - [`doctor`], [`status`], [`requests`]: what the other commands need
//! - [`views`]: its tables as they are now, for queries
//! - [`metrics`]: the status as Prometheus reads it

mod acknowledge;
mod copy;
pub mod doctor;
mod lock;
pub mod metrics;
mod owner;
pub mod project;
pub mod requests;
pub mod run;
pub mod status;
mod stream;
mod tables;
#[cfg(test)]
mod testing;
mod told;
pub mod views;

pub use lock::LakeLock;
