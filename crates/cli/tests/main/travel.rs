//! Tables as they were, and what `history` says of them.

use serde_json::{Value, json};

use crate::setup::Setup;

#[test]
fn every_version_that_history_tells_of_is_read_as_it_was() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY, v int);
         INSERT INTO t SELECT g, g FROM generate_series(1, 1000) g",
        "\"public.t\"",
    );
    setup.catch_up();
    let newest = || {
        let history = setup.alluvium(&["history", "t", "--limit", "1", "--output", "json"]);
        let history: Value = serde_json::from_str(&history.success().unwrap().stdout).unwrap();
        history[0].clone()
    };
    let sum = |from: &str| {
        setup.sql(&format!("SELECT count(*) AS n, sum(v) AS s FROM {from}"))[0].clone()
    };
    let mut seen = vec![(newest(), json!({"n": 1000, "s": 500_500}))];
    for (sql, expected) in [
        (
            "UPDATE t SET v = v + 1000 WHERE id <= 10",
            json!({"n": 1000, "s": 510_500}),
        ),
        (
            "DELETE FROM t WHERE id > 900",
            json!({"n": 900, "s": 415_450}),
        ),
        (
            "INSERT INTO t VALUES (5000, 50)",
            json!({"n": 901, "s": 415_500}),
        ),
        (
            "TRUNCATE t; INSERT INTO t VALUES (1, 1)",
            json!({"n": 1, "s": 1}),
        ),
    ] {
        setup.pg.execute(sql).unwrap();
        setup.catch_up();
        seen.push((newest(), expected));
    }
    // The same rows in one file: no version before it is another one for that.
    setup.alluvium(&["optimize", "t"]).success().unwrap();
    for (commit, expected) in &seen {
        let version = &commit["version"];
        assert_eq!(
            &sum(&format!("t VERSION AS OF {version}")),
            expected,
            "{commit}"
        );
        let time = commit["committed_at"].as_str().unwrap();
        assert_eq!(
            &sum(&format!("t TIMESTAMP AS OF '{time}'")),
            expected,
            "{commit}"
        );
    }
    let told = |key: &str| {
        seen.iter()
            .map(|(commit, _)| commit[key].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        told("rows_added")[1..],
        [json!(10), json!(0), json!(1), json!(1)]
    );
    assert_eq!(
        told("rows_deleted")[1..],
        // Removed files do not say how many rows they had.
        [json!(10), json!(100), json!(0), Value::Null]
    );
    assert!(told("lsn").iter().all(Value::is_string), "{seen:?}");

    let gone = setup.alluvium(&["sql", "SELECT * FROM t VERSION AS OF 1000"]);
    assert!(
        gone.stderr.contains("error[AL-LAKE-008]"),
        "{}",
        gone.stderr
    );
}
