//! Prepared transactions, received when they are prepared (`two_phase = true`): they are seen when they
//! are committed, as a whole and once, wherever the process or the server ends in between.

use alluvium_testkit::{Alluvium, PgCluster};

use crate::setup::{CAUGHT_UP, PATIENCE, Setup, bin, terminate};
use crate::streamed::{LEAST_MEMORY, SMALL_PIECES, TABLES, equal, insert};

const SETTING: &str = "two_phase = true\n";

/// Whether the project wants prepared transactions when they are prepared.
fn want(setup: &Setup, wanted: bool) {
    let file = setup.dir.path().join("alluvium.toml");
    let text = std::fs::read_to_string(&file).unwrap().replace(SETTING, "");
    let setting = if wanted { SETTING } else { "" };
    std::fs::write(&file, text.replace("[lake]", &format!("{setting}[lake]"))).unwrap();
}

/// A project with the setting, before its first run.
fn fresh(version: Option<u16>) -> Setup {
    let pg = PgCluster::start(version, SMALL_PIECES).unwrap();
    let setup = Setup::on(pg, TABLES, "\"public.*\"", LEAST_MEMORY);
    want(&setup, true);
    setup
}

fn setup(version: Option<u16>) -> Setup {
    let setup = fresh(version);
    setup.catch_up();
    setup
}

fn prepare(setup: &Setup, gid: &str, statements: &[&str]) {
    let script = format!(
        "BEGIN; {}; PREPARE TRANSACTION '{gid}'",
        statements.concat()
    );
    setup.pg.execute(&script).unwrap();
}

fn decide(setup: &Setup, what: &str, gid: &str) {
    setup
        .pg
        .execute(&format!("{what} PREPARED '{gid}'"))
        .unwrap();
}

fn count(setup: &Setup, table: &str, condition: &str) -> i64 {
    let query = format!("SELECT count(*) AS n FROM {table} WHERE {condition}");
    setup.sql(&query)[0]["n"].as_i64().unwrap()
}

/// A row that is committed and has come.
fn mark(setup: &Setup, running: &Alluvium, n: u32) {
    setup
        .pg
        .execute(&format!("INSERT INTO b VALUES ({n}, 'mark')"))
        .unwrap();
    setup.wait(running, "the mark is there", || {
        count(setup, "b", &format!("n = {n}")) == 1
    });
}

/// Transactions the pipeline holds, by its status.
fn held(setup: &Setup) -> i64 {
    let file = setup.dir.path().join(".alluvium/status.json");
    let status: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    status["stream"]["prepared_transactions"].as_i64().unwrap()
}

fn acknowledged(setup: &Setup) -> String {
    let query = "SELECT confirmed_flush_lsn FROM pg_replication_slots";
    setup.pg.query_text(query).unwrap()
}

fn is_two_phase(setup: &Setup) -> bool {
    let query = "SELECT two_phase FROM pg_replication_slots";
    setup.pg.query_text(query).unwrap().trim() == "t"
}

fn versions() -> Vec<u16> {
    let versions = PgCluster::versions_to_test().unwrap();
    versions.into_iter().filter(|major| *major >= 15).collect()
}

/// Small ones and large, with savepoints rolled back, side by side, committed and rolled back.
#[test]
fn prepared_transactions_are_seen_when_they_are_committed() {
    for version in versions() {
        let setup = setup(Some(version));
        assert!(is_two_phase(&setup));
        let running = setup.spawn_run();
        // Start-up waits for locked tables.
        mark(&setup, &running, 1000);
        let small = "INSERT INTO a VALUES (10001, 'small', 'x'); DELETE FROM a WHERE id = 7; \
                     SAVEPOINT s; INSERT INTO a VALUES (10002, 'gone', 'x'); ROLLBACK TO s";
        prepare(&setup, "small", &[small]);
        // 12 MB, of which 4 are held in memory: sent in pieces, a part of it spilled.
        let large = [
            &*insert("a", 20_001, 22_500),
            "SAVEPOINT s;",
            &*insert("a", 30_001, 32_500),
            "ROLLBACK TO s; UPDATE a SET v = 'changed' WHERE id > 22000",
        ];
        prepare(&setup, "large", &large);
        prepare(&setup, "back", &[&insert("a", 40_001, 41_000)]);
        // The server says nothing of one that did nothing.
        prepare(&setup, "empty_one", &["SELECT 1"]);
        prepare(
            &setup,
            "emptied",
            &["TRUNCATE c;", &insert("c", 7001, 7005)],
        );
        for n in 0..20 {
            let between = format!("UPDATE a SET v = 'between' WHERE id = {n} + 100");
            setup.pg.execute(&between).unwrap();
        }
        mark(&setup, &running, 1001);
        setup.wait(&running, "all are held", || held(&setup) == 4);
        for table in ["a", "bronze.a"] {
            assert_eq!(count(&setup, table, "id > 10000"), 0);
        }
        assert_eq!(count(&setup, "a", "id = 7"), 1);
        assert_eq!(count(&setup, "c", "true"), 500);
        let held_at = acknowledged(&setup);
        decide(&setup, "ROLLBACK", "back");
        decide(&setup, "COMMIT", "large");
        prepare(
            &setup,
            "large",
            &["INSERT INTO a VALUES (10003, 'again', 'x')"],
        );
        decide(&setup, "COMMIT", "emptied");
        mark(&setup, &running, 1002);
        assert_eq!(count(&setup, "a", "id > 10000"), 2500);
        assert_eq!(count(&setup, "c", "true"), 5);
        let late = "_commit_lsn > (SELECT max(_commit_lsn) FROM bronze.b WHERE n = 1001)";
        let bronze = format!("id > 20000 AND _op = 'c' AND {late}");
        assert_eq!(count(&setup, "bronze.a", &bronze), 2500);
        // The first is undecided.
        assert_eq!(acknowledged(&setup), held_at);
        for gid in ["small", "large", "empty_one"] {
            decide(&setup, "COMMIT", gid);
        }
        mark(&setup, &running, 1003);
        assert_eq!(count(&setup, "a", "id > 10000"), 2502);
        setup.wait(&running, "all is acknowledged", || {
            acknowledged(&setup) != held_at && held(&setup) == 0
        });
        let log = terminate(running);
        assert!(log.contains("goes to disk"), "{log}");
        equal(&setup);
    }
}

/// A server that shuts down does not wait for a decision that only it can take; after it is back, and
/// after a run that ended in order, what is undecided is sent again.
#[test]
fn undecided_transactions_outlast_server_and_pipeline() {
    for version in versions() {
        let mut setup = setup(Some(version));
        let running = setup.spawn_run();
        prepare(&setup, "one", &[&insert("a", 10_001, 10_010)]);
        prepare(&setup, "two", &[&insert("a", 20_001, 21_000)]);
        mark(&setup, &running, 1001);
        setup.pg.stop_fast().unwrap();
        setup.pg.start_again().unwrap();
        mark(&setup, &running, 1002);
        setup.wait(&running, "both are held again", || held(&setup) == 2);
        terminate(running);
        // Caught up does not mean decided.
        setup.catch_up();
        setup.assert_equal();
        decide(&setup, "COMMIT", "two");
        setup.catch_up();
        assert_eq!(count(&setup, "a", "id > 10000"), 1000);
        decide(&setup, "COMMIT", "one");
        equal(&setup);
    }
}

/// Killed between the phases, and after the second before it is durable. Commits between are not there
/// twice, also of a table whose equal rows are counted.
#[test]
fn a_crash_between_the_phases_loses_nothing() {
    let setup = setup(None);
    let points = [
        "stream.committed:1",
        "stream.replayed:1",
        "land.before_commit:2",
        "land.after_commit:2",
        "merge.before_commit:2",
        "merge.after_commit:2",
        "acknowledge.before_send:3",
    ];
    for (round, armed) in (1..).zip(points) {
        let base = round * 100_000;
        let mut running = setup.spawn_run();
        prepare(&setup, "small", &[&insert("a", base, base + 10)]);
        prepare(&setup, "large", &[&insert("a", base + 1000, base + 2000)]);
        mark(&setup, &running, base);
        running.kill_9().unwrap();
        setup.pg.execute(&insert("b", base, base + 5)).unwrap();
        let env = [("ALLUVIUM_CRASH_AT", armed)];
        let mut running = Alluvium::spawn(bin(), &["run"], setup.dir.path(), &env).unwrap();
        decide(&setup, "COMMIT", "large");
        let status = running.wait_timeout(PATIENCE).unwrap();
        assert!(
            status.is_some(),
            "{armed} was not reached: {}",
            running.stderr()
        );
        setup.catch_up();
        setup.assert_equal();
        let commits = format!("n = {base} AND v = 'mark' AND _op = 'c'");
        assert_eq!(count(&setup, "bronze.b", &commits), 1, "{armed}");
        decide(&setup, "COMMIT", "small");
    }
    equal(&setup);
}

/// One that is committed while an earlier one is undecided is not sent whole again, nor needed. When it
/// is not known whether it was durable, that is said.
#[test]
fn a_commit_sent_again_without_its_changes_is_passed_over_only_when_durable() {
    let setup = setup(None);
    let mut running = setup.spawn_run();
    prepare(&setup, "first", &[&insert("a", 10_001, 10_010)]);
    prepare(&setup, "second", &[&insert("a", 20_001, 20_010)]);
    mark(&setup, &running, 1001);
    let held_at = acknowledged(&setup);
    decide(&setup, "COMMIT", "first");
    mark(&setup, &running, 1002);
    setup.wait(&running, "the first is acknowledged", || {
        acknowledged(&setup) != held_at
    });
    running.kill_9().unwrap();
    setup.catch_up();
    setup.assert_equal();
    let told = setup.dir.path().join(".alluvium/told-alluvium_test");
    let kept = std::fs::read_to_string(&told).unwrap();
    std::fs::remove_file(&told).unwrap();
    let refused = setup.alluvium(CAUGHT_UP);
    assert!(
        refused.stderr.contains("error[AL-PG-020]") && refused.stderr.contains("\"first\""),
        "{}",
        refused.stderr
    );
    std::fs::write(&told, kept).unwrap();
    decide(&setup, "COMMIT", "second");
    equal(&setup);
}

/// A transaction prepared while the slot is made is in no snapshot; it comes with its commit.
#[test]
fn a_transaction_prepared_while_the_slot_is_made_comes_whole() {
    let setup = fresh(None);
    prepare(
        &setup,
        "first",
        &["INSERT INTO a VALUES (10001, 'first', 'x')"],
    );
    let running = setup.spawn_run();
    let log = |text: &str| setup.pg.log().contains(text);
    setup.wait(&running, "the slot waits for the first", || {
        log("found initial starting point")
    });
    prepare(
        &setup,
        "second",
        &["INSERT INTO a VALUES (10002, 'second', 'x')"],
    );
    decide(&setup, "COMMIT", "first");
    setup.wait(&running, "the slot waits for the second", || {
        log("found initial consistent point")
    });
    let statements = ["DELETE FROM a WHERE id = 3; INSERT INTO a VALUES (10003, 'third', 'x');"];
    prepare(&setup, "third", &statements);
    prepare(&setup, "fourth", &[&insert("a", 20_001, 21_000)]);
    decide(&setup, "COMMIT", "second");
    mark(&setup, &running, 1001);
    setup.wait(&running, "it is copied", || {
        setup.status("public.a")["phase"] == "live"
    });
    assert_eq!(
        held(&setup),
        0,
        "they were prepared before the slot's start"
    );
    setup.assert_equal();
    decide(&setup, "COMMIT", "fourth");
    mark(&setup, &running, 1002);
    setup.assert_equal();
    decide(&setup, "COMMIT", "third");
    mark(&setup, &running, 1003);
    terminate(running);
    equal(&setup);
}

/// A table is copied afresh while one is undecided: the copy waits for it, the other tables do not.
#[test]
fn a_copy_begins_when_what_is_prepared_is_decided() {
    let setup = setup(None);
    let running = setup.spawn_run();
    prepare(&setup, "open", &[&insert("a", 10_001, 10_010)]);
    mark(&setup, &running, 1001);
    terminate(running);
    setup.alluvium(&["resync", "public.c"]).success().unwrap();
    let running = setup.spawn_run();
    setup.pg.execute(&insert("c", 5001, 5010)).unwrap();
    mark(&setup, &running, 1002);
    decide(&setup, "COMMIT", "open");
    setup.wait(&running, "it is copied", || {
        count(&setup, "c", "id = 5010") == 1 && setup.status("public.c")["phase"] == "live"
    });
    terminate(running);
    equal(&setup);
}

/// The setting is switched on and off while transactions are undecided; a slot that was on stays on.
#[test]
fn the_setting_can_be_changed_at_any_time() {
    for version in versions() {
        let setup = fresh(Some(version));
        want(&setup, false);
        setup.catch_up();
        assert!(!is_two_phase(&setup));
        prepare(&setup, "off", &[&insert("a", 10_001, 10_010)]);
        setup.pg.execute(&insert("b", 1, 3)).unwrap();
        setup.catch_up();
        assert_eq!((held(&setup), is_two_phase(&setup)), (0, false));
        want(&setup, true);
        prepare(&setup, "on", &[&insert("a", 20_001, 20_010)]);
        setup.catch_up();
        assert_eq!((held(&setup), is_two_phase(&setup)), (1, true));
        decide(&setup, "COMMIT", "off");
        setup.catch_up();
        setup.assert_equal();
        assert_eq!(count(&setup, "a", "id > 10000"), 10);
        want(&setup, false);
        prepare(&setup, "off", &[&insert("a", 30_001, 31_000)]);
        let doctor = setup.alluvium(&["doctor"]);
        assert!(
            doctor.stdout.contains("two_phase is off"),
            "{}",
            doctor.stdout
        );
        setup.catch_up();
        assert_eq!(held(&setup), 2);
        decide(&setup, "COMMIT", "on");
        decide(&setup, "COMMIT", "off");
        equal(&setup);
        assert_eq!(count(&setup, "a", "id > 10000"), 1020);
    }
}

#[test]
fn an_older_server_refuses_before_anything_is_made() {
    let older = PgCluster::available_versions();
    for version in older.into_iter().filter(|major| *major < 15) {
        let setup = fresh(Some(version));
        let refused = setup.alluvium(CAUGHT_UP);
        assert!(
            refused.stderr.contains("error[AL-CONFIG-004]") && refused.stderr.contains("two_phase"),
            "{}",
            refused.stderr
        );
        let slots = "SELECT count(*) FROM pg_replication_slots";
        assert_eq!(setup.pg.query_text(slots).unwrap().trim(), "0");
    }
}
