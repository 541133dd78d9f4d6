//! One `alluvium run` per lake: an advisory lock on a file in the lake, which says who holds it.
//!
//! The kernel drops the lock when the process ends, however it ends: there is no stale lock.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use alluvium_change::{Error, Result, code};

/// The lock's file in the lake.
const FILE_NAME: &str = ".alluvium.lock";

/// Held while the pipeline works on the lake.
#[derive(Debug)]
pub struct LakeLock {
    _file: File,
}

impl LakeLock {
    /// Takes the lake.
    ///
    /// # Errors
    /// Another process holds it (`AL-LAKE-005`, naming it), or the lake cannot be written.
    pub fn take(lake: &Path, project: &Path) -> Result<Self> {
        let path = lake.join(FILE_NAME);
        let cannot = |error: std::io::Error| {
            Error::new(
                &code::LAKE_READ_ONLY,
                format!("cannot write to lake \"{}\"", lake.display()),
            )
            .with_detail(format!("{}: {error}", path.display()))
        };
        std::fs::create_dir_all(lake).map_err(cannot)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(cannot)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                return Err(Error::new(
                    &code::LAKE_LOCKED,
                    format!("lake \"{}\" is in use by another alluvium", lake.display()),
                )
                .with_detail(format!("held by {}", holder.trim())));
            }
            Err(TryLockError::Error(error)) => return Err(cannot(error)),
        }
        let holder = Self::own_name(project) + "\n";
        file.set_len(0).map_err(cannot)?;
        file.rewind().map_err(cannot)?;
        file.write_all(holder.as_bytes()).map_err(cannot)?;
        Ok(Self { _file: file })
    }

    /// What others are told of this process while it holds the lake.
    #[must_use]
    pub fn own_name(project: &Path) -> String {
        format!(
            "process {} for project {}",
            std::process::id(),
            project.display()
        )
    }

    /// Who works on the lake now, if anybody.
    #[must_use]
    pub fn holder(lake: &Path) -> Option<String> {
        let mut file = File::open(lake.join(FILE_NAME)).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).ok()?;
                Some(holder.trim().to_owned())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_the_lake() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(LakeLock::holder(dir.path()), None);
        let lock = LakeLock::take(dir.path(), Path::new("/p/alluvium.toml")).unwrap();
        let error = LakeLock::take(dir.path(), Path::new("/q/alluvium.toml")).unwrap_err();
        assert!(error.is(&code::LAKE_LOCKED));
        assert!(error.detail().unwrap().contains("/p/alluvium.toml"));
        assert!(LakeLock::holder(dir.path()).is_some());
        drop(lock);
        assert!(LakeLock::take(dir.path(), Path::new("/q/alluvium.toml")).is_ok());
    }
}
