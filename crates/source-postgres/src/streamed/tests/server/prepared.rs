//! Transactions that are prepared, and decided later.

use alluvium_change::Lsn;

use super::{ALTERED, Server, Txn};
use crate::pgoutput::{Commit, CommitPrepared, Message, Prepare, RollbackPrepared};

const TIME_MICROS: i64 = 1_000_000_000_000_000;

/// Keeps its locks.
#[derive(Debug)]
pub(in super::super) struct Held {
    pub(super) txn: Txn,
    gid: String,
    prepare_end_lsn: Lsn,
}

impl Server {
    /// The least name that no undecided transaction has.
    fn free_gid(&self) -> String {
        let free = (0..).map(|n| format!("g{n}"));
        let mut free = free.filter(|gid| self.held.iter().all(|held| held.gid != *gid));
        free.next().unwrap()
    }

    pub(in super::super) fn prepare(&mut self, at: usize) {
        let gid = self.free_gid();
        let (prepare_lsn, end_lsn) = (self.lsn(), self.lsn());
        let prepare = Prepare {
            prepare_lsn,
            end_lsn,
            prepare_time_micros: TIME_MICROS,
            xid: self.txns[at].xid,
            gid: &gid,
        };
        if self.txns[at].streamed {
            // What it described is not counted as sent to others, nor forgotten.
            self.flush(at);
            self.put(&Message::StreamPrepare(prepare), None);
        } else {
            self.put(&Message::BeginPrepare(prepare), None);
            self.send(at, false);
            self.put(&Message::Prepare(prepare), None);
        }
        let txn = self.txns.remove(at);
        if txn.altered {
            self.invalidate(ALTERED);
        }
        self.held.push(Held {
            txn,
            gid,
            prepare_end_lsn: end_lsn,
        });
    }

    /// Commits or rolls back one of those that are held, if there is one.
    pub(in super::super) fn decide(&mut self, which: usize, commits: bool) {
        if self.held.is_empty() {
            return;
        }
        let Held {
            txn,
            gid,
            prepare_end_lsn,
        } = self.held.remove(which % self.held.len());
        let (commit_lsn, end_lsn) = (self.lsn(), self.lsn());
        let xid = txn.xid;
        if commits {
            let commit = Commit {
                commit_lsn,
                end_lsn,
                commit_time_micros: TIME_MICROS,
            };
            let gid = &gid;
            self.put(
                &Message::CommitPrepared(CommitPrepared { commit, xid, gid }),
                None,
            );
        } else {
            let rolled_back = RollbackPrepared {
                prepare_end_lsn,
                rollback_end_lsn: end_lsn,
                prepare_time_micros: TIME_MICROS,
                rollback_time_micros: TIME_MICROS,
                xid,
                gid: &gid,
            };
            self.put(&Message::RollbackPrepared(rolled_back), None);
        }
        if txn.altered {
            if commits {
                self.wide = txn.wide;
            }
            self.invalidate(ALTERED);
        }
        if commits {
            self.expect(txn, commit_lsn);
        }
    }
}
