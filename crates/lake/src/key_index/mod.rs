//! Where each row of silver is: from its key to file and place.
//!
//! Stands beside `merge`, which asks it, and `silver`, which keeps it. It holds nothing that cannot
//! be rebuilt from the key columns of the live files. It is in memory while it fits ([`budget`]),
//! else on disk ([`disk`]); saved in a directory of its own, it is read back at the next open, and
//! rebuilt where what was saved is absent or in any doubt.
//!
//! A key of at most 8 bytes is held exactly in 8, one of at most 16 exactly in 16; a longer one, or
//! one with text in it, as a 128-bit hash (at 10⁹ keys, two collide with a chance of 10⁻²¹).

mod budget;
mod disk;
mod encode;
mod forward;
mod keyed;
mod row_index;
mod sharded;
mod spread;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use alluvium_change::Result;

pub(crate) use budget::IndexBudget;
pub(crate) use disk::{
    Covered, Home, Manifest, ManifestSegment, Stand, doubt, forget, read_manifest,
};
pub(crate) use encode::{KeyEncoder, KeyWidth};
pub(crate) use forward::Moved;
pub(crate) use keyed::{Committed, KeyedIndex, Place, Rebuild};
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
    pub(crate) fn pack(self) -> u64 {
        (u64::from(self.segment) << 32) | u64::from(self.row)
    }

    pub(crate) fn unpack(packed: u64) -> Self {
        // Both halves fit by construction.
        let [segment, row] = [packed >> 32, packed & 0xFFFF_FFFF]
            .map(|half| u32::try_from(half).unwrap_or(u32::MAX));
        Self { segment, row }
    }
}

/// What the mutex guards: a thread that panicked with it is heard where it is joined.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Entries that are worth a thread.
const ENTRIES_PER_THREAD: u64 = 100_000;

/// Does so many pieces of work, of so many entries together, on as many threads as there are cores
/// if it is worth it. Each takes a piece until none is left or one failed.
pub(crate) fn in_parallel(
    entries: u64,
    pieces: usize,
    work: &(dyn Fn(usize) -> Result<()> + Sync),
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let work = || {
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return;
            }
            if let Err(error) = work(piece) {
                next.store(pieces, Ordering::Relaxed);
                *lock(&failed) = Some(error);
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let worth = usize::try_from(entries / ENTRIES_PER_THREAD).unwrap_or(usize::MAX);
    let threads = cores.min(worth).max(1);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.map_or(Ok(()), Err)
}
