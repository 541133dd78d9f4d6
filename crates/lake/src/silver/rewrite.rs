//! Copy on write: files of which rows were deleted are written anew without them, within the commit that
//! deletes them. No reader needs to know deletion vectors then.
//!
//! Each commit costs as much as the files that it touches, so a table commits now and then: what comes in
//! between is staged, and bronze has it.

use std::time::{Duration, Instant};

use alluvium_change::surroundings::instant;
use alluvium_change::{Error, Lsn, Result, code};

use super::Silver;
use super::index::Index;
use super::segments::{Segment, file_name};
use crate::MergeMode;
use crate::key_index::SegmentId;
use crate::log::Descriptor;
use crate::maintain::{CompactionJob, Input, Output};

/// Files of such a table are this small, as each is written again for one deleted row.
const FILE_BYTES: u64 = 32 << 20;
/// By which a table says that it may have deletion vectors.
pub(super) const VECTORS_PROPERTY: &str = "delta.enableDeletionVectors";

/// Space for deletion vectors of old versions that a table of any size has.
const LEAST_ROOM_BYTES: u64 = 256 << 20;

/// Time from one commit that writes so many bytes of vectors to the next, so that those of the time that
/// versions are `kept` take no more than `kept_percent` of the table.
fn pause(vector_bytes: u64, live_bytes: u64, kept: Duration, kept_percent: u32) -> Duration {
    let room = u128::from(live_bytes.max(LEAST_ROOM_BYTES)) * u128::from(kept_percent) / 100;
    let millis = kept.as_millis() * u128::from(vector_bytes) / room.max(1);
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// What waits for its commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    position: Lsn,
    since: Instant,
    /// Nothing of a transaction beyond the position is staged: it can be committed now.
    is_whole: bool,
}

impl Silver {
    /// As [`Self::commit`], at once or when it is time: see [`MergeMode::CopyOnWrite`] and
    /// [`SilverSettings::longest_pause`](crate::SilverSettings::longest_pause).
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_in_time(&mut self, position: Lsn) -> Result<Option<u64>> {
        let has_vectors = self.settings.merge_mode == MergeMode::DeletionVectors;
        if has_vectors && self.paused_until.is_none_or(|until| until <= instant()) {
            return self.commit(position);
        }
        self.check_usable()?;
        if !self.has_staged() {
            return Ok(None);
        }
        let since = self.held.map_or_else(instant, |held| held.since);
        let is_whole = true;
        self.held = Some(Held {
            position,
            since,
            is_whole,
        });
        if self.held_until().is_some_and(|until| until <= instant()) {
            return self.commit_held();
        }
        Ok(None)
    }

    /// Commits what waits for it, unless a part of a transaction is staged on it.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_held(&mut self) -> Result<Option<u64>> {
        match self.held {
            Some(held) if held.is_whole => self.commit(held.position),
            _ => Ok(None),
        }
    }

    /// Moves the position, over what waits for its commit or in a commit that does nothing else.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn reach(&mut self, position: Lsn) -> Result<()> {
        match &mut self.held {
            Some(held) if held.is_whole => {
                held.position = held.position.max(position);
                Ok(())
            }
            _ => self.set_position(position).map(|_| ()),
        }
    }

    /// When what waits is to be committed, if it can be.
    #[must_use]
    pub fn held_until(&self) -> Option<Instant> {
        let held = self.held.filter(|held| held.is_whole)?;
        match self.settings.merge_mode {
            MergeMode::CopyOnWrite { commit_every } => Some(held.since + commit_every),
            MergeMode::DeletionVectors => Some(self.paused_until.unwrap_or(held.since)),
        }
    }

    /// Each version within the retention keeps the whole deletion vectors of all files that its commit
    /// touched: where rows change everywhere that is a bit or two bytes for each row of the table, many times what
    /// changed. So many commits are made that they take no more than other kept files may.
    pub(super) fn pause_after(&mut self, vectors: &[Descriptor]) {
        let bytes: u64 = vectors.iter().map(Descriptor::size_bytes).sum();
        let live = self
            .segments
            .iter()
            .map(|(_, segment)| segment.file.size_bytes);
        let live: u64 = live.filter_map(|bytes| u64::try_from(bytes).ok()).sum();
        let retention = &self.lake.retention;
        let kept = retention.all_versions.max(retention.removed_files);
        let pause = pause(bytes, live, kept, self.lake.compaction.kept_percent);
        let pause = pause.min(self.settings.longest_pause);
        self.paused_until = (!pause.is_zero()).then(|| instant() + pause);
    }

    /// More is staged than what waits.
    pub(super) fn stages_more(&mut self) {
        if let Some(held) = &mut self.held {
            held.is_whole = false;
        }
    }

    /// Since when changes wait for their commit.
    #[must_use]
    pub fn held_since(&self) -> Option<Instant> {
        self.held.map(|held| held.since)
    }

    pub(super) fn held_position(&self) -> Option<Lsn> {
        self.held.map(|held| held.position)
    }

    /// Copies on write: before a commit, when all files are closed.
    pub(super) fn rewrite_thinned(&mut self) -> Result<()> {
        let mut files: Vec<(SegmentId, Option<Lsn>, u64)> = Vec::new();
        for (id, segment) in self.segments.thinned() {
            files.push((id, segment.snapshot, live_bytes(segment)));
        }
        // Of one snapshot each, as the name of the new file says.
        files.sort_unstable_by_key(|(id, snapshot, _)| (*snapshot, *id));
        while let Some((first, snapshot, mut bytes)) = files.first().copied() {
            let mut together = vec![first];
            for (id, other, more) in files.iter().skip(1) {
                if *other != snapshot || bytes + more > self.lake.target_file_bytes {
                    break;
                }
                bytes += more;
                together.push(*id);
            }
            files.drain(..together.len());
            self.rewrite_as_one(&together, snapshot)?;
        }
        Ok(())
    }

    fn rewrite_as_one(&mut self, ids: &[SegmentId], snapshot: Option<Lsn>) -> Result<()> {
        let inputs: Vec<Input> = ids
            .iter()
            .filter_map(|id| Some((*id, self.segments.get(*id)?)))
            .map(|(id, segment)| Input::of(id, &segment.file, &segment.deleted))
            .collect();
        let segment = self.segments.reserve()?;
        let output = Output {
            dir: self.dir.clone(),
            name: file_name(snapshot),
            segment,
            columns: self.columns.clone(),
            ticket: self.ticket,
        };
        let written = CompactionJob::new(inputs, output, &self.lake).run(&|_| true)?;
        let mut written = written.ok_or_else(|| Error::bug("a file was given up"))?;
        let segments = &self.segments;
        let (moves, _) =
            written.moves(|input| segments.get(input.segment).map(|s| s.deleted.as_ref()));
        let file = written.take_file()?;
        self.segments
            .rewrite(&self.dir, ids, segment, file, snapshot);
        match &mut self.index {
            Index::Keyed(index) => index.moved(moves),
            Index::Rows(index) => index.moved(moves),
            Index::None => {}
        }
        Ok(())
    }

    /// A table keeps to the mode in which it was made.
    pub(super) fn check_mode(&self) -> Result<()> {
        let properties = self.table.properties();
        let has_vectors = properties.get(VECTORS_PROPERTY).map(String::as_str) == Some("true");
        let wants_vectors = self.settings.merge_mode == MergeMode::DeletionVectors;
        if has_vectors == wants_vectors {
            return Ok(());
        }
        let (is, dir) = (
            if has_vectors { "with" } else { "without" },
            self.dir.display(),
        );
        Err(Error::new(
            &code::CONFIG_VALUE,
            format!("merge_mode of table \"{}\" was changed", self.owner.table),
        )
        .with_detail(format!("\"{dir}\" was made {is} deletion vectors"))
        .with_hint(format!(
            "move \"{dir}\" away: the next run copies the table again, in the new mode"
        )))
    }
}

/// What its live rows take, about.
fn live_bytes(segment: &Segment) -> u64 {
    let bytes = u128::try_from(segment.file.size_bytes).unwrap_or_default();
    let share = bytes * u128::from(segment.live_rows()) / u128::from(segment.file.num_rows.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// Size at which files are closed.
pub(super) fn target_file_bytes(mode: MergeMode, target_bytes: u64) -> u64 {
    match mode {
        MergeMode::DeletionVectors => target_bytes,
        MergeMode::CopyOnWrite { .. } => target_bytes.min(FILE_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_old_versions_take_no_more_than_their_share() {
        let (hour_ms, minute_ms) = (3_600_000, 60_000);
        let (mib, gib) = (1_u64 << 20, 1_u64 << 30);
        let millis = |bytes, live, kept_ms, percent| {
            pause(bytes, live, Duration::from_millis(kept_ms), percent).as_millis()
        };
        assert_eq!(millis(0, gib, hour_ms, 100), 0);
        // 1024 commits in an hour.
        assert_eq!(millis(mib, gib, hour_ms, 100), 3_515);
        assert_eq!(millis(mib, gib, hour_ms, 200), 1_757);
        assert_eq!(millis(mib, gib, minute_ms, 100), 58);
        assert_eq!(millis(mib, 0, hour_ms, 100), 14_062);
        assert_eq!(millis(u64::MAX, gib, hour_ms, 0), u64::MAX.into());
    }
}
