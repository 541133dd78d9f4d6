//! Whole sessions on a lake whose Delta logs are written by hand, as another writer would.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod travel;

use std::fs;

use alluvium_change::encode_path_segment;
use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field};
use parquet::arrow::ArrowWriter;
use roaring::RoaringTreemap;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::output::{Format, Options, Printer};
use crate::tables;

const COLUMNS: &str = r#"{"type":"struct","fields":[{"name":"id","type":"long","nullable":true,"metadata":{}},{"name":"name","type":"string","nullable":true,"metadata":{}},{"name":"Odd","type":"string","nullable":true,"metadata":{}}]}"#;

/// Z85, in which Delta writes a deletion vector into the log itself.
fn z85(bytes: &[u8]) -> String {
    let digits: Vec<char> =
        "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
            .chars()
            .collect();
    let mut text = String::new();
    for word in bytes.chunks(4) {
        let mut word = u32::from_be_bytes(word.try_into().unwrap());
        let mut five = ['0'; 5];
        for place in five.iter_mut().rev() {
            *place = digits[word as usize % 85];
            word /= 85;
        }
        text.extend(five);
    }
    text
}

fn vector(deleted: &[u64]) -> serde_json::Value {
    assert!(deleted.len().is_multiple_of(2), "padding is not written");
    let rows: RoaringTreemap = deleted.iter().copied().collect();
    let mut bytes = 1_681_511_377_u32.to_le_bytes().to_vec();
    rows.serialize_into(&mut bytes).unwrap();
    json!({
        "storageType": "i", "pathOrInlineDv": z85(&bytes), "sizeInBytes": bytes.len(),
        "cardinality": deleted.len(),
    })
}

/// A table of ten rows `(1, n1) … (10, n10)` of which `deleted` places are deleted.
fn write_table(root: &Path, layer: &str, name: &str, deleted: &[u64]) {
    let dir = root.join(layer).join(encode_path_segment(name));
    fs::create_dir_all(dir.join("_delta_log")).unwrap();
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("name", DataType::Utf8, true),
    ]));
    let names: Vec<String> = (1..=10).map(|id| format!("n{id}")).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(1..=10)),
        Arc::new(StringArray::from(names)),
    ];
    let path = dir.join("part-0.parquet");
    let file = fs::File::create(&path).unwrap();
    let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), None).unwrap();
    writer
        .write(&RecordBatch::try_new(schema, columns).unwrap())
        .unwrap();
    writer.close().unwrap();
    let stats = json!({"numRecords": 10, "minValues": {"id": 1}, "maxValues": {"id": 10}, "nullCount": {"id": 0, "name": 0}});
    let mut add = json!({
        "path": "part-0.parquet", "partitionValues": {}, "size": fs::metadata(&path).unwrap().len(),
        "modificationTime": 1, "dataChange": true, "stats": stats.to_string(),
    });
    if !deleted.is_empty() {
        add["deletionVector"] = vector(deleted);
    }
    let features = ["deletionVectors"];
    let actions = [
        json!({"commitInfo": {"timestamp": 1_700_000_000_000_i64, "operation": "WRITE", "engineInfo": "test"}}),
        json!({"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features}}),
        json!({"metaData": {
            "id": "2f1b0000-0000-4000-8000-000000000001", "format": {"provider": "parquet", "options": {}},
            "schemaString": COLUMNS, "partitionColumns": [], "createdTime": 1,
            "configuration": {"delta.enableDeletionVectors": "true", "alluvium.table": format!("public.{name}")},
        }}),
        json!({"txn": {"appId": format!("alluvium/p/shop/public.{name}"), "version": 0x16_B374_8000_i64}}),
        json!({"add": add}),
    ];
    let log: String = actions.iter().map(|action| format!("{action}\n")).collect();
    fs::write(dir.join("_delta_log/00000000000000000000.json"), log).unwrap();
}

fn lake() -> (TempDir, Session) {
    let dir = TempDir::new().unwrap();
    write_table(dir.path(), "silver", "orders", &[0, 4]);
    write_table(dir.path(), "silver", "Größe \"x\"", &[]);
    write_table(dir.path(), "bronze", "orders", &[]);
    write_table(dir.path(), "bronze", "only_bronze", &[]);
    let session = session(dir.path());
    (dir, session)
}

fn session(root: &Path) -> Session {
    Session::open(
        root,
        &QuerySettings {
            memory_bytes: 64 << 20,
            threads: 2,
        },
    )
    .unwrap()
}

async fn csv(session: &Session, text: &str) -> String {
    let result = session
        .sql(text)
        .await
        .unwrap_or_else(|e| panic!("{text}: {e} {:?}", e.detail()));
    let schema = Arc::clone(&result.schema);
    let mut out = Vec::new();
    let options = Options::new(Format::Csv);
    let mut printer = Printer::new(&schema, &options, &mut out);
    for batch in result
        .collect()
        .await
        .unwrap_or_else(|e| panic!("{text}: {e} {:?}", e.detail()))
    {
        printer.write(&batch).unwrap();
    }
    printer.finish().unwrap();
    String::from_utf8(out).unwrap()
}

async fn error(session: &Session, text: &str) -> Error {
    match session.sql(text).await {
        Err(error) => error,
        Ok(result) => match result.collect().await {
            Err(error) => error,
            Ok(rows) => panic!("{text} gave {rows:?}"),
        },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_both_layers_are_there_under_their_own_names() {
    let (_dir, session) = lake();
    assert_eq!(
        csv(&session, "select count(*) as n, sum(id) as s from orders").await,
        "n,s\n8,49\n"
    );
    assert_eq!(
        csv(&session, "SELECT COUNT(*) AS n FROM Silver.ORDERS").await,
        "n\n8\n"
    );
    assert_eq!(
        csv(&session, "select count(*) as n from bronze.orders").await,
        "n\n10\n"
    );
    assert_eq!(
        csv(
            &session,
            "select max(id) as n from lake.silver.\"Größe \"\"x\"\"\""
        )
        .await,
        "n\n10\n"
    );
    assert_eq!(
        csv(
            &session,
            "select id, name, \"Odd\" from orders where id < 4 order by id"
        )
        .await,
        "id,name,Odd\n2,n2,\n3,n3,\n"
    );
    assert_eq!(
        csv(&session, "select table_schema, table_name, table_type from information_schema.tables where table_schema <> 'information_schema' order by 1, 2").await,
        "table_schema,table_name,table_type\nbronze,only_bronze,BASE TABLE\nbronze,orders,BASE TABLE\nsilver,\"Größe \"\"x\"\"\",BASE TABLE\nsilver,orders,BASE TABLE\n"
    );
    assert_eq!(
        csv(&session, "select column_name, data_type from information_schema.columns where table_schema = 'silver' and table_name = 'orders' order by ordinal_position").await,
        "column_name,data_type\nid,Int64\nname,Utf8\nOdd,Utf8\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_keeps_the_version_it_first_saw() {
    let (dir, session) = lake();
    assert_eq!(
        csv(&session, "select count(*) as n from orders").await,
        "n\n8\n"
    );
    write_table(dir.path(), "silver", "orders", &[0, 1, 2, 3]);
    write_table(dir.path(), "silver", "late", &[]);
    assert_eq!(
        csv(&session, "select count(*) as n from orders").await,
        "n\n8\n"
    );
    assert_eq!(
        csv(&session, "select count(*) as n from late").await,
        "n\n10\n"
    );
    let fresh = super::tests::session(dir.path());
    assert_eq!(
        csv(&fresh, "select count(*) as n from orders").await,
        "n\n6\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_names_come_with_the_nearest_known() {
    let (_dir, session) = lake();
    let table = error(&session, "select * from ordrs").await;
    assert!(table.is(&code::SQL_TABLE));
    assert_eq!(table.message(), "table \"ordrs\" does not exist");
    assert_eq!(table.hint(), "did you mean orders?");
    let other = error(&session, "select * from only_bronze").await;
    assert_eq!(other.hint(), "did you mean bronze.only_bronze?");
    let bronze = error(&session, "select * from bronze.ordres").await;
    assert_eq!(bronze.message(), "table \"bronze.ordres\" does not exist");
    assert_eq!(bronze.hint(), "did you mean bronze.orders?");
    let odd = error(&session, "select 1 from \"größe x\"").await;
    assert_eq!(odd.message(), "table \"größe x\" does not exist");
    assert_eq!(odd.hint(), "did you mean \"Größe \"\"x\"\"\"?");

    let column = error(&session, "select nmae from orders").await;
    assert_eq!(column.message(), "column \"nmae\" does not exist");
    assert_eq!(column.hint(), "did you mean name?");
    let cased = error(&session, "select Odd from orders").await;
    assert_eq!(cased.message(), "column \"odd\" does not exist");
    assert_eq!(cased.hint(), "did you mean \"Odd\"?");
    let far = error(&session, "select o.zzzzzz from orders o, bronze.orders b").await;
    assert_eq!(far.hint(), "there are: id, name, \"Odd\"");
    let both = error(&session, "select id from orders o, bronze.orders b").await;
    assert_eq!(both.message(), "column \"id\" could be of several tables");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_speak_plainly() {
    let (_dir, session) = lake();
    let syntax = error(&session, "selec 1").await;
    assert!(syntax.is(&code::SQL_SYNTAX));
    assert!(syntax.message().contains("selec"), "{syntax}");
    for text in [
        "selec 1",
        "select 1 +",
        "select cast('x' as int)",
        "select 1/0",
        "select foo(1)",
        "select sum(name) from orders",
    ] {
        let error = error(&session, text).await;
        assert!(
            error.is(&code::SQL) || error.is(&code::SQL_SYNTAX),
            "{text}: {} {error}",
            error.code().id
        );
        let message = error.message();
        for noise in [
            "DataFusion",
            "Error during",
            "backtrace",
            "External error",
            "Execution error",
            "Schema error",
        ] {
            assert!(!message.contains(noise), "{text}: {message}");
        }
        assert!(
            !message.starts_with(char::is_uppercase) && !message.is_empty(),
            "{text}: {message}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_writes_passes() {
    let (dir, session) = lake();
    let target = dir.path().join("out.csv");
    let copy = format!("copy orders to '{}' stored as csv", target.display());
    let external = format!(
        "create external table x stored as parquet location '{}'",
        dir.path().display()
    );
    for text in [
        "insert into orders values (1, 'x', 'y')",
        "update orders set name = 'x'",
        "delete from orders",
        "truncate orders",
        "drop table orders",
        "create table x as select 1",
        "create view v as select 1",
        "create schema s",
        "create or replace table orders as select 1",
        "select 1 as a into x",
        "with x as (select 1) insert into orders select 1, 'a', 'b'",
        "explain insert into orders values (1, 'x', 'y')",
        "explain analyze insert into orders values (1, 'x', 'y')",
        "explain analyze create table x as select 1",
        "begin",
        "prepare p as select 1",
        "copy orders to '/dev/null'",
        "set datafusion.runtime.memory_limit = '100G'",
        "set datafusion.catalog.default_schema = 'bronze'",
        "set datafusion.execution.parquet.pushdown_filters = true",
        "reset datafusion.runtime.memory_limit",
        &copy,
        &external,
    ] {
        let error = error(&session, text).await;
        let is_refused =
            error.is(&code::SQL_WRITES) || error.is(&code::SQL) || error.is(&code::SQL_SYNTAX);
        assert!(is_refused, "{text}: {error}");
    }
    assert!(!target.exists());
    assert_eq!(
        csv(&session, "select count(*) as n from orders").await,
        "n\n8\n"
    );
    let refusal = error(&session, "delete from orders").await;
    assert_eq!(
        refusal.message(),
        "DELETE is refused: queries here only read"
    );
    // Nor can a query read what is no table.
    let file = dir.path().join("silver/orders/part-0.parquet");
    error(&session, &format!("select * from '{}'", file.display())).await;
    error(&session, &format!("select * from \"{}\"", file.display())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_statements_run_in_order() {
    let (_dir, session) = lake();
    let statements = session
        .statements("select 1 as a; ; set time zone = 'UTC'; select 2 as b;")
        .unwrap();
    let results = session.run_all(&statements).await.unwrap();
    assert_eq!(results.len(), 2);
    assert_eq!(
        csv(
            &session,
            "set datafusion.explain.logical_plan_only = true; select 3 as c"
        )
        .await,
        "c\n3\n"
    );
    assert!(!session.sql("").await.unwrap().has_columns());
    assert!(
        session
            .sql("select 1; select 2")
            .await
            .unwrap_err()
            .is(&code::SQL)
    );
    // A bad second statement is known before the first one runs.
    assert!(session.statements("select 1; selec 2").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn literals_and_zones_are_postgresqls() {
    let (_dir, session) = lake();
    // Floats and decimals meet as floats, whatever the size.
    let floats =
        "(values (cast('Infinity' as double)), (cast('1e300' as double)), (0.1::double)) as v(f)";
    for (condition, count) in [
        ("f > 1.75", 2),
        ("1.75 < f", 2),
        ("f between 0.05 and 0.15", 1),
        ("f in (0.1, 2.5)", 1),
        ("f = 0.1", 1),
        ("f::real = 0.1", 0),
        ("not (f <> 0.1)", 1),
    ] {
        let query = format!("select count(*) as n from {floats} where {condition}");
        assert_eq!(
            csv(&session, &query).await,
            format!("n\n{count}\n"),
            "{condition}"
        );
    }
    assert_eq!(
        csv(&session, "select 0.1 + 0.2 as d, 1e3 as e").await,
        "d,e\n0.3,1000\n"
    );
    assert_eq!(
        csv(&session, "select timestamptz '2024-03-31 01:30:00+02' as t, timestamp '2024-01-01 00:00:00.5' as u").await,
        "t,u\n2024-03-30T23:30:00Z,2024-01-01T00:00:00.5\n"
    );
    assert_eq!(
        csv(
            &session,
            "set time zone = 'Europe/Berlin'; select timestamptz '2024-07-01 00:00:00' as t"
        )
        .await,
        "t\n2024-06-30T22:00:00Z\n"
    );
    assert_eq!(csv(&session, "show time zone").await.lines().count(), 2);
    for text in [
        "describe orders",
        "show tables",
        "show columns from orders",
        "explain select 1",
        "explain analyze select count(*) from orders",
        "select * from generate_series(1, 3)",
    ] {
        assert!(csv(&session, text).await.lines().count() > 1, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_lake_is_named_as_such() {
    let (dir, session) = lake();
    fs::remove_file(dir.path().join("bronze/orders/part-0.parquet")).unwrap();
    let missing = error(&session, "select sum(id) from bronze.orders").await;
    assert!(
        missing.is(&code::LAKE_CORRUPT),
        "{} {missing} {:?}",
        missing.code().id,
        missing.detail()
    );
    fs::write(
        dir.path().join("bronze/only_bronze/part-0.parquet"),
        b"PAR1 no",
    )
    .unwrap();
    let torn = error(&session, "select sum(id) from bronze.only_bronze").await;
    assert!(
        torn.is(&code::LAKE_CORRUPT),
        "{} {torn} {:?}",
        torn.code().id,
        torn.detail()
    );
    let log = dir
        .path()
        .join("silver/orders/_delta_log/00000000000000000000.json");
    fs::write(log, b"{\"add\":").unwrap();
    let log = error(&session, "select * from orders").await;
    assert!(
        log.code().id.starts_with("AL-LAKE-"),
        "{} {log} {:?}",
        log.code().id,
        log.detail()
    );
    assert!(
        Session::open(
            &dir.path().join("none"),
            &QuerySettings {
                memory_bytes: 1,
                threads: 1
            }
        )
        .unwrap_err()
        .is(&code::LAKE_IO)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_and_sorting_spills() {
    let (dir, _) = lake();
    let settings = QuerySettings {
        memory_bytes: 64 << 20,
        threads: 2,
    };
    let session = Session::open(dir.path(), &settings).unwrap();
    let sorted = "select value, repeat('x', 100) as pad from generate_series(1, 2000000) order by value % 1000, value";
    let mut result = session.sql(sorted).await.unwrap();
    let mut rows = 0;
    while let Some(batch) = result.batches.next().await {
        rows += batch
            .unwrap_or_else(|e| panic!("{e} {:?}", e.detail()))
            .num_rows();
    }
    assert_eq!(rows, 2_000_000);
    let greedy = error(
        &session,
        "select cardinality(array_agg(a.value || '-' || b.value)) from generate_series(1, 9000) a, generate_series(1, 2000) b",
    )
    .await;
    assert!(greedy.is(&code::MEMORY), "{greedy} {:?}", greedy.detail());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listing_says_what_each_table_holds() {
    let (dir, _) = lake();
    let list = tables::list(dir.path()).unwrap();
    let names: Vec<(&str, &str)> = list
        .iter()
        .map(|table| (table.layer.as_str(), table.name.as_str()))
        .collect();
    assert_eq!(
        names,
        [
            ("silver", "Größe \"x\""),
            ("silver", "orders"),
            ("bronze", "only_bronze"),
            ("bronze", "orders")
        ]
    );
    let orders = &list[1];
    assert_eq!(orders.source_table.as_deref(), Some("public.orders"));
    assert_eq!(
        (
            orders.version,
            orders.rows,
            orders.files,
            orders.deleted_rows
        ),
        (0, 8, 1, 2)
    );
    assert_eq!(orders.position_lsn.unwrap().to_string(), "16/B3748000");
    assert!(orders.size_bytes > 100);
    assert!(orders.last_commit_time_ms > 1_700_000_000_000);
    let json = serde_json::to_value(orders).unwrap();
    assert_eq!(json["position_lsn"], "16/B3748000");
    assert!(tables::list(&dir.path().join("none")).unwrap().is_empty());
}
