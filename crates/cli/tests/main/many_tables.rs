//! Many tables, most of them idle: what a table at rest may not cost, and that it misses nothing.

use std::time::{Duration, Instant};

use alluvium_testkit::Alluvium;

use crate::setup::{Setup, terminate};

/// A keyed, a partitioned, a whole-row and an append-only table in turn, ten rows each.
fn tables(range: std::ops::Range<u32>) -> String {
    let table = |n: u32| {
        let rows = format!("INSERT INTO t{n} SELECT g, 'v' || g FROM generate_series(1, 10) g;");
        let shape = match n % 4 {
            0 => format!("CREATE TABLE t{n} (id int PRIMARY KEY, v text);"),
            1 => format!(
                "CREATE TABLE t{n} (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
                 CREATE TABLE t{n}_a PARTITION OF t{n} FOR VALUES FROM (0) TO (6);
                 CREATE TABLE t{n}_b PARTITION OF t{n} FOR VALUES FROM (6) TO (1000);"
            ),
            2 => format!(
                "CREATE TABLE t{n} (id int, v text); ALTER TABLE t{n} REPLICA IDENTITY FULL;"
            ),
            _ => format!("CREATE TABLE t{n} (id int, v text);"),
        };
        shape + &rows
    };
    range.map(table).collect()
}

/// Entries of a directory of `/proc` about the process.
fn count(running: &Alluvium, what: &str) -> usize {
    std::fs::read_dir(format!("/proc/{}/{what}", running.pid()))
        .unwrap()
        .count()
}

/// Threads and open files once they no longer fall: threads that had work linger a while.
fn at_rest(running: &Alluvium) -> (usize, usize) {
    let measure = || (count(running, "task"), count(running, "fd"));
    let since = Instant::now();
    let mut least = measure();
    while since.elapsed() < Duration::from_secs(15) {
        std::thread::sleep(Duration::from_millis(250));
        let now = measure();
        least = (least.0.min(now.0), least.1.min(now.1));
    }
    least
}

fn run_until_live(setup: &Setup, tables: usize) -> Alluvium {
    let running = setup.spawn_run();
    setup.wait(&running, "all tables are live", || live(setup) == tables);
    running
}

/// How many tables are live, as the running pipeline says.
fn live(setup: &Setup) -> usize {
    let path = setup.dir.path().join(".alluvium/status.json");
    let status: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path).unwrap_or_default()).unwrap_or_default();
    let tables = status["tables"].as_object();
    let is_live = |table: &&serde_json::Value| table["phase"] == "live";
    match status["connected"].as_bool() {
        Some(true) => tables.map_or(0, |tables| tables.values().filter(is_live).count()),
        _ => 0,
    }
}

#[test]
fn an_idle_table_has_neither_thread_nor_open_file() {
    const FEW: u32 = 12;
    const MANY: u32 = 120;
    let setup = Setup::new(&tables(0..FEW), "\"public.*\"");
    setup.catch_up();
    let running = run_until_live(&setup, FEW as usize);
    let few = at_rest(&running);
    terminate(running);

    // The rest joins while nothing runs: the next start copies it.
    setup.pg.execute(&tables(FEW..MANY)).unwrap();
    setup.catch_up();
    let running = run_until_live(&setup, MANY as usize);
    let many = at_rest(&running);
    // A thread or file more or less is chance; one for each table would be a hundred.
    assert!(
        many.0 <= few.0 + 8 && many.1 <= few.1 + 8,
        "(threads, open files) at rest: {few:?} with {FEW} tables, {many:?} with {MANY}"
    );

    // One table changes while all others rest; a new column and a new table are noticed.
    setup
        .pg
        .execute(
            "INSERT INTO t0 VALUES (11, 'new'); UPDATE t0 SET v = 'changed' WHERE id = 1;
             DELETE FROM t0 WHERE id = 2; ALTER TABLE t4 ADD COLUMN more int DEFAULT 7;
             CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1)",
        )
        .unwrap();
    setup.wait(&running, "the change is there", || {
        setup.status("public.t0")["silver_rows"] == 10 && setup.status("public.t0")["changes"] == 3
    });
    setup.wait(&running, "the new table is live", || {
        live(&setup) == MANY as usize + 1
    });
    setup.wait(&running, "the new column is there", || {
        let finished = setup.alluvium(&["sql", "SELECT more FROM t4 LIMIT 1"]);
        finished.code() == Some(0)
    });
    // Idle tables fall behind on disk and still are complete: no commit is made for them.
    let idle = setup.status("public.t8");
    assert_eq!(idle["changes"], 0, "{idle}");
    terminate(running);

    // A start after a crash finds them all, too.
    let mut killed = run_until_live(&setup, MANY as usize + 1);
    setup
        .pg
        .execute("INSERT INTO t5 VALUES (500, 'x'); INSERT INTO t119 VALUES (11, 'y')")
        .unwrap();
    killed.kill_9().unwrap();
    setup.catch_up();
    setup.assert_equal();
}
