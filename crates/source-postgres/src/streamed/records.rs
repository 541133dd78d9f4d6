//! The messages of one transaction in the order they came: the older ones in a file, the younger
//! ones in memory.
//!
//! Invariant: what was pushed is read back, in order, wherever the border lies. The file is not
//! synced: after a crash the server sends the transaction again.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use alluvium_change::{Error, Result};

use super::spill_error;

/// Small enough to be written without a pause that anyone notices, large enough for few writes.
const CHUNK_BYTES: usize = 64 * 1024;
const READ_BYTES: usize = 256 * 1024;
/// Of a record's length, in front of it.
const LENGTH_BYTES: usize = 4;

/// A file that goes away with its owner.
#[derive(Debug)]
struct SpillFile {
    path: PathBuf,
    file: File,
}

impl SpillFile {
    fn create(path: &Path) -> Result<Self> {
        let open = || {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(path)
        };
        let file = open().map_err(|error| spill_error("create", path, &error))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), error = %error, "a spill file stays");
        }
    }
}

/// Records being written. A record is never split over two chunks.
#[derive(Debug)]
pub(super) struct Records {
    path: PathBuf,
    file: Option<SpillFile>,
    chunks: VecDeque<Vec<u8>>,
    memory_bytes: usize,
    spilled_bytes: u64,
}

impl Records {
    /// Records that go to `path` when [`Self::spill`] is called.
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            chunks: VecDeque::new(),
            memory_bytes: 0,
            spilled_bytes: 0,
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Bytes in the file.
    pub(super) fn spilled_bytes(&self) -> u64 {
        self.spilled_bytes
    }

    /// Adds a record that consists of `parts`.
    pub(super) fn push(&mut self, parts: &[&[u8]]) -> Result<()> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let written =
            u32::try_from(length).map_err(|_| Error::bug("a message is longer than 4 GiB"))?;
        let whole = LENGTH_BYTES + length;
        let fits = |chunk: &Vec<u8>| chunk.capacity() - chunk.len() >= whole;
        if !self.chunks.back().is_some_and(fits) {
            let chunk = Vec::with_capacity(whole.max(CHUNK_BYTES));
            self.memory_bytes += chunk.capacity();
            self.chunks.push_back(chunk);
        }
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.extend_from_slice(&written.to_be_bytes());
            for part in parts {
                chunk.extend_from_slice(part);
            }
        }
        Ok(())
    }

    /// Moves the oldest chunk in memory to the file.
    pub(super) fn spill(&mut self) -> Result<()> {
        let Some(chunk) = self.chunks.pop_front() else {
            return Ok(());
        };
        self.memory_bytes -= chunk.capacity();
        let spill = match &mut self.file {
            Some(spill) => spill,
            None => {
                tracing::info!(
                    path = %self.path.display(),
                    "a running transaction is larger than its share of memory: the rest goes to disk"
                );
                self.file.insert(SpillFile::create(&self.path)?)
            }
        };
        spill
            .file
            .write_all(&chunk)
            .map_err(|error| spill_error("write", &self.path, &error))?;
        self.spilled_bytes += chunk.len() as u64;
        Ok(())
    }

    /// Gives back what the youngest chunk has not used, when no more is likely to come for a while.
    pub(super) fn shrink(&mut self) {
        if let Some(chunk) = self.chunks.back_mut() {
            let before = chunk.capacity();
            chunk.shrink_to_fit();
            self.memory_bytes = self.memory_bytes + chunk.capacity() - before;
        }
    }

    /// Ends the writing.
    pub(super) fn read(mut self) -> Result<RecordReader> {
        if let Some(spill) = &mut self.file {
            spill
                .file
                .rewind()
                .map_err(|error| spill_error("read", &self.path, &error))?;
        }
        Ok(RecordReader {
            file: self.file,
            chunks: self.chunks,
            buffer: Vec::new(),
            start: 0,
            bytes: 0,
        })
    }
}

/// Reads records once, and gives back their memory and disk meanwhile and at the end.
#[derive(Debug)]
pub(super) struct RecordReader {
    file: Option<SpillFile>,
    chunks: VecDeque<Vec<u8>>,
    buffer: Vec<u8>,
    /// Where the next record begins in the buffer.
    start: usize,
    bytes: u64,
}

impl RecordReader {
    /// Bytes of records gone through so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next record; stays the next until [`Self::advance`].
    pub(super) fn peek(&mut self) -> Result<Option<&[u8]>> {
        while self.next_length().is_none() {
            if !self.fill()? {
                return Ok(None);
            }
        }
        let length = self.next_length().unwrap_or_default();
        let start = self.start + LENGTH_BYTES;
        Ok(self.buffer.get(start..start + length))
    }

    pub(super) fn advance(&mut self) {
        if let Some(length) = self.next_length() {
            self.start += LENGTH_BYTES + length;
            self.bytes += (LENGTH_BYTES + length) as u64;
        }
    }

    /// Of the next record, when all of it is in the buffer.
    fn next_length(&self) -> Option<usize> {
        let (length, rest) = self.buffer.get(self.start..)?.split_first_chunk()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        (rest.len() >= length).then_some(length)
    }

    /// Brings more into the buffer; false at the end.
    fn fill(&mut self) -> Result<bool> {
        self.buffer.drain(..self.start);
        self.start = 0;
        if let Some(spill) = &mut self.file {
            // At least as much again as is there, so that a long record is not read in many steps.
            let wanted = READ_BYTES.max(self.buffer.len()) as u64;
            let read = (&mut spill.file)
                .take(wanted)
                .read_to_end(&mut self.buffer)
                .map_err(|error| spill_error("read", &spill.path, &error))?;
            if read > 0 {
                return Ok(true);
            }
            if !self.buffer.is_empty() {
                let cut = std::io::ErrorKind::UnexpectedEof.into();
                return Err(spill_error("read", &spill.path, &cut));
            }
            self.file = None;
        }
        match self.chunks.pop_front() {
            Some(chunk) => {
                self.buffer = chunk;
                Ok(true)
            }
            None => Ok(false),
        }
    }
}
