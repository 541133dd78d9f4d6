//! How far the source may be told that everything is durable: after the owners, before the
//! standby status message.
//!
//! Invariant: [`Acknowledger::flushed`] never passes a cut that one of its tables has not made
//! durable, [`Acknowledger::acknowledge`] never passes that nor what the source must be able to send
//! again, and neither goes back. Pure.

use std::collections::VecDeque;

use alluvium_change::{Lsn, failpoint};

/// Names one cut of the stream.
pub(crate) type CutId = u64;

#[derive(Debug)]
struct OpenCut {
    id: CutId,
    /// What the source may forget once this cut and all before it are durable.
    end_lsn: Lsn,
    tables_left: usize,
}

/// Counts, for each cut in order, the tables that have yet to make it durable.
#[derive(Debug, Default)]
pub(crate) struct Acknowledger {
    next: CutId,
    open: VecDeque<OpenCut>,
    flushed: Lsn,
    /// What was durable before the source began to send some of it again.
    durable: Lsn,
    acknowledged: Lsn,
}

impl Acknowledger {
    /// Starts again where the source was last told. What is still said of earlier cuts means nothing
    /// any more: their numbers are not used again. More may be durable than the source was told.
    pub(crate) fn restart(&mut self, told: Lsn, durable: Lsn) {
        self.open.clear();
        self.flushed = told;
        self.acknowledged = told;
        self.durable = durable;
    }

    /// Opens a cut that ends at `end_lsn` and that `tables` tables have to make durable.
    pub(crate) fn open(&mut self, end_lsn: Lsn, tables: usize) -> CutId {
        let id = self.next;
        self.next += 1;
        self.open.push_back(OpenCut {
            id,
            end_lsn,
            tables_left: tables,
        });
        self.settle();
        id
    }

    /// One table has made its part of the cut durable (or is stopped, and no longer counts).
    pub(crate) fn done(&mut self, id: CutId) {
        if let Some(cut) = self.open.iter_mut().find(|cut| cut.id == id) {
            cut.tables_left = cut.tables_left.saturating_sub(1);
        }
        self.settle();
    }

    /// The source has nothing for us up to `end_lsn`: it may be acknowledged as soon as all open
    /// cuts are durable.
    pub(crate) fn idle_through(&mut self, end_lsn: Lsn) {
        match self.open.back_mut() {
            Some(last) => last.end_lsn = last.end_lsn.max(end_lsn),
            None => self.flushed = self.flushed.max(end_lsn),
        }
    }

    fn settle(&mut self) {
        while let Some(first) = self.open.front()
            && first.tables_left == 0
        {
            self.flushed = self.flushed.max(first.end_lsn);
            self.open.pop_front();
        }
    }

    /// Everything before this LSN is durable, and was received since the start.
    #[must_use]
    pub(crate) fn flushed(&self) -> Lsn {
        self.flushed
    }

    /// Everything before this LSN is durable, received since the start or before.
    #[must_use]
    pub(crate) fn durable(&self) -> Lsn {
        self.durable.max(self.flushed)
    }

    /// What the source may be told, when it must be able to send again what it has from `held` on.
    pub(crate) fn acknowledge(&mut self, held: Option<Lsn>) -> Lsn {
        let mut most = held.map_or(self.flushed, |held| held.min(self.flushed));
        if failpoint::is_planted("acknowledge.too_early") {
            most = self.open.back().map_or(most, |last| last.end_lsn);
        }
        self.acknowledged = self.acknowledged.max(most);
        self.acknowledged
    }

    /// Cuts that are not durable yet.
    #[must_use]
    pub(crate) fn open_cuts(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(flushed: Lsn) -> Acknowledger {
        let mut acknowledger = Acknowledger::default();
        acknowledger.restart(flushed, flushed);
        acknowledger
    }

    #[test]
    fn what_must_be_sent_again_is_not_acknowledged() {
        let mut acknowledger = started(Lsn(5));
        acknowledger.idle_through(Lsn(30));
        assert_eq!(acknowledger.acknowledge(Some(Lsn(20))), Lsn(20));
        assert_eq!(acknowledger.flushed(), Lsn(30));
        // One that was prepared before the stream's start comes late.
        assert_eq!(acknowledger.acknowledge(Some(Lsn(7))), Lsn(20));
        assert_eq!(acknowledger.acknowledge(Some(Lsn(40))), Lsn(30));
        acknowledger.restart(Lsn(20), Lsn(30));
        assert_eq!(acknowledger.acknowledge(None), Lsn(20));
        acknowledger.idle_through(Lsn(25));
        assert_eq!(acknowledger.durable(), Lsn(30), "it was before");
        acknowledger.idle_through(Lsn(35));
        assert_eq!(acknowledger.durable(), Lsn(35));
        assert_eq!(acknowledger.acknowledge(None), Lsn(35));
    }

    #[test]
    fn news_of_a_cut_from_before_a_restart_settles_no_other() {
        let mut acknowledger = started(Lsn(5));
        let before = acknowledger.open(Lsn(10), 1);
        acknowledger.restart(Lsn(5), Lsn(5));
        acknowledger.open(Lsn(10), 1);
        acknowledger.done(before);
        assert_eq!(
            (acknowledger.flushed(), acknowledger.open_cuts()),
            (Lsn(5), 1)
        );
    }

    #[test]
    fn a_later_cut_waits_for_an_earlier_one() {
        let mut acknowledger = started(Lsn(5));
        let first = acknowledger.open(Lsn(10), 2);
        let second = acknowledger.open(Lsn(20), 1);
        acknowledger.done(second);
        assert_eq!(acknowledger.flushed(), Lsn(5));
        acknowledger.done(first);
        assert_eq!(
            (acknowledger.flushed(), acknowledger.open_cuts()),
            (Lsn(5), 2)
        );
        acknowledger.done(first);
        assert_eq!(
            (acknowledger.flushed(), acknowledger.open_cuts()),
            (Lsn(20), 0)
        );
    }

    #[test]
    fn idle_progress_waits_for_open_cuts() {
        let mut acknowledger = started(Lsn(1));
        acknowledger.idle_through(Lsn(7));
        assert_eq!(acknowledger.flushed(), Lsn(7));
        let cut = acknowledger.open(Lsn(10), 1);
        acknowledger.idle_through(Lsn(30));
        assert_eq!(acknowledger.flushed(), Lsn(7));
        acknowledger.done(cut);
        assert_eq!(acknowledger.flushed(), Lsn(30));
        acknowledger.idle_through(Lsn(3));
        assert_eq!(acknowledger.flushed(), Lsn(30), "never goes back");
    }

    #[test]
    fn a_cut_without_tables_is_durable_at_once() {
        let mut acknowledger = started(Lsn(0));
        acknowledger.open(Lsn(10), 0);
        assert_eq!(acknowledger.flushed(), Lsn(10));
    }
}
