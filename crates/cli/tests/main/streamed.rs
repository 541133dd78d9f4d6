//! Large transactions that the server sends while they run: what is rolled back leaves no trace,
//! what is committed is there, wherever the pieces are cut and the process dies.

use std::time::Duration;

use alluvium_testkit::{Alluvium, PgCluster};

use crate::rebuild::bronze_rebuilds_silver;
use crate::settings::streamed;
use crate::setup::{CAUGHT_UP, PATIENCE, Setup, bin, terminate};

/// Makes the server send everything in pieces that is larger than a few dozen rows.
pub(crate) const SMALL_PIECES: &[(&str, &str)] = &[
    ("logical_decoding_work_mem", "64kB"),
    ("max_prepared_transactions", "5"),
];
pub(crate) const LEAST_MEMORY: &str = "[limits]\nmemory = \"128MiB\"\n";
pub(crate) const TABLES: &str = "
    CREATE TABLE a (id int PRIMARY KEY, v text, big text);
    ALTER TABLE a ALTER COLUMN big SET STORAGE EXTERNAL;
    CREATE TABLE b (n int, v text);
    ALTER TABLE b REPLICA IDENTITY FULL;
    CREATE TABLE c (id int PRIMARY KEY, v text);
    INSERT INTO a SELECT g, 'v' || g, repeat('x', 3000) FROM generate_series(1, 500) g;
    INSERT INTO b SELECT g % 50, 'b' FROM generate_series(1, 500) g;
    INSERT INTO c SELECT g, 'c' FROM generate_series(1, 500) g;";

fn setup(version: Option<u16>, more: &str) -> Setup {
    let pg = PgCluster::start(version, SMALL_PIECES).unwrap();
    let setup = Setup::on(pg, TABLES, "\"public.*\"", more);
    setup.catch_up();
    setup
}

pub(crate) fn insert(table: &str, from: u32, to: u32) -> String {
    let columns = if table == "a" {
        "g, md5(g::text), repeat('y', 2500)"
    } else {
        "g, md5(g::text)"
    };
    format!("INSERT INTO {table} SELECT {columns} FROM generate_series({from}, {to}) g;")
}

/// Savepoints rolled back and released, nested in each other.
fn savepoints(setup: &Setup) {
    let script = [
        "BEGIN;",
        &insert("a", 1001, 2000),
        "SAVEPOINT one; UPDATE a SET v = 'gone' WHERE id % 3 = 0;",
        &insert("a", 2001, 2500),
        "SAVEPOINT two; DELETE FROM a WHERE id % 5 = 0; RELEASE two;",
        "SAVEPOINT three; DELETE FROM b WHERE n % 3 = 0; ROLLBACK TO three;",
        &insert("b", 1, 2000),
        "ROLLBACK TO one;",
        "UPDATE a SET v = 'kept' WHERE id % 7 = 0;",
        &insert("a", 2501, 3000),
        "SAVEPOINT four; UPDATE a SET id = id + 700000 WHERE id % 11 = 0;",
        "SAVEPOINT five;",
        &insert("c", 1001, 3000),
        "RELEASE five; RELEASE four;",
        "SAVEPOINT six; TRUNCATE c;",
        &insert("c", 5001, 6000),
        "SAVEPOINT seven; TRUNCATE c, a; ROLLBACK TO seven; RELEASE six;",
        "DELETE FROM b WHERE n % 4 = 0;",
        "COMMIT;",
    ];
    setup.pg.execute(&script.concat()).unwrap();
    // Each round is a sub-transaction, each third is rolled back.
    setup
        .pg
        .execute(
            "DO $$ BEGIN
               FOR i IN 1..60 LOOP
                 BEGIN
                   INSERT INTO c SELECT 10000 + i * 100 + g, 'loop' FROM generate_series(1, 90) g;
                   UPDATE a SET v = 'loop ' || i WHERE id % 60 = i;
                   IF i % 3 = 0 THEN RAISE EXCEPTION 'back'; END IF;
                 EXCEPTION WHEN raise_exception THEN NULL;
                 END;
               END LOOP;
             END $$",
        )
        .unwrap();
    // Two-phase commits come as ordinary ones.
    for (name, end) in [("p1", "COMMIT"), ("p2", "ROLLBACK")] {
        let from = if end == "COMMIT" { 20_000 } else { 30_000 };
        let prepare = format!(
            "BEGIN; {} PREPARE TRANSACTION '{name}'",
            insert("a", from, from + 500)
        );
        setup.pg.execute(&prepare).unwrap();
        setup.pg.execute(&insert("b", 1, 10)).unwrap();
        setup
            .pg
            .execute(&format!("{end} PREPARED '{name}'"))
            .unwrap();
    }
}

/// Two large transactions side by side, one rolled back, small ones in between.
fn side_by_side(setup: &Setup) {
    let pg = &setup.pg;
    std::thread::scope(|scope| {
        for (table, from, end) in [
            ("a", 40_000, "COMMIT"),
            ("c", 50_000, "ROLLBACK"),
            ("c", 60_000, "COMMIT"),
        ] {
            scope.spawn(move || {
                let mut script = vec!["BEGIN;".to_owned()];
                for piece in 0..5 {
                    let from = from + piece * 1000;
                    script.push(insert(table, from, from + 700));
                    script.push("SAVEPOINT s;".to_owned());
                    script.push(format!(
                        "UPDATE {table} SET v = 'u' WHERE id BETWEEN {from} AND {from} + 300;"
                    ));
                    script.push("ROLLBACK TO s; SELECT pg_sleep(0.2);".to_owned());
                }
                script.push(format!("{end};"));
                pg.execute(&script.concat()).unwrap();
            });
        }
        for n in 0..20 {
            pg.execute(&format!("INSERT INTO b VALUES ({n}, 'between'); UPDATE a SET v = 'between' WHERE id = {n} + 2"))
                .unwrap();
            std::thread::sleep(Duration::from_millis(40));
        }
    });
}

pub(crate) fn equal(setup: &Setup) {
    setup.catch_up();
    setup.assert_equal();
    bronze_rebuilds_silver(setup, "a", Some("id"));
    bronze_rebuilds_silver(setup, "b", None);
    bronze_rebuilds_silver(setup, "c", Some("id"));
}

#[test]
fn transactions_sent_in_pieces_are_equal_on_every_version() {
    for version in PgCluster::versions_to_test().unwrap() {
        let setup = setup(Some(version), LEAST_MEMORY);
        savepoints(&setup);
        equal(&setup);
        side_by_side(&setup);
        equal(&setup);
        assert!(
            streamed(&setup.pg) >= 5 || version < 14,
            "version {version}"
        );
    }
}

/// A pipeline that runs meanwhile gets the pieces as they come, and keeps what goes beyond its memory
/// on disk.
#[test]
fn a_running_pipeline_spills_what_does_not_fit() {
    for more in ["", LEAST_MEMORY] {
        let setup = setup(None, more);
        let running = setup.spawn_run();
        setup.wait(&running, "it is live", || {
            setup.status("public.a")["phase"] == "live"
        });
        savepoints(&setup);
        side_by_side(&setup);
        // 12 MB, of which 4 are held in memory with the least budget.
        let large = [
            "BEGIN;",
            &insert("a", 100_000, 102_500),
            "SAVEPOINT s;",
            &insert("a", 110_000, 112_500),
            "ROLLBACK TO s;",
            "UPDATE a SET v = 'last' WHERE id >= 100000; COMMIT",
        ];
        setup.pg.execute(&large.concat()).unwrap();
        setup
            .pg
            .execute("INSERT INTO b VALUES (1000, 'last')")
            .unwrap();
        setup.wait(&running, "the last row is there", || {
            setup.sql("SELECT count(*) AS n FROM b WHERE n = 1000")[0]["n"] == 1
        });
        let log = terminate(running);
        assert_eq!(log.contains("goes to disk"), !more.is_empty(), "{log}");
        assert!(streamed(&setup.pg) >= 5);
        let spill = setup.dir.path().join(".alluvium/spill/alluvium_test");
        assert_eq!(std::fs::read_dir(&spill).map_or(0, Iterator::count), 0);
        equal(&setup);
    }
}

/// A column added in the transaction is there; one added in a savepoint that was rolled back, or a
/// type changed there, leaves no trace.
#[test]
fn a_shape_that_was_rolled_back_is_never_seen() {
    let setup = setup(None, LEAST_MEMORY);
    for running in [false, true] {
        let base = if running { 300_000 } else { 200_000 };
        let pipeline = running.then(|| setup.spawn_run());
        let name = format!("added_{running}");
        let script = [
            "BEGIN;",
            &insert("a", base, base + 500),
            "SAVEPOINT s; ALTER TABLE a ADD COLUMN gone int DEFAULT 5;",
            &insert("a", base + 1000, base + 1500),
            "ROLLBACK TO s; SAVEPOINT s; ALTER TABLE a ALTER COLUMN v TYPE varchar(50);",
            &insert("a", base + 2000, base + 2500),
            "ROLLBACK TO s;",
            &insert("a", base + 3000, base + 3500),
            "SAVEPOINT s; ALTER TABLE c RENAME COLUMN v TO w;",
            &insert("c", base, base + 1000),
            "ROLLBACK TO s; COMMIT;",
        ];
        setup.pg.execute(&script.concat()).unwrap();
        setup
            .pg
            .execute(&insert("a", base + 4000, base + 4010))
            .unwrap();
        let script = [
            "BEGIN;",
            &insert("c", base + 5000, base + 6000),
            &format!("SAVEPOINT s; ALTER TABLE c ADD COLUMN {name} int DEFAULT 7;"),
            &insert("c", base + 6001, base + 7000),
            "RELEASE s;",
            &format!(
                "UPDATE c SET {name} = id WHERE id >= {base} + 5500 AND id < {base} + 6500; COMMIT;"
            ),
        ];
        setup.pg.execute(&script.concat()).unwrap();
        setup
            .pg
            .execute(&insert("c", base + 8000, base + 8010))
            .unwrap();
        if let Some(pipeline) = pipeline {
            setup.wait(&pipeline, "the last row is there", || {
                setup.sql(&format!(
                    "SELECT count(*) AS n FROM c WHERE id = {base} + 8010"
                ))[0]["n"]
                    == 1
            });
            terminate(pipeline);
        }
        setup.catch_up();
        setup.assert_equal();
    }
    for table in ["a", "b", "c"] {
        assert_eq!(setup.status(&format!("public.{table}"))["phase"], "live");
    }
    assert!(streamed(&setup.pg) >= 4);
}

/// Killed while pieces come, and while what they hold is decoded; the transaction goes on meanwhile.
#[test]
fn a_crash_in_the_middle_of_pieces_loses_nothing() {
    let setup = setup(None, LEAST_MEMORY);
    for (round, armed) in [
        "stream.spilled:1",
        "stream.spilled:30",
        "stream.committed:1",
        "stream.replayed:2",
    ]
    .iter()
    .enumerate()
    {
        let base = 400_000 + 10_000 * u32::try_from(round).unwrap();
        let running = Alluvium::spawn(
            bin(),
            &["run"],
            setup.dir.path(),
            &[("ALLUVIUM_CRASH_AT", armed)],
        )
        .unwrap();
        let mut running = running;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let script = [
                    "BEGIN;",
                    &insert("a", base, base + 1500),
                    "SAVEPOINT s;",
                    &insert("a", base + 2000, base + 3000),
                    "ROLLBACK TO s; SELECT pg_sleep(1);",
                    &insert("a", base + 4000, base + 6000),
                    "COMMIT;",
                ];
                setup.pg.execute(&script.concat()).unwrap();
            });
            setup
                .pg
                .execute(&["BEGIN;", &insert("c", base, base + 3000), "COMMIT"].concat())
                .unwrap();
            let ended = running.wait_timeout(PATIENCE).unwrap();
            assert!(
                ended.is_some(),
                "{armed} was not reached: {}",
                running.stderr()
            );
        });
        let ended = setup.alluvium_with(CAUGHT_UP, &[]);
        ended.success().unwrap();
        setup.assert_equal();
    }
    equal(&setup);
}

/// The connection is cut in the middle of pieces: what was received is dropped and sent again.
#[test]
fn a_lost_connection_in_the_middle_of_pieces_is_survived() {
    let setup = setup(None, LEAST_MEMORY);
    let running = setup.spawn_run();
    setup.wait(&running, "it is live", || {
        setup.status("public.a")["phase"] == "live"
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut script = vec!["BEGIN;".to_owned()];
            for piece in 0..6 {
                let from = 500_000 + piece * 1000;
                script.push(insert("a", from, from + 999));
                script.push("SELECT pg_sleep(0.3);".to_owned());
            }
            script.push("COMMIT".to_owned());
            setup.pg.execute(&script.concat()).unwrap();
        });
        for n in 0..4 {
            std::thread::sleep(Duration::from_millis(400));
            setup
                .pg
                .execute(&format!("INSERT INTO b VALUES ({n}, 'between')"))
                .unwrap();
            setup
                .pg
                .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
                .unwrap();
        }
    });
    setup
        .pg
        .execute("INSERT INTO b VALUES (2000, 'last')")
        .unwrap();
    setup.wait(&running, "the last row is there", || {
        setup.sql("SELECT count(*) AS n FROM b WHERE n = 2000")[0]["n"] == 1
    });
    terminate(running);
    equal(&setup);
}

/// By choice a transaction is sent when it has committed, as servers before 14 do.
#[test]
fn protocol_1_is_there_by_choice() {
    let setup = setup(None, LEAST_MEMORY);
    setup.set_in_source("protocol = 1");
    savepoints(&setup);
    equal(&setup);
    assert_eq!(streamed(&setup.pg), 0);
}

/// The disk of the spill files fills up: said with a code of its own; with room made, all goes on.
#[test]
fn a_full_disk_under_a_running_transaction_is_named_and_loses_nothing() {
    let setup = setup(None, LEAST_MEMORY);
    let large = ["BEGIN;", &insert("a", 100_000, 104_000), "COMMIT"];
    setup.pg.execute(&large.concat()).unwrap();
    let script = r#"
        mkdir -p .alluvium/spill && mount -t tmpfs -o size=1m tmpfs .alluvium/spill || exit 99
        "$1" run --until-caught-up 2> full.err; echo $? > full.code
        mount -o remount,size=100m .alluvium/spill
        "$1" run --until-caught-up 2> after.err; echo $? > after.code"#;
    setup.in_mount_namespace(script);
    let read = |name: &str| std::fs::read_to_string(setup.dir.path().join(name)).unwrap();
    let (code, stderr) = (read("full.code"), read("full.err"));
    assert_eq!(code.trim(), "1", "{stderr}");
    assert!(stderr.contains("error[AL-LIMIT-002]"), "{stderr}");
    assert_eq!(read("after.code").trim(), "0", "{}", read("after.err"));
    equal(&setup);
}
