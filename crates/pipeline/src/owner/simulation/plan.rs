//! What happens in a simulation: a list of steps that follows from its seed, so that it can be made
//! shorter.

use std::time::Duration;

use alluvium_lake::{
    CompactionSettings, Compression, ForeignWriters, IndexSettings, LakeSettings, RetentionSettings,
};
use alluvium_testkit::history::Random;
use tempfile::TempDir;

use super::disk::Fault;
use super::foreign::Deed;

/// One thing that happens. Numbers are taken modulo what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The source commits a transaction of so many changes.
    Write(usize),
    /// The source adds a column, after so many changes of a transaction.
    AddColumn {
        before: usize,
        has_default: bool,
    },
    /// The process looks at the source's catalog.
    LookAtCatalog,
    /// So many transactions come as a cut, in so many parts.
    Deliver {
        transactions: usize,
        parts: usize,
    },
    /// As before, but the cut does not end: the stream starts again.
    Reconnect {
        transactions: usize,
    },
    /// The source is told how far all is durable.
    Acknowledge,
    CatchUp,
    /// So many pages are copied.
    Copy(u32),
    /// The table is to be copied again.
    Resync,
    /// Rows of every third key are looked at, to be set right.
    Compare(u64),
    /// What was looked at is set right, when all before that is in bronze.
    Repair,
    /// Another program commits to silver.
    Foreign(Deed),
    /// A job that is due runs, and ends.
    RunJob(usize),
    /// The owner hears of a job that ended.
    FinishJob(usize),
    /// Time passes.
    Pass {
        seconds: u64,
    },
    View,
    /// Somebody reads an old version.
    Read(usize),
    /// Something goes wrong, so many operations from now.
    Fault {
        after: u64,
        fault: Fault,
    },
    PowerCut,
    /// The process ends at once; or in order, and keeps its key index.
    Restart {
        in_order: bool,
    },
}

/// A kind of step, with numbers as chance has them.
type Choice = fn(&mut Random) -> Step;

/// The steps of a seed. Each seed has its own idea of what happens often.
pub(super) fn steps(seed: u64) -> Vec<Step> {
    let mut random = Random(seed);
    let weights: [u64; 10] = std::array::from_fn(|_| 1 + random.below(10));
    let [
        writes,
        cares,
        faults,
        ends,
        reads,
        copies,
        times,
        others,
        ..,
    ] = weights;
    // In half of the seeds nobody else writes.
    let foreigners = others.saturating_sub(5) / 2;
    let choices: [(u64, Choice); 20] = [
        (writes * 3, |r| Step::Write(1 + small(r, 12))),
        (1, |r| Step::AddColumn {
            before: small(r, 3),
            has_default: r.chance(50),
        }),
        (1, |_| Step::LookAtCatalog),
        (writes * 3, |r| Step::Deliver {
            transactions: 1 + small(r, 4),
            parts: 1 + small(r, 3),
        }),
        (1, |r| Step::Reconnect {
            transactions: 1 + small(r, 3),
        }),
        (5, |_| Step::Acknowledge),
        (8, |_| Step::CatchUp),
        (copies * 2, |r| {
            Step::Copy(1 + u32::try_from(r.below(4)).unwrap())
        }),
        (copies / 2, |_| Step::Resync),
        (copies / 3, |r| Step::Compare(r.below(3))),
        (copies / 3 * 2, |_| Step::Repair),
        (foreigners, |r| {
            Step::Foreign(match r.below(4) {
                0 | 1 => Deed::Optimize,
                2 => Deed::Delete(small(r, 8)),
                _ if r.chance(50) => Deed::Append(small(r, 8)),
                _ => Deed::Restore(small(r, 20)),
            })
        }),
        (cares * 2, |r| Step::RunJob(small(r, 8))),
        (cares * 2, |r| Step::FinishJob(small(r, 8))),
        (times * 2, |r| Step::Pass {
            seconds: [1, 30, 600, 4000][small(r, 4)],
        }),
        (2, |_| Step::View),
        (reads, |r| Step::Read(small(r, 1000))),
        (faults, |r| {
            let done = r.chance(50);
            let fault = match r.below(4) {
                0 => Fault::Full,
                1 => Fault::Error { done },
                _ => Fault::PowerCut { done },
            };
            let soon = [3, 12, 60][small(r, 3)];
            let after = r.below(soon);
            Step::Fault { after, fault }
        }),
        (ends / 3, |_| Step::PowerCut),
        (ends / 2, |r| Step::Restart {
            in_order: r.chance(70),
        }),
    ];
    let total: u64 = choices.iter().map(|(weight, _)| weight).sum();
    let length = 10 + random.below(35);
    let mut steps = vec![Step::Write(12)];
    for _ in 0..length {
        let mut at = random.below(total);
        for (weight, choice) in &choices {
            if at < *weight {
                steps.push(choice(&mut random));
                break;
            }
            at -= weight;
        }
    }
    steps
}

fn small(random: &mut Random, end: u64) -> usize {
    usize::try_from(random.below(end)).unwrap()
}

/// Settings of a kind that a seed has: everything small, so that all of it happens often.
pub(super) fn settings(random: &mut Random, dir: &TempDir) -> LakeSettings {
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    LakeSettings {
        compression: Compression::Uncompressed,
        target_file_bytes: [600, 5_000, 1 << 20][random.below(3) as usize],
        delta_checkpoint_every_commits: 2 + random.below(6),
        staging_bytes: [1, 1 << 20][random.below(2) as usize],
        share_from_rows: [1, 1000][random.below(2) as usize],
        index: IndexSettings {
            dir: Some(dir.path().join("index")),
            memory_bytes: usize::MAX,
            saved_from_rows: 0,
            saved_from_changes: 20,
        },
        compaction: CompactionSettings {
            small_files: 2,
            deleted_percent: [10, 90][random.below(2) as usize],
            least_deleted_rows: 1,
            kept_percent: [0, 100][random.below(2) as usize],
            sort_small: random.chance(25),
        },
        retention: RetentionSettings {
            all_versions: minutes([0, 5, 60][random.below(3) as usize]),
            removed_files: minutes([0, 5, 60][random.below(3) as usize]),
            old_versions: minutes(24 * 60),
            old_versions_every: minutes(60),
        },
        recent_bytes: 1 << 20,
        foreign: [ForeignWriters::Follow, ForeignWriters::Repair][random.below(2) as usize],
        ..LakeSettings::default()
    }
}

/// The steps without those that are not needed for it to fail.
pub(super) fn shrink(mut steps: Vec<Step>, fails: impl Fn(&[Step]) -> bool) -> Vec<Step> {
    let mut piece = steps.len() / 2;
    while piece > 0 {
        let mut at = 0;
        while at < steps.len() {
            let end = (at + piece).min(steps.len());
            let mut fewer = steps.clone();
            fewer.drain(at..end);
            if fails(&fewer) {
                steps = fewer;
            } else {
                at = end;
            }
        }
        piece /= 2;
    }
    steps
}
