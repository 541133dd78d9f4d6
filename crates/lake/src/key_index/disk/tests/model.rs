//! A table with its index, a history of it, and a power that goes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use alluvium_change::Result;
use roaring::RoaringTreemap;

use super::super::*;
use crate::key_index::budget::Share;
use crate::key_index::keyed::{Committed, Place, Rebuild};
use crate::key_index::{IndexBudget, KeyedIndex, Moved, SegmentId};

/// A data file, as immutable as a real one but for its deleted rows.
#[derive(Debug, Clone, Default)]
pub(super) struct DataFile {
    pub(super) keys: Vec<Key>,
    pub(super) deleted: RoaringTreemap,
}

impl DataFile {
    /// As its deleted rows are called.
    fn deletion_vector(&self) -> String {
        format!("{:?}", self.deleted.iter().collect::<Vec<_>>())
    }
}

/// What the log says: files by path.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    pub(super) files: BTreeMap<String, DataFile>,
    pub(super) version: u64,
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Keys written (true) or deleted, as one batch; a key may come again.
    Change(Vec<(Key, bool)>),
    Commit,
    /// One file in `n` and others become one file, in a commit of its own.
    Compact(usize),
    /// As an error does: what was not committed is gone.
    Drop,
    Close,
    /// All rows of one file in `n` go at once.
    RemoveFiles(usize),
    Truncate,
    /// Other tables take the memory there is, while the table is open.
    Crowd,
}

/// A table with its index, as silver keeps them.
pub(super) struct Session<'a> {
    width: KeyWidth,
    committed: &'a mut Table,
    staged: Table,
    ids: BTreeMap<String, SegmentId>,
    paths: BTreeMap<SegmentId, String>,
    next_id: SegmentId,
    open_file: Option<String>,
    pub(super) index: KeyedIndex,
    pub(super) restored: bool,
    budget: Arc<IndexBudget>,
    memory_bytes: usize,
    crowd: Vec<Share>,
}

/// Goes after so many writes, comes back, and goes again, as long as there are numbers left.
pub(super) struct Power {
    writes_left: Arc<AtomicI64>,
    /// How many writes from each return on, the last one first.
    returns: RefCell<Vec<i64>>,
}

impl Power {
    pub(super) fn cut_after(writes: &[i64]) -> Self {
        let power = Self {
            writes_left: Arc::default(),
            returns: RefCell::new(writes.iter().rev().copied().collect()),
        };
        power.comes_back();
        power
    }

    fn comes_back(&self) {
        let writes = self.returns.borrow_mut().pop().unwrap_or(FOR_EVER);
        self.writes_left.store(writes, Ordering::SeqCst);
    }

    fn is_gone(&self) -> bool {
        self.writes_left.load(Ordering::SeqCst) <= 0
    }

    /// Writes since it came back for ever.
    pub(super) fn writes(&self) -> i64 {
        FOR_EVER - self.writes_left.load(Ordering::SeqCst)
    }
}

const FOR_EVER: i64 = i64::MAX / 2;

pub(super) fn stand(version: u64) -> Stand {
    Stand {
        table_id: "7".to_owned(),
        version,
        key: "[id]".to_owned(),
    }
}

impl Table {
    pub(super) fn live(&self) -> impl Iterator<Item = (Key, &str, u32)> {
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

/// What opening gives: an index that was read back, or filled from the files.
struct Opened {
    ids: BTreeMap<String, SegmentId>,
    next_id: SegmentId,
    index: KeyedIndex,
    restored: bool,
}

impl Opened {
    fn of(home: &Home, place: &dyn Fn() -> Place, table: &Table) -> Result<Self> {
        let manifest = read_manifest(home, &stand(table.version), place().width).ok();
        let covered_to = manifest
            .as_ref()
            .map_or(0, |manifest| manifest.next_segment);
        let mut next_id = covered_to;
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
        let at = |path: &str, row| Location {
            segment: ids[path],
            row,
        };
        let all: Vec<(Key, u64)> = table
            .live()
            .map(|(key, path, row)| (key, at(path, row).pack()))
            .collect();
        let restored = manifest.and_then(|manifest| {
            let covered: Vec<Covered<'_>> = table
                .files
                .iter()
                .filter(|(path, _)| ids[*path] < covered_to)
                .map(|(path, file)| Covered {
                    id: ids[path],
                    num_rows: file.keys.len() as u64,
                    deletion_vector: file.deletion_vector(),
                    deleted: &file.deleted,
                })
                .collect();
            let keys = all.len() as u64;
            let mut index = KeyedIndex::restore(place(), home, &manifest, &covered, keys).ok()?;
            for (key, at) in &all {
                let at = Location::unpack(*at);
                if at.segment >= covered_to {
                    assert_eq!(index.insert(*key, at).ok()?, None, "stale entry of {key}");
                }
            }
            (index.len() == all.len()).then_some(index)
        });
        let is_restored = restored.is_some();
        let index = match restored {
            Some(index) => index,
            None => {
                let rebuild = Rebuild::new(place(), all.len() as u64)?;
                for entries in all.chunks(7) {
                    assert!(rebuild.add(entries)?);
                }
                rebuild.finish()?.expect("no key is double")
            }
        };
        Ok(Self {
            ids,
            next_id,
            index,
            restored: is_restored,
        })
    }
}

impl<'a> Session<'a> {
    /// Opens the table; again while the power goes meanwhile, and when damage shows as its keys are
    /// looked up.
    pub(super) fn open(
        dir: &Path,
        memory_bytes: usize,
        width: KeyWidth,
        table: &'a mut Table,
        power: Option<&Power>,
    ) -> Self {
        let mut session = Self::open_once(dir, memory_bytes, width, table, power);
        if session.check().is_err() {
            let Session { committed, .. } = session;
            session = Self::open_once(dir, memory_bytes, width, committed, power);
            assert!(!session.restored, "what is damaged is rebuilt");
            session.check().unwrap();
        }
        session
    }

    fn open_once(
        dir: &Path,
        memory_bytes: usize,
        width: KeyWidth,
        table: &'a mut Table,
        power: Option<&Power>,
    ) -> Self {
        let mut home = Home::new(dir.to_owned(), false);
        home.power = power.map(|power| Arc::clone(&power.writes_left));
        let budget = IndexBudget::new(memory_bytes);
        let place = || Place {
            width,
            home: Some(home.clone()),
            share: budget.join(),
            saved_from_rows: 0,
            saved_from_changes: 5,
        };
        let opened = loop {
            match (Opened::of(&home, &place, table), power) {
                // What cannot be read back for want of power is not given up: the process ended.
                (
                    Ok(Opened {
                        restored: false, ..
                    })
                    | Err(_),
                    Some(power),
                ) if power.is_gone() => {
                    power.comes_back();
                }
                (Ok(opened), _) => break opened,
                (Err(error), _) => panic!("{error}"),
            }
        };
        let session = Self {
            width,
            staged: table.clone(),
            committed: table,
            paths: opened.ids.iter().map(|(p, id)| (*id, p.clone())).collect(),
            ids: opened.ids,
            next_id: opened.next_id,
            open_file: None,
            index: opened.index,
            restored: opened.restored,
            budget,
            memory_bytes,
            crowd: Vec::new(),
        };
        assert_eq!(session.paths.len(), session.ids.len(), "numbers are unique");
        session
    }

    /// The index says of each key where its row is.
    pub(super) fn check(&mut self) -> Result<()> {
        let high = if self.width == KeyWidth::Wide { 70 } else { 0 };
        let mut gone: BTreeSet<Key> = (0..300).flat_map(|key| [key, key << high]).collect();
        // With and without what a batch reads ahead.
        if self.staged.version.is_multiple_of(2) {
            let keys: Vec<Key> = gone.iter().copied().collect();
            self.index.prepare(&keys)?;
        }
        let mut live = 0;
        for (key, path, row) in self.staged.live() {
            let at = Location {
                segment: self.ids[path],
                row,
            };
            assert_eq!(self.index.get(key)?, Some(at), "key {key}");
            live += 1;
            gone.remove(&key);
        }
        assert_eq!(self.index.len(), live);
        for key in gone {
            assert_eq!(self.index.get(key)?, None, "key {key}");
        }
        Ok(())
    }

    fn bury(&mut self, at: Location) {
        let path = &self.paths[&at.segment];
        let file = self.staged.files.get_mut(path).unwrap();
        assert!(file.deleted.insert(u64::from(at.row)), "was live");
    }

    pub(super) fn change(&mut self, changes: &[(Key, bool)]) -> Result<()> {
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
                deletion_vector: file.deletion_vector(),
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

    pub(super) fn commit(&mut self) {
        self.open_file = None;
        self.staged
            .files
            .retain(|_, file| (file.deleted.len() as usize) < file.keys.len());
        self.staged.version += 1;
        *self.committed = self.staged.clone();
        self.saving(|index, committed| index.committed(committed));
    }

    /// Of the files' deleted rows some are deleted while the new file is written.
    fn compact(&mut self, one_in: usize) {
        self.commit();
        let chosen: Vec<String> = self
            .staged
            .files
            .keys()
            .enumerate()
            .filter(|(at, _)| at.is_multiple_of(one_in))
            .map(|(_, path)| path.clone())
            .collect();
        if chosen.is_empty() {
            return;
        }
        let path = format!("part-{}", uuid::Uuid::new_v4());
        let to = self.next_id;
        self.next_id += 1;
        self.ids.insert(path.clone(), to);
        self.paths.insert(to, path.clone());
        let mut joined = DataFile::default();
        let mut moves = Vec::new();
        for old in chosen {
            let file = self.staged.files.remove(&old).unwrap();
            let gone: RoaringTreemap = file.deleted.iter().filter(|row| row % 2 == 0).collect();
            moves.push(Moved {
                from: self.ids[&old],
                to,
                base: joined.keys.len() as u32,
                kept: file.keys.len() as u64 - gone.len(),
                gone: Arc::new(gone.clone()),
                places: None,
            });
            for (row, key) in file.keys.iter().enumerate() {
                let row = row as u64;
                if !gone.contains(row) {
                    if file.deleted.contains(row) {
                        joined.deleted.insert(joined.keys.len() as u64);
                    }
                    joined.keys.push(*key);
                }
            }
        }
        self.staged.files.insert(path, joined);
        self.staged.version += 1;
        *self.committed = self.staged.clone();
        self.index.moved(moves);
        self.saving(|index, committed| index.committed(committed));
    }

    pub(super) fn close(mut self) {
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

    pub(super) fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Change(changes) => self.change(changes)?,
            Step::Commit => self.commit(),
            Step::Compact(one_in) => self.compact(*one_in),
            Step::RemoveFiles(one_in) => self.remove_files(*one_in)?,
            Step::Truncate => {
                self.open_file = None;
                self.staged.files.clear();
                self.index.clear();
            }
            Step::Crowd => {
                self.crowd = (0..3).map(|_| self.budget.join()).collect();
                for share in &mut self.crowd {
                    share.set(self.memory_bytes / 3);
                }
            }
            Step::Drop | Step::Close => {}
        }
        self.check().unwrap();
        Ok(())
    }
}

/// What a history is run with.
#[derive(Clone, Copy)]
pub(super) struct Setting {
    pub(super) memory_bytes: usize,
    pub(super) width: KeyWidth,
    /// A write that fails ends the process, as a crash does. Else it goes on as long as it can.
    pub(super) dies: bool,
}

/// What was seen while a history ran.
pub(super) struct Seen {
    pub(super) table: Table,
    /// A saved index was read back.
    pub(super) restored: bool,
    pub(super) was_in_memory: bool,
    pub(super) was_on_disk: bool,
}

/// Runs the steps; where the power goes, the table is opened again. With a whole manifest there, its
/// index must be read back.
pub(super) fn run(steps: &[Step], setting: Setting, power: &Power) -> Seen {
    let dir = tempfile::tempdir().unwrap();
    let mut table = Table::default();
    let (dir, width) = (dir.path(), setting.width);
    let mut seen = Seen {
        table: Table::default(),
        restored: false,
        was_in_memory: false,
        was_on_disk: false,
    };
    let mut rest = steps;
    while !rest.is_empty() {
        let has_manifest = dir.join("manifest").exists();
        let mut session = Session::open(dir, setting.memory_bytes, width, &mut table, Some(power));
        assert!(session.restored || !has_manifest || !setting.dies);
        seen.restored |= session.restored && !session.committed.files.is_empty();
        let mut over = false;
        while !over && let Some((step, after)) = rest.split_first() {
            rest = after;
            // An error ends the session: what was committed stays.
            over = session.step(step).is_err()
                || matches!(step, Step::Drop | Step::Close)
                || (setting.dies && power.is_gone());
            let on_disk = session.index.is_on_disk();
            seen.was_on_disk |= on_disk;
            seen.was_in_memory |= !on_disk && session.index.len() > 0;
            if matches!(step, Step::Close) {
                session.close();
                break;
            }
        }
        if power.is_gone() {
            power.comes_back();
        }
    }
    drop(Session::open(
        dir,
        setting.memory_bytes,
        width,
        &mut table,
        None,
    ));
    // And in the other form.
    drop(Session::open(dir, usize::MAX, width, &mut table, None));
    drop(Session::open(dir, 64, width, &mut table, None));
    seen.table = table;
    seen
}
