//! Named places where a test can kill the process, to prove that a crash there loses nothing.
//!
//! Nothing is armed unless [`arm`] was called (the binary does so from `ALLUVIUM_CRASH_AT`); an
//! unarmed [`hit`] costs one atomic load.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct Armed {
    name: String,
    hits_left: AtomicU64,
}

static ARMED: OnceLock<Armed> = OnceLock::new();

/// Every failpoint there is, in the order a row meets them. A test arms each in turn.
pub static NAMES: &[&str] = &[
    "copy.slot_created",
    "copy.before_stage",
    "copy.before_commit",
    "copy.after_commit",
    "copy.before_finish",
    "resync.linked",
    "resync.committed",
    "stream.spilled",
    "stream.committed",
    "stream.replayed",
    "land.before_stage",
    "land.before_commit",
    "land.after_commit",
    "merge.before_stage",
    "merge.after_stage",
    "merge.before_commit",
    "merge.after_commit",
    "commit.data_written",
    "commit.data_synced",
    "commit.log_written",
    "commit.log_linked",
    "checkpoint.before_write",
    "checkpoint.after_write",
    "compact.before_write",
    "compact.after_write",
    "compact.before_commit",
    "compact.after_commit",
    "clean.before_log",
    "clean.before_data",
    "index.before_manifest",
    "index.after_manifest",
    "acknowledge.before_send",
    "acknowledge.after_send",
];

/// Kills the process at the `hits`-th [`hit`] of `name` (from 1). Once per process; later calls
/// change nothing.
pub fn arm(name: &str, hits: u64) {
    let _ = ARMED.set(Armed {
        name: name.to_owned(),
        hits_left: AtomicU64::new(hits.max(1)),
    });
}

/// A place where the process may be killed.
#[inline]
pub fn hit(name: &str) {
    if let Some(armed) = ARMED.get() {
        debug_assert!(NAMES.contains(&name), "failpoint {name} is not listed");
        if armed.name == name && armed.hits_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            std::process::abort();
        }
    }
}

/// Mistakes that a simulation plants in the program, one at a time, to prove that it would find them.
/// There are none in a release build.
pub static MISTAKES: &[&str] = &[
    "acknowledge.too_early",
    "merge.loses_a_delete",
    "forward.off_by_one",
    "forward.forgets_the_order",
    "index.not_validated",
    "clean.too_eager",
    "checkpoint.without_positions",
    "commit.not_synced",
    "resync.too_early",
    "foreign.stale_index",
    "repair.over_changes",
    "columns.before_backlog",
    "copy.into_complete",
];

thread_local! {
    static PLANTED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Plants one of [`MISTAKES`] in this thread, or takes it away.
pub fn plant(mistake: Option<&'static str>) {
    debug_assert!(
        mistake.is_none_or(|mistake| MISTAKES.contains(&mistake)),
        "{mistake:?} is not listed"
    );
    PLANTED.set(mistake);
}

/// Whether to make this mistake.
#[inline]
#[must_use]
pub fn is_planted(mistake: &str) -> bool {
    cfg!(debug_assertions) && PLANTED.get() == Some(mistake)
}
