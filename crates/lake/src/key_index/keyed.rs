//! The index of a table with a key: in memory while it fits, on disk beyond, saved now and then.

use std::time::{Duration, Instant};

use alluvium_change::Result;

use super::budget::Share;
use super::disk::{
    BulkRuns, Covered, DiskIndex, Home, Manifest, ManifestSegment, Saved, Snapshotting, Stand,
    forget, save_memory,
};
use super::forward::{Forwarding, Moved};
use super::sharded::{SHARDS, ShardedBuilder};
use super::{Key, KeyWidth, Location, SegmentId, ShardedIndex};

/// The part of the keys that must have changed for the index to be saved while the table is open.
const SAVE_PART: u64 = 2;
/// After so long, fewer changes do.
const SAVE_EVERY: Duration = Duration::from_secs(600);
const SAVE_PART_LATER: u64 = 16;
/// Moves of files, and the part of the index's memory for what is known of them, beyond which entries
/// get their new places.
const MOST_MOVES: usize = if cfg!(test) { 4 } else { 1024 };
const MOVES_PART: usize = 32;
/// Entries copied out of a table in memory after one commit; a shard at least.
const SNAPSHOT_ENTRIES: usize = 1 << 17;

enum Form {
    Memory(ShardedIndex),
    Disk(Box<DiskIndex>),
}

/// Entries in memory getting their new places, a shard after each commit.
struct Sweep {
    next_shard: usize,
    /// Files whose moves no entry needs afterwards.
    files: Vec<SegmentId>,
}

/// The table as it was committed, for saving its index.
pub(crate) struct Committed<'a> {
    pub(crate) stand: &'a dyn Fn() -> Stand,
    pub(crate) segments: &'a dyn Fn() -> Vec<ManifestSegment>,
    pub(crate) next_segment: SegmentId,
}

impl Committed<'_> {
    fn saved<T>(
        &self,
        keys: usize,
        forwarding: &Forwarding,
        save: impl FnOnce(&Saved<'_>) -> Result<T>,
    ) -> Result<T> {
        save(&Saved {
            stand: &(self.stand)(),
            keys: Some(keys as u64),
            forwarding,
            segments: &(self.segments)(),
            next_segment: self.next_segment,
        })
    }
}

/// Where a table's index may live.
pub(crate) struct Place {
    pub(crate) width: KeyWidth,
    /// None: in memory only.
    pub(crate) home: Option<Home>,
    pub(crate) share: Share,
    /// Rows from which on it is saved.
    pub(crate) saved_from_rows: u64,
    /// Fewest changed keys for which it is saved while the table is open.
    pub(crate) saved_from_changes: u64,
}

/// From unique keys to places.
pub(crate) struct KeyedIndex {
    place: Place,
    form: Form,
    /// From the places in entries to those of today.
    forwarding: Forwarding,
    sweep: Option<Sweep>,
    /// Since it was saved.
    changes: u64,
    saved_at: Instant,
    snapshot: Option<Snapshotting>,
}

impl KeyedIndex {
    fn of(place: Place, form: Form) -> Self {
        let mut index = Self {
            place,
            form,
            forwarding: Forwarding::default(),
            sweep: None,
            changes: 0,
            saved_at: Instant::now(),
            snapshot: None,
        };
        index.tell_share();
        index
    }

    pub(crate) fn new(place: Place) -> Self {
        let form = Form::Memory(ShardedIndex::new(place.width));
        Self::of(place, form)
    }

    /// Reads back what was saved.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or does not fit the files: rebuild.
    pub(crate) fn restore(
        place: Place,
        home: &Home,
        manifest: &Manifest,
        covered: &[Covered<'_>],
        keys: u64,
    ) -> Result<Self> {
        if fits(&place, keys) {
            let memory = DiskIndex::restore_to_memory(home, manifest, covered, keys)?;
            return Ok(Self::of(place, Form::Memory(memory)));
        }
        let memory_bytes = place.share.equal_bytes();
        let disk = DiskIndex::restore(home.clone(), manifest, covered, memory_bytes)?;
        let mut index = Self::of(place, Form::Disk(Box::new(disk)));
        index.forwarding = manifest.forwarding.clone();
        Ok(index)
    }

    /// Reads what is needed for lookups of these keys.
    pub(crate) fn prepare(&mut self, keys: &[Key]) -> Result<()> {
        match &mut self.form {
            Form::Memory(_) => Ok(()),
            Form::Disk(disk) => disk.prepare(keys),
        }
    }

    pub(crate) fn is_on_disk(&self) -> bool {
        matches!(self.form, Form::Disk(_))
    }

    pub(crate) fn get(&self, key: Key) -> Result<Option<Location>> {
        let held = match &self.form {
            Form::Memory(memory) => memory.get(key),
            Form::Disk(disk) => disk.get(key)?,
        };
        Ok(self.today(held))
    }

    fn today(&self, held: Option<Location>) -> Option<Location> {
        held.map(|at| self.forwarding.resolve(at))
    }

    /// Returns the place the key had before.
    pub(crate) fn insert(&mut self, key: Key, location: Location) -> Result<Option<Location>> {
        self.changes += 1;
        let before = match &mut self.form {
            Form::Memory(memory) => memory.insert(key, location),
            Form::Disk(disk) => disk.insert(key, location)?,
        };
        Ok(self.today(before))
    }

    /// Inserts keys that are all new, as far as is known; returns the places of those that were not.
    pub(crate) fn insert_new(&mut self, entries: &[(Key, u64)]) -> Result<Vec<Location>> {
        self.changes += entries.len() as u64;
        let mut before = match &mut self.form {
            Form::Memory(memory) => memory.insert_all(entries),
            Form::Disk(disk) => {
                let mut before = Vec::new();
                for (key, place) in entries {
                    before.extend(disk.insert(*key, Location::unpack(*place))?);
                }
                before
            }
        };
        for at in &mut before {
            *at = self.forwarding.resolve(*at);
        }
        Ok(before)
    }

    pub(crate) fn remove(&mut self, key: Key) -> Result<Option<Location>> {
        self.changes += 1;
        let before = match &mut self.form {
            Form::Memory(memory) => memory.remove(key),
            Form::Disk(disk) => disk.remove(key)?,
        };
        Ok(self.today(before))
    }

    /// Rows were moved by a compaction that was committed.
    pub(crate) fn moved(&mut self, moves: Vec<Moved>) {
        self.changes += moves.iter().map(|moved| moved.kept).sum::<u64>();
        self.forwarding.add(moves);
        self.tell_share();
    }

    /// Keeps the keys whose place passes.
    pub(crate) fn retain(&mut self, keep: &dyn Fn(Location) -> bool) -> Result<()> {
        self.cancel_snapshot();
        self.changes += self.len() as u64;
        let forwarding = &self.forwarding;
        let keep = |at| keep(forwarding.resolve(at));
        match &mut self.form {
            Form::Memory(memory) => memory.retain(&mut |at| keep(at)),
            Form::Disk(disk) => disk.retain(&keep)?,
        }
        self.tell_share();
        Ok(())
    }

    /// Forgets all keys.
    pub(crate) fn clear(&mut self) {
        self.cancel_snapshot();
        self.changes += self.len() as u64;
        self.form = Form::Memory(ShardedIndex::new(self.place.width));
        self.forwarding.clear();
        self.sweep = None;
        self.tell_share();
    }

    /// After a batch: goes to disk when memory is short, and there keeps its bounds.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let memory_bytes = self.place.share.equal_bytes();
        match &mut self.form {
            Form::Memory(memory) => {
                let too_large = !self.place.share.allows(memory.memory_bytes());
                if let Some(home) = self.place.home.as_ref().filter(|_| too_large) {
                    tracing::debug!(keys = memory.len(), "a key index goes to disk");
                    let disk = DiskIndex::of_memory(home.clone(), memory, memory_bytes)?;
                    self.form = Form::Disk(Box::new(disk));
                    self.sweep = None;
                    self.cancel_snapshot();
                }
            }
            Form::Disk(disk) => {
                disk.set_memory(memory_bytes);
                disk.settle()?;
                self.forwarding.forget(&disk.take_renewed());
                if too_many(&self.forwarding, memory_bytes) {
                    disk.renew(&self.forwarding)?;
                }
            }
        }
        self.tell_share();
        Ok(())
    }

    /// After a commit: saves the index when enough has changed, a piece at a time if it is in
    /// memory.
    pub(crate) fn committed(&mut self, committed: &Committed<'_>) {
        self.sweep_on();
        let Some(home) = &self.place.home else {
            return;
        };
        let due = self.is_due();
        match &mut self.form {
            Form::Disk(disk) => {
                if due {
                    let saved = committed.saved(disk.len(), &self.forwarding, |saved| {
                        disk.save(saved, false)
                    });
                    self.told(saved);
                }
            }
            Form::Memory(memory) => {
                let begun = match self.snapshot.take() {
                    None if due => {
                        let mut segments = (committed.segments)();
                        // Entries that still say where a row was are of no use later: such files
                        // are read again.
                        segments.retain(|segment| !self.forwarding.leads_to(segment.id));
                        Snapshotting::begin(home, memory, segments).ok()
                    }
                    begun => begun,
                };
                if let Some(mut snapshot) = begun {
                    if snapshot.hand_over(memory, SNAPSHOT_ENTRIES) {
                        let stand = (committed.stand)();
                        let ended = snapshot.finish(&stand, committed.next_segment);
                        self.told(ended);
                    } else {
                        self.snapshot = Some(snapshot);
                    }
                }
            }
        }
    }

    /// Gives entries in memory the places their rows have now, a shard at a time, once many were moved.
    fn sweep_on(&mut self) {
        let Form::Memory(memory) = &mut self.form else {
            return;
        };
        let sweep = match &mut self.sweep {
            Some(sweep) => sweep,
            None if too_many(&self.forwarding, memory.memory_bytes()) => self.sweep.insert(Sweep {
                next_shard: 0,
                files: self.forwarding.files(),
            }),
            None => return,
        };
        memory.forward(sweep.next_shard, &self.forwarding);
        sweep.next_shard += 1;
        if sweep.next_shard == SHARDS
            && let Some(sweep) = self.sweep.take()
        {
            self.forwarding.forget(&sweep.files);
        }
    }

    fn is_due(&self) -> bool {
        let keys = self.len() as u64;
        if keys < self.place.saved_from_rows && !self.is_on_disk() {
            return false;
        }
        let part = if self.saved_at.elapsed() >= SAVE_EVERY {
            keys / SAVE_PART_LATER
        } else {
            (keys / SAVE_PART).max(self.place.saved_from_changes)
        };
        let spilled = matches!(&self.form, Form::Disk(disk) if disk.spilled() > 0);
        spilled || self.changes > part
    }

    fn told(&mut self, saved: Result<()>) {
        match saved {
            Ok(()) => self.saved(),
            // Without it the next start takes longer; the next try comes as if this one had been.
            Err(error) => {
                tracing::debug!(error = %error, "the key index was not saved");
                self.saved();
            }
        }
    }

    fn saved(&mut self) {
        self.changes = 0;
        self.saved_at = Instant::now();
    }

    /// Saves the index as the table is closed, if anything changed since it was.
    pub(crate) fn close(&mut self, committed: &Committed<'_>) -> Result<()> {
        self.cancel_snapshot();
        let Some(home) = &self.place.home else {
            return Ok(());
        };
        if (self.len() as u64) < self.place.saved_from_rows && !self.is_on_disk() {
            return Ok(());
        }
        let is_saved = match &self.form {
            Form::Disk(disk) => disk.spilled() == 0,
            // What was saved on the way left out files that rows were moved into.
            Form::Memory(_) => self.forwarding.len() == 0,
        };
        if self.changes == 0 && is_saved {
            return Ok(());
        }
        match &mut self.form {
            Form::Memory(memory) => {
                for shard in 0..SHARDS {
                    memory.forward(shard, &self.forwarding);
                }
                self.forwarding.clear();
                self.sweep = None;
                committed.saved(memory.len(), &self.forwarding, |saved| {
                    save_memory(home, memory, saved)
                })
            }
            Form::Disk(disk) => {
                committed.saved(disk.len(), &self.forwarding, |saved| disk.save(saved, true))
            }
        }?;
        self.saved();
        Ok(())
    }

    fn cancel_snapshot(&mut self) {
        if let Some(snapshot) = self.snapshot.take() {
            snapshot.cancel();
        }
    }

    fn tell_share(&mut self) {
        let bytes = self.memory_bytes();
        self.place.share.set(bytes);
    }

    pub(crate) fn len(&self) -> usize {
        match &self.form {
            Form::Memory(memory) => memory.len(),
            Form::Disk(disk) => disk.len(),
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let form = match &self.form {
            Form::Memory(memory) => memory.memory_bytes(),
            Form::Disk(disk) => disk.memory_bytes(),
        };
        form + self.forwarding.memory_bytes()
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        match &self.form {
            Form::Memory(_) => 0,
            Form::Disk(disk) => disk.disk_bytes(),
        }
    }
}

impl Drop for KeyedIndex {
    fn drop(&mut self) {
        self.cancel_snapshot();
    }
}

/// Whether entries should get their new places, in an index of so much memory.
fn too_many(forwarding: &Forwarding, memory_bytes: usize) -> bool {
    forwarding.len() > MOST_MOVES
        || forwarding.memory_bytes() > (memory_bytes / MOVES_PART).max(1 << 20)
}

fn fits(place: &Place, keys: u64) -> bool {
    place.home.is_none()
        || place
            .share
            .allows(ShardedIndex::predicted_bytes(place.width, keys))
}

/// An index filled from files, by several threads.
pub(crate) struct Rebuild {
    place: Place,
    form: RebuildForm,
}

enum RebuildForm {
    Memory(ShardedBuilder),
    Disk(BulkRuns),
}

impl Rebuild {
    /// For about so many keys. What was saved is gone with it.
    pub(crate) fn new(place: Place, keys: u64) -> Result<Self> {
        let form = match &place.home {
            Some(home) if !fits(&place, keys) => {
                forget(home)?;
                let memory_bytes = place.share.equal_bytes();
                let bulk = BulkRuns::new(home.clone(), place.width, memory_bytes, keys);
                RebuildForm::Disk(bulk)
            }
            _ => RebuildForm::Memory(ShardedBuilder::new(place.width, keys)),
        };
        Ok(Self { place, form })
    }

    /// Adds entries; false when one of the keys was there, as far as that is seen already.
    pub(crate) fn add(&self, entries: &[(Key, u64)]) -> Result<bool> {
        match &self.form {
            RebuildForm::Memory(builder) => Ok(builder.add(entries)),
            RebuildForm::Disk(bulk) => bulk.add(entries).map(|()| true),
        }
    }

    /// The index; none when a key is in it twice.
    pub(crate) fn finish(self) -> Result<Option<KeyedIndex>> {
        let form = match self.form {
            RebuildForm::Memory(builder) => Form::Memory(builder.finish()),
            RebuildForm::Disk(bulk) => match bulk.finish()? {
                Some(disk) => Form::Disk(Box::new(disk)),
                None => return Ok(None),
            },
        };
        let mut index = KeyedIndex::of(self.place, form);
        // Nothing of it is on disk yet.
        index.changes = index.len() as u64;
        Ok(Some(index))
    }
}
