//! The lake: bronze and silver tables in Delta, written and read.
//!
//! Stands after `change` (whose batches it takes) and before `query` (which reads its tables).
//! Synchronous throughout: callers run it on blocking threads. One handle owns a table; nobody
//! else commits to it.
//!
//! - [`Lake`], [`LakeSettings`], [`Owner`]: the directory, its settings, who writes a table
//! - [`read`]: tables as of a version, for queries

mod fs;
mod lake;
mod log;
pub mod read;
mod settings;
mod write;

pub use lake::Lake;
pub use log::{CheckpointDone, CheckpointJob};
pub use settings::{
    Compression, LakeSettings, MetadataColumn, OnConflict, Owner, SilverSettings,
};
