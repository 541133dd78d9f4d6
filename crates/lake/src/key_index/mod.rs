//! Where each row of silver is: from its key to file and place, in memory.
//!
//! Stands beside `merge`, which asks it, and `silver`, which keeps it. It holds nothing that cannot
//! be rebuilt from the key columns of the live files, and is rebuilt so at every open.
//!
//! A key of at most 8 bytes is held exactly in 8, one of at most 16 exactly in 16; a longer one, or
//! one with text in it, as a 128-bit hash (at 10⁹ keys, two collide with a chance of 10⁻²¹).

mod encode;
mod row_index;
mod sharded;

pub(crate) use encode::{KeyEncoder, KeyWidth};
pub(crate) use row_index::RowIndex;
pub(crate) use sharded::ShardedIndex;

/// A key: exact in its low bytes, or a hash.
pub(crate) type Key = u128;

/// A data file of the table, as numbered by its owner while it is open.
pub(crate) type SegmentId = u32;

/// The place of a row: its file and its position there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Location {
    pub(crate) segment: SegmentId,
    pub(crate) row: u32,
}

impl Location {
    fn pack(self) -> u64 {
        (u64::from(self.segment) << 32) | u64::from(self.row)
    }

    fn unpack(packed: u64) -> Self {
        // Both halves fit by construction.
        let [segment, row] = [packed >> 32, packed & 0xFFFF_FFFF]
            .map(|half| u32::try_from(half).unwrap_or(u32::MAX));
        Self { segment, row }
    }
}

/// An index from unique keys to places.
pub(crate) trait KeyIndex {
    fn get(&self, key: Key) -> Option<Location>;
    /// Returns the place the key had before.
    fn insert(&mut self, key: Key, location: Location) -> Option<Location>;
    fn remove(&mut self, key: Key) -> Option<Location>;
    /// Keeps the keys whose place passes.
    fn retain(&mut self, keep: &mut dyn FnMut(Location) -> bool);
    fn len(&self) -> usize;
    fn memory_bytes(&self) -> usize;
}
