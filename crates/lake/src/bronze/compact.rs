//! Small files of bronze written anew as one: neighbours, so that changes stay in order.

use std::sync::Arc;

use alluvium_change::{Error, Lsn, Result};
use arrow::datatypes::SchemaRef;
use roaring::RoaringTreemap;

use super::Bronze;
use super::columns::Columns;
use super::reader::{lsns_of, newest_of};
use crate::log::{Commit, LiveFile};
use crate::maintain::{Candidate, Input, Order, Output, choose};
use crate::{Cleaned, CleaningJob, Compacted, CompactionJob, CompactionSettings};

impl Bronze {
    /// Work for another thread, when there are files to be written anew. One at a time: what came of
    /// it goes to [`Self::adopt_compaction`].
    pub fn take_compaction_job(&mut self, settings: &CompactionSettings) -> Option<CompactionJob> {
        if self.poisoned || !self.usable {
            return None;
        }
        let seen = self.compaction_seen == Some(*settings);
        if seen && self.files_since_compaction < settings.small_files {
            return None;
        }
        self.compaction_seen = Some(*settings);
        self.files_since_compaction = 0;
        let places = places(self.files.iter(), &self.encoder.columns);
        let candidates: Vec<Candidate> = places
            .iter()
            .filter_map(|(at, follows)| Some(Candidate::of(self.files.get(*at)?, 0, *follows)))
            .collect();
        let chosen = choose(
            &candidates,
            Order::Kept,
            self.encoder.lake.target_file_bytes,
            settings,
        )?;
        let nothing = Arc::new(RoaringTreemap::new());
        let inputs: Vec<Input> = chosen
            .iter()
            .filter_map(|at| self.files.get(places.get(*at)?.0))
            .map(|file| Input::of(0, file, &nothing))
            .collect();
        let name = super::file_name();
        self.compacting = Some(name.clone());
        let output = Output {
            dir: self.dir.clone(),
            name,
            segment: 0,
            columns: Arc::clone(&self.encoder.columns.schema),
            clustering: None,
            ticket: 0,
        };
        Some(CompactionJob::new(inputs, output, &self.encoder.lake))
    }

    /// Puts the file in the place of those it was made of, in one commit that changes no row. Answers
    /// the Delta version, or none when the files are others now: then nothing is done.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn adopt_compaction(&mut self, mut done: Compacted) -> Result<Option<u64>> {
        self.check_usable()?;
        let same_columns = Arc::ptr_eq(&done.output.columns, &self.encoder.columns.schema);
        let find = |input: &Input| self.files.iter().position(|file| file.path == input.path);
        let places: Option<Vec<usize>> = done.inputs.iter().map(find).collect();
        let (true, Some(mut places)) = (same_columns, places) else {
            return Ok(None);
        };
        places.sort_unstable();
        self.guarded(|bronze| {
            let removes = places.iter().filter_map(|at| bronze.files.get(*at));
            bronze.committing = true;
            let (version, file) =
                done.commit(&mut bronze.table, removes.collect(), &RoaringTreemap::new())?;
            bronze.committing = false;
            bronze.compacting = None;
            let first = places.first().copied();
            for at in places.iter().rev() {
                bronze.files.remove(*at);
            }
            let first = first.ok_or_else(|| Error::bug("a compaction of no files"))?;
            bronze.files.insert(first, file);
            // There may be more to do.
            bronze.compaction_seen = None;
            Ok(Some(version))
        })
    }

    /// Forgets changes, and copied rows, of before `before_micros` (microseconds since 1970, of the commit
    /// at the source, or of the copying), as far as all of a file is as old and not beyond `through`: one
    /// commit that removes files. Answers how many.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn forget(&mut self, before_micros: i64, through: Lsn) -> Result<usize> {
        self.check_usable()?;
        let columns = &self.encoder.columns;
        let is_old = |file: &&LiveFile| {
            let newest = newest_of(file, columns);
            newest.is_some_and(|(lsn, micros)| lsn <= through.0 && micros < before_micros)
        };
        let old: Vec<LiveFile> = self.files.iter().filter(is_old).cloned().collect();
        if old.is_empty() {
            return Ok(0);
        }
        self.guarded(|bronze| {
            bronze.table.commit(&Commit {
                removes: old.iter().collect(),
                ..Commit::default()
            })?;
            let is_gone = |file: &LiveFile| old.iter().any(|gone| gone.path == file.path);
            bronze.files.retain(|file| !is_gone(file));
            Ok(old.len())
        })
    }

    /// Work for another thread: what no version needs any more. `before` is what came of the last one.
    #[must_use]
    pub fn cleaning_job(&self, before: Option<Cleaned>) -> CleaningJob {
        let staged = self.changes.names().chain(self.copied.names());
        let staged = staged.chain(self.compacting.clone()).collect();
        CleaningJob::of(&self.table, &self.encoder.lake, staged, before)
    }
}

/// As [`places`], of the files of a table with these columns.
pub(crate) fn in_order<'a>(
    files: impl Iterator<Item = &'a LiveFile>,
    schema: &SchemaRef,
) -> Result<Vec<(usize, bool)>> {
    Ok(places(files, &Columns::of_table(Arc::clone(schema))?))
}

/// The files with changes of the stream, in order, by their places in the list; and whether all changes
/// of a file come after those of the files before it. Those with copied rows stay as they are.
fn places<'a>(files: impl Iterator<Item = &'a LiveFile>, columns: &Columns) -> Vec<(usize, bool)> {
    let mut spans: Vec<((u64, u64), usize)> = files
        .enumerate()
        .filter_map(|(at, file)| Some((lsns_of(file, columns)?, at)))
        .collect();
    spans.sort_unstable();
    let mut last: Option<u64> = None;
    let place = |((lowest, highest), at): ((u64, u64), usize)| {
        let follows = last.is_none_or(|last| last < lowest);
        last = last.max(Some(highest));
        (at, follows)
    };
    spans.into_iter().map(place).collect()
}
