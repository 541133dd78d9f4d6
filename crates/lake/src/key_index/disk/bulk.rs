//! Building an index on disk from nothing: sorted pieces, then one merge.

use std::sync::{Mutex, PoisonError};

use alluvium_change::Result;

use super::files::Home;
use super::merged::{SameKey, merged};
use super::run::{Entry, Run, RunWriter};
use super::{DiskIndex, sorted};
use crate::key_index::{Key, KeyWidth};

/// Pieces merged at once.
const MOST_PIECES: usize = 64;

/// An index on disk being filled by several threads.
pub(crate) struct BulkRuns {
    home: Home,
    width: KeyWidth,
    memory_bytes: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: Vec<(Key, u64)>,
    runs: Vec<Run>,
}

impl BulkRuns {
    pub(crate) fn new(home: Home, width: KeyWidth, memory_bytes: usize) -> Self {
        Self {
            home,
            width,
            memory_bytes,
            state: Mutex::default(),
        }
    }

    /// Adds entries; false when one of the keys was there, as far as that is seen already.
    pub(crate) fn add(&self, entries: &[(Key, u64)]) -> Result<bool> {
        let most = (self.memory_bytes / 2 / size_of::<Entry>()).max(16);
        let full = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.waiting.extend_from_slice(entries);
            (state.waiting.len() >= most).then(|| std::mem::take(&mut state.waiting))
        };
        match full {
            Some(entries) => self.write(entries),
            None => Ok(true),
        }
    }

    fn write(&self, entries: Vec<(Key, u64)>) -> Result<bool> {
        let sorted = sorted(self.width, entries);
        let same = |pair: &[Entry]| matches!(pair, [one, other] if one.key == other.key);
        if sorted.windows(2).any(same) {
            return Ok(false);
        }
        let mut writer = RunWriter::create(&self.home, self.width, sorted.len() as u64)?;
        for entry in sorted {
            writer.push(entry)?;
        }
        let run = writer.finish()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.runs.push(run);
        Ok(true)
    }

    /// The index; none when a key is in it twice.
    pub(crate) fn finish(self) -> Result<Option<DiskIndex>> {
        let waiting = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut state.waiting)
        };
        if !waiting.is_empty() && !self.write(waiting)? {
            return Ok(None);
        }
        let state = self
            .state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let mut runs = state.runs;
        while runs.len() > 1 {
            let rest = runs.split_off(runs.len().min(MOST_PIECES));
            let pieces: Vec<&Run> = runs.iter().collect();
            let entries = pieces.iter().map(|run| run.entries).sum();
            let mut writer = RunWriter::create(&self.home, self.width, entries)?;
            let single = merged(&pieces, (0, None), SameKey::IsDouble, &mut |entry| {
                writer.push(entry)
            })?;
            if !single {
                return Ok(None);
            }
            for run in &runs {
                self.home.remove(&run.name)?;
            }
            runs = rest;
            runs.push(writer.finish()?);
        }
        DiskIndex::of_runs(self.home, self.width, self.memory_bytes, runs).map(Some)
    }
}
