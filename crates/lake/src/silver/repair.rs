//! Setting single rows right, as a snapshot of the source has them, while changes go on: for a table
//! with a key, in one commit that does not move the position.
//!
//! What changed after the snapshot is left alone: such a row is right by its change, or is asked for
//! again under a later snapshot.

use std::collections::HashSet;
use std::sync::Arc;

use alluvium_change::{ChangeBatch, Error, Identity, Lsn, Op, Result, TableSchema, failpoint};
use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;

use super::apply::pick;
use super::{CopyState, Silver};
use crate::bronze::ChangeReader;
use crate::key_index::{Key, KeyEncoder};
use crate::merge::Misfit;

/// Rows as the source had them at a snapshot. All batches have the table's columns.
#[derive(Debug, Clone)]
pub struct Repair {
    pub snapshot: Lsn,
    pub present: Vec<RecordBatch>,
    /// Rows that were not there: only their key counts.
    pub absent: Vec<RecordBatch>,
}

/// What a repair did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repaired {
    pub written: u64,
    pub removed: u64,
    /// Rows that changed after the snapshot.
    pub left_alone: u64,
}

impl Repair {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let mut batches = self.present.iter().chain(&self.absent);
        batches.all(|batch| batch.num_rows() == 0)
    }

    /// Without rows that `later`, the changes after the snapshot, speak of. Answers how many those were.
    ///
    /// # Errors
    /// The changes cannot be read.
    fn without(&mut self, later: ChangeReader, key: &[usize]) -> Result<u64> {
        let mut ours = HashSet::new();
        for batch in self.present.iter().chain(&self.absent) {
            ours.extend(keys_of(batch, key)?);
        }
        let mut changed = HashSet::new();
        for batch in later {
            let batch = batch?;
            if batch.ops.contains(&Op::Truncate) {
                changed = ours;
                break;
            }
            // Both keys of a change that has two.
            let old = batch.old.as_ref().map(|old| &old.rows);
            for rows in std::iter::once(&batch.rows).chain(old) {
                let keys = keys_of(rows, key)?;
                changed.extend(keys.into_iter().filter(|key| ours.contains(key)));
            }
        }
        for batches in [&mut self.present, &mut self.absent] {
            for batch in batches {
                let keys = keys_of(batch, key)?;
                let stays: BooleanArray = keys
                    .iter()
                    .map(|key| Some(!changed.contains(key)))
                    .collect();
                *batch = filter_record_batch(batch, &stays)
                    .map_err(|e| Error::bug("rows cannot be picked").with_source(e))?;
            }
        }
        Ok(changed.len() as u64)
    }
}

fn keys_of(rows: &RecordBatch, key: &[usize]) -> Result<Vec<Key>> {
    let columns = pick(rows, key)?;
    let mut keys = Vec::new();
    KeyEncoder::of_key(&columns)?.keys(rows.num_rows(), &mut keys);
    Ok(keys)
}

impl Silver {
    /// Whether [`Self::repair`] can be asked: nothing is staged, and the table is copied.
    #[must_use]
    pub fn can_repair(&self) -> bool {
        !self.has_staged() && self.copy_state() == CopyState::Complete
    }

    /// What of `repair` is to be done, as bronze has no later change of it.
    ///
    /// # Errors
    /// `SCHEMA_CHANGED`; the changes cannot be read; a bug when the table has no key.
    pub fn plan_repair(&self, mut repair: Repair, later: ChangeReader) -> Result<(Repair, u64)> {
        let Identity::Key(key) = &self.schema.identity else {
            return Err(Error::bug("rows of a table without a key were repaired"));
        };
        for rows in repair.present.iter().chain(&repair.absent) {
            self.check_columns(rows)?;
        }
        let left_alone = match failpoint::is_planted("repair.over_changes") {
            true => 0,
            false => repair.without(later, key)?,
        };
        Ok((repair, left_alone))
    }

    /// Writes rows as they were at the snapshot, and removes those that were not there, in one commit.
    /// The position stays. All that was committed before the snapshot must be in the table.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn repair(&mut self, repair: &Repair) -> Result<Repaired> {
        self.check_usable()?;
        if !self.can_repair() {
            return Err(Error::bug("a repair came before all that it builds on"));
        }
        let rounds = [(Op::Delete, &repair.absent), (Op::Read, &repair.present)];
        let mut repaired = Repaired::default();
        for (op, batches) in rounds {
            for rows in batches.iter().filter(|rows| rows.num_rows() > 0) {
                let batch = batch_of(&self.schema, op, rows, repair.snapshot);
                let applied = self.guarded(|silver| {
                    silver.apply_range(&batch, 0..batch.num_rows(), None, Misfit::Repair)
                })?;
                repaired.written += applied.inserted;
                repaired.removed += applied.deleted;
            }
        }
        if self.has_staged() {
            let position = self.position();
            self.commit(position)?;
        }
        Ok(repaired)
    }
}

fn batch_of(table: &Arc<TableSchema>, op: Op, rows: &RecordBatch, snapshot: Lsn) -> ChangeBatch {
    let count = rows.num_rows();
    ChangeBatch {
        table: Arc::clone(table),
        ops: vec![op; count],
        commit_lsn: vec![snapshot; count],
        event_serial: vec![0; count],
        xid: vec![0; count],
        commit_time_micros: vec![0; count],
        rows: rows.clone(),
        old: None,
        unchanged: Vec::new(),
    }
}
