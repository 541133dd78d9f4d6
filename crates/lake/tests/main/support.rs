//! Lakes in temporary directories, small tables, and reading them back without the writer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use alluvium_change::{Identity, Result, TableId};
use alluvium_lake::{
    IndexSettings, Lake, LakeSettings, Owner, Silver, SilverSettings, SilverView, read,
};
use alluvium_testkit::history::item_rows_of;
pub(crate) use alluvium_testkit::history::{
    Change, Row, batch, delete, insert, item_rows, items, read_files, row, schema, truncate, update,
};
use arrow::array::RecordBatch;
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

/// The silver table of `items`, told apart by their first column.
pub(crate) fn open_items(test: &TestLake) -> Result<Silver> {
    Silver::open(
        &test.lake,
        &owner("items"),
        &items(Identity::Key(vec![0])),
        SilverSettings::default(),
    )
}

/// The rows of `items`, sorted.
pub(crate) fn read_items(dir: &Path) -> Vec<Row> {
    item_rows_of(&read_table(dir))
}

/// The live rows of a table, read from its files as a reader would.
pub(crate) fn read_table(dir: &Path) -> Vec<RecordBatch> {
    read_files(&read::open_table(dir, None).unwrap().files)
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

pub(crate) fn txns(dir: &Path) -> BTreeMap<String, i64> {
    read::open_table(dir, None).unwrap().txns
}
