//! Planning a merge: from changes in source order to rows to write, rows to delete and the new
//! state of the key index.
//!
//! Pure: it reads the index, changes nothing and touches no file; `silver` carries a plan out.
//! Invariant: carrying out the plan of a batch gives what applying its changes one by one would.
//!
//! ```text
//! ChangeBatch ─ keys ─► plan_keyed / plan_rows ─► Plan { rows, dead, index }
//!                           │ asks
//!                        key index
//! ```

mod keyed;
mod rows;

use alluvium_change::Lsn;

pub(crate) use keyed::{Before, plan_keyed};
pub(crate) use rows::plan_rows;

use crate::key_index::{Key, Location};

/// What is done to a row, truncates excepted: they are carried out between plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Insert,
    Update,
    Delete,
}

/// One change, reduced to what planning needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub(crate) action: Action,
    /// Its row of the batch.
    pub(crate) row: u32,
    pub(crate) commit_lsn: Lsn,
    /// Of the new image; of a delete, of what the identity sent.
    pub(crate) key: Key,
    /// Of the old image, if one was sent.
    pub(crate) old_key: Option<Key>,
}

/// Where the value of an unchanged column comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FillFrom {
    /// This row of the batch's old images.
    OldImage(u32),
    /// This row of the batch itself.
    Batch(u32),
    /// A row written before.
    Stored(Location),
}

/// A value to fill in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fill {
    pub(crate) column: u32,
    pub(crate) from: FillFrom,
}

/// A row of the batch that silver holds afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedRow {
    pub(crate) row: u32,
    /// Sorted by column.
    pub(crate) fills: Vec<Fill>,
}

/// What to do.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) rows: Vec<PlannedRow>,
    /// Rows written before that are no more.
    pub(crate) dead: Vec<Location>,
    /// New state of each key whose state changed: its place in `rows`, or gone. For tables without
    /// a key: rows taken away (None) come as often as places are to be removed, before rows added.
    pub(crate) index: Vec<(Key, Option<u32>)>,
    pub(crate) inserted: u64,
    pub(crate) updated: u64,
    pub(crate) deleted: u64,
    pub(crate) conflicts: u64,
    /// Changes that the initial copy holds already.
    pub(crate) skipped: u64,
}

impl Plan {
    /// Whether the rows to write are the new images of the batch, all of them and as they are.
    pub(crate) fn takes_all(&self, rows: usize) -> bool {
        self.rows.len() == rows
            && self
                .rows
                .iter()
                .enumerate()
                .all(|(at, row)| row.row as usize == at && row.fills.is_empty())
    }
}

/// Why a batch cannot be planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The row of the batch.
    pub(crate) row: u32,
    pub(crate) reason: Reason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// An update or delete of a row that is not there.
    Absent,
    /// An insert, or an update to a new key, of a row that is there.
    Present,
    /// An unchanged value that neither old image nor a stored row gives.
    NoValue,
    /// The same, while the initial copy is being reconciled: copying afresh mends it.
    Recopy,
    /// An update of a table without a key that came without its old row.
    NoOldImage,
}

/// What to do with a change that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Misfit {
    Refuse,
    /// Count it and go on.
    Repair,
}

#[cfg(test)]
mod tests;
