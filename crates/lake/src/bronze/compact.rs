//! Small files of bronze written anew as one: neighbours, so that changes stay in order.

use std::sync::Arc;

use alluvium_change::{Error, Result};
use roaring::RoaringTreemap;

use super::Bronze;
use super::columns::Columns;
use super::reader::lsns_of;
use crate::log::LiveFile;
use crate::maintain::{Candidate, Input, Order, Output, choose};
use crate::{Cleaned, CleaningJob, Compacted, CompactionJob};

/// What of a file's changes counts for their order.
#[derive(Debug, Clone, Copy)]
struct Span {
    /// Its place in the list of files.
    at: usize,
    lowest: u64,
    highest: u64,
}

impl Bronze {
    /// Work for another thread, when there are files to be written anew. One at a time: what came of
    /// it goes to [`Self::adopt_compaction`].
    pub fn take_compaction_job(&mut self) -> Option<CompactionJob> {
        let fan_in = self.encoder.lake.compaction.small_files;
        if self.poisoned || !self.usable || self.files_since_compaction < fan_in {
            return None;
        }
        self.files_since_compaction = 0;
        let spans = spans(&self.files, &self.encoder.columns);
        let mut last: Option<u64> = None;
        let candidates: Vec<Candidate> = spans
            .iter()
            .filter_map(|span| {
                let file = self.files.get(span.at)?;
                let follows = last.is_none_or(|last| last < span.lowest);
                last = last.max(Some(span.highest));
                Some(Candidate {
                    size_bytes: u64::try_from(file.size_bytes).unwrap_or_default(),
                    num_rows: file.num_rows,
                    deleted_rows: 0,
                    follows,
                })
            })
            .collect();
        let chosen = choose(&candidates, Order::Kept, &self.encoder.lake)?;
        let nothing = Arc::new(RoaringTreemap::new());
        let inputs: Vec<Input> = chosen
            .iter()
            .filter_map(|at| self.files.get(spans.get(*at)?.at))
            .map(|file| Input {
                segment: 0,
                path: file.path.clone(),
                num_rows: file.num_rows,
                deleted: Arc::clone(&nothing),
            })
            .collect();
        let name = super::file_name();
        self.compacting = Some(name.clone());
        let output = Output {
            dir: self.dir.clone(),
            name,
            segment: 0,
            columns: Arc::clone(&self.encoder.columns.schema),
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
            bronze.files_since_compaction = bronze.files.len();
            Ok(Some(version))
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

/// The files with changes of the stream, in order; those with copied rows are left as they are.
fn spans(files: &[LiveFile], columns: &Columns) -> Vec<Span> {
    let mut spans: Vec<Span> = files
        .iter()
        .enumerate()
        .filter_map(|(at, file)| {
            let (lowest, highest) = lsns_of(file, columns)?;
            Some(Span {
                at,
                lowest,
                highest,
            })
        })
        .collect();
    spans.sort_by_key(|span| (span.lowest, span.highest));
    spans
}
