//! What the stream tells of itself: counts, queue depths, memory, and up to which moment the lake is
//! complete.
//!
//! Beside the stream: counted for each message, transaction or cut with a plain addition, read once a
//! second.

use std::collections::BTreeMap;

use alluvium_change::{ChangeBatch, Lsn, Result};

use super::{BYTES_PER_PERMIT, Stream};
use crate::status::{MemoryStatus, Part, StreamStatus};

/// Counts since the start of the run.
#[derive(Debug, Default)]
pub(super) struct Measure {
    pub received_bytes: u64,
    pub transactions: u64,
    changes: u64,
    /// When the last transaction that was received whole was committed.
    pub newest_commit_micros: i64,
    marks: Marks,
}

impl Measure {
    /// A cut ends at `end_lsn`, with the transaction received last.
    pub(super) fn ended_at(&mut self, end_lsn: Lsn) {
        self.marks.put(end_lsn, self.newest_commit_micros);
    }
}

/// Moments of the source: all that was committed before a moment lies before its LSN.
#[derive(Debug, Default)]
struct Marks {
    open: BTreeMap<Lsn, i64>,
    /// The latest moment before which all commits are durable.
    complete_micros: Option<i64>,
}

impl Marks {
    /// More are thinned out: the answer stays right, and gets coarser.
    const MOST: usize = 1024;

    fn put(&mut self, lsn: Lsn, micros: i64) {
        if self.open.len() >= Self::MOST {
            let mut keep = false;
            self.open.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
        // Of two moments at one place the later one says more.
        let at = self.open.entry(lsn).or_insert(micros);
        *at = (*at).max(micros);
    }

    fn complete(&mut self, flushed: Lsn) -> Option<i64> {
        while let Some(first) = self.open.first_entry()
            && *first.key() <= flushed
        {
            self.complete_micros = self.complete_micros.max(Some(first.remove()));
        }
        self.complete_micros
    }
}

impl Stream {
    /// Rows decoded and not yet taken, of all tables.
    pub(super) fn take_batches(&mut self) -> Result<Vec<ChangeBatch>> {
        let batches = self.assembler.take_batches()?;
        let changes: usize = batches.iter().map(ChangeBatch::num_rows).sum();
        self.measure.changes += changes as u64;
        Ok(batches)
    }

    /// The moment up to which the lake is known to be complete, in microseconds since 1970; none
    /// before anything was durable. `server` is where the server's WAL ended, and when.
    pub(crate) fn complete_until(&mut self, server: Option<(Lsn, i64)>) -> Option<i64> {
        if let Some((end, asked_micros)) = server {
            self.measure.marks.put(end, asked_micros);
        }
        let flushed = self.flushed();
        self.measure.marks.complete(flushed)
    }

    /// Counts and depths.
    #[must_use]
    pub(crate) fn status(&self) -> StreamStatus {
        let queued = self.owners.values().map(|owner| owner.queued());
        StreamStatus {
            received_bytes: self.measure.received_bytes,
            transactions: self.measure.transactions,
            changes: self.measure.changes,
            open_cuts: self.acknowledger.open_cuts() as u64,
            queued_commands: queued.sum::<usize>() as u64,
            running_transactions: self.streamed.num_running() as u64,
            prepared_transactions: self.streamed.num_prepared() as u64,
            spilled_bytes: self.streamed.spilled_bytes(),
            spilled_total_bytes: self.streamed.spilled_total_bytes(),
        }
    }

    /// The stream's parts of the memory; the others' are as they were.
    pub(crate) fn measure_memory(&self, memory: &mut MemoryStatus) {
        let waiting: usize = self.waiting.iter().map(ChangeBatch::memory_bytes).sum();
        memory.decoded = Part::of(
            self.assembler.memory_bytes() + waiting,
            self.limits.cut_bytes,
        );
        let most = self.limits.handed_over_bytes / BYTES_PER_PERMIT;
        let taken = most.saturating_sub(self.memory.available_permits());
        memory.handed_over = Part::of(taken * BYTES_PER_PERMIT, self.limits.handed_over_bytes);
        memory.streamed = Part::of(self.streamed.memory_bytes(), self.limits.streamed_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_is_the_latest_moment_whose_commits_are_all_durable() {
        let mut marks = Marks::default();
        assert_eq!(marks.complete(Lsn(5)), None);
        marks.put(Lsn(10), 100);
        marks.put(Lsn(30), 300);
        assert_eq!(marks.complete(Lsn(9)), None);
        assert_eq!(marks.complete(Lsn(10)), Some(100));
        // A cut in between ends with a transaction committed later than the first mark.
        marks.put(Lsn(20), 190);
        assert_eq!(marks.complete(Lsn(29)), Some(190));
        // A quiet server: the same place, a later moment.
        marks.put(Lsn(30), 400);
        assert_eq!(marks.complete(Lsn(30)), Some(400));
        // The source's clock may go back, completeness does not.
        marks.put(Lsn(40), 250);
        assert_eq!(marks.complete(Lsn(40)), Some(400));
    }

    #[test]
    fn marks_are_bounded_and_stay_true() {
        let mut marks = Marks::default();
        for second in 0..100_000_u32 {
            marks.put(Lsn(u64::from(second) * 10), i64::from(second));
            assert!(marks.open.len() <= Marks::MOST);
        }
        let complete = marks.complete(Lsn(500_000));
        assert!(complete.is_some_and(|at| at <= 50_000), "{complete:?}");
        assert_eq!(marks.complete(Lsn(999_990)), Some(99_999));
    }
}
