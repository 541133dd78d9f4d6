//! Where a simulation stands between the lake and its disk.
//!
//! Unless one was registered, each operation costs one atomic load more.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// What is asked of the disk.
#[derive(Debug, Clone, Copy)]
pub enum DiskOp<'a> {
    CreateDir(&'a Path),
    /// A new, empty file.
    Create(&'a Path),
    Write(&'a Path),
    /// The file's content.
    Sync(&'a Path),
    /// The directory's entries.
    SyncDir(&'a Path),
    /// A file gets a second name.
    Link(&'a Path, &'a Path),
    /// In the place of what has the second name.
    Rename(&'a Path, &'a Path),
    Remove(&'a Path),
}

impl DiskOp<'_> {
    /// What it is done to.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::CreateDir(path)
            | Self::Create(path)
            | Self::Write(path)
            | Self::Sync(path)
            | Self::SyncDir(path)
            | Self::Link(_, path)
            | Self::Rename(_, path)
            | Self::Remove(path) => path,
        }
    }
}

/// A disk that may fail.
pub trait Disk: Send + Sync {
    /// Before the operation, which is not done where this fails.
    ///
    /// # Errors
    /// The one the operation is to have.
    fn before(&self, op: &DiskOp<'_>) -> io::Result<()>;

    /// After the operation was done.
    ///
    /// # Errors
    /// The one to be reported all the same.
    fn after(&self, op: &DiskOp<'_>) -> io::Result<()>;
}

type Registered = Vec<(PathBuf, Arc<dyn Disk>)>;

static ANY: AtomicBool = AtomicBool::new(false);
static DISKS: RwLock<Registered> = RwLock::new(Vec::new());

fn disks(change: impl FnOnce(&mut Registered)) {
    change(&mut DISKS.write().unwrap_or_else(PoisonError::into_inner));
}

/// From here on `disk` is asked about everything below `root`.
pub fn register(root: &Path, disk: Arc<dyn Disk>) {
    ANY.store(true, Ordering::Relaxed);
    disks(|disks| disks.push((root.to_owned(), disk)));
}

/// The disk of `root` is the real one again.
pub fn unregister(root: &Path) {
    disks(|disks| disks.retain(|(other, _)| other != root));
}

/// Does `work`, unless a simulated disk has other ideas.
pub(crate) fn perform<T>(op: DiskOp<'_>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let disk = find(op.path());
    if let Some(disk) = &disk {
        disk.before(&op)?;
    }
    let done = work()?;
    if let Some(disk) = &disk {
        disk.after(&op)?;
    }
    Ok(done)
}

fn find(path: &Path) -> Option<Arc<dyn Disk>> {
    if !ANY.load(Ordering::Relaxed) {
        return None;
    }
    let disks = DISKS.read().unwrap_or_else(PoisonError::into_inner);
    let found = disks.iter().find(|(root, _)| path.starts_with(root));
    found.map(|(_, disk)| Arc::clone(disk))
}
