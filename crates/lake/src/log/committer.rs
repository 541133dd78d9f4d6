//! How a commit becomes durable: temporary file, sync, link under the version's name, sync.
//!
//! Called by the kernel inside `Transaction::commit`. Beside writing, it completes the actions the
//! kernel makes: statistics of added files are ours (see `write::stats`), an added file may come
//! with deleted rows, and of removed files' statistics the number of rows is left.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use alluvium_change::surroundings::now_ms;
use alluvium_change::{Error, Result, failpoint};
use delta_kernel::committer::{CommitMetadata, CommitResponse, Committer, PublishMetadata};
use delta_kernel::engine_data::FilteredEngineData;
use delta_kernel::{Engine, FileMeta, KernelError, KernelResult, KernelResultIterator};
use serde_json::{Map, Value, json};

use super::files::{commit_path, log_dir};
use crate::fs::{self as durable, Link, TEMPORARY_SUFFIX};

/// What the log says of an added file beyond what the kernel knows.
#[derive(Debug, Clone)]
pub(super) struct Decoration {
    /// JSON text.
    pub(super) stats: String,
    pub(super) deletion_vector: Option<Value>,
}

/// Where an error of ours waits while the kernel's own passes through the kernel.
pub(super) type ErrorSlot = Arc<Mutex<Option<Error>>>;

/// Writes commits of one table.
pub(super) struct DurableCommitter {
    pub(super) dir: PathBuf,
    pub(super) fsync: bool,
    /// By path of the added file.
    pub(super) added: HashMap<String, Decoration>,
    /// The kernel was told that no row changes, which is not so.
    pub(super) says_data_change: bool,
    /// Rows that are only in other files than before.
    pub(super) copied_rows: u64,
    /// One more action.
    pub(super) feed: Option<Value>,
    pub(super) error: ErrorSlot,
}

impl DurableCommitter {
    pub(super) fn new(dir: &Path, fsync: bool) -> Self {
        Self {
            dir: dir.to_owned(),
            fsync,
            added: HashMap::new(),
            says_data_change: false,
            copied_rows: 0,
            feed: None,
            error: ErrorSlot::default(),
        }
    }

    fn keep(&self, error: Error) -> KernelError {
        let text = error.to_string();
        if let Ok(mut slot) = self.error.lock() {
            *slot = Some(error);
        }
        KernelError::generic(text)
    }

    fn complete(&self, lines: &[u8]) -> Result<Vec<u8>> {
        let mut completed = Vec::with_capacity(lines.len());
        for line in lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let completes = self.says_data_change || !self.added.is_empty();
            if line.starts_with(b"{\"add\"") && completes {
                self.complete_add(line, &mut completed)?;
            } else if line.starts_with(b"{\"remove\"") {
                let mut action = parse(line)?;
                if let Some(remove) = action.get_mut("remove").and_then(Value::as_object_mut) {
                    // Bounds are of no use any more; how many rows went is told by `history`.
                    if let Some(Value::String(stats)) = remove.remove("stats") {
                        insert_count(remove, &stats);
                    }
                    // The clock that cleaning goes by.
                    remove.insert("deletionTimestamp".to_owned(), now_ms().into());
                    self.tell_data_change(remove);
                }
                completed.extend_from_slice(action.to_string().as_bytes());
            } else if line.starts_with(b"{\"commitInfo\"") && self.copied_rows > 0 {
                let mut action = parse(line)?;
                if let Some(info) = action.get_mut("commitInfo").and_then(Value::as_object_mut) {
                    insert_metrics(info, self.copied_rows);
                }
                completed.extend_from_slice(action.to_string().as_bytes());
            } else {
                completed.extend_from_slice(line);
            }
            completed.push(b'\n');
        }
        if let Some(feed) = &self.feed {
            completed.extend_from_slice(feed.to_string().as_bytes());
            completed.push(b'\n');
        }
        Ok(completed)
    }

    fn tell_data_change(&self, file: &mut Map<String, Value>) {
        if self.says_data_change {
            file.insert("dataChange".to_owned(), true.into());
        }
    }

    fn complete_add(&self, line: &[u8], completed: &mut Vec<u8>) -> Result<()> {
        let mut action = parse(line)?;
        let decoration = action
            .pointer("/add/path")
            .and_then(Value::as_str)
            .and_then(|path| self.added.get(path));
        if let Some(add) = action.get_mut("add").and_then(Value::as_object_mut) {
            self.tell_data_change(add);
            if let Some(decoration) = decoration {
                add.insert("stats".to_owned(), decoration.stats.clone().into());
                if let Some(deletion_vector) = &decoration.deletion_vector {
                    add.insert("deletionVector".to_owned(), deletion_vector.clone());
                }
            }
        }
        completed.extend_from_slice(action.to_string().as_bytes());
        Ok(())
    }
}

/// Of a removed file's statistics, the number of rows alone.
pub(super) fn insert_count(remove: &mut Map<String, Value>, stats: &str) {
    let stats: Option<Value> = serde_json::from_str(stats).ok();
    if let Some(rows) = stats.as_ref().and_then(|stats| stats.get("numRecords")) {
        let stats = json!({"numRecords": rows}).to_string();
        remove.insert("stats".to_owned(), stats.into());
    }
}

/// As Delta's `MERGE` tells of them: numbers are text.
pub(super) fn insert_metrics(info: &mut Map<String, Value>, copied_rows: u64) {
    if copied_rows > 0 {
        let metrics = json!({COPIED_ROWS: copied_rows.to_string()});
        info.insert("operationMetrics".to_owned(), metrics);
    }
}

/// Rows that a commit left as they were, in files that it wrote anew.
pub(super) const COPIED_ROWS: &str = "numTargetRowsCopied";

fn parse(line: &[u8]) -> Result<Value> {
    serde_json::from_slice(line)
        .map_err(|e| Error::bug("an action of a commit is not JSON").with_source(e))
}

impl Committer for DurableCommitter {
    fn commit(
        &self,
        _engine: &dyn Engine,
        actions: KernelResultIterator<'_, FilteredEngineData>,
        metadata: CommitMetadata,
    ) -> KernelResult<CommitResponse> {
        let lines = delta_kernel::engine::arrow_utils::to_json_bytes(actions)?;
        let lines = self.complete(&lines).map_err(|e| self.keep(e))?;
        let written = write_commit(&self.dir, metadata.version(), &lines, self.fsync)
            .map_err(|e| self.keep(e))?;
        match written {
            Link::Taken => Ok(CommitResponse::Conflict {
                version: metadata.version(),
            }),
            Link::Made => {
                let location = metadata.published_commit_path()?;
                let size = lines.len() as u64;
                let file_meta = FileMeta::new(location, metadata.in_commit_timestamp(), size);
                Ok(CommitResponse::Committed { file_meta })
            }
        }
    }

    fn is_catalog_committer(&self) -> bool {
        false
    }

    fn publish(&self, _engine: &dyn Engine, _publish: PublishMetadata) -> KernelResult<()> {
        Ok(())
    }
}

/// Writes the file of commit `version`, unless there is one.
pub(super) fn write_commit(dir: &Path, version: u64, lines: &[u8], fsync: bool) -> Result<Link> {
    let log = log_dir(dir);
    durable::create_dir(&log, fsync)?;
    let temporary = log.join(format!("{}{TEMPORARY_SUFFIX}", durable::new_uuid()));
    durable::write_new(&temporary, lines, fsync)?;
    failpoint::hit("commit.log_written");
    let link = durable::link_new(&temporary, &commit_path(dir, version))?;
    failpoint::hit("commit.log_linked");
    if fsync && !failpoint::is_planted("commit.not_synced") {
        durable::sync_dir(&log)?;
    }
    Ok(link)
}

/// Removes what a crash left between writing and linking.
pub(super) fn remove_temporary_files(dir: &Path) -> Result<()> {
    let log = log_dir(dir);
    let entries = match std::fs::read_dir(&log) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(durable::io_error("read", &log, e)),
    };
    for entry in entries {
        let path = entry
            .map_err(|e| durable::io_error("read", &log, e))?
            .path();
        if path.to_string_lossy().ends_with(TEMPORARY_SUFFIX) {
            durable::remove(&path)?;
        }
    }
    Ok(())
}
