//! Tables as they were, and what their logs say.

use super::*;

/// Another commit to what [`write_table`] wrote: these places are deleted, too.
fn commit_deleted(root: &Path, version: u64, time_ms: i64, position: Option<i64>, deleted: &[u64]) {
    let dir = root.join("silver/orders");
    let first = fs::read_to_string(dir.join("_delta_log/00000000000000000000.json")).unwrap();
    let actions = first
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let mut add: serde_json::Value = actions
        .filter_map(|action: serde_json::Value| action.get("add").cloned())
        .next()
        .unwrap();
    let before = if version == 1 {
        vec![0, 4]
    } else {
        vec![0, 4, 5, 6]
    };
    let remove = json!({"path": "part-0.parquet", "dataChange": true, "deletionTimestamp": 1, "deletionVector": vector(&before)});
    add["deletionVector"] = vector(deleted);
    let mut actions = vec![
        json!({"commitInfo": {"timestamp": time_ms, "operation": "DELETE", "engineInfo": "test"}}),
        json!({"remove": remove}),
        json!({"add": add}),
    ];
    if let Some(position) = position {
        actions
            .push(json!({"txn": {"appId": "alluvium/p/shop/public.orders", "version": position}}));
    }
    let log: String = actions.iter().map(|action| format!("{action}\n")).collect();
    fs::write(dir.join(format!("_delta_log/{version:020}.json")), log).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_read_as_it_was() {
    let (dir, _) = lake();
    let hour = 3_600_000;
    let begin = 1_700_000_000_000_i64;
    commit_deleted(
        dir.path(),
        1,
        begin + hour,
        Some(0x16_B374_9000),
        &[0, 4, 5, 6],
    );
    commit_deleted(dir.path(), 2, begin + 2 * hour, None, &[0, 1, 2, 4, 5, 6]);
    let count = async |from: &str| {
        let session = session(dir.path());
        let sql = format!("SELECT count(*) AS n, count(orders.id) AS m FROM {from}");
        let batches = session.sql(&sql).await?.collect().await?;
        let number = |place: usize| {
            let column = batches[0].column(place).as_any();
            column.downcast_ref::<Int64Array>().unwrap().value(0)
        };
        assert_eq!(number(0), number(1));
        Ok::<_, Error>(number(0))
    };
    for (from, expected) in [
        ("orders", 4),
        ("orders VERSION AS OF 0", 8),
        ("silver.Orders version as of '1'", 6),
        ("lake.silver.orders VERSION AS OF 2 AS orders WHERE true", 4),
        ("orders TIMESTAMP AS OF '2023-11-14 22:13:20'", 8),
        ("orders TIMESTAMP AS OF '2023-11-15 00:13:19+01:00'", 8),
        ("orders TIMESTAMP AS OF '2023-11-15 00:13:20+01:00'", 6),
        ("orders TIMESTAMP AS OF '2030-01-01'", 4),
        ("bronze.orders VERSION AS OF 0", 10),
        (
            "orders WHERE id IN (SELECT id FROM orders VERSION AS OF 1)",
            4,
        ),
        (
            "orders VERSION AS OF 0 JOIN orders VERSION AS OF 1 o1 ON o1.id = orders.id",
            6,
        ),
    ] {
        assert_eq!(count(from).await.unwrap(), expected, "{from}");
    }
    for (from, found) in [
        (
            "orders VERSION AS OF 3",
            "versions that can be read: 0 to 2",
        ),
        (
            "orders TIMESTAMP AS OF '2023-11-14'",
            "versions that can be read: 0 to 2",
        ),
    ] {
        let error = count(from).await.unwrap_err();
        assert!(error.is(&code::LAKE_VERSION), "{from}: {error}");
        assert_eq!(error.detail(), Some(found), "{from}");
    }
    let error = count("ordrs VERSION AS OF 1").await.unwrap_err();
    assert!(error.hint().contains("orders"), "{error}");
    fs::remove_file(
        dir.path()
            .join("silver/orders/_delta_log/00000000000000000001.json"),
    )
    .unwrap();
    let error = count("orders VERSION AS OF 2").await.unwrap_err();
    assert_eq!(
        error.detail(),
        Some("versions that can be read: 0"),
        "a gap in the log"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn history_tells_of_commits_newest_first() {
    let (dir, _) = lake();
    let begin = 1_700_000_000_000_i64;
    commit_deleted(
        dir.path(),
        1,
        begin + 1,
        Some(0x16_B374_9000),
        &[0, 4, 5, 6],
    );
    commit_deleted(dir.path(), 2, begin + 2, None, &[0, 1, 2, 4, 5, 6]);
    let session = session(dir.path());
    let columns =
        "version, operation, lsn, changes_rows, rows_added, rows_deleted, files_added, readable";
    let told = csv(
        &session,
        &format!("SELECT {columns} FROM history('orders')"),
    )
    .await;
    let lines: Vec<&str> = told.lines().skip(1).collect();
    assert_eq!(
        lines,
        [
            "2,DELETE,,true,0,2,0,true",
            "1,DELETE,16/B3749000,true,0,2,0,true",
            "0,WRITE,16/B3748000,true,8,0,1,true",
        ]
    );
    let sql = "SELECT h.committed_at AS at FROM history('silver.orders') h WHERE h.version = 0";
    assert_eq!(csv(&session, sql).await, "at\n2023-11-14T22:13:20Z\n");
    let sql = "SELECT version FROM history('bronze.orders') LIMIT 1";
    assert_eq!(csv(&session, sql).await, "version\n0\n");
    let usage = "SELECT * FROM history('orders')";
    for (sql, code, hint) in [
        (
            "SELECT * FROM history('ordrs')",
            &code::SQL_TABLE,
            "did you mean orders?",
        ),
        ("SELECT * FROM history()", &code::SQL, usage),
        ("SELECT * FROM history(1)", &code::SQL, usage),
    ] {
        let error = session.sql(sql).await.unwrap_err();
        assert_eq!(
            (error.is(code), error.hint()),
            (true, hint),
            "{sql}: {error}"
        );
    }
}
