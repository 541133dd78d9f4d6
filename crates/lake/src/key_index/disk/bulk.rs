//! Building an index on disk from nothing: entries are parted by their order as they come, then each
//! part is sorted and becomes a stretch of one run.
//!
//! ```text
//! keys of files ─► part by order ─ full ─► file beside ─┐
//!                  └──────────── each part ─► sorted ◄──┘─► its blocks of the run
//! ```
//!
//! Orders are hashes: parts are about even, and so are places within a part.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use alluvium_change::{Error, Result};

use super::DiskIndex;
use super::files::Home;
use super::filter::filter_bytes_for;
use super::run::{Run, le_words, word_bytes};
use super::sort::{Waiting, write_run};
use crate::fs::io_error;
use crate::key_index::spread::Spread;
use crate::key_index::{Key, KeyWidth, lock};

/// What is sorted at once, so that it fits into a core's cache.
const PART_ENTRIES: u64 = 1 << 16;
const MOST_PARTS: u64 = 1 << 12;

/// An index on disk being filled by several threads.
pub(crate) struct BulkRuns {
    home: Home,
    width: KeyWidth,
    memory_bytes: usize,
    form: Form,
}

enum Form {
    Narrow(Parts<[u64; 2]>),
    Wide(Parts<[u64; 4]>),
}

impl BulkRuns {
    /// For about so many keys.
    pub(crate) fn new(home: Home, width: KeyWidth, memory_bytes: usize, keys: u64) -> Self {
        let parts = (keys / PART_ENTRIES)
            .clamp(2, MOST_PARTS)
            .next_power_of_two();
        Self::of_parts(home, width, memory_bytes, keys, parts)
    }

    /// In so many parts, a power of two from 2 on.
    fn of_parts(home: Home, width: KeyWidth, memory_bytes: usize, keys: u64, parts: u64) -> Self {
        let form = match width {
            KeyWidth::Narrow => Form::Narrow(Parts::new(memory_bytes, keys, parts)),
            KeyWidth::Wide | KeyWidth::Hashed => Form::Wide(Parts::new(memory_bytes, keys, parts)),
        };
        Self {
            home,
            width,
            memory_bytes,
            form,
        }
    }

    pub(crate) fn add(&self, entries: &[(Key, u64)]) -> Result<()> {
        match &self.form {
            Form::Narrow(parts) => parts.add(&self.home, self.width, entries),
            Form::Wide(parts) => parts.add(&self.home, self.width, entries),
        }
    }

    /// The index; none when a key is in it twice.
    pub(crate) fn finish(self) -> Result<Option<DiskIndex>> {
        let Self {
            home,
            width,
            memory_bytes,
            form,
        } = self;
        let run = match form {
            Form::Narrow(parts) => parts.into_run(&home, width),
            Form::Wide(parts) => parts.into_run(&home, width),
        };
        match run? {
            Some(run) => DiskIndex::of_runs(home, width, memory_bytes, vec![run]).map(Some),
            None => Ok(None),
        }
    }
}

/// Entries parted by their order's first bits.
struct Parts<W> {
    parts: Vec<Mutex<Part<W>>>,
    /// How many bits tell the part.
    bits: u32,
    /// Entries a part holds in memory.
    most_held: usize,
    spill: Spill,
    scratch: Mutex<Vec<Scratch<W>>>,
}

#[derive(Default)]
struct Part<W> {
    held: Vec<W>,
    /// Where more are in the file: bytes from its start, and words.
    spilled: Vec<(u64, usize)>,
    entries: u64,
}

#[derive(Default)]
struct Scratch<W> {
    waiting: Vec<W>,
    parted: Spread<W>,
}

impl<W: Waiting> Parts<W> {
    fn new(memory_bytes: usize, keys: u64, parts: u64) -> Self {
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let even = count(keys / parts);
        let filter_bytes = filter_bytes_for(count(keys));
        let for_parts = memory_bytes
            .saturating_sub(filter_bytes)
            .max(memory_bytes / 2);
        let fit = for_parts / count(parts) / size_of::<W>();
        // Parts are uneven, a little.
        let most_held = (even.saturating_add(even / 8) + 64).min(fit.max(16));
        let part = || Part {
            held: Vec::with_capacity(most_held),
            spilled: Vec::new(),
            entries: 0,
        };
        Self {
            parts: (0..parts).map(|_| Mutex::new(part())).collect(),
            bits: parts.trailing_zeros(),
            most_held,
            spill: Spill::default(),
            scratch: Mutex::default(),
        }
    }

    fn add(&self, home: &Home, width: KeyWidth, entries: &[(Key, u64)]) -> Result<()> {
        let mut scratch = lock(&self.scratch).pop().unwrap_or_default();
        let Scratch { waiting, parted } = &mut scratch;
        waiting.clear();
        waiting.extend(W::all(width, entries));
        parted.fill(waiting, self.parts.len(), |entry| {
            usize::try_from(entry.order() >> (64 - self.bits)).unwrap_or_default()
        });
        for (part, entries) in self.parts.iter().zip(parted.buckets()) {
            if entries.is_empty() {
                continue;
            }
            let mut part = lock(part);
            part.entries += entries.len() as u64;
            for entries in entries.chunks(self.most_held) {
                if part.held.len() + entries.len() > self.most_held {
                    let words = W::words(&part.held);
                    let spilled = (self.spill.write(home, words)?, words.len());
                    part.spilled.push(spilled);
                    part.held.clear();
                }
                part.held.extend_from_slice(entries);
            }
        }
        lock(&self.scratch).push(scratch);
        Ok(())
    }

    /// The run of all parts; none when a key is in them twice.
    fn into_run(self, home: &Home, width: KeyWidth) -> Result<Option<Run>> {
        lock(&self.scratch).clear();
        let counts: Vec<u64> = self.parts.iter().map(|part| lock(part).entries).collect();
        let run = write_run(home, width, self.bits, &counts, &|at| {
            let part = self
                .parts
                .get(at)
                .map(|part| std::mem::take(&mut *lock(part)));
            let part = part.unwrap_or_default();
            let mut entries: Vec<W> = part.held;
            for (at, words) in part.spilled {
                W::extend_from_words(&mut entries, &self.spill.read(home, at, words)?);
            }
            Ok(entries)
        })?;
        self.spill.remove(home)?;
        Ok(run)
    }
}

/// The file that takes what does not fit into memory.
#[derive(Default)]
struct Spill {
    file: Mutex<Option<Arc<File>>>,
    end: AtomicU64,
}

impl Spill {
    const NAME: &'static str = "parts";

    /// Writes words; returns where they are.
    fn write(&self, home: &Home, words: &[u64]) -> Result<u64> {
        let file = {
            let mut file = lock(&self.file);
            if file.is_none() {
                *file = Some(Arc::new(home.create(Self::NAME)?));
            }
            file.clone()
        };
        let file = file.ok_or_else(no_file)?;
        let bytes = word_bytes(words);
        let at = self.end.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        home.write(&file, Self::NAME, &bytes, at)?;
        Ok(at)
    }

    fn read(&self, home: &Home, at: u64, words: usize) -> Result<Vec<u64>> {
        let file = lock(&self.file).clone().ok_or_else(no_file)?;
        let mut bytes = vec![0; words * size_of::<u64>()];
        file.read_exact_at(&mut bytes, at)
            .map_err(|e| io_error("read", &home.path(Self::NAME), e))?;
        Ok(le_words(&bytes))
    }

    fn remove(&self, home: &Home) -> Result<()> {
        match *lock(&self.file) {
            Some(_) => home.remove(Self::NAME),
            None => Ok(()),
        }
    }
}

fn no_file() -> Error {
    Error::bug("parts of an index without their file")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::key_index::Location;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// In memory or spilled, in few parts or many, with more keys than were announced.
        #[test]
        fn the_run_has_all_entries(
            keys in prop::collection::btree_set(any::<u128>(), 0..600),
            narrow: bool,
            memory_bytes in prop_oneof![Just(0_usize), 1_000_usize..40_000, Just(1 << 30)],
            announced in 0_u64..1000,
            parts in 1_u32..7,
            batch in 1_usize..200,
            double in any::<Option<prop::sample::Index>>(),
        ) {
            let width = if narrow { KeyWidth::Narrow } else { KeyWidth::Hashed };
            let mask = if narrow { Key::from(u64::MAX) } else { Key::MAX };
            let expected: BTreeMap<Key, u64> =
                keys.iter().map(|key| key & mask).zip(0..).collect();
            let mut entries: Vec<(Key, u64)> = expected.iter().map(|(k, p)| (*k, *p)).collect();
            let dir = tempfile::tempdir().unwrap();
            let home = Home::new(dir.path().to_owned(), false);
            let bulk = BulkRuns::of_parts(home, width, memory_bytes, announced, 1 << parts);
            let double = double.filter(|_| !entries.is_empty());
            if let Some(double) = double {
                let (key, place) = entries[double.index(entries.len())];
                entries.push((key, place + 10_000));
            }
            for entries in entries.chunks(batch) {
                bulk.add(entries).unwrap();
            }
            let index = bulk.finish().unwrap();
            prop_assert_eq!(index.is_none(), double.is_some());
            let Some(mut index) = index else { return Ok(()) };
            prop_assert_eq!(index.len(), expected.len());
            if entries.len().is_multiple_of(2) {
                index.prepare(&expected.keys().copied().collect::<Vec<_>>()).unwrap();
            }
            for (key, place) in &expected {
                prop_assert_eq!(index.get(*key).unwrap(), Some(Location::unpack(*place)));
                let absent = key.wrapping_add(1) & mask;
                prop_assert!(expected.contains_key(&absent) || index.get(absent).unwrap().is_none());
            }
            let files = std::fs::read_dir(dir.path()).unwrap().count();
            prop_assert_eq!(files, 1, "the run and nothing else");
        }
    }
}
