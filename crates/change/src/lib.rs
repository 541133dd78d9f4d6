//! What a change is: the words every other crate speaks.
//!
//! A source decodes its log straight into [`ChangeBatch`]es (Arrow columns plus where each change
//! stands in the source's history); `lake` lands them in bronze and merges them into silver.
//! No I/O, no async; the clock is in [`surroundings`] alone.
//!
//! - [`Lsn`], [`Op`]: position and kind of a change
//! - [`TableId`], [`TableSchema`], [`Identity`]: which table, its columns, what identifies a row
//! - [`ChangeBatch`], [`OldImages`], [`Unchanged`]: changes of one table, in source order
//! - [`Error`], [`Code`]: one error shape for all crates: code, message, detail, hint, retry

mod batch;
pub mod code;
mod error;
pub mod failpoint;
mod lsn;
mod op;
pub mod surroundings;
mod table;

pub use batch::{ChangeBatch, OldImages, Unchanged};
pub use code::{Code, Retry};
pub use error::{Error, Result};
pub use lsn::Lsn;
pub use op::Op;
pub use table::{Column, Identity, TableId, TableSchema, encode_path_segment};
