//! `merge_mode`: tables without deletion vectors, and logs of which only inserts are followed.

use std::time::Duration;

use crate::setup::{Setup, terminate};

/// The table's log, each file a version.
fn log(setup: &Setup, table: &str) -> Vec<String> {
    let dir = setup.lake().join("silver").join(table).join("_delta_log");
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    files.sort();
    files
        .iter()
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect()
}

#[test]
fn files_are_written_anew_where_readers_know_no_deletion_vectors() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE twice (n int, v text);
         ALTER TABLE twice REPLICA IDENTITY FULL;
         INSERT INTO t SELECT g, 'old' FROM generate_series(1, 1000) g;
         INSERT INTO twice SELECT g % 100, 'old' FROM generate_series(1, 1000) g",
        "\"public.*\"",
    );
    let copied = |every: &str| {
        let of = |table: &str| {
            format!(
                "[tables.\"public.{table}\"]\nmerge_mode = \"copy_on_write\"\ncommit_every = \"{every}\"\n"
            )
        };
        setup.configure("\"public.*\"", &(of("t") + &of("twice")));
    };
    copied("1s");
    setup.catch_up();
    let change = |round: i32| {
        let sql = format!(
            "UPDATE t SET v = 'round {round}' WHERE id % 7 = {round};
             DELETE FROM t WHERE id % 31 = {round}; INSERT INTO t VALUES ({round} + 5000, 'new');
             DELETE FROM twice WHERE n % 13 = {round}; UPDATE twice SET v = 'new' WHERE n % 17 = {round}"
        );
        setup.pg.execute(&sql).unwrap();
    };
    let running = setup.spawn_run();
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["phase"] == "live"
    });
    for round in 0..4 {
        change(round);
        std::thread::sleep(Duration::from_millis(700));
    }
    let seen = || setup.sql("SELECT count(*) AS n FROM t WHERE v = 'round 3'")[0]["n"].as_u64();
    setup.wait(&running, "what waited is committed", || seen() > Some(100));
    terminate(running);
    setup.catch_up();
    setup.assert_equal();

    // What waits for its commit when the process is killed is in bronze.
    copied("1h");
    let mut running = setup.spawn_run();
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["phase"] == "live"
    });
    let versions = log(&setup, "t").len();
    change(5);
    change(6);
    setup.wait(&running, "changes wait for their commit", || {
        setup.status("public.t")["waiting_since_micros"].is_i64()
    });
    assert_eq!(log(&setup, "t").len(), versions, "it committed at once");
    running.kill_9().unwrap();
    setup.catch_up();
    setup.assert_equal();
    for table in ["t", "twice"] {
        let log = log(&setup, table).concat();
        assert!(log.contains("\"remove\""), "nothing was written anew");
        assert!(!log.contains("deletionVector"), "{log}");
    }

    // The mode is decided when the table is made.
    setup.configure("\"public.*\"", "");
    let ended = setup.alluvium(crate::setup::CAUGHT_UP);
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("merge_mode") && ended.stderr.contains("move"),
        "{}",
        ended.stderr
    );
}

#[test]
fn of_a_log_only_inserts_are_followed() {
    let setup = Setup::new(
        "CREATE TABLE log (id int PRIMARY KEY, v text); CREATE TABLE t (id int PRIMARY KEY);
         INSERT INTO log SELECT g, 'old' FROM generate_series(1, 100) g",
        "\"public.*\"",
    );
    // It was followed wholly before.
    setup.catch_up();
    setup.configure(
        "\"public.*\"",
        "[tables.\"public.log\"]\nmerge_mode = \"append_only\"\n",
    );
    setup.alluvium(&["resync", "log"]).success().unwrap();
    setup.catch_up();
    let purge = "DELETE FROM log WHERE id <= 50; UPDATE log SET v = 'new' WHERE id = 60;
                 INSERT INTO log VALUES (1, 'again'), (101, 'new'); INSERT INTO t VALUES (1)";
    setup.pg.execute(purge).unwrap();
    setup.catch_up();
    let rows = setup.sql("SELECT count(*) AS n, count(DISTINCT id) AS ids FROM log");
    assert_eq!((&rows[0]["n"], &rows[0]["ids"]), (&102.into(), &101.into()));
    let status = setup.status("public.log");
    assert_eq!(status["index_bytes"], 0);
    let doctor = setup.alluvium(&["doctor"]);
    assert!(
        doctor.stdout.contains("append-only, as asked: public.log"),
        "{}",
        doctor.stdout
    );
    setup
        .pg
        .execute("TRUNCATE log; INSERT INTO log VALUES (7, 'only')")
        .unwrap();
    setup.catch_up();
    setup.assert_equal();
}
