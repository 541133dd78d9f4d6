//! Memory for the key indexes of a lake, shared by its tables.
//!
//! While all of them fit, each may be as large as it likes. When they do not, a table whose index
//! is larger than an equal share goes to disk: then what stays in memory fits, and a small table
//! never goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The memory of all tables.
#[derive(Debug)]
pub(crate) struct IndexBudget {
    limit_bytes: usize,
    used_bytes: AtomicUsize,
    tables: AtomicUsize,
}

impl IndexBudget {
    pub(crate) fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            limit_bytes,
            used_bytes: AtomicUsize::new(0),
            tables: AtomicUsize::new(0),
        })
    }

    /// A table's part; given back when dropped.
    pub(crate) fn join(self: &Arc<Self>) -> Share {
        self.tables.fetch_add(1, Ordering::Relaxed);
        Share {
            budget: Arc::clone(self),
            used_bytes: 0,
        }
    }
}

/// What one table has of the memory.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<IndexBudget>,
    used_bytes: usize,
}

impl Share {
    /// The table has so much now.
    pub(crate) fn set(&mut self, used_bytes: usize) {
        let used = &self.budget.used_bytes;
        if used_bytes >= self.used_bytes {
            used.fetch_add(used_bytes - self.used_bytes, Ordering::Relaxed);
        } else {
            used.fetch_sub(self.used_bytes - used_bytes, Ordering::Relaxed);
        }
        self.used_bytes = used_bytes;
    }

    /// What the table would have if all had as much.
    pub(crate) fn equal_bytes(&self) -> usize {
        self.budget.limit_bytes / self.budget.tables.load(Ordering::Relaxed).max(1)
    }

    /// Whether the table may have `bytes` in memory.
    pub(crate) fn allows(&self, bytes: usize) -> bool {
        let used = self.budget.used_bytes.load(Ordering::Relaxed);
        let others = used.saturating_sub(self.used_bytes);
        bytes <= self.equal_bytes() || others.saturating_add(bytes) <= self.budget.limit_bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
        self.budget.tables.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_tables_keep_their_memory() {
        let budget = IndexBudget::new(1000);
        let mut large = budget.join();
        assert!(large.allows(1000) && !large.allows(1001));
        large.set(900);
        let mut small = budget.join();
        assert!(small.allows(500), "an equal share");
        assert!(!small.allows(501));
        small.set(200);
        assert!(!large.allows(900), "the large one goes");
        drop(small);
        assert!(large.allows(900));
        large.set(0);
        assert_eq!(budget.used_bytes.load(Ordering::Relaxed), 0);
    }
}
