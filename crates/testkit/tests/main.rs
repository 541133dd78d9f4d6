//! The test kit itself: clusters of each version, their ends, the comparer, the workload.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use alluvium_testkit::{Alluvium, PgCluster, check, sql, workload};
use anyhow::Result;

#[test]
fn each_version_starts_with_logical_replication() -> Result<()> {
    let versions = PgCluster::versions_to_test()?;
    for version in versions {
        let pg = PgCluster::start(Some(version), &[("work_mem", "5MB")])?;
        let shown = pg.query_text("SHOW server_version_num")?;
        assert_eq!(shown.parse::<u32>()? / 10_000, u32::from(version));
        assert_eq!(pg.query_text("SHOW wal_level")?, "logical");
        assert_eq!(pg.query_text("SHOW work_mem")?, "5MB");
        pg.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")?;
        assert_eq!(
            pg.query_text("SELECT plugin FROM pg_replication_slots")?,
            "pgoutput"
        );
    }
    Ok(())
}

#[test]
fn data_and_port_outlive_both_kinds_of_stop() -> Result<()> {
    let mut pg = PgCluster::start(None, &[])?;
    let (port, dir) = (pg.port(), pg.dir().to_path_buf());
    pg.execute("CREATE TABLE t (a text); INSERT INTO t VALUES ('x|y'), (NULL)")?;
    for stop in [PgCluster::stop_fast, PgCluster::stop_immediate] {
        stop(&mut pg)?;
        assert!(
            pg.execute("SELECT 1").is_err(),
            "the stopped server answered"
        );
        pg.start_again()?;
        assert_eq!(pg.port(), port);
        assert_eq!(pg.query_text("SELECT a, 1 FROM t")?, "x|y|1\n|1");
    }
    pg.stop_fast()?;
    pg.set_conf("max_connections", "17");
    pg.start_again()?;
    assert_eq!(pg.query_text("SHOW max_connections")?, "17");
    drop(pg);
    assert!(!dir.exists(), "{} was left behind", dir.display());
    Ok(())
}

#[test]
fn a_password_is_asked_for() -> Result<()> {
    let pg = PgCluster::builder().password("s3cret").start()?;
    assert_eq!(pg.query_text("SELECT 1")?, "1");
    let url = pg.url("postgres").replace("s3cret", "wrong");
    let wrong = Command::new("psql")
        .args([&url, "-c", "SELECT 1"])
        .output()?;
    assert!(!wrong.status.success());
    Ok(())
}

#[tokio::test]
async fn queries_work_inside_a_runtime() -> Result<()> {
    let pg = PgCluster::start(None, &[])?;
    assert_eq!(pg.query_text("SELECT 'ä'")?, "ä");
    let error = pg
        .query_text("SELECT nothing")
        .expect_err("there is no such column");
    assert!(error.to_string().contains("42703"), "{error}");
    Ok(())
}

/// Not a test: the program that the next test kills. It prints its cluster's directory and waits.
#[test]
fn helper_that_holds_a_cluster() -> Result<()> {
    if std::env::var_os("TESTKIT_HOLD_A_CLUSTER").is_none() {
        return Ok(());
    }
    let pg = PgCluster::start(None, &[])?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "\nholding {} {}",
        pg.dir().display(),
        pg.pid().unwrap()
    )?;
    out.flush()?;
    std::thread::sleep(Duration::from_secs(60));
    Ok(())
}

/// A test runner that is killed drops nothing: the watchdog must end the server.
#[test]
fn a_killed_test_leaves_no_server_and_no_directory() -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", "helper_that_holds_a_cluster", "--nocapture"])
        .env("TESTKIT_HOLD_A_CLUSTER", "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    let line = std::io::BufRead::lines(stdout)
        .map_while(Result::ok)
        .find(|line| line.starts_with("holding "))
        .expect("the helper holds a cluster");
    child.kill()?;
    child.wait()?;
    let mut words = line.split_whitespace().skip(1);
    let dir = Path::new(words.next().unwrap());
    let server = Path::new("/proc").join(words.next().unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    while dir.exists() || server.exists() {
        assert!(
            Instant::now() < deadline,
            "{} or its server is left",
            dir.display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn types_and_their_changes_load_on_each_version() -> Result<()> {
    for version in PgCluster::versions_to_test()? {
        let pg = PgCluster::start(Some(version), &[])?;
        pg.execute(sql::TYPES)?;
        if version >= 14 {
            pg.execute(sql::TYPES_14)?;
        }
        let tables = pg.query_text(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'types'",
        )?;
        let digests = || -> Result<Vec<String>> {
            let digest = |table| {
                format!("SELECT count(*), md5(string_agg(t::text, ',' ORDER BY id)) FROM {table} t")
            };
            tables
                .lines()
                .map(|table| pg.query_text(&digest(table)))
                .collect()
        };
        let before = digests()?;
        assert!(before.len() >= 10, "only {} tables of types", before.len());
        pg.execute(sql::TYPES_CHANGES)?;
        for ((table, before), after) in tables.lines().zip(before).zip(digests()?) {
            assert_ne!(before, after, "{table} is not changed");
        }
    }
    Ok(())
}

#[test]
fn unusual_tables_load_and_change() -> Result<()> {
    let pg = PgCluster::start(None, &[])?;
    pg.execute(sql::NAMES)?;
    pg.execute("CREATE PUBLICATION p FOR TABLE by_index, by_whole_row, key_and_whole_row, parted, two_keys")?;
    pg.execute(sql::NAMES_CHANGES)?;
    let counted =
        pg.query_text("SELECT count(*), count(*) FILTER (WHERE b = 'once') FROM by_whole_row")?;
    assert_eq!(counted, "7|3");
    Ok(())
}

#[test]
fn shop_traffic_changes_the_shop() -> Result<()> {
    let pg = PgCluster::start(None, &[])?;
    pg.execute("CREATE DATABASE source_db")?;
    pg.execute_in("source_db", sql::SHOP)?;
    let counts = "SELECT (SELECT count(*) FROM customers), (SELECT count(*) FROM products), \
                  (SELECT count(*) FROM orders), (SELECT count(*) FROM order_items)";
    assert_eq!(pg.query_text_in("source_db", counts)?, "5|5|3|4");
    pg.execute_in("source_db", sql::SHOP_TRAFFIC)?;
    pg.execute_in("source_db", "SELECT setseed(0.5)")?;
    let steps: Vec<String> = (0..200)
        .map(|_| pg.query_text_in("source_db", "SELECT shop_step()"))
        .collect::<Result<_>>()?;
    for kind in ["order", "status", "stock", "delete", "customer"] {
        assert!(
            steps.iter().any(|step| step.starts_with(kind)),
            "no step \"{kind}\": {steps:?}"
        );
    }
    let wrong_totals = "SELECT count(*) FROM orders o WHERE id > 3 AND total_amount IS DISTINCT FROM \
                        (SELECT sum(quantity * unit_price) FROM order_items WHERE order_id = o.id)";
    assert_eq!(pg.query_text_in("source_db", wrong_totals)?, "0");
    let touched = "SELECT count(*) > 0 FROM orders WHERE updated_at > created_at";
    assert_eq!(pg.query_text_in("source_db", touched)?, "t");
    Ok(())
}

#[test]
fn the_workload_runs_and_an_empty_lake_is_not_equal() -> Result<()> {
    let pg = PgCluster::start(None, &[])?;
    let url = pg.url("postgres");
    workload::setup(&url, 20)?;
    let stats = workload::run(&url, 7, &["--txns", "30"])?;
    assert!(stats.transactions == 30 && stats.rows > 30, "{stats:?}");

    let written =
        || pg.query_text("SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables");
    let before = written()?;
    let running = workload::spawn(&url, 8, &["--seconds", "600", "--rate", "50"])?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while written()? == before {
        assert!(Instant::now() < deadline, "the workload writes nothing");
        std::thread::sleep(Duration::from_millis(100));
    }
    let stats = running.stop()?;
    assert!(stats.transactions > 0 && stats.seconds < 300.0, "{stats:?}");

    let lake = tempfile::tempdir()?;
    let report = check::compare(&url, lake.path(), &["--tables", "public.w_*"])?;
    assert!(!report.equal);
    assert_eq!(report.num_tables(), 10);
    assert_eq!(report.table("public.w_plain").unwrap()["status"], "missing");
    let said = report
        .expect_equal()
        .expect_err("nothing is there")
        .to_string();
    assert!(said.contains("public.w_plain"), "{said}");
    assert!(check::compare("postgres://nobody@127.0.0.1:1/none", lake.path(), &[]).is_err());
    Ok(())
}

#[test]
fn processes_are_watched() -> Result<()> {
    let (sh, here) = (Path::new("/bin/sh"), Path::new("/"));
    let patience = Duration::from_secs(20);
    let script = ["-c", "echo out $WORD; echo err >&2; exit 3"];
    let finished = Alluvium::run(sh, &script, here, &[("WORD", "w")], patience)?;
    assert_eq!(
        (finished.code(), finished.stdout.as_str()),
        (Some(3), "out w\n")
    );
    assert_eq!(finished.stderr, "err\n");
    assert!(finished.success().is_err());

    let script = [
        "-c",
        "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done",
    ];
    let mut asked = Alluvium::spawn(sh, &script, here, &[])?;
    asked.wait_for_output("up", patience)?;
    assert_eq!(asked.wait_timeout(Duration::from_millis(50))?, None);
    assert_eq!(asked.stop(patience)?.code(), Some(0));

    let mut killed = Alluvium::spawn(sh, &script, here, &[])?;
    killed.wait_for_output("up", patience)?;
    killed.kill_9()?;
    assert_eq!(killed.wait_timeout(patience)?.unwrap().code(), None);
    assert!(
        Alluvium::run(
            sh,
            &["-c", "sleep 30"],
            here,
            &[],
            Duration::from_millis(100)
        )
        .is_err()
    );
    Ok(())
}
