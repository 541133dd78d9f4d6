//! The replication session: slots, frames, status, errors.

use std::time::Duration;

use alluvium_change::{Lsn, code};
use alluvium_source_postgres::connect::ConnectOptions;
use alluvium_source_postgres::replication::{Frame, Protocol, ReplicationConnection, SlotKind};
use alluvium_source_postgres::slot;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::{client, cluster, database};

const PATIENCE: Duration = Duration::from_secs(20);

/// Frames until one satisfies `done`; keepalives that ask get their reply.
async fn frames_until(
    stream: &mut ReplicationConnection,
    mut done: impl FnMut(&Frame) -> bool,
) -> Vec<Frame> {
    let mut frames = Vec::new();
    let collect = async {
        loop {
            while let Some(frame) = stream.next_frame().unwrap() {
                if let Frame::Keepalive {
                    wal_end,
                    reply_requested: true,
                } = frame
                {
                    stream.send_status(Lsn::ZERO, wal_end, false).await.unwrap();
                }
                let is_done = done(&frame);
                frames.push(frame);
                if is_done {
                    return;
                }
            }
            stream.fill().await.unwrap();
        }
    };
    timeout(PATIENCE, collect)
        .await
        .expect("the frames did not come");
    frames
}

fn is_commit(frame: &Frame) -> bool {
    matches!(frame, Frame::XLogData { data, .. } if data.first() == Some(&b'C'))
}

/// The walsender tells of its end before it lets go of the slot.
async fn drop_when_free(client: &Client, name: &str) {
    let drop = async {
        while let Err(error) = slot::drop_slot(client, name).await {
            assert!(error.is(&code::PG_SLOT_ACTIVE), "{error:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, drop)
        .await
        .expect("the slot stayed taken");
}

async fn started(options: &ConnectOptions, slot: &str, publication: &str) -> ReplicationConnection {
    let mut stream = ReplicationConnection::connect(options).await.unwrap();
    let created = stream.create_slot(slot, SlotKind::default()).await.unwrap();
    let publications = [publication.to_owned()];
    stream
        .start(slot, created.consistent_point, &publications, Protocol::V1)
        .await
        .unwrap();
    stream
}

#[tokio::test]
async fn transactions_arrive_whole_in_the_settings_we_rely_on() {
    let options = database("rep_frames").await;
    let client = client(&options).await;
    client
        .batch_execute(
            "CREATE TABLE public.t (id int PRIMARY KEY, d date, f float8, i interval, b bytea, c regclass);
             CREATE PUBLICATION \"odd \"\"name'\" FOR TABLE public.t",
        )
        .await
        .unwrap();
    let mut stream = ReplicationConnection::connect(&options).await.unwrap();
    let identity = stream.identify_system().await.unwrap();
    assert_eq!(identity.database, "rep_frames");
    assert!(identity.timeline >= 1 && identity.flush_lsn > Lsn::ZERO);
    assert!(identity.system_identifier.parse::<u64>().is_ok());
    let created = stream
        .create_slot(
            "rep_frames",
            SlotKind {
                temporary: true,
                ..SlotKind::default()
            },
        )
        .await
        .unwrap();
    assert!(!created.snapshot_name.is_empty() && created.consistent_point > Lsn::ZERO);
    let publications = ["odd \"name'".to_owned()];
    stream
        .start(
            "rep_frames",
            created.consistent_point,
            &publications,
            Protocol::V1,
        )
        .await
        .unwrap();

    client
        .batch_execute(
            "INSERT INTO public.t VALUES (1, '1999-12-31', 0.1 + 0.2::float8, '1 year 2 days', '\\x00ff', 'public.t')",
        )
        .await
        .unwrap();
    let frames = frames_until(&mut stream, is_commit).await;
    let kinds: Vec<u8> = frames
        .iter()
        .filter_map(|frame| match frame {
            Frame::XLogData { data, .. } => data.first().copied(),
            Frame::Keepalive { .. } => None,
        })
        .collect();
    assert_eq!(kinds, *b"BRIC");
    let insert = frames
        .iter()
        .find_map(|frame| match frame {
            Frame::XLogData { data, .. } if data.first() == Some(&b'I') => Some(data.clone()),
            _ => None,
        })
        .unwrap();
    let text = String::from_utf8_lossy(&insert).into_owned();
    for part in [
        "1999-12-31",
        "0.30000000000000004",
        "P1Y2D",
        "\\x00ff",
        "public.t",
    ] {
        assert!(text.contains(part), "{part} is not in {text:?}");
    }
    client
        .batch_execute("UPDATE public.t SET f = 2; DELETE FROM public.t; TRUNCATE public.t")
        .await
        .unwrap();
    frames_until(&mut stream, is_commit).await;
    stream.close().await.unwrap();
}

#[tokio::test]
async fn a_large_transaction_passes_in_bulk() {
    let options = database("rep_large").await;
    let client = client(&options).await;
    client
        .batch_execute(
            "CREATE TABLE public.t (id int PRIMARY KEY, x text); CREATE PUBLICATION p FOR TABLE public.t",
        )
        .await
        .unwrap();
    let mut stream = started(&options, "rep_large", "p").await;
    client
        .batch_execute(
            "INSERT INTO public.t SELECT i, repeat('x', i % 50) FROM generate_series(1, 50000) i;
             INSERT INTO public.t VALUES (0, repeat('y', 3000000))",
        )
        .await
        .unwrap();
    let frames = frames_until(&mut stream, is_commit).await;
    let inserts = frames
        .iter()
        .filter(
            |frame| matches!(frame, Frame::XLogData { data, .. } if data.first() == Some(&b'I')),
        )
        .count();
    assert_eq!(inserts, 50_001);
    stream.close().await.unwrap();
    // Released at once: another may read it.
    slot::drop_slot(&client, "rep_large").await.unwrap();
}

#[tokio::test]
async fn an_idle_slot_advances_with_keepalives() {
    let options = database("rep_idle").await;
    let client = client(&options).await;
    client
        .batch_execute("CREATE TABLE public.t (id int); CREATE PUBLICATION p FOR TABLE public.t")
        .await
        .unwrap();
    let mut stream = started(&options, "rep_idle", "p").await;
    // What nobody captures moves the log on.
    client
        .batch_execute("CREATE TABLE public.other AS SELECT generate_series(1, 1000)")
        .await
        .unwrap();
    let target = slot::current_lsn(&client).await.unwrap();
    stream
        .send_status(Lsn::ZERO, Lsn::ZERO, true)
        .await
        .unwrap();
    let mut reached = Lsn::ZERO;
    let reach = async {
        while reached < target {
            frames_until(&mut stream, |frame| match frame {
                Frame::Keepalive { wal_end, .. } => {
                    reached = *wal_end;
                    true
                }
                Frame::XLogData { .. } => false,
            })
            .await;
            stream.send_status(reached, reached, true).await.unwrap();
        }
    };
    timeout(PATIENCE, reach)
        .await
        .expect("keepalives did not reach the end of the log");
    let confirmed = async {
        loop {
            let state = slot::state(&client, "rep_idle").await.unwrap().unwrap();
            if state.confirmed_flush_lsn >= Some(target) {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let state = timeout(PATIENCE, confirmed)
        .await
        .expect("the slot did not advance");
    assert!(state.active && state.active_pid.is_some());
    assert_eq!(state.plugin.as_deref(), Some("pgoutput"));
    assert_eq!(state.database.as_deref(), Some("rep_idle"));
    assert!(state.active_application.unwrap().starts_with("alluvium "));
    assert_eq!(state.invalidation, None);

    let mut second = ReplicationConnection::connect(&options).await.unwrap();
    let error = second
        .start("rep_idle", Lsn::ZERO, &["p".to_owned()], Protocol::Auto)
        .await
        .unwrap_err();
    assert!(error.is(&code::PG_SLOT_ACTIVE), "{error:?}");
    assert!(
        error
            .message()
            .contains(&state.active_pid.unwrap().to_string()),
        "{error:?}"
    );
    stream.close().await.unwrap();
    slot::drop_slot(&client, "rep_idle").await.unwrap();
    slot::drop_slot(&client, "rep_idle").await.unwrap();
    assert_eq!(slot::state(&client, "rep_idle").await.unwrap(), None);
}

#[tokio::test]
async fn what_is_missing_is_told_apart() {
    let options = database("rep_missing").await;
    let client = client(&options).await;
    let mut stream = ReplicationConnection::connect(&options).await.unwrap();
    let error = stream
        .start("not_there", Lsn::ZERO, &["p".to_owned()], Protocol::Auto)
        .await
        .unwrap_err();
    assert!(error.is(&code::PG_SLOT_LOST), "{error:?}");

    client
        .batch_execute("CREATE TABLE public.t (id int PRIMARY KEY)")
        .await
        .unwrap();
    let mut stream = started(&options, "rep_missing", "not_there").await;
    let again = ReplicationConnection::connect(&options)
        .await
        .unwrap()
        .create_slot("rep_missing", SlotKind::default())
        .await;
    assert!(again.unwrap_err().is(&code::PG_QUERY));
    client
        .batch_execute("INSERT INTO public.t VALUES (1)")
        .await
        .unwrap();
    if cluster().version() >= 18 {
        // From then on the server only warns.
        stream.close().await.unwrap();
        drop_when_free(&client, "rep_missing").await;
        return;
    }
    let error = timeout(PATIENCE, async {
        loop {
            match stream.next_frame() {
                Err(error) => return error,
                Ok(Some(_)) => {}
                Ok(None) => {
                    if let Err(error) = stream.fill().await {
                        return error;
                    }
                }
            }
        }
    });
    let error = error.await.unwrap();
    assert!(error.is(&code::PG_PUBLICATION), "{error:?}");
    drop_when_free(&client, "rep_missing").await;
}

#[tokio::test]
async fn a_terminated_walsender_is_a_lost_connection() {
    let options = database("rep_killed").await;
    let client = client(&options).await;
    client.batch_execute("CREATE PUBLICATION p").await.unwrap();
    let mut stream = started(&options, "rep_killed", "p").await;
    let sql = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'rep_killed'";
    client.batch_execute(sql).await.unwrap();
    let lost = async {
        loop {
            let step = match stream.next_frame() {
                Ok(None) => stream.fill().await.map(|_| ()),
                other => other.map(|_| ()),
            };
            if let Err(error) = step {
                return error;
            }
        }
    };
    let error = timeout(PATIENCE, lost).await.unwrap();
    assert!(error.is(&code::PG_CONNECTION_LOST), "{error:?}");
    drop_when_free(&client, "rep_killed").await;
}
