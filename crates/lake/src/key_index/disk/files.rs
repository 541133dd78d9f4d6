//! The directory of one table's index files, and every write to it.
//!
//! Nothing here is needed: whatever is missing, torn or damaged costs a rebuild of the index. So
//! that it can be shown, each write passes one place, where tests cut the power.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use alluvium_change::{Error, Result, code};

use crate::fs as durable;

/// A table's index directory. Clones of it move together.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    dir: Arc<RwLock<PathBuf>>,
    fsync: bool,
    #[cfg(test)]
    pub(super) power: Option<std::sync::Arc<std::sync::atomic::AtomicI64>>,
}

impl Home {
    pub(crate) fn new(dir: PathBuf, fsync: bool) -> Self {
        Self {
            dir: Arc::new(RwLock::new(dir)),
            fsync,
            #[cfg(test)]
            power: None,
        }
    }

    /// Where it is, as long as the guard is held.
    fn dir(&self) -> RwLockReadGuard<'_, PathBuf> {
        self.dir.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Becomes the directory `to`, in the place of what is there.
    pub(crate) fn move_to(&self, to: &Path) -> Result<()> {
        let mut dir = self.dir.write().unwrap_or_else(PoisonError::into_inner);
        if dir.is_dir() {
            Self::new(to.to_owned(), self.fsync).wipe()?;
            fs::create_dir_all(to)
                .and_then(|()| fs::rename(dir.as_path(), to))
                .map_err(|e| durable::io_error("rename to", to, e))?;
        }
        to.clone_into(&mut dir);
        Ok(())
    }

    /// One write more. Under test, the one at which the power goes, and all after it, fail.
    fn step(&self) -> Result<()> {
        #[cfg(test)]
        if let Some(power) = &self.power
            && power.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) <= 0
        {
            return Err(Error::new(&code::LAKE_IO, "the power is gone"));
        }
        Ok(())
    }

    pub(super) fn create(&self, name: &str) -> Result<File> {
        let dir = self.dir();
        durable::create_dir(&dir, false)?;
        let path = dir.join(name);
        self.step()?;
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| durable::io_error("create", &path, e))
    }

    pub(super) fn write(&self, file: &File, name: &str, bytes: &[u8], at: u64) -> Result<()> {
        let path = self.path(name);
        if let Err(error) = self.step() {
            // A write that a crash cut leaves a part.
            let _ = file.write_all_at(bytes.get(..bytes.len() / 2).unwrap_or_default(), at);
            return Err(error);
        }
        file.write_all_at(bytes, at)
            .map_err(|e| durable::io_error("write", &path, e))
    }

    pub(super) fn sync(&self, file: &File, name: &str) -> Result<()> {
        self.step()?;
        if !self.fsync {
            return Ok(());
        }
        file.sync_data()
            .map_err(|e| durable::io_error("sync", &self.path(name), e))
    }

    pub(super) fn sync_dir(&self) -> Result<()> {
        self.step()?;
        if self.fsync {
            durable::sync_dir(&self.dir())?;
        }
        Ok(())
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.step()?;
        let dir = self.dir();
        let to = dir.join(to);
        fs::rename(dir.join(from), &to).map_err(|e| durable::io_error("rename to", &to, e))
    }

    pub(super) fn remove(&self, name: &str) -> Result<()> {
        self.step()?;
        let path = self.dir().join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(durable::io_error("remove", &path, e))
            }
            _ => Ok(()),
        }
    }

    /// Removes all files but those named.
    pub(super) fn keep_only(&self, names: &[&str]) -> Result<()> {
        let dir = self.dir().clone();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(durable::io_error("read", &dir, e)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| durable::io_error("read", &dir, e))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if !names.contains(&name.as_ref()) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Removes everything.
    pub(crate) fn wipe(&self) -> Result<()> {
        self.keep_only(&[])
    }
}

/// What makes the other files valid.
pub(super) const MANIFEST: &str = "manifest";

/// An index file that is not as it was written. Takes the manifest away, so that opening the table
/// again rebuilds the index.
pub(super) fn damaged(path: &Path, detail: impl Into<String>) -> Error {
    let _ = fs::remove_file(path.with_file_name(MANIFEST));
    Error::new(
        &code::LAKE_IO,
        format!("the key index file \"{}\" is damaged", path.display()),
    )
    .with_detail(detail)
    .with_hint("start again: the index is rebuilt from the table")
}
