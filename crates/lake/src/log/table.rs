//! One Delta table: create, open, and what its log says at the current version.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alluvium_change::{Error, Result, code, failpoint};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, Schema, SchemaRef};
use delta_kernel::engine::arrow_data::ArrowEngineData;
use delta_kernel::schema::{DataType, StructField, StructType};
use delta_kernel::snapshot::{Snapshot, SnapshotRef};
use delta_kernel::transaction::CommitResult;
use delta_kernel::transaction::create_table::create_table;
use roaring::RoaringTreemap;
use url::Url;

use super::committer::{DurableCommitter, remove_temporary_files};
use super::engine::{Engine, engine, kernel_error, table_url};
use super::files::{LogFile, log_dir, log_files};
use super::mapping;
use super::rows::{LiveFile, read_files};
use super::schema::{to_arrow, to_delta};
use crate::ForeignWriters;
use crate::fs as durable;

/// Written into `commitInfo`.
pub(super) const ENGINE_INFO: &str = concat!("alluvium/", env!("CARGO_PKG_VERSION"));

/// A Delta table at a version.
pub(crate) struct DeltaTable {
    pub(super) dir: PathBuf,
    pub(super) url: Url,
    pub(super) engine: Arc<Engine>,
    pub(super) snapshot: SnapshotRef,
    pub(super) fsync: bool,
    pub(super) commits_since_checkpoint: u64,
    /// A job is under way.
    pub(super) checkpointing: bool,
    /// What to do about commits that are not ours.
    pub(super) foreign: ForeignWriters,
}

impl DeltaTable {
    /// Whether `dir` holds a Delta table: a log with a commit or a checkpoint.
    pub(crate) fn exists(dir: &Path) -> Result<bool> {
        // Not what a crash within the first commit leaves: its temporary file.
        let files = log_files(dir)?;
        Ok(files.iter().any(|(_, kind)| *kind != LogFile::Other))
    }

    /// Creates an empty table.
    pub(crate) fn create(
        dir: &Path,
        schema: &Schema,
        properties: &[(&str, String)],
        fsync: bool,
    ) -> Result<Self> {
        durable::create_dir(dir, fsync)?;
        remove_temporary_files(dir)?;
        if mapping::is_needed(schema) {
            return Self::create_mapped(dir, schema, properties, fsync);
        }
        let url = table_url(dir)?;
        let engine = engine()?;
        let failed = |e| kernel_error("create", dir, e);
        let committer = DurableCommitter::new(dir, fsync);
        let own_error = Arc::clone(&committer.error);
        let properties = properties
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()));
        let created = create_table(
            url.as_str(),
            Arc::new(to_delta(schema, dir)?),
            ENGINE_INFO,
            false,
        )
        .with_table_properties(properties)
        .build(engine.as_ref(), Box::new(committer))
        .map_err(failed)?
        .commit(engine.as_ref());
        if let Ok(mut slot) = own_error.lock()
            && let Some(error) = slot.take()
        {
            return Err(error);
        }
        let CommitResult::Committed(committed) = created.map_err(failed)? else {
            return Err(foreign(dir));
        };
        let snapshot = match committed.post_commit_snapshot() {
            Some(snapshot) => Arc::clone(snapshot),
            None => Snapshot::builder_for(url.as_str())
                .build(engine.as_ref())
                .map_err(failed)?,
        };
        let dir = dir.to_owned();
        Ok(Self {
            dir,
            url,
            engine,
            snapshot,
            fsync,
            commits_since_checkpoint: 1,
            checkpointing: false,
            foreign: ForeignWriters::Refuse,
        })
    }

    /// Opens the table at its latest version, for writing.
    pub(crate) fn open(dir: &Path, fsync: bool) -> Result<Self> {
        remove_temporary_files(dir)?;
        if fsync {
            // A commit whose process ended before this is seen, and could still be lost with the power.
            durable::sync_dir(&log_dir(dir))?;
        }
        let mut table = Self::open_at(dir, None)?;
        table.fsync = fsync;
        Ok(table)
    }

    /// Opens the table at `version`, or its latest, for reading.
    pub(crate) fn open_at(dir: &Path, version: Option<u64>) -> Result<Self> {
        let url = table_url(dir)?;
        let engine = engine()?;
        let mut builder = Snapshot::builder_for(url.as_str());
        if let Some(version) = version {
            builder = builder.at_version(version);
        }
        let snapshot = builder
            .build(engine.as_ref())
            .map_err(|e| kernel_error("open", dir, e))?;
        let mut table = Self {
            dir: dir.to_owned(),
            url,
            engine,
            snapshot,
            fsync: true,
            commits_since_checkpoint: 0,
            checkpointing: false,
            foreign: ForeignWriters::Refuse,
        };
        let checkpoint = table.snapshot.log_segment().checkpoint_version;
        table.commits_since_checkpoint = table
            .version()
            .saturating_sub(checkpoint.unwrap_or_default());
        Ok(table)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Delta's id of the table, which it keeps as long as it is the same table.
    pub(crate) fn id(&self) -> String {
        self.snapshot
            .table_configuration()
            .metadata()
            .id()
            .to_owned()
    }

    pub(crate) fn version(&self) -> u64 {
        self.snapshot.version()
    }

    /// Milliseconds since 1970 of the last commit.
    pub(crate) fn commit_time_ms(&self) -> Result<i64> {
        self.snapshot
            .get_timestamp(self.engine.as_ref())
            .map_err(|e| kernel_error("read the time of", &self.dir, e))
    }

    pub(crate) fn schema(&self) -> Result<SchemaRef> {
        to_arrow(&self.snapshot.schema(), &self.dir)
    }

    pub(crate) fn properties(&self) -> BTreeMap<String, String> {
        let properties = self.snapshot.metadata_configuration();
        properties
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// The live files, as of this version.
    pub(crate) fn files(&self) -> Result<Vec<LiveFile>> {
        read_files(&self.snapshot, &self.engine, &self.dir)
    }

    /// The deleted rows of a live file.
    pub(crate) fn deleted_rows(&self, file: &LiveFile) -> Result<Option<RoaringTreemap>> {
        file.deletion_vector
            .as_ref()
            .map(|descriptor| {
                let rows = descriptor.read(&self.engine, &self.url, &self.dir)?;
                if rows.max().is_some_and(|row| row >= file.num_rows) {
                    return Err(durable::corrupt(
                        &self.dir.join(&file.path),
                        "its deletion vector names rows beyond its end",
                    ));
                }
                Ok(rows)
            })
            .transpose()
    }

    /// All application ids with their versions. Replays the log: for opening only.
    pub(crate) fn txns(&self) -> Result<BTreeMap<String, i64>> {
        let failed = |e| kernel_error("read the positions of", &self.dir, e);
        let txn = StructType::try_new([
            StructField::not_null("appId", DataType::STRING),
            StructField::not_null("version", DataType::LONG),
        ])
        .map_err(failed)?;
        let actions = StructType::try_new([StructField::nullable("txn", txn)]).map_err(failed)?;
        let batches = self
            .snapshot
            .log_segment()
            .read_actions(self.engine.as_ref(), Arc::new(actions))
            .map_err(failed)?;
        let mut txns = BTreeMap::new();
        for batch in batches {
            let batch = batch.map_err(failed)?;
            if !batch.is_log_batch && failpoint::is_planted("checkpoint.without_positions") {
                continue;
            }
            let data = batch.actions;
            let batch: RecordBatch =
                (*ArrowEngineData::try_from_engine_data(data).map_err(failed)?).into();
            collect_txns(&batch, &mut txns)?;
        }
        Ok(txns)
    }
}

/// Newest commits come first, so the first version seen of an id is its current one.
fn collect_txns(batch: &RecordBatch, txns: &mut BTreeMap<String, i64>) -> Result<()> {
    let unexpected = || Error::bug("the kernel's txn actions are not as expected");
    let txn = batch
        .column_by_name("txn")
        .and_then(|c| c.as_struct_opt())
        .ok_or_else(unexpected)?;
    let ids = txn
        .column_by_name("appId")
        .and_then(|c| c.as_string_opt::<i32>())
        .ok_or_else(unexpected)?;
    let versions = txn
        .column_by_name("version")
        .and_then(|c| c.as_primitive_opt::<Int64Type>())
        .ok_or_else(unexpected)?;
    for row in 0..batch.num_rows() {
        if txn.is_valid(row) && ids.is_valid(row) {
            txns.entry(ids.value(row).to_owned())
                .or_insert_with(|| versions.value(row));
        }
    }
    Ok(())
}

/// The next version of the table was written by someone else.
pub(super) fn foreign(dir: &Path) -> Error {
    Error::new(
        &code::LAKE_FOREIGN,
        format!(
            "another program changed the lake's table \"{}\"",
            dir.display()
        ),
    )
    .with_detail("the next version of the table exists already, and alluvium did not write it")
}
