//! What a lost connection finds handed over: it is committed up to a transaction's end, or not at
//! all.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use alluvium_source_postgres::pgoutput::encode::{TupleBuffer, encode};
use alluvium_source_postgres::pgoutput::{
    Begin, Commit, Message, Relation, RelationColumn, ReplicaIdentity, TupleValue,
};
use tokio::sync::mpsc::Receiver;

use super::*;
use crate::testing::{INT4, OID, TEXT, comes, table};

/// A stream with one table, nothing of which is cut because of the time, and the queue of its owner.
fn following(dir: &tempfile::TempDir) -> (Stream, OwnerHandle, Receiver<Command>) {
    let limits = StreamLimits {
        cut_bytes: 64 << 20,
        handed_over_bytes: 64 << 20,
        streamed_bytes: 0,
    };
    let commit = CommitSettings {
        min_interval_ms: u64::MAX,
        max_interval_ms: u64::MAX,
        ..CommitSettings::default()
    };
    let mut stream = Stream::new(limits, commit, (dir.path().to_owned(), "slot".to_owned()));
    let table = table();
    let (owner, queue) = OwnerHandle::of(table.schema.id.clone());
    stream.owners.insert(owner.table.clone(), owner.clone());
    stream.assembler.know(table).unwrap();
    (stream, owner, queue)
}

fn feed(stream: &mut Stream, message: &Message<'_>) {
    let mut bytes = Vec::new();
    encode(message, &mut bytes).unwrap();
    let step = stream.assembler.handle(&bytes).unwrap();
    assert!(stream.step(step).unwrap().is_none(), "nothing needs help");
}

/// A transaction that commits at `commit_lsn`, with `rows` rows of so many bytes.
fn transaction(stream: &mut Stream, commit_lsn: u64, rows: u32, bytes: usize) {
    let begin = Begin {
        final_lsn: Lsn(commit_lsn),
        commit_time_micros: 1_000_000_000_000_000,
        xid: 7,
    };
    feed(stream, &Message::Begin(begin));
    let column = |name, type_oid, key| RelationColumn {
        key,
        name,
        type_oid,
        typmod: -1,
    };
    let relation = Relation {
        oid: OID,
        namespace: "public",
        name: "t",
        replica_identity: ReplicaIdentity::Default,
        columns: vec![column("id", INT4, true), column("v", TEXT, false)],
    };
    feed(stream, &Message::Relation(relation));
    let v = "v".repeat(bytes);
    for id in 0..rows {
        let id = id.to_string();
        let values = [id.as_bytes(), v.as_bytes()].map(TupleValue::Text);
        let row = TupleBuffer::new(values).unwrap();
        let insert = Message::Insert {
            relation_oid: OID,
            new: row.tuple(),
        };
        feed(stream, &insert);
    }
    let commit = Commit {
        commit_lsn: Lsn(commit_lsn),
        end_lsn: Lsn(commit_lsn + 1),
        commit_time_micros: begin.commit_time_micros,
    };
    feed(stream, &Message::Commit(commit));
}

/// What an owner was told.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// Rows of the transaction that committed there.
    Rows(u64),
    CommitThrough(u64),
    Restarted,
}

fn told(queue: &mut Receiver<Command>) -> Vec<Told> {
    let mut told = Vec::new();
    while let Ok(command) = queue.try_recv() {
        match command {
            Command::Cut { batches, end, .. } => {
                let rows = batches.iter().flat_map(|batch| &batch.rows.commit_lsn);
                told.extend(rows.map(|lsn| Told::Rows(lsn.0)));
                told.dedup();
                told.extend(end.map(|end| Told::CommitThrough(end.position.0)));
            }
            Command::Restarted => told.push(Told::Restarted),
            _ => panic!("the stream has no other commands"),
        }
    }
    told
}

#[tokio::test]
async fn whole_transactions_handed_over_are_committed_when_the_connection_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (mut stream, _, mut queue) = following(&dir);
    transaction(&mut stream, 10, 5, 1 << 20);
    transaction(&mut stream, 20, 1, 10);
    comes("the owner is told", stream.restart(Lsn(5)))
        .await
        .unwrap();
    let expected = [Told::Rows(10), Told::CommitThrough(10), Told::Restarted];
    assert_eq!(told(&mut queue), expected);
}

/// The owner's queue was full when the second transaction was cut; its rows went over later, and
/// then the connection was lost. Committed up to the first transaction, the owner would have
/// committed rows of the second as well, and taken them again when they were sent again.
#[tokio::test]
async fn rows_that_waited_for_room_are_not_committed_with_the_transactions_before() {
    let dir = tempfile::tempdir().unwrap();
    let (mut stream, owner, mut queue) = following(&dir);
    transaction(&mut stream, 10, 5, 1 << 20);
    let full: Vec<_> = std::iter::from_fn(|| owner.try_reserve()).collect();
    assert!(!full.is_empty(), "there was room");
    transaction(&mut stream, 20, 1, 10);
    stream.cut().unwrap();
    assert!(!stream.is_settled() && !stream.has_room(), "the cut waits");
    drop(full);
    stream.hand_over_waiting();
    comes("the owner is told", stream.restart(Lsn(5)))
        .await
        .unwrap();
    let expected = [Told::Rows(10), Told::Rows(20), Told::Restarted];
    assert_eq!(told(&mut queue), expected);
}

/// What a table commits before its shape changes, and where a query is, depend on it.
#[tokio::test]
async fn a_stream_that_begins_again_has_come_no_further_than_where_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let (mut stream, _, mut queue) = following(&dir);
    stream.restart(Lsn(40)).await.unwrap();
    stream.idle_through(Lsn(50));
    let committed = |at| Step::Committed {
        position: Lsn(at),
        end_lsn: Lsn(at + 8),
        commit_time_micros: 0,
    };
    assert!(stream.step(committed(100)).unwrap().is_none());
    assert_eq!(stream.complete_through(), Lsn(100));
    stream.restart(Lsn(50)).await.unwrap();
    assert_eq!(stream.complete_through(), Lsn(50));
    assert!(stream.step(committed(60)).unwrap().is_none());
    assert_eq!(stream.complete_through(), Lsn(60));
    assert_eq!(told(&mut queue), [Told::Restarted, Told::Restarted]);
}
