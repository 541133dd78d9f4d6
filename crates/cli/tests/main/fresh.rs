//! Queries in a running pipeline: what no commit has yet is seen, whole transactions at a time, all
//! tables at one position.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use alluvium_testkit::{Alluvium, PgCluster};
use serde_json::Value;

use crate::http::{address_of, get, post_sql};
use crate::setup::{Setup, terminate};

fn query(address: SocketAddr, sql: &str) -> Value {
    let answer = post_sql(address, "text/plain", sql);
    assert_eq!(answer.status, 200, "{sql}: {}", answer.json());
    answer.json()
}

fn serving(sql: &str, more: &str) -> (Setup, Alluvium, SocketAddr) {
    let pg = PgCluster::start(None, &[]).unwrap();
    let more = format!("[serve.http]\nlisten = \"127.0.0.1:0\"\n{more}");
    let setup = Setup::on(pg, sql, "\"public.*\"", &more);
    let running = setup.spawn_run();
    let address = address_of(&setup, &running);
    setup.wait(&running, "all tables are live", || {
        let tables = get(address, "/api/v1/status").json()["tables"].clone();
        let tables = tables.as_array().cloned().unwrap_or_default();
        !tables.is_empty() && tables.iter().all(|table| table["phase"] == "live")
    });
    (setup, running, address)
}

/// The source's rows as the server prints them in JSON.
fn at_source(setup: &Setup, select: &str) -> Value {
    let json = format!("SELECT coalesce(json_agg(row_to_json(q)), '[]')::text FROM ({select}) q");
    serde_json::from_str(&setup.pg.query_text(&json).unwrap()).unwrap()
}

const ROWS: &str = "SELECT id, v, length(big) AS n FROM t ORDER BY id";

#[test]
fn a_query_sees_what_no_commit_has_yet() {
    let (setup, running, address) = serving(
        "CREATE TABLE t (id int PRIMARY KEY, v text, big text);
         ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
         INSERT INTO t SELECT g, 'copied', repeat('x', 5000) FROM generate_series(1, 50) g;
         CREATE TABLE heap (a int, b text);
         ALTER TABLE heap REPLICA IDENTITY FULL",
        "[commit]\nmin_interval_ms = 600000\nmax_interval_ms = 600000\n",
    );
    let version = || {
        let tables = get(address, "/api/v1/status").json()["tables"].clone();
        let table = |name| {
            let tables = tables.as_array().unwrap().iter();
            let mut found = tables.filter(|table| table["table"] == name);
            found.next().unwrap()["silver_version"].clone()
        };
        [table("public.t"), table("public.heap")]
    };
    let before = version();
    let steps = [
        "INSERT INTO t SELECT g, 'new', repeat('y', g) FROM generate_series(51, 80) g",
        "UPDATE t SET v = 'changed' WHERE id % 3 = 0",
        "DELETE FROM t WHERE id % 5 = 0",
        "UPDATE t SET id = id + 1000 WHERE id BETWEEN 20 AND 60",
        "UPDATE t SET v = v || '!' WHERE id > 1000",
        "INSERT INTO heap SELECT g % 3, 'h' FROM generate_series(1, 9) g; DELETE FROM heap WHERE a = 1",
        "TRUNCATE t; INSERT INTO t VALUES (1, 'after', 'z')",
        "INSERT INTO t SELECT g, 'more', 'w' FROM generate_series(2, 3000) g",
        "UPDATE t SET v = 'last' WHERE id < 2000",
    ];
    for step in steps {
        setup.pg.execute(step).unwrap();
        for select in [
            ROWS,
            "SELECT a, b FROM heap ORDER BY a, b",
            "SELECT count(*) AS n FROM t",
        ] {
            let expected = at_source(&setup, select);
            setup.wait(&running, &format!("{step}: {select}"), || {
                query(address, select) == expected
            });
        }
        let some = "SELECT v FROM t WHERE id = 1003 OR id = 3 ORDER BY id";
        assert_eq!(query(address, some), at_source(&setup, some), "{step}");
    }
    assert_eq!(version(), before, "nothing of it was committed");
    terminate(running);
    setup.assert_equal();
}

#[test]
fn transfers_between_two_tables_are_never_seen_by_halves() {
    let (setup, running, address) = serving(
        "ALTER DATABASE postgres SET synchronous_commit = off;
         CREATE TABLE a (id int PRIMARY KEY, v bigint);
         CREATE TABLE b (id int PRIMARY KEY, v bigint);
         INSERT INTO a SELECT g, 1000 FROM generate_series(1, 20) g;
         INSERT INTO b SELECT g, 1000 FROM generate_series(1, 20) g;
         CREATE TABLE steps (id int PRIMARY KEY, n bigint);
         INSERT INTO steps VALUES (1, 0)",
        "[commit]\nmin_interval_ms = 20\n",
    );
    const TRANSFERS: &str = "DO $$ BEGIN
           FOR i IN 1..2500 LOOP
             UPDATE a SET v = v - i WHERE id = 1 + i % 20;
             UPDATE b SET v = v + i WHERE id = 1 + (i * 7) % 20;
             UPDATE steps SET n = n + 1;
             COMMIT;
             PERFORM pg_sleep(0.001) WHERE i % 2 = 0;
           END LOOP;
         END $$";
    let done = AtomicBool::new(false);
    let (mut queries, mut seen, mut states) = (0, 0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            setup.pg.execute(TRANSFERS).unwrap();
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) || seen < 2500 {
            let row = query(
                address,
                "SELECT (SELECT sum(v) FROM a) + (SELECT sum(v) FROM b) AS total,
                        (SELECT n FROM steps) AS n",
            );
            assert_eq!(row[0]["total"], 40_000, "{row}");
            let n = row[0]["n"].as_i64().unwrap();
            assert!(n >= seen, "{n} after {seen}");
            states += usize::from(n > seen);
            (seen, queries) = (n, queries + 1);
            assert!(queries < 100_000, "{}", running.stderr());
        }
    });
    assert!(states > 10, "{states} states in {queries} queries");
    terminate(running);
    setup.assert_equal();
}
