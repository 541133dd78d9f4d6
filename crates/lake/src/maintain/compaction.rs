//! Writing several files as one, less their deleted rows, in order.
//!
//! Runs on any thread. Memory: an open Parquet writer, as for changes, and one batch of rows.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alluvium_change::{Error, Result, failpoint};
use arrow::datatypes::SchemaRef;
use roaring::RoaringTreemap;

use crate::LakeSettings;
use crate::fs::{self as durable, corrupt};
use crate::key_index::{Moved, SegmentId};
use crate::log::{Change, Commit, DeltaTable, LiveFile, NewFile};
use crate::write::{DataFileWriter, live_rows, loosen_bounds, open_file};

const BATCH_ROWS: usize = 8192;

/// A file to be written anew.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) segment: SegmentId,
    /// In the table's directory.
    pub(crate) path: String,
    pub(crate) num_rows: u64,
    pub(crate) size_bytes: u64,
    /// Rows that are left out.
    pub(crate) deleted: Arc<RoaringTreemap>,
}

impl Input {
    pub(crate) fn of(segment: SegmentId, file: &LiveFile, deleted: &Arc<RoaringTreemap>) -> Self {
        Self {
            segment,
            path: file.path.clone(),
            num_rows: file.num_rows,
            size_bytes: u64::try_from(file.size_bytes).unwrap_or_default(),
            deleted: Arc::clone(deleted),
        }
    }

    /// What so many of its rows take, about.
    fn bytes_of(&self, rows: usize) -> u64 {
        let bytes = u128::from(self.size_bytes) * rows as u128 / u128::from(self.num_rows.max(1));
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    fn kept(&self) -> u64 {
        self.num_rows.saturating_sub(self.deleted.len())
    }
}

/// The file that is to be written.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) dir: PathBuf,
    pub(crate) name: String,
    pub(crate) segment: SegmentId,
    pub(crate) columns: SchemaRef,
    /// Of the handle that asked for it, by which it knows its own.
    pub(crate) ticket: u64,
}

/// A part of the work that was done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Worked {
    pub took: Duration,
    /// Read and written, about.
    pub bytes: u64,
}

/// Files to be written as one.
#[derive(Debug)]
pub struct CompactionJob {
    inputs: Vec<Input>,
    output: Output,
    settings: LakeSettings,
}

/// One file in the place of several, not in the log yet. Dropped, it is removed.
#[derive(Debug)]
pub struct Compacted {
    pub(crate) inputs: Vec<Input>,
    pub(crate) output: Output,
    /// None once it was taken.
    file: Option<NewFile>,
}

impl CompactionJob {
    pub(crate) fn new(inputs: Vec<Input>, output: Output, settings: &LakeSettings) -> Self {
        let settings = LakeSettings {
            // A row group takes as many rows as memory allows, not one batch.
            share_from_rows: usize::MAX,
            ..settings.clone()
        };
        Self {
            inputs,
            output,
            settings,
        }
    }

    /// Rows that will be written.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.inputs.iter().map(Input::kept).sum()
    }

    /// Writes the file. After each batch `rest` is told what it took; it may sleep, and says whether to
    /// go on: otherwise nothing is left, and none comes back.
    ///
    /// # Errors
    /// `LAKE_CORRUPT` when a file cannot be read as the log describes it; the lake's own.
    pub fn run(self, rest: &dyn Fn(Worked) -> bool) -> Result<Option<Compacted>> {
        let Self {
            inputs,
            output,
            settings,
        } = self;
        failpoint::hit("compact.before_write");
        let name = output.name.clone();
        let mut writer = DataFileWriter::create(&output.dir, name, &output.columns, &settings)?;
        for input in &inputs {
            let path = output.dir.join(&input.path);
            let mut first: u64 = 0;
            let mut began = Instant::now();
            for batch in open_file(&path, &output.columns, BATCH_ROWS, None)? {
                let batch = batch?;
                let end = first + batch.num_rows() as u64;
                let live = live_rows(&batch, first, &input.deleted)?;
                first = end;
                writer.write(&live)?;
                let worked = Worked {
                    took: began.elapsed(),
                    bytes: input.bytes_of(batch.num_rows()) + input.bytes_of(live.num_rows()),
                };
                if !rest(worked) {
                    return Ok(None);
                }
                began = Instant::now();
            }
            if first != input.num_rows {
                let said = input.num_rows;
                let what = format!("it has {first} rows where the log says {said}");
                return Err(corrupt(&path, what));
            }
        }
        let file = writer.finish()?;
        failpoint::hit("compact.after_write");
        Ok(Some(Compacted {
            inputs,
            output,
            file: Some(file),
        }))
    }
}

impl Compacted {
    /// Where the rows went, of files that have any still, and which of the new file's were deleted
    /// meanwhile. `now` gives the deleted rows of a file as it is; None: all of them are gone.
    pub(crate) fn moves<'a>(
        &self,
        now: impl Fn(&Input) -> Option<&'a RoaringTreemap>,
    ) -> (Vec<Moved>, RoaringTreemap) {
        let mut moves = Vec::new();
        let mut late = RoaringTreemap::new();
        let mut base: u64 = 0;
        for input in &self.inputs {
            let kept = input.kept();
            match now(input) {
                None => {
                    late.insert_range(base..base + kept);
                }
                Some(deleted) => {
                    let since = deleted - input.deleted.as_ref();
                    for row in &since {
                        // Rows rise, but a rank is found in less time than it takes to write a row.
                        late.insert(base + row - input.deleted.rank(row));
                    }
                    moves.push(Moved {
                        from: input.segment,
                        to: self.output.segment,
                        base: u32::try_from(base).unwrap_or(u32::MAX),
                        gone: Arc::clone(&input.deleted),
                        kept,
                    });
                }
            }
            base += kept;
        }
        (moves, late)
    }

    /// The file, which is the caller's from here on.
    pub(crate) fn take_file(&mut self) -> Result<NewFile> {
        let taken = || Error::bug("a compacted file was taken twice");
        self.file.take().ok_or_else(taken)
    }

    /// Adds the file, less the rows `deleted`, and removes those that it stands for. From here on it
    /// is not ours to remove: the commit may be made even where this fails.
    pub(crate) fn commit(
        &mut self,
        table: &mut DeltaTable,
        removes: Vec<&LiveFile>,
        deleted: &RoaringTreemap,
    ) -> Result<(u64, LiveFile)> {
        let mut file = self.take_file()?;
        if !deleted.is_empty() {
            file.stats = loosen_bounds(&file.stats);
            file.deleted = Some(deleted.clone());
        }
        let commit = Commit {
            change: Change::Layout,
            adds: vec![file],
            removes,
            ..Commit::default()
        };
        failpoint::hit("compact.before_commit");
        let committed = table.commit(&commit)?;
        failpoint::hit("compact.after_commit");
        let vector = committed.adds.into_iter().next().flatten();
        let added = commit.adds.into_iter().next();
        let file = added.ok_or_else(|| Error::bug("a commit lost its file"))?;
        Ok((committed.version, file.into_live(vector)))
    }
}

impl Drop for Compacted {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            durable::discard(&self.output.dir.join(&file.path));
        }
    }
}
