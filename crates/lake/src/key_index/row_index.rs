//! Places of whole rows, for tables without a key: equal rows are counted.

use std::hash::{BuildHasherDefault, Hasher};

use hashbrown::HashMap;

use super::forward::{Forwarding, Moved};
use super::{Key, Location};

/// Row hashes are even already.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Taken(u64);

impl Hasher for Taken {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.0 ^= u64::from_le_bytes(word);
        }
    }
}

/// A multiset of rows by their hash, with the places of each copy.
#[derive(Debug, Default)]
pub(crate) struct RowIndex {
    /// One place of each row.
    first: HashMap<Key, Location, BuildHasherDefault<Taken>>,
    /// Further places, of rows that occur more than once.
    more: HashMap<Key, Vec<Location>, BuildHasherDefault<Taken>>,
    len: usize,
    forwarding: Forwarding,
}

/// Moves after which all places are renewed, which takes about 50 ns a row.
const MOST_MOVES: usize = 256;
/// Memory that they may take in an index of any size.
const LEAST_ROOM_BYTES: usize = 64 << 10;

impl RowIndex {
    /// The `nth` place of a row, in no particular order.
    pub(crate) fn get(&self, row: Key, nth: usize) -> Option<Location> {
        self.held(row, nth).map(|at| self.forwarding.resolve(at))
    }

    fn held(&self, row: Key, nth: usize) -> Option<Location> {
        let further = self.more.get(&row);
        match further.and_then(|places| places.len().checked_sub(nth + 1)) {
            Some(at) => further.and_then(|places| places.get(at)).copied(),
            None if nth == further.map_or(0, Vec::len) => self.first.get(&row).copied(),
            None => None,
        }
    }

    pub(crate) fn insert(&mut self, row: Key, location: Location) {
        self.len += 1;
        match self.first.entry(row) {
            hashbrown::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(location);
            }
            hashbrown::hash_map::Entry::Occupied(_) => {
                self.more.entry(row).or_default().push(location);
            }
        }
    }

    /// Takes away the place [`Self::get`] gives for `nth` 0.
    pub(crate) fn remove(&mut self, row: Key) -> Option<Location> {
        let taken = match self.more.get_mut(&row) {
            Some(places) => {
                let taken = places.pop();
                if places.is_empty() {
                    self.more.remove(&row);
                }
                taken
            }
            None => self.first.remove(&row),
        };
        self.len -= usize::from(taken.is_some());
        taken.map(|at| self.forwarding.resolve(at))
    }

    /// Rows were moved by a compaction.
    pub(crate) fn moved(&mut self, moves: Vec<Moved>) {
        self.forwarding.add(moves);
        // Places in another order take as much as they are many.
        let room = self.first.allocation_size().max(LEAST_ROOM_BYTES);
        let is_small = self.forwarding.memory_bytes() <= room;
        if self.forwarding.len() < MOST_MOVES && is_small {
            return;
        }
        let further = self.more.values_mut().flatten();
        for place in self.first.values_mut().chain(further) {
            *place = self.forwarding.resolve(*place);
        }
        self.forwarding.clear();
    }

    /// Rows, equal ones counted.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let lists: usize = self
            .more
            .values()
            .map(|places| places.capacity() * size_of::<Location>())
            .sum();
        self.first.allocation_size()
            + self.more.allocation_size()
            + lists
            + self.forwarding.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_as_a_map_of_lists_does(
            steps in proptest::collection::vec((0_u128..6, any::<bool>()), 0..200),
        ) {
            let mut index = RowIndex::default();
            let mut model: BTreeMap<u128, Vec<Location>> = BTreeMap::new();
            for (place, (row, insert)) in steps.into_iter().enumerate() {
                let places = model.entry(row).or_default();
                if insert {
                    let at = Location { segment: 0, row: u32::try_from(place).unwrap_or(0) };
                    index.insert(row, at);
                    places.push(at);
                } else {
                    prop_assert_eq!(index.remove(row), places.pop());
                }
                for (nth, at) in places.iter().rev().enumerate() {
                    prop_assert_eq!(index.get(row, nth), Some(*at));
                }
                prop_assert_eq!(index.get(row, places.len()), None);
            }
        }
    }
}
