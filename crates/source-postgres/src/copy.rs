//! The initial copy: tables in ranges of pages, out of one exported snapshot.
//!
//! After the slot was made (its snapshot is what is read), before the stream. Binary tuples are
//! decoded straight into the columns' builders; several sessions may copy ranges of one snapshot
//! side by side. Invariant: the ranges of a table hold every row of the snapshot once.

mod reader;
mod session;
mod tuple;

use alluvium_change::{Error, Result, code};
use arrow::util::display::array_value_to_string;

use crate::catalog::SourceTable;
use crate::connect::server_error;
use crate::type_map::{ColumnPlan, CopyForm};
use crate::value::InvalidValue;

pub use reader::CopyReader;
pub use session::{CopySession, Locked, SnapshotSession, is_snapshot_gone};

const PAGE_BYTES: u64 = 8192;
/// Where each range reads the whole table (before PostgreSQL 14), more would only cost.
const MAX_RANGES_WITHOUT_RANGE_SCAN: u32 = 4;

/// Some pages of one leaf of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CopyRange {
    /// Place in [`SourceTable::leaves`].
    pub leaf: usize,
    pub start_page: u32,
    /// The page after the last; `None`: to the end, whatever its size by then.
    pub end_page: Option<u32>,
}

/// Cuts `table` into ranges of about `target_bytes`, by leaf and page.
#[must_use]
pub fn plan_ranges(table: &SourceTable, target_bytes: u64) -> Vec<CopyRange> {
    let heap_bytes = table
        .leaves
        .iter()
        .map(|leaf| u64::from(leaf.pages) * PAGE_BYTES)
        .sum();
    // Values out of line come on top of the pages that name them.
    let times = table
        .total_bytes
        .checked_div(heap_bytes)
        .unwrap_or(1)
        .max(1);
    let pages = (target_bytes / PAGE_BYTES / times).clamp(1, u64::from(u32::MAX));
    let target_pages = u32::try_from(pages).unwrap_or(u32::MAX);
    let mut ranges = Vec::new();
    for (leaf, found) in table.leaves.iter().enumerate() {
        let step = if table.has_tid_range_scan {
            target_pages
        } else {
            target_pages.max(found.pages.div_ceil(MAX_RANGES_WITHOUT_RANGE_SCAN))
        };
        let mut start_page = 0_u32;
        while let Some(end) = start_page
            .checked_add(step)
            .filter(|&end| end < found.pages)
        {
            ranges.push(CopyRange {
                leaf,
                start_page,
                end_page: Some(end),
            });
            start_page = end;
        }
        ranges.push(CopyRange {
            leaf,
            start_page,
            end_page: None,
        });
    }
    ranges
}

/// Row-level security makes the query fail with 42501, like a missing right.
fn rights_hint(error: Error) -> Error {
    if !error.is(&code::PG_RIGHTS) || server_error(&error).is_none() {
        return error;
    }
    error.with_hint(
        "GRANT SELECT on the table to the role of the url; where row-level security is on, also \
         ALTER ROLE ... BYPASSRLS",
    )
}

fn copy_sql(table: &SourceTable, range: CopyRange) -> Result<String> {
    let leaf = table.leaves.get(range.leaf).ok_or_else(|| {
        Error::bug(format!(
            "table \"{}\" has no leaf {}",
            table.id(),
            range.leaf
        ))
    })?;
    let mut conditions = Vec::new();
    if range.start_page > 0 {
        conditions.push(format!(
            "t.ctid >= '({},0)'::pg_catalog.tid",
            range.start_page
        ));
    }
    if let Some(end) = range.end_page {
        conditions.push(format!("t.ctid < '({end},0)'::pg_catalog.tid"));
    }
    let filter = if conditions.is_empty() {
        String::new()
    } else {
        format!(" WHERE {}", conditions.join(" AND "))
    };
    Ok(format!(
        "COPY (SELECT {} FROM ONLY {} AS t{filter}) TO STDOUT (FORMAT binary)",
        copied_columns(table),
        leaf.quoted_name
    ))
}

/// The rows for which `predicate` holds.
fn copy_where_sql(table: &SourceTable, predicate: &str) -> String {
    let only = if table.is_partitioned { "" } else { "ONLY " };
    // On a line of its own: it may end in a comment.
    format!(
        "COPY (SELECT {} FROM {only}{} AS t WHERE (\n{predicate}\n)) TO STDOUT (FORMAT binary)",
        copied_columns(table),
        table.id().quoted(),
    )
}

fn copied_columns(table: &SourceTable) -> String {
    let columns: Vec<String> = table
        .schema
        .columns
        .iter()
        .zip(&table.plans)
        .map(|(column, plan)| {
            let name = format!("t.\"{}\"", column.name.replace('"', "\"\""));
            match plan.copy_form {
                CopyForm::Binary => name,
                // The output function's text also where a cast to text differs (char(n), inet).
                // A composite of NULLs "IS NULL" though it is a value, so that cannot tell.
                CopyForm::Text => format!(
                    "CASE WHEN pg_catalog.num_nonnulls({name}) = 1 \
                     THEN pg_catalog.format('%s', {name}) END"
                ),
            }
        })
        .collect();
    columns.join(", ")
}

/// A value in the form that the copy has it in, for people.
pub(crate) fn shown(plan: &ColumnPlan, bytes: &[u8]) -> Option<String> {
    let mut builder = plan.builder();
    builder.append_copy(bytes).ok()?;
    array_value_to_string(&builder.finish().ok()?, 0).ok()
}

/// The error for a value that `column` cannot hold, with the choices there are. `row` names the
/// row's key, `(7)`, empty without one.
#[must_use]
pub fn invalid_value(
    table: &SourceTable,
    column: usize,
    row: &str,
    invalid: &InvalidValue,
) -> Error {
    let (name, source_type) = table
        .schema
        .columns
        .get(column)
        .map_or(("?", "?"), |column| {
            (column.name.as_str(), column.source_type.as_str())
        });
    let id = table.id();
    let with_key = if row.is_empty() {
        String::new()
    } else {
        format!(
            " of the row with key ({}) = {row}",
            table.schema.key_names().join(", ")
        )
    };
    Error::new(
        &code::VALUE,
        format!("table \"{id}\", column \"{name}\": {}", invalid.kind),
    )
    .with_detail(format!(
        "value \"{}\" of type {source_type}{with_key}",
        invalid.text
    ))
    .with_hint(format!(
        "choose what happens to such values: [tables.\"{id}\".column.\"{name}\"] on_invalid = \
         \"clamp\" (nearest value), \"null\", or \"string\" (the whole column as text); \
         \"error\" is the default and stops this table; then start again, and if the table was live \
         before: alluvium resync {id}"
    ))
}
