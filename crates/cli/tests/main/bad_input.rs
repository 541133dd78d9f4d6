//! What goes wrong is said within seconds: a code, a detail, a hint; no panic, nothing lost.

use std::os::unix::fs::PermissionsExt as _;

use alluvium_testkit::{Alluvium, Finished, PgCluster};

use crate::rebuild::bronze_rebuilds_silver;
use crate::setup::{CAUGHT_UP, PATIENCE, Setup, bin};

fn refused(finished: &Finished, code: &str) {
    let stderr = &finished.stderr;
    assert_eq!(finished.code(), Some(1), "{stderr}");
    for part in [format!("error[{code}]"), "hint: ".to_owned()] {
        assert!(stderr.contains(&part), "{part} is missing in:\n{stderr}");
    }
    assert!(
        !stderr.contains("panicked") && !stderr.contains("geheim"),
        "{stderr}"
    );
}

#[test]
fn a_wrong_project_file_names_line_and_fix() {
    let dir = tempfile::tempdir().unwrap();
    let run = |text: &str| {
        std::fs::write(dir.path().join("alluvium.toml"), text).unwrap();
        Alluvium::run(bin(), CAUGHT_UP, dir.path(), &[], PATIENCE).unwrap()
    };
    let good = "[source.s]\ntype = \"postgres\"\nurl = \"postgres://u:geheim@127.0.0.1:1/db\"\n[lake]\npath = \"l\"\n";
    refused(&run("[source"), "AL-CONFIG-002");
    let unknown = run(&good.replace("url", "urll"));
    refused(&unknown, "AL-CONFIG-003");
    assert!(unknown.stderr.contains("did you mean \"url\"") && unknown.stderr.contains("line 3"));
    refused(
        &run(&good.replace("\"postgres\"", "\"mysql\"")),
        "AL-CONFIG-004",
    );
    refused(&run(&good.replace("127", "${NOT_SET}")), "AL-CONFIG-005");
    refused(&run(&good.replace("postgres://", "mysql://")), "AL-PG-018");
    refused(&run(good), "AL-PG-001");
    std::fs::remove_file(dir.path().join("alluvium.toml")).unwrap();
    refused(
        &Alluvium::run(bin(), CAUGHT_UP, dir.path(), &[], PATIENCE).unwrap(),
        "AL-CONFIG-001",
    );
}

#[test]
fn a_server_that_cannot_be_used_says_why() {
    let pg = PgCluster::builder()
        .password("geheim")
        .conf("wal_level", "replica")
        .start()
        .unwrap();
    pg.execute("CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    pg.execute("CREATE ROLE weak LOGIN PASSWORD 'geheim'; GRANT SELECT ON t TO weak")
        .unwrap();
    let mut setup = Setup::on(pg, "", "\"public.*\"", "");
    refused(&setup.alluvium(CAUGHT_UP), "AL-PG-006");
    setup.pg.set_conf("wal_level", "logical");
    setup.pg.stop_fast().unwrap();
    setup.pg.start_again().unwrap();
    let config = setup.dir.path().join("alluvium.toml");
    let good = std::fs::read_to_string(&config).unwrap();
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        std::fs::write(&config, good.replace(from, to)).unwrap();
        setup.alluvium(CAUGHT_UP)
    };
    refused(&with(":geheim@", ":falsch@"), "AL-PG-002");
    refused(&with("/postgres\"", "/missing\""), "AL-PG-003");
    refused(&with("public.*", "public.nothing*"), "AL-PG-008");
    refused(&with("//postgres:", "//weak:"), "AL-PG-005");
    std::fs::write(&config, good).unwrap();
    setup.catch_up();
}

#[test]
fn a_slot_that_is_gone_is_never_passed_over() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)",
        "\"public.*\"",
    );
    setup.catch_up();
    setup.pg.execute("INSERT INTO t VALUES (2)").unwrap();
    setup
        .pg
        .execute("SELECT pg_drop_replication_slot('alluvium_test')")
        .unwrap();
    let ended = setup.alluvium(CAUGHT_UP);
    refused(&ended, "AL-PG-011");
    // Made again under the same name, it starts after what it does not have.
    setup
        .pg
        .execute("SELECT pg_create_logical_replication_slot('alluvium_test', 'pgoutput')")
        .unwrap();
    refused(&setup.alluvium(CAUGHT_UP), "AL-PG-011");
    setup.alluvium(&["resync", "--all"]).success().unwrap();
    setup.catch_up();
    setup.assert_equal();
}

/// Runs a tool on the directory of a stopped server.
fn tool(program: &str, args: &[&std::path::Path]) {
    let done = std::process::Command::new(program)
        .arg("-a")
        .args(args)
        .status();
    assert!(done.unwrap().success(), "{program} {args:?}");
}

#[test]
fn a_server_that_lost_transactions_is_not_followed() {
    let mut setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')",
        "\"public.*\"",
    );
    setup.catch_up();
    let (data, backup) = (setup.pg.dir().join("data"), setup.pg.dir().join("backup"));
    setup.pg.stop_fast().unwrap();
    tool("cp", &[&data, &backup]);
    setup.pg.start_again().unwrap();
    setup
        .pg
        .execute("INSERT INTO t VALUES (2, 'lost'); UPDATE t SET v = 'lost' WHERE id = 1")
        .unwrap();
    setup.catch_up();
    setup.pg.stop_fast().unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&backup, &data).unwrap();
    setup.pg.start_again().unwrap();
    refused(&setup.alluvium(CAUGHT_UP), "AL-PG-014");
    // Its WAL grows past the lake's position, on another timeline: still not the same history.
    let promote = |setup: &mut Setup| {
        setup.pg.stop_fast().unwrap();
        std::fs::write(data.join("recovery.signal"), "").unwrap();
        setup.pg.set_conf("restore_command", "/bin/false");
        // So that it answers only when it is promoted.
        setup.pg.set_conf("hot_standby", "off");
        setup.pg.start_again().unwrap();
    };
    promote(&mut setup);
    setup
        .pg
        .execute("INSERT INTO t VALUES (3, 'other')")
        .unwrap();
    for _ in 0..3 {
        setup.pg.execute("SELECT pg_switch_wal()").unwrap();
        setup
            .pg
            .execute("UPDATE t SET v = v || '.' WHERE id = 3")
            .unwrap();
    }
    refused(&setup.alluvium(CAUGHT_UP), "AL-PG-014");
    setup.alluvium(&["resync", "--all"]).success().unwrap();
    setup.catch_up();
    setup.assert_equal();
    bronze_rebuilds_silver(&setup, "t", Some("id"));
    // A promotion that loses nothing is followed.
    promote(&mut setup);
    setup
        .pg
        .execute("INSERT INTO t VALUES (4, 'more'); DELETE FROM t WHERE id = 3")
        .unwrap();
    setup.catch_up();
    setup.assert_equal();
    bronze_rebuilds_silver(&setup, "t", Some("id"));
}

#[test]
fn another_server_is_not_taken_for_the_old_one() {
    let setup = Setup::new("CREATE TABLE t (id int PRIMARY KEY)", "\"public.*\"");
    setup.catch_up();
    let other = PgCluster::start(None, &[]).unwrap();
    other
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .unwrap();
    let config = setup.dir.path().join("alluvium.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace(&setup.pg.url("postgres"), &other.url("postgres"));
    std::fs::write(&config, text).unwrap();
    refused(&setup.alluvium(CAUGHT_UP), "AL-LAKE-006");
}

#[test]
fn names_that_would_share_a_directory_are_refused_before_anything_is_written() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE \"T\" (id int PRIMARY KEY)",
        "\"public.*\"",
    );
    refused(&setup.alluvium(CAUGHT_UP), "AL-CONFIG-006");
    assert!(!setup.lake().join("silver").join("t").exists());
    setup.configure("\"public.*\"", "[tables.\"public.T\"]\nname = \"t2\"\n");
    setup.catch_up();
    assert!(setup.lake().join("silver").join("t2").exists());
}

#[test]
fn a_damaged_lake_is_named_and_mended_by_resync() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)",
        "\"public.*\"",
    );
    setup.catch_up();
    let silver = setup.lake().join("silver").join("t");
    let data = std::fs::read_dir(&silver)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.extension()
                .is_some_and(|extension| extension == "parquet")
        })
        .unwrap();
    std::fs::write(&data, b"PAR1 not a parquet file PAR1").unwrap();
    refused(&setup.alluvium(CAUGHT_UP), "AL-LAKE-003");
    std::fs::remove_file(&data).unwrap();
    let ended = setup.alluvium(CAUGHT_UP);
    refused(&ended, "AL-LAKE-003");
    assert!(ended.stderr.contains("resync"), "{}", ended.stderr);
    setup.alluvium(&["resync", "t"]).success().unwrap();
    setup.catch_up();
    setup.assert_equal();
}

#[test]
fn a_lake_that_cannot_be_written_stops_everything_and_loses_nothing() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)",
        "\"public.*\"",
    );
    // A file where the lake's directory should be: root, too, cannot write below it.
    std::fs::write(setup.lake(), b"").unwrap();
    refused(&setup.alluvium(CAUGHT_UP), "AL-LAKE-007");
    std::fs::remove_file(setup.lake()).unwrap();
    setup.catch_up();
    let log = setup.lake().join("silver/t/_delta_log");
    let aside = setup.lake().join("silver/t/_delta_log_aside");
    std::fs::rename(&log, &aside).unwrap();
    std::fs::write(&log, b"").unwrap();
    std::fs::set_permissions(&log, std::fs::Permissions::from_mode(0o400)).unwrap();
    setup.pg.execute("INSERT INTO t VALUES (2)").unwrap();
    let ended = setup.alluvium(CAUGHT_UP);
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("error[AL-LAKE-"), "{}", ended.stderr);
    std::fs::remove_file(&log).unwrap();
    std::fs::rename(&aside, &log).unwrap();
    setup.catch_up();
    setup.assert_equal();
}

/// The disk fills up while rows are copied: said at once; with room made, the same command goes on.
#[test]
fn a_full_disk_is_named_and_loses_nothing() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text);
         INSERT INTO t SELECT g, md5(g::text) || md5((g * 7)::text) FROM generate_series(1, 200000) g",
        "\"public.*\"",
    );
    let script = r#"
        mkdir -p lake kept && mount -t tmpfs -o size=6m tmpfs lake || exit 99
        "$1" run --until-caught-up 2> full.err; echo $? > full.code
        mount -o remount,size=200m lake
        "$1" run --until-caught-up 2> after.err; echo $? > after.code
        cp -r lake/silver kept/"#;
    setup.in_mount_namespace(script);
    let read = |name: &str| std::fs::read_to_string(setup.dir.path().join(name)).unwrap();
    let (code, stderr) = (read("full.code"), read("full.err"));
    assert_eq!(code.trim(), "1", "{stderr}");
    assert!(
        stderr.contains("error[AL-LAKE-002]") && stderr.contains("hint: "),
        "{stderr}"
    );
    assert_eq!(read("after.code").trim(), "0", "{}", read("after.err"));
    let kept = setup.dir.path().join("kept");
    let url = setup.pg.url("postgres");
    alluvium_testkit::check::compare(&url, &kept, &[])
        .unwrap()
        .expect_equal()
        .unwrap();
}
