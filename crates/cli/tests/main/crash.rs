//! Killed at any time, any number of times: nothing is lost, nothing is invented. Killed at each step:
//! `crash_matrix`.

use std::time::Duration;

use alluvium_testkit::{PgCluster, sql, workload};

use crate::rebuild::bronze_rebuilds_silver;
use crate::settings::{Sending, Settings};
use crate::setup::{ABORT, CAUGHT_UP, Setup};

const MORE: &str =
    "[commit]\nmin_interval_ms = 10\nmax_interval_ms = 50\ndelta_checkpoint_every_commits = 3\n";

/// kill -9 in a loop under the workload, each round with other settings; `ALLUVIUM_KILL_ROUNDS` asks
/// for more rounds.
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
    // A slot that sent prepared transactions goes on to.
    let mut settings = Settings::of_any_types();
    settings.retain(|settings| settings.sending != Sending::Prepared);
    for round in 0..rounds {
        let next = usize::try_from(round).unwrap() * 13 % settings.len();
        settings[next].apply(&setup, "\"public.*\"", "");
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
