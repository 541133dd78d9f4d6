//! What a lake and its tables can be told.

use std::path::PathBuf;
use std::time::Duration;

use alluvium_change::TableId;

use crate::owned::app_id;

/// How data files are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Uncompressed,
    Snappy,
    Lz4,
    /// With its level, 1 to 22.
    Zstd(u8),
}

/// Where key indexes are kept, and in how much memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexSettings {
    /// A directory of the local disk, in which each table has its own. What is in it can be
    /// deleted between two runs. None: indexes are in memory only and rebuilt at every open.
    pub dir: Option<PathBuf>,
    /// For the indexes of all tables together. An index that does not fit is on disk. Not for tables
    /// without a key.
    pub memory_bytes: usize,
    /// An index of fewer rows is rebuilt at every open: that is as quick as reading it back.
    pub saved_from_rows: u64,
    /// Fewest changed keys for which an index is saved while its table is open.
    pub saved_from_changes: u64,
}

impl Default for IndexSettings {
    fn default() -> Self {
        Self {
            dir: None,
            memory_bytes: 256 << 20,
            saved_from_rows: 100_000,
            saved_from_changes: 1 << 23,
        }
    }
}

/// When files are written anew as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactionSettings {
    /// So many files of about one size become one; at least 2.
    pub small_files: usize,
    /// A file of which more rows are deleted is written anew,
    pub deleted_percent: u8,
    /// if they are so many at least.
    pub least_deleted_rows: u64,
    /// While files that were written anew, and are kept for old versions, take more than so much of the
    /// table's size, a file is written anew only when more than half of its rows are deleted, and small
    /// ones by the hundred.
    pub kept_percent: u32,
    /// Also small files are written anew because their rows are in another order than [`ClusterBy`] says.
    pub sort_small: bool,
}

impl CompactionSettings {
    /// As thorough as can be of use, when it is asked for.
    #[must_use]
    pub fn by_hand() -> Self {
        Self {
            small_files: 2,
            deleted_percent: 0,
            least_deleted_rows: 1,
            kept_percent: u32::MAX,
            sort_small: true,
        }
    }
}

impl Default for CompactionSettings {
    fn default() -> Self {
        Self {
            small_files: 10,
            deleted_percent: 5,
            least_deleted_rows: 1000,
            kept_percent: 100,
            sort_small: false,
        }
    }
}

/// How long what is no longer current stays.
///
/// A version can be read while its files and its part of the log are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionSettings {
    /// Each version can be read for so long.
    pub all_versions: Duration,
    /// Data files that no version needs any more stay so long after they were removed, or written and
    /// never used: for readers that began before.
    pub removed_files: Duration,
    /// Of older versions, some can be read for so long.
    pub old_versions: Duration,
    /// One for each of these.
    pub old_versions_every: Duration,
}

impl Default for RetentionSettings {
    fn default() -> Self {
        const HOUR: Duration = Duration::from_secs(3600);
        Self {
            all_versions: HOUR,
            removed_files: HOUR,
            old_versions: 7 * 24 * HOUR,
            old_versions_every: 24 * HOUR,
        }
    }
}

/// What becomes of commits that other programs make to tables of the lake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ForeignWriters {
    /// They are undone, but for those of silver that only write the same rows to other files: these
    /// are kept.
    #[default]
    Follow,
    /// They are undone.
    Repair,
    /// The table stops.
    Refuse,
}

/// Settings of all tables of a lake.
#[derive(Debug, Clone)]
pub struct LakeSettings {
    pub compression: Compression,
    /// Size at which a data file is closed and the next one begun.
    pub target_file_bytes: u64,
    pub delta_checkpoint_every_commits: u64,
    /// Memory one open Parquet writer may hold; beyond it a row group is flushed.
    pub staging_bytes: usize,
    /// Most rows of a row group.
    pub row_group_rows: usize,
    /// A batch of so many rows is encoded once for bronze and silver, as a row group of its own; fewer
    /// rows share a row group with others.
    pub share_from_rows: usize,
    pub index: IndexSettings,
    pub compaction: CompactionSettings,
    pub retention: RetentionSettings,
    /// Memory for rows that no commit has yet, kept for [`crate::Silver::view`]. 0: none are kept.
    pub recent_bytes: usize,
    pub foreign: ForeignWriters,
    /// Off only where losing the last commits at a power cut does not matter.
    pub fsync: bool,
}

impl Default for LakeSettings {
    fn default() -> Self {
        Self {
            compression: Compression::Zstd(1),
            target_file_bytes: 128 << 20,
            delta_checkpoint_every_commits: 100,
            staging_bytes: 32 << 20,
            row_group_rows: 1 << 20,
            share_from_rows: 1024,
            index: IndexSettings::default(),
            compaction: CompactionSettings::default(),
            retention: RetentionSettings::default(),
            recent_bytes: 0,
            foreign: ForeignWriters::default(),
            fsync: true,
        }
    }
}

/// Who writes a table of the lake: what its `txn` application ids and properties are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub pipeline: String,
    pub source: String,
    /// PostgreSQL's `system_identifier`: a table made from another server is refused.
    pub system_identifier: String,
    pub table: TableId,
    /// The directory in `silver/` and `bronze/`.
    pub name: String,
}

impl Owner {
    /// The `txn` application id that carries the table's position.
    #[must_use]
    pub fn app_id(&self) -> String {
        app_id(&self.pipeline, &self.source, &self.table)
    }
}

/// What to do with a change that does not fit the row silver holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnConflict {
    /// Refuse the batch: [`alluvium_change::code::CONFLICT`].
    Stop,
    /// Count it; insert or replace the row of an insert or update, ignore a delete.
    Repair,
}

/// Columns silver may have beside the source's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataColumn {
    /// `_commit_lsn`: of the row's last change; of a copied row its snapshot.
    CommitLsn,
    /// `_commit_time`: of the row's last change; NULL for a copied row.
    CommitTime,
    /// `_op`: `r`, `c` or `u`.
    Op,
}

/// How rows of a silver table are deleted that are in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MergeMode {
    /// A deletion vector says so.
    #[default]
    DeletionVectors,
    /// The file is written anew without them, for readers that know no deletion vectors. All that came
    /// in so long is one commit.
    CopyOnWrite { commit_every: Duration },
}

/// In which order the rows of a file are that is written anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ClusterBy {
    /// As they came.
    #[default]
    Nothing,
    /// By the columns that identify a row.
    Key,
    Columns(Vec<String>),
}

/// Settings of one silver table.
#[derive(Debug, Clone)]
pub struct SilverSettings {
    pub on_conflict: OnConflict,
    pub metadata_columns: Vec<MetadataColumn>,
    pub merge_mode: MergeMode,
    /// Commits say what they do to rows, for readers of Delta's change data feed.
    pub change_data_feed: bool,
    /// Longest time between two commits because their deletion vectors take much space.
    pub longest_pause: Duration,
    pub cluster_by: ClusterBy,
}

impl Default for SilverSettings {
    fn default() -> Self {
        Self {
            on_conflict: OnConflict::Stop,
            metadata_columns: Vec::new(),
            merge_mode: MergeMode::default(),
            change_data_feed: false,
            longest_pause: Duration::ZERO,
            cluster_by: ClusterBy::Nothing,
        }
    }
}
