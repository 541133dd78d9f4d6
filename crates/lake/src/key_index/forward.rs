//! Rows that a compaction moved: the index goes on naming the places they had.
//!
//! A compaction writes the rows of some files, less those deleted when it began, into one file. Where
//! it keeps their order, the new place of a row follows from its old one: behind the rows of the
//! files before its own, less the rows left out before it. Where it sorts them, the place of each is
//! remembered. Nothing of the index is rewritten for it; later, in passing, entries get their new
//! places, and then what is known here of a file is dropped.
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
    /// Where each of these went; none: one after the other, from `base` on.
    pub(crate) places: Option<Arc<[u32]>>,
}

/// Place of a row that was left out.
const GONE: u32 = u32::MAX;

impl Moved {
    /// The new place of the nth row that was not left out.
    pub(crate) fn nth(&self, nth: u64) -> u32 {
        match &self.places {
            Some(places) if !failpoint::is_planted("forward.forgets_the_order") => {
                let nth = usize::try_from(nth).unwrap_or(usize::MAX);
                places.get(nth).copied().unwrap_or(GONE)
            }
            // A place is 32 bits wide, and so is the number of any row.
            _ => self.base.wrapping_add(u32::try_from(nth).unwrap_or(GONE)),
        }
    }

    /// The new place of a row that was not left out.
    pub(crate) fn row(&self, row: u64) -> u32 {
        self.nth(row.saturating_sub(self.gone.rank(row)))
    }

    fn place(&self, row: u32) -> Location {
        Location {
            segment: self.to,
            row: self
                .row(u64::from(row))
                .wrapping_add(u32::from(failpoint::is_planted("forward.off_by_one"))),
        }
    }

    /// The rows of the file that were not left out.
    fn kept_rows(&self) -> impl Iterator<Item = u64> {
        let mut left_out = self.gone.iter().peekable();
        let rows =
            (0..self.gone.len() + self.kept).filter(move |row| left_out.next_if_eq(row).is_none());
        rows.take(usize::try_from(self.kept).unwrap_or(usize::MAX))
    }

    /// The new places of all rows of the file.
    fn all_places(&self) -> Vec<u32> {
        let rows = usize::try_from(self.gone.len() + self.kept).unwrap_or_default();
        let mut all = vec![GONE; rows];
        for (nth, row) in (0..).zip(self.kept_rows()) {
            if let Some(place) = usize::try_from(row).ok().and_then(|row| all.get_mut(row)) {
                *place = self.nth(nth);
            }
        }
        all
    }

    /// As [`Self::then`], where one of them sorted: `next` leads to these places.
    fn then_to(&mut self, next: &Self, places: &[u32]) {
        let mut gone = RoaringTreemap::clone(&self.gone);
        let mut kept = Vec::new();
        for (nth, row) in (0..).zip(self.kept_rows()) {
            match places.get(self.nth(nth) as usize) {
                None | Some(&GONE) => {
                    gone.insert(row);
                }
                Some(place) => kept.push(*place),
            }
        }
        self.gone = Arc::new(gone);
        self.kept = kept.len() as u64;
        self.places = Some(kept.into());
        self.to = next.to;
    }

    /// This move and then `next`, which is of the file that it leads to, as one; both in order.
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
            let mut places = None;
            for earlier in self.by_file.values_mut() {
                if earlier.to == next.from {
                    self.bytes = self.bytes.saturating_sub(bytes_of(earlier));
                    if earlier.places.is_none() && next.places.is_none() {
                        earlier.then(next);
                    } else {
                        let places = places.get_or_insert_with(|| next.all_places());
                        earlier.then_to(next, places);
                    }
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

/// Memory of the rows left out: as large as they are written, about; and of places.
fn bytes_of(moved: &Moved) -> usize {
    let places = moved.places.as_ref().map_or(0, |places| places.len());
    moved.gone.serialized_size() + places * size_of::<u32>()
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
        /// Of the files, those whose bit is set; rows in another order where a number says so.
        Compact(u8, Option<u32>),
        Forget,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0_u8..20).prop_map(Step::Write),
            6 => any::<u16>().prop_map(Step::Delete),
                3 => (any::<u8>(), prop::option::of(1_u32..100)).prop_map(|(b, o)| Step::Compact(b, o)),
            1 => Just(Step::Forget),
        ]
    }

    fn compact(
        files: &mut Files,
        chosen: &[SegmentId],
        to: SegmentId,
        order: Option<u32>,
    ) -> Vec<Moved> {
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
                places: None,
            });
            rows.extend(old.into_iter().flatten());
        }
        if let Some(order) = order {
            let read = rows.clone();
            rows.sort_by_key(|row| row.wrapping_mul(order) % 31);
            let place = |row: &u32| rows.iter().position(|other| other == row).unwrap();
            let places: Vec<u32> = read
                .iter()
                .map(|row| u32::try_from(place(row)).unwrap())
                .collect();
            let mut rest = places.as_slice();
            for moved in &mut moves {
                let (own, later) = rest.split_at(usize::try_from(moved.kept).unwrap());
                moved.places = Some(own.into());
                rest = later;
            }
        }
        files.insert(to, rows.into_iter().map(Some).collect());
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
                    Step::Compact(bits, order) => {
                        let chosen: Vec<SegmentId> = files
                            .keys()
                            .enumerate()
                            .filter(|(at, _)| bits & (1 << (at % 8)) != 0)
                            .map(|(_, file)| *file)
                            .collect();
                        if !chosen.is_empty() {
                            forwarding.add(compact(&mut files, &chosen, next_file, order));
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
