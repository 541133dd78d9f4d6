//! Two-phase commit: a transaction that is prepared is kept as one that still runs, until it is
//! committed or rolled back.
//!
//! Nothing of it is durable here, so the server has to send it again after a restart; it does so from
//! a position at or before the prepare record alone. Invariant: [`StreamedTransactions::held_from`]
//! never passes the prepare record of a transaction that is undecided, or whose commit is not
//! durable.

use std::collections::HashSet;

use alluvium_change::{Error, Lsn, Result, code};

use super::{Described, Running, StreamedTransactions, out_of_order, unbegun};
use crate::capture::{Assembler, Step};
use crate::pgoutput::{
    self, CommitPrepared, Message, Prepare, RelationOids, RollbackPrepared, segment_xid,
};

/// A transaction that is neither committed nor rolled back.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) running: Running,
    gid: String,
    prepare_lsn: Lsn,
}

/// A transaction that was committed.
#[derive(Debug)]
pub(super) struct Decided {
    prepare_lsn: Lsn,
    /// End of the commit record.
    end_lsn: Lsn,
}

/// A prepared transaction between its `BeginPrepare` and its `Prepare`. Its messages name no
/// transaction, and rely on what was described to whole transactions before.
#[derive(Debug)]
pub(super) struct Preparing {
    xid: u32,
    /// Relations whose description is among its records.
    described: HashSet<u32>,
}

impl StreamedTransactions {
    /// From where on the server must be able to send again, given that all is durable up to
    /// `flushed`; `None` when there is no such place.
    pub fn held_from(&mut self, flushed: Lsn) -> Option<Lsn> {
        self.decided.retain(|decided| decided.end_lsn > flushed);
        let undecided = self.prepared.values().map(|prepared| prepared.prepare_lsn);
        let decided = self.decided.iter().map(|decided| decided.prepare_lsn);
        undecided.chain(decided).min()
    }

    pub(super) fn begin_prepare(&mut self, prepare: &Prepare<'_>) -> Result<()> {
        self.begin(prepare.xid)?;
        self.preparing = Some(Preparing {
            xid: prepare.xid,
            described: HashSet::new(),
        });
        Ok(())
    }

    /// Keeps a message of the prepared transaction that is coming in, as if it had come in a segment.
    pub(super) fn keep_preparing(&mut self, data: &[u8]) -> Result<()> {
        let Some(xid) = self.preparing.as_ref().map(|preparing| preparing.xid) else {
            return Err(Error::bug("nothing is being prepared"));
        };
        match data.first() {
            Some(b'I' | b'U' | b'D' | b'T') => {
                with_relations(data, |oid| self.describe_in_prepared(xid, oid))?;
                self.push_of(xid, data, &[])
            }
            Some(b'R') => {
                let Some(oid) = segment_xid(data) else {
                    return pgoutput::decode(data).map(drop);
                };
                // The server counts it as sent to whole transactions too. The assembler gets it when
                // one of those relies on it: should this transaction have altered the table, none
                // does, and the catalog does not show that shape yet.
                self.describe(data);
                self.owed.insert(oid);
                if let Some(preparing) = &mut self.preparing {
                    preparing.described.remove(&oid);
                }
                self.describe_in_prepared(xid, oid)
            }
            Some(b'O' | b'Y' | b'M') => Ok(()),
            Some(b'P') => {
                let Message::Prepare(prepare) = pgoutput::decode(data)? else {
                    return Err(Error::bug("a letter of the protocol was misread"));
                };
                if prepare.xid != xid {
                    return Err(unbegun());
                }
                self.preparing = None;
                self.hold(&prepare)
            }
            _ => Err(out_of_order(
                "a message came that a prepared transaction cannot hold",
            )),
        }
    }

    /// Puts the description of a relation that holds now before what relies on it: it may be another
    /// one when the transaction is committed.
    fn describe_in_prepared(&mut self, xid: u32, oid: u32) -> Result<()> {
        let preparing = self.preparing.as_mut();
        if !preparing.is_some_and(|preparing| preparing.described.insert(oid)) {
            return Ok(());
        }
        match self.described.get(&oid).cloned() {
            Some(Described { arrival, message }) => {
                self.push_of(xid, &message, &arrival.to_be_bytes())
            }
            None => Ok(()),
        }
    }

    /// Keeps a message that came outside a segment as one within, and `more` behind it.
    fn push_of(&mut self, xid: u32, message: &[u8], more: &[u8]) -> Result<()> {
        let Some((letter, body)) = message.split_at_checked(1) else {
            return Err(Error::bug("an empty message is kept"));
        };
        self.push(xid, &[letter, &xid.to_be_bytes(), body, more])
    }

    /// All of a transaction has come, and it is prepared.
    pub(super) fn hold(&mut self, prepare: &Prepare<'_>) -> Result<()> {
        let Some(mut running) = self.running.remove(&prepare.xid) else {
            return Err(unbegun());
        };
        let before = running.memory_bytes();
        running.records.shrink();
        self.memory_bytes = self.memory_bytes + running.memory_bytes() - before;
        let prepared = Prepared {
            running,
            gid: prepare.gid.to_owned(),
            prepare_lsn: prepare.prepare_lsn,
        };
        self.prepared.insert(prepare.xid, prepared);
        Ok(())
    }

    fn take_prepared(&mut self, xid: u32, gid: &str) -> Result<Option<Prepared>> {
        let Some(prepared) = self.prepared.remove(&xid) else {
            return Ok(None);
        };
        if prepared.gid != gid {
            return Err(out_of_order(
                "a prepared transaction was decided under another name",
            ));
        }
        self.memory_bytes -= prepared.running.memory_bytes();
        Ok(Some(prepared))
    }

    pub(super) fn commit_prepared(
        &mut self,
        committed: &CommitPrepared<'_>,
        assembler: &mut Assembler,
    ) -> Result<Step> {
        let CommitPrepared { commit, xid, gid } = *committed;
        let Some(prepared) = self.take_prepared(xid, gid)? else {
            // Prepared before the stream's start, and committed before what is known to be durable:
            // the server was told of its prepare record when this commit was durable.
            if commit.end_lsn <= self.durable {
                tracing::debug!(gid, xid, "a prepared transaction is durable already");
                return Ok(Step::Continue);
            }
            return Err(not_sent(committed, self.durable));
        };
        self.decided.push(Decided {
            prepare_lsn: prepared.prepare_lsn,
            end_lsn: commit.end_lsn,
        });
        self.replay_at(prepared.running, commit, xid, assembler)
    }

    /// Also comes for transactions that were prepared before the stream's start, of which nothing was
    /// sent.
    pub(super) fn rollback_prepared(&mut self, rolled_back: &RollbackPrepared<'_>) -> Result<()> {
        self.take_prepared(rolled_back.xid, rolled_back.gid)
            .map(drop)
    }

    /// Feeds a change of a whole transaction; before it, relations whose description came with a
    /// prepared one.
    pub(super) fn change_after_owed(
        &mut self,
        data: &[u8],
        assembler: &mut Assembler,
    ) -> Result<Step> {
        let mut owed = None;
        with_relations(data, |oid| {
            if self.owed.contains(&oid) {
                owed = Some(oid);
            }
            Ok(())
        })?;
        if let Some(oid) = owed
            && self.owed.remove(&oid)
            && let Some(described) = self.described.get(&oid)
        {
            self.waiting = Some(data.to_vec());
            return assembler.handle(&described.message);
        }
        assembler.handle(data)
    }
}

/// Calls `each` with the relations that a change outside a segment is of.
fn with_relations(data: &[u8], mut each: impl FnMut(u32) -> Result<()>) -> Result<()> {
    if data.first() != Some(&b'T') {
        // It stands where a segment has the xid.
        return segment_xid(data).map_or(Ok(()), each);
    }
    let truncate = pgoutput::decode(data)?;
    RelationOids::of(&truncate)
        .as_slice()
        .iter()
        .try_for_each(|oid| each(*oid))
}

fn not_sent(committed: &CommitPrepared<'_>, durable: Lsn) -> Error {
    Error::new(
        &code::PG_PREPARED_LOST,
        format!(
            "prepared transaction \"{}\" was committed, and the server did not send what it did",
            committed.gid
        ),
    )
    .with_detail(format!(
        "it was committed at {}; the lake is known to be complete up to {durable}",
        committed.commit.commit_lsn
    ))
}
