//! Rows that a condition chooses are compared with the source, and those that differ are set right,
//! while their table is followed.
//!
//! ```text
//! snapshot: COPY … WHERE ─┐
//!                         ├─► what differs ─► rows of silver alone: looked up by key ─► owner
//! silver:  SELECT … WHERE ┘
//! ```
//!
//! Source and lake each decide for themselves which rows the condition holds for. Where they disagree
//! more rows are looked at, and none is written that the source does not have.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use alluvium_change::{Error, Identity, Lsn, Result, Retry, TableSchema, code};
use alluvium_lake::{Repair, Repaired};
use alluvium_source_postgres::catalog::SourceTable;
use alluvium_source_postgres::copy::CopySession;
use arrow::array::{
    Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, new_null_array,
};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::DataType;
use arrow::row::{OwnedRow, RowConverter, Rows, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use tokio::sync::watch;

use super::{CopyContext, CopySessions, CopyTarget, ExportedSnapshot};
use crate::owner::{Command, is_of_lake};
use crate::status::{ErrorStatus, Phase, TableStatus};

/// Rows that are asked for by their keys in one query.
const KEYS_A_QUERY: usize = 500;
/// Rows that change all the time are asked for so often.
const ROUNDS: usize = 5;
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Which rows of a silver table, as it was last committed, are wanted.
#[derive(Debug, Clone)]
pub struct RowQuery {
    /// The table's directory in the lake.
    pub lake_name: String,
    pub columns: Vec<String>,
    /// A condition in SQL.
    pub predicate: String,
    /// More are an error.
    pub most_bytes: usize,
}

/// Rows, as they will be there.
pub type FoundRows = Pin<Box<dyn Future<Output = Result<Vec<RecordBatch>>> + Send>>;
/// Finds rows of the lake: the pipeline knows no SQL.
pub type FindRows = Arc<dyn Fn(RowQuery) -> FoundRows + Send + Sync>;

/// Rows of one table that are to be set right.
pub(crate) struct RepairTarget {
    pub target: CopyTarget,
    pub lake_name: String,
    pub predicate: String,
}

/// Sets rows right. What keeps it from that is told in the table's status; a lost connection is tried
/// again.
pub(crate) async fn repair(
    context: CopyContext,
    mut repair: RepairTarget,
    find: FindRows,
    mut shutdown: watch::Receiver<bool>,
) -> Result<()> {
    let mut pause = Duration::from_millis(200);
    loop {
        let error = tokio::select! {
            outcome = rounds(&context, &mut repair, &find) => match outcome {
                Ok(()) => {
                    repair.finish(&context, None);
                    return Ok(());
                }
                Err(error) => error,
            },
            _ = shutdown.changed() => return Ok(()),
        };
        if is_of_lake(&error) {
            return Err(error);
        }
        if error.retry() != Retry::Backoff {
            repair.finish(&context, Some(&error));
            return Ok(());
        }
        tracing::warn!(error = %error, detail = error.detail().unwrap_or(""), "comparing rows was interrupted, trying again");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = shutdown.changed() => return Ok(()),
        }
        pause = (pause * 2).min(Duration::from_secs(30));
    }
}

impl RepairTarget {
    fn table(&self) -> &SourceTable {
        &self.target.table
    }

    fn finish(&self, context: &CopyContext, error: Option<&Error>) {
        let table = self.table().id();
        if let Some(error) = error {
            tracing::error!(
                table = %table,
                code = error.code().id,
                error = %error,
                detail = error.detail().unwrap_or(""),
                hint = error.hint(),
                "rows were not compared with the source"
            );
        }
        context.board.table(&table.to_string(), |status| {
            // What stopped the table meanwhile is still the matter.
            if status.phase != Phase::Stopped {
                status.error = error.map(ErrorStatus::from);
            }
        });
        if let Some(request) = &self.target.request {
            request.finish();
        }
    }
}

async fn rounds(context: &CopyContext, repair: &mut RepairTarget, find: &FindRows) -> Result<()> {
    let mut all = Repaired::default();
    for _ in 0..ROUNDS {
        let done = once(context, repair, find).await?;
        all.written += done.written;
        all.removed += done.removed;
        all.left_alone = done.left_alone;
        if done.left_alone == 0 {
            break;
        }
    }
    tracing::info!(
        table = %repair.table().id(),
        predicate = repair.predicate,
        written = all.written,
        removed = all.removed,
        changing_all_the_time = all.left_alone,
        "rows were compared with the source"
    );
    Ok(())
}

/// Compares and sets right under one snapshot.
async fn once(
    context: &CopyContext,
    repair: &mut RepairTarget,
    find: &FindRows,
) -> Result<Repaired> {
    // What is read, as it is and to be compared, on both sides, is within the share of copies.
    let share = u64::from(context.workers) * context.range_bytes / 4;
    let most_bytes = usize::try_from(share).unwrap_or(usize::MAX);
    let context = CopyContext {
        workers: 1,
        ..context.clone()
    };
    let snapshot = ExportedSnapshot::temporary(&context.options).await?;
    let targets = std::slice::from_mut(&mut repair.target);
    let mut sessions = CopySessions::enter(&context, targets, snapshot).await?;
    let Some(session) = sessions.sessions.first_mut() else {
        return Err(Error::bug("a snapshot without a session"));
    };
    let table = Arc::clone(&repair.target.table);
    let key = key_of(&table.schema)?;
    let rows = read_source(session, &table, &repair.predicate, most_bytes).await?;
    let mut source = Source::new(rows, &key)?;
    until_passed(&context, repair, sessions.snapshot).await?;
    let query = RowQuery {
        lake_name: repair.lake_name.clone(),
        columns: names(&table.schema).map(str::to_owned).collect(),
        predicate: repair.predicate.clone(),
        most_bytes,
    };
    let mut strangers = Vec::new();
    for rows in find(query).await? {
        let rows = in_form_of(&table.schema, &rows)?;
        strangers.push(source.compare(&rows)?);
    }
    let mut wanted = Repair {
        snapshot: sessions.snapshot,
        present: source.differing()?,
        absent: Vec::new(),
    };
    for rows in strangers.iter().filter(|rows| rows.num_rows() > 0) {
        look_up(session, &table, &key, rows, &mut wanted, most_bytes).await?;
    }
    // Had the locks been lost, the table could have another shape now.
    sessions.guard.check().await?;
    if wanted.is_empty() {
        return Ok(Repaired::default());
    }
    hand_over(&context, repair, wanted).await
}

/// Waits until all up to `snapshot` is in bronze.
async fn until_passed(context: &CopyContext, repair: &RepairTarget, snapshot: Lsn) -> Result<()> {
    while context.board.read().acknowledged_lsn < snapshot {
        check_followed(context, repair)?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Has the owner do it as soon as it can.
async fn hand_over(
    context: &CopyContext,
    repair: &RepairTarget,
    wanted: Repair,
) -> Result<Repaired> {
    loop {
        let asked = wanted.clone();
        let owner = &repair.target.owner;
        let done = owner.ask(|reply| Command::Repair {
            repair: asked,
            reply,
        });
        if let Some(repaired) = done.await? {
            return Ok(repaired);
        }
        check_followed(context, repair)?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn check_followed(context: &CopyContext, repair: &RepairTarget) -> Result<()> {
    let id = repair.table().id().to_string();
    let is_followed = |status: &TableStatus| {
        matches!(status.phase, Phase::Live | Phase::CatchingUp) && !status.resyncing
    };
    if context.board.of_table(&id, is_followed) == Some(true) {
        return Ok(());
    }
    Err(Error::new(
        &code::USAGE,
        format!("rows of table \"{id}\" cannot be compared while it is not followed"),
    )
    .with_hint(format!(
        "see what stopped it with: alluvium status; or copy all of it: alluvium resync {id}"
    )))
}

/// Places of the key's columns.
fn key_of(schema: &TableSchema) -> Result<Vec<usize>> {
    match &schema.identity {
        Identity::Key(key) => Ok(key.clone()),
        Identity::WholeRow | Identity::AppendOnly => {
            let id = &schema.id;
            let message =
                format!("table \"{id}\" has no key by which single rows could be compared");
            Err(Error::new(&code::USAGE, message)
                .with_hint(format!("copy all of it: alluvium resync {id}")))
        }
    }
}

fn names(schema: &TableSchema) -> impl Iterator<Item = &str> {
    schema.columns.iter().map(|column| column.name.as_str())
}

fn too_many(table: &SourceTable, most_bytes: usize) -> Error {
    let (id, mib) = (table.id(), most_bytes >> 20);
    Error::new(
        &code::MEMORY,
        format!("the rows of table \"{id}\" to be compared are more than {mib} MiB"),
    )
    .with_hint(format!(
        "choose fewer at a time, raise [limits] memory, or copy all of it: alluvium resync {id}"
    ))
}

async fn read_source(
    session: &mut CopySession,
    table: &SourceTable,
    predicate: &str,
    most_bytes: usize,
) -> Result<Vec<RecordBatch>> {
    let mut reader = session.copy_where(table, predicate, most_bytes / 4).await?;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(batch) = reader.next().await? {
        bytes += batch.get_array_memory_size();
        if bytes > most_bytes {
            return Err(too_many(table, most_bytes));
        }
        rows.push(batch);
    }
    Ok(rows)
}

/// Rows of a query in the types that the source's rows have.
fn in_form_of(schema: &TableSchema, rows: &RecordBatch) -> Result<RecordBatch> {
    let failed = |e| Error::bug("rows of the lake are in no form of the source's").with_source(e);
    let fields = schema.arrow().fields();
    let columns = rows.columns().iter().zip(fields);
    let columns: std::result::Result<Vec<ArrayRef>, _> = columns
        .map(|(column, field)| cast(column, field.data_type()))
        .collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(
        Arc::clone(schema.arrow()),
        columns.map_err(failed)?,
        &options,
    )
    .map_err(failed)
}

/// Values of some columns in a form that can be compared.
struct Comparable {
    converter: RowConverter,
    columns: Vec<usize>,
}

impl Comparable {
    fn new(rows: &RecordBatch, columns: Vec<usize>) -> Result<Self> {
        let schema = rows.schema();
        let fields = columns
            .iter()
            .filter_map(|at| schema.fields().get(*at))
            .map(|field| SortField::new(field.data_type().clone()))
            .collect();
        let converter = RowConverter::new(fields).map_err(not_comparable)?;
        Ok(Self { converter, columns })
    }

    fn of(&self, rows: &RecordBatch) -> Result<Rows> {
        let columns: Vec<ArrayRef> = self
            .columns
            .iter()
            .filter_map(|at| rows.columns().get(*at))
            .map(Arc::clone)
            .collect();
        self.converter
            .convert_columns(&columns)
            .map_err(not_comparable)
    }
}

fn not_comparable(error: arrow::error::ArrowError) -> Error {
    Error::new(&code::USAGE, "rows of such a type cannot be compared")
        .with_detail(error.to_string())
        .with_hint("copy all of the table: alluvium resync <table>")
}

/// The source's rows, and which of them the lake has just so.
struct Source {
    batches: Vec<RecordBatch>,
    rows: Vec<Rows>,
    is_equal: Vec<Vec<bool>>,
    /// Batch and row of each key.
    places: BTreeMap<OwnedRow, (usize, usize)>,
    forms: Option<(Comparable, Comparable)>,
}

impl Source {
    fn new(batches: Vec<RecordBatch>, key: &[usize]) -> Result<Self> {
        let mut source = Self {
            rows: Vec::new(),
            is_equal: Vec::new(),
            places: BTreeMap::new(),
            forms: None,
            batches: Vec::new(),
        };
        for batch in batches {
            source.learn_forms(&batch, key)?;
            let Some((keys, whole)) = &source.forms else {
                continue;
            };
            for (row, key) in keys.of(&batch)?.iter().enumerate() {
                let place = (source.batches.len(), row);
                source.places.insert(key.owned(), place);
            }
            source.rows.push(whole.of(&batch)?);
            source.is_equal.push(vec![false; batch.num_rows()]);
            source.batches.push(batch);
        }
        Ok(source)
    }

    fn learn_forms(&mut self, rows: &RecordBatch, key: &[usize]) -> Result<()> {
        if self.forms.is_none() {
            let all = (0..rows.num_columns()).collect();
            let keys = Comparable::new(rows, key.to_vec())?;
            self.forms = Some((keys, Comparable::new(rows, all)?));
        }
        Ok(())
    }

    /// Takes note of rows that the lake has. Answers those of which the source did not tell.
    fn compare(&mut self, lake: &RecordBatch) -> Result<RecordBatch> {
        let Some((keys, whole)) = &self.forms else {
            return Ok(lake.clone());
        };
        let (keys, whole) = (keys.of(lake)?, whole.of(lake)?);
        let mut is_stranger = vec![false; lake.num_rows()];
        for (row, (key, values)) in keys.iter().zip(&whole).enumerate() {
            let place = self.places.get(&key.owned()).copied();
            let Some((batch, at)) = place else {
                if let Some(stranger) = is_stranger.get_mut(row) {
                    *stranger = true;
                }
                continue;
            };
            let ours = self.rows.get(batch).map(|rows| rows.row(at));
            if let Some(equal) = self.is_equal.get_mut(batch).and_then(|b| b.get_mut(at)) {
                *equal = ours == Some(values);
            }
        }
        picked(lake, is_stranger)
    }

    /// Rows that the lake has not, or otherwise.
    fn differing(&self) -> Result<Vec<RecordBatch>> {
        let batches = self.batches.iter().zip(&self.is_equal);
        let differing =
            batches.map(|(batch, equal)| picked(batch, equal.iter().map(|e| !e).collect()));
        differing
            .filter(|rows| !matches!(rows, Ok(rows) if rows.num_rows() == 0))
            .collect()
    }
}

fn picked(rows: &RecordBatch, which: Vec<bool>) -> Result<RecordBatch> {
    filter_record_batch(rows, &BooleanArray::from(which))
        .map_err(|e| Error::bug("rows cannot be picked").with_source(e))
}

/// Asks the source for rows by their keys: those of the lake for which its condition does not hold, or
/// which are not there.
async fn look_up(
    session: &mut CopySession,
    table: &SourceTable,
    key: &[usize],
    strangers: &RecordBatch,
    wanted: &mut Repair,
    most_bytes: usize,
) -> Result<()> {
    let keys = Comparable::new(strangers, key.to_vec())?;
    for from in (0..strangers.num_rows()).step_by(KEYS_A_QUERY) {
        let length = KEYS_A_QUERY.min(strangers.num_rows() - from);
        let asked = strangers.slice(from, length);
        let predicate = by_key(table, key, &asked)?;
        let found = read_source(session, table, &predicate, most_bytes).await?;
        let mut are_there: HashSet<OwnedRow> = HashSet::new();
        for rows in &found {
            are_there.extend(keys.of(rows)?.iter().map(|key| key.owned()));
        }
        let asked_keys = keys.of(&asked)?;
        let is_absent: Vec<bool> = asked_keys
            .iter()
            .map(|key| !are_there.remove(&key.owned()))
            .collect();
        if !are_there.is_empty() {
            return Err(Error::new(
                &code::USAGE,
                format!(
                    "the key of table \"{}\" is not the same in source and lake",
                    table.id()
                ),
            )
            .with_hint(format!("copy all of it: alluvium resync {}", table.id())));
        }
        wanted
            .absent
            .push(keys_alone(&picked(&asked, is_absent)?, key)?);
        wanted.present.extend(found);
    }
    Ok(())
}

/// The rows with NULL in all other columns.
fn keys_alone(rows: &RecordBatch, key: &[usize]) -> Result<RecordBatch> {
    let columns = rows.columns().iter().enumerate();
    let columns = columns.map(|(at, column)| match key.contains(&at) {
        true => Arc::clone(column),
        false => new_null_array(column.data_type(), column.len()),
    });
    RecordBatch::try_new(rows.schema(), columns.collect())
        .map_err(|e| Error::bug("a column cannot be NULL").with_source(e))
}

/// A condition that holds for the rows of these keys.
fn by_key(table: &SourceTable, key: &[usize], rows: &RecordBatch) -> Result<String> {
    let unknown = |e: arrow::error::ArrowError| not_comparable(e);
    let options = FormatOptions::default();
    let mut columns = Vec::new();
    for at in key {
        let (Some(column), Some(named)) = (rows.columns().get(*at), table.schema.columns.get(*at))
        else {
            return Err(Error::bug("a key column beyond the table"));
        };
        let name = named.name.replace('"', "\"\"");
        let texts = ArrayFormatter::try_new(column.as_ref(), &options).map_err(unknown)?;
        let prefix = if column.data_type() == &DataType::Binary {
            "\\x"
        } else {
            ""
        };
        columns.push((name, prefix, texts));
    }
    let mut predicate = String::new();
    for row in 0..rows.num_rows() {
        for (nth, (name, prefix, texts)) in columns.iter().enumerate() {
            let text = texts.value(row).try_to_string().map_err(unknown)?;
            let text = text.replace('\'', "''");
            let before = match (row, nth) {
                (0, 0) => "(",
                (_, 0) => ") OR (",
                _ => " AND ",
            };
            let _ = write!(predicate, "{before}t.\"{name}\" = '{prefix}{text}'");
        }
    }
    predicate.push(')');
    Ok(predicate)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use arrow::array::{Int32Array, StringArray};

    use super::*;
    use crate::testing::table;

    fn rows(ids: &[i32], texts: &[Option<&str>]) -> RecordBatch {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from(ids.to_vec())),
            Arc::new(StringArray::from(texts.to_vec())),
        ];
        RecordBatch::try_new(Arc::clone(table().schema.arrow()), columns).unwrap()
    }

    #[test]
    fn what_differs_is_found_on_both_sides() {
        let theirs = rows(&[1, 2, 3, 4], &[Some("a"), Some("b"), None, Some("d")]);
        let mut source = Source::new(vec![theirs.slice(0, 2), theirs.slice(2, 2)], &[0]).unwrap();
        let ours = rows(&[4, 3, 2, 9], &[Some("d"), Some(""), Some("b"), Some("x")]);
        let strangers = source.compare(&ours).unwrap();
        assert_eq!(strangers, ours.slice(3, 1));
        let differing = source.differing().unwrap();
        assert_eq!(differing, [theirs.slice(0, 1), theirs.slice(2, 1)]);
    }

    #[test]
    fn of_an_empty_range_all_that_the_lake_has_is_looked_up() {
        let ours = rows(&[7], &[None]);
        let mut source = Source::new(Vec::new(), &[0]).unwrap();
        assert_eq!(source.compare(&ours).unwrap(), ours);
        assert!(source.differing().unwrap().is_empty());
    }

    #[test]
    fn keys_are_written_as_the_server_reads_them() {
        let ours = rows(&[7, -8], &[Some("it's"), Some("")]);
        let text = by_key(&table(), &[0, 1], &ours).unwrap();
        let (id, v) = ("t.\"id\"", "t.\"v\"");
        let expected = format!("({id} = '7' AND {v} = 'it''s') OR ({id} = '-8' AND {v} = '')");
        assert_eq!(text, expected);
    }
}
