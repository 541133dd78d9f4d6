//! The initial copy: rows as of a snapshot, range by range, resumable.
//!
//! Ranges finished under an earlier snapshot are not copied again. A row may then come twice, from
//! two ranges under two snapshots: the later snapshot wins, and `reconcile_until` makes `apply` take
//! care of changes that some of the rows hold already.

use std::sync::Arc;

use alluvium_change::{Error, Identity, Lsn, Result, code};
use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, new_null_array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, TimeUnit};

use super::apply::State;
use super::index::{Index, Lookups};
use super::stage::Rows;
use super::txn::source_mark;
use super::{CopyState, Silver};
use crate::key_index::{Key, KeyEncoder, Location};
use crate::merge::Before;
use crate::write::EncodedRows;
use crate::{MetadataColumn, OnConflict};

impl Silver {
    /// Begins the copy anew under `snapshot`: a commit that removes all rows and forgets progress,
    /// position and stop.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn begin_copy(&mut self, snapshot: Lsn) -> Result<()> {
        self.check_usable()?;
        self.guarded(|silver| {
            silver.stage.discard(|_| false);
            silver.segments.retain(&silver.dir, |_| false);
            silver.index = silver.places.new_index(&silver.schema);
            let txns = silver
                .positions
                .begin(snapshot, source_mark(&silver.schema));
            silver.commit_staged(txns).map(|_| ())
        })
    }

    /// Stages rows read under `snapshot`.
    ///
    /// # Errors
    /// `COPY_AGAIN` when a table without a key is copied under a second snapshot; `CONFLICT` when one
    /// snapshot has a key twice.
    pub fn stage_copied(&mut self, rows: &RecordBatch, snapshot: Lsn) -> Result<()> {
        self.stage_copied_encoded(rows, snapshot, None)
    }

    /// As [`Self::stage_copied`], with the rows as bronze encoded them: where the table takes all of
    /// them, they are not encoded again.
    ///
    /// # Errors
    /// As [`Self::stage_copied`].
    pub fn stage_copied_encoded(
        &mut self,
        rows: &RecordBatch,
        snapshot: Lsn,
        encoded: Option<&EncodedRows>,
    ) -> Result<()> {
        self.check_usable()?;
        self.check_columns(rows)?;
        let CopyState::Copying { first_snapshot, .. } = self.copy_state() else {
            return Err(Error::bug(format!(
                "copied rows for table \"{}\", which is not being copied",
                self.owner.table
            )));
        };
        if snapshot != first_snapshot && !self.is_keyed() {
            return Err(Error::new(
                &code::COPY_AGAIN,
                format!(
                    "table \"{}\" has no key and cannot be copied under two snapshots",
                    self.owner.table
                ),
            ));
        }
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let encoded = encoded
            .filter(|encoded| encoded.num_rows() == rows.num_rows() && self.has_columns(encoded));
        self.guarded(|silver| silver.stage_range(rows, snapshot, encoded))
    }

    fn stage_range(
        &mut self,
        rows: &RecordBatch,
        snapshot: Lsn,
        encoded: Option<&EncodedRows>,
    ) -> Result<()> {
        self.last_copied = self.last_copied.max(Some(snapshot));
        if !matches!(self.index, Index::Keyed(_)) {
            let first = self.write_copied(rows, snapshot, encoded)?;
            return self.index_rows(rows, first);
        }
        let Identity::Key(key) = self.schema.identity.clone() else {
            return Err(Error::bug("a key index without a key"));
        };
        let key_columns: Vec<ArrayRef> = key
            .iter()
            .filter_map(|at| rows.columns().get(*at))
            .map(Arc::clone)
            .collect();
        let mut encoder = KeyEncoder::of_key(&key_columns)?;
        if (0..rows.num_rows()).any(|row| encoder.has_null(row)) {
            return Err(self.unfit("has a NULL in its key"));
        }
        let mut keys = Vec::new();
        encoder.keys(rows.num_rows(), &mut keys);
        let Index::Keyed(index) = &mut self.index else {
            return Err(Error::bug("a key index that is none"));
        };
        index.prepare(&keys)?;
        if self.is_only_snapshot(snapshot) {
            // No key can be there already: entering them tells if one is.
            let mut place = self.write_copied(rows, snapshot, encoded)?;
            let entry = |key| {
                let entry = (key, place.pack());
                place.row += 1;
                entry
            };
            let entries: Vec<(Key, u64)> = keys.into_iter().map(entry).collect();
            let Index::Keyed(index) = &mut self.index else {
                return Err(Error::bug("a key index that is none"));
            };
            for held in index.insert_new(&entries)? {
                self.double(held)?;
            }
            return self.settle_index();
        }
        let mut newest = Vec::with_capacity(rows.num_rows());
        let mut replaced = Vec::new();
        let Index::Keyed(index) = &self.index else {
            return Err(Error::bug("a key index that is none"));
        };
        let state = State {
            lookups: Lookups::new(index),
            segments: &self.segments,
            stage: &self.stage,
        };
        let mut doubled = 0;
        for key in &keys {
            let held = state.find(*key);
            let held_snapshot = held.and_then(|at| state.snapshot_of(at));
            newest.push(held_snapshot.is_none_or(|held| held <= snapshot));
            if let Some(held) = held
                && held_snapshot <= Some(snapshot)
            {
                doubled += u64::from(held_snapshot == Some(snapshot));
                replaced.push(held);
            }
        }
        state.lookups.check()?;
        if doubled > 0 && self.settings.on_conflict == OnConflict::Stop {
            return Err(self.unfit("has a key that another row has too"));
        }
        self.conflicts += doubled;
        let all = newest.iter().all(|newest| *newest);
        let rows = if all {
            rows.clone()
        } else {
            filter_record_batch(rows, &BooleanArray::from(newest.clone()))
                .map_err(|e| Error::bug("copied rows cannot be picked").with_source(e))?
        };
        for location in replaced {
            self.bury(location)?;
        }
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let mut place = self.write_copied(&rows, snapshot, encoded.filter(|_| all))?;
        let kept = keys.into_iter().zip(newest).filter(|(_, newest)| *newest);
        for (key, _) in kept {
            self.index_copied(key, place)?;
            place.row += 1;
        }
        self.settle_index()
    }

    /// A key of a row just written. Within one batch, too, a key may come twice.
    fn index_copied(&mut self, key: u128, place: Location) -> Result<()> {
        match self.enter(key, place)? {
            Some(held) if held.segment == place.segment && !self.stage.is_deleted(held) => {
                self.double(held)
            }
            _ => Ok(()),
        }
    }

    /// Enters a key; answers where it was.
    fn enter(&mut self, key: u128, place: Location) -> Result<Option<Location>> {
        match &mut self.index {
            Index::Keyed(index) => index.insert(key, place),
            Index::Rows(_) | Index::None => Err(Error::bug("a key without a key index")),
        }
    }

    /// Whether all rows of the table were copied under `snapshot`.
    fn is_only_snapshot(&self, snapshot: Lsn) -> bool {
        matches!(
            self.copy_state(),
            CopyState::Copying { first_snapshot, last_snapshot, .. }
                if first_snapshot == snapshot && last_snapshot == snapshot
        ) && self.last_copied == Some(snapshot)
    }

    /// A key came twice under one snapshot; it was at `held` before.
    fn double(&mut self, held: Location) -> Result<()> {
        if self.settings.on_conflict == OnConflict::Stop {
            return Err(self.unfit("has a key that another row has too"));
        }
        self.conflicts += 1;
        self.bury(held)
    }

    fn unfit(&self, what: &str) -> Error {
        Error::new(
            &code::CONFLICT,
            format!("a copied row of table \"{}\" {what}", self.owner.table),
        )
        .with_hint("name columns that are unique and never NULL as the table's key")
    }

    fn write_copied(
        &mut self,
        rows: &RecordBatch,
        snapshot: Lsn,
        encoded: Option<&EncodedRows>,
    ) -> Result<Location> {
        let count = rows.num_rows();
        let metadata = self.metadata_batch(|kind| copied_metadata(kind, snapshot, count))?;
        let (columns, snapshot) = (&self.columns, Some(snapshot));
        if let Some(encoded) = encoded {
            let metadata = self.encode(metadata)?;
            let sources = std::iter::once(encoded).chain(&metadata).collect();
            return self.stage.write(
                &Rows::Encoded(sources),
                columns,
                snapshot,
                &mut self.segments,
            );
        }
        let plain = Rows::Plain(self.with_metadata(rows, metadata.as_ref())?);
        self.stage
            .write(&plain, columns, snapshot, &mut self.segments)
    }

    /// Commits what was copied under `snapshot`, up to `next_page` of a relation (`u32::MAX`: all of
    /// it). Pages without rows count, too: what an earlier snapshot had in them is missing.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_copied(
        &mut self,
        snapshot: Lsn,
        relfilenode: u32,
        next_page: u32,
    ) -> Result<u64> {
        self.check_usable()?;
        self.last_copied = self.last_copied.max(Some(snapshot));
        self.guarded(|silver| {
            let txns = silver
                .positions
                .copied(relfilenode, next_page, silver.last_copied);
            silver.commit_staged(txns)
        })
    }

    /// The copy is complete: the table stands just before its first snapshot.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn finish_copy(&mut self) -> Result<()> {
        self.check_usable()?;
        let CopyState::Copying {
            first_snapshot,
            last_snapshot,
            ..
        } = self.copy_state()
        else {
            return Err(Error::bug(format!(
                "the copy of table \"{}\" was finished without being begun",
                self.owner.table
            )));
        };
        let last = self
            .last_copied
            .map_or(last_snapshot, |last| last.max(last_snapshot));
        self.guarded(|silver| {
            let txns = silver.positions.finish(first_snapshot, last);
            silver.commit_staged(txns).map(|_| ())
        })
    }
}

fn copied_metadata(kind: MetadataColumn, snapshot: Lsn, rows: usize) -> ArrayRef {
    match kind {
        MetadataColumn::CommitLsn => {
            Arc::new(Int64Array::from_value(snapshot.as_txn_version(), rows))
        }
        MetadataColumn::CommitTime => new_null_array(
            &DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            rows,
        ),
        MetadataColumn::Op => Arc::new(StringArray::from_iter_values(std::iter::repeat_n(
            "r", rows,
        ))),
    }
}
