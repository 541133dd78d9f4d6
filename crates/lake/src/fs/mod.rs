//! The file system as a database needs it: what is reported written survives a power cut.
//!
//! Stands below `log` and `write`. Invariant: a function that returns `Ok` with `fsync` on has
//! made its effect durable, directory entry included. Everything that changes a file of the lake
//! passes here, and through [`disk`], where a simulation lets it fail.

pub mod disk;
mod whole;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use alluvium_change::{Error, Result, code, surroundings};
use uuid::Uuid;

use disk::{DiskOp, perform};
pub(crate) use whole::{TEMPORARY_SUFFIX, WholeFile};

/// What an I/O error on `path` means to a user.
pub(crate) fn io_error(action: &str, path: &Path, error: io::Error) -> Error {
    let code = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => &code::LAKE_FULL,
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => &code::LAKE_READ_ONLY,
        _ => &code::LAKE_IO,
    };
    Error::new(code, format!("could not {action} \"{}\"", path.display()))
        .with_detail(error.to_string())
        .with_source(error)
}

/// A file of the lake that should be there and whole, and is not.
pub(crate) fn corrupt(path: &Path, detail: impl Into<String>) -> Error {
    Error::new(
        &code::LAKE_CORRUPT,
        format!(
            "the lake's file \"{}\" is missing or damaged",
            path.display()
        ),
    )
    .with_detail(detail)
}

/// Makes entries of the directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    perform(DiskOp::SyncDir(dir), || {
        File::open(dir).and_then(|dir| dir.sync_all())
    })
    .map_err(|e| io_error("sync the directory", dir, e))
}

/// Begins a new file.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    perform(DiskOp::Create(path), || {
        File::options().write(true).create_new(true).open(path)
    })
}

/// Makes what was written to a file durable, not its name.
pub(crate) fn sync_file(file: &File, path: &Path) -> io::Result<()> {
    perform(DiskOp::Sync(path), || file.sync_data())
}

/// Removes a file, unless it is gone already.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match perform(DiskOp::Remove(path), || fs::remove_file(path)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path, e)),
        _ => Ok(()),
    }
}

/// Removes a file that nobody needs. One that stays is found by the next vacuum.
pub(crate) fn discard(path: &Path) {
    let _ = remove(path);
}

/// A name that no one else has.
pub(crate) fn new_uuid() -> Uuid {
    surroundings::simulated_chance().map_or_else(Uuid::new_v4, Uuid::from_u128)
}

/// Creates a directory and its parents.
pub(crate) fn create_dir(dir: &Path, fsync: bool) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    perform(DiskOp::CreateDir(dir), || fs::create_dir_all(dir))
        .map_err(|e| io_error("create the directory", dir, e))?;
    if fsync && let Some(parent) = dir.parent() {
        sync_dir(parent)?;
    }
    Ok(())
}

/// Writes a new file. The caller syncs the directory.
pub(crate) fn write_new(path: &Path, bytes: &[u8], fsync: bool) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = create_new(path)?;
        perform(DiskOp::Write(path), || file.write_all(bytes))?;
        if fsync {
            sync_file(&file, path)?;
        }
        Ok(())
    };
    write().map_err(|e| {
        // A half-written file is of no use to anyone.
        discard(path);
        io_error("write", path, e)
    })
}

/// How [`link_new`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    Made,
    /// The name is taken by another file.
    Taken,
}

/// Gives `from` the name `to`, unless that is taken, and removes the name `from`: put-if-absent.
pub(crate) fn link_new(from: &Path, to: &Path) -> Result<Link> {
    let linked = perform(DiskOp::Link(from, to), || fs::hard_link(from, to));
    let outcome = match linked {
        Ok(()) => Ok(Link::Made),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            // A retried link (NFS) finds its own earlier success.
            if same_file(from, to) {
                Ok(Link::Made)
            } else {
                Ok(Link::Taken)
            }
        }
        Err(e) => Err(io_error("link", to, e)),
    };
    discard(from);
    outcome
}

/// Gives the file `from` the name `to`, too. It counts as written just now.
pub(crate) fn link_also(from: &Path, to: &Path) -> Result<()> {
    let linked = perform(DiskOp::Link(from, to), || {
        File::options()
            .write(true)
            .open(from)?
            .set_modified(SystemTime::UNIX_EPOCH + now())?;
        fs::hard_link(from, to)
    });
    match linked {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && same_file(from, to) => Ok(()),
        linked => linked.map_err(|e| io_error("link", to, e)),
    }
}

/// Since 1970.
fn now() -> Duration {
    Duration::from_millis(u64::try_from(surroundings::now_ms()).unwrap_or_default())
}

/// Removes a table: its log from the newest version on, so that what a crash leaves is an earlier state
/// of it, and then all else.
pub(crate) fn remove_table(dir: &Path, fsync: bool) -> Result<()> {
    for part in [dir.join("_delta_log"), dir.to_owned()] {
        let mut names = match fs::read_dir(&part) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            entries => entries
                .and_then(|entries| {
                    entries
                        .map(|entry| entry.map(|entry| entry.path()))
                        .collect::<io::Result<Vec<_>>>()
                })
                .map_err(|e| io_error("read", &part, e))?,
        };
        names.sort_unstable();
        for path in names.iter().rev().filter(|path| !path.is_dir()) {
            remove(path)?;
        }
        if fsync {
            sync_dir(&part)?;
        }
    }
    // What is left is empty, and in nobody's way.
    let _ = fs::remove_dir(dir.join("_delta_log")).and_then(|()| fs::remove_dir(dir));
    Ok(())
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => a.ino() == b.ino() && a.dev() == b.dev(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn a_taken_name_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second, name) = (
            dir.path().join("1"),
            dir.path().join("2"),
            dir.path().join("name"),
        );
        write_new(&first, b"first", true).unwrap();
        write_new(&second, b"second", true).unwrap();
        assert_eq!(link_new(&first, &name).unwrap(), Link::Made);
        assert_eq!(link_new(&second, &name).unwrap(), Link::Taken);
        assert_eq!(fs::read(&name).unwrap(), b"first");
        assert!(!first.exists() && !second.exists());
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let full = io_error(
            "write",
            Path::new("x"),
            io::Error::from_raw_os_error(libc::ENOSPC),
        );
        assert!(full.is(&code::LAKE_FULL));
        let read_only = io_error(
            "write",
            Path::new("x"),
            io::Error::from_raw_os_error(libc::EROFS),
        );
        assert!(read_only.is(&code::LAKE_READ_ONLY));
    }
}
