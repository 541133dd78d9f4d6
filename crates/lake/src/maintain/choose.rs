//! Which files to write anew as one. Pure.
//!
//! Small files: of files of about one size, as many as [`CompactionSettings::small_files`] become one,
//! so that a row is written again once for each power of that number, and few files are left of each
//! size. Files with deleted rows: when more than a part of the rows is gone. Full files whose rows are not
//! in the order that the table asks for: once.

use crate::CompactionSettings;
use crate::log::LiveFile;

/// Files below this are of one size.
const SMALLEST_BYTES: u64 = 16 << 10;
/// Most files that become one.
const MOST_FILES: usize = 256;
/// Deleted rows from which on writing a file anew frees more than it writes.
const HALF_PERCENT: u8 = 50;
/// Small files that become one where old versions take much: each row is written again once or twice.
const FEWER_STEPS_FILES: usize = 100;

/// A file, in the table's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) size_bytes: u64,
    pub(crate) num_rows: u64,
    pub(crate) deleted_rows: u64,
    /// Whether it may become one with the file before it.
    pub(crate) follows: bool,
    /// Its rows are to be in another order.
    pub(crate) is_unsorted: bool,
}

impl Candidate {
    pub(crate) fn of(file: &LiveFile, deleted_rows: u64, follows: bool) -> Self {
        Self {
            is_unsorted: false,
            size_bytes: u64::try_from(file.size_bytes).unwrap_or_default(),
            num_rows: file.num_rows,
            deleted_rows,
            follows,
        }
    }

    /// What it takes without its deleted rows, about.
    fn live_bytes(&self) -> u64 {
        let live = self.num_rows.saturating_sub(self.deleted_rows);
        let bytes = u128::from(self.size_bytes) * u128::from(live);
        let bytes = bytes / u128::from(self.num_rows.max(1));
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    fn too_many_deleted(&self, settings: &CompactionSettings) -> bool {
        let percent = u128::from(settings.deleted_percent);
        self.deleted_rows >= settings.least_deleted_rows.max(1)
            && u128::from(self.deleted_rows) * 100 > u128::from(self.num_rows) * percent
    }
}

/// Which step of size a file is on: each has files up to `small_files` times those of the one before.
fn size_of(file: &Candidate, settings: &CompactionSettings) -> u32 {
    let mut size = 0;
    let mut below = SMALLEST_BYTES;
    while file.live_bytes() >= below {
        size += 1;
        below = below.saturating_mul(settings.small_files.max(2) as u64);
    }
    size
}

impl CompactionSettings {
    /// With so many bytes kept for old versions of these files: where rows change everywhere and versions
    /// stay long, each per cent of deleted rows less costs the table's size in kept files many times, and
    /// each step of small files as much as was written.
    pub(crate) fn with_kept(self, kept_bytes: u64, files: &[Candidate]) -> Self {
        let live: u128 = files.iter().map(|file| u128::from(file.live_bytes())).sum();
        if u128::from(kept_bytes) * 100 <= live * u128::from(self.kept_percent) {
            return self;
        }
        Self {
            deleted_percent: self.deleted_percent.max(HALF_PERCENT),
            small_files: self.small_files.max(FEWER_STEPS_FILES),
            ..self
        }
    }
}

/// Whether rows must stay in the order of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Any,
    Kept,
}

/// The files to become one, by their places in the list; none when nothing needs it.
pub(crate) fn choose(
    files: &[Candidate],
    order: Order,
    target_bytes: u64,
    settings: &CompactionSettings,
) -> Option<Vec<usize>> {
    small(files, order, target_bytes, settings)
        .or_else(|| thinned(files, target_bytes, settings))
        .or_else(|| unsorted(files, target_bytes, settings))
}

/// Files that no other rule would ever choose; small ones wait for others, unless it is asked for.
fn unsorted(
    files: &[Candidate],
    target_bytes: u64,
    settings: &CompactionSettings,
) -> Option<Vec<usize>> {
    let is_due = |file: &Candidate| {
        file.is_unsorted && (settings.sort_small || file.live_bytes() > target_bytes / 2)
    };
    let due = files.iter().enumerate().filter(|(_, file)| is_due(file));
    let chosen = fill(files, due.map(|(at, _)| at), target_bytes);
    (!chosen.is_empty()).then_some(chosen)
}

/// Files of the smallest size of which there are enough, with those that are smaller still.
fn small(
    files: &[Candidate],
    order: Order,
    target_bytes: u64,
    settings: &CompactionSettings,
) -> Option<Vec<usize>> {
    // Two larger ones would not go into one.
    let size = |file: &Candidate| {
        let is_small = file.live_bytes() <= target_bytes / 2;
        is_small.then(|| size_of(file, settings))
    };
    let sizes: Vec<Option<u32>> = files.iter().map(size).collect();
    let mut steps: Vec<u32> = sizes.iter().copied().flatten().collect();
    steps.sort_unstable();
    steps.dedup();
    for step in steps {
        let mut windows: Vec<Vec<usize>> = vec![Vec::new()];
        for (at, (file, size)) in files.iter().zip(&sizes).enumerate() {
            let fits = size.is_some_and(|size| size <= step);
            if order == Order::Kept && !(fits && file.follows) {
                windows.push(Vec::new());
            }
            if fits && let Some(window) = windows.last_mut() {
                window.push(at);
            }
        }
        let of_step = |at: &&usize| sizes.get(**at).copied().flatten() == Some(step);
        let enough = |window: &&Vec<usize>| {
            window.iter().filter(of_step).count() >= settings.small_files.max(2)
        };
        if let Some(window) = windows.iter().find(enough) {
            return Some(fill(files, window.iter().copied(), target_bytes));
        }
    }
    None
}

/// The file of which the largest part is gone, with others that have too many deleted rows.
fn thinned(
    files: &[Candidate],
    target_bytes: u64,
    settings: &CompactionSettings,
) -> Option<Vec<usize>> {
    let live_part = |file: &Candidate| {
        let live = file.num_rows.saturating_sub(file.deleted_rows);
        u128::from(live) * 1_000_000 / u128::from(file.num_rows.max(1))
    };
    let mut worst: Vec<(u128, usize)> = files
        .iter()
        .enumerate()
        .filter(|(_, file)| file.too_many_deleted(settings))
        .map(|(at, file)| (live_part(file), at))
        .collect();
    worst.sort_unstable();
    let mut chosen = fill(files, worst.into_iter().map(|(_, at)| at), target_bytes);
    chosen.sort_unstable();
    (!chosen.is_empty()).then_some(chosen)
}

/// As many of the files as go into one, at least the first.
fn fill(files: &[Candidate], places: impl Iterator<Item = usize>, target_bytes: u64) -> Vec<usize> {
    let mut chosen = Vec::new();
    let mut bytes: u64 = 0;
    for at in places {
        let live_bytes = files.get(at).map_or(0, Candidate::live_bytes);
        bytes = bytes.saturating_add(live_bytes);
        if !chosen.is_empty() && (bytes > target_bytes || chosen.len() == MOST_FILES) {
            break;
        }
        chosen.push(at);
    }
    chosen
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    const MIB: u64 = 1 << 20;
    const TARGET: u64 = 128 * MIB;

    fn settings() -> CompactionSettings {
        CompactionSettings {
            small_files: 4,
            ..CompactionSettings::default()
        }
    }

    fn file(size_bytes: u64, num_rows: u64, deleted_rows: u64) -> Candidate {
        Candidate {
            size_bytes,
            num_rows,
            deleted_rows,
            follows: true,
            is_unsorted: false,
        }
    }

    fn chosen(files: &[Candidate]) -> Option<Vec<usize>> {
        choose(files, Order::Any, TARGET, &settings())
    }

    #[test]
    fn files_wait_while_much_is_kept_for_old_versions() {
        let files = [
            file(100 * MIB, 1_000_000, 200_000),
            file(100 * MIB, 1_000_000, 0),
        ];
        let choose = |files: &[Candidate], kept_bytes| {
            let settings = settings().with_kept(kept_bytes, files);
            choose(files, Order::Any, TARGET, &settings)
        };
        assert_eq!(choose(&files, 180 * MIB), Some(vec![0]));
        assert_eq!(choose(&files, 181 * MIB), None);
        let half = [file(100 * MIB, 1_000_000, 500_001)];
        assert_eq!(choose(&half, 181 * MIB), Some(vec![0]));
        let small = [file(100_000, 10, 0); 100];
        assert_eq!(choose(&small[..50], 10_000_000), None);
        assert_eq!(
            choose(&small[..4], 400_000).map(|files| files.len()),
            Some(4)
        );
        assert_eq!(
            choose(&small, 10_000_001).map(|files| files.len()),
            Some(100)
        );
    }

    #[test]
    fn few_files_and_full_ones_are_left_alone() {
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&[file(1000, 10, 9); 3]), None);
        assert_eq!(chosen(&[file(100 * MIB, 1_000_000, 40_000); 20]), None);
    }

    #[test]
    fn small_files_become_one_with_smaller_ones() {
        let mut files = vec![file(100 * MIB, 1_000_000, 0)];
        files.extend([file(1000, 10, 0); 3]);
        assert_eq!(chosen(&files), None);
        files.push(file(15_000, 10, 0));
        assert_eq!(chosen(&files), Some(vec![1, 2, 3, 4]));
        let mut files = vec![file(1000, 10, 0), file(2 * MIB, 10, 0)];
        files.extend([file(40_000, 10, 0); 4]);
        assert_eq!(chosen(&files), Some(vec![0, 2, 3, 4, 5]));
    }

    #[test]
    fn one_file_grows_no_larger_than_asked_for() {
        let files = [file(40 * MIB, 10, 0); 9];
        assert_eq!(chosen(&files), Some(vec![0, 1, 2]));
        assert_eq!(chosen(&[file(1, 1, 0); 1000]).unwrap().len(), MOST_FILES);
    }

    #[test]
    fn files_of_which_much_is_deleted_are_written_anew_the_worst_first() {
        let files = [
            file(100 * MIB, 1_000_000, 60_000),
            file(100 * MIB, 1_000_000, 50_000),
            file(100 * MIB, 1_000_000, 300_000),
            file(70 * MIB, 1000, 999),
        ];
        assert_eq!(chosen(&files), Some(vec![2]));
        assert_eq!(chosen(&files[..2]), Some(vec![0]));
        assert_eq!(chosen(&files[1..2]), None);
        let halves = [file(100 * MIB, 1_000_000, 600_000); 4];
        assert_eq!(chosen(&halves), Some(vec![0, 1, 2]));
    }

    #[test]
    fn full_files_are_sorted_once_and_small_ones_by_hand() {
        let mut files = [file(100 * MIB, 1_000_000, 0), file(MIB, 1000, 0)];
        files.iter_mut().for_each(|file| file.is_unsorted = true);
        assert_eq!(chosen(&files), Some(vec![0]));
        files[0].is_unsorted = false;
        assert_eq!(chosen(&files), None);
        let by_hand = CompactionSettings::by_hand();
        assert_eq!(choose(&files, Order::Any, TARGET, &by_hand), Some(vec![1]));
    }

    #[test]
    fn where_order_counts_only_neighbours_become_one() {
        let in_order = |files: &[Candidate]| choose(files, Order::Kept, TARGET, &settings());
        let mut files = [file(1000, 10, 0); 9];
        files[3] = file(MIB, 10, 0);
        assert_eq!(in_order(&files), Some(vec![4, 5, 6, 7, 8]));
        files[6].follows = false;
        assert_eq!(in_order(&files), None);
        assert_eq!(chosen(&files).unwrap().len(), 8);
    }

    #[test]
    fn what_is_left_of_ever_more_small_files_stays_few() {
        let mut files: Vec<Candidate> = Vec::new();
        let mut written = 0;
        for _ in 0..10_000 {
            files.push(file(10_000, 100, 0));
            while let Some(at) = chosen(&files) {
                assert!(at.len() > 1 && at.is_sorted());
                let bytes = at.iter().map(|at| files[*at].size_bytes).sum();
                let rows = at.iter().map(|at| files[*at].num_rows).sum();
                written += bytes;
                for at in at.iter().rev() {
                    files.remove(*at);
                }
                files.push(file(bytes, rows, 0));
            }
            assert!(files.len() < 20, "{}", files.len());
        }
        let factor = written / (10_000 * 10_000);
        assert!(factor < 8, "each byte was written {factor} times again");
    }
}
