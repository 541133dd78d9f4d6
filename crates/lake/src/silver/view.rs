//! A table as it is now, for queries: the files of its last commit less all rows deleted since, and
//! the rows that are not in a commit yet.
//!
//! Made when asked for, at the cost of a look at each file: the hot path knows nothing of it. A view
//! shares deleted rows with the table until the table deletes more.

use std::sync::Arc;

use alluvium_change::{Lsn, Result};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use roaring::RoaringTreemap;

use super::Silver;
use super::segments::Segments;
use crate::key_index::SegmentId;
use crate::read::DataFile;
use crate::write::live_rows;

/// One table at one moment.
#[derive(Debug, Clone)]
pub struct SilverView {
    /// Columns in the table's order; all nullable.
    pub schema: SchemaRef,
    /// The Delta version of [`Self::files`].
    pub version: u64,
    /// Every transaction that commits at or before this LSN is in it, and none that commits later.
    pub position: Lsn,
    pub files: Vec<DataFile>,
    /// Rows that are in none of the files, with the columns of [`Self::schema`].
    pub rows: Vec<RecordBatch>,
}

impl Silver {
    /// Whether the table may have changes of transactions that commit after `through`: from a copy, or
    /// from a commit that was made before the stream began again.
    #[must_use]
    pub fn is_ahead_of(&self, through: Lsn) -> bool {
        self.position().max(self.positions.reconcile_until()) > through
    }

    /// The table with all that was applied, which must be whole transactions up to `through` and no
    /// more. None when its copy is not complete, or when rows that no commit has are not in memory
    /// ([`crate::LakeSettings::recent_bytes`]).
    ///
    /// # Errors
    /// Rows of the table do not go together: a bug.
    pub fn view(&self, through: Lsn) -> Result<Option<SilverView>> {
        self.check_usable()?;
        let Some(recent) = self.recent.all().filter(|_| self.positions.is_complete()) else {
            return Ok(None);
        };
        let mut rows = Vec::new();
        for (id, batches) in recent {
            live_rows_of(batches, self.deleted_of(*id), &mut rows)?;
        }
        Ok(Some(SilverView {
            schema: Arc::clone(&self.columns),
            version: self.table.version(),
            position: through,
            files: self.segments.data_files(&self.dir),
            rows,
        }))
    }

    /// Deleted rows of a file that is not committed.
    fn deleted_of(&self, id: SegmentId) -> Option<&RoaringTreemap> {
        match self.segments.get(id) {
            Some(segment) => Some(&segment.deleted),
            None => self.stage.deleted_of(id),
        }
    }
}

/// The rows of one file that are not deleted. A file that is no more has none.
fn live_rows_of(
    batches: &[RecordBatch],
    deleted: Option<&RoaringTreemap>,
    live: &mut Vec<RecordBatch>,
) -> Result<()> {
    let Some(deleted) = deleted else {
        return Ok(());
    };
    let mut first: u64 = 0;
    for batch in batches {
        live.push(live_rows(batch, first, deleted)?);
        first += batch.num_rows() as u64;
    }
    Ok(())
}

impl Segments {
    /// The committed files with their deleted rows, those deleted since included.
    fn data_files(&self, dir: &std::path::Path) -> Vec<DataFile> {
        self.iter()
            .filter(|(_, segment)| segment.committed)
            .map(|(_, segment)| DataFile {
                path: dir.join(&segment.file.path),
                size_bytes: u64::try_from(segment.file.size_bytes).unwrap_or_default(),
                num_rows: segment.file.num_rows,
                deleted: (!segment.deleted.is_empty()).then(|| Arc::clone(&segment.deleted)),
                stats: Arc::clone(&segment.file.stats),
            })
            .collect()
    }
}
