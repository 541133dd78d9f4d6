//! The index, in memory and on disk, against a map: under random histories, with the power cut
//! between each two writes, with every byte of its files damaged.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use alluvium_change::Result;
use proptest::prelude::*;
use roaring::RoaringTreemap;

use super::*;
use crate::key_index::keyed::{Committed, Place, Rebuild};
use crate::key_index::{IndexBudget, KeyedIndex, SegmentId};

/// A data file, as immutable as a real one but for its deleted rows.
#[derive(Debug, Clone, Default)]
struct DataFile {
    keys: Vec<Key>,
    deleted: RoaringTreemap,
}

/// What the log says: files by path.
#[derive(Debug, Clone, Default)]
struct Table {
    files: BTreeMap<String, DataFile>,
    version: u64,
}

#[derive(Debug, Clone)]
enum Step {
    /// Keys written (true) or deleted, as one batch; a key may come again.
    Change(Vec<(Key, bool)>),
    Commit,
    /// As an error does: what was not committed is gone.
    Drop,
    Close,
    /// All rows of one file in `n` go at once.
    RemoveFiles(usize),
    Truncate,
}

/// A table with its index, as silver keeps them.
struct Session<'a> {
    width: KeyWidth,
    committed: &'a mut Table,
    staged: Table,
    ids: BTreeMap<String, SegmentId>,
    paths: BTreeMap<SegmentId, String>,
    next_id: SegmentId,
    open_file: Option<String>,
    index: KeyedIndex,
    restored: bool,
}

fn stand(version: u64) -> Stand {
    Stand {
        table_id: "7".to_owned(),
        version,
        key: "[id]".to_owned(),
    }
}

impl Table {
    fn live(&self) -> impl Iterator<Item = (Key, &str, u32)> {
        self.files.iter().flat_map(|(path, file)| {
            let rows = file
                .keys
                .iter()
                .enumerate()
                .map(|(row, key)| (*key, row as u32));
            rows.filter(|(_, row)| !file.deleted.contains(u64::from(*row)))
                .map(|(key, row)| (key, path.as_str(), row))
        })
    }
}

impl<'a> Session<'a> {
    fn open(
        dir: &Path,
        memory_bytes: usize,
        width: KeyWidth,
        table: &'a mut Table,
        power: Option<&Arc<AtomicI64>>,
    ) -> Self {
        let mut home = Home::new(dir.to_owned(), false);
        home.power = power.cloned();
        let budget = IndexBudget::new(memory_bytes);
        let place = || Place {
            width,
            home: Some(home.clone()),
            share: budget.join(),
            saved_from_rows: 0,
            saved_from_changes: 5,
        };
        let manifest = read_manifest(&home, &stand(table.version), width).ok();
        let mut next_id = manifest
            .as_ref()
            .map_or(0, |manifest| manifest.next_segment);
        let covered_to = next_id;
        let mut ids = BTreeMap::new();
        for (path, file) in &table.files {
            let known = manifest
                .as_ref()
                .and_then(|manifest| manifest.segments.get(path))
                .filter(|known| known.num_rows == file.keys.len() as u64);
            let id = known.map_or_else(
                || {
                    next_id += 1;
                    next_id - 1
                },
                |known| known.id,
            );
            ids.insert(path.clone(), id);
        }
        let paths: BTreeMap<SegmentId, String> =
            ids.iter().map(|(path, id)| (*id, path.clone())).collect();
        assert_eq!(paths.len(), ids.len(), "numbers are unique");
        let all: Vec<(Key, u64)> = table
            .live()
            .map(|(key, path, row)| {
                (
                    key,
                    Location {
                        segment: ids[path],
                        row,
                    }
                    .pack(),
                )
            })
            .collect();
        let restored = manifest.and_then(|manifest| {
            let covered: Vec<Covered<'_>> = table
                .files
                .iter()
                .filter(|(path, _)| ids[*path] < covered_to)
                .map(|(path, file)| Covered {
                    id: ids[path],
                    num_rows: file.keys.len() as u64,
                    deleted: &file.deleted,
                })
                .collect();
            let mut index =
                KeyedIndex::restore(place(), &home, &manifest, &covered, all.len() as u64).ok()?;
            for (key, at) in &all {
                let at = Location::unpack(*at);
                if at.segment >= covered_to {
                    assert_eq!(index.insert(*key, at).ok()?, None, "stale entry of {key}");
                }
            }
            (index.len() == all.len()).then_some(index)
        });
        let is_restored = restored.is_some();
        let index = restored.unwrap_or_else(|| {
            let rebuild = || -> Result<KeyedIndex> {
                let rebuild = Rebuild::new(place(), all.len() as u64)?;
                for entries in all.chunks(7) {
                    assert!(rebuild.add(entries)?);
                }
                Ok(rebuild.finish()?.expect("no key is double"))
            };
            // Where the power went, the next start has it again.
            rebuild().unwrap_or_else(|_| {
                home.power
                    .as_ref()
                    .unwrap()
                    .store(i64::MAX, Ordering::SeqCst);
                rebuild().unwrap()
            })
        });
        let session = Self {
            width,
            staged: table.clone(),
            committed: table,
            ids,
            paths,
            next_id,
            open_file: None,
            index,
            restored: is_restored,
        };
        session.check();
        session
    }

    /// The index says of each key where its row is.
    fn check(&self) {
        let mut live = BTreeSet::new();
        for (key, path, row) in self.staged.live() {
            let at = Location {
                segment: self.ids[path],
                row,
            };
            assert_eq!(self.index.get(key).unwrap(), Some(at), "key {key}");
            live.insert(key);
        }
        assert_eq!(self.index.len(), live.len());
        let high = if self.width == KeyWidth::Wide { 70 } else { 0 };
        for key in (0..300).flat_map(|key| [key, key << high]) {
            if !live.contains(&key) {
                assert_eq!(self.index.get(key).unwrap(), None, "key {key}");
            }
        }
    }

    fn bury(&mut self, at: Location) {
        let path = &self.paths[&at.segment];
        let file = self.staged.files.get_mut(path).unwrap();
        assert!(file.deleted.insert(u64::from(at.row)), "was live");
    }

    fn change(&mut self, changes: &[(Key, bool)]) -> Result<()> {
        let keys: Vec<Key> = changes.iter().map(|(key, _)| *key).collect();
        self.index.prepare(&keys)?;
        for (key, write) in changes {
            let before = self.index.get(*key)?;
            if let Some(at) = before {
                self.bury(at);
            }
            if !write {
                assert_eq!(self.index.remove(*key)?, before);
                continue;
            }
            let path = self.open_file.clone().unwrap_or_else(|| {
                let path = format!("part-{}", uuid::Uuid::new_v4());
                self.ids.insert(path.clone(), self.next_id);
                self.paths.insert(self.next_id, path.clone());
                self.next_id += 1;
                path
            });
            let file = self.staged.files.entry(path.clone()).or_default();
            let row = file.keys.len() as u32;
            file.keys.push(*key);
            let at = Location {
                segment: self.ids[&path],
                row,
            };
            self.open_file = (row < 9).then_some(path);
            assert_eq!(self.index.insert(*key, at)?, before);
        }
        self.index.settle()
    }

    fn saving(&mut self, save: impl FnOnce(&mut KeyedIndex, &Committed<'_>)) {
        let segments: Vec<ManifestSegment> = self
            .committed
            .files
            .iter()
            .map(|(path, file)| ManifestSegment {
                id: self.ids[path],
                path: path.clone(),
                size_bytes: 1,
                num_rows: file.keys.len() as u64,
            })
            .collect();
        let version = self.committed.version;
        let committed = Committed {
            stand: &|| stand(version),
            segments: &|| segments.clone(),
            next_segment: self.next_id,
        };
        save(&mut self.index, &committed);
    }

    fn commit(&mut self) {
        self.open_file = None;
        self.staged
            .files
            .retain(|_, file| (file.deleted.len() as usize) < file.keys.len());
        self.staged.version += 1;
        *self.committed = self.staged.clone();
        self.saving(|index, committed| index.committed(committed));
    }

    fn close(mut self) {
        self.commit();
        self.saving(|index, committed| {
            let _ = index.close(committed);
        });
    }

    fn remove_files(&mut self, one_in: usize) -> Result<()> {
        self.open_file = None;
        let mut at = 0_usize;
        self.staged.files.retain(|_, _| {
            at += 1;
            !at.is_multiple_of(one_in)
        });
        let (files, paths) = (&self.staged.files, &self.paths);
        let keep = |at: Location| files.contains_key(&paths[&at.segment]);
        self.index.retain(&keep)
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Change(changes) => self.change(changes)?,
            Step::Commit => self.commit(),
            Step::RemoveFiles(one_in) => self.remove_files(*one_in)?,
            Step::Truncate => {
                self.open_file = None;
                self.staged.files.clear();
                self.index.clear();
            }
            Step::Drop | Step::Close => {}
        }
        self.check();
        Ok(())
    }
}

/// Runs the steps; the power goes after so many writes, and comes back.
fn run(steps: &[Step], memory_bytes: usize, width: KeyWidth, writes: i64) -> (Table, bool, i64) {
    let dir = tempfile::tempdir().unwrap();
    let power = Arc::new(AtomicI64::new(writes));
    let mut table = Table::default();
    let mut restored = false;
    let mut rest = steps;
    while !rest.is_empty() {
        let mut session = Session::open(dir.path(), memory_bytes, width, &mut table, Some(&power));
        restored |= session.restored && !session.committed.files.is_empty();
        let mut over = false;
        while !over && let Some((step, after)) = rest.split_first() {
            rest = after;
            // An error ends the session: what was committed stays.
            over = session.step(step).is_err() || matches!(step, Step::Drop | Step::Close);
            if matches!(step, Step::Close) {
                session.close();
                break;
            }
        }
        if power.load(Ordering::SeqCst) <= 0 {
            power.store(i64::MAX, Ordering::SeqCst);
        }
    }
    let used = writes - power.load(Ordering::SeqCst);
    let session = Session::open(dir.path(), memory_bytes, width, &mut table, None);
    drop(session);
    // And in the other form.
    drop(Session::open(
        dir.path(),
        usize::MAX,
        width,
        &mut table,
        None,
    ));
    drop(Session::open(dir.path(), 64, width, &mut table, None));
    (table, restored, used)
}

fn changes(keys: u128) -> impl Strategy<Value = Step> {
    // Some beyond 64 bits, where the key is wide.
    let key = (0..keys, any::<bool>()).prop_map(|(key, high)| key << if high { 70 } else { 0 });
    let change = (key, prop::bool::weighted(0.75));
    prop::collection::vec(change, 1..30).prop_map(Step::Change)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => changes(300),
        6 => Just(Step::Commit),
        1 => Just(Step::Drop),
        2 => Just(Step::Close),
        1 => (2_usize..5).prop_map(Step::RemoveFiles),
        1 => Just(Step::Truncate),
    ]
}

fn narrow(steps: &[Step]) -> Vec<Step> {
    let narrow = |step: &Step| match step {
        Step::Change(changes) => Step::Change(
            changes
                .iter()
                .map(|(key, write)| (key & u128::from(u64::MAX), *write))
                .collect(),
        ),
        other => other.clone(),
    };
    steps.iter().map(narrow).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn equals_a_map_through_crashes(
        steps in prop::collection::vec(step(), 1..40),
        writes in 0_i64..200,
        // Always on disk; in memory first; always in memory.
        memory_bytes in prop_oneof![Just(0_usize), Just(20_000), Just(usize::MAX)],
    ) {
        run(&steps, memory_bytes, KeyWidth::Wide, writes);
        run(&narrow(&steps), memory_bytes, KeyWidth::Narrow, i64::MAX);
    }
}

/// Enough for spills, merges, saves and closes.
fn long_history() -> Vec<Step> {
    let mut random = 7_u64;
    let mut next = |below: u64| {
        random = crate::key_index::sharded::mix(random);
        random % below
    };
    let mut steps = Vec::new();
    for round in 0..30 {
        let changes = (0..20).map(|_| (u128::from(next(150)), next(4) > 0));
        steps.push(Step::Change(changes.collect()));
        if round % 2 == 0 {
            steps.push(Step::Commit);
        }
        match round {
            9 | 20 => steps.push(Step::Close),
            15 => steps.push(Step::RemoveFiles(3)),
            _ => {}
        }
    }
    steps
}

#[test]
fn a_crash_between_each_two_writes_costs_nothing() {
    let steps = long_history();
    for memory_bytes in [0, usize::MAX] {
        let (expected, restored, used) = run(&steps, memory_bytes, KeyWidth::Wide, 1 << 40);
        assert!(restored, "the saved index was read back");
        assert!(used > 10, "{used} writes");
        // Merges run beside: a few writes more or less.
        for writes in 0..used {
            let (table, _, _) = run(&steps, memory_bytes, KeyWidth::Wide, writes);
            assert!(table.version <= expected.version);
        }
    }
}

/// A saved index of several runs.
fn saved(dir: &Path, memory_bytes: usize) -> Table {
    let mut table = Table::default();
    let mut session = Session::open(dir, memory_bytes, KeyWidth::Narrow, &mut table, None);
    for step in narrow(&long_history()) {
        if matches!(step, Step::Change(_) | Step::Commit) {
            session.step(&step).unwrap();
        }
    }
    session.close();
    table
}

#[test]
fn damage_anywhere_is_found() {
    for memory_bytes in [0, usize::MAX] {
        let dir = tempfile::tempdir().unwrap();
        let mut table = saved(dir.path(), memory_bytes);
        let opens = |table: &mut Table| {
            Session::open(dir.path(), memory_bytes, KeyWidth::Narrow, table, None).restored
        };
        assert!(opens(&mut table));
        let files: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        let whole: Vec<_> = files
            .iter()
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .collect();
        let restore = || {
            for (path, bytes) in &whole {
                std::fs::write(path, bytes).unwrap();
            }
        };
        for (path, bytes) in &whole {
            // Every byte of short files, and enough of long ones to meet every part.
            let step = (bytes.len() / 400).max(1) | 1;
            for at in (0..bytes.len()).step_by(step) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << (at % 8);
                std::fs::write(path, &damaged).unwrap();
                assert!(!opens(&mut table), "byte {at} of {}", path.display());
                restore();
            }
            for length in (0..bytes.len()).step_by(bytes.len() / 40 + 1) {
                std::fs::write(path, &bytes[..length]).unwrap();
                assert!(!opens(&mut table), "{length} bytes of {}", path.display());
                restore();
            }
            std::fs::remove_file(path).unwrap();
            assert!(!opens(&mut table), "without {}", path.display());
            restore();
        }
        assert!(opens(&mut table), "as it was");
    }
}

#[test]
fn an_index_of_something_else_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let table = saved(dir.path(), 0);
    let home = Home::new(dir.path().to_owned(), false);
    let read = |stand: &Stand, width| read_manifest(&home, stand, width);
    let now = stand(table.version);
    assert!(read(&now, KeyWidth::Narrow).is_ok());
    assert!(read(&stand(table.version + 5), KeyWidth::Narrow).is_ok());
    let ahead = read(&stand(table.version - 1), KeyWidth::Narrow).unwrap_err();
    assert_eq!(ahead, "the index is ahead of the table");
    let other = Stand {
        table_id: "8".to_owned(),
        ..now.clone()
    };
    assert_eq!(
        read(&other, KeyWidth::Narrow).unwrap_err(),
        "the index is of another table"
    );
    let other = Stand {
        key: "[id2]".to_owned(),
        ..now.clone()
    };
    assert_eq!(
        read(&other, KeyWidth::Narrow).unwrap_err(),
        "the index is of another key"
    );
    let manifest = read(&now, KeyWidth::Wide).unwrap();
    assert!(manifest.open_runs(&home).is_err(), "of another width");
}

/// Rows that are deleted in the log and live in another history: a lake that went back in time and
/// on from there.
#[test]
fn another_history_of_the_same_files_is_found() {
    for memory_bytes in [0, usize::MAX] {
        let dir = tempfile::tempdir().unwrap();
        let mut table = saved(dir.path(), memory_bytes);
        // As many rows, but one other: of a key that is nowhere now. (One that is somewhere may have been
        // where it comes back to, and the index may know that.)
        let live: BTreeSet<Key> = table.live().map(|(key, _, _)| key).collect();
        let swapped = table.files.values_mut().find_map(|file| {
            let key_at = |row: u64| file.keys[usize::try_from(row).unwrap()];
            let back = file
                .deleted
                .iter()
                .find(|row| !live.contains(&key_at(*row)))?;
            let gone = (0..file.keys.len() as u64).find(|row| !file.deleted.contains(*row))?;
            file.deleted.remove(back);
            file.deleted.insert(gone);
            Some(())
        });
        assert!(swapped.is_some(), "the history deletes keys");
        table.version += 1;
        let session = Session::open(dir.path(), memory_bytes, KeyWidth::Narrow, &mut table, None);
        assert!(!session.restored);
    }
}

#[test]
fn runs_stay_few_and_forget_what_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::new(dir.path().to_owned(), false);
    let mut index = DiskIndex::new(home, KeyWidth::Narrow, 8_000);
    for round in 0..200_u32 {
        let keys: Vec<Key> = (0..50).map(|n| Key::from(round % 40 * 50 + n)).collect();
        index.prepare(&keys).unwrap();
        for (row, key) in (0..).zip(&keys) {
            let at = Location {
                segment: round,
                row,
            };
            index.insert(*key, at).unwrap();
        }
        index.settle().unwrap();
        assert!(
            index.runs.len() <= MOST_RUNS + 1,
            "{} runs",
            index.runs.len()
        );
        assert!(index.memory_bytes() < 60_000, "{}", index.memory_bytes());
    }
    assert_eq!(index.len(), 2000);
    index.adopt_merge().unwrap();
    for key in 0..2000 {
        index.remove(key).unwrap();
        index.settle().unwrap();
    }
    assert_eq!(index.len(), 0);
    index.retain(&|_| true).unwrap();
    assert_eq!(
        index.runs.iter().map(|held| held.run.entries).sum::<u64>(),
        0
    );
    assert_eq!(index.get(5).unwrap(), None);
}

/// A snapshot is taken shard by shard while commits go on: what changed in between is found in the
/// files.
#[test]
fn a_snapshot_taken_over_many_commits_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let mut table = Table::default();
    let mut session = Session::open(dir.path(), usize::MAX, KeyWidth::Wide, &mut table, None);
    let mut taken = 0;
    let mut last = Vec::new();
    for round in 0..20_000_u64 {
        let mut keys = (0..8).map(|n| crate::key_index::sharded::mix(round * 8 + n));
        let changes = keys
            .by_ref()
            .map(|key| (u128::from(key % 290), key % 5 > 0));
        session.change(&changes.collect::<Vec<_>>()).unwrap();
        session.commit();
        let manifest = std::fs::read(dir.path().join("manifest")).unwrap_or_default();
        taken += usize::from(manifest != last);
        last = manifest;
        if taken == 4 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    assert_eq!(taken, 4, "snapshots were finished");
    session.check();
    drop(session);
    let session = Session::open(dir.path(), usize::MAX, KeyWidth::Wide, &mut table, None);
    assert!(session.restored);
}
