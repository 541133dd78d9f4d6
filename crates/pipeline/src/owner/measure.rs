//! What an owner tells of its cuts and of how current its table is. Beside the work, never in it:
//! once for each cut or phase, nothing for each row.

use std::time::Duration;

use alluvium_change::{ChangeBatch, Lsn};

use super::TableOwner;
use super::ahead::Landing;
use crate::status::{Phase, StatusBoard, TableStatus, now_micros};

/// What is told of a cut, or of a part of one.
pub(super) struct Summary {
    pub(super) changes: usize,
    /// Commit LSN of the first change.
    pub(super) first: Option<Lsn>,
    /// When the newest of them was committed at the source.
    newest_micros: Option<i64>,
}

impl Summary {
    pub(super) fn of(landings: &[Landing<ChangeBatch>]) -> Self {
        let batches = || landings.iter().map(|landing| &landing.rows);
        Self {
            changes: batches().map(ChangeBatch::num_rows).sum(),
            first: batches()
                .filter_map(|batch| batch.commit_lsn.first().copied())
                .min(),
            newest_micros: batches()
                .filter_map(|batch| batch.commit_time_micros.last().copied())
                .max(),
        }
    }
}

impl TableOwner {
    /// Changes of a cut that are in bronze now, and in silver where the table is live; with the cut's
    /// last rows, how long its commit took.
    pub(super) fn note_cut(&mut self, summary: &Summary, committed: Option<Duration>) {
        self.newest_staged_micros = self.newest_staged_micros.max(summary.newest_micros);
        let newest = committed.and_then(|_| self.newest_staged_micros.take());
        let is_live = self.phase == Phase::Live;
        let table = self.table.schema.id.to_string();
        self.context.board.table(&table, |status| {
            status.changes += summary.changes as u64;
            let Some(took) = committed else {
                return;
            };
            let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            status.commits += 1;
            status.commit_micros_total += took;
            status.last_commit_micros = Some(took);
            if let (Some(newest), true) = (newest, is_live) {
                status.newest_commit_micros = Some(newest);
                status.commit_lag_ms = u64::try_from((now_micros() - newest) / 1000).ok();
            }
        });
    }
}

/// A table's phase. One that was live until now was current until now.
pub(super) fn note_phase(status: &mut TableStatus, phase: Phase) {
    if status.phase == Phase::Live && phase != Phase::Live {
        status.current_until_micros = Some(now_micros());
    }
    status.phase = phase;
}

/// Changes that bronze had kept are in silver now.
pub(super) fn note_caught_up(board: &StatusBoard, batch: &ChangeBatch) {
    let newest = batch.commit_time_micros.last().copied();
    board.table(&batch.table.id.to_string(), |status| {
        status.newest_commit_micros = status.newest_commit_micros.max(newest);
        status.current_until_micros = status.current_until_micros.max(newest);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_no_longer_live_was_current_until_then() {
        let mut status = TableStatus::default();
        note_phase(&mut status, Phase::CatchingUp);
        assert_eq!(status.current_until_micros, None, "it was never live");
        note_phase(&mut status, Phase::Live);
        let before = now_micros();
        note_phase(&mut status, Phase::Stopped);
        let stopped = status.current_until_micros;
        assert!(stopped.is_some_and(|at| at >= before), "{stopped:?}");
        note_phase(&mut status, Phase::Stopped);
        assert_eq!(status.current_until_micros, stopped);
    }
}
