//! Writing a run: entries become blocks, in order; fences, filter and footer follow.

use std::fs::File;
use std::sync::atomic::AtomicBool;

use alluvium_change::{Error, Result};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::files::Home;
use super::filter::Filter;
use super::run::{
    BLOCK_BYTES, BLOCK_ENTRIES_BYTES, CHECKSUM_BYTES, Entry, FOOTER_BYTES, MAGIC, Run, entry_bytes,
    per_block, word_bytes,
};
use crate::key_index::{Key, KeyWidth};

/// Written at once.
const WRITE_BYTES: usize = 1 << 20;

/// Entries being made into blocks.
pub(super) struct Blocks {
    width: KeyWidth,
    /// Blocks not written yet; the last one open.
    pub(super) bytes: Vec<u8>,
    in_block: usize,
    /// The number of the first block.
    first: u64,
    /// The order of each block's first key.
    pub(super) fences: Vec<u64>,
    last: Option<(u64, Key)>,
}

impl Blocks {
    pub(super) fn new(width: KeyWidth, first: u64) -> Self {
        Self {
            width,
            bytes: Vec::new(),
            in_block: 0,
            first,
            fences: Vec::new(),
            last: None,
        }
    }

    /// Blocks that so many entries fill.
    pub(super) fn for_entries(width: KeyWidth, entries: u64) -> u64 {
        entries.div_ceil(per_block(width) as u64)
    }

    /// Adds an entry, whose key comes after all before.
    pub(super) fn push(&mut self, entry: Entry) -> Result<()> {
        if self.last >= Some((entry.order, entry.key)) {
            return Err(Error::bug("entries of an index run are not sorted"));
        }
        self.last = Some((entry.order, entry.key));
        if self.in_block == 0 {
            self.fences.push(entry.order);
        }
        let key = entry.key.to_le_bytes();
        self.bytes
            .extend_from_slice(key.get(..self.width.bytes()).unwrap_or_default());
        self.bytes.extend_from_slice(&entry.place.to_le_bytes());
        self.in_block += 1;
        if self.in_block == per_block(self.width) {
            self.close();
        }
        Ok(())
    }

    /// Closes the open block, which may have fewer entries than others.
    pub(super) fn close(&mut self) {
        if self.in_block == 0 {
            return;
        }
        let start = self.bytes.len() - self.in_block * entry_bytes(self.width);
        self.bytes.resize(start + BLOCK_ENTRIES_BYTES, 0);
        self.bytes
            .extend_from_slice(&(self.in_block as u64).to_le_bytes());
        let number = self.first + self.fences.len() as u64 - 1;
        let block = self.bytes.get(start..).unwrap_or_default();
        let checksum = xxh3_64_with_seed(block, number);
        self.bytes.extend_from_slice(&checksum.to_le_bytes());
        self.in_block = 0;
    }
}

/// A run's file, while it has no end yet.
pub(super) struct RunFile<'a> {
    home: &'a Home,
    name: String,
    file: File,
    width: KeyWidth,
}

impl<'a> RunFile<'a> {
    pub(super) fn create(home: &'a Home, width: KeyWidth) -> Result<Self> {
        let name = format!("run-{}", crate::fs::new_uuid());
        let file = home.create(&name)?;
        Ok(Self {
            home,
            name,
            file,
            width,
        })
    }

    /// Writes whole blocks, the first of which has this number.
    pub(super) fn write_blocks(&self, first: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let at = first * BLOCK_BYTES as u64;
        self.home.write(&self.file, &self.name, bytes, at)
    }

    /// Writes the end, when all blocks are. The caller syncs, before a manifest names the run.
    pub(super) fn finish(self, entries: u64, fences: Vec<u64>, filter: &Filter) -> Result<Run> {
        let mut tail = word_bytes(&fences);
        tail.extend(word_bytes(filter.words()));
        let mut footer = Vec::with_capacity(FOOTER_BYTES);
        footer.extend_from_slice(MAGIC);
        for number in [
            self.width.bytes() as u64,
            entries,
            fences.len() as u64,
            filter.words().len() as u64,
            xxh3_64(&tail),
            0,
        ] {
            footer.extend_from_slice(&number.to_le_bytes());
        }
        let checksum = xxh3_64(&footer);
        debug_assert_eq!(footer.len() + CHECKSUM_BYTES, FOOTER_BYTES);
        footer.extend_from_slice(&checksum.to_le_bytes());
        tail.extend_from_slice(&footer);
        let blocks_bytes = fences.len() as u64 * BLOCK_BYTES as u64;
        self.home
            .write(&self.file, &self.name, &tail, blocks_bytes)?;
        Ok(Run {
            home: self.home.clone(),
            name: self.name,
            file: self.file,
            width: self.width,
            entries,
            checksum,
            bytes: blocks_bytes + tail.len() as u64,
            filter_words: filter.words().len(),
            fences,
            synced: AtomicBool::new(false),
        })
    }
}

/// Writes a run, entry by entry.
pub(super) struct RunWriter<'a> {
    file: RunFile<'a>,
    blocks: Blocks,
    entries: u64,
    filter: Filter,
    /// Blocks written.
    written: u64,
}

impl<'a> RunWriter<'a> {
    pub(super) fn create(home: &'a Home, width: KeyWidth, at_most: u64) -> Result<Self> {
        Ok(Self {
            file: RunFile::create(home, width)?,
            blocks: Blocks::new(width, 0),
            entries: 0,
            filter: Filter::new(usize::try_from(at_most).unwrap_or(usize::MAX)),
            written: 0,
        })
    }

    /// Adds an entry, whose key comes after all before.
    pub(super) fn push(&mut self, entry: Entry) -> Result<()> {
        self.blocks.push(entry)?;
        self.filter.insert(entry.order);
        self.entries += 1;
        if self.blocks.in_block == 0 && self.blocks.bytes.len() >= WRITE_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_blocks(self.written, &self.blocks.bytes)?;
        self.written = self.blocks.fences.len() as u64;
        self.blocks.bytes.clear();
        Ok(())
    }

    /// Writes what is left.
    pub(super) fn finish(mut self) -> Result<Run> {
        self.blocks.close();
        self.flush()?;
        self.file
            .finish(self.entries, self.blocks.fences, &self.filter)
    }
}
