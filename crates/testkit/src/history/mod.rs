//! Random histories of a small table, as PostgreSQL would send them, and the rows they leave.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test's helpers fail by panicking"
)]

mod source;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use alluvium_change::{
    ChangeBatch, Column, Identity, Lsn, OldImages, Op, TableId, TableSchema, Unchanged,
};
use alluvium_lake::read;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Int64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};

pub use source::{Heap, Random, Source};

pub fn schema(name: &str, columns: &[(&str, DataType)], identity: Identity) -> Arc<TableSchema> {
    let columns = columns
        .iter()
        .map(|(name, data_type)| Column {
            name: (*name).into(),
            data_type: data_type.clone(),
            source_type: "any".into(),
        })
        .collect();
    TableSchema::new(TableId::new("public", name), 16384, columns, identity)
}

/// `id bigint, small text, big text`: `big` plays the TOAST value.
pub fn items(identity: Identity) -> Arc<TableSchema> {
    schema(
        "items",
        &[
            ("id", DataType::Int64),
            ("small", DataType::Utf8),
            ("big", DataType::Utf8),
        ],
        identity,
    )
}

/// A row of `items`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub id: i64,
    pub small: Option<String>,
    pub big: Option<String>,
    /// Of columns that were added later: `more0`, `more1` and so on.
    pub more: Vec<Option<String>>,
}

impl Row {
    /// A row of which only the key is known.
    #[must_use]
    pub fn key(id: i64) -> Self {
        Self {
            id,
            ..Self::default()
        }
    }

    /// With the columns it lacks, of those that were added.
    #[must_use]
    pub fn widened(mut self, added: &[Option<String>]) -> Self {
        let lacking = added.get(self.more.len()..).unwrap_or_default();
        self.more.extend_from_slice(lacking);
        self
    }
}

pub fn row(id: i64, small: &str, big: &str) -> Row {
    Row {
        small: Some(small.into()),
        big: Some(big.into()),
        ..Row::key(id)
    }
}

/// Rows in the columns of `schema`.
pub fn item_rows(schema: &TableSchema, rows: &[Row]) -> RecordBatch {
    let column = |at: usize| -> ArrayRef {
        let text = |row: &Row| match at {
            1 => row.small.clone(),
            2 => row.big.clone(),
            at => row.more.get(at - 3).cloned().flatten(),
        };
        match at {
            0 => Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.id))),
            _ => Arc::new(StringArray::from_iter(rows.iter().map(text))),
        }
    };
    let columns = (0..schema.columns.len()).map(column).collect();
    RecordBatch::try_new(Arc::clone(schema.arrow()), columns).unwrap()
}

/// A change of `items`, as the source sends it.
#[derive(Debug, Clone)]
pub struct Change {
    pub op: Op,
    pub lsn: u64,
    pub new: Row,
    pub old: Option<Row>,
    /// `big` was not sent.
    pub unchanged: bool,
}

impl Change {
    /// With columns that came after it, as a row shows them; a delete by key has none.
    #[must_use]
    pub fn widened(self, added: &[Option<String>], identity: &Identity) -> Self {
        let is_row = match self.op {
            Op::Delete => !matches!(identity, Identity::Key(_)),
            op => matches!(op, Op::Insert | Op::Update),
        };
        Self {
            new: if is_row {
                self.new.widened(added)
            } else {
                self.new
            },
            old: self.old.map(|old| old.widened(added)),
            ..self
        }
    }
}

pub fn insert(lsn: u64, new: Row) -> Change {
    Change {
        op: Op::Insert,
        lsn,
        new,
        old: None,
        unchanged: false,
    }
}

pub fn update(lsn: u64, new: Row) -> Change {
    Change {
        op: Op::Update,
        ..insert(lsn, new)
    }
}

pub fn delete(lsn: u64, id: i64) -> Change {
    Change {
        op: Op::Delete,
        ..insert(lsn, Row::key(id))
    }
}

pub fn truncate(lsn: u64) -> Change {
    Change {
        op: Op::Truncate,
        ..insert(lsn, Row::key(0))
    }
}

/// Whether the changes may end between the two steps of a direct exchange of keys.
#[must_use]
pub fn doubled(changes: &[Change]) -> bool {
    changes.last().is_some_and(|last| {
        last.op == Op::Update && last.old.as_ref().is_some_and(|old| old.id != last.new.id)
    })
}

/// The number of each change within its transaction, of whole transactions.
pub fn event_serials(changes: &[Change]) -> Vec<u64> {
    let mut serial = 0;
    let mut last = None;
    let serials = changes.iter().map(|change| {
        serial = if last == Some(change.lsn) {
            serial + 1
        } else {
            0
        };
        last = Some(change.lsn);
        serial
    });
    serials.collect()
}

pub fn batch(schema: &Arc<TableSchema>, changes: &[Change]) -> ChangeBatch {
    let sent: Vec<Row> = changes
        .iter()
        .map(|change| {
            let mut row = change.new.clone();
            row.big = row.big.filter(|_| !change.unchanged);
            row
        })
        .collect();
    let olds: Vec<Row> = changes
        .iter()
        .filter_map(|change| change.old.clone())
        .collect();
    let mut next = 0;
    let row_of = changes
        .iter()
        .map(|change| {
            change.old.as_ref().map(|_| {
                next += 1;
                next - 1
            })
        })
        .collect();
    let old = (!olds.is_empty()).then(|| OldImages {
        row_of,
        rows: item_rows(schema, &olds),
    });
    let unchanged = changes
        .iter()
        .enumerate()
        .filter(|(_, change)| change.unchanged);
    ChangeBatch {
        table: Arc::clone(schema),
        ops: changes.iter().map(|change| change.op).collect(),
        commit_lsn: changes.iter().map(|change| Lsn(change.lsn)).collect(),
        event_serial: event_serials(changes),
        xid: changes
            .iter()
            .map(|change| u32::try_from(change.lsn).unwrap())
            .collect(),
        commit_time_micros: changes
            .iter()
            .map(|change| 1_700_000_000_000_000 + i64::try_from(change.lsn).unwrap())
            .collect(),
        rows: item_rows(schema, &sent),
        old,
        unchanged: unchanged
            .map(|(row, _)| Unchanged {
                row: u32::try_from(row).unwrap(),
                column: 2,
            })
            .collect(),
    }
}

/// The live rows of files, read as a reader would.
pub fn read_files(files: &[read::DataFile]) -> Vec<RecordBatch> {
    read_columns(files, None)
}

/// As [`read_files`], of some columns only.
pub fn read_columns(files: &[read::DataFile], columns: Option<&[&str]>) -> Vec<RecordBatch> {
    let mut batches = Vec::new();
    for file in files {
        let mut place = 0;
        for batch in read_file(&file.path, columns) {
            let rows = place..place + batch.num_rows() as u64;
            place = rows.end;
            let deleted = file.deleted.as_ref();
            let live: BooleanArray = rows
                .map(|row| Some(!deleted.is_some_and(|deleted| deleted.contains(row))))
                .collect();
            batches.push(filter_record_batch(&batch, &live).unwrap());
        }
        assert_eq!(place, file.num_rows);
    }
    batches
}

/// All rows of a Parquet file.
pub fn read_file(path: &Path, columns: Option<&[&str]>) -> Vec<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let mask = match columns {
        Some(columns) => ProjectionMask::columns(reader.parquet_schema(), columns.iter().copied()),
        None => ProjectionMask::all(),
    };
    let reader = reader.with_projection(mask).build().unwrap();
    reader.map(Result::unwrap).collect()
}

/// Rows of `items`, sorted.
pub fn item_rows_of(batches: &[RecordBatch]) -> Vec<Row> {
    let mut rows = item_rows_in_order(batches);
    rows.sort();
    rows
}

/// Writes rows to a Parquet file, as another program would.
pub fn write_file(path: &Path, rows: &RecordBatch) {
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, rows.schema(), None).unwrap();
    writer.write(rows).unwrap();
    writer.close().unwrap();
}

/// Rows of `items`, as they stand, with the columns that each file has.
pub fn item_rows_in_order(batches: &[RecordBatch]) -> Vec<Row> {
    let mut rows = Vec::new();
    for batch in batches {
        let ids = batch
            .column_by_name("id")
            .unwrap()
            .as_primitive::<Int64Type>();
        let text = |name: &str, at: usize| {
            let column = batch.column_by_name(name).unwrap().as_string::<i32>();
            column.is_valid(at).then(|| column.value(at).to_owned())
        };
        let names = (0..).map(|n| format!("more{n}"));
        let added = names.take_while(|name| batch.column_by_name(name).is_some());
        let added: Vec<String> = added.collect();
        for at in 0..batch.num_rows() {
            rows.push(Row {
                id: ids.value(at),
                small: text("small", at),
                big: text("big", at),
                more: added.iter().map(|name| text(name, at)).collect(),
            });
        }
    }
    rows
}

pub fn sorted(rows: impl IntoIterator<Item = Row>) -> Vec<Row> {
    let mut rows: Vec<Row> = rows.into_iter().collect();
    rows.sort();
    rows
}
