//! `alluvium resync` while the pipeline runs: readers see the old rows or the new, and fresh ones.

use std::time::{Duration, Instant};

use crate::rebuild::bronze_rebuilds_silver;
use crate::setup::{CAUGHT_UP, PATIENCE, Setup, terminate};

/// Each transaction changes all rows: at any moment all are of the same round.
const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, round int, filler text);
     INSERT INTO t SELECT g, 0, repeat('x', 200) FROM generate_series(1, 100000) g;
     ANALYZE t";

fn setup() -> Setup {
    Setup::on(
        alluvium_testkit::PgCluster::start(None, &[]).unwrap(),
        TABLE,
        "\"public.*\"",
        // Ranges of the smallest size, so that the copy takes a while.
        "[limits]\nmemory = \"128MiB\"\n",
    )
}

/// What a reader of silver sees: how many rows, and of which rounds.
fn seen(setup: &Setup) -> (u64, i64, i64) {
    let rows = setup.sql("SELECT count(*) AS n, min(round) AS low, max(round) AS high FROM t");
    let number = |name: &str| rows[0][name].as_i64().unwrap();
    (
        u64::try_from(number("n")).unwrap(),
        number("low"),
        number("high"),
    )
}

#[test]
fn readers_see_the_old_rows_or_the_new_and_fresh_ones_all_along() {
    let setup = setup();
    setup.catch_up();
    let silver = setup.lake().join("silver/t");
    let versions = || {
        std::fs::read_dir(silver.join("_delta_log"))
            .unwrap()
            .count()
    };
    let before = versions();
    let running = setup.spawn_run();
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["phase"] == "live"
    });
    setup.alluvium(&["resync", "t"]).success().unwrap();
    let requested = setup.lake().parent().unwrap().join(".alluvium/requests");
    let waits = || {
        std::fs::read_dir(&requested).is_ok_and(|mut files| {
            files.any(|file| {
                file.unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with("resync")
            })
        })
    };
    let since = Instant::now();
    let mut round = 0;
    let mut newest = 0;
    let mut copied_beside = false;
    while waits() || setup.status("public.t")["resyncing"] == true || round < 5 {
        assert!(since.elapsed() < Duration::from_secs(120), "it never ends");
        round += 1;
        let update = format!("UPDATE t SET round = {round}");
        setup.pg.execute(&update).unwrap();
        copied_beside |= setup.lake().join(".resync/t/_delta_log").is_dir();
        let status = setup.status("public.t");
        assert_eq!(status["phase"], "live", "{status}");
        let (rows, low, high) = seen(&setup);
        assert_eq!((rows, low), (100_000, high), "a mix, in round {round}");
        assert!(high >= newest, "from {newest} back to {high}");
        newest = high;
    }
    assert!(copied_beside, "it was copied in place");
    assert!(newest > 0, "nothing came while it was copied");
    assert!(
        !setup.lake().join(".resync/t").exists(),
        "what was beside is left"
    );
    assert!(versions() > before);
    terminate(running);
    setup.catch_up();
    setup.assert_equal();
}

/// What was copied before the process was killed is not copied again.
#[test]
fn a_resync_that_was_killed_goes_on() {
    let setup = setup();
    setup.catch_up();
    setup.alluvium(&["resync", "t"]).success().unwrap();
    let ended = setup.alluvium_with(CAUGHT_UP, &[("ALLUVIUM_CRASH_AT", "copy.after_commit:1")]);
    assert_eq!(
        ended.signal(),
        Some(crate::setup::ABORT),
        "{}",
        ended.stderr
    );
    let beside = setup.lake().join(".resync/t");
    assert!(beside.join("_delta_log").is_dir());
    setup
        .pg
        .execute("UPDATE t SET round = 7 WHERE id % 3 = 0; DELETE FROM t WHERE id % 5 = 0")
        .unwrap();
    assert_eq!(seen(&setup), (100_000, 0, 0), "readers see what there was");
    let ended = setup.alluvium(CAUGHT_UP);
    assert!(ended.stderr.contains("resumed=true"), "{}", ended.stderr);
    ended.success().unwrap();
    assert!(!beside.exists());
    setup.assert_equal();
}

/// A value that the copy cannot take: the table goes on with its old rows, and the copy when the choice
/// was made.
#[test]
fn a_resync_that_is_refused_leaves_the_table_as_it_is() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY, d date); INSERT INTO t VALUES (1, '2026-01-01')",
        "\"public.*\"",
    );
    setup.configure(
        "\"public.*\"",
        "[tables.\"public.t\".column.\"d\"]\non_invalid = \"null\"\n",
    );
    setup
        .pg
        .execute("INSERT INTO t VALUES (2, 'infinity')")
        .unwrap();
    setup.catch_up();
    setup.configure("\"public.*\"", "");
    let mut running = setup.spawn_run();
    setup.alluvium(&["resync", "t"]).success().unwrap();
    setup.wait(&running, "the copy is refused", || {
        setup.status("public.t")["error"]["code"] == "AL-VALUE-001"
    });
    setup
        .pg
        .execute("INSERT INTO t VALUES (3, '2026-01-03')")
        .unwrap();
    setup.wait(&running, "the table goes on", || {
        let status = setup.status("public.t");
        status["phase"] == "live" && status["silver_rows"] == 3
    });
    running.terminate();
    let status = running.wait_timeout(PATIENCE).unwrap();
    assert_eq!(
        status.and_then(|status| status.code()),
        Some(3),
        "one has an error"
    );
    setup.configure(
        "\"public.*\"",
        "[tables.\"public.t\".column.\"d\"]\non_invalid = \"clamp\"\n",
    );
    setup.catch_up();
    setup.assert_equal();
}

/// Rows of two parts, of which some change without the stream.
fn setup_with_parts(tables: &str) -> Setup {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY, part int, v text);
         INSERT INTO t SELECT g, g % 2, 'v' || g FROM generate_series(1, 1000) g",
        tables,
    );
    setup.catch_up();
    let publication = |what: &str| format!("ALTER PUBLICATION alluvium_test {what} TABLE ONLY t");
    for sql in [
        &publication("DROP"),
        "UPDATE t SET v = 'unseen' WHERE id IN (10, 11)",
        "DELETE FROM t WHERE id IN (20, 21)",
        "INSERT INTO t VALUES (2000, 0, 'unseen'), (2001, 1, 'unseen')",
        // Out of the part that is compared, and into it.
        "UPDATE t SET part = 0 WHERE id = 31",
        "UPDATE t SET part = 1 WHERE id = 40",
        &publication("ADD"),
    ] {
        setup.pg.execute(sql).unwrap();
    }
    setup
}

#[test]
fn rows_are_set_right_where_a_condition_holds() {
    let setup = setup_with_parts("\"public.*\"");
    let asked = setup.alluvium(&["resync", "t", "--where", "part = 1"]);
    asked.success().unwrap();
    setup.catch_up();
    let rows = |condition: &str| {
        setup.sql(&format!(
            "SELECT id, part, v FROM t WHERE {condition} ORDER BY id"
        ))
    };
    let touched = "id IN (10, 11, 20, 21, 31, 40, 2000, 2001)";
    let expected = serde_json::json!([
        {"id": 10, "part": 0, "v": "v10"},
        {"id": 11, "part": 1, "v": "unseen"},
        {"id": 20, "part": 0, "v": "v20"},
        {"id": 31, "part": 0, "v": "v31"},
        {"id": 40, "part": 1, "v": "v40"},
        {"id": 2001, "part": 1, "v": "unseen"},
    ]);
    assert_eq!(rows(touched), expected);
    let copied_first = "(SELECT min(_commit_lsn) FROM bronze.t)";
    let marks = setup.sql(&format!(
        "SELECT _op, count(*) AS n FROM bronze.t
         WHERE _xid IS NULL AND _commit_lsn > {copied_first} GROUP BY _op ORDER BY _op"
    ));
    let expected = serde_json::json!([{"_op": "d", "n": 1}, {"_op": "r", "n": 4}]);
    assert_eq!(marks, expected);
    // What is right already is not written again.
    let version = || setup.status("public.t")["silver_version"].clone();
    let before = version();
    for condition in ["part = 1", "id < 5 -- a few", "false"] {
        let asked = setup.alluvium(&["resync", "t", "--where", condition]);
        asked.success().unwrap();
    }
    setup.catch_up();
    assert_eq!(version(), before);
    setup
        .alluvium(&["resync", "t", "--where", "part = 0"])
        .success()
        .unwrap();
    setup.catch_up();
    setup.assert_equal();
    bronze_rebuilds_silver(&setup, "t", Some("id"));
}

#[test]
fn rows_are_set_right_while_they_change() {
    let setup = setup_with_parts("\"public.*\"");
    let running = setup.spawn_run();
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["phase"] == "live"
    });
    let asked = setup.alluvium(&["resync", "t", "--where", "id % 3 >= 0"]);
    asked.success().unwrap();
    let requested = setup.lake().parent().unwrap().join(".alluvium/requests");
    let waits = || std::fs::read_dir(&requested).is_ok_and(|files| files.count() > 0);
    let since = Instant::now();
    let mut round = 0;
    while waits() || round < 50 {
        assert!(since.elapsed() < PATIENCE, "it never ends");
        round += 1;
        // Keys that come and go, and rows that change; none of those that changed unseen.
        let new = 5000 + round;
        for sql in [
            format!("UPDATE t SET v = 'r{round}' WHERE id % 50 = 5"),
            format!("INSERT INTO t VALUES ({new}, 1, 'n'), ({new} + 10000, 0, 'n')"),
            format!("DELETE FROM t WHERE id = {new} - 1"),
            format!("UPDATE t SET id = id + 20000 WHERE id = {new} + 10000"),
        ] {
            setup.pg.execute(&sql).unwrap();
        }
    }
    let ended = terminate(running);
    assert!(ended.contains("rows were compared"), "{ended}");
    setup.catch_up();
    setup.assert_equal();
    bronze_rebuilds_silver(&setup, "t", Some("id"));
}

#[test]
fn rows_that_cannot_be_compared_are_told() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a');
         CREATE TABLE keyless (v text); ALTER TABLE keyless REPLICA IDENTITY FULL",
        "\"public.*\"",
    );
    setup.catch_up();
    let resync =
        |table: &str, condition: &str| setup.alluvium(&["resync", table, "--where", condition]);
    let refused = resync("t", "id < ");
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("AL-SQL-001"), "{}", refused.stderr);
    resync("t", "nosuch = 1").success().unwrap();
    resync("keyless", "v = 'a'").success().unwrap();
    let ended = setup.alluvium(CAUGHT_UP);
    assert_eq!(ended.code(), Some(3), "{}", ended.stderr);
    for (table, part) in [("public.t", "nosuch"), ("public.keyless", "has no key")] {
        let status = setup.status(table);
        assert_eq!(status["phase"], "live");
        let error = status["error"]["message"].as_str().unwrap();
        assert!(error.contains(part), "{error}");
    }
    resync("t", "id = 1").success().unwrap();
    setup.alluvium(CAUGHT_UP);
    assert!(setup.status("public.t")["error"].is_null());
}
