//! The lake's tables at a glance, from their logs alone.

use std::path::Path;

use alluvium_change::{Lsn, Result};
use alluvium_lake::read;
use serde::Serialize;

use crate::catalog::decode_table_name;

/// One table at its last commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableInfo {
    /// `silver` or `bronze`.
    pub layer: String,
    /// The name for SQL.
    pub name: String,
    /// What it mirrors, `schema.table`; none for a table alluvium did not make.
    pub source_table: Option<String>,
    pub version: u64,
    /// Rows, deleted ones not counted.
    pub rows: u64,
    pub files: u64,
    /// Of the data files.
    pub size_bytes: u64,
    /// Rows that are in files but marked as deleted.
    pub deleted_rows: u64,
    /// Milliseconds since 1970, UTC.
    pub last_commit_time_ms: i64,
    /// Up to where in the source's history it is complete; none when no such mark is there.
    pub position_lsn: Option<Lsn>,
}

/// All tables of the lake at `lake_root`, silver first, by name; none when there is no lake.
pub fn list(lake_root: &Path) -> Result<Vec<TableInfo>> {
    let mut tables = Vec::new();
    for table in read::list_tables(lake_root)? {
        let version = read::open_table(&table.dir, None)?;
        tables.push(info(table.layer, &table.name, &version));
    }
    let place = |layer: &str| read::LAYERS.iter().position(|known| *known == layer);
    tables.sort_by(|a, b| (place(&a.layer), &a.name).cmp(&(place(&b.layer), &b.name)));
    Ok(tables)
}

fn info(layer: &str, dir_name: &str, version: &read::TableVersion) -> TableInfo {
    let total = |of: fn(&read::DataFile) -> u64| version.files.iter().map(of).sum::<u64>();
    let deleted_rows = total(|file| file.deleted.as_deref().map_or(0, |rows| rows.len()));
    TableInfo {
        layer: layer.to_owned(),
        name: decode_table_name(dir_name),
        source_table: version.source_table().map(str::to_owned),
        version: version.version,
        rows: total(|file| file.num_rows).saturating_sub(deleted_rows),
        files: version.files.len() as u64,
        size_bytes: total(|file| file.size_bytes),
        deleted_rows,
        last_commit_time_ms: version.commit_time_ms,
        position_lsn: version.position(),
    }
}
