//! A disk that fails, fills up, answers wrongly, and at a power cut loses what was not synced.
//!
//! The files are real ones, in memory. Beside them is kept what of them is not durable: at a power cut
//! some of that is undone, as chance has it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alluvium_lake::disk::{Disk, DiskOp};
use alluvium_testkit::history::Random;

/// What is to go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The power goes, before the operation is done or after it.
    PowerCut { done: bool },
    /// One operation fails; it may have been done.
    Error { done: bool },
    /// From here on there is no space, until some is made.
    Full,
}

/// An entry of a directory that is not durable.
#[derive(Debug)]
enum Unsynced {
    Added(PathBuf),
    /// Of what was there, a name is kept.
    Removed(PathBuf, PathBuf),
    Replaced(PathBuf, PathBuf),
}

#[derive(Debug, Default)]
struct State {
    graveyard: PathBuf,
    graves: u64,
    now_ms: u64,
    operations: u64,
    /// At which operation, counted from the beginning.
    planned: Option<(u64, Fault)>,
    is_off: bool,
    is_full: bool,
    /// A fault that was planned has come.
    has_failed: bool,
    /// Files whose content is not durable, and when they were begun, in milliseconds since 1970.
    unsynced: BTreeMap<PathBuf, u64>,
    /// By directory, in order.
    entries: BTreeMap<PathBuf, Vec<Unsynced>>,
    /// What a rename that is under way will leave.
    renaming: Option<Unsynced>,
    trace: Vec<String>,
}

pub(super) struct SimDisk {
    root: PathBuf,
    state: Mutex<State>,
}

fn time(ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms)
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl SimDisk {
    /// Of the files below `root`; removed ones are kept in `graveyard` as long as they may come back.
    pub(super) fn new(root: &Path, graveyard: &Path) -> Self {
        fs::create_dir_all(graveyard).unwrap();
        Self {
            root: root.to_owned(),
            state: Mutex::new(State {
                graveyard: graveyard.to_owned(),
                ..State::default()
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_now(&self, now_ms: i64) {
        self.state().now_ms = u64::try_from(now_ms).unwrap();
    }

    /// Plans a fault for the operation that comes after so many others.
    pub(super) fn plan(&self, after: u64, fault: Fault) {
        let mut state = self.state();
        state.planned = Some((state.operations + after + 1, fault));
    }

    /// Nothing goes wrong any more, and there is space.
    pub(super) fn heal(&self) {
        let mut state = self.state();
        state.planned = None;
        state.is_full = false;
    }

    /// Gives files that are being written the age they have by the simulated clock; others have it.
    pub(super) fn age_open_files(&self) {
        for (path, begun_ms) in &self.state().unsynced {
            if let Ok(file) = File::options().write(true).open(path) {
                file.set_modified(time(*begun_ms)).unwrap();
            }
        }
    }

    pub(super) fn is_off(&self) -> bool {
        self.state().is_off
    }

    /// Another program synced this directory.
    pub(super) fn was_synced(&self, dir: &Path) {
        self.state().entries.remove(dir);
    }

    pub(super) fn cut_power(&self) {
        self.state().is_off = true;
    }

    /// Whether something failed since this was last asked.
    pub(super) fn take_failed(&self) -> bool {
        std::mem::take(&mut self.state().has_failed)
    }

    /// What was done, for a person to read.
    pub(super) fn trace(&self) -> Vec<String> {
        self.state().trace.clone()
    }

    pub(super) fn note(&self, line: String) {
        // The directory is another each time.
        let root = self.root.display().to_string();
        self.state().trace.push(line.replace(&root, ""));
    }

    /// The power comes back. Of what was not durable, some is lost.
    pub(super) fn restore_power(&self, random: &mut Random) {
        let mut state = self.state();
        for (_, entries) in std::mem::take(&mut state.entries) {
            // Journals keep the order of a directory's entries, or they do not.
            let in_order = random.chance(50);
            let mut lost = random.chance(50);
            for entry in entries.iter().rev() {
                if !in_order {
                    lost = random.chance(50);
                } else if lost {
                    lost = random.chance(70);
                }
                if lost {
                    state.trace.push(format!("  lost {}", self.shown(entry)));
                    undo(entry);
                }
            }
        }
        for (path, _) in std::mem::take(&mut state.unsynced) {
            let Ok(file) = File::options().write(true).open(&path) else {
                continue;
            };
            file.set_modified(time(state.now_ms)).unwrap();
            let length = file.metadata().unwrap().len();
            if random.chance(70) {
                let left = random.below(length + 1);
                state.trace.push(format!("  torn {}", self.name(&path)));
                file.set_len(left).unwrap();
            }
        }
        state.is_off = false;
        state.planned = None;
        state.is_full = false;
    }

    fn name(&self, path: &Path) -> String {
        let path = path.strip_prefix(&self.root).unwrap_or(path);
        let name = path.display().to_string();
        // The kernel names them as it likes.
        match name.split_once("deletion_vector_") {
            Some((dir, _)) => format!("{dir}deletion vectors"),
            None => name,
        }
    }

    fn shown(&self, entry: &Unsynced) -> String {
        match entry {
            Unsynced::Added(path) => format!("added {}", self.name(path)),
            Unsynced::Removed(path, _) => format!("removed {}", self.name(path)),
            Unsynced::Replaced(path, _) => format!("replaced {}", self.name(path)),
        }
    }
}

fn undo(entry: &Unsynced) {
    match entry {
        Unsynced::Added(path) => {
            let _ = fs::remove_file(path);
        }
        Unsynced::Removed(path, kept) => {
            let _ = fs::hard_link(kept, path);
        }
        Unsynced::Replaced(path, kept) => {
            let _ = fs::remove_file(path);
            let _ = fs::hard_link(kept, path);
        }
    }
}

impl State {
    fn keep(&mut self, path: &Path) -> Option<PathBuf> {
        self.graves += 1;
        let kept = self.graveyard.join(self.graves.to_string());
        fs::hard_link(path, &kept).ok().map(|()| kept)
    }

    fn add(&mut self, entry: Unsynced) {
        let (Unsynced::Added(path) | Unsynced::Removed(path, _) | Unsynced::Replaced(path, _)) =
            &entry;
        let dir = path.parent().unwrap_or(path).to_owned();
        self.entries.entry(dir).or_default().push(entry);
    }

    /// A fault that is due at the operation that begins now: `done` is whether it comes after it.
    fn fault(&mut self, done: bool) -> io::Result<()> {
        let Some((at, fault)) = self.planned else {
            return Ok(());
        };
        if at != self.operations {
            return Ok(());
        }
        let error = match fault {
            Fault::PowerCut { done: when } if when == done => {
                self.is_off = true;
                gone()
            }
            Fault::Error { done: when } if when == done => gone(),
            Fault::Full if !done => {
                self.is_full = true;
                return Ok(());
            }
            _ => return Ok(()),
        };
        self.planned = None;
        self.has_failed = true;
        Err(error)
    }
}

impl Disk for SimDisk {
    fn before(&self, op: &DiskOp<'_>) -> io::Result<()> {
        let mut state = self.state();
        if state.is_off {
            return Err(gone());
        }
        state.operations += 1;
        let (kind, path) = match op {
            DiskOp::CreateDir(path) => ("mkdir", path),
            DiskOp::Create(path) => ("create", path),
            DiskOp::Write(path) => ("write", path),
            DiskOp::Sync(path) => ("sync", path),
            DiskOp::SyncDir(path) => ("sync dir", path),
            DiskOp::Link(_, path) => ("link", path),
            DiskOp::Rename(_, path) => ("rename", path),
            DiskOp::Remove(path) => ("remove", path),
        };
        let line = format!("  {} {kind} {}", state.operations, self.name(path));
        state.trace.push(line);
        state.fault(false)?;
        if state.is_full && matches!(op, DiskOp::Create(_) | DiskOp::Write(_)) {
            state.has_failed = true;
            return Err(io::Error::from_raw_os_error(28));
        }
        match op {
            DiskOp::Remove(path) => {
                if let Some(kept) = state.keep(path) {
                    state.add(Unsynced::Removed(path.to_path_buf(), kept));
                }
            }
            DiskOp::Rename(_, to) => {
                let entry = match state.keep(to) {
                    Some(kept) => Unsynced::Replaced(to.to_path_buf(), kept),
                    None => Unsynced::Added(to.to_path_buf()),
                };
                state.renaming = Some(entry);
            }
            _ => {}
        }
        Ok(())
    }

    fn after(&self, op: &DiskOp<'_>) -> io::Result<()> {
        let mut state = self.state();
        match op {
            DiskOp::Create(path) => {
                let now_ms = state.now_ms;
                state.unsynced.insert(path.to_path_buf(), now_ms);
                state.add(Unsynced::Added(path.to_path_buf()));
            }
            DiskOp::Sync(path) => {
                state.unsynced.remove(*path);
                let file = File::options().write(true).open(path)?;
                file.set_modified(time(state.now_ms))?;
            }
            DiskOp::SyncDir(dir) => {
                state.entries.remove(*dir);
            }
            DiskOp::Link(from, to) => {
                if let Some(begun_ms) = state.unsynced.get(*from).copied() {
                    state.unsynced.insert(to.to_path_buf(), begun_ms);
                }
                state.add(Unsynced::Added(to.to_path_buf()));
            }
            DiskOp::Rename(from, to) => {
                if let Some(begun_ms) = state.unsynced.remove(*from) {
                    state.unsynced.insert(to.to_path_buf(), begun_ms);
                }
                if let Some(entry) = state.renaming.take() {
                    state.add(entry);
                }
            }
            DiskOp::Remove(path) => {
                state.unsynced.remove(*path);
            }
            DiskOp::CreateDir(_) | DiskOp::Write(_) => {}
        }
        state.fault(true)
    }
}
