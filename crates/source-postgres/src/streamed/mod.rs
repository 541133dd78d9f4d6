//! Transactions that the server sends before they are committed: those that still run, and those that
//! are prepared. After `replication`, before `capture`.
//!
//! ```text
//!           in a segment, ┐
//! XLogData ─┤ prepared    ┴► records of the transaction (memory, then a spill file) ┐ at its commit
//!           └ else ─────────────────────────────────────────────────────────────────┴► Assembler
//! ```
//!
//! Invariant: the assembler meets a transaction that was sent early exactly as one that was sent
//! at its commit: Begin, the changes of the sub-transactions that were not rolled back, Commit. It
//! meets a relation only right before a change that relies on it, so that the shape which a rolled
//! back `ALTER TABLE` gave it is never seen.

mod prepared;
mod records;
mod replay;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use alluvium_change::{Error, Lsn, Result, code, failpoint};

use self::prepared::{Decided, Prepared, Preparing};
use self::records::Records;
use self::replay::Replay;
use crate::capture::{Assembler, Step};
use crate::pgoutput::{self, Begin, Commit, Message, segment_xid};

/// A relation's description as it comes outside a segment, and when it came.
#[derive(Debug, Clone)]
struct Described {
    /// Counts descriptions, in the order of their arrival.
    arrival: u64,
    message: Vec<u8>,
}

/// A transaction that has not ended.
#[derive(Debug)]
struct Running {
    records: Records,
    /// Sub-transactions that were rolled back.
    aborted: HashSet<u32>,
}

impl Running {
    fn memory_bytes(&self) -> usize {
        self.records.memory_bytes() + self.aborted.capacity() * size_of::<u64>()
    }
}

/// Keeps running transactions apart until each ends.
#[derive(Debug)]
pub struct StreamedTransactions {
    spill_dir: PathBuf,
    budget_bytes: usize,
    running: HashMap<u32, Running>,
    /// What all of [`Self::running`] holds in memory.
    memory_bytes: usize,
    /// The transaction whose segment is coming in.
    segment: Option<u32>,
    /// The prepared transaction that is coming in; it is one of [`Self::running`].
    preparing: Option<Preparing>,
    /// Prepared transactions that are neither committed nor rolled back.
    prepared: HashMap<u32, Prepared>,
    /// Prepared transactions that were committed, and may not be durable yet.
    decided: Vec<Decided>,
    /// All that was committed up to here is durable.
    durable: Lsn,
    replay: Option<Replay>,
    /// A change of a whole transaction, which waits until its relation was handed over.
    waiting: Option<Vec<u8>>,
    /// Each relation as the server believes it described for whole transactions.
    described: HashMap<u32, Described>,
    /// Relations that were described by a prepared transaction last, of which the assembler was not
    /// told.
    owed: HashSet<u32>,
    arrivals: u64,
    /// Written to spill files since the start, whether still there or not.
    spilled_total_bytes: u64,
}

impl StreamedTransactions {
    /// Keeps what goes beyond `budget_bytes` in `spill_dir`, a directory of its own.
    #[must_use]
    pub fn new(spill_dir: PathBuf, budget_bytes: usize) -> Self {
        Self {
            spill_dir,
            budget_bytes,
            running: HashMap::new(),
            memory_bytes: 0,
            segment: None,
            preparing: None,
            prepared: HashMap::new(),
            decided: Vec::new(),
            durable: Lsn::ZERO,
            replay: None,
            waiting: None,
            described: HashMap::new(),
            owed: HashSet::new(),
            arrivals: 0,
            spilled_total_bytes: 0,
        }
    }

    /// Forgets everything, as when the stream is started: the server sends it again. Also removes
    /// what an earlier process left. All that was committed up to `durable` is known to be durable.
    ///
    /// # Errors
    /// [`code::SPILL`] when old files cannot be removed.
    pub fn reset(&mut self, durable: Lsn) -> Result<()> {
        self.running.clear();
        self.memory_bytes = 0;
        self.segment = None;
        self.preparing = None;
        self.prepared.clear();
        self.decided.clear();
        self.durable = durable;
        self.replay = None;
        self.waiting = None;
        self.described.clear();
        self.owed.clear();
        match std::fs::remove_dir_all(&self.spill_dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(spill_error("remove", &self.spill_dir, &error))
            }
            _ => Ok(()),
        }
    }

    /// Transactions that were begun and have not ended.
    #[must_use]
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Prepared transactions that are neither committed nor rolled back.
    #[must_use]
    pub fn num_prepared(&self) -> usize {
        self.prepared.len()
    }

    /// Memory that transactions which have not ended hold.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// What transactions that have not ended hold in spill files.
    #[must_use]
    pub fn spilled_bytes(&self) -> u64 {
        let prepared = self.prepared.values().map(|prepared| &prepared.running);
        let all = self.running.values().chain(prepared);
        all.map(|running| running.records.spilled_bytes()).sum()
    }

    /// All that was written to spill files since the start.
    #[must_use]
    pub fn spilled_total_bytes(&self) -> u64 {
        self.spilled_total_bytes
    }

    /// Feeds one pgoutput message; not while [`Self::is_replaying`].
    ///
    /// # Errors
    /// The message cannot be decoded, or breaks the protocol's order; [`code::SPILL`].
    pub fn handle(&mut self, data: &[u8], assembler: &mut Assembler) -> Result<Step> {
        if self.is_replaying() {
            return Err(Error::bug("a message came in the middle of a replay"));
        }
        if let Some(xid) = self.segment {
            self.keep(xid, data, assembler)?;
            return Ok(Step::Continue);
        }
        if self.preparing.is_some() {
            self.keep_preparing(data)?;
            return Ok(Step::Continue);
        }
        match data.first() {
            Some(b'S' | b'c' | b'A' | b'b' | b'p' | b'K' | b'r') => {}
            Some(b'R') => {
                self.describe(data);
                return assembler.handle(data);
            }
            Some(b'I' | b'U' | b'D' | b'T') if !self.owed.is_empty() => {
                return self.change_after_owed(data, assembler);
            }
            _ => return assembler.handle(data),
        }
        if assembler.in_transaction() {
            return Err(out_of_order("a piece of a transaction came within another"));
        }
        match pgoutput::decode(data)? {
            Message::StreamStart { xid, first_segment } => self.start(xid, first_segment)?,
            Message::StreamAbort { xid, subxid } => self.abort(xid, subxid),
            Message::StreamCommit { xid, commit } => return self.commit(xid, commit, assembler),
            Message::BeginPrepare(prepare) => self.begin_prepare(&prepare)?,
            Message::StreamPrepare(prepare) => self.hold(&prepare)?,
            Message::CommitPrepared(prepared) => {
                return self.commit_prepared(&prepared, assembler);
            }
            Message::RollbackPrepared(prepared) => self.rollback_prepared(&prepared)?,
            _ => return Err(Error::bug("a letter of the protocol was misread")),
        }
        Ok(Step::Continue)
    }

    fn start(&mut self, xid: u32, first_segment: bool) -> Result<()> {
        if first_segment {
            self.begin(xid)?;
        } else if !self.running.contains_key(&xid) {
            return Err(unfit());
        }
        self.segment = Some(xid);
        Ok(())
    }

    /// A transaction of which nothing was sent before.
    fn begin(&mut self, xid: u32) -> Result<()> {
        if self.running.contains_key(&xid) || self.prepared.contains_key(&xid) {
            return Err(unfit());
        }
        let running = Running {
            records: Records::new(self.spill_dir.join(xid.to_string())),
            aborted: HashSet::new(),
        };
        self.running.insert(xid, running);
        Ok(())
    }

    /// Keeps a message of the segment of transaction `xid`.
    fn keep(&mut self, xid: u32, data: &[u8], assembler: &Assembler) -> Result<()> {
        if assembler.in_transaction() {
            return Err(out_of_order("a piece of a transaction came within another"));
        }
        match data.first() {
            Some(b'I' | b'U' | b'D' | b'T') => self.push(xid, &[data]),
            Some(b'R') => {
                self.arrivals += 1;
                let arrival = self.arrivals.to_be_bytes();
                self.push(xid, &[data, &arrival])
            }
            // A type's name and what applications wrote into the log: the assembler passes over both.
            Some(b'Y' | b'M') => Ok(()),
            _ => {
                // The origin and the segment's end; anything else is refused here.
                let message = pgoutput::decode_in_segment(data)?.message;
                if message == Message::StreamStop {
                    self.segment = None;
                }
                Ok(())
            }
        }
    }

    /// Keeps a record of a running transaction that consists of `parts`.
    fn push(&mut self, xid: u32, parts: &[&[u8]]) -> Result<()> {
        let Some(running) = self.running.get_mut(&xid) else {
            return Err(Error::bug("a piece has no transaction"));
        };
        let before = running.memory_bytes();
        running.records.push(parts)?;
        self.memory_bytes = self.memory_bytes + running.memory_bytes() - before;
        while self.memory_bytes > self.budget_bytes && self.spill_largest()? {}
        Ok(())
    }

    /// Writes a piece of the largest transaction to its file; false when nothing is left to write.
    fn spill_largest(&mut self) -> Result<bool> {
        let prepared = self.prepared.values_mut();
        let largest = self
            .running
            .values_mut()
            .chain(prepared.map(|prepared| &mut prepared.running))
            .max_by_key(|running| running.records.memory_bytes());
        let Some(running) = largest.filter(|running| running.records.memory_bytes() > 0) else {
            return Ok(false);
        };
        let before = running.memory_bytes();
        let spilled_before = running.records.spilled_bytes();
        running.records.spill()?;
        self.memory_bytes -= before - running.memory_bytes();
        self.spilled_total_bytes += running.records.spilled_bytes() - spilled_before;
        failpoint::hit("stream.spilled");
        Ok(true)
    }

    /// A sub-transaction was rolled back, or the whole: what it did is dropped. The server says so of
    /// each sub-transaction within it too, and of none that it sent nothing of.
    fn abort(&mut self, xid: u32, subxid: u32) {
        if xid == subxid {
            if let Some(running) = self.running.remove(&xid) {
                self.memory_bytes -= running.memory_bytes();
            }
        } else if let Some(running) = self.running.get_mut(&xid) {
            let before = running.memory_bytes();
            running.aborted.insert(subxid);
            self.memory_bytes = self.memory_bytes + running.memory_bytes() - before;
        }
    }

    fn commit(&mut self, xid: u32, commit: Commit, assembler: &mut Assembler) -> Result<Step> {
        let Some(running) = self.running.remove(&xid) else {
            return Err(unbegun());
        };
        self.memory_bytes -= running.memory_bytes();
        self.replay_at(running, commit, xid, assembler)
    }

    /// Begins to hand over a transaction that was committed.
    fn replay_at(
        &mut self,
        running: Running,
        commit: Commit,
        xid: u32,
        assembler: &mut Assembler,
    ) -> Result<Step> {
        failpoint::hit("stream.committed");
        self.replay = Some(Replay::new(
            running.records.read()?,
            running.aborted,
            commit,
        ));
        assembler.message(Message::Begin(Begin {
            final_lsn: commit.commit_lsn,
            commit_time_micros: commit.commit_time_micros,
            xid,
        }))
    }

    /// Whether a transaction that has ended is on its way to the assembler: call
    /// [`Self::replay_next`] until it is not.
    #[must_use]
    pub fn is_replaying(&self) -> bool {
        self.replay.is_some() || self.waiting.is_some()
    }

    /// Bytes of the replay that have been gone through so far.
    #[must_use]
    pub fn replayed_bytes(&self) -> u64 {
        self.replay.as_ref().map_or(0, Replay::bytes)
    }

    /// Feeds the next piece of a transaction that has ended; its answer is to be acted upon before
    /// the next call.
    ///
    /// # Errors
    /// As [`Self::handle`].
    pub fn replay_next(&mut self, assembler: &mut Assembler) -> Result<Step> {
        if let Some(waiting) = self.waiting.take() {
            return self.change_after_owed(&waiting, assembler);
        }
        let Some(replay) = &mut self.replay else {
            return Ok(Step::Continue);
        };
        if let Some(step) = replay.next(assembler)? {
            return Ok(step);
        }
        if let Some((oid, last)) = replay.next_settled() {
            return self.settle(oid, last, assembler);
        }
        failpoint::hit("stream.replayed");
        let commit = replay.commit();
        self.replay = None;
        assembler.message(Message::Commit(commit))
    }

    /// Whole transactions go on with the description that came last: the one sent to them, or that
    /// of the transaction just replayed, which the server counts as sent from its commit on.
    fn settle(
        &mut self,
        oid: u32,
        last: Option<Described>,
        assembler: &mut Assembler,
    ) -> Result<Step> {
        let sent = self
            .described
            .get(&oid)
            .map_or(0, |described| described.arrival);
        if let Some(last) = last
            && last.arrival > sent
        {
            self.described.insert(oid, last);
        }
        self.owed.remove(&oid);
        match self.described.get(&oid) {
            Some(described) => assembler.handle(&described.message),
            None => Ok(Step::Continue),
        }
    }

    fn describe(&mut self, data: &[u8]) {
        // The relation's oid stands where a segment has the xid.
        if let Some(oid) = segment_xid(data) {
            self.arrivals += 1;
            let described = Described {
                arrival: self.arrivals,
                message: data.to_vec(),
            };
            self.described.insert(oid, described);
            self.owed.remove(&oid);
        }
    }
}

fn out_of_order(what: &str) -> Error {
    Error::new(&code::PG_PROTOCOL, what)
}

fn unfit() -> Error {
    out_of_order("the pieces of a transaction do not fit together")
}

fn unbegun() -> Error {
    out_of_order("a transaction ended that had not begun")
}

fn spill_error(doing: &str, path: &Path, error: &io::Error) -> Error {
    Error::new(
        &code::SPILL,
        format!(
            "cannot {doing} \"{}\", which holds a running transaction",
            path.display()
        ),
    )
    .with_detail(error.to_string())
}
