//! From decoded messages to change batches: after `replication` and `pgoutput`, before the
//! pipeline's hand-over to the tables' owners.
//!
//! ```text
//! XLogData ─► pgoutput::decode ─► Assembler ─► TableDecoder (one per table) ─► ChangeBatch
//! ```
//!
//! Invariant: events keep the order of the source; a transaction's rows carry its commit LSN and a
//! serial that grows within it. Pure: no I/O, no clock.

mod assembler;
mod decoder;

pub use assembler::{Assembler, Failure, Relation, RelationColumn, Step};
pub use decoder::{ShapeChange, TableDecoder};
