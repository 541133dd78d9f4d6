//! Transactions that the server sends while they still run: after `replication`, before `capture`.
//!
//! ```text
//!           in a segment ─► records of the transaction (memory, then a spill file) ─┐ at its commit
//! XLogData ─┤                                                                       ▼
//!           └ outside ────────────────────────────────────────────────────────► Assembler
//! ```
//!
//! Invariant: the assembler meets a transaction that was sent in pieces exactly as one that was sent
//! at its commit: Begin, the changes of the sub-transactions that were not rolled back, Commit. It
//! meets a relation only right before a change that relies on it, so that the shape which a rolled
//! back `ALTER TABLE` gave it is never seen.

mod records;
mod replay;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use alluvium_change::{Error, Result, code, failpoint};

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
    replay: Option<Replay>,
    /// Each relation as the server believes it described for whole transactions.
    described: HashMap<u32, Described>,
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
            replay: None,
            described: HashMap::new(),
            arrivals: 0,
            spilled_total_bytes: 0,
        }
    }

    /// Forgets everything, as when the stream is started: the server sends it again. Also removes
    /// what an earlier process left.
    ///
    /// # Errors
    /// [`code::SPILL`] when old files cannot be removed.
    pub fn reset(&mut self) -> Result<()> {
        self.running.clear();
        self.memory_bytes = 0;
        self.segment = None;
        self.replay = None;
        self.described.clear();
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

    /// Memory that transactions which have not ended hold.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// What transactions that have not ended hold in spill files.
    #[must_use]
    pub fn spilled_bytes(&self) -> u64 {
        let running = self.running.values();
        running.map(|running| running.records.spilled_bytes()).sum()
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
        if self.replay.is_some() {
            return Err(Error::bug("a message came in the middle of a replay"));
        }
        if let Some(xid) = self.segment {
            self.keep(xid, data, assembler)?;
            return Ok(Step::Continue);
        }
        match data.first() {
            Some(b'S' | b'c' | b'A') => {}
            Some(b'R') => {
                self.describe(data);
                return assembler.handle(data);
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
            _ => return Err(Error::bug("a letter of the protocol was misread")),
        }
        Ok(Step::Continue)
    }

    fn start(&mut self, xid: u32, first_segment: bool) -> Result<()> {
        if first_segment == self.running.contains_key(&xid) {
            return Err(out_of_order(
                "the pieces of a transaction do not fit together",
            ));
        }
        if first_segment {
            let running = Running {
                records: Records::new(self.spill_dir.join(xid.to_string())),
                aborted: HashSet::new(),
            };
            self.running.insert(xid, running);
        }
        self.segment = Some(xid);
        Ok(())
    }

    /// Keeps a message of the segment of transaction `xid`.
    fn keep(&mut self, xid: u32, data: &[u8], assembler: &Assembler) -> Result<()> {
        if assembler.in_transaction() {
            return Err(out_of_order("a piece of a transaction came within another"));
        }
        let Some(running) = self.running.get_mut(&xid) else {
            return Err(Error::bug("a segment has no transaction"));
        };
        let before = running.memory_bytes();
        match data.first() {
            Some(b'I' | b'U' | b'D' | b'T') => running.records.push(&[data])?,
            Some(b'R') => {
                self.arrivals += 1;
                running
                    .records
                    .push(&[data, &self.arrivals.to_be_bytes()])?;
            }
            // A type's name and what applications wrote into the log: the assembler passes over both.
            Some(b'Y' | b'M') => {}
            _ => {
                // The origin and the segment's end; anything else is refused here.
                let message = pgoutput::decode_in_segment(data)?.message;
                if message == Message::StreamStop {
                    self.segment = None;
                }
                return Ok(());
            }
        }
        self.memory_bytes = self.memory_bytes + running.memory_bytes() - before;
        while self.memory_bytes > self.budget_bytes && self.spill_largest()? {}
        Ok(())
    }

    /// Writes a piece of the largest transaction to its file; false when nothing is left to write.
    fn spill_largest(&mut self) -> Result<bool> {
        let largest = self
            .running
            .values_mut()
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
            return Err(out_of_order("a transaction ended that had not begun"));
        };
        failpoint::hit("stream.committed");
        self.memory_bytes -= running.memory_bytes();
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
        self.replay.is_some()
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
        }
    }
}

fn out_of_order(what: &str) -> Error {
    Error::new(&code::PG_PROTOCOL, what)
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
