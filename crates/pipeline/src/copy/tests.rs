//! Tables that are given up while their ranges are on their way to the owner.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::testing::{comes, table};

/// One table that is copied, and the queue of its owner.
fn copying() -> (Arc<Shared>, Receiver<Command>) {
    let table = table();
    let (owner, queue) = OwnerHandle::of(table.schema.id.clone());
    let shared = Shared {
        context: CopyContext {
            options: ConnectOptions::parse("postgres://nobody@localhost/none", None).unwrap(),
            workers: 1,
            // Nothing is held.
            range_bytes: 0,
            board: StatusBoard::default(),
            selection: TableSelection::default(),
        },
        targets: vec![CopyTarget {
            table,
            owner,
            afresh: false,
            request: None,
        }],
        snapshot: Lsn(5),
        queue: Mutex::default(),
        turns: Turns(vec![watch::Sender::new(0)]),
        failed: Mutex::default(),
        started: Instant::now(),
    };
    (Arc::new(shared), queue)
}

fn range(turn: usize) -> Work {
    Work {
        target: 0,
        range: CopyRange {
            leaf: 0,
            start_page: 0,
            end_page: None,
        },
        turn,
        of: 5,
    }
}

/// The rows of a range as `COPY` sends them, each a batch of its own.
fn reader(rows: i32) -> CopyReader<'static> {
    let mut copy = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    for id in 0..rows {
        copy.extend(2_i16.to_be_bytes());
        for value in [&id.to_be_bytes()[..], b"v"] {
            copy.extend(i32::try_from(value.len()).unwrap().to_be_bytes());
            copy.extend(value);
        }
    }
    copy.extend((-1_i16).to_be_bytes());
    CopyReader::of_chunks(&table(), vec![copy.into()], 1)
}

/// The next rows handed over, and where the owner answers.
async fn handed_over(queue: &mut Receiver<Command>) -> (usize, oneshot::Sender<Result<()>>) {
    match comes("rows are handed over", queue.recv()).await {
        Some(Command::Copied { rows, reply }) => (
            rows.batches.iter().map(|batch| batch.rows.num_rows()).sum(),
            reply,
        ),
        _ => panic!("nothing but rows is handed over"),
    }
}

/// Gives up the table, as far as that goes without its owner.
async fn give_up(shared: &Arc<Shared>) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    let giving_up = tokio::spawn(async move {
        let refused: Result<()> = Err(Error::new(&code::VALUE, "a value of a later range"));
        assert!(shared.unless_of_table(0, refused).await.unwrap().is_none());
    });
    tokio::task::yield_now().await;
    giving_up
}

/// The owner hears of it.
async fn given_up(queue: &mut Receiver<Command>, giving_up: JoinHandle<()>) {
    match comes("the owner hears of it", queue.recv()).await {
        Some(Command::HaltCopy { reply, .. }) => reply.send(Ok(())).unwrap(),
        _ => panic!("the owner was to hear of it"),
    }
    comes("it is given up", giving_up).await.unwrap();
}

#[tokio::test]
async fn what_a_worker_does_not_hold_is_handed_over_in_its_turn() {
    let (shared, mut queue) = copying();
    let own = Arc::clone(&shared);
    let reading = tokio::spawn(async move { read_rows(&own, reader(3), range(1)).await });
    tokio::task::yield_now().await;
    assert!(
        queue.try_recv().is_err(),
        "it is the turn of the range before"
    );
    shared.turns.advance(0, 1);
    for _ in 0..3 {
        let (rows, reply) = handed_over(&mut queue).await;
        assert_eq!(rows, 1);
        reply.send(Ok(())).unwrap();
    }
    let read = comes("the range is read", reading).await.unwrap().unwrap();
    assert!(read.is_some_and(|read| read.held.is_empty()));
}

#[tokio::test]
async fn a_table_given_up_while_a_range_is_read_gets_no_more_of_its_rows() {
    let (shared, mut queue) = copying();
    let own = Arc::clone(&shared);
    let reading = tokio::spawn(async move { read_rows(&own, reader(3), range(0)).await });
    let (_, reply) = handed_over(&mut queue).await;
    let giving_up = give_up(&shared).await;
    given_up(&mut queue, giving_up).await;
    reply.send(Ok(())).unwrap();
    let read = comes("the range is left", reading).await.unwrap().unwrap();
    assert!(read.is_none() && queue.try_recv().is_err());
    // Nor of one that waited for its turn meanwhile.
    let read = read_rows(&shared, reader(3), range(3));
    let read = comes("the next range is left", read).await.unwrap();
    assert!(read.is_none() && queue.try_recv().is_err());
}

/// A range waits for room in the owner's queue when its table is given up. When it has been handed
/// over, the turn of the next has come: that took back the word to the others that they need not wait
/// any more.
#[tokio::test]
async fn a_range_handed_over_after_its_table_was_given_up_lets_no_other_wait() {
    let (shared, mut queue) = copying();
    let rows = |turn| ReadRange {
        work: range(turn),
        held: Vec::new(),
    };
    let owner = &shared.targets[0].owner;
    let full: Vec<_> = std::iter::from_fn(|| owner.try_reserve()).collect();
    let delivering = tokio::spawn(deliver(Arc::clone(&shared), rows(0)));
    tokio::task::yield_now().await;
    let giving_up = give_up(&shared).await;
    drop(full);
    let (_, reply) = handed_over(&mut queue).await;
    reply.send(Ok(())).unwrap();
    given_up(&mut queue, giving_up).await;
    let delivered = comes("the first range is delivered", delivering).await;
    delivered.unwrap().unwrap();
    // The second was passed over: its turn never ends.
    let third = deliver(Arc::clone(&shared), rows(2));
    comes("the third range is passed over", third)
        .await
        .unwrap();
    assert!(queue.try_recv().is_err());
}
