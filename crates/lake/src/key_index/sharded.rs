//! A hash table in 64 shards: growing one shard stops the world for a 64th of the time.

use std::sync::{Mutex, PoisonError};

use hashbrown::HashTable;

use super::forward::Forwarding;
use super::spread::Spread;
use super::{Key, KeyWidth, Location, lock};

pub(crate) const SHARDS: usize = 1 << SHARD_BITS;
/// First bits of an order that tell the shard.
pub(crate) const SHARD_BITS: u32 = 6;

/// Bits of a hash below and with those that choose the shard.
const SHARD_BITS_FROM: u32 = 40;
const SHARD_BITS_TO: u32 = SHARD_BITS_FROM + SHARD_BITS;

/// What a table stores of a key.
trait StoredKey: Copy + Eq {
    fn of(key: Key) -> Self;
    fn key(self) -> Key;
    fn hash(self) -> u64;
}

impl StoredKey for u64 {
    fn of(key: Key) -> Self {
        // A narrow key has nothing in its upper half.
        Self::try_from(key & u128::from(Self::MAX)).unwrap_or_default()
    }

    fn key(self) -> Key {
        Key::from(self)
    }

    fn hash(self) -> u64 {
        mix(self)
    }
}

impl StoredKey for [u64; 2] {
    fn of(key: Key) -> Self {
        [u64::of(key >> 64), u64::of(key)]
    }

    fn key(self) -> Key {
        let [high, low] = self;
        (Key::from(high) << 64) | Key::from(low)
    }

    fn hash(self) -> u64 {
        let [high, low] = self;
        mix(low ^ mix(high))
    }
}

/// The finalizer of splitmix64: every bit of the input moves every bit of the output.
pub(super) fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// The value that [`mix`] makes this of.
fn unmix(mixed: u64) -> u64 {
    let mut value = mixed ^ (mixed >> 31) ^ (mixed >> 62);
    value = value.wrapping_mul(0x3196_42B2_D24D_8EC3);
    value ^= (value >> 27) ^ (value >> 54);
    value = value.wrapping_mul(0x96DE_1B17_3F11_9089);
    value ^= (value >> 30) ^ (value >> 60);
    value.wrapping_sub(0x9E37_79B9_7F4A_7C15)
}

/// The key of at most 8 bytes that stands there in a sorted run.
pub(super) fn narrow_key_at(order: u64) -> Key {
    unmix(order.rotate_left(SHARD_BITS_TO)).key()
}

impl KeyWidth {
    fn hash(self, key: Key) -> u64 {
        match self {
            Self::Narrow => u64::of(key).hash(),
            Self::Wide | Self::Hashed => <[u64; 2]>::of(key).hash(),
        }
    }

    /// Where the key stands in a sorted run: keys of one shard stand together, shard by shard.
    pub(super) fn order(self, key: Key) -> u64 {
        self.hash(key).rotate_right(SHARD_BITS_TO)
    }

    /// Bytes of a key as stored.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Narrow => 8,
            Self::Wide | Self::Hashed => 16,
        }
    }
}

/// The first place in a sorted run that a key of the shard can have.
pub(super) fn first_order_of(shard: usize) -> u64 {
    (shard as u64) << (64 - SHARD_BITS)
}

/// The table uses the hash's lowest and highest bits, the choice of shard those between.
fn shard_of(hash: u64) -> usize {
    usize::try_from((hash >> SHARD_BITS_FROM) % SHARDS as u64).unwrap_or_default()
}

#[derive(Debug)]
struct Table<K>(HashTable<(K, u64)>);

impl<K: StoredKey> Table<K> {
    fn get(&self, hash: u64, key: Key) -> Option<u64> {
        let key = K::of(key);
        let found = self.0.find(hash, |(stored, _)| *stored == key);
        found.map(|(_, place)| *place)
    }

    fn insert(&mut self, hash: u64, key: Key, place: u64) -> Option<u64> {
        let key = K::of(key);
        let entry = self.0.entry(
            hash,
            |(stored, _)| *stored == key,
            |(stored, _)| stored.hash(),
        );
        match entry {
            hashbrown::hash_table::Entry::Occupied(mut occupied) => {
                Some(std::mem::replace(&mut occupied.get_mut().1, place))
            }
            hashbrown::hash_table::Entry::Vacant(vacant) => {
                vacant.insert((key, place));
                None
            }
        }
    }

    fn insert_new(&mut self, hash: u64, key: Key, place: u64) {
        let entry = (K::of(key), place);
        self.0
            .insert_unique(hash, entry, |(stored, _)| stored.hash());
    }

    fn remove(&mut self, hash: u64, key: Key) -> Option<u64> {
        let key = K::of(key);
        let entry = self.0.find_entry(hash, |(stored, _)| *stored == key).ok()?;
        let ((_, place), _) = entry.remove();
        Some(place)
    }

    fn retain(&mut self, keep: &mut dyn FnMut(Location) -> bool) {
        self.0.retain(|(_, place)| keep(Location::unpack(*place)));
        self.0.shrink_to_fit(|(stored, _)| stored.hash());
    }

    fn forward(&mut self, forwarding: &Forwarding) {
        for (_, place) in self.0.iter_mut() {
            *place = forwarding.resolve(Location::unpack(*place)).pack();
        }
    }

    fn entries(&self) -> Vec<(Key, u64)> {
        let stored = self.0.iter();
        stored.map(|(key, place)| (key.key(), *place)).collect()
    }
}

#[derive(Debug)]
enum Shard {
    Narrow(Table<u64>),
    Wide(Table<[u64; 2]>),
}

impl Shard {
    fn new(width: KeyWidth, keys: usize) -> Self {
        match width {
            KeyWidth::Narrow => Self::Narrow(Table(HashTable::with_capacity(keys))),
            KeyWidth::Wide | KeyWidth::Hashed => Self::Wide(Table(HashTable::with_capacity(keys))),
        }
    }

    fn get(&self, hash: u64, key: Key) -> Option<u64> {
        match self {
            Self::Narrow(table) => table.get(hash, key),
            Self::Wide(table) => table.get(hash, key),
        }
    }

    fn insert(&mut self, hash: u64, key: Key, place: u64) -> Option<u64> {
        match self {
            Self::Narrow(table) => table.insert(hash, key, place),
            Self::Wide(table) => table.insert(hash, key, place),
        }
    }

    fn insert_new(&mut self, hash: u64, key: Key, place: u64) {
        match self {
            Self::Narrow(table) => table.insert_new(hash, key, place),
            Self::Wide(table) => table.insert_new(hash, key, place),
        }
    }

    fn remove(&mut self, hash: u64, key: Key) -> Option<u64> {
        match self {
            Self::Narrow(table) => table.remove(hash, key),
            Self::Wide(table) => table.remove(hash, key),
        }
    }

    fn retain(&mut self, keep: &mut dyn FnMut(Location) -> bool) {
        match self {
            Self::Narrow(table) => table.retain(keep),
            Self::Wide(table) => table.retain(keep),
        }
    }

    fn forward(&mut self, forwarding: &Forwarding) {
        match self {
            Self::Narrow(table) => table.forward(forwarding),
            Self::Wide(table) => table.forward(forwarding),
        }
    }

    fn entries(&self) -> Vec<(Key, u64)> {
        match self {
            Self::Narrow(table) => table.entries(),
            Self::Wide(table) => table.entries(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Narrow(table) => table.0.len(),
            Self::Wide(table) => table.0.len(),
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Narrow(table) => table.0.allocation_size(),
            Self::Wide(table) => table.0.allocation_size(),
        }
    }
}

/// A unique key to place index. 28 bytes a key on average (17 to 39, as tables grow by doubling)
/// for keys of 8 bytes, 41 (25 to 57) for others.
#[derive(Debug)]
pub(crate) struct ShardedIndex {
    width: KeyWidth,
    shards: Vec<Shard>,
    len: usize,
}

impl ShardedIndex {
    pub(crate) fn new(width: KeyWidth) -> Self {
        Self {
            width,
            shards: (0..SHARDS).map(|_| Shard::new(width, 0)).collect(),
            len: 0,
        }
    }

    pub(crate) fn width(&self) -> KeyWidth {
        self.width
    }

    /// What the index of so many keys takes, built at once.
    pub(crate) fn predicted_bytes(width: KeyWidth, keys: u64) -> usize {
        let keys = usize::try_from(keys).unwrap_or(usize::MAX);
        let buckets = (room(keys) / 7).saturating_mul(8).next_power_of_two();
        let entry = width.bytes() + size_of::<u64>() + 1;
        buckets.saturating_mul(SHARDS).saturating_mul(entry)
    }

    pub(crate) fn get(&self, key: Key) -> Option<Location> {
        let hash = self.width.hash(key);
        let shard = self.shards.get(shard_of(hash))?;
        shard.get(hash, key).map(Location::unpack)
    }

    /// Returns the place the key had before.
    pub(crate) fn insert(&mut self, key: Key, location: Location) -> Option<Location> {
        let hash = self.width.hash(key);
        let shard = self.shards.get_mut(shard_of(hash))?;
        let before = shard.insert(hash, key, location.pack());
        self.len += usize::from(before.is_none());
        before.map(Location::unpack)
    }

    /// Inserts many at once, shard by shard: what one of them touches is near in memory. Returns the
    /// places that keys had before.
    pub(crate) fn insert_all(&mut self, entries: &[(Key, u64)]) -> Vec<Location> {
        let mut by_shard = Spread::default();
        by_shard.fill(entries, SHARDS, |(key, _)| shard_of(self.width.hash(*key)));
        let mut before = Vec::new();
        for (entries, shard) in by_shard.buckets().zip(&mut self.shards) {
            for (key, place) in entries {
                match shard.insert(self.width.hash(*key), *key, *place) {
                    Some(held) => before.push(Location::unpack(held)),
                    None => self.len += 1,
                }
            }
        }
        before
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Location> {
        let hash = self.width.hash(key);
        let before = self.shards.get_mut(shard_of(hash))?.remove(hash, key);
        self.len -= usize::from(before.is_some());
        before.map(Location::unpack)
    }

    /// Keeps the keys whose place passes.
    pub(crate) fn retain(&mut self, keep: &mut dyn FnMut(Location) -> bool) {
        for shard in &mut self.shards {
            shard.retain(keep);
        }
        self.len = self.shards.iter().map(Shard::len).sum();
    }

    /// Gives the entries of one shard, of [`SHARDS`], the places their rows have now.
    pub(crate) fn forward(&mut self, shard: usize, forwarding: &Forwarding) {
        if let Some(shard) = self.shards.get_mut(shard) {
            shard.forward(forwarding);
        }
    }

    /// A copy of the entries of one shard, of [`SHARDS`]; unordered.
    pub(crate) fn entries(&self, shard: usize) -> Vec<(Key, u64)> {
        self.shards
            .get(shard)
            .map(Shard::entries)
            .unwrap_or_default()
    }

    pub(crate) fn shard_lens(&self) -> impl Iterator<Item = usize> {
        self.shards.iter().map(Shard::len)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.shards.iter().map(Shard::memory_bytes).sum()
    }
}

/// Room a shard gets when so many keys come at once: keys spread unevenly, a little.
fn room(keys: usize) -> usize {
    let even = keys / SHARDS;
    even.saturating_add(even / 32).saturating_add(8)
}

/// An index filled by several threads at once.
pub(crate) struct ShardedBuilder {
    width: KeyWidth,
    shards: Vec<Mutex<Shard>>,
    scratch: Mutex<Vec<Spread<(Key, u64)>>>,
}

impl ShardedBuilder {
    /// With room for `keys`.
    pub(crate) fn new(width: KeyWidth, keys: u64) -> Self {
        let room = room(usize::try_from(keys).unwrap_or_default());
        let shards = (0..SHARDS).map(|_| Mutex::new(Shard::new(width, room)));
        Self {
            width,
            shards: shards.collect(),
            scratch: Mutex::default(),
        }
    }

    /// Adds entries; false when one of the keys was there.
    pub(crate) fn add(&self, entries: &[(Key, u64)]) -> bool {
        let pool = || lock(&self.scratch);
        let mut by_shard = pool().pop().unwrap_or_default();
        by_shard.fill(entries, SHARDS, |(key, _)| shard_of(self.width.hash(*key)));
        let mut new = true;
        for (entries, shard) in by_shard.buckets().zip(&self.shards) {
            if entries.is_empty() {
                continue;
            }
            let mut shard = lock(shard);
            for (key, place) in entries {
                let hash = self.width.hash(*key);
                new &= shard.insert(hash, *key, *place).is_none();
            }
        }
        pool().push(by_shard);
        new
    }

    /// Adds entries that all belong to one shard, with keys that are new and all different.
    pub(crate) fn add_to_shard(&self, shard: usize, entries: &[(Key, u64)]) {
        if let Some(shard) = self.shards.get(shard) {
            let mut shard = lock(shard);
            for (key, place) in entries {
                shard.insert_new(self.width.hash(*key), *key, *place);
            }
        }
    }

    pub(crate) fn finish(self) -> ShardedIndex {
        let shards: Vec<Shard> = self
            .shards
            .into_iter()
            .map(|shard| shard.into_inner().unwrap_or_else(PoisonError::into_inner))
            .collect();
        ShardedIndex {
            width: self.width,
            len: shards.iter().map(Shard::len).sum(),
            shards,
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
        InsertAll(Vec<u128>),
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
            1 => prop::collection::vec(key(), 0..20).prop_map(Step::InsertAll),
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
                Step::InsertAll(keys) => {
                    let at = |row| Location { segment: 9, row };
                    let places = keys.iter().map(|key| key & mask).zip((0..).map(at));
                    let entries: Vec<(Key, u64)> =
                        places.clone().map(|(key, at)| (key, at.pack())).collect();
                    let mut before = index.insert_all(&entries);
                    let mut expected: Vec<Location> = places
                        .filter_map(|(key, at)| model.insert(key, at))
                        .collect();
                    before.sort_unstable();
                    expected.sort_unstable();
                    assert_eq!(before, expected);
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
        let built = ShardedBuilder::new(index.width, 3);
        for shard in 0..SHARDS {
            let entries = index.entries(shard);
            for (key, _) in &entries {
                let order = index.width.order(*key);
                assert!(order >= first_order_of(shard));
                assert!(shard + 1 == SHARDS || order < first_order_of(shard + 1));
            }
            built.add_to_shard(shard, &entries);
        }
        let built = built.finish();
        assert_eq!(built.len(), model.len());
        for (key, at) in model {
            assert_eq!(index.get(key), Some(at));
            assert_eq!(built.get(key), Some(at));
        }
    }

    proptest! {
        #[test]
        fn a_narrow_key_is_known_by_its_order(key: u64) {
            let key = Key::from(key);
            assert_eq!(narrow_key_at(KeyWidth::Narrow.order(key)), key);
        }

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

    #[test]
    fn what_it_will_take_is_known_before() {
        for keys in [1_000_u64, 50_000, 300_000] {
            for width in [KeyWidth::Narrow, KeyWidth::Wide] {
                let builder = ShardedBuilder::new(width, keys);
                let entries: Vec<_> = (0..keys).map(|key| (u128::from(key), key)).collect();
                assert!(builder.add(&entries));
                assert!(!builder.add(&entries[..1]));
                let took = builder.finish().memory_bytes();
                let predicted = ShardedIndex::predicted_bytes(width, keys);
                assert!(
                    (predicted / 2..=predicted + predicted / 8).contains(&took),
                    "{keys} {took} {predicted}"
                );
            }
        }
    }
}
