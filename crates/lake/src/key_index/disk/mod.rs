//! The key index on disk: for tables whose index does not fit into its part of the memory, and the
//! snapshots of those that do.
//!
//! ```text
//! changed keys ─► front (in memory) ─ full ─► run ─┬─► merged in the background ─► fewer runs
//!                                            run ──┘
//! lookup: front, then runs from the newest; a filter says which of them to pass over
//! ```
//!
//! Invariants: the newest entry of a key is its place, or says that it is gone; runs never change.
//! Files become valid only by a [`manifest`], and stay until one without them was written.

mod bulk;
mod files;
mod filter;
mod manifest;
mod merged;
mod restore;
mod run;
mod sort;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use alluvium_change::{Error, Result};
use hashbrown::HashMap;

pub(crate) use bulk::BulkRuns;
pub(crate) use files::Home;
pub(crate) use manifest::{Manifest, ManifestSegment, Saved, Stand, doubt, read as read_manifest};
use merged::merged;
pub(crate) use restore::Covered;
use run::{Entry, GONE, Lookup, Run};
use write::RunWriter;

use sort::{Waiting, in_order, write_run};

use super::forward::Forwarding;
use super::sharded::{SHARD_BITS, SHARDS};
use super::{Key, KeyWidth, Location, SegmentId, ShardedIndex};

/// Runs from which on some are merged.
const MERGE_FROM_RUNS: usize = 6;
/// Runs at which an index waits for the merge under way.
const MOST_RUNS: usize = 16;

const GONE_LOCATION: Location = Location {
    segment: u32::MAX,
    row: u32::MAX,
};

struct Held {
    run: Arc<Run>,
    /// Held as far as memory goes, newest runs first.
    filter: Option<filter::Filter>,
}

/// A merge under way on a thread of its own.
struct Merging {
    /// Which runs, by their places in the list.
    from: usize,
    count: usize,
    cancel: Arc<AtomicBool>,
    thread: JoinHandle<Result<Option<Run>>>,
    /// Files whose moves no entry needs afterwards.
    renews: Vec<SegmentId>,
}

/// The index of one table on disk.
pub(crate) struct DiskIndex {
    width: KeyWidth,
    home: Home,
    /// Changed keys; those that are gone have [`GONE`] as their place.
    front: ShardedIndex,
    /// Oldest first.
    runs: Vec<Held>,
    /// What the runs say of the keys of this batch.
    looked_up: HashMap<Key, Option<Location>>,
    len: usize,
    /// Memory for the front, and as much for filters.
    part_bytes: usize,
    merging: Option<Merging>,
    /// Runs written since the last manifest.
    spilled: usize,
    /// Files whose moves no entry needs any more.
    renewed: Vec<SegmentId>,
}

impl DiskIndex {
    /// An empty index.
    pub(crate) fn new(home: Home, width: KeyWidth, memory_bytes: usize) -> Self {
        Self {
            width,
            home,
            front: ShardedIndex::new(width),
            runs: Vec::new(),
            looked_up: HashMap::new(),
            len: 0,
            part_bytes: memory_bytes / 2,
            merging: None,
            spilled: 0,
            renewed: Vec::new(),
        }
    }

    /// An index of runs that no two have a key of in common, and no key that is gone.
    fn of_runs(home: Home, width: KeyWidth, memory_bytes: usize, runs: Vec<Run>) -> Result<Self> {
        let mut index = Self::new(home, width, memory_bytes);
        index.len = usize::try_from(runs.iter().map(|run| run.entries).sum::<u64>())
            .map_err(|_| Error::bug("more keys than memory has places"))?;
        index.spilled = runs.len();
        for run in runs {
            index.hold(run);
        }
        index.choose_filters()?;
        Ok(index)
    }

    /// Writes out an index in memory.
    pub(crate) fn of_memory(
        home: Home,
        memory: &ShardedIndex,
        memory_bytes: usize,
    ) -> Result<Self> {
        let width = memory.width();
        let run = write_memory(&home, memory)?;
        Self::of_runs(home, width, memory_bytes, vec![run])
    }

    /// Opens what the manifest names, and drops entries of rows that are no more.
    pub(crate) fn restore(
        home: Home,
        manifest: &Manifest,
        covered: &[Covered<'_>],
        memory_bytes: usize,
    ) -> Result<Self> {
        let mut index = Self::new(home, manifest.width, memory_bytes);
        let runs = manifest.open_runs(&index.home)?;
        let by_ref: Vec<&Run> = runs.iter().collect();
        let (live, stale) = match manifest.keys_of(covered) {
            // Damage shows where a block is read.
            Some(keys) => (usize::try_from(keys).unwrap_or(usize::MAX), Vec::new()),
            None => restore::to_disk(manifest, &by_ref, covered)?,
        };
        for run in runs {
            index.hold(run);
        }
        index.choose_filters()?;
        index.len = live;
        for key in stale {
            index.front.insert(key, GONE_LOCATION);
            index.spill_if(1)?;
        }
        Ok(index)
    }

    /// Reads what the manifest names into memory.
    pub(crate) fn restore_to_memory(
        home: &Home,
        manifest: &Manifest,
        covered: &[Covered<'_>],
        keys: u64,
    ) -> Result<ShardedIndex> {
        let runs = manifest.open_runs(home)?;
        let by_ref: Vec<&Run> = runs.iter().collect();
        restore::to_memory(manifest, &by_ref, covered, keys)
    }

    fn hold(&mut self, run: Run) {
        self.runs.push(Held {
            run: Arc::new(run),
            filter: None,
        });
    }

    /// Holds the filters of the newest runs, as many as fit; at least that of the newest if it is
    /// small.
    fn choose_filters(&mut self) -> Result<()> {
        let mut left = self.part_bytes.max(4096);
        for held in self.runs.iter_mut().rev() {
            let bytes = held.run.filter_bytes();
            if bytes > left {
                held.filter = None;
                left = 0;
                continue;
            }
            left -= bytes;
            if held.filter.is_none() {
                held.filter = Some(held.run.filter()?);
            }
        }
        Ok(())
    }

    /// Other memory from now on, for front and filters.
    pub(crate) fn set_memory(&mut self, memory_bytes: usize) {
        self.part_bytes = memory_bytes / 2;
    }

    /// Reads what the runs say of these keys, each block once. Lookups of them are quick until the
    /// next call.
    pub(crate) fn prepare(&mut self, keys: &[Key]) -> Result<()> {
        self.looked_up = HashMap::new();
        let mut wanted: Vec<(u64, Key)> = keys
            .iter()
            .filter(|key| self.front.get(**key).is_none())
            .map(|key| (self.width.order(*key), *key))
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        for held in self.runs.iter().rev() {
            let mut lookup = Lookup::new(&held.run);
            let mut missing = Vec::with_capacity(wanted.len());
            for (order, key) in wanted {
                let filter = held.filter.as_ref();
                if filter.is_some_and(|filter| !filter.may_have(order)) {
                    missing.push((order, key));
                    continue;
                }
                match lookup.find(order, key)? {
                    Some(place) => {
                        self.looked_up.insert(key, present(place));
                    }
                    None => missing.push((order, key)),
                }
            }
            wanted = missing;
        }
        self.looked_up
            .extend(wanted.into_iter().map(|(_, key)| (key, None)));
        Ok(())
    }

    pub(crate) fn get(&self, key: Key) -> Result<Option<Location>> {
        if let Some(location) = self.front.get(key) {
            return Ok(present(location.pack()));
        }
        if let Some(known) = self.looked_up.get(&key) {
            return Ok(*known);
        }
        let order = self.width.order(key);
        for held in self.runs.iter().rev() {
            let filter = held.filter.as_ref();
            if filter.is_some_and(|filter| !filter.may_have(order)) {
                continue;
            }
            if let Some(place) = Lookup::new(&held.run).find(order, key)? {
                return Ok(present(place));
            }
        }
        Ok(None)
    }

    /// Returns the place the key had before.
    pub(crate) fn insert(&mut self, key: Key, location: Location) -> Result<Option<Location>> {
        let before = self.get(key)?;
        self.front.insert(key, location);
        self.len += usize::from(before.is_none());
        self.spill_if(2)?;
        Ok(before)
    }

    pub(crate) fn remove(&mut self, key: Key) -> Result<Option<Location>> {
        let before = self.get(key)?;
        if before.is_some() {
            self.front.insert(key, GONE_LOCATION);
            self.len -= 1;
        }
        self.spill_if(2)?;
        Ok(before)
    }

    /// After a batch: the front goes to disk when it is full, and runs that were merged take the
    /// place of theirs.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.spill_if(1)?;
        if let Some(merging) = &self.merging
            && (merging.thread.is_finished() || self.runs.len() >= MOST_RUNS)
        {
            self.adopt_merge()?;
        }
        self.start_merge()
    }

    /// Writes the front out when it has `times` the keys it has memory for.
    fn spill_if(&mut self, times: usize) -> Result<()> {
        // What a key takes while its table is growing.
        let key_bytes = 2 * (self.width.bytes() + size_of::<u64>()) + 8;
        let most = (self.part_bytes / key_bytes).max(16);
        if self.front.len() >= most.saturating_mul(times) {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        if self.front.len() == 0 {
            return Ok(());
        }
        let run = write_memory(&self.home, &self.front)?;
        self.front = ShardedIndex::new(self.width);
        self.looked_up = HashMap::new();
        self.hold(run);
        self.spilled += 1;
        self.choose_filters()
    }

    /// Which runs to merge next: the newest ones, as many as are together no smaller than half the
    /// one before them.
    fn merge_from(&self) -> Option<usize> {
        if self.runs.len() < MERGE_FROM_RUNS {
            return None;
        }
        let mut newer: u64 = 0;
        let mut from = self.runs.len() - 2;
        for (at, held) in self.runs.iter().enumerate().rev() {
            if held.run.entries <= newer.saturating_mul(2) {
                from = from.min(at);
            }
            newer = newer.saturating_add(held.run.entries);
        }
        Some(from)
    }

    fn start_merge(&mut self) -> Result<()> {
        match self.merge_from() {
            Some(from) if self.merging.is_none() => self.merge_runs(from, None),
            _ => Ok(()),
        }
    }

    /// Begins to give all entries the places their rows have now, unless a merge is under way. What
    /// is renewed then [`Self::take_renewed`] says later.
    pub(crate) fn renew(&mut self, forwarding: &Forwarding) -> Result<()> {
        if self.merging.is_some() {
            return Ok(());
        }
        for shard in 0..SHARDS {
            self.front.forward(shard, forwarding);
        }
        self.looked_up = HashMap::new();
        if self.runs.is_empty() {
            self.renewed.extend(forwarding.files());
            return Ok(());
        }
        self.merge_runs(0, Some(forwarding.clone()))
    }

    /// Files whose moves no entry needs any more.
    pub(crate) fn take_renewed(&mut self) -> Vec<SegmentId> {
        std::mem::take(&mut self.renewed)
    }

    fn merge_runs(&mut self, from: usize, forwarding: Option<Forwarding>) -> Result<()> {
        let renews = forwarding.as_ref().map(Forwarding::files);
        let runs: Vec<Arc<Run>> = self
            .runs
            .iter()
            .skip(from)
            .map(|held| Arc::clone(&held.run))
            .collect();
        let count = runs.len();
        let cancel = Arc::new(AtomicBool::new(false));
        let (home, width, cancelled) = (self.home.clone(), self.width, Arc::clone(&cancel));
        let thread = std::thread::Builder::new()
            .name("index-merge".to_owned())
            .spawn(move || {
                let runs: Vec<&Run> = runs.iter().map(AsRef::as_ref).collect();
                let pass = |entry: Entry| {
                    let Some(at) = present(entry.place) else {
                        // With nothing older, what is gone need not be remembered.
                        return (from > 0).then_some(entry);
                    };
                    let today = forwarding.as_ref().map_or(at, |moved| moved.resolve(at));
                    let place = today.pack();
                    Some(Entry { place, ..entry })
                };
                merge(&home, width, &runs, &cancelled, &pass)
            })
            .map_err(|e| Error::bug("no thread to merge an index").with_source(e))?;
        self.merging = Some(Merging {
            from,
            count,
            cancel,
            thread,
            renews: renews.unwrap_or_default(),
        });
        Ok(())
    }

    fn adopt_merge(&mut self) -> Result<()> {
        let Some(merging) = self.merging.take() else {
            return Ok(());
        };
        let (from, count) = (merging.from, merging.count);
        let merged = merging
            .thread
            .join()
            .map_err(|_| Error::bug("merging an index panicked"))??;
        if let Some(run) = merged {
            let held = Held {
                run: Arc::new(run),
                filter: None,
            };
            drop(self.runs.splice(from..from + count, [held]));
            if !merging.renews.is_empty() {
                // What was looked up may be known by places that nobody forwards any more.
                self.looked_up = HashMap::new();
                self.renewed.extend(merging.renews);
            }
            self.spilled += 1;
            self.choose_filters()?;
        }
        Ok(())
    }

    fn cancel_merge(&mut self) {
        if let Some(merging) = self.merging.take() {
            merging.cancel.store(true, Ordering::Relaxed);
            let _ = merging.thread.join();
        }
    }

    /// Keeps the keys whose place passes.
    pub(crate) fn retain(&mut self, keep: &dyn Fn(Location) -> bool) -> Result<()> {
        self.cancel_merge();
        self.spill()?;
        let runs: Vec<&Run> = self.runs.iter().map(|held| held.run.as_ref()).collect();
        let keep = |entry: Entry| present(entry.place).is_some_and(keep).then_some(entry);
        let kept = merge(
            &self.home,
            self.width,
            &runs,
            &AtomicBool::new(false),
            &keep,
        )?;
        self.runs.clear();
        self.looked_up = HashMap::new();
        self.spilled += 1;
        self.len = 0;
        if let Some(run) = kept {
            self.len = usize::try_from(run.entries).unwrap_or(usize::MAX);
            self.hold(run);
        }
        self.choose_filters()
    }

    /// Makes the index as it is the one that is found at the next open.
    pub(crate) fn save(&mut self, saved: &Saved<'_>, closing: bool) -> Result<()> {
        if closing {
            self.cancel_merge();
        }
        self.spill()?;
        let runs: Vec<&Run> = self.runs.iter().map(|held| held.run.as_ref()).collect();
        // A merge under way writes a file that no manifest names yet.
        let merging = self.merging.is_some();
        manifest::write(&self.home, saved, &runs, !merging)?;
        self.spilled = 0;
        Ok(())
    }

    /// Runs written or merged since the index was saved.
    pub(crate) fn spilled(&self) -> usize {
        self.spilled
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let runs = self.runs.iter().map(|held| {
            let filter = held.filter.as_ref().map_or(0, filter::Filter::memory_bytes);
            held.run.fence_bytes() + filter
        });
        self.front.memory_bytes() + runs.sum::<usize>()
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        self.runs.iter().map(|held| held.run.bytes).sum()
    }
}

impl Drop for DiskIndex {
    fn drop(&mut self) {
        self.cancel_merge();
    }
}

fn present(place: u64) -> Option<Location> {
    (place != GONE).then(|| Location::unpack(place))
}

/// The newest entries of some runs, as `pass` gives them, as one run. None when none does, or when cancelled.
fn merge(
    home: &Home,
    width: KeyWidth,
    runs: &[&Run],
    cancel: &AtomicBool,
    pass: &dyn Fn(Entry) -> Option<Entry>,
) -> Result<Option<Run>> {
    let entries = runs.iter().map(|run| run.entries).sum();
    let mut writer = RunWriter::create(home, width, entries)?;
    let mut count: u64 = 0;
    let mut cancelled = false;
    merged(runs, (0, None), &mut |entry| {
        count += 1;
        if count.is_multiple_of(4096) {
            cancelled |= cancel.load(Ordering::Relaxed);
        }
        if !cancelled && let Some(entry) = pass(entry) {
            writer.push(entry)?;
        }
        Ok(())
    })?;
    if cancelled {
        return Ok(None);
    }
    writer.finish().map(Some)
}

/// Writes an index in memory as one run.
fn write_memory(home: &Home, memory: &ShardedIndex) -> Result<Run> {
    fn write<W: Waiting>(home: &Home, memory: &ShardedIndex) -> Result<Option<Run>> {
        let width = memory.width();
        let counts: Vec<u64> = memory.shard_lens().map(|len| len as u64).collect();
        write_run(home, width, SHARD_BITS, &counts, &|shard| {
            Ok(W::all(width, &memory.entries(shard)).collect())
        })
    }
    let run = match memory.width() {
        KeyWidth::Narrow => write::<[u64; 2]>(home, memory),
        KeyWidth::Wide | KeyWidth::Hashed => write::<[u64; 4]>(home, memory),
    };
    run?.ok_or_else(|| Error::bug("an index in memory has a key twice"))
}

/// Adds the entries of one shard to a run.
fn push_shard(writer: &mut RunWriter<'_>, width: KeyWidth, entries: &[(Key, u64)]) -> Result<()> {
    fn push<W: Waiting>(
        writer: &mut RunWriter<'_>,
        entries: impl Iterator<Item = W>,
    ) -> Result<()> {
        let mut sorted = in_order(&entries.collect::<Vec<W>>(), SHARD_BITS);
        sorted
            .buckets()
            .flatten()
            .try_for_each(|entry| writer.push(entry.entry()))
    }
    match width {
        KeyWidth::Narrow => push(writer, <[u64; 2]>::all(width, entries)),
        KeyWidth::Wide | KeyWidth::Hashed => push(writer, <[u64; 4]>::all(width, entries)),
    }
}

/// Writes an index in memory and makes it the one that is found at the next open.
pub(crate) fn save_memory(home: &Home, memory: &ShardedIndex, saved: &Saved<'_>) -> Result<()> {
    let run = write_memory(home, memory)?;
    manifest::write(home, saved, &[&run], true)
}

/// A snapshot of an index in memory that is written shard by shard, on a thread of its own.
///
/// Shards are handed over after different commits. That is no harm: a file counts as covered only
/// if it was there when the first shard was taken, and of such files a shard has, whenever it is
/// taken, all rows that are live later.
pub(crate) struct Snapshotting {
    pub(crate) segments: Vec<ManifestSegment>,
    next_shard: usize,
    /// None when all were handed over.
    shards: Option<std::sync::mpsc::SyncSender<Vec<(Key, u64)>>>,
    thread: JoinHandle<Result<Run>>,
    home: Home,
}

impl Snapshotting {
    pub(crate) fn begin(
        home: &Home,
        memory: &ShardedIndex,
        segments: Vec<ManifestSegment>,
    ) -> Result<Self> {
        let (shards, received) = std::sync::mpsc::sync_channel::<Vec<(Key, u64)>>(1);
        let (width, at_most) = (memory.width(), memory.len() as u64);
        let own = home.clone();
        let thread = std::thread::Builder::new()
            .name("index-snapshot".to_owned())
            .spawn(move || {
                // Keys that come meanwhile make the filter a little weaker, no more.
                let mut writer = RunWriter::create(&own, width, at_most)?;
                let mut shards = 0;
                for entries in received {
                    shards += 1;
                    push_shard(&mut writer, width, &entries)?;
                }
                if shards < SHARDS {
                    return Err(Error::bug("an index snapshot was given up"));
                }
                let run = writer.finish()?;
                run.sync(&own)?;
                Ok(run)
            })
            .map_err(|e| Error::bug("no thread to write an index").with_source(e))?;
        Ok(Self {
            segments,
            next_shard: 0,
            shards: Some(shards),
            thread,
            home: home.clone(),
        })
    }

    /// Hands over shards, up to about so many entries and as far as the writer takes them. True
    /// when all of them are written.
    pub(crate) fn hand_over(&mut self, memory: &ShardedIndex, at_most: usize) -> bool {
        let mut handed_over = 0;
        while let Some(shards) = &self.shards {
            let entries = memory.entries(self.next_shard);
            let count = entries.len();
            if (handed_over > 0 && handed_over + count > at_most)
                || shards.try_send(entries).is_err()
            {
                break;
            }
            handed_over += count;
            self.next_shard += 1;
            if self.next_shard == SHARDS {
                self.shards = None;
            }
        }
        // A writer that failed takes no more, and is heard when it is joined.
        self.thread.is_finished()
    }

    /// Waits for the writer, and makes the snapshot the one that is found at the next open.
    pub(crate) fn finish(self, stand: &Stand, next_segment: SegmentId) -> Result<()> {
        drop(self.shards);
        let run = self
            .thread
            .join()
            .map_err(|_| Error::bug("writing an index panicked"))??;
        let saved = Saved {
            stand,
            keys: None,
            segments: &self.segments,
            next_segment,
            forwarding: &Forwarding::default(),
        };
        manifest::write(&self.home, &saved, &[&run], true)
    }

    /// Gives up; what was written is removed with the next manifest.
    pub(crate) fn cancel(self) {
        drop(self.shards);
        let _ = self.thread.join();
    }
}

/// Makes sure that no index is found at the next open.
pub(crate) fn forget(home: &Home) -> Result<()> {
    manifest::forget(home)?;
    home.wipe()
}
