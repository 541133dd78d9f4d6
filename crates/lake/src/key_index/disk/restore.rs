//! Reading an index back: each entry is checked against what the log says of its file.
//!
//! Of every file that the runs cover, the rows that have an entry must be its live rows: as many,
//! and by a sum over their places the same. Whatever does not fit is an error, upon which the index
//! is rebuilt.

use std::sync::{Mutex, PoisonError};

use alluvium_change::Result;
use hashbrown::HashMap;
use roaring::RoaringTreemap;

use super::manifest::{Manifest, doubt};
use super::merged::merged;
use super::run::{Entry, GONE, Run};
use crate::key_index::forward::Forwarding;
use crate::key_index::sharded::{SHARDS, ShardedBuilder, first_order_of, mix};
use crate::key_index::{Key, Location, SegmentId, ShardedIndex, in_parallel, lock};

/// A live file that the runs cover.
#[derive(Debug, Clone)]
pub(crate) struct Covered<'a> {
    pub(crate) id: SegmentId,
    pub(crate) num_rows: u64,
    /// What the log calls its deleted rows.
    pub(crate) deletion_vector: String,
    pub(crate) deleted: &'a RoaringTreemap,
}

/// Entries met of one file.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    rows: u64,
    places: u64,
}

impl Tally {
    fn add(&mut self, row: u64) {
        self.rows += 1;
        self.places = self.places.wrapping_add(mix(row));
    }

    fn expected(file: &Covered<'_>) -> Self {
        let mut all = Self::default();
        for row in 0..file.num_rows {
            all.add(row);
        }
        for row in file.deleted {
            all.rows = all.rows.wrapping_sub(1);
            all.places = all.places.wrapping_sub(mix(row));
        }
        all
    }
}

/// The covered files, by number.
struct Files<'a> {
    covered: &'a [Covered<'a>],
    by_id: HashMap<SegmentId, usize>,
    /// Entries may be of rows deleted since. Otherwise none is, which the sums prove.
    some_stale: bool,
    forwarding: &'a Forwarding,
}

impl<'a> Files<'a> {
    fn new(covered: &'a [Covered<'a>], some_stale: bool, forwarding: &'a Forwarding) -> Self {
        let by_id = covered.iter().enumerate().map(|(at, file)| (file.id, at));
        Self {
            covered,
            by_id: by_id.collect(),
            some_stale,
            forwarding,
        }
    }

    /// The place as it is today, and which file it is a live row of, if it is.
    fn live(&self, place: u64) -> Result<Option<(usize, Location)>> {
        let today = self.forwarding.resolve(Location::unpack(place));
        let Location { segment, row } = today;
        let row = u64::from(row);
        let Some((at, file)) = self
            .by_id
            .get(&segment)
            .and_then(|at| Some((*at, self.covered.get(*at)?)))
        else {
            return Ok(None);
        };
        if row >= file.num_rows {
            return Err(doubt("an entry is beyond its file's end"));
        }
        let stale = self.some_stale && file.deleted.contains(row);
        Ok((!stale).then_some((at, today)))
    }

    fn check(&self, tallies: &[Tally]) -> Result<()> {
        for (file, tally) in self.covered.iter().zip(tallies) {
            if *tally != Tally::expected(file) {
                return Err(doubt(format!(
                    "it has {} rows of a file with {} live ones",
                    tally.rows,
                    file.num_rows.saturating_sub(file.deleted.len())
                )));
            }
        }
        Ok(())
    }
}

/// What a part of the runs holds.
#[derive(Default)]
struct Part {
    shard: usize,
    tallies: Vec<Tally>,
    live: Vec<(Key, u64)>,
    stale: Vec<Key>,
    live_count: usize,
}

/// Reads one shard's part of the runs.
fn read_part(runs: &[&Run], files: &Files<'_>, shard: usize, keep_live: bool) -> Result<Part> {
    let mut part = Part {
        shard,
        tallies: vec![Tally::default(); files.covered.len()],
        ..Part::default()
    };
    let until = (shard + 1 < SHARDS).then(|| first_order_of(shard + 1));
    let mut take = |entry: Entry| -> Result<()> {
        if entry.place == GONE {
            return Ok(());
        }
        match files.live(entry.place)? {
            Some((at, today)) => {
                if let Some(tally) = part.tallies.get_mut(at) {
                    tally.add(u64::from(today.row));
                }
                part.live_count += 1;
                if keep_live {
                    part.live.push((entry.key, today.pack()));
                }
            }
            None if keep_live => {}
            None => part.stale.push(entry.key),
        }
        Ok(())
    };
    merged(runs, (first_order_of(shard), until), &mut take)?;
    Ok(part)
}

/// Reads all parts, some at a time, and checks that they are the files' live rows.
fn read_all(
    runs: &[&Run],
    files: &Files<'_>,
    keep_live: bool,
    take: &(dyn Fn(Part) + Sync),
) -> Result<()> {
    let tallies = Mutex::new(vec![Tally::default(); files.covered.len()]);
    let entries = runs.iter().map(|run| run.entries).sum();
    in_parallel(entries, SHARDS, &|shard| {
        let part = read_part(runs, files, shard, keep_live)?;
        let mut all = lock(&tallies);
        for (all, tally) in all.iter_mut().zip(&part.tallies) {
            all.rows += tally.rows;
            all.places = all.places.wrapping_add(tally.places);
        }
        drop(all);
        take(part);
        Ok(())
    })?;
    files.check(&tallies.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// The runs' live entries as a table in memory.
pub(super) fn to_memory(
    manifest: &Manifest,
    runs: &[&Run],
    covered: &[Covered<'_>],
    keys: u64,
) -> Result<ShardedIndex> {
    let builder = ShardedBuilder::new(manifest.width, keys);
    let some_stale = manifest.keys_of(covered).is_none();
    let files = Files::new(covered, some_stale, &manifest.forwarding);
    // Merged runs have each key once.
    read_all(runs, &files, true, &|part| {
        builder.add_to_shard(part.shard, &part.live);
    })?;
    Ok(builder.finish())
}

/// How many entries of the runs are live, and the keys of those that are not.
pub(super) fn to_disk(
    manifest: &Manifest,
    runs: &[&Run],
    covered: &[Covered<'_>],
) -> Result<(usize, Vec<Key>)> {
    let files = Files::new(covered, true, &manifest.forwarding);
    let found = Mutex::new((0, Vec::new()));
    read_all(runs, &files, false, &|part| {
        let mut found = lock(&found);
        found.0 += part.live_count;
        found.1.extend(part.stale);
    })?;
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}
