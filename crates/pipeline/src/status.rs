//! What the pipeline tells of itself: per table and for the whole, written to
//! `.alluvium/status.json` while it runs and read by `alluvium status`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use alluvium_change::{Error, Lsn};
use serde::{Deserialize, Serialize};

/// What a table is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waits for its copy to begin.
    #[default]
    Waiting,
    /// Rows are copied from the source; changes are kept in bronze meanwhile.
    Copying,
    /// Changes kept in bronze are merged into silver.
    CatchingUp,
    /// Follows the stream.
    Live,
    /// Stopped by an error; the others go on.
    Stopped,
}

/// An error as status shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorStatus {
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: String,
}

impl From<&Error> for ErrorStatus {
    fn from(error: &Error) -> Self {
        Self {
            code: error.code().id.to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().to_owned(),
        }
    }
}

/// One table's state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TableStatus {
    pub phase: Phase,
    /// Directory in `silver/` and `bronze/`.
    pub lake_name: String,
    pub identity: String,
    pub silver_rows: u64,
    pub silver_version: u64,
    /// Every transaction up to here is in silver.
    pub silver_position: Lsn,
    pub bronze_position: Lsn,
    pub copied_rows: u64,
    pub copied_bytes: u64,
    pub copied_rows_per_sec: u64,
    /// The planner's estimate of all rows to copy.
    pub estimated_rows: u64,
    pub changes: u64,
    pub conflicts: u64,
    /// Memory of the key index.
    pub index_bytes: u64,
    /// Its disk space, when it is too large for its part of the memory.
    #[serde(default)]
    pub index_disk_bytes: u64,
    /// When the newest change now in silver was committed at the source, microseconds since 1970.
    pub newest_commit_micros: Option<i64>,
    /// From that commit to the Delta commit, in milliseconds.
    pub commit_lag_ms: Option<u64>,
    pub error: Option<ErrorStatus>,
}

/// The whole pipeline's state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PipelineStatus {
    pub process_id: u32,
    pub started_micros: i64,
    pub updated_micros: i64,
    pub source: String,
    pub slot: String,
    pub connected: bool,
    /// Received from the source.
    pub received_lsn: Lsn,
    /// Durable in the lake, and acknowledged to the source.
    pub acknowledged_lsn: Lsn,
    /// The server's own position when it last told.
    pub server_lsn: Lsn,
    pub error: Option<ErrorStatus>,
    pub tables: BTreeMap<String, TableStatus>,
}

impl PipelineStatus {
    /// WAL the server has written that is not durable in the lake yet, in bytes.
    #[must_use]
    pub fn lag_bytes(&self) -> u64 {
        self.server_lsn.0.saturating_sub(self.acknowledged_lsn.0)
    }
}

/// Microseconds since 1970.
#[must_use]
pub fn now_micros() -> i64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX)
}

/// Shared between the tasks that know something.
#[derive(Debug, Clone, Default)]
pub struct StatusBoard(Arc<Mutex<PipelineStatus>>);

impl StatusBoard {
    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut PipelineStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Changes one table's status.
    pub fn table(&self, table: &str, change: impl FnOnce(&mut TableStatus)) {
        self.update(|status| change(status.tables.entry(table.to_owned()).or_default()));
    }

    /// Whether `is` holds of every table.
    #[must_use]
    pub fn all_tables(&self, is: impl Fn(&TableStatus) -> bool) -> bool {
        let status = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        status.tables.values().all(is)
    }

    /// A copy of the status as it is.
    #[must_use]
    pub fn read(&self) -> PipelineStatus {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Writes the status beside the project, for other commands. Not being able to is no reason
    /// to stop.
    pub fn save(&self, state_dir: &Path) {
        self.update(|status| status.updated_micros = now_micros());
        let Ok(text) = serde_json::to_vec(&self.read()) else {
            return;
        };
        let path = status_path(state_dir);
        let temporary = path.with_extension("tmp");
        let written = std::fs::create_dir_all(state_dir)
            .and_then(|()| std::fs::write(&temporary, text))
            .and_then(|()| std::fs::rename(&temporary, &path));
        if let Err(error) = written {
            tracing::debug!(error = %error, "cannot write the status file");
        }
    }
}

fn status_path(state_dir: &Path) -> PathBuf {
    state_dir.join("status.json")
}

/// The status the pipeline last wrote, running or not.
#[must_use]
pub fn load(state_dir: &Path) -> Option<PipelineStatus> {
    serde_json::from_slice(&std::fs::read(status_path(state_dir)).ok()?).ok()
}
