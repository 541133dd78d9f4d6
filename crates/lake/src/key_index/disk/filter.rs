//! A Bloom filter in blocks of one cache line, for sorted keys.
//!
//! The block of a key rises with the key's order, so that a sorted run fills its filter from front
//! to back.

use crate::key_index::sharded::mix;

const BITS_PER_KEY: usize = 10;
const WORDS_PER_BLOCK: usize = 8;
const PROBES: u32 = 6;

/// Says of a key that it may be in a run, or is not; wrong about one absent key in a hundred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    words: Vec<u64>,
}

/// A stretch of a filter, for keys of a part of the order.
#[derive(Debug)]
pub(super) struct FilterPart {
    words: Vec<u64>,
    /// Where its words begin in the filter.
    from: usize,
    /// Words of the filter.
    whole: usize,
}

impl Filter {
    pub(super) fn new(keys: usize) -> Self {
        Self {
            words: vec![0; words_for(keys)],
        }
    }

    pub(super) fn from_words(words: Vec<u64>) -> Option<Self> {
        let whole = !words.is_empty() && words.len().is_multiple_of(WORDS_PER_BLOCK);
        whole.then_some(Self { words })
    }

    /// An empty stretch of it for orders from `first` to `last`.
    pub(super) fn part(&self, first: u64, last: u64) -> FilterPart {
        let whole = self.words.len();
        let (from, to) = (block(whole, first), block(whole, last) + WORDS_PER_BLOCK);
        FilterPart {
            words: vec![0; to - from],
            from,
            whole,
        }
    }

    /// Adds the keys of a stretch.
    pub(super) fn join(&mut self, part: &FilterPart) {
        let own = self.words.iter_mut().skip(part.from);
        for (own, word) in own.zip(&part.words) {
            *own |= word;
        }
    }

    pub(super) fn words(&self) -> &[u64] {
        &self.words
    }

    pub(super) fn insert(&mut self, order: u64) {
        let at = block(self.words.len(), order);
        set(&mut self.words, at, order);
    }

    pub(super) fn may_have(&self, order: u64) -> bool {
        let block = block(self.words.len(), order);
        bits(order).all(|(word, mask)| {
            self.words
                .get(block + word)
                .is_none_or(|word| word & mask != 0)
        })
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.words.len() * size_of::<u64>()
    }
}

impl FilterPart {
    pub(super) fn insert(&mut self, order: u64) {
        let at = block(self.whole, order).saturating_sub(self.from);
        set(&mut self.words, at, order);
    }
}

/// Words of a filter for so many keys.
fn words_for(keys: usize) -> usize {
    (keys.saturating_mul(BITS_PER_KEY) / (WORDS_PER_BLOCK * 64) + 1) * WORDS_PER_BLOCK
}

/// Memory a filter for so many keys takes.
pub(super) fn filter_bytes_for(keys: usize) -> usize {
    words_for(keys) * size_of::<u64>()
}

/// Where a key's block begins in a filter of so many words.
fn block(words: usize, order: u64) -> usize {
    let blocks = (words / WORDS_PER_BLOCK) as u128;
    usize::try_from((u128::from(order) * blocks) >> 64).unwrap_or_default() * WORDS_PER_BLOCK
}

/// The bits of a key in its block: word and mask.
fn bits(order: u64) -> impl Iterator<Item = (usize, u64)> {
    let mixed = mix(order);
    (0..PROBES).map(move |probe| {
        let bit = mixed >> (9 * probe);
        let word = usize::try_from((bit >> 6) & 7).unwrap_or_default();
        (word, 1 << (bit & 63))
    })
}

fn set(words: &mut [u64], at: usize, order: u64) {
    for (word, mask) in bits(order) {
        if let Some(word) = words.get_mut(at + word) {
            *word |= mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_what_it_was_given_and_little_else() {
        let mut filter = Filter::new(20_000);
        for key in 0..20_000 {
            filter.insert(mix(key));
        }
        assert!((0..20_000).all(|key| filter.may_have(mix(key))));
        let wrong = (20_000..120_000)
            .filter(|key| filter.may_have(mix(*key)))
            .count();
        assert!(wrong < 3_000, "{wrong} of 100000");
    }

    #[test]
    fn parts_make_the_whole() {
        let mut orders: Vec<u64> = (0..5_000).map(mix).collect();
        orders.sort_unstable();
        let mut whole = Filter::new(orders.len());
        let mut joined = whole.clone();
        for part in orders.chunks(170) {
            let mut stretch = whole.part(part[0], part[part.len() - 1]);
            for order in part {
                whole.insert(*order);
                stretch.insert(*order);
            }
            joined.join(&stretch);
        }
        assert_eq!(joined, whole);
        assert_eq!(filter_bytes_for(orders.len()), whole.memory_bytes());
    }
}
