//! Rows applied since the last commit, kept for queries beside the files they go into.
//!
//! Invariant: either all such rows of a table are here, or it says that they are not; what all
//! tables keep together is bounded. Beyond that a table's rows are seen when they are committed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{Array as _, RecordBatch};

use crate::key_index::SegmentId;

/// Memory for rows that all tables of a lake keep for queries.
#[derive(Debug)]
pub(crate) struct RecentBudget {
    limit_bytes: usize,
    used_bytes: AtomicUsize,
}

impl RecentBudget {
    pub(crate) fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            limit_bytes,
            used_bytes: AtomicUsize::new(0),
        })
    }

    pub(crate) fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let taken = self
            .used_bytes
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                let used = used.checked_add(bytes)?;
                (used <= self.limit_bytes).then_some(used)
            });
        taken.is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One table's rows.
#[derive(Debug)]
pub(super) struct Recent {
    budget: Arc<RecentBudget>,
    /// In the order of their places, without gaps.
    rows: BTreeMap<SegmentId, Vec<RecordBatch>>,
    bytes: usize,
    /// Rows were applied that are not here.
    missing: bool,
}

impl Recent {
    pub(super) fn new(budget: Arc<RecentBudget>) -> Self {
        Self {
            budget,
            rows: BTreeMap::new(),
            bytes: 0,
            missing: false,
        }
    }

    /// Whether rows that come now are kept.
    pub(super) fn is_kept(&self) -> bool {
        self.budget.limit_bytes > 0 && !self.missing
    }

    /// Notes rows written to the end of a file; `None`: they are not at hand.
    pub(super) fn push(&mut self, segment: SegmentId, rows: Option<RecordBatch>) {
        let Some(rows) = rows.filter(|_| self.is_kept()) else {
            self.lose();
            return;
        };
        let bytes = slice_bytes(&rows);
        if !self.budget.take(bytes) {
            self.lose();
            return;
        }
        self.bytes += bytes;
        self.rows.entry(segment).or_default().push(rows);
    }

    fn lose(&mut self) {
        self.clear();
        self.missing = true;
    }

    /// All rows are committed, or were given up.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.budget.give_back(std::mem::take(&mut self.bytes));
        self.missing = false;
    }

    /// The rows by file, when none is missing.
    pub(super) fn all(&self) -> Option<&BTreeMap<SegmentId, Vec<RecordBatch>>> {
        (!self.missing).then_some(&self.rows)
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Memory of the rows themselves: they may be a part of larger arrays, of which the other parts are
/// counted where they are kept.
fn slice_bytes(rows: &RecordBatch) -> usize {
    let bytes = |column: &Arc<dyn arrow::array::Array>| {
        let data = column.to_data();
        data.get_slice_memory_size()
            .unwrap_or_else(|_| column.get_array_memory_size())
    };
    rows.columns().iter().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use arrow::array::{ArrayRef, Int64Array};

    fn rows(count: i64) -> RecordBatch {
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values(0..count));
        RecordBatch::try_from_iter([("n", values)]).unwrap()
    }

    #[test]
    fn all_rows_are_kept_or_none_within_a_bound_for_all_tables() {
        let budget = RecentBudget::new(2_000);
        let (mut a, mut b) = (
            Recent::new(Arc::clone(&budget)),
            Recent::new(Arc::clone(&budget)),
        );
        a.push(1, Some(rows(100)));
        b.push(1, Some(rows(100)));
        assert_eq!(budget.used_bytes(), 1_600);
        b.push(2, Some(rows(100)));
        assert!(b.all().is_none());
        assert_eq!(budget.used_bytes(), 800, "what is of no use is given back");
        b.push(2, Some(rows(1)));
        assert!(b.all().is_none());
        b.clear();
        b.push(3, Some(rows(100)));
        assert_eq!(b.all().unwrap().len(), 1);
        a.push(1, None);
        assert!(a.all().is_none());
        drop((a, b));
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn without_memory_nothing_is_kept() {
        let mut recent = Recent::new(RecentBudget::new(0));
        assert!(recent.all().is_some_and(BTreeMap::is_empty));
        assert!(!recent.is_kept());
        recent.push(1, Some(rows(0)));
        assert!(recent.all().is_none());
    }
}
