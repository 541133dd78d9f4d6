//! The lake: a directory with `silver/` and `bronze/`, each holding one Delta table per source
//! table.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alluvium_change::{Error, Result, code};

use crate::key_index::IndexBudget;
use crate::silver::RecentBudget;
use crate::{LakeSettings, fs as durable};

/// A handle on the lake's directory. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Lake {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    settings: LakeSettings,
    index_budget: Arc<IndexBudget>,
    recent_budget: Arc<RecentBudget>,
}

impl Lake {
    /// Opens the lake at `root`, creating it when absent.
    ///
    /// # Errors
    /// `LAKE_READ_ONLY` when the directory cannot be written, `LAKE_IO` for other failures.
    pub fn open(root: &Path, settings: LakeSettings) -> Result<Self> {
        durable::create_dir(root, settings.fsync)?;
        // Absolute, so that a later change of directory does not move the lake.
        let root =
            fs::canonicalize(root).map_err(|e| durable::io_error("open the lake", root, e))?;
        for layer in ["silver", "bronze"] {
            durable::create_dir(&root.join(layer), settings.fsync)?;
        }
        let probe = root.join(format!(".probe-{}.tmp", durable::new_uuid()));
        durable::write_new(&probe, b"", false).map_err(|e| {
            if e.is(&code::LAKE_IO) {
                Error::new(
                    &code::LAKE_READ_ONLY,
                    format!("the lake \"{}\" cannot be written", root.display()),
                )
                .with_source(e)
            } else {
                e
            }
        })?;
        durable::remove(&probe)?;
        Ok(Self {
            inner: Arc::new(Inner {
                root,
                index_budget: IndexBudget::new(settings.index.memory_bytes),
                recent_budget: RecentBudget::new(settings.recent_bytes),
                settings,
            }),
        })
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    #[must_use]
    pub fn settings(&self) -> &LakeSettings {
        &self.inner.settings
    }

    pub(crate) fn index_budget(&self) -> &Arc<IndexBudget> {
        &self.inner.index_budget
    }

    pub(crate) fn recent_budget(&self) -> &Arc<RecentBudget> {
        &self.inner.recent_budget
    }

    /// Memory of rows that are kept for views of silver tables.
    #[must_use]
    pub fn recent_bytes(&self) -> usize {
        self.inner.recent_budget.used_bytes()
    }

    /// The directory of a silver table.
    #[must_use]
    pub fn silver_dir(&self, name: &str) -> PathBuf {
        self.inner.root.join("silver").join(name)
    }

    /// Where a silver table is copied afresh, beside the one that stands.
    pub(crate) fn beside_dir(&self, name: &str) -> PathBuf {
        self.inner.root.join(".resync").join(name)
    }

    /// The directory of a bronze table.
    #[must_use]
    pub fn bronze_dir(&self, name: &str) -> PathBuf {
        self.inner.root.join("bronze").join(name)
    }
}
