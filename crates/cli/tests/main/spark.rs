//! Spark with Delta Lake beside a running pipeline: what it writes is followed or undone, and it reads the
//! change data feed. `make interop` runs these.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alluvium_testkit::PgCluster;
use alluvium_testkit::check::{follow_feed, spark};
use serde_json::Value;

use crate::setup::{Setup, terminate};

const CREATE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);
     INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 3000) g";

/// Changes rows, so that each pass is a commit.
fn change(setup: &Setup, n: u32) {
    let changes = format!(
        "UPDATE t SET v = 'n{n}' WHERE id % 50 = {n} % 50; DELETE FROM t WHERE id = {n} % 3000;
         INSERT INTO t VALUES (10000 + {n}, 'new')"
    );
    setup.pg.execute(&changes).unwrap();
}

fn spark_writes(policy: &str) {
    let more = format!(
        "[commit]\nmin_interval_ms = 10\nmax_interval_ms = 10\n[maintain]\nforeign = \"{policy}\"\n\
         enabled = false\n"
    );
    let pg = PgCluster::start(None, &[]).unwrap();
    let setup = Setup::on(pg, CREATE, "\"public.*\"", &more);
    let running = setup.spawn_run();
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["phase"] == "live"
    });
    let silver = format!("delta.`{}`", setup.lake().join("silver/t").display());
    let statements = [
        format!("OPTIMIZE {silver}"),
        format!("INSERT INTO {silver} VALUES (60000, 'blind')"),
        format!("INSERT INTO {silver} SELECT id + 50000, v FROM {silver} LIMIT 5"),
        format!("DELETE FROM {silver} WHERE id % 3 = 0"),
        format!("UPDATE {silver} SET v = 'spark' WHERE id % 7 = 0"),
        format!(
            "MERGE INTO {silver} t USING (SELECT id, 'merged' AS v FROM {silver} WHERE id % 11 = 0) s
             ON t.id = s.id WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *"
        ),
        format!("RESTORE TABLE {silver} TO VERSION AS OF 3"),
        format!("OPTIMIZE {silver}"),
    ];
    // While rows change Spark gets little through but what reads nothing, and all of it when they rest.
    for is_busy in [true, false] {
        let ended = AtomicBool::new(false);
        let answers = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut n = u32::from(is_busy) * 1000;
                while !ended.load(Ordering::Relaxed) {
                    if is_busy {
                        change(&setup, n);
                    }
                    n += 1;
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
            let answers = spark(&statements);
            ended.store(true, Ordering::Relaxed);
            answers.unwrap()
        });
        let errors = answers.iter().filter_map(|answer| answer["error"].as_str());
        let errors: Vec<&str> = errors.collect();
        let is_conflict = |error: &&str| error.contains("DELTA_CONCURRENT");
        assert!(errors.iter().all(is_conflict), "{errors:?}");
        assert!(is_busy || errors.is_empty(), "{errors:?}");
        assert!(answers[1]["error"].is_null(), "{}", answers[1]);
        change(&setup, 5000 + u32::from(is_busy));
        let error = setup.status("public.t")["error"].clone();
        assert!(error.is_null(), "{error}");
    }
    let stderr = terminate(running);
    assert!(stderr.contains("another program"), "{stderr}");
    setup.catch_up();
    setup.assert_equal();
}

#[test]
#[ignore = "needs Spark: make interop"]
fn what_spark_writes_is_followed_or_undone() {
    spark_writes("follow");
}

#[test]
#[ignore = "needs Spark: make interop"]
fn what_spark_writes_is_undone() {
    spark_writes("repair");
}

#[test]
#[ignore = "needs Spark: make interop"]
fn spark_reads_rows_and_the_change_data_feed() {
    let setup = Setup::new(CREATE, "\"public.*\"");
    setup.configure(
        "\"public.*\"",
        "[tables.\"public.t\"]\nchange_data_feed = true\n",
    );
    setup.catch_up();
    let from = setup.status("public.t")["silver_version"].as_u64().unwrap();
    for n in 1..6 {
        change(&setup, n * 7);
        setup.catch_up();
    }
    setup
        .pg
        .execute("UPDATE t SET id = id + 100000 WHERE id BETWEEN 100 AND 120")
        .unwrap();
    setup.catch_up();
    let silver = setup.lake().join("silver/t");
    let by_delta_rs: Value =
        serde_json::from_str(&follow_feed(&silver, "id", from).unwrap()).unwrap();
    let (path, first) = (silver.display(), from + 1);
    let answers = spark(&[
        format!(
            "SELECT _change_type AS kind, count(*) AS n FROM table_changes_by_path('{path}', {first})
             GROUP BY _change_type"
        ),
        format!("SELECT count(*) AS n, sum(id) AS ids FROM delta.`{path}`"),
    ])
    .unwrap();
    let by_spark: Value = answers[0]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["kind"].as_str().unwrap().to_owned(), row["n"].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    assert_eq!(by_spark, by_delta_rs);
    let ours = setup.sql("SELECT count(*) AS n, sum(id) AS ids FROM t");
    assert_eq!(answers[1], ours);
}
