//! Entries in any order, made into a run: part by part of their order, by several threads.
//!
//! Orders are hashes: each entry has about one place in its part that it can have, so that sorting
//! a part is moving its entries there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use alluvium_change::{Error, Result};

use super::files::Home;
use super::filter::Filter;
use super::run::{Entry, Run};
use super::write::{Blocks, RunFile};
use crate::key_index::sharded::narrow_key_at;
use crate::key_index::spread::Spread;
use crate::key_index::{Key, KeyWidth, in_parallel, lock};

/// An entry that waits to be sorted, by its order first.
pub(super) trait Waiting: Copy + Ord + Default + Send {
    fn of(order: u64, key: Key, place: u64) -> Self;
    fn all(width: KeyWidth, entries: &[(Key, u64)]) -> impl ExactSizeIterator<Item = Self> {
        let of = move |(key, place): &(Key, u64)| Self::of(width.order(*key), *key, *place);
        entries.iter().map(of)
    }
    fn order(&self) -> u64;
    fn entry(&self) -> Entry;
    /// Entries as words.
    fn words(entries: &[Self]) -> &[u64];
    fn extend_from_words(entries: &mut Vec<Self>, words: &[u64]);
}

/// Of a narrow key, which its order tells.
impl Waiting for [u64; 2] {
    fn of(order: u64, _: Key, place: u64) -> Self {
        [order, place]
    }

    fn order(&self) -> u64 {
        let [order, _] = self;
        *order
    }

    fn entry(&self) -> Entry {
        let [order, place] = *self;
        Entry {
            order,
            key: narrow_key_at(order),
            place,
        }
    }

    fn words(entries: &[Self]) -> &[u64] {
        entries.as_flattened()
    }

    fn extend_from_words(entries: &mut Vec<Self>, words: &[u64]) {
        entries.extend_from_slice(words.as_chunks().0);
    }
}

impl Waiting for [u64; 4] {
    fn of(order: u64, key: Key, place: u64) -> Self {
        let half = |half: Key| u64::try_from(half & Key::from(u64::MAX)).unwrap_or_default();
        [order, half(key >> 64), half(key), place]
    }

    fn order(&self) -> u64 {
        let [order, ..] = self;
        *order
    }

    fn entry(&self) -> Entry {
        let [order, high, low, place] = *self;
        Entry {
            order,
            key: (Key::from(high) << 64) | Key::from(low),
            place,
        }
    }

    fn words(entries: &[Self]) -> &[u64] {
        entries.as_flattened()
    }

    fn extend_from_words(entries: &mut Vec<Self>, words: &[u64]) {
        entries.extend_from_slice(words.as_chunks().0);
    }
}

/// Entries of one part, whose orders share their first `bits` bits, in their order.
pub(super) fn in_order<W: Waiting>(entries: &[W], bits: u32) -> Spread<W> {
    let bucket_bits = entries.len().max(2).ilog2();
    let mut sorted = Spread::default();
    sorted.fill(entries, 1 << bucket_bits, |entry| {
        usize::try_from((entry.order() << bits) >> (64 - bucket_bits)).unwrap_or_default()
    });
    for bucket in sorted.buckets().filter(|bucket| bucket.len() > 1) {
        bucket.sort_unstable();
    }
    sorted
}

/// What the parts have come to.
struct Finished {
    filter: Filter,
    /// By part.
    fences: Vec<Vec<u64>>,
}

/// Writes a run of parts told by the first `bits` bits of the order. `counts` says how many entries
/// each has, and `part` gives them. None when a key is there twice.
pub(super) fn write_run<W: Waiting>(
    home: &Home,
    width: KeyWidth,
    bits: u32,
    counts: &[u64],
    part: &(dyn Fn(usize) -> Result<Vec<W>> + Sync),
) -> Result<Option<Run>> {
    let total: u64 = counts.iter().sum();
    let mut blocks = 0;
    let first_blocks: Vec<u64> = counts
        .iter()
        .map(|count| {
            let first = blocks;
            blocks += Blocks::for_entries(width, *count);
            first
        })
        .collect();
    let file = RunFile::create(home, width)?;
    let finished = Mutex::new(Finished {
        filter: Filter::new(usize::try_from(total).unwrap_or(usize::MAX)),
        fences: vec![Vec::new(); counts.len()],
    });
    let double = AtomicBool::new(false);
    in_parallel(total, counts.len(), &|at| {
        let (Some(count), Some(first)) = (counts.get(at), first_blocks.get(at)) else {
            return Ok(());
        };
        if *count == 0 || double.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut sorted = in_order(&part(at)?, bits);
        let (Some(lowest), Some(highest)) = (sorted.items().first(), sorted.items().last()) else {
            return Err(Error::bug("a part of an index lost its entries"));
        };
        let mut stretch = lock(&finished).filter.part(lowest.order(), highest.order());
        let mut blocks = Blocks::new(width, *first);
        let mut before = None;
        for entry in sorted.buckets().flatten() {
            let entry = entry.entry();
            if before.replace(entry.key) == Some(entry.key) {
                double.store(true, Ordering::Relaxed);
                return Ok(());
            }
            stretch.insert(entry.order);
            blocks.push(entry)?;
        }
        blocks.close();
        file.write_blocks(*first, &blocks.bytes)?;
        let mut finished = lock(&finished);
        finished.filter.join(&stretch);
        if let Some(fences) = finished.fences.get_mut(at) {
            *fences = blocks.fences;
        }
        Ok(())
    })?;
    if double.into_inner() {
        return Ok(None);
    }
    let Finished { filter, fences } = finished
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    file.finish(total, fences.concat(), &filter).map(Some)
}
