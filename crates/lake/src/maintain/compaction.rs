//! Writing several files as one, less their deleted rows: in their order, or [sorted](super::sort).
//!
//! Runs on any thread. Memory: an open Parquet writer, as for changes, and one batch of rows; sorted, as
//! much again twice, and four bytes a row.

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

use super::cluster::Clustering;
use super::sort::Sorter;

const BATCH_ROWS: usize = 8192;
/// Rows of a row group of a sorted file: a reader passes over whole ones.
const SORTED_GROUP_ROWS: usize = 128 << 10;

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
    /// The order of its rows; none: that of the files, one after the other.
    pub(crate) clustering: Option<Arc<Clustering>>,
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
    /// The place of each row in the file, as they were read; none: in that order.
    places: Option<Vec<u32>>,
}

impl CompactionJob {
    pub(crate) fn new(inputs: Vec<Input>, output: Output, settings: &LakeSettings) -> Self {
        let row_group_rows = match &output.clustering {
            Some(_) => SORTED_GROUP_ROWS,
            None => settings.row_group_rows,
        };
        let settings = LakeSettings {
            // A row group takes as many rows as memory allows, not one batch.
            share_from_rows: usize::MAX,
            row_group_rows,
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
        failpoint::hit("compact.before_write");
        let Some((file, places)) = self.write(rest)? else {
            return Ok(None);
        };
        failpoint::hit("compact.after_write");
        Ok(Some(Compacted {
            inputs: self.inputs,
            output: self.output,
            file: Some(file),
            places,
        }))
    }

    fn write(&self, rest: &dyn Fn(Worked) -> bool) -> Result<Option<(NewFile, Option<Vec<u32>>)>> {
        let Output {
            dir, name, columns, ..
        } = &self.output;
        let mut writer = DataFileWriter::create(dir, name.clone(), columns, &self.settings)?;
        let keys = self.output.clustering.as_ref();
        let keys = keys.map(|by| by.keys(columns)).transpose()?;
        let most_bytes = self.settings.staging_bytes;
        let mut sorter = keys.map(|keys| Sorter::new(dir, columns, keys, most_bytes));
        for input in &self.inputs {
            if !self.read(input, &mut writer, sorter.as_mut(), rest)? {
                return Ok(None);
            }
        }
        let places = match sorter {
            None => None,
            Some(sorter) => match self.write_sorted(sorter, &mut writer, rest)? {
                None => return Ok(None),
                places => places,
            },
        };
        Ok(Some((writer.finish()?, places)))
    }

    /// The live rows of one file. False: not to go on.
    fn read(
        &self,
        input: &Input,
        writer: &mut DataFileWriter,
        mut sorter: Option<&mut Sorter>,
        rest: &dyn Fn(Worked) -> bool,
    ) -> Result<bool> {
        let path = self.output.dir.join(&input.path);
        let mut first: u64 = 0;
        let mut began = Instant::now();
        for batch in open_file(&path, &self.output.columns, BATCH_ROWS, None)? {
            let batch = batch?;
            let end = first + batch.num_rows() as u64;
            let live = live_rows(&batch, first, &input.deleted)?;
            first = end;
            match &mut sorter {
                None => writer.write(&live)?,
                Some(sorter) => sorter.push(&live)?,
            }
            let worked = Worked {
                took: began.elapsed(),
                bytes: input.bytes_of(batch.num_rows()) + input.bytes_of(live.num_rows()),
            };
            if !rest(worked) {
                return Ok(false);
            }
            began = Instant::now();
        }
        if first != input.num_rows {
            let said = input.num_rows;
            let what = format!("it has {first} rows where the log says {said}");
            return Err(corrupt(&path, what));
        }
        Ok(true)
    }

    /// The rows in their order. Answers the place of each, as they were read; none: not to go on.
    fn write_sorted(
        &self,
        sorter: Sorter,
        writer: &mut DataFileWriter,
        rest: &dyn Fn(Worked) -> bool,
    ) -> Result<Option<Vec<u32>>> {
        let mut places = vec![0; usize::try_from(self.rows()).unwrap_or(usize::MAX)];
        let mut began = Instant::now();
        let mut next: u32 = 0;
        for sorted in sorter.finish()? {
            let (rows, numbers) = sorted?;
            writer.write(&rows)?;
            for number in numbers {
                let place = places.get_mut(number as usize);
                *place.ok_or_else(|| Error::bug("more rows were sorted than there are"))? = next;
                next += 1;
            }
            let worked = Worked {
                took: began.elapsed(),
                // They were counted when they were read.
                bytes: 0,
            };
            if !rest(worked) {
                return Ok(None);
            }
            began = Instant::now();
        }
        Ok(Some(places))
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
            let moved = self.moved(input, base);
            match now(input) {
                None if moved.places.is_none() => {
                    late.insert_range(base..base + moved.kept);
                }
                None => late.extend((0..moved.kept).map(|nth| u64::from(moved.nth(nth)))),
                Some(deleted) => {
                    let since = deleted - input.deleted.as_ref();
                    late.extend(since.iter().map(|row| u64::from(moved.row(row))));
                    moves.push(moved);
                }
            }
            base += input.kept();
        }
        (moves, late)
    }

    /// Where the rows of a file went, before which so many others were read.
    fn moved(&self, input: &Input, base: u64) -> Moved {
        let (kept, first) = (input.kept(), usize::try_from(base).unwrap_or(usize::MAX));
        let places = self.places.as_ref().map(|places| {
            let own = places.iter().skip(first).copied();
            own.take(usize::try_from(kept).unwrap_or(usize::MAX))
                .collect()
        });
        Moved {
            from: input.segment,
            to: self.output.segment,
            base: u32::try_from(base).unwrap_or(u32::MAX),
            gone: Arc::clone(&input.deleted),
            kept,
            places,
        }
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
