//! Lakes in temporary directories, small tables, and reading them back without the writer.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alluvium_change::{
    ChangeBatch, Column, Identity, Lsn, OldImages, Op, TableId, TableSchema, Unchanged,
};
use alluvium_lake::{IndexSettings, Lake, LakeSettings, Owner, SilverView, read};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Int64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;

/// A lake that is gone when dropped.
pub(crate) struct TestLake {
    _dir: TempDir,
    pub(crate) lake: Lake,
}

impl TestLake {
    pub(crate) fn new() -> Self {
        Self::with(LakeSettings {
            fsync: false,
            ..LakeSettings::default()
        })
    }

    /// With key indexes saved beside the lake, from the first row on.
    pub(crate) fn with_index(mut settings: LakeSettings, memory_bytes: usize) -> Self {
        let dir = TempDir::new().unwrap();
        settings.index = IndexSettings {
            dir: Some(dir.path().join("index")),
            memory_bytes,
            saved_from_rows: 0,
            saved_from_changes: 20,
        };
        let lake = Lake::open(&dir.path().join("lake"), settings).unwrap();
        Self { _dir: dir, lake }
    }

    pub(crate) fn index_dir(&self, name: &str) -> PathBuf {
        self.lake.settings().index.dir.as_ref().unwrap().join(name)
    }

    pub(crate) fn with(settings: LakeSettings) -> Self {
        let dir = TempDir::new().unwrap();
        // A name that has to be escaped in a URL.
        let lake = Lake::open(&dir.path().join("a lake %41 ü"), settings).unwrap();
        Self { _dir: dir, lake }
    }
}

pub(crate) fn owner(name: &str) -> Owner {
    Owner {
        pipeline: "main".into(),
        source: "shop".into(),
        system_identifier: "7000000000000000001".into(),
        table: TableId::new("public", name),
        name: TableId::new("public", name).lake_name(),
    }
}

pub(crate) fn schema(
    name: &str,
    columns: &[(&str, DataType)],
    identity: Identity,
) -> Arc<TableSchema> {
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
pub(crate) fn items(identity: Identity) -> Arc<TableSchema> {
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
pub(crate) type Row = (i64, Option<String>, Option<String>);

pub(crate) fn row(id: i64, small: &str, big: &str) -> Row {
    (id, Some(small.into()), Some(big.into()))
}

pub(crate) fn item_rows(schema: &TableSchema, rows: &[Row]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))),
        Arc::new(StringArray::from_iter(
            rows.iter().map(|row| row.1.as_deref()),
        )),
        Arc::new(StringArray::from_iter(
            rows.iter().map(|row| row.2.as_deref()),
        )),
    ];
    RecordBatch::try_new(Arc::clone(schema.arrow()), columns).unwrap()
}

/// A change of `items`, as the source sends it.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) op: Op,
    pub(crate) lsn: u64,
    pub(crate) new: Row,
    pub(crate) old: Option<Row>,
    /// `big` was not sent.
    pub(crate) unchanged: bool,
}

pub(crate) fn insert(lsn: u64, new: Row) -> Change {
    Change {
        op: Op::Insert,
        lsn,
        new,
        old: None,
        unchanged: false,
    }
}

pub(crate) fn update(lsn: u64, new: Row) -> Change {
    Change {
        op: Op::Update,
        ..insert(lsn, new)
    }
}

pub(crate) fn delete(lsn: u64, id: i64) -> Change {
    Change {
        op: Op::Delete,
        ..insert(lsn, (id, None, None))
    }
}

pub(crate) fn truncate(lsn: u64) -> Change {
    Change {
        op: Op::Truncate,
        ..insert(lsn, (0, None, None))
    }
}

pub(crate) fn batch(schema: &Arc<TableSchema>, changes: &[Change]) -> ChangeBatch {
    let sent: Vec<Row> = changes
        .iter()
        .map(|change| {
            let (id, small, big) = change.new.clone();
            (id, small, big.filter(|_| !change.unchanged))
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
    let mut serial = 0;
    let mut last = None;
    let event_serial = changes
        .iter()
        .map(|change| {
            serial = if last == Some(change.lsn) {
                serial + 1
            } else {
                0
            };
            last = Some(change.lsn);
            serial
        })
        .collect();
    ChangeBatch {
        table: Arc::clone(schema),
        ops: changes.iter().map(|change| change.op).collect(),
        commit_lsn: changes.iter().map(|change| Lsn(change.lsn)).collect(),
        event_serial,
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

/// The live rows of a table, read from its files as a reader would.
pub(crate) fn read_table(dir: &Path) -> Vec<RecordBatch> {
    read_files(&read::open_table(dir, None).unwrap().files)
}

fn read_files(files: &[read::DataFile]) -> Vec<RecordBatch> {
    let mut batches = Vec::new();
    for file in files {
        let reader =
            ParquetRecordBatchReaderBuilder::try_new(File::open(&file.path).unwrap()).unwrap();
        assert_eq!(
            u64::try_from(reader.metadata().file_metadata().num_rows()).unwrap(),
            file.num_rows
        );
        let mut place = 0;
        for batch in reader.build().unwrap() {
            let batch = batch.unwrap();
            let live: BooleanArray = (place..place + batch.num_rows() as u64)
                .map(|row| {
                    Some(
                        !file
                            .deleted
                            .as_ref()
                            .is_some_and(|deleted| deleted.contains(row)),
                    )
                })
                .collect();
            place += batch.num_rows() as u64;
            batches.push(filter_record_batch(&batch, &live).unwrap());
        }
    }
    batches
}

/// The rows of `items`, sorted.
pub(crate) fn read_items(dir: &Path) -> Vec<Row> {
    item_rows_of(&read_table(dir))
}

/// The rows of `items` at a version, sorted.
pub(crate) fn read_version(dir: &Path, version: u64) -> Vec<Row> {
    item_rows_of(&read_files(
        &read::open_table(dir, Some(version)).unwrap().files,
    ))
}

/// The rows of a view of `items`, sorted.
pub(crate) fn view_items(view: &SilverView) -> Vec<Row> {
    let mut batches = read_files(&view.files);
    batches.extend(view.rows.iter().cloned());
    item_rows_of(&batches)
}

fn item_rows_of(batches: &[RecordBatch]) -> Vec<Row> {
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
        for at in 0..batch.num_rows() {
            rows.push((ids.value(at), text("small", at), text("big", at)));
        }
    }
    rows.sort();
    rows
}

pub(crate) fn sorted(rows: impl IntoIterator<Item = Row>) -> Vec<Row> {
    let mut rows: Vec<Row> = rows.into_iter().collect();
    rows.sort();
    rows
}

pub(crate) fn txns(dir: &Path) -> BTreeMap<String, i64> {
    read::open_table(dir, None).unwrap().txns
}
