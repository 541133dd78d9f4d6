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

impl Filter {
    pub(super) fn new(keys: usize) -> Self {
        let blocks = (keys.saturating_mul(BITS_PER_KEY) / (WORDS_PER_BLOCK * 64)) + 1;
        Self {
            words: vec![0; blocks * WORDS_PER_BLOCK],
        }
    }

    pub(super) fn from_words(words: Vec<u64>) -> Option<Self> {
        let whole = !words.is_empty() && words.len().is_multiple_of(WORDS_PER_BLOCK);
        whole.then_some(Self { words })
    }

    pub(super) fn words(&self) -> &[u64] {
        &self.words
    }

    fn block(&self, order: u64) -> usize {
        let blocks = (self.words.len() / WORDS_PER_BLOCK) as u128;
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

    pub(super) fn insert(&mut self, order: u64) {
        let block = self.block(order);
        for (word, mask) in Self::bits(order) {
            if let Some(word) = self.words.get_mut(block + word) {
                *word |= mask;
            }
        }
    }

    pub(super) fn may_have(&self, order: u64) -> bool {
        let block = self.block(order);
        Self::bits(order).all(|(word, mask)| {
            self.words
                .get(block + word)
                .is_none_or(|word| word & mask != 0)
        })
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.words.len() * size_of::<u64>()
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
}
