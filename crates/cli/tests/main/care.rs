//! Tables care for themselves while they are written: few files, a short log, and every row as it was.

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use alluvium_testkit::PgCluster;

use crate::rebuild::bronze_rebuilds_silver;
use crate::setup::{Setup, terminate};

const MORE: &str = "[commit]\nmin_interval_ms = 10\nmax_interval_ms = 10\ndelta_checkpoint_every_commits = 5\n\
                    [maintain]\ncpu_percent = 100\nsmall_files = 3\ndeleted_percent = 2\nall_versions = \"1s\"\n\
                    removed_files = \"1s\"\nold_versions = \"1s\"\n";

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn files_and_log_stay_few_under_a_stream_of_changes() {
    let create = "CREATE TABLE t (id int PRIMARY KEY, v text, big text);
         ALTER TABLE t ALTER COLUMN big SET STORAGE EXTERNAL;
         INSERT INTO t SELECT g, 'v', repeat('x', 3000) FROM generate_series(1, 2000) g;
         CREATE TABLE no_key (n int, v text);
         ALTER TABLE no_key REPLICA IDENTITY FULL;
         INSERT INTO no_key SELECT g % 20, 'b' FROM generate_series(1, 500) g;";
    let pg = PgCluster::start(None, &[]).unwrap();
    let setup = Setup::on(pg, create, "\"public.*\"", MORE);
    let running = setup.spawn_run();
    let is_live = |table: &str| setup.status(table)["phase"] == "live";
    setup.wait(&running, "both are live", || {
        is_live("public.t") && is_live("public.no_key")
    });
    let change = |n: usize| {
        let changes = format!(
            "UPDATE t SET v = 'n{n}' WHERE id % 40 = {n} % 40;
             UPDATE t SET id = id + 5000 WHERE id = {n};
             DELETE FROM t WHERE id = 5000 + {n} / 2;
             INSERT INTO t VALUES (20000 + {n}, 'new', 'small');
             DELETE FROM no_key WHERE ctid IN (SELECT ctid FROM no_key WHERE n = {n} % 20 LIMIT 5);
             INSERT INTO no_key SELECT {n} % 20, 'b' FROM generate_series(1, 5)"
        );
        setup.pg.execute(&changes).unwrap();
        std::thread::sleep(Duration::from_millis(15));
    };
    (0..250).for_each(change);
    // Care gives way where the machine has other work: then it takes more changes at once, and later.
    let more = Cell::new(250);
    setup.wait(&running, "it was cared for more than ten times", || {
        change(more.replace(more.get() + 1));
        let status = setup.status("public.t");
        ["compactions", "removed_files", "removed_bytes"]
            .iter()
            .all(|counted| status[*counted].as_u64() > Some(10))
    });
    for layer in ["silver", "bronze"] {
        for table in ["t", "no_key"] {
            let dir = setup.lake().join(layer).join(table);
            setup.wait(&running, "old files are gone", || {
                files(&dir) < 40 && files(&dir.join("_delta_log")) < 60
            });
        }
    }
    setup.wait(&running, "few files are live", || {
        setup.status("public.t")["silver_files"].as_u64() < Some(30)
    });
    let stderr = terminate(running);
    assert!(!stderr.contains("WARN"), "{stderr}");
    setup.assert_equal();
    bronze_rebuilds_silver(&setup, "t", Some("id"));
    bronze_rebuilds_silver(&setup, "no_key", None);
    // What was moved is found again.
    setup
        .pg
        .execute("UPDATE t SET v = 'last'; DELETE FROM no_key")
        .unwrap();
    setup.catch_up();
    setup.assert_equal();
}

/// The last versions come without a Delta checkpoint of their own, and nothing comes after them.
#[test]
fn a_table_that_rests_keeps_one_version() {
    let create = "CREATE TABLE t (id int PRIMARY KEY, v text);
         INSERT INTO t SELECT g, 'v' FROM generate_series(1, 500) g";
    let more = MORE.replace("every_commits = 5", "every_commits = 1000");
    let pg = PgCluster::start(None, &[]).unwrap();
    let setup = Setup::on(pg, create, "\"public.*\"", &more);
    let running = setup.spawn_run();
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["phase"] == "live"
    });
    for n in 0..30 {
        let change = format!("UPDATE t SET v = 'n{n}' WHERE id % 30 = {n}");
        setup.pg.execute(&change).unwrap();
        std::thread::sleep(Duration::from_millis(15));
    }
    for layer in ["silver", "bronze"] {
        let dir = setup.lake().join(layer).join("t");
        setup.wait(&running, "only what is current is left", || {
            files(&dir) < 6 && files(&dir.join("_delta_log")) < 6
        });
    }
    setup.wait(&running, "the status says so", || {
        setup.status("public.t")["silver_files"] == 1
    });
    terminate(running);
    setup.assert_equal();
}

/// Care by hand, where nothing runs, and by a pipeline that does.
#[test]
fn care_is_taken_when_it_is_asked_for() {
    let create = "CREATE TABLE t (id int PRIMARY KEY, v text);
         INSERT INTO t SELECT g, 'v' FROM generate_series(1, 500) g";
    let more = "[commit]\nmin_interval_ms = 10\nmax_interval_ms = 10\ndelta_checkpoint_every_commits = 1000\n\
                [maintain]\nenabled = false\nall_versions = \"0s\"\nremoved_files = \"0s\"\nold_versions = \"0s\"\n";
    let pg = PgCluster::start(None, &[]).unwrap();
    let setup = Setup::on(pg, create, "\"public.*\"", more);
    let silver = setup.lake().join("silver/t");
    let rows = |args: &[&str]| -> serde_json::Value {
        let args = [args, &["--output", "json"]].concat();
        let finished = setup.alluvium(&args).success().unwrap();
        serde_json::from_str(&finished.stdout).unwrap()
    };
    let of_silver = |rows: &serde_json::Value| {
        let rows = rows.as_array().unwrap().iter();
        rows.clone()
            .find(|row| row["table"] == "silver.t")
            .unwrap()
            .clone()
    };
    let change = |round: i32| {
        for n in 0..30 {
            setup
                .pg
                .execute(&format!(
                    "UPDATE t SET v = '{round}.{n}' WHERE id % 30 = {n}; DELETE FROM t WHERE id = {round} * 40 + {n}"
                ))
                .unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    for (round, runs) in [(0, false), (1, true)] {
        let running = setup.spawn_run();
        setup.wait(&running, "it is live", || {
            setup.status("public.t")["phase"] == "live"
        });
        change(round);
        let running = match runs {
            true => Some(running),
            false => {
                terminate(running);
                None
            }
        };
        let optimized = of_silver(&rows(&["optimize", "t"]));
        assert!(
            optimized["files_before"].as_u64().unwrap() > 5,
            "{optimized}"
        );
        assert!(
            optimized["files_after"].as_u64().unwrap() <= 2,
            "{optimized}"
        );
        let written = of_silver(&rows(&["checkpoint"]));
        let log = silver.join("_delta_log");
        let is_there = |version: &serde_json::Value| {
            let version = version.as_u64().unwrap();
            log.join(format!("{version:020}.checkpoint.parquet"))
                .exists()
        };
        assert!(is_there(&written["version"]), "{written}");
        std::thread::sleep(Duration::from_millis(1500));
        let before = files(&silver);
        let found = of_silver(&rows(&["vacuum"]));
        assert!(found["data_files"].as_u64().unwrap() > 5, "{found}");
        assert_eq!(files(&silver), before, "nothing was removed yet");
        rows(&["vacuum", "--delete", "t"]);
        assert!(files(&silver) < 8, "{}", files(&silver));
        if let Some(running) = running {
            terminate(running);
        }
        setup.catch_up();
        setup.assert_equal();
    }
    let unknown = setup.alluvium(&["optimize", "nothing"]);
    assert_eq!(unknown.code(), Some(1));
    assert!(
        unknown.stderr.contains("public.nothing"),
        "{}",
        unknown.stderr
    );
}

#[test]
fn rows_are_in_the_order_that_a_table_asks_for() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE no_key (v text);
         ALTER TABLE no_key REPLICA IDENTITY FULL;
         INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 3000) g;
         INSERT INTO no_key SELECT v FROM t",
        "\"public.*\"",
    );
    let ordered = |of_t: &str, of_no_key: &str| {
        let more = format!(
            "[tables.\"public.t\"]\ncluster_by = {of_t}\n[tables.\"public.no_key\"]\ncluster_by = {of_no_key}\n"
        );
        setup.configure("\"public.*\"", &more);
    };
    for (of_no_key, expected) in [
        (
            "\"key\"",
            "\"public.no_key\" is \"key\", and the table has none",
        ),
        (
            "[\"price\"]",
            "\"public.no_key\" names \"price\", which is no column of it",
        ),
        ("\"time\"", "cluster_by is \"key\" or a list of columns"),
    ] {
        ordered("[\"v\"]", of_no_key);
        let refused = setup.alluvium(&["run", "--until-caught-up"]);
        assert_eq!(refused.code(), Some(1));
        assert!(refused.stderr.contains(expected), "{}", refused.stderr);
    }
    ordered("[\"v\"]", "[\"v\"]");
    let running = setup.spawn_run();
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["phase"] == "live"
            && setup.status("public.no_key")["phase"] == "live"
    });
    for round in 0..3 {
        setup
            .pg
            .execute(&format!(
                "UPDATE t SET v = md5(v) WHERE id % 5 = {round}; DELETE FROM t WHERE id % 17 = {round};
                 UPDATE no_key SET v = md5(v) WHERE v < '4'; DELETE FROM no_key WHERE v LIKE '{round}%'"
            ))
            .unwrap();
        setup.alluvium(&["optimize"]).success().unwrap();
    }
    terminate(running);
    setup.catch_up();
    setup.assert_equal();
    setup.alluvium(&["optimize"]).success().unwrap();
    for table in ["t", "no_key"] {
        let silver = setup.lake().join("silver").join(table);
        let files = alluvium_lake::read::open_table(&silver, None)
            .unwrap()
            .files;
        let name = |file: &alluvium_lake::read::DataFile| {
            file.path
                .file_name()
                .unwrap()
                .to_string_lossy()
                .into_owned()
        };
        let names: Vec<String> = files.iter().map(name).collect();
        assert!(
            names.iter().all(|name| name.starts_with("sorted-")),
            "{names:?}"
        );
    }
    setup.assert_equal();
}
