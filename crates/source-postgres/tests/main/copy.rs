//! The initial copy equals what a query in the same snapshot sees.

use std::collections::BTreeSet;

use alluvium_change::code;
use alluvium_source_postgres::catalog::SourceTable;
use alluvium_source_postgres::connect::ConnectOptions;
use alluvium_source_postgres::copy::{
    CopyRange, CopySession, SnapshotSession, is_snapshot_gone, plan_ranges,
};
use alluvium_source_postgres::replication::{ReplicationConnection, SlotKind};
use arrow::array::{Array as _, Int32Array, RecordBatch, StringArray};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::{client, database, table, tables};

const BATCH_BYTES: usize = 100_000;

async fn exporter(options: &ConnectOptions, slot: &str) -> (ReplicationConnection, String) {
    let mut connection = ReplicationConnection::connect(options).await.unwrap();
    let created = connection
        .create_slot(
            slot,
            SlotKind {
                temporary: true,
                ..SlotKind::default()
            },
        )
        .await
        .unwrap();
    (connection, created.snapshot_name)
}

async fn copy(
    session: &mut CopySession,
    table: &SourceTable,
    range: CopyRange,
) -> Vec<RecordBatch> {
    let mut reader = session.copy_range(table, range, BATCH_BYTES).await.unwrap();
    let mut batches = Vec::new();
    while let Some(batch) = reader.next().await.unwrap() {
        batches.push(batch);
    }
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(reader.rows(), u64::try_from(rows).unwrap());
    batches
}

async fn copy_all(session: &mut CopySession, table: &SourceTable) -> Vec<RecordBatch> {
    let mut batches = Vec::new();
    for range in plan_ranges(table, 1 << 30) {
        batches.extend(copy(session, table, range).await);
    }
    batches
}

fn ints(batches: &[RecordBatch], column: usize) -> Vec<i32> {
    let ints = |batch: &RecordBatch| {
        let array = batch
            .column(column)
            .as_any()
            .downcast_ref::<Int32Array>()
            .unwrap()
            .clone();
        array.values().to_vec()
    };
    batches.iter().flat_map(ints).collect()
}

#[tokio::test]
async fn ranges_in_several_sessions_hold_every_row_of_the_snapshot_once() {
    let options = database("copy_ranges").await;
    let writer = client(&options).await;
    writer
        .batch_execute(
            "CREATE TABLE public.t (id int PRIMARY KEY, x text, n int);
             INSERT INTO public.t SELECT i, repeat('x', i % 90), i FROM generate_series(1, 20000) i;
             UPDATE public.t SET n = -n WHERE id % 3 = 0; DELETE FROM public.t WHERE id % 7 = 0;
             ANALYZE public.t",
        )
        .await
        .unwrap();
    let found = tables(&writer).await;
    let t = table(&found, "t");
    assert!(t.estimated_rows > 10_000.0 && t.total_bytes > 1_000_000);
    let (_exporter, snapshot) = exporter(&options, "copy_ranges").await;
    // After the snapshot: not to be seen.
    writer
        .batch_execute("UPDATE public.t SET n = 0; DELETE FROM public.t WHERE id < 9000; INSERT INTO public.t VALUES (99999)")
        .await
        .unwrap();

    let looking = SnapshotSession::open(&options, &snapshot).await.unwrap();
    assert!(!looking.lock(t).await.unwrap().rewritten);
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(CopySession::open(&options, &snapshot).await.unwrap());
    }
    let ranges = plan_ranges(t, 200_000);
    assert!(ranges.len() > 5, "{ranges:?}");
    assert_eq!(ranges.last().unwrap().end_page, None);
    let (mut ids, mut sum) = (Vec::new(), 0_i64);
    for (at, range) in ranges.iter().enumerate() {
        let batches = copy(&mut sessions[at % 3], t, *range).await;
        ids.extend(ints(&batches, 0));
        sum += ints(&batches, 2).iter().map(|&n| i64::from(n)).sum::<i64>();
    }
    let expected: BTreeSet<i32> = (1..=20_000).filter(|id| id % 7 != 0).collect();
    assert_eq!(ids.len(), expected.len());
    assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), expected);
    let row = looking
        .client()
        .query_one("SELECT sum(n)::int8 FROM public.t", &[])
        .await
        .unwrap();
    assert_eq!(sum, row.get::<_, i64>(0));
}

#[tokio::test]
async fn texts_are_those_of_the_output_functions_and_nulls_stay() {
    let options = database("copy_texts").await;
    let client = client(&options).await;
    client
        .batch_execute(
            r#"CREATE TYPE public.pair AS (a int, b text); CREATE TYPE public."Mood" AS ENUM ('so so', 'ok');
               CREATE TABLE public.t (id int PRIMARY KEY, c char(5), i inet, iv interval, b bit(3), tz timetz, x xml, ts tsvector,
                                      cl regclass, ct circle, t time, ar inet[], p public.pair, m public."Mood", n numeric);
               INSERT INTO public.t VALUES
                 (1, 'ab', '10.0.0.1/32', '1 year -3 days 04:05:06.7', '101', '04:05:06.5+05:30', '<a/>', 'a:1 b', 'public.t',
                  '<(1,2),3>', '24:00:00', '{10.0.0.1,NULL}', '(,)', 'so so', '1.500'),
                 (2, '', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);"#,
        )
        .await
        .unwrap();
    let found = tables(&client).await;
    let t = table(&found, "t");
    let (_exporter, snapshot) = exporter(&options, "copy_texts").await;
    let mut session = CopySession::open(&options, &snapshot).await.unwrap();
    let batches = copy_all(&mut session, t).await;
    assert_eq!(batches.len(), 1);
    let batch = &batches[0];
    for (name, expected) in [
        ("c", "ab   "),
        ("i", "10.0.0.1"),
        ("iv", "P1Y-3DT4H5M6.7S"),
        ("b", "101"),
        ("tz", "04:05:06.5+05:30"),
        ("x", "<a/>"),
        ("ts", "'a':1 'b'"),
        ("cl", "public.t"),
        ("ct", "<(1,2),3>"),
        ("t", "24:00:00"),
        ("m", "so so"),
        ("n", "1.500"),
    ] {
        let column = batch.column_by_name(name).unwrap();
        let column = column.as_any().downcast_ref::<StringArray>().unwrap();
        assert_eq!(column.value(0), expected, "{name}");
        assert_eq!(column.is_null(1), name != "c", "{name}");
    }
    let shown = |name: &str, row: usize| {
        let column = batch.column_by_name(name).unwrap().clone();
        let options = FormatOptions::default().with_null("NULL");
        ArrayFormatter::try_new(&column, &options)
            .unwrap()
            .value(row)
            .to_string()
    };
    assert_eq!(shown("ar", 0), "[10.0.0.1, NULL]");
    // A composite of NULLs is not NULL.
    assert_eq!(shown("p", 0), "{a: NULL, b: NULL}");
    assert_eq!(shown("p", 1), "NULL");
}

#[tokio::test]
async fn partitions_in_another_physical_order_and_inheritance() {
    let options = database("copy_partitions").await;
    let client = client(&options).await;
    client
        .batch_execute(
            r"CREATE TABLE public.part (k int PRIMARY KEY, v int) PARTITION BY RANGE (k);
              CREATE TABLE public.part_1 (dropped int, v int, k int NOT NULL); ALTER TABLE public.part_1 DROP COLUMN dropped;
              ALTER TABLE public.part ATTACH PARTITION public.part_1 FOR VALUES FROM (0) TO (10);
              CREATE TABLE public.part_2 PARTITION OF public.part FOR VALUES FROM (10) TO (20);
              INSERT INTO public.part SELECT i, 100 + i FROM generate_series(0, 19) i;
              CREATE TABLE public.parent (a int PRIMARY KEY); CREATE TABLE public.child (PRIMARY KEY (a)) INHERITS (public.parent);
              INSERT INTO public.parent VALUES (1); INSERT INTO public.child VALUES (2);
              CREATE TABLE public.no_rows (a int PRIMARY KEY);",
        )
        .await
        .unwrap();
    let found = tables(&client).await;
    let (_exporter, snapshot) = exporter(&options, "copy_partitions").await;
    let looking = SnapshotSession::open(&options, &snapshot).await.unwrap();
    looking.lock(table(&found, "part")).await.unwrap();
    let mut session = CopySession::open(&options, &snapshot).await.unwrap();
    let batches = copy_all(&mut session, table(&found, "part")).await;
    assert_eq!(ints(&batches, 0), (0..20).collect::<Vec<_>>());
    assert_eq!(ints(&batches, 1), (100..120).collect::<Vec<_>>());
    assert_eq!(
        ints(&copy_all(&mut session, table(&found, "parent")).await, 0),
        [1]
    );
    assert_eq!(
        ints(&copy_all(&mut session, table(&found, "child")).await, 0),
        [2]
    );
    assert!(
        copy_all(&mut session, table(&found, "no_rows"))
            .await
            .is_empty()
    );
}

#[tokio::test]
async fn a_value_that_does_not_fit_is_named() {
    let options = database("copy_invalid").await;
    let client = client(&options).await;
    client
        .batch_execute(
            "CREATE TABLE public.t (a int, d date, b text, PRIMARY KEY (b, a));
             INSERT INTO public.t VALUES (1, '2020-01-01', 'x'), (7, 'infinity', 'k')",
        )
        .await
        .unwrap();
    let found = tables(&client).await;
    let (_exporter, snapshot) = exporter(&options, "copy_invalid").await;
    let mut session = CopySession::open(&options, &snapshot).await.unwrap();
    let t = table(&found, "t");
    let range = plan_ranges(t, 1 << 20)[0];
    let error = session
        .copy_range(t, range, BATCH_BYTES)
        .await
        .unwrap()
        .next()
        .await
        .unwrap_err();
    assert!(error.is(&code::VALUE), "{error:?}");
    let told = format!(
        "{} {} {}",
        error.message(),
        error.detail().unwrap(),
        error.hint()
    );
    for part in [
        "public.t",
        "\"d\"",
        "infinity",
        "(b, a) = (k, 7)",
        "clamp",
        "null",
        "string",
        "error",
    ] {
        assert!(told.contains(part), "{part} is not in: {told}");
    }
}

#[tokio::test]
async fn snapshots_that_are_gone_and_tables_that_were_rewritten() {
    let options = database("copy_gone").await;
    let client = client(&options).await;
    client
        .batch_execute("CREATE TABLE public.t (a int); INSERT INTO public.t VALUES (1)")
        .await
        .unwrap();
    let found = tables(&client).await;
    let (exporter_connection, snapshot) = exporter(&options, "copy_gone").await;
    client.batch_execute("TRUNCATE public.t").await.unwrap();
    let session = SnapshotSession::open(&options, &snapshot).await.unwrap();
    assert!(session.lock(table(&found, "t")).await.unwrap().rewritten);
    drop(session);
    exporter_connection.close().await.unwrap();
    for name in [snapshot.as_str(), "00000003-0000001B-1", "no'nsense"] {
        // The server ends the exporting session in its own time.
        let mut opened = SnapshotSession::open(&options, name).await;
        for _ in 0..100 {
            if opened.is_err() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            opened = SnapshotSession::open(&options, name).await;
        }
        let copying = CopySession::open(&options, name).await.unwrap_err();
        for error in [opened.unwrap_err(), copying] {
            assert!(is_snapshot_gone(&error), "{error:?}");
        }
    }
    let mut elsewhere = options;
    elsewhere.port = 1;
    assert!(!is_snapshot_gone(
        &SnapshotSession::open(&elsewhere, "x").await.unwrap_err()
    ));
}

#[tokio::test]
async fn row_level_security_is_an_error_not_a_gap() {
    let admin_options = database("copy_rls").await;
    let admin = client(&admin_options).await;
    admin
        .batch_execute(
            "CREATE ROLE sees_little LOGIN; CREATE TABLE public.t (a int PRIMARY KEY); INSERT INTO public.t VALUES (1), (2);
             GRANT SELECT ON public.t TO sees_little; ALTER TABLE public.t ENABLE ROW LEVEL SECURITY;
             CREATE POLICY little ON public.t USING (a = 1)",
        )
        .await
        .unwrap();
    let found = tables(&admin).await;
    let t = table(&found, "t");
    let (_exporter, snapshot) = exporter(&admin_options, "copy_rls").await;
    let mut options = admin_options;
    options.user = "sees_little".into();
    let looking = SnapshotSession::open(&options, &snapshot).await.unwrap();
    looking.lock(t).await.unwrap();
    let mut session = CopySession::open(&options, &snapshot).await.unwrap();
    let error = match session
        .copy_range(t, plan_ranges(t, 1 << 20)[0], BATCH_BYTES)
        .await
    {
        Err(error) => error,
        Ok(mut reader) => reader.next().await.unwrap_err(),
    };
    assert!(error.is(&code::PG_RIGHTS), "{error:?}");
}

/// Without the locks a table may be rewritten between two ranges: its rows then have other places.
#[tokio::test]
async fn locks_that_were_lost_are_noticed() {
    let options = database("copy_locks_lost").await;
    let client = client(&options).await;
    client
        .batch_execute("CREATE TABLE public.t (id int PRIMARY KEY)")
        .await
        .unwrap();
    let found = tables(&client).await;
    let (_exporter, snapshot) = exporter(&options, "copy_locks_lost").await;
    let looking = SnapshotSession::open(&options, &snapshot).await.unwrap();
    looking.lock(table(&found, "t")).await.unwrap();
    looking.check().await.unwrap();
    let ended = client
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks
             WHERE relation = 'public.t'::regclass AND pid <> pg_backend_pid()",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(ended, 1);
    // The server ends the session in its own time.
    let mut checked = looking.check().await;
    for _ in 0..100 {
        if checked.is_err() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        checked = looking.check().await;
    }
    let error = checked.unwrap_err();
    assert!(error.is(&code::PG_CONNECTION_LOST), "{error:?}");
}

/// What is left of a copy that was given up is passed over by the next on the session, also where the
/// buffer ends within a row that is larger than it.
#[tokio::test]
async fn a_session_goes_on_after_a_copy_that_was_given_up() {
    let options = database("copy_given_up").await;
    let client = client(&options).await;
    client
        .batch_execute(
            "CREATE TABLE public.t (id int PRIMARY KEY, x text);
             INSERT INTO public.t SELECT i, repeat('x', 3000000) FROM generate_series(1, 3) i;
             INSERT INTO public.t SELECT i, repeat('y', 40) FROM generate_series(4, 60000) i",
        )
        .await
        .unwrap();
    let found = tables(&client).await;
    let t = table(&found, "t");
    let (_exporter, snapshot) = exporter(&options, "copy_given_up").await;
    let mut session = CopySession::open(&options, &snapshot).await.unwrap();
    let range = plan_ranges(t, 1 << 30)[0];
    let mut reader = session.copy_range(t, range, BATCH_BYTES).await.unwrap();
    let first = reader.next().await.unwrap().unwrap();
    assert_eq!(ints(&[first], 0), [1]);
    drop(reader);
    // Begun, and nothing of it read.
    drop(session.copy_range(t, range, BATCH_BYTES).await.unwrap());
    let batches = copy_all(&mut session, t).await;
    assert_eq!(ints(&batches, 0), (1..=60_000).collect::<Vec<_>>());
    let texts = batches[0].column(1).as_any();
    let texts = texts.downcast_ref::<StringArray>().unwrap();
    assert_eq!(texts.value(0).len(), 3_000_000);
}
