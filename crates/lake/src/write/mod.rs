//! Data files: Parquet as the lake writes and reads it, and the statistics the log keeps of them.
//!
//! Stands after `merge` (or bronze's encoding) and before `log`, which names the files in a commit.

mod bounds;
mod data_file;
mod distinct;
mod encoded;
mod read_file;
mod relabel;
mod stats;

pub use bounds::ColumnBounds;
pub(crate) use bounds::parse_bounds;
pub(crate) use data_file::{DataFileWriter, loosen_bounds};
pub use encoded::EncodedRows;
pub(crate) use read_file::{FileReader, check_file, live_rows, open_file, read_rows};
pub(crate) use relabel::{conform, relabel};
