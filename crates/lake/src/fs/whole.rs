//! A file that is seen whole or not at all, also after a power cut.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use alluvium_change::Result;

use super::disk::{DiskOp, perform};
use super::{Link, create_new, discard, io_error, link_new, sync_dir, sync_file};

/// What ends the names of files that are not whole yet.
pub(crate) const TEMPORARY_SUFFIX: &str = ".tmp";

/// Written under another name, which it loses with [`Self::publish`]. Dropped before, it is removed.
#[derive(Debug)]
pub(crate) struct WholeFile {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    end: u64,
    is_published: bool,
}

impl WholeFile {
    /// Begins the file that will be at `path`; one at a time.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!("_{name}{TEMPORARY_SUFFIX}"));
        // A crash left it.
        if temporary.exists() {
            super::remove(&temporary)?;
        }
        let file = create_new(&temporary).map_err(|e| io_error("create", &temporary, e))?;
        Ok(Self {
            path: path.to_owned(),
            temporary,
            file,
            end: 0,
            is_published: false,
        })
    }

    /// Appends to it.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        perform(DiskOp::Write(&self.temporary), || {
            self.file.write_all_at(bytes, self.end)
        })
        .map_err(|e| io_error("write", &self.path, e))?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Makes it durable, and gives it its name: in the place of another file, or only where there is
    /// none.
    pub(crate) fn publish(mut self, replaces: bool) -> Result<Link> {
        let failed = |e: io::Error| io_error("write", &self.path, e);
        sync_file(&self.file, &self.temporary).map_err(failed)?;
        let made = if replaces {
            perform(DiskOp::Rename(&self.temporary, &self.path), || {
                fs::rename(&self.temporary, &self.path)
            })
            .map_err(failed)?;
            Link::Made
        } else {
            link_new(&self.temporary, &self.path)?
        };
        self.is_published = true;
        if let Some(dir) = self.path.parent() {
            sync_dir(dir)?;
        }
        Ok(made)
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if !self.is_published {
            discard(&self.temporary);
        }
    }
}
