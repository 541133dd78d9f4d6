//! Tables of the lake as of a version, for readers: files, deleted rows, bounds.
//!
//! Reads the log only; opening data files is the reader's business.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alluvium_change::{Lsn, Result};
use arrow::datatypes::{DataType, SchemaRef};
use roaring::RoaringTreemap;

use crate::fs::io_error;
use crate::log::DeltaTable;
pub use crate::log::{CommitEntry, History};
pub use crate::owned::position_of;
use crate::owned::{PROPERTY_TABLE, table_of};
pub use crate::write::ColumnBounds;
use crate::write::parse_bounds;

/// The layers of a lake that hold tables.
pub const LAYERS: [&str; 2] = ["silver", "bronze"];

/// A table at one version.
#[derive(Debug, Clone)]
pub struct TableVersion {
    pub version: u64,
    /// Columns in the table's order; all nullable.
    pub schema: SchemaRef,
    pub files: Vec<DataFile>,
    /// Application ids and their versions: positions (see [`crate::Owner::app_id`]).
    pub txns: BTreeMap<String, i64>,
    pub properties: BTreeMap<String, String>,
    /// Of the version's commit, in milliseconds since 1970.
    pub commit_time_ms: i64,
    /// The version of the Delta checkpoint from which on it is read.
    pub checkpoint: Option<u64>,
}

impl TableVersion {
    /// What it mirrors, `schema.table`; none for a table that is not alluvium's.
    #[must_use]
    pub fn source_table(&self) -> Option<&str> {
        self.properties.get(PROPERTY_TABLE).map(String::as_str)
    }

    /// Every transaction of the source that committed at or before this is in the table; none before
    /// its copy is complete.
    #[must_use]
    pub fn position(&self) -> Option<Lsn> {
        position_of(self.source_table()?, &self.txns)
    }

    /// Rows that are not deleted.
    #[must_use]
    pub fn num_rows(&self) -> u64 {
        self.files.iter().map(DataFile::live_rows).sum()
    }
}

/// A data file of a table.
///
/// It may lack columns of the table that were added after it was written: they are NULL.
#[derive(Debug, Clone)]
pub struct DataFile {
    pub path: PathBuf,
    pub size_bytes: u64,
    /// All rows of the file, deleted ones included.
    pub num_rows: u64,
    /// Places of deleted rows in the file.
    pub deleted: Option<Arc<RoaringTreemap>>,
    /// The Delta statistics, as JSON.
    pub stats: Arc<str>,
}

impl DataFile {
    /// Rows that are not deleted.
    #[must_use]
    pub fn live_rows(&self) -> u64 {
        self.num_rows - self.deleted.as_ref().map_or(0, |rows| rows.len())
    }

    /// What the statistics say of top-level columns, in the order asked for.
    ///
    /// Bounds hold every value, but with deleted rows (or of long strings and of timestamps, which
    /// Delta keeps in milliseconds) they need not be values of the table: use them to skip, not to
    /// answer.
    #[must_use]
    pub fn bounds(&self, columns: &[(&str, &DataType)]) -> Vec<ColumnBounds> {
        parse_bounds(&self.stats, columns)
    }
}

/// The source's table that the table in `dir` mirrors; none for one that is not alluvium's.
///
/// # Errors
/// `LAKE_CORRUPT` when the log is missing or damaged.
pub fn source_table(dir: &Path) -> Result<Option<String>> {
    Ok(table_of(&DeltaTable::open_at(dir, None)?))
}

/// A table found in a lake.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableName {
    /// `silver` or `bronze`.
    pub layer: &'static str,
    pub name: String,
    pub dir: PathBuf,
}

/// The tables of the lake at `root`, sorted; none when there is no such directory.
///
/// # Errors
/// When a directory cannot be read.
pub fn list_tables(root: &Path) -> Result<Vec<TableName>> {
    let mut tables = Vec::new();
    for layer in LAYERS {
        let dir = root.join(layer);
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(io_error("read", &dir, e)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| io_error("read", &dir, e))?;
            let path = entry.path();
            if path.is_dir() && DeltaTable::exists(&path)? {
                let name = entry.file_name().to_string_lossy().into_owned();
                tables.push(TableName {
                    layer,
                    name,
                    dir: path,
                });
            }
        }
    }
    tables.sort();
    Ok(tables)
}

/// The table in `dir` at `version`, or at its latest.
///
/// # Errors
/// `LAKE_CORRUPT` when the log or a deletion vector is missing or damaged.
pub fn open_table(dir: &Path, version: Option<u64>) -> Result<TableVersion> {
    let table = DeltaTable::open_at(dir, version)?;
    let files = table
        .files()?
        .into_iter()
        .map(|file| {
            Ok(DataFile {
                deleted: table.deleted_rows(&file)?.map(Arc::new),
                path: dir.join(&file.path),
                size_bytes: u64::try_from(file.size_bytes).unwrap_or_default(),
                num_rows: file.num_rows,
                stats: file.stats,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(TableVersion {
        version: table.version(),
        schema: table.schema()?,
        files,
        txns: table.txns()?,
        properties: table.properties(),
        commit_time_ms: table.commit_time_ms()?,
        checkpoint: table.checkpoint_version(),
    })
}
