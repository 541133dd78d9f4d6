//! Killed anywhere, any number of times: nothing is lost, nothing is invented.

use std::time::Duration;

use alluvium_change::failpoint;
use alluvium_testkit::{Alluvium, PgCluster, sql, workload};

use crate::rebuild::bronze_rebuilds_silver;
use crate::setup::{CAUGHT_UP, PATIENCE, Setup, bin};
use crate::streamed::SMALL_PIECES;

const MORE: &str =
    "[commit]\nmin_interval_ms = 10\nmax_interval_ms = 50\ndelta_checkpoint_every_commits = 3\n";
const ABORT: i32 = 6;

/// One server for all failpoints; a new table, project and slot for each. The server sends large
/// transactions in pieces, and memory is so small that they are spilled.
#[test]
fn a_crash_at_each_step_loses_nothing() {
    let pg = PgCluster::start(None, SMALL_PIECES).unwrap();
    let more = format!("{MORE}[limits]\nmemory = \"128MiB\"\n");
    let setup = Setup::on(pg, "", "\"public.*\"", &more);
    // Small indexes are neither saved nor on disk.
    let names = failpoint::NAMES.iter();
    for name in names.filter(|name| !name.starts_with("index.")) {
        // The second hit comes when something has been written already.
        for hits in [1, 2] {
            crash_at(&setup, name, hits);
        }
    }
}

/// The same with every key index on disk.
#[test]
fn a_crash_loses_nothing_with_indexes_on_disk() {
    let pg = PgCluster::start(None, &[]).unwrap();
    let more = format!("[limits]\nindex_memory = \"1KiB\"\n{MORE}");
    let setup = Setup::on(pg, "", "\"public.*\"", &more);
    for name in [
        "index.before_manifest",
        "index.after_manifest",
        "merge.after_stage",
        "commit.log_linked",
        "copy.after_commit",
    ] {
        for hits in [1, 2] {
            crash_at(&setup, name, hits);
            let saved = setup.dir.path().join(".alluvium/index/a/manifest");
            assert!(saved.exists(), "the index of \"a\" is on disk");
        }
    }
}

/// The same with values in binary form, spilled, replayed and sent again.
#[test]
fn a_crash_loses_nothing_with_binary_tuples() {
    let pg = PgCluster::start(None, SMALL_PIECES).unwrap();
    let more = format!("{MORE}[limits]\nmemory = \"128MiB\"\n");
    let setup = Setup::on(pg, "", "\"public.*\"", &more);
    setup.set_in_source("tuples = \"binary\"");
    for name in [
        "stream.spilled",
        "stream.replayed",
        "merge.after_stage",
        "acknowledge.before_send",
    ] {
        for hits in [1, 2] {
            crash_at(&setup, name, hits);
        }
    }
}

fn crash_at(setup: &Setup, name: &str, hits: u64) {
    let pg = &setup.pg;
    pg.execute("DROP TABLE IF EXISTS a, b").unwrap();
    pg.execute(
        "CREATE TABLE a (id int PRIMARY KEY, v text, big text);
         ALTER TABLE a ALTER COLUMN big SET STORAGE EXTERNAL;
         CREATE TABLE b (n int, v text);
         ALTER TABLE b REPLICA IDENTITY FULL;
         INSERT INTO a SELECT g, 'v' || g, repeat('x', 3000) FROM generate_series(1, 300) g;
         INSERT INTO b SELECT g % 7, 'b' FROM generate_series(1, 300) g;",
    )
    .unwrap();
    let _ = std::fs::remove_dir_all(setup.lake());
    let _ = std::fs::remove_dir_all(setup.dir.path().join(".alluvium"));
    pg.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        .unwrap();
    let armed = format!("{name}:{hits}");
    let crash = |must: bool| {
        let ended = Alluvium::run(
            bin(),
            CAUGHT_UP,
            setup.dir.path(),
            &[("ALLUVIUM_CRASH_AT", &armed)],
            PATIENCE,
        )
        .unwrap();
        let crashed = ended.signal() == Some(ABORT);
        assert!(
            crashed || (!must && ended.code() == Some(0)),
            "{armed}: {}",
            ended.stderr
        );
        crashed
    };
    let change = |round: i32| {
        pg.execute(&format!(
            "BEGIN;
             INSERT INTO a SELECT {round} * 5000 + 20000 + g, 'large', repeat('z', 10000) FROM generate_series(1, 300) g;
             SAVEPOINT s;
             INSERT INTO a SELECT {round} * 5000 + 30000 + g, 'gone', repeat('z', 10000) FROM generate_series(1, 300) g;
             ROLLBACK TO s;
             UPDATE a SET v = 'round {round}' WHERE id % 5 = {round};
             UPDATE a SET id = id + 1000 WHERE id % 11 = {round};
             DELETE FROM a WHERE id % 13 = {round};
             INSERT INTO a VALUES ({round} + 10000, 'new', 'small');
             DELETE FROM b WHERE ctid IN (SELECT ctid FROM b WHERE n = {round} LIMIT 10);
             INSERT INTO b VALUES ({round}, 'b'), ({round}, 'b');
             COMMIT"
        ))
        .unwrap();
        for n in 0..6 {
            pg.execute(&format!(
                "UPDATE a SET v = '{round}.{n}' WHERE id = {n} + 2"
            ))
            .unwrap();
        }
    };
    // While it is copied first, then while changes are followed.
    let crashed_first = crash(false);
    change(1);
    let crashed_again = crash(false);
    change(2);
    assert!(
        crashed_first || crashed_again || hits > 1,
        "{armed} was never reached"
    );
    setup.catch_up();
    setup.assert_equal();
    bronze_rebuilds_silver(setup, "a", Some("id"));
    bronze_rebuilds_silver(setup, "b", None);
}

/// kill -9 in a loop under the workload; `ALLUVIUM_KILL_ROUNDS` asks for more rounds.
#[test]
fn kill_9_in_a_loop_under_load_loses_nothing() {
    let rounds: u32 = std::env::var("ALLUVIUM_KILL_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20);
    let pg = PgCluster::start(None, &[]).unwrap();
    let setup = Setup::on(pg, "", "\"public.*\"", MORE);
    let url = setup.pg.url("postgres");
    workload::setup(&url, 300).unwrap();
    let load = workload::spawn(
        &url,
        11,
        &["--seconds", "600", "--rate", "150", "--clients", "2"],
    )
    .unwrap();
    for round in 0..rounds {
        let mut running = setup.spawn_run();
        std::thread::sleep(Duration::from_millis(700 + u64::from(round * 379 % 1300)));
        assert!(
            running.wait_timeout(Duration::ZERO).unwrap().is_none(),
            "ended by itself: {}",
            running.stderr()
        );
        running.kill_9().unwrap();
    }
    load.stop().unwrap();
    setup.catch_up();
    setup.assert_equal();
}

/// A copy of several ranges is killed; what it had is not copied again, though rows have moved
/// between the ranges meanwhile.
#[test]
fn a_killed_copy_goes_on_where_it_was() {
    const ROWS: u64 = 120_000;
    let pg = PgCluster::start(None, &[]).unwrap();
    // Small memory makes small ranges; one worker makes them come in order.
    let more = "[limits]\nmemory = \"128MiB\"\ncopy_workers = 1\n";
    let create = format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text, n int);
         INSERT INTO t SELECT g, repeat(md5(g::text), 5), g FROM generate_series(1, {ROWS}) g;
         CREATE TABLE no_key (n int, v text);
         ALTER TABLE no_key REPLICA IDENTITY FULL;
         INSERT INTO no_key SELECT g % 1000, repeat('x', 150) FROM generate_series(1, 60000) g;"
    );
    let setup = Setup::on(pg, &create, "\"public.*\"", more);
    let crash = |armed: &str| {
        let ended = setup.alluvium_with(CAUGHT_UP, &[("ALLUVIUM_CRASH_AT", armed)]);
        assert_eq!(ended.signal(), Some(ABORT), "{}", ended.stderr);
    };
    let change = |round: u32| {
        setup
            .pg
            .execute(&format!(
                "UPDATE t SET n = -n WHERE id % 7 = {round};
                 DELETE FROM t WHERE id % 11 = {round};
                 UPDATE t SET id = id + 1000000 WHERE id % 13 = {round} AND id <= {ROWS};
                 INSERT INTO t SELECT g, 'new', g FROM generate_series(2000000 + {round} * 1000, 2000099 + {round} * 1000) g;
                 DELETE FROM no_key WHERE n = {round};
                 INSERT INTO no_key VALUES ({round}, 'y'), ({round}, 'y')"
            ))
            .unwrap();
    };
    crash("copy.before_commit:5");
    change(1);
    crash("copy.after_commit:2");
    change(2);
    let ended = setup.alluvium(CAUGHT_UP).success().unwrap();
    assert!(ended.stderr.contains("resumed=true"), "{}", ended.stderr);
    let copied = setup.status("public.t")["copied_rows"].as_u64().unwrap();
    assert!(copied < ROWS, "all {copied} rows were copied again");
    setup.assert_equal();
    change(3);
    setup.catch_up();
    setup.assert_equal();
    bronze_rebuilds_silver(&setup, "t", Some("id"));
    bronze_rebuilds_silver(&setup, "no_key", None);
}

/// The server crashes under the pipeline, which goes on by itself.
#[test]
fn a_restart_of_the_server_is_survived() {
    let pg = PgCluster::start(None, &[("fsync", "on")]).unwrap();
    let mut setup = Setup::on(pg, sql::SHOP, "\"public.*\"", MORE);
    setup.pg.execute(sql::SHOP_TRAFFIC).unwrap();
    let running = setup.spawn_run();
    setup.wait(&running, "it is live", || {
        setup.status("public.orders")["phase"] == "live"
    });
    for _ in 0..3 {
        for _ in 0..20 {
            setup.pg.execute("SELECT shop_step()").unwrap();
        }
        setup.pg.stop_immediate().unwrap();
        setup.pg.start_again().unwrap();
    }
    for _ in 0..20 {
        setup.pg.execute("SELECT shop_step()").unwrap();
    }
    setup
        .pg
        .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
        .unwrap();
    setup.pg.execute("SELECT shop_step()").unwrap();
    let orders: u64 = setup
        .pg
        .query_text("SELECT count(*) FROM orders")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    setup.wait(&running, "the stream has gone on", || {
        setup.status("public.orders")["silver_rows"] == orders
    });
    crate::setup::terminate(running);
    setup.catch_up();
    setup.assert_equal();
}
