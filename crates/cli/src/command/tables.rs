//! `alluvium tables`: what the lake holds.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use alluvium_change::Result;
use alluvium_pipeline::project;
use alluvium_query::tables::{TableInfo, list};

use crate::args::Output;
use crate::print::{self, Grid};

struct Report(Vec<TableInfo>);

impl print::Rows for Report {
    type Row = TableInfo;

    fn rows(&self) -> &[TableInfo] {
        &self.0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return writeln!(f, "the lake has no tables yet: alluvium run");
        }
        let mut grid = Grid::new(&[
            "table", "source", "rows", "deleted", "files", "size", "version", "position",
        ]);
        for table in &self.0 {
            grid.push(vec![
                format!("{}.{}", table.layer, table.name),
                table.source_table.clone().unwrap_or_else(|| "-".to_owned()),
                print::count(table.rows),
                print::count(table.deleted_rows),
                print::count(table.files),
                print::bytes(table.size_bytes),
                table.version.to_string(),
                table
                    .position_lsn
                    .map_or_else(|| "-".to_owned(), |lsn| lsn.to_string()),
            ]);
        }
        write!(f, "{grid}")
    }
}

/// Lists the lake's tables at their last commits.
pub(crate) fn tables(config: &Path, output: Output) -> Result<ExitCode> {
    let project = project::load(config)?;
    print::rows(&Report(list(&project.lake_path)?), output)?;
    Ok(ExitCode::SUCCESS)
}
