//! Delta checkpoints: written off the hot path, adopted by the table's owner afterwards.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use alluvium_change::{Result, failpoint};
use delta_kernel::snapshot::{Snapshot, SnapshotRef};

use super::engine::{Engine, kernel_error};
use super::files::log_dir;
use super::table::DeltaTable;

static WRITING: Mutex<()> = Mutex::new(());

/// Writes a Delta checkpoint of one version; runs on any thread beside the table's owner.
pub struct CheckpointJob {
    dir: PathBuf,
    engine: Arc<Engine>,
    snapshot: SnapshotRef,
}

/// A checkpoint that was written.
#[derive(Debug, Clone, Copy)]
pub struct CheckpointDone {
    /// The version it holds.
    pub version: u64,
}

impl CheckpointJob {
    /// Writes the checkpoint (classic, V1) and the version's `.crc`.
    ///
    /// # Errors
    /// When it cannot be written: nothing is lost, the log only stays longer.
    pub fn run(self) -> Result<CheckpointDone> {
        // Writing one blocks threads of the engine that it needs itself: several at once could
        // wait for each other for ever. It also bounds the memory they take.
        let _one_at_a_time = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |e| kernel_error("write a checkpoint of", &self.dir, e);
        failpoint::hit("checkpoint.before_write");
        let version = self.snapshot.version();
        let engine = self.engine.as_ref();
        let name = format!("{version:020}.checkpoint.parquet");
        // Whoever knows of one that is there knows its size, too: it is not written again.
        if !log_dir(&self.dir).join(name).exists() {
            self.snapshot.checkpoint(engine, None).map_err(failed)?;
        }
        // The checksum only makes opening quicker; a table without one is complete.
        if let Err(error) = self.snapshot.write_checksum(engine) {
            tracing::debug!(%error, version, "no checksum written");
        }
        failpoint::hit("checkpoint.after_write");
        Ok(CheckpointDone { version })
    }
}

impl DeltaTable {
    /// A job that checkpoints the current version, once `every` commits have passed since the last
    /// checkpoint or job. One at a time: what came of it goes to [`Self::adopt_checkpoint`].
    pub(crate) fn take_checkpoint_job(&mut self, every: u64) -> Option<CheckpointJob> {
        // Two could write the same version's, and the older one go by a log that the newer one made
        // unnecessary.
        if self.checkpointing || self.commits_since_checkpoint < every.max(1) {
            return None;
        }
        self.checkpointing = true;
        self.commits_since_checkpoint = 0;
        Some(CheckpointJob {
            dir: self.dir.clone(),
            engine: Arc::clone(&self.engine),
            snapshot: Arc::clone(&self.snapshot),
        })
    }

    /// Lets the owner's snapshot start from the checkpoint, so that it stays short.
    pub(crate) fn adopt_checkpoint(&mut self, done: Result<CheckpointDone>) -> Result<()> {
        self.checkpointing = false;
        let done = done?;
        let version = self.version();
        // Of the version that it has already the kernel gives the snapshot back as it is, so the
        // latest is asked for.
        let snapshot = Snapshot::builder_from(Arc::clone(&self.snapshot))
            .build(self.engine.as_ref())
            .map_err(|e| kernel_error("adopt the checkpoint of", &self.dir, e))?;
        // A commit of somebody else shows with the next one of ours.
        if snapshot.version() == version {
            self.snapshot = snapshot;
        }
        self.commits_since_checkpoint = version.saturating_sub(done.version);
        Ok(())
    }
}
