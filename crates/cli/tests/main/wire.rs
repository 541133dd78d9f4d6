//! The lake by PostgreSQL's protocol: what a client reads is what it would read at the source.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alluvium_testkit::{Alluvium, PgCluster};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::Value;
use tokio::task::AbortHandle;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::http::{address_of, scrape};
use crate::setup::{Setup, terminate};

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// Where the running pipeline serves.
pub(crate) fn port_of(setup: &Setup, running: &Alluvium) -> u16 {
    let port = || {
        let stderr = running.stderr();
        let (_, after) = stderr.split_once("address=postgres://127.0.0.1:")?;
        after.split('/').next()?.parse::<u16>().ok()
    };
    setup.wait(running, "it serves", || port().is_some());
    port().unwrap()
}

pub(crate) async fn connect(config: &str) -> Client {
    connect_for(config).await.0
}

/// A client, and what talks for it: it may be cut off.
async fn connect_for(config: &str) -> (Client, AbortHandle) {
    let config: Config = config.parse().unwrap();
    let (client, connection) = config.connect(NoTls).await.unwrap();
    (client, tokio::spawn(connection).abort_handle())
}

const LISTEN: &str = "[serve.pg]\nlisten = \"127.0.0.1:0\"\n";

/// A lake of live tables, a pipeline that serves it, and how to connect there.
fn serving(create: &str, more: &str) -> (Setup, Alluvium, String) {
    let pg = PgCluster::start(None, &[]).unwrap();
    let setup = Setup::on(pg, create, "\"public.*\"", more);
    let running = setup.spawn_run();
    let port = port_of(&setup, &running);
    setup.wait(&running, "all are live", || {
        let status = setup.alluvium(&["status", "--output", "json"]).stdout;
        let status: Value = serde_json::from_str(&status).unwrap_or_default();
        let tables = status["tables"].as_array().cloned().unwrap_or_default();
        !tables.is_empty() && tables.iter().all(|table| table["phase"] == "live")
    });
    (
        setup,
        running,
        format!("host=127.0.0.1 port={port} user=me dbname=lake"),
    )
}

/// A value as it came.
#[derive(Debug, PartialEq, Eq)]
struct Raw(Option<Vec<u8>>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Some(raw.to_vec())))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

async fn texts(client: &Client, query: &str) -> Vec<Vec<Option<String>>> {
    let messages = client.simple_query(query).await.unwrap();
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.map(|row| {
        (0..row.len())
            .map(|nth| row.get(nth).map(str::to_owned))
            .collect()
    })
    .collect()
}

/// Types and values, in binary.
async fn binaries(client: &Client, query: &str) -> Vec<Vec<(Type, Raw)>> {
    let rows = client.query(query, &[]).await.unwrap();
    rows.iter()
        .map(|row| {
            let columns = row.columns().iter().enumerate();
            columns
                .map(|(nth, column)| (column.type_().clone(), row.get::<_, Raw>(nth)))
                .collect()
        })
        .collect()
}

async fn copied(client: &Client, query: &str) -> Vec<u8> {
    let pieces = client.copy_out(query).await.unwrap();
    let pieces: Vec<_> = pieces.try_collect().await.unwrap();
    pieces.concat()
}

const TYPES: &str = "CREATE TABLE t (id int PRIMARY KEY, b bool, i2 smallint, i8 bigint, f4 real, f8 double precision,
        n numeric(20,6), n0 numeric(9), t text, by bytea, d date, ts timestamp, tz timestamptz, ia int[], ta text[],
        na numeric(8,2)[], aa int[][]);
     INSERT INTO t VALUES
        (1, true, -32768, 9223372036854775807, 1.5, -0.1, 12345.678901, 42, 'a ''b'' \"c\"', '\\x00ff10', '2024-02-29',
         '2024-02-29 23:59:59.999999', '2024-02-29 23:59:59.5+05:30', '{1,NULL,-3}', '{a,NULL,\"NULL\",\"\",\"b c\",\"q\\\"q\",\"x,y\",\"{}\"}',
         '{1.50,NULL,-0.01}', '{{1,2},{3,NULL}}'),
        (2, false, 0, -1, 'NaN', 'Infinity', 0, 0, '', '\\x', '0044-03-15 BC', '4712-01-01 00:00:00 BC', '0001-01-01 00:00:00+00', '{}', '{}', '{}', '{}'),
        (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
        (4, true, 32767, 0, 1e-7, 1e300, -0.000001, -7, 'ü日本', '\\x61', '9999-12-31', '1970-01-01 00:00:00', '294246-01-01 00:00:00+00', '{7}', '{t}', '{0}', '{{5}}'),
        (5, true, 1, 1, 123456.7, 123456789012345.6, 99999999999999.999999, 1, 't', '\\x01', '1970-01-01', '2000-01-01 00:00:00.000001', '1999-12-31 23:59:59.999999+00', '{1}', '{x}', '{10000.00}', '{{1}}'),
        (6, true, 1, 1, 1e6, 1e15, 10000, 1, 't', '\\x01', '1970-01-01', '2000-01-01', '2000-01-01', '{1}', '{x}', '{1}', '{{1}}');";

#[test]
fn a_client_reads_the_bytes_it_would_read_at_the_source() {
    let (setup, running, here) = serving(TYPES, LISTEN);
    runtime().block_on(async {
        let source = connect(&setup.pg.url("postgres")).await;
        let lake = connect(&here).await;
        for zone in ["UTC", "+05:30", "America/New_York"] {
            let set = format!("SET TIME ZONE '{zone}'");
            source.batch_execute(&set).await.unwrap();
            lake.batch_execute(&set).await.unwrap();
            let query = "SELECT * FROM t ORDER BY id";
            let (expected, found) = (texts(&source, query).await, texts(&lake, query).await);
            for (expected, found) in expected.iter().zip(&found) {
                assert_eq!(found, expected, "{zone}");
            }
            assert_eq!(found.len(), 6);
        }
        for form in [
            "",
            "WITH (FORMAT csv, HEADER, NULL 'none')",
            "CSV",
            "(FORMAT binary)",
        ] {
            let query = format!("COPY (SELECT * FROM t ORDER BY id) TO STDOUT {form}");
            let (expected, found) = (copied(&source, &query).await, copied(&lake, &query).await);
            let text = String::from_utf8_lossy;
            assert!(
                found == expected,
                "{form}: {} instead of {}",
                text(&found),
                text(&expected)
            );
        }
        let query = "SELECT * FROM t ORDER BY id";
        let (expected, found) = (binaries(&source, query).await, binaries(&lake, query).await);
        for (expected, found) in expected.iter().zip(&found) {
            assert_eq!(found, expected);
        }
        assert_eq!(found.len(), 6);
    });
    terminate(running);
}

#[test]
fn statements_have_parameters_and_settings_and_cursors() {
    let create = "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric(10,2));
        INSERT INTO t SELECT g, 'v' || g, g / 4.0 FROM generate_series(1, 20000) g";
    let (_setup, running, here) = serving(create, LISTEN);
    runtime().block_on(async {
        let mut lake = connect(&here).await;
        let row = lake
            .query_one("SELECT v FROM t WHERE id = $1", &[&17i32])
            .await
            .unwrap();
        assert_eq!(row.get::<_, &str>(0), "v17");
        let found = lake
            .query(
                "SELECT id FROM t WHERE v = $1 OR id < $2 ORDER BY id",
                &[&"v99", &3i32],
            )
            .await
            .unwrap();
        let ids: Vec<i32> = found.iter().map(|row| row.get(0)).collect();
        assert_eq!(ids, [1, 2, 99]);
        // A write is refused as a standby refuses it.
        let error = lake
            .batch_execute("INSERT INTO t VALUES (0)")
            .await
            .unwrap_err();
        assert_eq!(error.code().unwrap().code(), "25006");
        for (wrong, code) in [
            ("SELECT * FROM nowhere", "42P01"),
            ("SELECT nothing FROM t", "42703"),
            ("SELEC 1", "42601"),
            ("SET nonsense = 1", "42704"),
        ] {
            let error = lake.batch_execute(wrong).await.unwrap_err();
            assert_eq!(
                error.code().map(|code| code.code()),
                Some(code),
                "{wrong}: {error}"
            );
        }
        lake.batch_execute("SET statement_timeout = '7s'")
            .await
            .unwrap();
        assert_eq!(
            texts(&lake, "SHOW statement_timeout").await,
            [[Some("7s".to_owned())]]
        );
        // Portals give rows in parts.
        let transaction = lake.transaction().await.unwrap();
        let portal = transaction
            .bind("SELECT id FROM t ORDER BY id", &[])
            .await
            .unwrap();
        let (first, second) = (
            transaction.query_portal(&portal, 3).await.unwrap(),
            transaction.query_portal(&portal, 0).await.unwrap(),
        );
        assert_eq!((first.len(), second.len()), (3, 19_997));
        assert_eq!(second[0].get::<_, i32>(0), 4);
        transaction.commit().await.unwrap();
        lake.batch_execute("BEGIN; DECLARE c CURSOR FOR SELECT id FROM t ORDER BY id")
            .await
            .unwrap();
        assert_eq!(
            texts(&lake, "FETCH 2 FROM c").await,
            [[Some("1".to_owned())], [Some("2".to_owned())]]
        );
        assert_eq!(texts(&lake, "FETCH ALL FROM c").await.len(), 19_998);
        lake.batch_execute("COMMIT").await.unwrap();
        let error = lake.batch_execute("FETCH 1 FROM c").await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "34000");
        // Several statements at once, and nothing at all.
        assert_eq!(texts(&lake, "SELECT 1; SELECT 2;").await.len(), 2);
        lake.batch_execute("").await.unwrap();
        // The newest of what was copied, or of what came since.
        let lsn = texts(&lake, "SELECT count(*) FROM t; SHOW alluvium.lsn").await;
        assert!(lsn[1][0].as_ref().unwrap().contains('/'), "{lsn:?}");
    });
    terminate(running);
}

#[test]
fn who_has_no_password_stays_outside_and_what_runs_can_be_ended() {
    let create =
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 20000)";
    let more = format!("{LISTEN}max_connections = 2\n[serve.pg.users]\nann = \"s3cret\"\n");
    let (_setup, running, anybody) = serving(create, &more);
    let here = |user: &str, password: &str| format!("{anybody} user={user} password={password}");
    runtime().block_on(async {
        for (user, password) in [("ann", "wrong"), ("bob", "s3cret")] {
            let refused = here(user, password)
                .parse::<Config>()
                .unwrap()
                .connect(NoTls)
                .await
                .err()
                .unwrap();
            assert_eq!(
                refused.code().map(|code| code.code()),
                Some("28P01"),
                "{refused:?}"
            );
        }
        let lake = connect(&here("ann", "s3cret")).await;
        // Far too many pairs.
        let endless = "SELECT count(*) FROM t a, t b, t c WHERE a.id + b.id + c.id = -1";
        let cancel = lake.cancel_token();
        let ended = tokio::join!(lake.simple_query(endless), async {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            cancel.cancel_query(NoTls).await.unwrap();
        });
        assert_eq!(ended.0.unwrap_err().code().unwrap().code(), "57014");
        lake.batch_execute("SET statement_timeout = 300")
            .await
            .unwrap();
        let late = lake.simple_query(endless).await.unwrap_err();
        assert_eq!(late.code().unwrap().code(), "57014");
        assert_eq!(texts(&lake, "SELECT 1").await.len(), 1);
        let _second = connect(&here("ann", "s3cret")).await;
        let third = here("ann", "s3cret")
            .parse::<Config>()
            .unwrap()
            .connect(NoTls)
            .await
            .err()
            .unwrap();
        assert_eq!(third.code().map(|code| code.code()), Some("53300"));
    });
    assert!(!running.stderr().contains("s3cret"));
    terminate(running);
}

/// What a process holds open.
fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

#[test]
fn many_clients_come_and_go_and_leave_nothing() {
    let create = "CREATE TABLE t (id int PRIMARY KEY, v text);
        INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(1, 100000) g";
    let more = "[serve.http]\nlisten = \"127.0.0.1:0\"\n[serve.pg]\nlisten = \"127.0.0.1:0\"\nmax_connections = 200\n";
    let (setup, running, here) = serving(create, more);
    let http = address_of(&setup, &running);
    let connections = || scrape(http).1["alluvium_sql_connections"];
    let runtime = runtime();
    // Once without counting: what is made at the first query stays.
    runtime.block_on(async {
        connect(&here)
            .await
            .batch_execute("SELECT count(*) FROM t")
            .await
            .unwrap()
    });
    setup.wait(&running, "it left", || connections() == 0.0);
    let before = open_files(running.pid());
    runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..200 {
            clients.push(connect_for(&here).await);
        }
        let busy =
            clients
                .iter()
                .skip(100)
                .enumerate()
                .map(|(nth, (client, talking))| async move {
                    if nth % 4 == 0 {
                        // Leaves in the middle of its rows.
                        let rows = client
                            .query_raw("SELECT a.v FROM t a, t b", &[] as &[i32; 0])
                            .await
                            .unwrap();
                        let mut rows = std::pin::pin!(rows.take(10));
                        while let Some(row) = rows.next().await {
                            assert_eq!(row.unwrap().len(), 1);
                        }
                        talking.abort();
                        return;
                    }
                    let rows = client
                        .query("SELECT id FROM t WHERE id <= $1", &[&nth_id(nth)])
                        .await
                        .unwrap();
                    assert_eq!(rows.len(), nth);
                });
        let busy = futures::future::join_all(busy);
        busy.await;
        for (client, _) in clients.iter().take(100) {
            assert_eq!(texts(client, "SELECT 1").await.len(), 1);
        }
    });
    drop(runtime);
    setup.wait(&running, "all left", || connections() == 0.0);
    setup.wait(&running, "nothing runs", || {
        scrape(http).1["alluvium_sql_running_queries"] == 0.0
    });
    let after = open_files(running.pid());
    assert!(after <= before, "{before} open files became {after}");
    terminate(running);
}

fn nth_id(nth: usize) -> i32 {
    i32::try_from(nth).unwrap()
}

/// Moves money between the tables, a transaction each time, until told to end.
async fn transfer(source: String, end: Arc<AtomicBool>, mut seed: i32) -> u64 {
    let client = connect(&source).await;
    let mut transfers = 0;
    while !end.load(Ordering::Relaxed) {
        seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        let (from, to, amount) = (seed.rem_euclid(50), (seed / 64).rem_euclid(50), seed % 100);
        let sql = format!(
            "BEGIN; UPDATE checking SET balance = balance - {amount} WHERE id = {from};
             UPDATE saving SET balance = balance + {amount} WHERE id = {to}; COMMIT"
        );
        // Two may want each other's rows: one of them is rolled back.
        if client.batch_execute(&sql).await.is_ok() {
            transfers += 1;
        } else {
            client.batch_execute("ROLLBACK").await.unwrap();
        }
    }
    transfers
}

#[test]
fn a_query_never_sees_half_of_a_transaction() {
    let create = "CREATE TABLE checking (id int PRIMARY KEY, balance bigint NOT NULL);
        CREATE TABLE saving (id int PRIMARY KEY, balance bigint NOT NULL);
        INSERT INTO checking SELECT g, 1000 FROM generate_series(0, 49) g;
        INSERT INTO saving SELECT g, 1000 FROM generate_series(0, 49) g";
    let (setup, running, here) = serving(create, LISTEN);
    let source = setup.pg.url("postgres");
    let end = Arc::new(AtomicBool::new(false));
    let (transfers, states) = runtime().block_on(async {
        let writers =
            (0..2).map(|seed| tokio::spawn(transfer(source.clone(), Arc::clone(&end), seed)));
        let writers: Vec<_> = writers.collect();
        let readers = (0..4).map(|_| async {
            let lake = connect(&here).await;
            let query =
                "SELECT (SELECT sum(balance) FROM checking), (SELECT sum(balance) FROM saving)";
            let query = lake.prepare(query).await.unwrap();
            let mut states = BTreeSet::new();
            for _ in 0..2500 {
                let row = lake.query_one(&query, &[]).await.unwrap();
                let (checking, saving) = (row.get::<_, i64>(0), row.get::<_, i64>(1));
                assert_eq!(checking + saving, 100_000);
                states.insert(checking);
            }
            states.len()
        });
        let states = futures::future::join_all(readers).await;
        end.store(true, Ordering::Relaxed);
        let writers = futures::future::join_all(writers).await;
        let transfers: u64 = writers.into_iter().map(|writer| writer.unwrap()).sum();
        (transfers, states)
    });
    // They were not all of one state.
    assert!(
        states.iter().all(|states| *states > 100),
        "{states:?} of {transfers}"
    );
    terminate(running);
}
