//! The lake: bronze and silver tables in Delta, written and read.
//!
//! Stands after `change` (whose batches it takes) and before `query` (which reads its tables).
//! Synchronous throughout: callers run it on blocking threads. One handle owns a table; nobody
//! else commits to it.
//!
//! - [`Lake`], [`LakeSettings`], [`Owner`]: the directory, its settings, who writes a table
//! - [`Bronze`]: every change of a source table
//! - [`Silver`]: the exact current rows of a source table
//! - [`read`]: tables as of a version, for queries

#[doc(hidden)]
pub mod bench_support;
mod bronze;
mod fs;
mod key_index;
mod lake;
mod log;
mod maintain;
mod merge;
mod owned;
pub mod read;
mod settings;
mod silver;
mod write;

#[doc(hidden)]
pub use fs::disk;

pub use bronze::{Bronze, BronzeEncoder, ChangeReader, ReadyRows};
pub use lake::Lake;
pub use log::{CheckpointDone, CheckpointJob};
pub use maintain::{
    Cleaned, CleaningJob, Compacted, CompactionJob, RestingTable, Worked, look_for_unneeded,
};
pub use owned::app_id;
pub use settings::{
    ClusterBy, CompactionSettings, Compression, ForeignWriters, IndexSettings, LakeSettings,
    MergeMode, MetadataColumn, OnConflict, Owner, RetentionSettings, SilverSettings,
};
pub use silver::{Applied, CopyState, Repair, Repaired, Silver, SilverView};
pub use write::EncodedRows;
