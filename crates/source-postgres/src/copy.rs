//! The initial copy: tables in ranges of pages, out of one exported snapshot.
//!
//! After the slot was made (its snapshot is what is read), before the stream. Binary tuples are
//! decoded straight into the columns' builders; several sessions may copy ranges of one snapshot
//! side by side. Invariant: the ranges of a table hold every row of the snapshot once.

mod tuple;

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;

use alluvium_change::{Error, Identity, Result, code};
use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use arrow::util::display::array_value_to_string;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio_postgres::Client;

use crate::catalog::{SourceTable, get};
use crate::connect::{self, ConnectOptions, map_error, server_error};
use crate::type_map::{ColumnPlan, CopyForm};
use crate::value::{ColumnBuilder, InvalidValue};
use tuple::{Fields, Tuple, TupleCutter, damaged};

const PAGE_BYTES: u64 = 8192;
/// Where each range reads the whole table (before PostgreSQL 14), more would only cost.
const MAX_RANGES_WITHOUT_RANGE_SCAN: u32 = 4;
const MAX_BATCH_ROWS: usize = 1 << 20;

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

/// The exported snapshot is gone: the session that exported it has ended.
#[derive(Debug)]
struct SnapshotGone(connect::ServerError);

impl fmt::Display for SnapshotGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for SnapshotGone {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

/// Whether `error` says that the exported snapshot no longer exists.
#[must_use]
pub fn is_snapshot_gone(error: &Error) -> bool {
    StdError::source(error).is_some_and(|source| source.is::<SnapshotGone>())
}

/// What [`SnapshotSession::lock`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locked {
    /// The table was rewritten or truncated after the snapshot: the snapshot does not show its
    /// rows, so what a copy would find is not what the stream builds on.
    pub rewritten: bool,
}

/// A session that sees the tables as of an exported snapshot.
#[derive(Debug)]
pub struct SnapshotSession {
    client: Client,
}

impl SnapshotSession {
    /// Opens a read-only transaction on the snapshot.
    ///
    /// # Errors
    /// As [`connect::connect`]; an error that [`is_snapshot_gone`] knows.
    pub async fn open(options: &ConnectOptions, snapshot_name: &str) -> Result<Self> {
        let client = connect::connect(options).await?;
        client
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
            .map_err(|error| map_error(error, "starting to copy"))?;
        let name = snapshot_name.replace('\'', "''");
        let set = format!("SET TRANSACTION SNAPSHOT '{name}'");
        if let Err(error) = client.batch_execute(&set).await {
            let gone = Error::new(
                &code::PG_CONNECTION_LOST,
                format!("snapshot \"{snapshot_name}\" no longer exists"),
            );
            let Some(db) = error.as_db_error() else {
                return Err(map_error(error, "entering the snapshot"));
            };
            let server = connect::ServerError::from(db);
            // By version: the file is missing, or its owner is.
            if !matches!(server.sqlstate.as_str(), "22023" | "42704" | "55000") {
                return Err(map_error(error, "entering the snapshot"));
            }
            return Err(gone
                .with_detail(server.message.clone())
                .with_source(SnapshotGone(server)));
        }
        Ok(Self { client })
    }

    /// The session's client, for queries that have to see the snapshot.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Keeps `table` from being changed in shape, rewritten or dropped until the session ends.
    /// Readers and writers of its rows go on.
    ///
    /// # Errors
    /// `PG_RIGHTS`, `PG_QUERY` when it is gone.
    pub async fn lock(&self, table: &SourceTable) -> Result<Locked> {
        let doing = format!("locking table \"{}\"", table.id());
        let failed = |error| map_error(error, &doing);
        let mut names = vec![table.id().quoted()];
        if table.is_partitioned {
            names.extend(table.leaves.iter().map(|leaf| leaf.quoted_name.clone()));
        }
        for name in names {
            let lock = format!("LOCK TABLE ONLY {name} IN ACCESS SHARE MODE");
            self.client.batch_execute(&lock).await.map_err(failed)?;
        }
        let oids: Vec<u32> = table.leaves.iter().map(|leaf| leaf.oid).collect();
        // The function sees today's file, the table that of the snapshot.
        let sql = "SELECT count(*) <> pg_catalog.cardinality($1::oid[]) OR COALESCE(
                       bool_or(pg_relation_filenode(oid) IS DISTINCT FROM relfilenode), false)
                   FROM pg_class WHERE oid = ANY($1::oid[])";
        let row = self.client.query_one(sql, &[&oids]).await.map_err(failed)?;
        Ok(Locked {
            rewritten: get(&row, 0)?,
        })
    }

    /// [`Self::lock`] of many tables, without waiting for the answer about one before asking about
    /// the next.
    ///
    /// # Errors
    /// The first one of [`Self::lock`].
    pub async fn lock_all<'a>(
        &self,
        tables: impl IntoIterator<Item = &'a SourceTable>,
    ) -> Result<Vec<Locked>> {
        futures::future::try_join_all(tables.into_iter().map(|table| self.lock(table))).await
    }

    /// Starts to copy one range; batches hold about `max_batch_bytes`.
    ///
    /// # Errors
    /// `PG_RIGHTS` (also when row-level security would hide rows), `PG_QUERY`.
    pub async fn copy_range(
        &self,
        table: &SourceTable,
        range: CopyRange,
        max_batch_bytes: usize,
    ) -> Result<CopyReader> {
        let sql = copy_sql(table, range)?;
        let doing = format!("copying table \"{}\"", table.id());
        let stream = self
            .client
            .copy_out(&sql)
            .await
            .map_err(|error| rights_hint(map_error(error, &doing)))?;
        Ok(CopyReader::new(
            table,
            Box::pin(stream),
            doing,
            max_batch_bytes,
        ))
    }
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
        columns.join(", "),
        leaf.quoted_name
    ))
}

type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, tokio_postgres::Error>> + Send>>;

/// The rows of one range, as they come.
pub struct CopyReader {
    stream: Chunks,
    cutter: TupleCutter,
    fields: Fields,
    builders: Vec<ColumnBuilder>,
    schema: SchemaRef,
    table: SourceTable,
    doing: String,
    max_batch_bytes: usize,
    batch_bytes: usize,
    batch_rows: usize,
    rows: u64,
    bytes: u64,
}

impl fmt::Debug for CopyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyReader")
            .field("table", self.table.id())
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl CopyReader {
    fn new(table: &SourceTable, stream: Chunks, doing: String, max_batch_bytes: usize) -> Self {
        Self {
            stream,
            cutter: TupleCutter::default(),
            fields: Vec::with_capacity(table.plans.len()),
            builders: table.plans.iter().map(ColumnPlan::builder).collect(),
            schema: table.schema.arrow().clone(),
            table: table.clone(),
            doing,
            max_batch_bytes,
            batch_bytes: 0,
            batch_rows: 0,
            rows: 0,
            bytes: 0,
        }
    }

    /// Decodes what a `COPY` has sent before: for `bench/harness`, to measure decoding alone.
    #[doc(hidden)]
    #[must_use]
    pub fn of_chunks(table: &SourceTable, chunks: Vec<Bytes>, max_batch_bytes: usize) -> Self {
        let stream = futures::stream::iter(chunks.into_iter().map(Ok));
        Self::new(
            table,
            Box::pin(stream),
            "decoding".to_owned(),
            max_batch_bytes,
        )
    }

    /// Rows returned so far and those of the batch in hand.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes of the tuples read so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next batch; `None` after the last. Safe to cancel.
    ///
    /// # Errors
    /// `VALUE` for a value its column cannot hold, `PG_CONNECTION_LOST`, `PG_PROTOCOL`.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let columns = self.builders.len();
        loop {
            while let Some(tuple) = self.cutter.next(columns, &mut self.fields)? {
                self.append(&tuple)?;
                if self.batch_bytes >= self.max_batch_bytes || self.batch_rows >= MAX_BATCH_ROWS {
                    return self.finish_batch().map(Some);
                }
            }
            if self.cutter.is_at_end() && self.batch_rows > 0 {
                return self.finish_batch().map(Some);
            }
            match self.stream.next().await {
                Some(Ok(chunk)) => self.cutter.push(chunk),
                Some(Err(error)) => return Err(rights_hint(map_error(error, &self.doing))),
                None if self.cutter.is_at_end() => return Ok(None),
                None => return Err(damaged("no end")),
            }
        }
    }

    fn append(&mut self, tuple: &Tuple) -> Result<()> {
        for (place, (builder, field)) in self.builders.iter_mut().zip(&self.fields).enumerate() {
            let value = field.as_ref().map(|range| tuple.bytes.get(range.clone()));
            let appended = match value {
                None => {
                    builder.append_null();
                    Ok(())
                }
                Some(Some(bytes)) => builder.append_copy(bytes),
                Some(None) => return Err(Error::bug("a field lies outside its tuple")),
            };
            if let Err(invalid) = appended {
                let row = row_name(&self.table, tuple, &self.fields);
                return Err(invalid_value(&self.table, place, &row, &invalid));
            }
        }
        let length = tuple.bytes.len();
        self.batch_bytes += length;
        self.batch_rows += 1;
        self.rows += 1;
        self.bytes += u64::try_from(length).unwrap_or(u64::MAX);
        Ok(())
    }

    fn finish_batch(&mut self) -> Result<RecordBatch> {
        let arrays = self
            .builders
            .iter_mut()
            .map(ColumnBuilder::finish)
            .collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(self.batch_rows));
        (self.batch_bytes, self.batch_rows) = (0, 0);
        RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options).map_err(|error| {
            Error::bug("copied columns do not fit their schema").with_source(error)
        })
    }
}

/// The key of a row for people, `(7, a)`; empty without a key.
fn row_name(table: &SourceTable, tuple: &Tuple, fields: &Fields) -> String {
    let Identity::Key(key) = &table.schema.identity else {
        return String::new();
    };
    let text = |&place: &usize| {
        let bytes = fields
            .get(place)?
            .clone()
            .and_then(|range| tuple.bytes.get(range))?;
        shown(table.plans.get(place)?, bytes)
    };
    let texts: Vec<String> = key
        .iter()
        .map(|place| text(place).unwrap_or_else(|| "?".to_owned()))
        .collect();
    format!("({})", texts.join(", "))
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
