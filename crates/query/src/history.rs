//! `history('orders')`: the commits of a table, the newest first.
//!
//! A table function. Commits are read a few at a time while rows are asked for, so that a `LIMIT` reads
//! no more than it shows.

use std::path::PathBuf;
use std::sync::Arc;

use alluvium_change::{Error, code};
use alluvium_lake::read::{self, CommitEntry, History};
use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{DataFusionError, Result, ScalarValue, TableReference};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::catalog::{DEFAULT_SCHEMA, Listing};

/// Commits read at a time.
const COMMITS: usize = 64;

/// The function.
#[derive(Debug)]
pub(crate) struct HistoryFunction(pub(crate) Listing);

impl TableFunctionImpl for HistoryFunction {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let [Expr::Literal(ScalarValue::Utf8(Some(name)), _)] = args.exprs() else {
            return Err(external(
                Error::new(&code::SQL, "history takes the name of one table")
                    .with_hint("SELECT * FROM history('orders')"),
            ));
        };
        let table = TableReference::parse_str(name);
        let layer = table.schema().unwrap_or(DEFAULT_SCHEMA).to_owned();
        let found = self.0.directory(&layer, table.table()).map_err(external)?;
        let Some(dir) = found else {
            return Err(external(self.0.unknown(table.schema(), table.table())));
        };
        let commits = Commits {
            dir,
            schema: schema(),
        };
        let table = StreamingTable::try_new(schema(), vec![Arc::new(commits)])?;
        Ok(Arc::new(table))
    }
}

fn external(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

fn schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let fields = [
        ("version", DataType::Int64, false),
        ("committed_at", time, true),
        ("operation", DataType::Utf8, true),
        ("program", DataType::Utf8, true),
        ("lsn", DataType::Utf8, true),
        ("changes_rows", DataType::Boolean, false),
        ("rows_added", DataType::Int64, true),
        ("rows_deleted", DataType::Int64, true),
        ("files_added", DataType::Int64, false),
        ("files_removed", DataType::Int64, false),
        ("bytes_added", DataType::Int64, false),
        ("readable", DataType::Boolean, false),
    ];
    let fields = fields.map(|(name, data_type, nullable)| Field::new(name, data_type, nullable));
    Arc::new(Schema::new(fields.to_vec()))
}

#[derive(Debug)]
struct Commits {
    dir: PathBuf,
    schema: SchemaRef,
}

impl PartitionStream for Commits {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (dir, schema) = (self.dir.clone(), Arc::clone(&self.schema));
        let opened = stream::once(blocking(move || {
            let source_table = read::source_table(&dir)?;
            Ok((Arc::new(History::of(&dir)?), source_table.map(Arc::from)))
        }));
        let batches = opened.and_then(
            move |(history, source_table): (Arc<History>, Option<Arc<str>>)| {
                let schema = Arc::clone(&schema);
                let versions: Vec<u64> = history.versions().rev().collect();
                let parts: Vec<Vec<u64>> = versions.chunks(COMMITS).map(<[u64]>::to_vec).collect();
                let read = move |part: Vec<u64>| {
                    let (history, schema) = (Arc::clone(&history), Arc::clone(&schema));
                    let source_table = source_table.clone();
                    async move {
                        let entries = blocking(move || {
                            part.iter()
                                .map(|version| {
                                    Ok((history.entry(*version)?, history.can_read(*version)))
                                })
                                .collect::<alluvium_change::Result<Vec<_>>>()
                        });
                        rows(&entries.await?, source_table.as_deref(), schema)
                    }
                };
                futures::future::ready(Ok(stream::iter(parts).then(read)))
            },
        );
        Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            Box::pin(batches.try_flatten()),
        ))
    }
}

/// The lake is synchronous.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> alluvium_change::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::bug("reading a log did not end").with_source(error)))
        .map_err(external)
}

fn rows(
    entries: &[(CommitEntry, bool)],
    source_table: Option<&str>,
    schema: SchemaRef,
) -> Result<RecordBatch> {
    let commits = || entries.iter().map(|(entry, _)| entry);
    // Delta counts in signed integers.
    let number = |of: fn(&CommitEntry) -> Option<u64>| -> ArrayRef {
        let numbers = commits().map(|entry| of(entry).and_then(|n| i64::try_from(n).ok()));
        Arc::new(numbers.collect::<Int64Array>())
    };
    let text = |of: fn(&CommitEntry) -> Option<String>| -> ArrayRef {
        Arc::new(commits().map(of).collect::<StringArray>())
    };
    let times = commits().map(|entry| entry.time_ms.and_then(|ms| ms.checked_mul(1000)));
    let times: TimestampMicrosecondArray = times.collect();
    let positions = commits().map(|entry| {
        let position = read::position_of(source_table?, &entry.txns)?;
        Some(position.to_string())
    });
    let columns: Vec<ArrayRef> = vec![
        number(|entry| Some(entry.version)),
        Arc::new(times.with_timezone("UTC")),
        text(|entry| entry.operation.clone()),
        text(|entry| entry.program.clone()),
        Arc::new(positions.collect::<StringArray>()),
        Arc::new(
            commits()
                .map(|entry| Some(entry.changes_rows))
                .collect::<BooleanArray>(),
        ),
        number(|entry| entry.rows_added),
        number(|entry| entry.rows_deleted),
        number(|entry| Some(entry.files_added)),
        number(|entry| Some(entry.files_removed)),
        number(|entry| Some(entry.bytes_added)),
        Arc::new(
            entries
                .iter()
                .map(|(_, can_read)| Some(*can_read))
                .collect::<BooleanArray>(),
        ),
    ];
    Ok(RecordBatch::try_new(schema, columns)?)
}
