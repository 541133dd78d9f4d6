//! The Delta log: the one place that knows `delta_kernel`.
//!
//! Everything above speaks of files, deleted rows, positions and schemas; this module turns a
//! [`Commit`] into one durable Delta commit and a log back into a [`DeltaTable`].
//! Invariant: a `DeltaTable` stays on the snapshot after its own last commit and never re-reads the
//! log; a commit of anybody else is noticed as a taken version and refused.

mod checkpoint;
mod commit;
mod committer;
mod deletion_vector;
mod engine;
mod files;
mod foreign;
mod history;
mod mapping;
mod metadata;
mod needed;
mod rows;
mod schema;
mod store;
mod table;

pub use checkpoint::{CheckpointDone, CheckpointJob};
pub(crate) use commit::{CHANGES_DIR, Change, Commit, DeletedRows, NewFile};
pub(crate) use deletion_vector::{Descriptor, serialized};
pub(crate) use files::LogFile;
pub use history::{CommitEntry, History};
pub(crate) use needed::{Names, TableAt, name_hash};
pub(crate) use rows::LiveFile;
pub(crate) use table::DeltaTable;
