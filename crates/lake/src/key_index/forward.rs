//! Rows that a compaction moved: the index goes on naming the places they had.
//!
//! A compaction writes the rows of some files, less those deleted when it began, into one file and
//! keeps their order. So the new place of a row follows from its old one: behind the rows of the
//! files before its own, less the rows left out before it. Nothing of the index is rewritten for it;
//! later, in passing, entries get their new places, and then what is known here of a file is dropped.
//!
//! Invariant: a move leads to a file that no other move is of, so that one step is enough.

use std::sync::Arc;

use alluvium_change::failpoint;
use hashbrown::HashMap;
use roaring::RoaringTreemap;

use super::{Location, SegmentId};

/// The rows of one file went into another.
#[derive(Debug, Clone)]
pub(crate) struct Moved {
    pub(crate) from: SegmentId,
    pub(crate) to: SegmentId,
    /// Where its first row went, had it not been left out.
    pub(crate) base: u32,
    /// Rows of it that were left out.
    pub(crate) gone: Arc<RoaringTreemap>,
    /// Rows of it that were not.
    pub(crate) kept: u64,
}

impl Moved {
    fn place(&self, row: u32) -> Location {
        let before = self.gone.rank(u64::from(row));
        // A place is 32 bits wide, and there are no more rows left out than there are rows.
        let before = u32::try_from(before).unwrap_or(u32::MAX);
        Location {
            segment: self.to,
            row: self.base.wrapping_add(row).wrapping_sub(before)
                + u32::from(failpoint::is_planted("forward.off_by_one")),
        }
    }

    /// This move and then `next`, which is of the file that it leads to, as one.
    fn then(&mut self, next: &Self) {
        let first = u64::from(self.base);
        let end = first + self.kept;
        let before = next.gone.iter().take_while(|row| *row < first).count() as u64;
        let mut gone = RoaringTreemap::clone(&self.gone);
        let mut left_out = self.gone.iter().peekable();
        let mut skipped = 0;
        let within = next.gone.iter().skip_while(|row| *row < first);
        for row in within.take_while(|row| *row < end) {
            let nth = row - first;
            while left_out.next_if(|gone| *gone <= nth + skipped).is_some() {
                skipped += 1;
            }
            gone.insert(nth + skipped);
            self.kept -= 1;
        }
        self.gone = Arc::new(gone);
        let shift = u32::try_from(before).unwrap_or(u32::MAX);
        self.base = next.base.wrapping_add(self.base).wrapping_sub(shift);
        self.to = next.to;
    }
}

/// All moves that entries of an index may need.
#[derive(Debug, Clone, Default)]
pub(crate) struct Forwarding {
    by_file: HashMap<SegmentId, Moved>,
    bytes: usize,
}

impl Forwarding {
    /// Where the row is now that was at this place once.
    pub(crate) fn resolve(&self, at: Location) -> Location {
        match self.by_file.get(&at.segment) {
            None => at,
            Some(moved) => moved.place(at.row),
        }
    }

    /// Adds the moves of one compaction.
    pub(crate) fn add(&mut self, moves: Vec<Moved>) {
        for next in &moves {
            for earlier in self.by_file.values_mut() {
                if earlier.to == next.from {
                    self.bytes = self.bytes.saturating_sub(bytes_of(earlier));
                    earlier.then(next);
                    self.bytes += bytes_of(earlier);
                }
            }
        }
        for moved in moves {
            self.bytes += bytes_of(&moved);
            self.by_file.insert(moved.from, moved);
        }
    }

    /// Drops moves of files that no entry names any more.
    pub(crate) fn forget(&mut self, files: &[SegmentId]) {
        for file in files {
            if let Some(moved) = self.by_file.remove(file) {
                self.bytes = self.bytes.saturating_sub(bytes_of(&moved));
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn len(&self) -> usize {
        self.by_file.len()
    }

    /// Files that rows were moved from.
    pub(crate) fn files(&self) -> Vec<SegmentId> {
        self.by_file.keys().copied().collect()
    }

    /// Whether rows were moved into the file, and entries may name their earlier places.
    pub(crate) fn leads_to(&self, file: SegmentId) -> bool {
        self.by_file.values().any(|moved| moved.to == file)
    }

    pub(crate) fn moves(&self) -> impl Iterator<Item = &Moved> {
        self.by_file.values()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes + self.by_file.allocation_size()
    }
}

/// Memory of the rows left out: as large as they are written, about.
fn bytes_of(moved: &Moved) -> usize {
    moved.gone.serialized_size()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// A file as the rows in it, by name; None: deleted.
    type Files = BTreeMap<SegmentId, Vec<Option<u32>>>;

    #[derive(Debug, Clone)]
    enum Step {
        /// A file of so many rows.
        Write(u8),
        /// The nth of all rows.
        Delete(u16),
        /// Of the files, those whose bit is set.
        Compact(u8),
        Forget,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0_u8..20).prop_map(Step::Write),
            6 => any::<u16>().prop_map(Step::Delete),
            3 => any::<u8>().prop_map(Step::Compact),
            1 => Just(Step::Forget),
        ]
    }

    fn compact(files: &mut Files, chosen: &[SegmentId], to: SegmentId) -> Vec<Moved> {
        let mut moves = Vec::new();
        let mut rows = Vec::new();
        for from in chosen {
            let old = files.remove(from).unwrap();
            let at = |row: usize| row as u64;
            let gone: RoaringTreemap = (0..old.len())
                .filter(|row| old[*row].is_none())
                .map(at)
                .collect();
            moves.push(Moved {
                from: *from,
                to,
                base: u32::try_from(rows.len()).unwrap(),
                kept: old.len() as u64 - gone.len(),
                gone: Arc::new(gone),
            });
            rows.extend(old.into_iter().flatten().map(Some));
        }
        files.insert(to, rows);
        moves
    }

    proptest! {
        #[test]
        fn a_row_is_found_where_all_compactions_put_it(
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let mut files = Files::new();
            // Where each row was written, or was when it was last asked for all.
            let mut index: BTreeMap<u32, Location> = BTreeMap::new();
            let mut forwarding = Forwarding::default();
            let (mut next_file, mut next_row) = (0, 0);
            for step in steps {
                match step {
                    Step::Write(rows) => {
                        let mut file = Vec::new();
                        for row in 0..u32::from(rows) {
                            index.insert(next_row, Location { segment: next_file, row });
                            file.push(Some(next_row));
                            next_row += 1;
                        }
                        files.insert(next_file, file);
                        next_file += 1;
                    }
                    Step::Delete(nth) => {
                        let all: Vec<u32> = index.keys().copied().collect();
                        if let Some(row) = all.get(usize::from(nth) % all.len().max(1)) {
                            let at = forwarding.resolve(index.remove(row).unwrap());
                            let held = &mut files.get_mut(&at.segment).unwrap()[at.row as usize];
                            prop_assert_eq!(held.take(), Some(*row));
                        }
                    }
                    Step::Compact(bits) => {
                        let chosen: Vec<SegmentId> = files
                            .keys()
                            .enumerate()
                            .filter(|(at, _)| bits & (1 << (at % 8)) != 0)
                            .map(|(_, file)| *file)
                            .collect();
                        if !chosen.is_empty() {
                            forwarding.add(compact(&mut files, &chosen, next_file));
                            next_file += 1;
                        }
                    }
                    Step::Forget => {
                        for at in index.values_mut() {
                            *at = forwarding.resolve(*at);
                        }
                        forwarding.forget(&forwarding.files());
                        prop_assert!(forwarding.len() == 0 && forwarding.bytes == 0);
                    }
                }
                for (row, at) in &index {
                    let at = forwarding.resolve(*at);
                    prop_assert_eq!(files[&at.segment][at.row as usize], Some(*row));
                    prop_assert!(!forwarding.by_file.contains_key(&at.segment));
                }
            }
        }
    }
}
