//! Silver: the exact current rows of one source table.
//!
//! Stands after `merge`, whose plans it carries out, and before the log. It alone owns the table:
//! files, deleted rows, key index and every commit.
//!
//! ```text
//! ChangeBatch ─► apply: plan ─► fill ─► write ─► index      commit: files + deletion vectors + txn
//! COPY rows  ─► stage_copied ──────────► write ─► index     commit_copied: the same + progress
//! ```
//!
//! Invariants: the index names every live row exactly once; what is staged is in no commit; after
//! an error in between, the handle refuses everything until the table is opened again.
//!
//! Positions are `txn` actions (see [`txn`]); of application ids:
//! `<app>` position · `<app>/copy_first`, `<app>/copy_last` snapshots of a copy under way ·
//! `<app>/copy/<relfilenode>` next page · `<app>/reconcile_until` · `<app>/source` which table · `<app>/stopped`. A version of -1
//! means none.

mod apply;
mod beside;
mod compact;
mod copy;
mod evolve;
mod feed;
mod fill;
mod index;
mod open;
mod pace;
mod recent;
mod repair;
mod rewrite;
mod segments;
mod stage;
mod txn;
mod view;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use alluvium_change::{Error, Identity, Lsn, Result, TableSchema, code};
use arrow::datatypes::SchemaRef;

pub use apply::Applied;
use index::{Index, Places};
use recent::Recent;
pub(crate) use recent::RecentBudget;
pub use repair::{Repair, Repaired};
use segments::Segments;
pub(crate) use segments::{Origin, file_name, is_unsorted};
use stage::Stage;
use txn::Positions;
pub(crate) use txn::is_settled;
pub use view::SilverView;

use crate::log::{Commit, DeltaTable};
use crate::maintain::KeptBytes;
use crate::{
    CheckpointDone, CheckpointJob, ForeignWriters, LakeSettings, MergeMode, MetadataColumn, Owner,
    SilverSettings,
};

/// How far the initial copy of a table is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyState {
    None,
    Copying {
        /// Next page by `relfilenode`; `u32::MAX` when all of it is copied.
        progress: BTreeMap<u32, u32>,
        first_snapshot: Lsn,
        last_snapshot: Lsn,
    },
    Complete,
}

/// One silver table, open for writing.
pub struct Silver {
    owner: Owner,
    settings: SilverSettings,
    lake: LakeSettings,
    dir: PathBuf,
    table: DeltaTable,
    /// The table's columns, metadata columns included, in Delta's order.
    columns: SchemaRef,
    schema: Arc<TableSchema>,
    /// False when the lake's columns do not fit the source's: only a new schema helps.
    usable: bool,
    metadata: Vec<(MetadataColumn, String)>,
    segments: Segments,
    index: Index,
    places: Places,
    index_read_back: bool,
    stage: Stage,
    recent: Recent,
    positions: Positions,
    conflicts: u64,
    /// The latest snapshot rows were copied under since the table was opened.
    last_copied: Option<Lsn>,
    poisoned: bool,
    /// Of this handle, which numbers files in its own way.
    ticket: u64,
    /// The file that a compaction writes.
    compacting: Option<String>,
    /// Of files that were written anew.
    kept: KeptBytes,
    /// What was applied and is committed later.
    held: Option<pace::Held>,
    /// The last commit's deletion vectors were large: when the next is due.
    paused_until: Option<Instant>,
    /// A commit was begun and did not return: staged files may be in the log.
    committing: bool,
}

impl Silver {
    /// Every transaction that commits at or before this LSN is in the table; zero before the copy
    /// is complete. What [waits for its commit](Self::commit_in_time) is counted.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.held_position()
            .unwrap_or_else(|| self.positions.position())
    }

    /// As [`Self::position`], of the last commit: for those who read the table.
    #[must_use]
    pub fn committed_position(&self) -> Lsn {
        self.positions.position()
    }

    #[must_use]
    pub fn copy_state(&self) -> CopyState {
        self.positions.copy_state()
    }

    /// Whether the rows are those of this very table of the source, told apart in the same way; true
    /// before its first copy. A table that was dropped and made again is another.
    #[must_use]
    pub fn is_copy_of(&self, source: &TableSchema) -> bool {
        self.positions
            .source()
            .is_none_or(|mark| mark == txn::source_mark(source))
    }

    /// The source's columns as the table holds them.
    #[must_use]
    pub fn schema(&self) -> &Arc<TableSchema> {
        &self.schema
    }

    /// Rows, staged changes included.
    #[must_use]
    pub fn num_rows(&self) -> u64 {
        self.segments.live_rows() + self.stage.open_rows()
    }

    /// Data files, written ones that no commit has included.
    #[must_use]
    pub fn num_files(&self) -> usize {
        self.segments.iter().count()
    }

    /// Changes since the table was opened that did not fit (`on_conflict = "repair"`).
    #[must_use]
    pub fn conflicts(&self) -> u64 {
        self.conflicts
    }

    /// Memory of the key index.
    #[must_use]
    pub fn index_bytes(&self) -> usize {
        match &self.index {
            Index::Keyed(index) => index.memory_bytes(),
            Index::Rows(index) => index.memory_bytes(),
            Index::None => 0,
        }
    }

    /// Disk space of the key index, when it is too large for its part of the memory.
    #[must_use]
    pub fn index_disk_bytes(&self) -> u64 {
        match &self.index {
            Index::Keyed(index) => index.disk_bytes(),
            Index::Rows(_) | Index::None => 0,
        }
    }

    /// Entries of the key index; for tests that compare it with the files.
    #[must_use]
    pub fn index_len(&self) -> usize {
        match &self.index {
            Index::Keyed(index) => index.len(),
            Index::Rows(index) => index.len(),
            Index::None => 0,
        }
    }

    /// Whether the key index was read back when the table was opened, and not rebuilt.
    #[must_use]
    pub fn index_read_back(&self) -> bool {
        self.index_read_back
    }

    /// Delta version of the last commit.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.table.version()
    }

    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Whether something was applied since the last commit.
    #[must_use]
    pub fn has_staged(&self) -> bool {
        self.stage.has_open() || self.segments.is_dirty()
    }

    /// Where the table was stopped, if it was.
    #[must_use]
    pub fn stopped_at(&self) -> Option<Lsn> {
        self.positions.stopped_at()
    }

    /// One Delta commit of everything applied since the last: rows, deletions and `position`.
    ///
    /// None, and no commit, when nothing changed; see [`Self::set_position`].
    ///
    /// # Errors
    /// After an error the table must be opened again; the commit may have been made.
    pub fn commit(&mut self, position: Lsn) -> Result<Option<u64>> {
        self.check_usable()?;
        if position < self.position() {
            return Err(Error::bug(format!(
                "a commit at {position} to table \"{}\", which is at {}",
                self.owner.table,
                self.position()
            )));
        }
        if !self.has_staged() {
            return Ok(None);
        }
        self.guarded(|silver| {
            let txns = silver.positions.at(position);
            silver.commit_staged(txns).map(Some)
        })
    }

    /// A commit that moves the position and nothing else.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn set_position(&mut self, position: Lsn) -> Result<u64> {
        self.check_usable()?;
        if self.has_staged() {
            return Err(Error::bug("a position was set over staged changes"));
        }
        self.guarded(|silver| {
            let txns = silver.positions.at(position);
            silver.commit_staged(txns)
        })
    }

    /// Records that the table stopped at a transaction it cannot take. Clear it with
    /// [`Self::begin_copy`].
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn stop(&mut self, at: Lsn, reason: &str) -> Result<()> {
        self.check_open()?;
        if self.has_staged() {
            return Err(Error::bug("a table was stopped over staged changes"));
        }
        tracing::warn!(table = %self.owner.table, %at, reason, "table stopped");
        self.guarded(|silver| {
            let txns = silver.positions.stopped(at);
            silver.commit_staged(txns).map(|_| ())
        })
    }

    /// Work for another thread, when enough commits have passed since the last checkpoint; by hand one
    /// is enough.
    pub fn take_checkpoint_job(&mut self, by_hand: bool) -> Option<CheckpointJob> {
        let every = self.lake.delta_checkpoint_every_commits;
        self.table
            .take_checkpoint_job(if by_hand { 1 } else { every })
    }

    /// Lets the table go on from a checkpoint that was written.
    ///
    /// # Errors
    /// When it was not, or the log cannot be listed.
    pub fn adopt_checkpoint(&mut self, done: Result<CheckpointDone>) -> Result<()> {
        self.table.adopt_checkpoint(done)
    }

    /// Runs `work`; an error leaves the handle unusable, as memory and files may disagree.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let result = work(self);
        self.poisoned |= result.is_err();
        result
    }

    fn check_open(&self) -> Result<()> {
        if self.poisoned {
            return Err(Error::bug(format!(
                "table \"{}\" was used after an error without opening it again",
                self.owner.table
            )));
        }
        Ok(())
    }

    fn check_usable(&self) -> Result<()> {
        self.check_open()?;
        if !self.usable {
            return Err(Error::new(
                &code::SCHEMA_CHANGED,
                format!(
                    "the columns of table \"{}\" are not those of its silver table",
                    self.owner.table
                ),
            ));
        }
        Ok(())
    }

    fn is_keyed(&self) -> bool {
        matches!(self.schema.identity, Identity::Key(_))
    }

    /// After they were committed. Names of files say which snapshot copied rows are of, so another
    /// program's files may take their place only when that does not matter any more.
    fn set_positions(&mut self, txns: &[(String, i64)]) {
        self.positions.set(txns);
        self.table.set_foreign(match self.lake.foreign {
            ForeignWriters::Follow if !self.positions.is_settled() => ForeignWriters::Repair,
            policy => policy,
        });
    }

    /// Commits what is staged together with `txns`, and makes it the new committed state.
    fn commit_staged(&mut self, txns: Vec<(String, i64)>) -> Result<u64> {
        self.stage.close_all(&mut self.segments)?;
        let feed = self.write_feed()?;
        if self.settings.merge_mode != MergeMode::DeletionVectors {
            self.rewrite_thinned()?;
        }
        let changes = self.segments.changes();
        let commit = Commit {
            adds: changes.adds,
            deletes: changes.deletes,
            removes: changes.removes,
            copied_rows: changes.copied_rows,
            feed,
            txns,
            ..Commit::default()
        };
        self.committing = true;
        let committed = self.table.commit(&commit)?;
        self.committing = false;
        let txns = commit.txns;
        self.segments
            .committed(&self.dir, &committed.adds, &committed.deletes)?;
        self.pause_after(&committed.deletes);
        self.set_positions(&txns);
        self.recent.clear();
        self.held = None;
        self.index_committed();
        Ok(committed.version)
    }
}

impl Drop for Silver {
    fn drop(&mut self) {
        if !self.committing {
            self.segments.remove_staged_files(&self.dir);
        }
    }
}
