//! A pipeline over time: new tables and columns, resync, locks, idle slots, the newcomer's commands.

use alluvium_testkit::{Alluvium, sql};

use crate::setup::{PATIENCE, Setup, bin, terminate};

#[test]
fn new_tables_and_columns_join_while_running() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text);
         INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g",
        "\"public.*\"",
    );
    let running = setup.spawn_run();
    setup.wait(&running, "the table is live", || {
        setup.status("public.t")["phase"] == "live"
    });
    let pg = &setup.pg;
    pg.execute("CREATE TABLE late (id int PRIMARY KEY, v text); INSERT INTO late SELECT g FROM generate_series(1, 50) g").unwrap();
    setup.wait(&running, "the new table is live", || {
        setup.status("public.late")["phase"] == "live"
    });
    pg.execute("INSERT INTO late VALUES (51, 'streamed'); DELETE FROM late WHERE id < 10")
        .unwrap();
    pg.execute("CREATE TABLE append_late (n int); INSERT INTO append_late VALUES (1)")
        .unwrap();
    // Existing rows show the default, though no event says so.
    pg.execute("ALTER TABLE t ADD COLUMN plain int").unwrap();
    pg.execute("INSERT INTO t VALUES (101, 'w', 7)").unwrap();
    pg.execute("ALTER TABLE t ADD COLUMN constant numeric(6,2) NOT NULL DEFAULT 12.50")
        .unwrap();
    pg.execute("UPDATE t SET v = 'u' WHERE id <= 5").unwrap();
    pg.execute("ALTER TABLE t ADD COLUMN own_value double precision DEFAULT random()")
        .unwrap();
    pg.execute("UPDATE t SET v = 'x' WHERE id = 6").unwrap();
    pg.execute("BEGIN; INSERT INTO late VALUES (60, 'before'); ALTER TABLE late ADD COLUMN d date DEFAULT '2026-01-01'; INSERT INTO late VALUES (61, 'after', NULL); COMMIT").unwrap();
    setup.wait(&running, "the table without identity is live", || {
        setup.status("public.append_late")["phase"] == "live"
    });
    pg.execute("UPDATE append_late SET n = 1")
        .unwrap_err_or_ok();
    setup.wait(&running, "the column is there", || {
        let finished = setup.alluvium(&["sql", "SELECT own_value FROM t LIMIT 1"]);
        finished.code() == Some(0)
    });
    terminate(running);
    setup.catch_up();
    setup.assert_equal_but(&["--tables", "public.t", "public.late"]);
    assert_eq!(
        setup.sql("SELECT count(*) AS n FROM append_late")[0]["n"],
        1
    );
}

/// A table without identity must stay open to updates on the source.
trait OrOk {
    fn unwrap_err_or_ok(self);
}

impl OrOk for anyhow::Result<()> {
    fn unwrap_err_or_ok(self) {
        self.expect("publishing a table without identity must not break its updates");
    }
}

#[test]
fn an_incompatible_change_stops_one_table_until_it_is_copied_afresh() {
    let setup = Setup::new(
        "CREATE TABLE broken (id int PRIMARY KEY, v text, w int);
         CREATE TABLE fine (id int PRIMARY KEY);
         INSERT INTO broken SELECT g, 'v', g FROM generate_series(1, 20) g",
        "\"public.*\"",
    );
    let running = setup.spawn_run();
    setup.wait(&running, "both are live", || {
        setup.status("public.broken")["phase"] == "live"
            && setup.status("public.fine")["phase"] == "live"
    });
    let pg = &setup.pg;
    pg.execute("ALTER TABLE broken DROP COLUMN v; ALTER TABLE broken ALTER COLUMN w TYPE text")
        .unwrap();
    pg.execute("INSERT INTO broken VALUES (100, 'now text'); INSERT INTO fine VALUES (1)")
        .unwrap();
    setup.wait(&running, "the table is stopped", || {
        setup.status("public.broken")["phase"] == "stopped"
    });
    let error = setup.status("public.broken")["error"].clone();
    assert_eq!(error["code"], "AL-SCHEMA-001");
    assert!(
        error["hint"]
            .as_str()
            .unwrap()
            .contains("alluvium resync public.broken"),
        "{error}"
    );
    pg.execute("INSERT INTO fine VALUES (2)").unwrap();
    setup.wait(&running, "the other goes on", || {
        setup.status("public.fine")["silver_rows"] == 2
    });
    setup
        .alluvium(&["resync", "public.broken"])
        .success()
        .unwrap();
    setup.wait(&running, "it is live again", || {
        setup.status("public.broken")["phase"] == "live"
    });
    pg.execute("INSERT INTO broken VALUES (101, 'after')")
        .unwrap();
    terminate(running);
    setup.catch_up();
    setup.assert_equal();
}

/// What a stopped table missed is known after a restart too.
#[test]
fn a_stopped_table_stays_stopped_over_restarts_until_resync() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY, d date); INSERT INTO t VALUES (1, '2026-01-01')",
        "\"public.*\"",
    );
    setup.catch_up();
    setup
        .pg
        .execute("INSERT INTO t VALUES (2, 'infinity')")
        .unwrap();
    let ended = setup.alluvium(crate::setup::CAUGHT_UP);
    assert_eq!(ended.code(), Some(3), "{}", ended.stderr);
    let error = setup.status("public.t")["error"].to_string();
    assert!(
        error.contains("AL-VALUE-001") && error.contains("on_invalid"),
        "{error}"
    );
    setup
        .pg
        .execute("INSERT INTO t VALUES (3, '2026-01-03')")
        .unwrap();
    let ended = setup.alluvium(crate::setup::CAUGHT_UP);
    assert_eq!(ended.code(), Some(3), "{}", ended.stderr);
    setup.configure(
        "\"public.*\"",
        "[tables.\"public.t\".column.\"d\"]\non_invalid = \"clamp\"\n",
    );
    setup.alluvium(&["resync", "t"]).success().unwrap();
    setup.catch_up();
    setup.assert_equal();
    let rows = setup.sql("SELECT count(*) AS n FROM t");
    assert_eq!(rows[0]["n"], 3);
}

/// A value that is refused while copying: the copy goes on after the choice.
#[test]
fn a_refused_value_names_its_row_and_the_copy_goes_on_after_the_choice() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY, n numeric(10,2)); CREATE TABLE fine (id int PRIMARY KEY);
         INSERT INTO t SELECT g, g FROM generate_series(1, 1000) g; INSERT INTO t VALUES (5000, 'NaN')",
        "\"public.*\"",
    );
    let ended = setup.alluvium(crate::setup::CAUGHT_UP);
    assert_eq!(ended.code(), Some(3), "{}", ended.stderr);
    let error = setup.status("public.t")["error"].to_string();
    for part in ["AL-VALUE-001", "NaN", "5000", "\\\"n\\\""] {
        assert!(error.contains(part), "{part} is missing in {error}");
    }
    assert_eq!(setup.status("public.fine")["phase"], "live");
    setup.configure(
        "\"public.*\"",
        "[tables.\"public.t\"]\non_invalid = \"null\"\n",
    );
    setup.catch_up();
    setup.assert_equal();
}

/// A rename of a key, changed rows by a foreign hand: an update that finds no row is reported.
#[test]
fn a_conflict_stops_the_table_or_is_repaired_by_choice() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 10) g",
        "\"public.*\"",
    );
    setup.catch_up();
    // Changes that bypass the stream: the source is changed without being decoded.
    setup
        .pg
        .execute("ALTER PUBLICATION alluvium_test DROP TABLE ONLY t")
        .unwrap();
    setup
        .pg
        .execute("INSERT INTO t VALUES (11, 'unseen')")
        .unwrap();
    setup
        .pg
        .execute("ALTER PUBLICATION alluvium_test ADD TABLE ONLY t")
        .unwrap();
    setup
        .pg
        .execute("UPDATE t SET v = 'seen' WHERE id = 11")
        .unwrap();
    let ended = setup.alluvium(crate::setup::CAUGHT_UP);
    assert_eq!(ended.code(), Some(3), "{}", ended.stderr);
    assert_eq!(setup.status("public.t")["error"]["code"], "AL-MERGE-001");
    setup.configure(
        "\"public.*\"",
        "[tables.\"public.t\"]\non_conflict = \"repair\"\n",
    );
    setup.catch_up();
    setup.assert_equal();
}

#[test]
fn an_idle_database_does_not_keep_its_wal() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int)",
        "\"public.t\"",
    );
    let running = setup.spawn_run();
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["phase"] == "live"
    });
    for _ in 0..5 {
        setup
            .pg
            .execute("INSERT INTO other SELECT generate_series(1, 20000)")
            .unwrap();
    }
    let target = setup.pg.query_text("SELECT pg_current_wal_lsn()").unwrap();
    let sql = format!(
        "SELECT confirmed_flush_lsn >= '{}' FROM pg_replication_slots WHERE slot_name = 'alluvium_test'",
        target.trim()
    );
    setup.wait(&running, "the slot has advanced", || {
        setup.pg.query_text(&sql).unwrap().trim() == "t"
    });
    terminate(running);
}

#[test]
fn a_second_run_is_told_who_holds_lake_or_slot() {
    let setup = Setup::new("CREATE TABLE t (id int PRIMARY KEY)", "\"public.*\"");
    let running = setup.spawn_run();
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["phase"] == "live"
    });
    let second = setup.alluvium(&["run"]);
    assert_eq!(second.code(), Some(1));
    assert!(second.stderr.contains("AL-LAKE-005"), "{}", second.stderr);
    assert!(
        second
            .stderr
            .contains(&format!("process {}", running.pid())),
        "{}",
        second.stderr
    );
    // Another lake, the same slot.
    let other = tempfile::tempdir().unwrap();
    std::fs::copy(
        setup.dir.path().join("alluvium.toml"),
        other.path().join("alluvium.toml"),
    )
    .unwrap();
    let third = Alluvium::run(bin(), &["run"], other.path(), &[], PATIENCE).unwrap();
    assert_eq!(third.code(), Some(1));
    assert!(third.stderr.contains("AL-PG-012"), "{}", third.stderr);
    terminate(running);
}

#[test]
fn the_newcomers_commands_work() {
    let setup = Setup::new(sql::SHOP, "\"public.*\"");
    let dir = tempfile::tempdir().unwrap();
    let url = setup.pg.url("postgres");
    let alluvium = |args: &[&str]| Alluvium::run(bin(), args, dir.path(), &[], PATIENCE).unwrap();
    alluvium(&["init", "--url", &url, "--source", "shop"])
        .success()
        .unwrap();
    assert_eq!(
        alluvium(&["init", "--url", &url]).code(),
        Some(1),
        "replaced a file"
    );
    let doctor = alluvium(&["doctor"]).success().unwrap();
    assert!(
        doctor.stdout.contains("ready") || doctor.stdout.contains("all good"),
        "{}",
        doctor.stdout
    );
    assert!(
        alluvium(&["status"])
            .success()
            .unwrap()
            .stdout
            .contains("not run yet")
    );
    alluvium(&["run", "--until-caught-up"]).success().unwrap();
    let tables = alluvium(&["tables"]).success().unwrap().stdout;
    assert!(
        tables.contains("silver.order_items") && tables.contains("bronze.orders"),
        "{tables}"
    );
    let query = "SELECT name, price FROM products ORDER BY id LIMIT 2; SELECT count(*) FROM bronze.customers";
    for format in ["table", "csv", "json", "ndjson"] {
        let answer = alluvium(&["sql", query, "--output", format])
            .success()
            .unwrap();
        assert!(!answer.stdout.is_empty());
    }
    let wrong = alluvium(&["sql", "SELECT * FROM prodcts"]);
    assert_eq!(wrong.code(), Some(1));
    assert!(wrong.stderr.contains("products"), "{}", wrong.stderr);
    assert!(
        alluvium(&["errors"])
            .success()
            .unwrap()
            .stdout
            .contains("AL-PG-006")
    );
    assert!(
        alluvium(&["errors", "al-pg-006"])
            .success()
            .unwrap()
            .stdout
            .contains("wal_level")
    );
    assert!(
        alluvium(&["completions", "bash"])
            .success()
            .unwrap()
            .stdout
            .contains("alluvium")
    );
    for format in ["json", "ndjson", "csv"] {
        alluvium(&["status", "--output", format]).success().unwrap();
        alluvium(&["doctor", "--output", format]).success().unwrap();
    }
}

/// Dropped and made again while nobody looked: the lake's rows are those of another table.
#[test]
fn a_table_made_again_is_not_taken_for_the_old_one() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'old' FROM generate_series(1, 10) g",
        "\"public.*\"",
    );
    setup.catch_up();
    let again = "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'new')";
    setup.pg.execute(again).unwrap();
    let ended = setup.alluvium(crate::setup::CAUGHT_UP);
    assert_eq!(ended.code(), Some(3), "{}", ended.stderr);
    assert_eq!(setup.status("public.t")["error"]["code"], "AL-SCHEMA-001");
    setup.alluvium(&["resync", "t"]).success().unwrap();
    setup.catch_up();
    setup.assert_equal();
    // And while it runs.
    let running = setup.spawn_run();
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["phase"] == "live"
    });
    setup.pg.execute(again).unwrap();
    setup
        .pg
        .execute(
            "ALTER PUBLICATION alluvium_test ADD TABLE ONLY t; INSERT INTO t VALUES (2, 'newer')",
        )
        .unwrap();
    setup.wait(&running, "it is stopped", || {
        setup.status("public.t")["phase"] == "stopped"
    });
    setup.alluvium(&["resync", "t"]).success().unwrap();
    setup.wait(&running, "it is live again", || {
        setup.status("public.t")["phase"] == "live"
    });
    terminate(running);
    setup.catch_up();
    setup.assert_equal();
}

/// Somebody else wrote to silver while the pipeline rested: its rows cannot be trusted.
#[test]
fn a_commit_of_another_program_is_noticed() {
    let setup = Setup::on(
        alluvium_testkit::PgCluster::start(None, &[]).unwrap(),
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)",
        "\"public.*\"",
        "[maintain]\nforeign = \"refuse\"\n",
    );
    setup.catch_up();
    let log = setup.lake().join("silver/t/_delta_log");
    let versions = std::fs::read_dir(&log).unwrap().filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .path()
            .extension()
            .is_some_and(|extension| extension == "json")
    });
    let next = log.join(format!("{:020}.json", versions.count()));
    std::fs::write(next, "{\"commitInfo\":{\"operation\":\"OPTIMIZE\"}}\n").unwrap();
    let ended = setup.alluvium(crate::setup::CAUGHT_UP);
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("error[AL-LAKE-004]"),
        "{}",
        ended.stderr
    );
    setup.alluvium(&["resync", "t"]).success().unwrap();
    setup.catch_up();
    setup.assert_equal();
}
