//! Histories of transactions sent in pieces, against a model that knows only what was committed.
//!
//! The server played here keeps account of described relations as pgoutput does: by relation for
//! whole transactions, by relation and transaction for pieces.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use alluvium_change::{ChangeBatch, Column, Identity, Lsn, Op, TableId, TableSchema};
use arrow::array::{Array as _, Int32Array, StringArray};
use proptest::prelude::*;

use super::*;
use crate::catalog::{Attribute, SourceTable};
use crate::pgoutput::encode::{TupleBuffer, encode, encode_in_segment};
use crate::pgoutput::{
    InSegment, OldTuple, Relation, RelationColumn, ReplicaIdentity, Truncate, TupleValue,
};
use crate::type_map::{ColumnOptions, PgKind, PgType, plan_column};

/// Changed by `ALTER TABLE`, under its lock.
const ALTERED: u32 = 10;
/// Changed by the publication's column list, without a lock, under transactions that use it.
const LISTED: u32 = 20;
/// Not one of ours.
const OTHER: u32 = 30;
const INT4: u32 = 23;
const TEXT: u32 = 25;
/// What rows without the column `w` show in it.
const MISSING: &str = "missing";

fn table(oid: u32) -> Arc<SourceTable> {
    let columns = [
        ("id", INT4, "int4"),
        ("v", TEXT, "text"),
        ("w", TEXT, "text"),
    ];
    let mut plans = Vec::new();
    let mut attributes = Vec::new();
    let mut schema = Vec::new();
    for (place, (name, type_oid, type_name)) in columns.into_iter().enumerate() {
        let ty = PgType {
            oid: type_oid,
            name: type_name.to_owned(),
            schema: "pg_catalog".to_owned(),
            label: type_name.to_owned(),
            typmod: -1,
            delimiter: b',',
            kind: PgKind::Scalar,
        };
        let plan = plan_column(&ty, &ColumnOptions::default()).unwrap();
        schema.push(Column {
            name: name.to_owned(),
            data_type: plan.data_type.clone(),
            source_type: type_name.to_owned(),
        });
        plans.push(plan);
        attributes.push(Attribute {
            attnum: i16::try_from(place + 1).unwrap(),
            name: name.to_owned(),
            type_oid,
            typmod: -1,
            not_null: false,
            missing_value: (name == "w").then(|| MISSING.to_owned()),
            has_default: false,
            is_identity: false,
            is_generated: false,
            storage: 'x',
            column: Some(place),
        });
    }
    let id = TableId::new("public", format!("t{oid}"));
    Arc::new(SourceTable {
        schema: TableSchema::new(id, oid, schema, Identity::Key(vec![0])),
        plans,
        attributes,
        leaves: Vec::new(),
        replica_identity: 'd',
        is_partitioned: false,
        has_primary_key: true,
        estimated_rows: 0.0,
        total_bytes: 0,
        toast_columns: Vec::new(),
        generated_columns: Vec::new(),
        notes: Vec::new(),
        refused: None,
        has_tid_range_scan: true,
    })
}

/// A row as it must come out of the assembler.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    commit_lsn: u64,
    serial: u64,
    xid: u32,
    oid: u32,
    op: &'static str,
    id: Option<i32>,
    bytes: usize,
    w: Option<String>,
}

#[derive(Debug, Clone)]
enum What {
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
struct Change {
    subxid: u32,
    oid: u32,
    /// Of [`ALTERED`]: whether the table has `w` at this point.
    wide: bool,
    what: What,
}

/// What the server remembers of a relation.
#[derive(Debug, Default)]
struct Entry {
    schema_sent: bool,
    streamed_txns: HashSet<u32>,
}

#[derive(Debug)]
struct Txn {
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
struct Server {
    txns: Vec<Txn>,
    entries: HashMap<u32, Entry>,
    /// Of [`ALTERED`], as committed.
    wide: bool,
    /// Of [`LISTED`], as published.
    listed_wide: bool,
    /// Whether a piece ends with invalidations, as it does in PostgreSQL.
    eager: bool,
    next_xid: u32,
    next_lsn: u64,
    messages: Vec<Vec<u8>>,
    expected: Vec<Row>,
}

impl Server {
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

    fn begin(&mut self, streams: bool) {
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
    }

    /// Another transaction holds a lock that keeps `at` from changing the table, or altering it.
    fn is_locked(&self, at: usize, to_alter: bool) -> bool {
        self.txns.iter().enumerate().any(|(other, txn)| {
            let touched = |change: &Change| change.oid == ALTERED;
            let sent = txn
                .rows
                .iter()
                .any(|(subxid, row)| row.oid == ALTERED && !txn.aborted.contains(subxid));
            other != at && (txn.altered || to_alter && (sent || txn.queue.iter().any(touched)))
        })
    }

    fn change(&mut self, at: usize, oid: u32, what: What) {
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

    fn savepoint(&mut self, at: usize) {
        let subxid = self.xid();
        let txn = &mut self.txns[at];
        txn.parents.insert(subxid, txn.current());
        txn.stack.push((subxid, txn.altered, txn.wide));
    }

    fn rollback_to(&mut self, at: usize, depth: usize) {
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

    fn flush(&mut self, at: usize) {
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

    fn commit(&mut self, at: usize) {
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

    fn abort(&mut self, at: usize) {
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
    fn act(&mut self, (a, b, c): (u8, u8, u8)) {
        if self.txns.is_empty() || (a < 12 && self.txns.len() < 5) {
            return self.begin(b % 4 != 0);
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
            10 => drop(self.txns[at].stack.pop()),
            11 => self.rollback_to(at, usize::from(c)),
            12 | 13 => self.flush(at),
            14 if c % 3 == 0 => self.abort(at),
            14 => self.commit(at),
            _ if c % 3 == 0 => {
                self.listed_wide = !self.listed_wide;
                self.invalidate(LISTED);
            }
            _ => self.flush(at),
        }
    }
}

fn text(batch: &ChangeBatch, column: usize, row: usize) -> Option<String> {
    let column = batch.rows.column(column);
    let column = column.as_any().downcast_ref::<StringArray>().unwrap();
    (!column.is_null(row)).then(|| column.value(row).to_owned())
}

fn collect(assembler: &mut Assembler, rows: &mut Vec<Row>) {
    for batch in assembler.take_batches().unwrap() {
        let ids = batch.rows.column(0).as_any();
        let ids = ids.downcast_ref::<Int32Array>().unwrap();
        for row in 0..batch.num_rows() {
            rows.push(Row {
                commit_lsn: batch.commit_lsn[row].0,
                serial: batch.event_serial[row],
                xid: batch.xid[row],
                oid: batch.table.relation_oid,
                op: match batch.ops[row] {
                    Op::Insert => "insert",
                    Op::Update => "update",
                    Op::Delete => "delete",
                    Op::Truncate => "truncate",
                    _ => panic!("not a change of the stream"),
                },
                id: (!ids.is_null(row)).then(|| ids.value(row)),
                bytes: text(&batch, 1, row).unwrap_or_default().len(),
                w: text(&batch, 2, row),
            });
        }
    }
}

/// Feeds the messages as the pipeline does; takes batches every `part` answers.
fn received(messages: &[Vec<u8>], budget_bytes: usize, part: usize) -> Vec<Row> {
    let dir = tempfile::tempdir().unwrap();
    let spill_dir = dir.path().join("spill");
    let mut streamed = StreamedTransactions::new(spill_dir.clone(), budget_bytes);
    let mut assembler = Assembler::new();
    assembler.know(table(ALTERED)).unwrap();
    let mut rows = Vec::new();
    let mut answers = 0;
    for message in messages {
        let mut step = streamed.handle(message, &mut assembler).unwrap();
        loop {
            match step {
                Step::Continue | Step::Committed { .. } => {}
                Step::Failed(failure) => panic!("{failure:?}"),
                Step::Unknown(relation) => {
                    let known = (relation.oid == LISTED).then(|| table(LISTED));
                    let next = assembler.resolve(&relation, known).unwrap();
                    assert!(matches!(next, Step::Continue), "{next:?}");
                }
            }
            answers += 1;
            if answers % part == 0 {
                collect(&mut assembler, &mut rows);
            }
            if !streamed.is_replaying() {
                break;
            }
            step = streamed.replay_next(&mut assembler).unwrap();
        }
        // A chunk that has just been begun may stand above the budget only until it is written.
        assert!(streamed.memory_bytes <= budget_bytes.saturating_add(1 << 12));
    }
    collect(&mut assembler, &mut rows);
    assert_eq!((streamed.num_running(), streamed.memory_bytes), (0, 0));
    let left = std::fs::read_dir(&spill_dir).map_or(0, Iterator::count);
    assert_eq!(left, 0, "spill files are left");
    rows.sort();
    rows
}

fn history(actions: &[(u8, u8, u8)], eager: bool) -> Server {
    let mut server = Server {
        eager,
        ..Server::default()
    };
    for action in actions {
        server.act(*action);
    }
    // Everything ends: each other transaction is rolled back.
    while !server.txns.is_empty() {
        if server.txns.len() % 3 == 0 {
            server.abort(0);
        } else {
            server.commit(0);
        }
    }
    server
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_was_committed_comes_out_and_nothing_else(
        actions in prop::collection::vec(any::<(u8, u8, u8)>(), 1..150),
        budget_bytes in prop::sample::select(vec![0, 1 << 16, 200_000, usize::MAX]),
        part in 1..40_usize,
        eager: bool,
    ) {
        let server = history(&actions, eager);
        let rows = received(&server.messages, budget_bytes, part);
        prop_assert_eq!(rows, server.expected);
    }
}

/// The histories of the test above have what it is for.
#[test]
fn histories_meet_all_that_can_happen() {
    let mut seen: BTreeMap<u8, usize> = BTreeMap::new();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = prop::collection::vec(any::<(u8, u8, u8)>(), 1..150);
    let (mut rows, mut dropped) = (0, 0);
    for _ in 0..200 {
        let actions = strategy.new_tree(&mut runner).unwrap();
        let server = history(&proptest::strategy::ValueTree::current(&actions), true);
        for message in &server.messages {
            *seen.entry(message[0]).or_default() += 1;
        }
        rows += server.expected.len();
        let changes = |message: &&Vec<u8>| b"IUDT".contains(&message[0]);
        dropped += server.messages.iter().filter(changes).count() - server.expected.len();
    }
    for letter in b"BCRIUDTScEA" {
        assert!(seen.get(letter).is_some_and(|n| *n > 100), "{seen:?}");
    }
    assert!(rows > 500 && dropped > 500, "{rows} {dropped}");
}

/// What the process left behind, and what the stream left open, are gone after a reset.
#[test]
fn a_reset_forgets_open_transactions_and_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let spill_dir = dir.path().join("spill");
    std::fs::create_dir_all(&spill_dir).unwrap();
    std::fs::write(spill_dir.join("77"), "of a process that was killed").unwrap();
    let mut streamed = StreamedTransactions::new(spill_dir.clone(), 0);
    streamed.reset().unwrap();
    assert!(!spill_dir.exists());
    let mut assembler = Assembler::new();
    let mut server = Server::default();
    server.begin(true);
    server.change(0, ALTERED, What::Insert { id: 1, bytes: 10 });
    server.flush(0);
    for message in &server.messages {
        streamed.handle(message, &mut assembler).unwrap();
    }
    assert_eq!(std::fs::read_dir(&spill_dir).unwrap().count(), 1);
    streamed.reset().unwrap();
    assert!(!spill_dir.exists() && streamed.num_running() == 0);
    // The server sends it from its beginning.
    for message in &server.messages {
        streamed.handle(message, &mut assembler).unwrap();
    }
    assert_eq!(streamed.num_running(), 1);
}

#[test]
fn a_value_that_does_not_fit_stops_its_table_in_the_middle_of_a_replay() {
    let mut server = Server::default();
    server.begin(true);
    for id in 0..3 {
        server.change(0, ALTERED, What::Insert { id, bytes: 1 });
        server.change(0, LISTED, What::Insert { id, bytes: 1 });
    }
    server.flush(0);
    server.commit(0);
    let bad = server
        .messages
        .iter_mut()
        .find(|message| message[0] == b'I' && message.ends_with(b"t\0\0\0\x011t\0\0\0\x01v"))
        .expect("the second row of the first table");
    let at = bad.len() - b"1t\0\0\0\x01v".len();
    bad[at] = b'x';
    let dir = tempfile::tempdir().unwrap();
    let mut streamed = StreamedTransactions::new(dir.path().join("spill"), 0);
    let mut assembler = Assembler::new();
    assembler.know(table(ALTERED)).unwrap();
    assembler.know(table(LISTED)).unwrap();
    let mut failed = Vec::new();
    for message in &server.messages {
        streamed.handle(message, &mut assembler).unwrap();
        while streamed.is_replaying() {
            if let Step::Failed(failure) = streamed.replay_next(&mut assembler).unwrap() {
                failed.push((failure.table.to_string(), failure.at));
            }
        }
    }
    assert_eq!(failed, [("public.t10".to_owned(), Lsn(8))]);
    let mut rows = Vec::new();
    collect(&mut assembler, &mut rows);
    let left: Vec<_> = rows.iter().map(|row| (row.oid, row.serial)).collect();
    assert_eq!(left, [(LISTED, 1), (LISTED, 3), (LISTED, 5)]);
}

#[test]
fn pieces_that_do_not_fit_together_are_refused() {
    let commit = Commit {
        commit_lsn: Lsn(1),
        end_lsn: Lsn(2),
        commit_time_micros: 0,
    };
    let begin = Message::Begin(Begin {
        final_lsn: Lsn(1),
        commit_time_micros: 0,
        xid: 9,
    });
    let start = |first_segment| Message::StreamStart {
        xid: 7,
        first_segment,
    };
    let stop = Message::StreamStop;
    let histories = [
        vec![start(false)],
        vec![start(true), start(true)],
        vec![start(true), stop.clone(), start(true)],
        vec![stop.clone()],
        vec![begin.clone(), start(true)],
        vec![start(true), begin],
        vec![start(true), stop, Message::StreamCommit { xid: 8, commit }],
        vec![start(true), Message::StreamCommit { xid: 7, commit }],
    ];
    for history in histories {
        let mut streamed = StreamedTransactions::new("not/made".into(), usize::MAX);
        let mut assembler = Assembler::new();
        let mut answers = history.iter().map(|message| {
            let mut bytes = Vec::new();
            encode(message, &mut bytes).unwrap();
            streamed.handle(&bytes, &mut assembler)
        });
        let last = answers.by_ref().last().unwrap();
        assert!(
            last.is_err_and(|error| error.is(&code::PG_PROTOCOL)),
            "{history:?} was taken"
        );
    }
}

/// A spill directory that cannot be written is an error with its own code.
#[test]
fn a_spill_that_fails_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mut streamed = StreamedTransactions::new(file.join("spill"), 0);
    let mut assembler = Assembler::new();
    let mut server = Server::default();
    server.begin(true);
    server.change(0, ALTERED, What::Insert { id: 1, bytes: 10 });
    server.flush(0);
    let failed = server
        .messages
        .iter()
        .find_map(|message| streamed.handle(message, &mut assembler).err());
    assert!(failed.is_some_and(|error| error.is(&code::SPILL)));
}
