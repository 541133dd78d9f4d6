//! A hash table in 64 shards: growing one shard stops the world for a 64th of the time.

use hashbrown::HashTable;

use super::{Key, KeyIndex, Location};
use crate::key_index::KeyWidth;

const SHARDS: usize = 64;

/// A unique key to place index. 28 bytes a key on average (17 to 39, as tables grow by doubling)
/// for keys of 8 bytes, 41 (25 to 57) for others.
#[derive(Debug)]
pub(crate) enum ShardedIndex {
    Narrow(Shards<u64>),
    Wide(Shards<[u64; 2]>),
}

/// What a shard stores of a key.
pub(crate) trait StoredKey: Copy + Eq {
    fn of(key: Key) -> Self;
    fn hash(self) -> u64;
}

impl StoredKey for u64 {
    fn of(key: Key) -> Self {
        // A narrow key has nothing in its upper half.
        Self::try_from(key & u128::from(Self::MAX)).unwrap_or_default()
    }

    fn hash(self) -> u64 {
        mix(self)
    }
}

impl StoredKey for [u64; 2] {
    fn of(key: Key) -> Self {
        [u64::of(key >> 64), u64::of(key)]
    }

    fn hash(self) -> u64 {
        let [high, low] = self;
        mix(low ^ mix(high))
    }
}

/// The finalizer of splitmix64: every bit of the input moves every bit of the output.
fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[derive(Debug)]
pub(crate) struct Shards<K> {
    shards: Vec<HashTable<(K, u64)>>,
    len: usize,
}

impl<K: StoredKey> Shards<K> {
    fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| HashTable::new()).collect(),
            len: 0,
        }
    }

    /// The table uses the hash's lowest and highest bits, the choice of shard those between.
    fn shard_of(hash: u64) -> usize {
        usize::try_from((hash >> 40) % SHARDS as u64).unwrap_or_default()
    }

    fn get(&self, key: Key) -> Option<Location> {
        let key = K::of(key);
        let hash = key.hash();
        let shard = self.shards.get(Self::shard_of(hash))?;
        shard
            .find(hash, |(stored, _)| *stored == key)
            .map(|(_, at)| Location::unpack(*at))
    }

    fn insert(&mut self, key: Key, location: Location) -> Option<Location> {
        let key = K::of(key);
        let hash = key.hash();
        let shard = self.shards.get_mut(Self::shard_of(hash))?;
        let entry = shard.entry(
            hash,
            |(stored, _)| *stored == key,
            |(stored, _)| stored.hash(),
        );
        match entry {
            hashbrown::hash_table::Entry::Occupied(mut occupied) => {
                let before = std::mem::replace(&mut occupied.get_mut().1, location.pack());
                Some(Location::unpack(before))
            }
            hashbrown::hash_table::Entry::Vacant(vacant) => {
                vacant.insert((key, location.pack()));
                self.len += 1;
                None
            }
        }
    }

    fn remove(&mut self, key: Key) -> Option<Location> {
        let key = K::of(key);
        let hash = key.hash();
        let shard = self.shards.get_mut(Self::shard_of(hash))?;
        let entry = shard.find_entry(hash, |(stored, _)| *stored == key).ok()?;
        let ((_, at), _) = entry.remove();
        self.len -= 1;
        Some(Location::unpack(at))
    }

    fn retain(&mut self, keep: &mut dyn FnMut(Location) -> bool) {
        for shard in &mut self.shards {
            shard.retain(|(_, at)| keep(Location::unpack(*at)));
            shard.shrink_to_fit(|(stored, _)| stored.hash());
        }
        self.len = self.shards.iter().map(HashTable::len).sum();
    }

    fn memory_bytes(&self) -> usize {
        self.shards.iter().map(HashTable::allocation_size).sum()
    }
}

impl ShardedIndex {
    pub(crate) fn new(width: KeyWidth) -> Self {
        match width {
            KeyWidth::Narrow => Self::Narrow(Shards::new()),
            KeyWidth::Wide | KeyWidth::Hashed => Self::Wide(Shards::new()),
        }
    }
}

impl KeyIndex for ShardedIndex {
    fn get(&self, key: Key) -> Option<Location> {
        match self {
            Self::Narrow(shards) => shards.get(key),
            Self::Wide(shards) => shards.get(key),
        }
    }

    fn insert(&mut self, key: Key, location: Location) -> Option<Location> {
        match self {
            Self::Narrow(shards) => shards.insert(key, location),
            Self::Wide(shards) => shards.insert(key, location),
        }
    }

    fn remove(&mut self, key: Key) -> Option<Location> {
        match self {
            Self::Narrow(shards) => shards.remove(key),
            Self::Wide(shards) => shards.remove(key),
        }
    }

    fn retain(&mut self, keep: &mut dyn FnMut(Location) -> bool) {
        match self {
            Self::Narrow(shards) => shards.retain(keep),
            Self::Wide(shards) => shards.retain(keep),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Narrow(shards) => shards.len,
            Self::Wide(shards) => shards.len,
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Narrow(shards) => shards.memory_bytes(),
            Self::Wide(shards) => shards.memory_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u128, u32, u32),
        Remove(u128),
        Get(u128),
        DropSegment(u32),
    }

    /// Few keys, so that steps meet; some beyond 64 bits.
    fn key() -> impl Strategy<Value = u128> {
        prop_oneof![
            0_u128..40,
            (0_u128..40).prop_map(|k| k << 64),
            any::<u128>()
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (key(), 0_u32..5, any::<u32>()).prop_map(|(k, s, r)| Step::Insert(k, s, r)),
            2 => key().prop_map(Step::Remove),
            2 => key().prop_map(Step::Get),
            1 => (0_u32..5).prop_map(Step::DropSegment),
        ]
    }

    fn run(steps: Vec<Step>, mut index: ShardedIndex, mask: u128) {
        let mut model: BTreeMap<u128, Location> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Insert(key, segment, row) => {
                    let at = Location { segment, row };
                    assert_eq!(index.insert(key & mask, at), model.insert(key & mask, at));
                }
                Step::Remove(key) => {
                    assert_eq!(index.remove(key & mask), model.remove(&(key & mask)));
                }
                Step::Get(key) => {
                    assert_eq!(index.get(key & mask), model.get(&(key & mask)).copied());
                }
                Step::DropSegment(segment) => {
                    index.retain(&mut |at| at.segment != segment);
                    model.retain(|_, at| at.segment != segment);
                }
            }
            assert_eq!(index.len(), model.len());
        }
        for (key, at) in model {
            assert_eq!(index.get(key), Some(at));
        }
    }

    proptest! {
        #[test]
        fn equals_a_map(steps in proptest::collection::vec(step(), 0..400)) {
            run(steps.clone(), ShardedIndex::new(KeyWidth::Narrow), u128::from(u64::MAX));
            run(steps, ShardedIndex::new(KeyWidth::Wide), u128::MAX);
        }
    }

    #[test]
    fn memory_a_key_is_as_stated() {
        let mut narrow = ShardedIndex::new(KeyWidth::Narrow);
        let mut wide = ShardedIndex::new(KeyWidth::Hashed);
        for key in 0..200_000_u32 {
            let at = Location {
                segment: 1,
                row: key,
            };
            narrow.insert(u128::from(key), at);
            wide.insert(u128::from(key) << 64, at);
        }
        let per_key = |index: &ShardedIndex| index.memory_bytes() / index.len();
        assert!(
            (17..=40).contains(&per_key(&narrow)),
            "{}",
            per_key(&narrow)
        );
        assert!((25..=58).contains(&per_key(&wide)), "{}", per_key(&wide));
    }
}
