//! Changes of one table, in source order, as Arrow columns.

use std::sync::Arc;

use arrow::array::RecordBatch;

use crate::{Lsn, Op, TableSchema};

/// A value the source did not send because it did not change (an out-of-line TOAST value).
///
/// The place in [`ChangeBatch::rows`] holds NULL; the true value is the one silver has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unchanged {
    /// Row of the batch.
    pub row: u32,
    /// Place of the column in [`TableSchema::columns`].
    pub column: u32,
}

/// Old images, held apart because most updates have none.
#[derive(Debug, Clone)]
pub struct OldImages {
    /// For each row of the batch, the row of [`Self::rows`] that holds its old image.
    pub row_of: Vec<Option<u32>>,
    /// The old images, with the schema of [`ChangeBatch::rows`]: the key columns when the source
    /// sends only the key (the rest NULL), the whole row under `REPLICA IDENTITY FULL`.
    pub rows: RecordBatch,
}

/// Changes of one table in the order of the source. All vectors have one entry per row.
///
/// `rows` is the new image; of a delete, what the identity sent; of a truncate, NULLs.
/// A delete has no entry in `old`: its image is in `rows`.
#[derive(Debug, Clone)]
pub struct ChangeBatch {
    pub table: Arc<TableSchema>,
    pub ops: Vec<Op>,
    /// Start of the commit record of the row's transaction; never falls within a batch.
    /// Of a copied row: the LSN of its snapshot.
    pub commit_lsn: Vec<Lsn>,
    /// Place within its transaction, from 0, counted over all tables.
    pub event_serial: Vec<u64>,
    pub xid: Vec<u32>,
    /// Microseconds since 1970-01-01 00:00 UTC.
    pub commit_time_micros: Vec<i64>,
    pub rows: RecordBatch,
    pub old: Option<OldImages>,
    /// Sorted by row, then column.
    pub unchanged: Vec<Unchanged>,
}

impl ChangeBatch {
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.ops.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Memory held, in bytes: what a queue's budget accounts for.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        const FIXED_BYTES_PER_ROW: usize = 1 + 8 + 8 + 4 + 8;
        let old = self.old.as_ref().map_or(0, |old| {
            old.rows.get_array_memory_size() + old.row_of.len() * size_of::<Option<u32>>()
        });
        self.rows.get_array_memory_size()
            + old
            + self.num_rows() * FIXED_BYTES_PER_ROW
            + self.unchanged.len() * size_of::<Unchanged>()
    }

    /// The old image's row of [`OldImages::rows`], if the source sent one for `row`.
    #[must_use]
    pub fn old_row(&self, row: usize) -> Option<u32> {
        self.old.as_ref()?.row_of.get(row).copied().flatten()
    }

    /// The columns not sent for `row`.
    #[must_use]
    pub fn unchanged_of(&self, row: usize) -> &[Unchanged] {
        let row = u32::try_from(row).unwrap_or(u32::MAX);
        let start = self.unchanged.partition_point(|u| u.row < row);
        let end = self.unchanged.partition_point(|u| u.row <= row);
        self.unchanged.get(start..end).unwrap_or(&[])
    }

    /// Rows `offset..offset + length`, sharing the columns' memory. Out of range is cut.
    #[must_use]
    pub fn slice(&self, offset: usize, length: usize) -> Self {
        let start = offset.min(self.num_rows());
        let end = offset.saturating_add(length).min(self.num_rows());
        let first = u32::try_from(start).unwrap_or(u32::MAX);
        let last = u32::try_from(end).unwrap_or(u32::MAX);
        let unchanged = self
            .unchanged
            .iter()
            .filter(|u| u.row >= first && u.row < last)
            .map(|u| Unchanged {
                row: u.row - first,
                column: u.column,
            })
            .collect();
        Self {
            table: Arc::clone(&self.table),
            ops: self.ops[start..end].to_vec(),
            commit_lsn: self.commit_lsn[start..end].to_vec(),
            event_serial: self.event_serial[start..end].to_vec(),
            xid: self.xid[start..end].to_vec(),
            commit_time_micros: self.commit_time_micros[start..end].to_vec(),
            rows: self.rows.slice(start, end - start),
            old: self.old.as_ref().map(|old| OldImages {
                row_of: old.row_of[start..end].to_vec(),
                rows: old.rows.clone(),
            }),
            unchanged,
        }
    }

    /// Rows before the batch's last transaction begins: that one may go on in a later batch.
    #[must_use]
    pub fn rows_before_last_transaction(&self) -> usize {
        let Some(last) = self.commit_lsn.last() else {
            return 0;
        };
        self.commit_lsn
            .iter()
            .rposition(|lsn| lsn != last)
            .map_or(0, |at| at + 1)
    }
}
