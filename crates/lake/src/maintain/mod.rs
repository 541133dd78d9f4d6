//! What keeps tables quick to read and their directories small: beside the stream, never in its way.
//!
//! ```text
//! owner: which files? ─► CompactionJob (any thread) ─► owner: one commit, rows deleted meanwhile with it
//! owner: what is needed? ─► CleaningJob (any thread)
//! ```
//!
//! A job only reads what does not change and writes what nobody names yet, or removes what nobody
//! needs any more. Every commit is the owner's, between two of its own.

mod choose;
mod cleaning;
mod cluster;
mod compaction;
mod kept;
mod resting;
mod sort;

pub(crate) use choose::{Candidate, Order, choose};
pub use cleaning::{Cleaned, CleaningJob};
pub(crate) use cluster::{CLUSTER_PROPERTY, Clustering};
pub use compaction::{Compacted, CompactionJob, Worked};
pub(crate) use compaction::{Input, Output};
pub(crate) use kept::KeptBytes;
pub use resting::{RestingTable, look_for_unneeded};
