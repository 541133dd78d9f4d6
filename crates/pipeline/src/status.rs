//! What the pipeline tells of itself: per table and for the whole, written to
//! `.alluvium/status.json` while it runs and read by `alluvium status`.
//!
//! Three clocks, never mixed: *source lag* (how much of the server's WAL is not durable in the lake,
//! and since when), *commit lag* (from a commit at the source to its Delta commit), *freshness* (how
//! old the state is that a reader of silver sees).

pub mod report;

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
#[serde(default)]
pub struct TableStatus {
    pub phase: Phase,
    /// Directory in `silver/` and `bronze/`.
    pub lake_name: String,
    pub identity: String,
    pub silver_rows: u64,
    pub silver_version: u64,
    /// Every transaction up to here is in silver.
    pub silver_position: Lsn,
    /// Of a table that is committed now and then (`copy_on_write`): since when changes wait for that.
    pub waiting_since_micros: Option<i64>,
    pub bronze_position: Lsn,
    /// It is copied afresh beside the rows that readers see, and which follow the source meanwhile unless
    /// the phase says that they do not.
    pub resyncing: bool,
    /// Of the copy under way, or the last one.
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
    pub index_disk_bytes: u64,
    /// Data files of the last commits.
    pub silver_files: u64,
    pub bronze_files: u64,
    /// Care of both, in this run: commits that wrote files anew as one, and what was removed.
    pub compactions: u64,
    pub removed_files: u64,
    pub removed_bytes: u64,
    /// When the newest change now in silver was committed at the source, microseconds since 1970.
    pub newest_commit_micros: Option<i64>,
    /// From that commit to the Delta commit, in milliseconds.
    pub commit_lag_ms: Option<u64>,
    /// Cuts that were made durable: in bronze, and in silver while the table is live.
    pub commits: u64,
    /// What they took, together: from taking up a cut's last rows until it was durable.
    pub commit_micros_total: u64,
    pub last_commit_micros: Option<u64>,
    /// Of a table that is not live: the moment of the source that silver shows.
    pub current_until_micros: Option<i64>,
    /// Commands that wait for the table's owner.
    pub queued_commands: u64,
    pub error: Option<ErrorStatus>,
}

impl TableStatus {
    /// Whether its copy has not come to an end.
    #[must_use]
    pub(crate) fn is_being_copied(&self) -> bool {
        let by_phase = matches!(self.phase, Phase::Waiting | Phase::Copying);
        (by_phase || self.resyncing) && self.error.is_none()
    }

    /// Whether nothing more comes of it by itself.
    #[must_use]
    pub(crate) fn is_level(&self) -> bool {
        matches!(self.phase, Phase::Live | Phase::Stopped) && !self.resyncing
    }
}

/// What holds memory: how much, and how much it may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub bytes: u64,
    pub limit_bytes: u64,
}

impl Part {
    #[must_use]
    pub(crate) fn of(bytes: usize, limit_bytes: usize) -> Self {
        Self {
            bytes: bytes as u64,
            limit_bytes: limit_bytes as u64,
        }
    }
}

/// Memory against the budget `[limits] memory`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryStatus {
    pub budget_bytes: u64,
    /// Of the whole process, by the system's count; unknown where there is no `/proc`.
    pub resident_bytes: Option<u64>,
    /// Rows decoded and not handed over to their tables' owners.
    pub decoded: Part,
    /// Rows handed over to owners and not yet encoded.
    pub handed_over: Part,
    /// Transactions that the server sends while they still run.
    pub streamed: Part,
    /// Key and row indexes of all tables.
    pub index: Part,
    /// Rows that are in no commit yet, kept for queries.
    pub recent: Part,
}

/// What went through the stream since the start of the run, and what waits in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamStatus {
    /// Of pgoutput messages, without the protocol around them.
    pub received_bytes: u64,
    /// Transactions that were received whole.
    pub transactions: u64,
    /// Rows of changes, as handed over to the tables.
    pub changes: u64,
    /// Cuts that are on their way to the lake.
    pub open_cuts: u64,
    /// Commands that wait for owners, of all tables.
    pub queued_commands: u64,
    /// Transactions that the server sends while they run, and that have not ended.
    pub running_transactions: u64,
    /// Those that are prepared, and neither committed nor rolled back.
    pub prepared_transactions: u64,
    /// What these hold on disk.
    pub spilled_bytes: u64,
    /// All that was written to spill files.
    pub spilled_total_bytes: u64,
}

/// Over the last seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RateStatus {
    pub changes_per_sec: u64,
    pub copied_rows_per_sec: u64,
    pub received_bytes_per_sec: u64,
}

/// The HTTP server's address and queries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpStatus {
    /// Where it really listens; none when it does not.
    pub address: Option<String>,
    pub running_queries: u64,
    pub waiting_queries: u64,
    /// Queries that were taken up since the start.
    pub queries: u64,
}

/// The server that speaks PostgreSQL's protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PgStatus {
    /// Where it really listens; none when it does not.
    pub address: Option<String>,
    pub connections: u64,
}

/// The whole pipeline's state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PipelineStatus {
    pub process_id: u32,
    pub started_micros: i64,
    pub updated_micros: i64,
    pub source: String,
    pub slot: String,
    pub connected: bool,
    /// Received from the source.
    pub received_lsn: Lsn,
    /// Durable in the lake, and acknowledged to the source unless a prepared transaction waits for its
    /// decision.
    pub acknowledged_lsn: Lsn,
    /// The end of the server's WAL when it last told.
    pub server_lsn: Lsn,
    /// When it was asked for that.
    pub server_asked_micros: Option<i64>,
    /// All that was committed at the source before this moment is durable in the lake; more may be.
    pub complete_until_micros: Option<i64>,
    pub stream: StreamStatus,
    pub rates: RateStatus,
    pub memory: MemoryStatus,
    pub http: HttpStatus,
    pub pg: PgStatus,
    pub error: Option<ErrorStatus>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, TableStatus>,
}

/// A running pipeline tells of itself every second; after this long it is stuck.
const STALE_MICROS: i64 = 15_000_000;

impl PipelineStatus {
    /// WAL the server has written that is not durable in the lake yet, in bytes.
    #[must_use]
    pub fn lag_bytes(&self) -> u64 {
        self.server_lsn.0.saturating_sub(self.acknowledged_lsn.0)
    }

    /// Whether the pipeline has told nothing for so long that something must hold it up, or end it.
    #[must_use]
    pub fn is_stale(&self, now: i64) -> bool {
        now.saturating_sub(self.updated_micros) > STALE_MICROS
    }

    /// How long there has been WAL that is not durable in the lake, in milliseconds: 0 when there is
    /// none; none while that is not known.
    #[must_use]
    pub fn source_lag_ms(&self, now: i64) -> Option<u64> {
        if self.connected && self.lag_bytes() == 0 && !self.is_stale(now) {
            return Some(0);
        }
        self.complete_until_micros
            .map(|until| elapsed_ms(until, now))
    }

    /// From the newest commit of the source that is in a table to its Delta commit, in milliseconds.
    #[must_use]
    pub fn commit_lag_ms(&self) -> Option<u64> {
        let committed = self.tables.values();
        committed
            .max_by_key(|table| table.newest_commit_micros)
            .and_then(|table| table.commit_lag_ms)
    }

    /// How old the state of the source is, at most, that a reader of `table` in silver sees, in
    /// milliseconds; none where that is not known: before the first copy, or when the table was not
    /// live since the start.
    #[must_use]
    pub fn freshness_ms(&self, table: &TableStatus, now: i64) -> Option<u64> {
        match table.phase {
            Phase::Live => {
                let waits = table
                    .waiting_since_micros
                    .map_or(0, |since| elapsed_ms(since, now));
                self.source_lag_ms(now).map(|lag| lag.max(waits))
            }
            _ => table
                .current_until_micros
                .map(|until| elapsed_ms(until, now)),
        }
    }
}

fn elapsed_ms(since: i64, now: i64) -> u64 {
    u64::try_from(now.saturating_sub(since) / 1000).unwrap_or(0)
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

    /// What `look` finds in one table's status, where there is one.
    pub(crate) fn of_table<T>(
        &self,
        table: &str,
        look: impl FnOnce(&TableStatus) -> T,
    ) -> Option<T> {
        let status = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        status.tables.get(table).map(look)
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

    /// Where the server's WAL ended when it was last asked, and when that was.
    #[must_use]
    pub(crate) fn server_position(&self) -> Option<(Lsn, i64)> {
        let status = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        status
            .server_asked_micros
            .map(|asked| (status.server_lsn, asked))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    const NOW: i64 = 1_000_000_000_000;

    fn pipeline(server: u64, acknowledged: u64) -> PipelineStatus {
        PipelineStatus {
            connected: true,
            updated_micros: NOW - 500_000,
            server_lsn: Lsn(server),
            acknowledged_lsn: Lsn(acknowledged),
            complete_until_micros: Some(NOW - 3_000_000),
            ..PipelineStatus::default()
        }
    }

    #[test]
    fn source_lag_is_zero_only_while_that_is_known() {
        assert_eq!(pipeline(7, 7).source_lag_ms(NOW), Some(0));
        assert_eq!(pipeline(8, 7).source_lag_ms(NOW), Some(3000));
        let mut lost = pipeline(7, 7);
        lost.connected = false;
        assert_eq!(lost.source_lag_ms(NOW), Some(3000));
        let mut stuck = pipeline(7, 7);
        stuck.updated_micros = NOW - 60_000_000;
        assert_eq!(stuck.source_lag_ms(NOW), Some(3000));
        let mut new = pipeline(8, 0);
        new.complete_until_micros = None;
        assert_eq!(new.source_lag_ms(NOW), None);
    }

    #[test]
    fn freshness_of_a_stopped_table_grows_from_when_it_stopped() {
        let whole = pipeline(7, 7);
        let mut table = TableStatus {
            phase: Phase::Live,
            ..TableStatus::default()
        };
        assert_eq!(whole.freshness_ms(&table, NOW), Some(0));
        table.phase = Phase::Stopped;
        assert_eq!(whole.freshness_ms(&table, NOW), None, "it was never live");
        table.current_until_micros = Some(NOW - 9_000_000);
        assert_eq!(whole.freshness_ms(&table, NOW), Some(9000));
    }

    #[test]
    fn the_status_of_an_older_version_can_be_read() {
        let old = "{\"process_id\":7,\"tables\":{\"public.t\":{\"phase\":\"live\",\"changes\":3}}}";
        let status: PipelineStatus = serde_json::from_str(old).unwrap();
        assert_eq!(status.tables.get("public.t").unwrap().changes, 3);
        assert_eq!(status.memory, MemoryStatus::default());
    }
}
