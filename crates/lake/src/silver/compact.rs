//! Files of silver written anew as one, while the stream goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alluvium_change::surroundings::now_ms;
use alluvium_change::{Error, Result, code};

use super::Silver;
use super::index::Index;
use super::segments::{Origin, Segment, file_name, is_unsorted};
use crate::maintain::{Candidate, Clustering, Input, Order, Output, choose};
use crate::{Cleaned, CleaningJob, Compacted, CompactionJob, CompactionSettings, MergeMode};

static TICKETS: AtomicU64 = AtomicU64::new(1);

/// A number nobody had.
pub(super) fn ticket() -> u64 {
    TICKETS.fetch_add(1, Ordering::Relaxed)
}

impl Silver {
    /// Work for another thread, when there are files to be written anew. One at a time: what came of
    /// it goes to [`Self::adopt_compaction`].
    ///
    /// None while changes are staged, and before everything that the initial copy is reconciled with
    /// has come.
    ///
    /// # Errors
    /// Too many files were written since the table was opened: a bug.
    pub fn take_compaction_job(
        &mut self,
        settings: &CompactionSettings,
    ) -> Result<Option<CompactionJob>> {
        let settled = self.positions.is_settled();
        if !self.usable || self.poisoned || self.has_staged() || !settled {
            return Ok(None);
        }
        let segments: Vec<_> = self.segments.iter().collect();
        let clustering = self.clustering()?;
        let candidate = |segment: &Segment| Candidate {
            is_unsorted: is_unsorted(&segment.file.path, clustering.as_ref()),
            ..Candidate::of(&segment.file, segment.deleted.len(), true)
        };
        let candidates = segments.iter().map(|(_, segment)| candidate(segment));
        let candidates: Vec<Candidate> = candidates.collect();
        let retention = &self.lake.retention;
        let kept = retention.all_versions.max(retention.removed_files);
        let settings = settings.with_kept(self.kept.within(kept, now_ms()), &candidates);
        let target_bytes = self.lake.target_file_bytes;
        let Some(chosen) = choose(&candidates, Order::Any, target_bytes, &settings) else {
            return Ok(None);
        };
        let inputs: Vec<Input> = chosen
            .into_iter()
            .filter_map(|at| segments.get(at))
            .map(|(id, segment)| Input::of(*id, &segment.file, &segment.deleted))
            .collect();
        let name = file_name(Origin::of(clustering.as_ref()));
        self.compacting = Some(name.clone());
        let output = Output {
            dir: self.dir.clone(),
            name,
            segment: self.segments.reserve()?,
            columns: Arc::clone(&self.columns),
            clustering,
            ticket: self.ticket,
        };
        Ok(Some(CompactionJob::new(inputs, output, &self.lake)))
    }

    /// The order of the rows of a file that is written anew; none while the lake lacks a column of it.
    pub(super) fn clustering(&self) -> Result<Option<Arc<Clustering>>> {
        let by = Clustering::wanted(&self.settings.cluster_by, &self.schema, &self.columns);
        match by {
            Ok(by) => Ok(by),
            Err(error) if error.is(&code::CONFIG_VALUE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts the file in the place of those it was made of, in one commit that changes no row; rows
    /// deleted since the job was taken come with it. Answers the Delta version, or none when the files
    /// are others now: then nothing is done.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn adopt_compaction(&mut self, done: Compacted) -> Result<Option<u64>> {
        self.check_usable()?;
        if self.has_staged() {
            return Err(Error::bug("a compaction was adopted over staged changes"));
        }
        let same_columns = Arc::ptr_eq(&done.output.columns, &self.columns);
        if done.output.ticket != self.ticket || !same_columns {
            return Ok(None);
        }
        let live = |input: &Input| self.segments.get(input.segment);
        let replaced = |input: &Input| live(input).is_some_and(|s| s.file.path != input.path);
        // A file that is gone may have been written anew, not emptied.
        let copies = self.settings.merge_mode != MergeMode::DeletionVectors;
        if copies && done.inputs.iter().any(|i| live(i).is_none()) {
            return Ok(None);
        }
        if done.inputs.iter().any(replaced) || !done.inputs.iter().any(|i| live(i).is_some()) {
            return Ok(None);
        }
        self.guarded(|silver| silver.replace_files(done).map(Some))
    }

    /// Work for another thread: what no version needs any more. `before` is what came of the last one.
    #[must_use]
    pub fn cleaning_job(&self, before: Option<Cleaned>) -> CleaningJob {
        let staged = self.segments.iter().filter(|(_, s)| !s.committed);
        let staged = staged.map(|(_, segment)| segment.file.path.clone());
        let staged = staged.chain(self.stage.names());
        let staged = staged.chain(self.compacting.clone()).collect();
        CleaningJob::of(&self.table, &self.lake, staged, before)
    }

    fn replace_files(&mut self, mut done: Compacted) -> Result<u64> {
        let segments = &self.segments;
        let now = |input: &Input| Some(segments.get(input.segment)?.deleted.as_ref());
        let (moves, late) = done.moves(now);
        let inputs = done.inputs.iter().map(|input| input.segment);
        let inputs: Vec<_> = inputs.filter(|id| segments.get(*id).is_some()).collect();
        let removes = inputs.iter().filter_map(|id| segments.get(*id));
        let removes: Vec<_> = removes.map(|segment| &segment.file).collect();
        let bytes = removes.iter().map(|file| file.size_bytes);
        let replaced_bytes = bytes.filter_map(|bytes| u64::try_from(bytes).ok()).sum();
        self.committing = true;
        let (version, file) = done.commit(&mut self.table, removes, &late)?;
        self.committing = false;
        self.compacting = None;
        self.kept.add(now_ms(), replaced_bytes);
        let id = done.output.segment;
        self.segments.replace(&inputs, id, file, late);
        match &mut self.index {
            Index::Keyed(index) => index.moved(moves),
            Index::Rows(index) => index.moved(moves),
            Index::None => {}
        }
        self.index_committed();
        Ok(version)
    }
}
