//! SQL over the lake: every table at its last commit, deleted rows left out.
//!
//! Stands after `lake`, whose logs it reads; DataFusion is fenced here and in no type outside.
//!
//! - [`Session`], [`QueryResult`]: run SQL, stream the answer
//! - [`output`]: rows as a box, JSON, NDJSON or CSV
//! - [`tables`]: the lake's tables at a glance

mod as_of;
mod catalog;
mod coerce;
mod command;
mod disjoint;
mod error;
mod footer;
mod history;
mod live;
pub mod output;
pub mod pg;
mod prune;
mod session;
mod table;
pub mod tables;
mod yielding;

pub use catalog::decode_table_name;
pub use command::{Command, CopyForm, CopyKind};
pub use session::{
    Batches, Described, Engine, QueryResult, QuerySettings, Session, Statement, check_condition,
};
