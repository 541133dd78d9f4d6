//! A run: entries sorted by their keys' order, in one file that is never changed.
//!
//! ```text
//! blocks of 1 KiB: entries (key, place) · zeros · how many entries · checksum over all and the block's number
//! fences: the order of each block's first key · filter · footer of 64 bytes
//! ```
//!
//! Every byte is under a checksum; the manifest names a run together with its footer's.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use alluvium_change::{Error, Result};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::files::{Home, damaged};
use super::filter::Filter;
use crate::fs::io_error;
use crate::key_index::{Key, KeyWidth};

/// The place of a key that is no more.
pub(crate) const GONE: u64 = u64::MAX;

/// Small: what a lookup costs is reading a block and its checksum.
pub(super) const BLOCK_BYTES: usize = 1024;
pub(super) const CHECKSUM_BYTES: usize = 8;
const COUNT_BYTES: usize = 8;
/// Of a block, what its entries may take.
pub(super) const BLOCK_ENTRIES_BYTES: usize = BLOCK_BYTES - COUNT_BYTES - CHECKSUM_BYTES;
pub(super) const FOOTER_BYTES: usize = 64;
pub(super) const MAGIC: &[u8; 8] = b"ALVRUN3\n";

/// An entry with its key's order, by which runs are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) order: u64,
    pub(crate) key: Key,
    pub(crate) place: u64,
}

pub(super) fn entry_bytes(width: KeyWidth) -> usize {
    width.bytes() + size_of::<u64>()
}

pub(super) fn per_block(width: KeyWidth) -> usize {
    BLOCK_ENTRIES_BYTES / entry_bytes(width)
}

/// The number in the first 8 bytes; 0 where there are fewer.
fn le_u64(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk()
        .map_or(0, |word| u64::from_le_bytes(*word))
}

pub(super) fn le_words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(le_u64).collect()
}

pub(super) fn word_bytes(words: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; size_of_val(words)];
    for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *to = word.to_le_bytes();
    }
    bytes
}

/// How many entries a block has.
fn count(block: &[u8], width: KeyWidth) -> usize {
    let count = le_u64(block.get(BLOCK_ENTRIES_BYTES..).unwrap_or_default());
    usize::try_from(count)
        .unwrap_or(usize::MAX)
        .min(per_block(width))
}

/// The first `count` of some entries' bytes.
fn entries(block: &[u8], width: KeyWidth, count: usize) -> impl Iterator<Item = Entry> + '_ {
    block
        .chunks_exact(entry_bytes(width))
        .take(count)
        .map(move |bytes| {
            let (key, place) = bytes.split_at(width.bytes());
            let (low, high) = key.split_at(8);
            let key = Key::from(le_u64(low)) | (Key::from(le_u64(high)) << 64);
            Entry {
                order: width.order(key),
                key,
                place: le_u64(place),
            }
        })
}

/// A run, open for reading.
#[derive(Debug)]
pub(crate) struct Run {
    pub(super) name: String,
    pub(super) home: Home,
    pub(super) file: File,
    pub(super) width: KeyWidth,
    pub(super) entries: u64,
    /// Of its footer, which has those of everything but the blocks.
    pub(super) checksum: u64,
    pub(super) bytes: u64,
    pub(super) filter_words: usize,
    pub(super) fences: Vec<u64>,
    pub(super) synced: AtomicBool,
}

impl Run {
    /// Opens a run as the manifest names it; the filter is read apart.
    pub(super) fn open(home: &Home, width: KeyWidth, name: &str, checksum: u64) -> Result<Self> {
        let path = home.path(name);
        let io = |e| io_error("read", &path, e);
        let file = File::open(&path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let wrong = |what: &str| damaged(&path, what);
        let at = bytes
            .checked_sub(FOOTER_BYTES as u64)
            .ok_or_else(|| wrong("it is too short"))?;
        let mut footer = [0; FOOTER_BYTES];
        file.read_exact_at(&mut footer, at).map_err(io)?;
        let (body, own) = footer.split_at(FOOTER_BYTES - CHECKSUM_BYTES);
        let numbers = le_words(body.get(MAGIC.len()..).unwrap_or_default());
        let [key_bytes, entries, blocks, filter_words, tail_checksum, _] = numbers.as_slice()
        else {
            return Err(wrong("its end is damaged"));
        };
        if le_u64(own) != checksum
            || xxh3_64(body) != checksum
            || !body.starts_with(MAGIC)
            || *key_bytes != width.bytes() as u64
            || entries.div_ceil(per_block(width) as u64) > *blocks
        {
            return Err(wrong("its end is damaged"));
        }
        let tail_at = blocks
            .checked_mul(BLOCK_BYTES as u64)
            .filter(|tail_at| {
                blocks
                    .checked_add(*filter_words)
                    .and_then(|words| words.checked_mul(8)?.checked_add(*tail_at))
                    == Some(at)
            })
            .ok_or_else(|| wrong("its length is not what its end says"))?;
        let tail_bytes = usize::try_from(at - tail_at).map_err(|_| wrong("it is too long"))?;
        let mut tail = vec![0; tail_bytes];
        file.read_exact_at(&mut tail, tail_at).map_err(io)?;
        if xxh3_64(&tail) != *tail_checksum {
            return Err(wrong("its fences or its filter are damaged"));
        }
        let fences_bytes = usize::try_from(blocks * 8).map_err(|_| wrong("it is too long"))?;
        Ok(Self {
            name: name.to_owned(),
            fences: le_words(tail.get(..fences_bytes).unwrap_or_default()),
            filter_words: usize::try_from(*filter_words).map_err(|_| wrong("it is too long"))?,
            entries: *entries,
            checksum,
            bytes,
            file,
            home: home.clone(),
            width,
            synced: AtomicBool::new(true),
        })
    }

    fn path(&self) -> PathBuf {
        self.home.path(&self.name)
    }

    /// Makes it survive a power cut, but for its directory's entry.
    pub(super) fn sync(&self, home: &Home) -> Result<()> {
        if !self.synced.load(Ordering::Acquire) {
            home.sync(&self.file, &self.name)?;
            self.synced.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// What the filter takes in memory.
    pub(super) fn filter_bytes(&self) -> usize {
        self.filter_words * size_of::<u64>()
    }

    pub(super) fn fence_bytes(&self) -> usize {
        self.fences.len() * size_of::<u64>()
    }

    /// Reads the filter, whose checksum was seen when the run was opened.
    pub(super) fn filter(&self) -> Result<Filter> {
        let mut bytes = vec![0; self.filter_bytes()];
        let at = (self.fences.len() * (BLOCK_BYTES + 8)) as u64;
        self.file
            .read_exact_at(&mut bytes, at)
            .map_err(|e| io_error("read", &self.path(), e))?;
        Filter::from_words(le_words(&bytes))
            .ok_or_else(|| damaged(&self.path(), "its filter has no blocks"))
    }

    /// Reads blocks into `bytes` and checks them.
    fn read_blocks(&self, from: usize, to: usize, bytes: &mut Vec<u8>) -> Result<()> {
        bytes.resize(to.saturating_sub(from) * BLOCK_BYTES, 0);
        self.file
            .read_exact_at(bytes, (from * BLOCK_BYTES) as u64)
            .map_err(|e| damaged(&self.path(), e.to_string()))?;
        for (at, block) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
            let (body, own) = block.split_at(BLOCK_BYTES - CHECKSUM_BYTES);
            if xxh3_64_with_seed(body, (from + at) as u64) != le_u64(own) {
                return Err(damaged(
                    &self.path(),
                    format!("block {} is damaged", from + at),
                ));
            }
        }
        Ok(())
    }

    /// The first block that can have a key of this order.
    fn first_block(&self, order: u64) -> usize {
        // Keys of one order may begin in the block before the first fence that has it.
        first_not_below(&self.fences, order).saturating_sub(1)
    }
}

/// The first fence that is not below the order. Orders are hashes: the place is near the one an even
/// spread would give, and found from there without touching far memory.
fn first_not_below(fences: &[u64], order: u64) -> usize {
    let even = (u128::from(order) * fences.len() as u128) >> 64;
    let even = usize::try_from(even).unwrap_or_default();
    let is_below = |at: usize| fences.get(at).is_some_and(|fence| *fence < order);
    // All before `low` are below the order, none from `high` on is.
    let (mut low, mut high, mut step) = (even, even, 1);
    while is_below(high) {
        low = high + 1;
        high += step;
        step *= 2;
    }
    while low > 0 && !is_below(low - 1) {
        high = low - 1;
        low = high.saturating_sub(step);
        step *= 2;
    }
    let between = fences.get(low..high.min(fences.len())).unwrap_or_default();
    low + between.partition_point(|fence| *fence < order)
}

/// Looks up keys in ascending order, reading each block once.
pub(super) struct Lookup<'a> {
    run: &'a Run,
    bytes: Vec<u8>,
    block: Option<usize>,
}

impl<'a> Lookup<'a> {
    pub(super) fn new(run: &'a Run) -> Self {
        Self {
            run,
            bytes: Vec::new(),
            block: None,
        }
    }

    /// The place the run has for the key, which may be [`GONE`].
    pub(super) fn find(&mut self, order: u64, key: Key) -> Result<Option<u64>> {
        let run = self.run;
        let mut block = run.first_block(order);
        while run.fences.get(block).is_some_and(|fence| *fence <= order) {
            if self.block != Some(block) {
                self.block = None;
                run.read_blocks(block, block + 1, &mut self.bytes)?;
                self.block = Some(block);
            }
            let size = entry_bytes(run.width);
            let count = count(&self.bytes, run.width);
            // Binary search for the first entry not before the key.
            let (mut low, mut high) = (0, count);
            while low < high {
                let middle = low.midpoint(high);
                let at = self.bytes.get(middle * size..).unwrap_or_default();
                let Some(entry) = entries(at, run.width, 1).next() else {
                    return Err(Error::bug("an index block has fewer entries than counted"));
                };
                if (entry.order, entry.key) < (order, key) {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            if low < count {
                let at = self.bytes.get(low * size..).unwrap_or_default();
                let found = entries(at, run.width, 1).next();
                return Ok(found
                    .filter(|entry| entry.key == key)
                    .map(|entry| entry.place));
            }
            block += 1;
        }
        Ok(None)
    }
}

/// Blocks a scan reads at once.
const SCAN_BLOCKS: usize = 64;

/// Reads a part of a run from front to back.
pub(super) struct Scan<'a> {
    run: &'a Run,
    ready: Vec<Entry>,
    /// Of those read, given out.
    given: usize,
    bytes: Vec<u8>,
    next_block: usize,
    from: u64,
    /// First order beyond the part; none is the end.
    until: Option<u64>,
}

impl<'a> Scan<'a> {
    pub(super) fn new(run: &'a Run, from: u64, until: Option<u64>) -> Self {
        Self {
            run,
            ready: Vec::new(),
            given: 0,
            bytes: Vec::new(),
            next_block: run.first_block(from),
            from,
            until,
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        loop {
            if let Some(entry) = self.ready.get(self.given) {
                self.given += 1;
                return Ok(Some(*entry));
            }
            self.ready.clear();
            self.given = 0;
            let blocks = self.run.fences.len();
            let beyond = |fence: &u64| self.until.is_some_and(|until| *fence >= until);
            if self.run.fences.get(self.next_block).is_none_or(beyond) {
                return Ok(None);
            }
            let end = self
                .until
                .map_or(blocks, |until| first_not_below(&self.run.fences, until));
            let to = (self.next_block + SCAN_BLOCKS).min(end);
            self.run.read_blocks(self.next_block, to, &mut self.bytes)?;
            let (from, until) = (self.from, self.until);
            let width = self.run.width;
            for block in self.bytes.chunks_exact(BLOCK_BYTES) {
                let within = |entry: &Entry| {
                    entry.order >= from && until.is_none_or(|until| entry.order < until)
                };
                let entries = entries(block, width, count(block, width));
                self.ready.extend(entries.filter(within));
            }
            self.next_block = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_fence_is_found_as_by_binary_search(
            mut fences in proptest::collection::vec(any::<u64>(), 0..300),
            skewed in any::<bool>(),
            orders in proptest::collection::vec(any::<u64>(), 20),
        ) {
            if skewed {
                // Far from even, and many alike.
                fences.iter_mut().for_each(|fence| *fence %= 50);
            }
            fences.sort_unstable();
            let near = fences.iter().flat_map(|f| [f.saturating_sub(1), *f, f.saturating_add(1)]);
            for order in orders.into_iter().chain(near) {
                let expected = fences.partition_point(|fence| *fence < order);
                prop_assert_eq!(first_not_below(&fences, order), expected);
            }
        }
    }
}
