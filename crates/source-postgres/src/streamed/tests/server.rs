//! A server that sends transactions in pieces, or whole, and knows what must come of them.
//!
//! It keeps account of described relations as pgoutput does: by relation for whole transactions, by
//! relation and transaction for pieces.

mod prepared;

use std::collections::{HashMap, HashSet};

use alluvium_change::Lsn;

use self::prepared::Held;
use super::{ALTERED, INT4, LISTED, MISSING, OTHER, TEXT};
use crate::pgoutput::encode::{TupleBuffer, encode, encode_in_segment};
use crate::pgoutput::{
    Begin, Commit, InSegment, Message, OldTuple, Relation, RelationColumn, ReplicaIdentity,
    Truncate, TupleValue,
};

/// A row as it must come out of the assembler.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    pub(super) commit_lsn: u64,
    pub(super) serial: u64,
    pub(super) xid: u32,
    pub(super) oid: u32,
    pub(super) op: &'static str,
    pub(super) id: Option<i32>,
    pub(super) bytes: usize,
    pub(super) w: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    Insert {
        id: i32,
        bytes: usize,
    },
    Update {
        id: i32,
        bytes: usize,
    },
    Delete {
        id: i32,
    },
    Truncate,
    /// The transaction altered [`ALTERED`].
    Altered,
}

#[derive(Debug, Clone)]
pub(super) struct Change {
    subxid: u32,
    oid: u32,
    /// Of [`ALTERED`]: whether the table has `w` at this point.
    wide: bool,
    what: What,
}

/// What the server remembers of a relation.
#[derive(Debug, Default)]
pub(super) struct Entry {
    schema_sent: bool,
    streamed_txns: HashSet<u32>,
}

#[derive(Debug)]
pub(super) struct Txn {
    xid: u32,
    streams: bool,
    /// Something was sent.
    streamed: bool,
    /// Open savepoints, the outermost first, with [`Txn::altered`] and [`Txn::wide`] before each.
    stack: Vec<(u32, bool, bool)>,
    parents: HashMap<u32, u32>,
    aborted: HashSet<u32>,
    sent_of: HashSet<u32>,
    altered: bool,
    wide: bool,
    queue: Vec<Change>,
    /// Rows that were sent, in order, each with its sub-transaction.
    rows: Vec<(u32, Row)>,
}

impl Txn {
    fn current(&self) -> u32 {
        self.stack.last().map_or(self.xid, |(subxid, ..)| *subxid)
    }

    fn within(&self, subxid: u32, ancestor: u32) -> bool {
        let mut at = subxid;
        while at != ancestor {
            match self.parents.get(&at) {
                Some(parent) => at = *parent,
                None => return false,
            }
        }
        true
    }
}

#[derive(Debug, Default)]
pub(super) struct Server {
    pub(super) txns: Vec<Txn>,
    /// Prepared, and undecided.
    pub(super) held: Vec<Held>,
    entries: HashMap<u32, Entry>,
    /// Of [`ALTERED`], as committed.
    wide: bool,
    /// Of [`LISTED`], as published.
    listed_wide: bool,
    /// Whether a piece ends with invalidations, as it does in PostgreSQL.
    eager: bool,
    next_xid: u32,
    next_lsn: u64,
    pub(super) messages: Vec<Vec<u8>>,
    pub(super) expected: Vec<Row>,
}

impl Server {
    pub(super) fn new(eager: bool) -> Self {
        Self {
            eager,
            ..Self::default()
        }
    }

    fn xid(&mut self) -> u32 {
        self.next_xid += 1;
        self.next_xid + 100
    }

    fn lsn(&mut self) -> Lsn {
        self.next_lsn += 8;
        Lsn(self.next_lsn)
    }

    fn put(&mut self, message: &Message<'_>, segment_xid: Option<u32>) {
        let mut out = Vec::new();
        match segment_xid {
            None => encode(message, &mut out).unwrap(),
            Some(_) => {
                let message = InSegment {
                    xid: segment_xid,
                    message: message.clone(),
                };
                encode_in_segment(&message, &mut out).unwrap();
            }
        }
        self.messages.push(out);
    }

    fn invalidate(&mut self, oid: u32) {
        self.entries.insert(oid, Entry::default());
    }

    pub(super) fn begin(&mut self, streams: bool) -> u32 {
        let xid = self.xid();
        let txn = Txn {
            xid,
            streams,
            streamed: false,
            stack: Vec::new(),
            parents: HashMap::new(),
            aborted: HashSet::new(),
            sent_of: HashSet::new(),
            altered: false,
            wide: self.wide,
            queue: Vec::new(),
            rows: Vec::new(),
        };
        self.txns.push(txn);
        xid
    }

    /// Another transaction holds a lock that keeps `at` from changing the table, or altering it.
    fn is_locked(&self, at: usize, to_alter: bool) -> bool {
        let held = self.held.iter().map(|held| (usize::MAX, &held.txn));
        self.txns
            .iter()
            .enumerate()
            .chain(held)
            .any(|(other, txn)| {
                let touched = |change: &Change| change.oid == ALTERED;
                let sent = txn
                    .rows
                    .iter()
                    .any(|(subxid, row)| row.oid == ALTERED && !txn.aborted.contains(subxid));
                other != at && (txn.altered || to_alter && (sent || txn.queue.iter().any(touched)))
            })
    }

    pub(super) fn change(&mut self, at: usize, oid: u32, what: What) {
        let to_alter = matches!(what, What::Altered);
        if oid == ALTERED && self.is_locked(at, to_alter) {
            return;
        }
        let committed = self.wide;
        let txn = &mut self.txns[at];
        if !txn.altered {
            txn.wide = committed;
        }
        if to_alter {
            txn.altered = true;
            txn.wide = !txn.wide;
        }
        let (subxid, wide) = (txn.current(), txn.wide);
        txn.queue.push(Change {
            subxid,
            oid,
            wide,
            what,
        });
    }

    pub(super) fn savepoint(&mut self, at: usize) {
        let subxid = self.xid();
        let txn = &mut self.txns[at];
        txn.parents.insert(subxid, txn.current());
        txn.stack.push((subxid, txn.altered, txn.wide));
    }

    pub(super) fn release(&mut self, at: usize) {
        self.txns[at].stack.pop();
    }

    /// Open savepoints of a transaction.
    pub(super) fn depth(&self, at: usize) -> usize {
        self.txns[at].stack.len()
    }

    /// Which of the open transactions has this number.
    pub(super) fn place_of(&self, xid: u32) -> Option<usize> {
        self.txns.iter().position(|txn| txn.xid == xid)
    }

    pub(super) fn rollback_to(&mut self, at: usize, depth: usize) {
        let txn = &mut self.txns[at];
        if txn.stack.is_empty() {
            return;
        }
        let keep = depth % txn.stack.len();
        let (subxid, altered, wide) = txn.stack[keep];
        txn.stack.truncate(keep);
        self.abort_sub(at, subxid);
        (self.txns[at].altered, self.txns[at].wide) = (altered, wide);
    }

    /// Sub-transactions within first, then the one itself, and none of which nothing was sent.
    fn abort_sub(&mut self, at: usize, ancestor: u32) {
        let txn = &mut self.txns[at];
        let mut gone: Vec<u32> = txn
            .parents
            .keys()
            .copied()
            .filter(|subxid| txn.within(*subxid, ancestor) && !txn.aborted.contains(subxid))
            .collect();
        gone.sort_unstable_by_key(|subxid| (*subxid == ancestor, *subxid));
        txn.aborted.extend(&gone);
        let aborted = txn.aborted.clone();
        txn.queue.retain(|change| !aborted.contains(&change.subxid));
        let (xid, altered) = (txn.xid, txn.altered);
        let sent_of = txn.sent_of.clone();
        for subxid in gone {
            if sent_of.contains(&subxid) {
                self.put(&Message::StreamAbort { xid, subxid }, None);
                self.clean(xid, false);
                if altered {
                    self.invalidate(ALTERED);
                }
            }
        }
    }

    fn clean(&mut self, xid: u32, is_commit: bool) {
        for entry in self.entries.values_mut() {
            if entry.streamed_txns.remove(&xid) && is_commit {
                entry.schema_sent = true;
            }
        }
    }

    fn describe(&mut self, change: &Change, xid: u32, wide: bool, in_segment: bool) {
        let entry = self.entries.entry(change.oid).or_default();
        let new = if in_segment {
            entry.streamed_txns.insert(xid)
        } else {
            !std::mem::replace(&mut entry.schema_sent, true)
        };
        if !new {
            return;
        }
        let column = |name, type_oid, key| RelationColumn {
            key,
            name,
            type_oid,
            typmod: -1,
        };
        let mut columns = vec![column("id", INT4, true), column("v", TEXT, false)];
        if wide {
            columns.push(column("w", TEXT, false));
        }
        let name = format!("t{}", change.oid);
        let relation = Message::Relation(Relation {
            oid: change.oid,
            namespace: "public",
            name: &name,
            replica_identity: ReplicaIdentity::Default,
            columns,
        });
        self.put(&relation, in_segment.then_some(change.subxid));
    }

    /// Sends what waits of a transaction.
    fn send(&mut self, at: usize, in_segment: bool) {
        let queue = std::mem::take(&mut self.txns[at].queue);
        let (xid, altered) = (self.txns[at].xid, self.txns[at].altered);
        for change in queue {
            self.txns[at].sent_of.insert(change.subxid);
            if matches!(change.what, What::Altered) {
                self.invalidate(ALTERED);
                continue;
            }
            let wide = match change.oid {
                ALTERED => change.wide,
                LISTED => self.listed_wide,
                _ => true,
            };
            self.describe(&change, xid, wide, in_segment);
            let row = self.send_change(&change, wide, in_segment.then_some(change.subxid));
            self.txns[at].rows.push((change.subxid, row));
        }
        if altered && self.eager {
            self.invalidate(ALTERED);
        }
    }

    fn send_change(&mut self, change: &Change, wide: bool, segment_xid: Option<u32>) -> Row {
        let (id, bytes) = match change.what {
            What::Insert { id, bytes } | What::Update { id, bytes } => (Some(id), bytes),
            What::Delete { id } => (Some(id), 0),
            What::Truncate | What::Altered => (None, 0),
        };
        let id_text = id.unwrap_or_default().to_string();
        let v = "v".repeat(bytes);
        let mut values = vec![
            TupleValue::Text(id_text.as_bytes()),
            TupleValue::Text(v.as_bytes()),
        ];
        let mut key = vec![TupleValue::Text(id_text.as_bytes()), TupleValue::Null];
        if wide {
            values.push(TupleValue::Text(b"w"));
            key.push(TupleValue::Null);
        }
        let new = TupleBuffer::new(values).unwrap();
        let key = TupleBuffer::new(key).unwrap();
        let relation_oid = change.oid;
        let (op, message) = match change.what {
            What::Insert { .. } => {
                let new = new.tuple();
                ("insert", Message::Insert { relation_oid, new })
            }
            What::Update { .. } => {
                let (old, new) = (OldTuple::None, new.tuple());
                let update = Message::Update {
                    relation_oid,
                    old,
                    new,
                };
                ("update", update)
            }
            What::Delete { .. } => {
                let old = OldTuple::Key(key.tuple());
                ("delete", Message::Delete { relation_oid, old })
            }
            What::Truncate | What::Altered => {
                let truncate = Truncate {
                    relation_oids: vec![relation_oid],
                    cascade: false,
                    restart_identity: false,
                };
                ("truncate", Message::Truncate(truncate))
            }
        };
        self.put(&message, segment_xid);
        let w = match op {
            "insert" | "update" => Some(if wide { "w" } else { MISSING }.to_owned()),
            _ => None,
        };
        Row {
            commit_lsn: 0,
            serial: 0,
            xid: 0,
            oid: relation_oid,
            op,
            id,
            bytes,
            w,
        }
    }

    pub(super) fn flush(&mut self, at: usize) {
        let txn = &mut self.txns[at];
        if !txn.streams || txn.queue.is_empty() {
            return;
        }
        let (xid, first_segment) = (txn.xid, !txn.streamed);
        txn.streamed = true;
        self.put(&Message::StreamStart { xid, first_segment }, None);
        self.send(at, true);
        // A segment's end has no xid; it is the same bytes outside.
        self.put(&Message::StreamStop, None);
    }

    pub(super) fn commit(&mut self, at: usize) {
        let (commit_lsn, end_lsn) = (self.lsn(), self.lsn());
        let commit = Commit {
            commit_lsn,
            end_lsn,
            commit_time_micros: 1_000_000_000_000_000,
        };
        let xid = self.txns[at].xid;
        if self.txns[at].streamed {
            self.flush(at);
            self.put(&Message::StreamCommit { xid, commit }, None);
            self.clean(xid, true);
        } else {
            let begin = Begin {
                final_lsn: commit_lsn,
                commit_time_micros: commit.commit_time_micros,
                xid,
            };
            self.put(&Message::Begin(begin), None);
            self.send(at, false);
            self.put(&Message::Commit(commit), None);
        }
        let txn = self.txns.remove(at);
        if txn.altered {
            self.wide = txn.wide;
            self.invalidate(ALTERED);
        }
        self.expect(txn, commit_lsn);
    }

    /// What is left of a transaction must come with its commit.
    fn expect(&mut self, txn: Txn, commit_lsn: Lsn) {
        let xid = txn.xid;
        let survivors = txn
            .rows
            .into_iter()
            .filter(|(subxid, _)| !txn.aborted.contains(subxid));
        for (serial, (_, mut row)) in (0..).zip(survivors) {
            (row.commit_lsn, row.serial, row.xid) = (commit_lsn.0, serial, xid);
            if row.oid != OTHER {
                self.expected.push(row);
            }
        }
    }

    pub(super) fn abort(&mut self, at: usize) {
        let (xid, streamed) = (self.txns[at].xid, self.txns[at].streamed);
        self.abort_sub(at, xid);
        if streamed {
            self.put(&Message::StreamAbort { xid, subxid: xid }, None);
            self.clean(xid, false);
        }
        if self.txns.remove(at).altered {
            self.invalidate(ALTERED);
        }
    }

    /// One step of a history; `a` says what, `b` where, `c` how.
    pub(super) fn act(&mut self, (a, b, c): (u8, u8, u8)) {
        if self.txns.is_empty() || (a < 12 && self.txns.len() < 5) {
            self.begin(b % 4 != 0);
            return;
        }
        let at = usize::from(b) % self.txns.len();
        let oid = [ALTERED, LISTED, OTHER, ALTERED][usize::from(c) % 4];
        let (id, bytes) = (
            i32::from(c),
            [0, 10, 3_000, 40_000, 70_000][usize::from(c / 4) % 5],
        );
        match a % 16 {
            0..4 => self.change(at, oid, What::Insert { id, bytes }),
            4 => self.change(at, oid, What::Update { id, bytes }),
            5 => self.change(at, oid, What::Delete { id }),
            6 => self.change(at, oid, What::Truncate),
            7 => self.change(at, ALTERED, What::Altered),
            8 | 9 => self.savepoint(at),
            10 => self.release(at),
            11 => self.rollback_to(at, usize::from(c)),
            12 | 13 => self.flush(at),
            14 if c % 3 == 0 => self.abort(at),
            14 if c % 3 == 1 => self.prepare(at),
            14 => self.commit(at),
            _ if c % 3 == 1 => self.decide(usize::from(b), c % 2 == 0),
            _ if c % 3 == 0 => {
                self.listed_wide = !self.listed_wide;
                self.invalidate(LISTED);
            }
            _ => self.flush(at),
        }
    }
}
