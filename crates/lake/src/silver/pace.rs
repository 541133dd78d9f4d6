//! When silver is committed: at once, or later where each commit is dear. What comes in between is staged,
//! and bronze has it.
//!
//! Dear are [copies on write](super::rewrite), and deletion vectors where rows change everywhere: a commit writes
//! the whole vector of each file that it touches, and old versions keep theirs.

use std::time::{Duration, Instant};

use alluvium_change::surroundings::instant;
use alluvium_change::{Lsn, Result};

use super::Silver;
use crate::MergeMode;
use crate::log::Descriptor;

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

    /// After a commit that wrote these deletion vectors: versions within the retention keep them all, so the next
    /// one waits until they take no more than other kept files may, or as long as the settings allow.
    pub(super) fn pause_after(&mut self, vectors: &[Descriptor]) {
        self.paused_until = None;
        if vectors.is_empty() || self.settings.longest_pause.is_zero() {
            return;
        }
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
