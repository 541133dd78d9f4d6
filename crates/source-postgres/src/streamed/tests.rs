//! Histories of transactions sent in pieces, against a model that knows only what was committed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod orders;
mod restarts;
mod server;

use std::collections::BTreeMap;
use std::sync::Arc;

use alluvium_change::{ChangeBatch, Lsn, Op, TableId};
use arrow::array::{Array as _, Int32Array, StringArray};
use proptest::prelude::*;

use self::server::{Row, Server, What};
use super::*;
use crate::catalog::{SourceTable, sample_table};
use crate::pgoutput::encode::encode;
use crate::pgoutput::{CommitPrepared, Prepare};

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
    let id = TableId::new("public", format!("t{oid}"));
    let mut table = sample_table(id, oid, &columns).unwrap();
    table.attributes[2].missing_value = Some(MISSING.to_owned());
    Arc::new(table)
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
    assert_eq!(streamed.num_prepared(), 0);
    assert_eq!(streamed.held_from(Lsn(u64::MAX)), None);
    let left = std::fs::read_dir(&spill_dir).map_or(0, Iterator::count);
    assert_eq!(left, 0, "spill files are left");
    rows.sort();
    rows
}

fn history(actions: &[(u8, u8, u8)], eager: bool) -> Server {
    let mut server = Server::new(eager);
    for action in actions {
        server.act(*action);
    }
    // Everything ends: each other transaction is rolled back.
    while !server.txns.is_empty() {
        if server.txns.len().is_multiple_of(3) {
            server.abort(0);
        } else {
            server.commit(0);
        }
        let held = server.held.len();
        server.decide(held, !held.is_multiple_of(3));
    }
    while !server.held.is_empty() {
        server.decide(0, !server.held.len().is_multiple_of(3));
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
    for letter in b"bPpKr" {
        assert!(seen.get(letter).is_some_and(|n| *n > 40), "{seen:?}");
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
    streamed.reset(Lsn::ZERO).unwrap();
    assert!(!spill_dir.exists());
    let mut assembler = Assembler::new();
    let mut server = Server::default();
    server.begin(true);
    server.change(0, ALTERED, What::Insert { id: 1, bytes: 10 });
    server.flush(0);
    for message in &server.messages {
        streamed.handle(message, &mut assembler).unwrap();
    }
    let files: Vec<_> = std::fs::read_dir(&spill_dir).unwrap().collect();
    assert_eq!(files.len(), 1);
    let on_disk = files[0].as_ref().unwrap().metadata().unwrap().len();
    assert!(on_disk > 0);
    assert_eq!(streamed.spilled_bytes(), on_disk);
    assert_eq!(streamed.spilled_total_bytes(), on_disk);
    streamed.reset(Lsn::ZERO).unwrap();
    assert!(!spill_dir.exists() && streamed.num_running() == 0);
    assert_eq!(streamed.spilled_bytes(), 0);
    assert_eq!(streamed.spilled_total_bytes(), on_disk, "it was written");
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
    let prepare = Prepare {
        prepare_lsn: Lsn(1),
        end_lsn: Lsn(2),
        prepare_time_micros: 0,
        xid: 7,
        gid: "g",
    };
    let other = Prepare { xid: 8, ..prepare };
    let held = [Message::BeginPrepare(prepare), Message::Prepare(prepare)];
    let decided = |gid| {
        Message::CommitPrepared(CommitPrepared {
            commit,
            xid: 7,
            gid,
        })
    };
    let histories = [
        vec![start(false)],
        vec![start(true), start(true)],
        vec![start(true), stop.clone(), start(true)],
        vec![stop.clone()],
        vec![begin.clone(), start(true)],
        vec![start(true), begin],
        vec![start(true), stop, Message::StreamCommit { xid: 8, commit }],
        vec![start(true), Message::StreamCommit { xid: 7, commit }],
        vec![Message::StreamPrepare(prepare)],
        vec![
            Message::BeginPrepare(prepare),
            Message::BeginPrepare(prepare),
        ],
        vec![Message::BeginPrepare(prepare), start(true)],
        vec![Message::BeginPrepare(prepare), Message::Prepare(other)],
        vec![Message::BeginPrepare(prepare), Message::Commit(commit)],
        [&held[..], &held[..1]].concat(),
        [&held[..], &[start(true)]].concat(),
        [&held[..], &[decided("h")]].concat(),
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
