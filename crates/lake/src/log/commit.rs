//! One Delta commit: files added and removed, rows deleted, positions moved. All or nothing.

use std::collections::HashMap;
use std::sync::Arc;

use alluvium_change::{Error, Result, code, failpoint};
use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::error::ArrowError;
use delta_kernel::engine::arrow_data::ArrowEngineData;
use delta_kernel::snapshot::Snapshot;
use delta_kernel::transaction::{CommitResult, UpdateTableOperation};
use roaring::RoaringTreemap;
use serde_json::{Value, json};

use super::committer::{Decoration, DurableCommitter};
use super::deletion_vector::{Descriptor, write_deletion_vectors};
use super::engine::kernel_error;
use super::foreign::Settled;
use super::rows::{LiveFile, empty_maps, scan_rows};
use super::table::{DeltaTable, ENGINE_INFO, foreign};
use crate::ForeignWriters;
use crate::fs as durable;

/// Where files of the change data feed are, in the table's directory.
pub(crate) const CHANGES_DIR: &str = "_change_data";
const FEED_PROPERTY: &str = "delta.enableChangeDataFeed";

fn feed_action(file: &NewFile) -> Value {
    json!({"cdc": {
        "path": file.path,
        "partitionValues": {},
        "size": file.size_bytes,
        "dataChange": false,
    }})
}

/// A data file to add: written, synced, not yet in the log.
#[derive(Debug, Clone)]
pub(crate) struct NewFile {
    /// The file's name in the table's directory.
    pub(crate) path: String,
    pub(crate) size_bytes: i64,
    pub(crate) modified_ms: i64,
    /// JSON text; with deleted rows it must say `"tightBounds":false`.
    pub(crate) stats: Arc<str>,
    pub(crate) num_rows: u64,
    /// Rows of it that are deleted from the start.
    pub(crate) deleted: Option<RoaringTreemap>,
}

impl NewFile {
    /// A file that was in the table, to be added again.
    pub(super) fn like(file: &LiveFile) -> Self {
        Self {
            path: file.path.clone(),
            size_bytes: file.size_bytes,
            modified_ms: file.modified_ms,
            stats: Arc::clone(&file.stats),
            num_rows: file.num_rows,
            deleted: None,
        }
    }

    /// As it is when a commit has added it.
    pub(crate) fn into_live(self, deletion_vector: Option<Descriptor>) -> LiveFile {
        LiveFile {
            path: self.path,
            size_bytes: self.size_bytes,
            modified_ms: self.modified_ms,
            stats: self.stats,
            num_rows: self.num_rows,
            deletion_vector,
        }
    }
}

/// All deleted rows of a live file, those deleted before included.
#[derive(Debug)]
pub(crate) struct DeletedRows<'a> {
    pub(crate) file: &'a LiveFile,
    pub(crate) rows: &'a RoaringTreemap,
}

/// What becomes of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Change {
    /// They are written and deleted.
    #[default]
    Rows,
    /// Only written: a bronze table.
    Appended,
    /// Nothing: the same rows in other files.
    Layout,
}

/// What one commit does.
#[derive(Debug, Default)]
pub(crate) struct Commit<'a> {
    pub(crate) change: Change,
    pub(crate) adds: Vec<NewFile>,
    pub(crate) deletes: Vec<DeletedRows<'a>>,
    pub(crate) removes: Vec<&'a LiveFile>,
    /// Rows of the files added that were in those removed.
    pub(crate) copied_rows: u64,
    /// What it does to rows, for the change data feed.
    pub(crate) feed: Option<NewFile>,
    /// Application ids and their new versions.
    pub(crate) txns: Vec<(String, i64)>,
}

/// A commit that was made.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) version: u64,
    /// Where the deleted rows of [`Commit::deletes`] are, in order.
    pub(crate) deletes: Vec<Descriptor>,
    /// Where those of [`Commit::adds`] are, in order.
    pub(crate) adds: Vec<Option<Descriptor>>,
}

/// The deletion vectors of a commit.
pub(super) struct WrittenVectors {
    pub(super) deletes: Vec<Descriptor>,
    pub(super) adds: Vec<Option<Descriptor>>,
}

/// Application id whose version is that of the last commit of ours: a table whose own version is
/// another was changed by somebody else meanwhile.
pub(super) const OWN_COMMIT: &str = "alluvium/commit";

/// Times a commit is tried while other programs write to the table.
pub(super) const MOST_TRIES: u32 = 10;

/// A Delta version as the version of [`OWN_COMMIT`].
pub(super) fn own_mark(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(i64::MAX)
}

impl DeltaTable {
    /// Whether commits say what they do to rows.
    pub(crate) fn feeds_changes(&self) -> bool {
        let properties = self.snapshot.metadata_configuration();
        properties.get(FEED_PROPERTY).is_some_and(|on| on == "true")
    }

    /// From the next commit on they do, or do not.
    pub(crate) fn set_change_feed(&mut self, on: bool) -> Result<()> {
        if self.feeds_changes() == on {
            return Ok(());
        }
        self.set_properties_with(&[(FEED_PROPERTY, on.to_string())], &["changeDataFeed"])
    }

    /// Makes one commit. Where another program was quicker, its commits are undone first, if they may
    /// be. On an error the table's state is unknown until it is opened again: the commit may or may not
    /// be in the log.
    ///
    /// # Errors
    /// `LAKE_FOREIGN`, also where the table must be opened again because its rows are in other files
    /// now.
    pub(crate) fn commit(&mut self, commit: &Commit<'_>) -> Result<Committed> {
        let mut tries = MOST_TRIES;
        loop {
            tries -= 1;
            match self.commit_once(commit) {
                Err(error)
                    if tries > 0
                        && error.is(&code::LAKE_FOREIGN)
                        && self.foreign != ForeignWriters::Refuse =>
                {
                    let is_stale = self.settle_newer()? == Settled::Followed;
                    if is_stale && !failpoint::is_planted("foreign.stale_index") {
                        return Err(error);
                    }
                }
                made => return made,
            }
        }
    }

    pub(super) fn commit_once(&mut self, commit: &Commit<'_>) -> Result<Committed> {
        let mut committer = DurableCommitter::new(&self.dir, self.fsync);
        let own_error = Arc::clone(&committer.error);
        let operation = match commit.change {
            Change::Rows => UpdateTableOperation::Merge,
            Change::Appended => UpdateTableOperation::StreamingUpdate,
            Change::Layout => UpdateTableOperation::Optimize,
        };
        // With a change data feed, the kernel refuses what both adds and removes, unless it says that
        // it changes no row. The committer says that it does.
        let removes = !commit.deletes.is_empty() || !commit.removes.is_empty();
        committer.says_data_change =
            removes && commit.change == Change::Rows && self.feeds_changes();
        committer.copied_rows = commit.copied_rows;
        committer.feed = commit.feed.as_ref().map(feed_action);
        let data_change = commit.change != Change::Layout && !committer.says_data_change;
        let failed = |e| kernel_error("commit to", &self.dir, e);
        // A context, for the deletion vectors' path, comes only with a transaction, and the
        // committer, which must know them, goes into one: hence a first transaction that is
        // dropped. Building one reads nothing.
        let vectors = self.write_vectors(commit)?;
        for (add, descriptor) in commit.adds.iter().zip(&vectors.adds) {
            let decoration = Decoration {
                stats: add.stats.to_string(),
                deletion_vector: descriptor.as_ref().map(Descriptor::to_json),
            };
            committer.added.insert(add.path.clone(), decoration);
        }
        let mut builder =
            Arc::clone(&self.snapshot).update_table(operation, ENGINE_INFO, data_change);
        for (app_id, version) in &commit.txns {
            builder = builder.with_transaction_id(app_id.clone(), *version);
        }
        builder = builder.with_transaction_id(OWN_COMMIT, own_mark(self.version() + 1));
        let mut transaction = builder
            .build(self.engine.as_ref(), Box::new(committer))
            .map_err(failed)?;
        if !commit.adds.is_empty() {
            let adds = add_rows(&commit.adds)?;
            transaction.add_files(Box::new(ArrowEngineData::new(adds)));
        }
        if !commit.removes.is_empty() {
            transaction.remove_files(scan_rows(&commit.removes)?);
        }
        if !commit.deletes.is_empty() {
            let by_path: HashMap<_, _> = commit
                .deletes
                .iter()
                .zip(&vectors.deletes)
                .map(|(delete, descriptor)| (delete.file.path.clone(), descriptor.0.clone()))
                .collect();
            let touched: Vec<&LiveFile> = commit.deletes.iter().map(|d| d.file).collect();
            transaction
                .update_deletion_vectors(by_path, std::iter::once(Ok(scan_rows(&touched)?)))
                .map_err(failed)?;
        }
        if self.fsync {
            durable::sync_dir(&self.dir)?;
        }
        failpoint::hit("commit.data_synced");
        let result = transaction.commit(self.engine.as_ref());
        if let Ok(mut slot) = own_error.lock()
            && let Some(error) = slot.take()
        {
            return Err(error);
        }
        match result.map_err(failed)? {
            CommitResult::Committed(committed) => {
                self.snapshot = match committed.post_commit_snapshot() {
                    Some(snapshot) => Arc::clone(snapshot),
                    None => Snapshot::builder_from(Arc::clone(&self.snapshot))
                        .build(self.engine.as_ref())
                        .map_err(failed)?,
                };
                self.commits_since_checkpoint += 1;
                Ok(Committed {
                    version: committed.commit_version(),
                    deletes: vectors.deletes,
                    adds: vectors.adds,
                })
            }
            CommitResult::Conflicted(_) => Err(foreign(&self.dir)),
            CommitResult::Retryable(retryable) => Err(failed(retryable.error)),
        }
    }

    /// Writes all deletion vectors of a commit into one file.
    pub(super) fn write_vectors(&self, commit: &Commit<'_>) -> Result<WrittenVectors> {
        let of_deletes = commit.deletes.iter().map(|delete| delete.rows);
        let of_adds = commit.adds.iter().filter_map(|add| add.deleted.as_ref());
        if commit.deletes.is_empty() && commit.adds.iter().all(|add| add.deleted.is_none()) {
            return Ok(WrittenVectors {
                deletes: Vec::new(),
                adds: commit.adds.iter().map(|_| None).collect(),
            });
        }
        let failed = |e| kernel_error("commit to", &self.dir, e);
        let context = Arc::clone(&self.snapshot)
            .update_table(UpdateTableOperation::Merge, ENGINE_INFO, true)
            .build(
                self.engine.as_ref(),
                Box::new(DurableCommitter::new(&self.dir, self.fsync)),
            )
            .and_then(|transaction| transaction.write_state())
            .and_then(|state| state.write_context_builder().build())
            .map_err(failed)?;
        let written =
            write_deletion_vectors(of_deletes.chain(of_adds), &context, &self.dir, self.fsync)?;
        let mut written = written.into_iter();
        let deletes = written.by_ref().take(commit.deletes.len()).collect();
        let adds = commit
            .adds
            .iter()
            .map(|add| add.deleted.as_ref().and_then(|_| written.next()))
            .collect();
        Ok(WrittenVectors { deletes, adds })
    }
}

/// The added files as the kernel takes them. Of the statistics it gets the number of rows; the
/// committer writes the rest.
fn add_rows(adds: &[NewFile]) -> Result<RecordBatch> {
    let bug = |e: ArrowError| Error::bug("added files cannot be described").with_source(e);
    let entry = Fields::from(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Utf8, true),
    ]);
    let partition_values = DataType::Map(
        Arc::new(Field::new("key_value", DataType::Struct(entry), false)),
        false,
    );
    let stats_fields = Fields::from(vec![
        Field::new("numRecords", DataType::Int64, true),
        Field::new("tightBounds", DataType::Boolean, true),
    ]);
    let num_rows = adds
        .iter()
        .map(|add| i64::try_from(add.num_rows).unwrap_or(i64::MAX));
    let tight: BooleanArray = adds.iter().map(|add| Some(add.deleted.is_none())).collect();
    let stats_columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(num_rows)),
        Arc::new(tight),
    ];
    let stats = StructArray::try_new(stats_fields.clone(), stats_columns, None).map_err(bug)?;
    let schema = Schema::new(vec![
        Field::new("path", DataType::Utf8, false),
        Field::new("partitionValues", partition_values.clone(), false),
        Field::new("size", DataType::Int64, false),
        Field::new("modificationTime", DataType::Int64, false),
        Field::new("stats", DataType::Struct(stats_fields), true),
    ]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(
            adds.iter().map(|add| add.path.as_str()),
        )),
        empty_maps(&partition_values, adds.len())?,
        Arc::new(Int64Array::from_iter_values(
            adds.iter().map(|add| add.size_bytes),
        )),
        Arc::new(Int64Array::from_iter_values(
            adds.iter().map(|add| add.modified_ms),
        )),
        Arc::new(stats),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).map_err(bug)
}
