//! Tables as the catalog describes them.

use alluvium_change::{Identity, TableId, code};
use alluvium_source_postgres::catalog::{
    TableOverride, TableSelection, fingerprint, load_table, load_tables,
};
use alluvium_source_postgres::type_map::OnInvalid;
use arrow::datatypes::DataType;

use crate::{client, cluster, database, everything, in_public, table, tables};

#[tokio::test]
async fn odd_names_and_columns() {
    let client = client(&database("odd_names").await).await;
    in_public(
        &client,
            r#"CREATE SCHEMA "Größe.x";
               CREATE TABLE "Größe.x"."sélect ""q"" 'a'" ("from" int PRIMARY KEY, "ü b" text);
               CREATE TABLE holes (a int, b int, c int PRIMARY KEY, g int GENERATED ALWAYS AS (c * 2) STORED,
                                   i bigint GENERATED ALWAYS AS IDENTITY, d int DEFAULT 3);
               ALTER TABLE holes DROP COLUMN b;
               INSERT INTO holes (a, c) VALUES (1, 1);
               ALTER TABLE holes ADD COLUMN late text DEFAULT 'it''s, {"here"}';
               ALTER TABLE holes ADD COLUMN late_array int[] DEFAULT '{1,NULL}';
               ALTER TABLE holes ADD COLUMN late_box box DEFAULT '(1,2),(0,0)';
               CREATE UNLOGGED TABLE unlogged (a int);
               CREATE TEMP TABLE temporary (a int);
               CREATE VIEW a_view AS SELECT 1;
               CREATE TABLE no_columns ();
               CREATE TABLE by_case (id int PRIMARY KEY, "A" int, a int);"#,
    )
    .await;
    let found = tables(&client).await;
    let names: Vec<String> = found.iter().map(|table| table.id().to_string()).collect();
    assert_eq!(
        names,
        [
            "Größe.x.sélect \"q\" 'a'",
            "public.by_case",
            "public.holes",
            "public.no_columns"
        ]
    );
    let odd = &found[0];
    assert_eq!(odd.schema.key_names(), ["from"]);
    assert_eq!(odd.schema.columns[1].name, "ü b");

    let holes = table(&found, "holes");
    let columns: Vec<&str> = holes
        .schema
        .columns
        .iter()
        .map(|c| c.name.as_str())
        .collect();
    assert_eq!(
        columns,
        ["a", "c", "i", "d", "late", "late_array", "late_box"]
    );
    assert_eq!(holes.generated_columns, ["g"]);
    let attribute = |name: &str| holes.attributes.iter().find(|a| a.name == name).unwrap();
    assert_eq!(
        attribute("late").missing_value.as_deref(),
        Some("it's, {\"here\"}")
    );
    assert_eq!(
        attribute("late_array").missing_value.as_deref(),
        Some("{1,NULL}")
    );
    assert_eq!(
        attribute("late_box").missing_value.as_deref(),
        Some("(1,2),(0,0)")
    );
    assert_eq!(attribute("d").missing_value, None);
    assert_eq!(
        (attribute("g").column, attribute("c").column),
        (None, Some(1))
    );
    assert!(attribute("i").is_identity && attribute("c").not_null && attribute("d").has_default);
    assert_eq!(attribute("late").attnum, 7);

    assert!(table(&found, "no_columns").refused.is_some());
    let by_case = table(&found, "by_case").refused.as_ref().unwrap();
    assert!(by_case.message.contains("letter case"), "{by_case:?}");
}

#[tokio::test]
async fn types_are_resolved_through_all_that_wraps_them() {
    let client = client(&database("types").await).await;
    in_public(
        &client,
            r"CREATE DOMAIN money_amount AS numeric(12,2);
              CREATE DOMAIN positive AS money_amount CHECK (VALUE > 0);
              CREATE DOMAIN matrix AS int[][];
              CREATE TYPE mood AS ENUM ('sad', 'ok');
              CREATE TYPE inner_type AS (m mood, at timestamptz);
              CREATE TYPE outer_type AS (i inner_type, l positive[], dropped int);
              ALTER TYPE outer_type DROP ATTRIBUTE dropped;
              CREATE TABLE t (id int PRIMARY KEY, p positive, ps numeric(8,3)[], o outer_type, os outer_type[],
                              r int4range, own_range numrange[], v varchar(5), c char(3), m matrix,
                              cash money, mo mood[]);",
    )
    .await;
    let found = tables(&client).await;
    let t = table(&found, "t");
    assert!(t.refused.is_none(), "{:?}", t.refused);
    let of = |name: &str| t.schema.columns.iter().find(|c| c.name == name).unwrap();
    let decimal = DataType::Decimal128(12, 2);
    assert_eq!(of("p").data_type, decimal);
    assert_eq!(of("p").source_type, "public.positive");
    assert_eq!(of("v").source_type, "character varying(5)");
    let DataType::List(element) = &of("ps").data_type else {
        panic!("{:?}", of("ps"))
    };
    assert_eq!(element.data_type(), &DataType::Decimal128(8, 3));
    let DataType::Struct(fields) = &of("o").data_type else {
        panic!("{:?}", of("o"))
    };
    let names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["i", "l"]);
    let DataType::List(element) = fields[1].data_type() else {
        panic!("{fields:?}")
    };
    assert_eq!(element.data_type(), &decimal);
    let DataType::List(row) = &of("m").data_type else {
        panic!("{:?}", of("m"))
    };
    assert!(matches!(row.data_type(), DataType::List(_)), "{row:?}");
    assert!(matches!(of("r").data_type, DataType::Struct(_)));
    assert_eq!(of("cash").data_type, DataType::Decimal128(19, 2));
    if cluster().version() < 14 {
        return;
    }
    in_public(&client, "ALTER TABLE t ADD mr datemultirange").await;
    let found = tables(&client).await;
    let last = table(&found, "t").schema.columns.last().unwrap().clone();
    let DataType::List(range) = last.data_type else {
        panic!("{last:?}")
    };
    assert!(
        matches!(range.data_type(), DataType::Struct(_)),
        "{range:?}"
    );
}

#[tokio::test]
async fn the_identity_matrix() {
    let client = client(&database("identities").await).await;
    in_public(
        &client,
            r"CREATE TABLE pk (a int, b int, c int, PRIMARY KEY (c, a));
              CREATE TABLE pk_full (a int PRIMARY KEY, b int); ALTER TABLE pk_full REPLICA IDENTITY FULL;
              CREATE TABLE bare_full (a int); ALTER TABLE bare_full REPLICA IDENTITY FULL;
              CREATE TABLE bare (a int);
              CREATE TABLE nothing (a int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
              CREATE TABLE by_index (a int PRIMARY KEY, u int NOT NULL); CREATE UNIQUE INDEX u ON by_index (u) INCLUDE (a);
              ALTER TABLE by_index REPLICA IDENTITY USING INDEX u;
              CREATE TABLE checked_late (a int PRIMARY KEY DEFERRABLE);
              CREATE TABLE part (k int, v text, PRIMARY KEY (k)) PARTITION BY RANGE (k);
              CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
              CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (k);
              CREATE TABLE part_2a (v text, k int NOT NULL); ALTER TABLE part_2 ATTACH PARTITION part_2a FOR VALUES FROM (10) TO (20);
              CREATE TABLE weak (k int PRIMARY KEY) PARTITION BY RANGE (k);
              CREATE TABLE weak_1 PARTITION OF weak FOR VALUES FROM (0) TO (10); ALTER TABLE weak_1 REPLICA IDENTITY NOTHING;
              CREATE TABLE parent (a int PRIMARY KEY); CREATE TABLE child (PRIMARY KEY (a)) INHERITS (parent);",
    )
    .await;
    let found = tables(&client).await;
    let identity = |name: &str| table(&found, name).schema.identity.clone();
    assert_eq!(identity("pk"), Identity::Key(vec![2, 0]));
    assert_eq!(identity("pk_full"), Identity::Key(vec![0]));
    assert_eq!(identity("bare_full"), Identity::WholeRow);
    assert_eq!(identity("bare"), Identity::AppendOnly);
    assert_eq!(identity("nothing"), Identity::AppendOnly);
    assert_eq!(identity("by_index"), Identity::Key(vec![1]));
    assert_eq!(identity("checked_late"), Identity::AppendOnly);
    assert_eq!(identity("part"), Identity::Key(vec![0]));
    assert_eq!(identity("weak"), Identity::AppendOnly);
    let part = table(&found, "part");
    assert!(part.is_partitioned && part.has_primary_key);
    let leaves: Vec<&str> = part
        .leaves
        .iter()
        .map(|leaf| leaf.quoted_name.as_str())
        .collect();
    assert_eq!(leaves, [r#""public"."part_1""#, r#""public"."part_2a""#]);
    let names: Vec<&str> = found.iter().map(|table| table.id().name.as_str()).collect();
    assert!(
        !names.iter().any(|name| name.starts_with("part_")),
        "{names:?}"
    );
    assert!(names.contains(&"parent") && names.contains(&"child"));
    assert!(table(&found, "bare").notes[0].starts_with("append-only"));
}

#[tokio::test]
async fn the_project_file_chooses_tables_keys_and_columns() {
    let client = client(&database("chosen").await).await;
    in_public(
        &client,
            "CREATE TABLE a (id int PRIMARY KEY, x int, y date); CREATE TABLE b (id int); CREATE TABLE c (id int, z text);
             ALTER TABLE c REPLICA IDENTITY FULL;",
    )
    .await;
    let mut selection = TableSelection {
        include: vec!["public.*".into()],
        exclude: vec!["b".into()],
        ..TableSelection::default()
    };
    let options = [("y".to_owned(), (OnInvalid::String, None))].into();
    let of_a = TableOverride {
        exclude_columns: vec!["x".into()],
        column_options: options,
        ..TableOverride::default()
    };
    selection.overrides.insert("public.a".into(), of_a);
    let of_c = TableOverride {
        key: vec!["id".into()],
        ..TableOverride::default()
    };
    selection.overrides.insert("c".into(), of_c);
    let found = load_tables(&client, &selection).await.unwrap();
    assert_eq!(found.len(), 2);
    let a = table(&found, "a");
    let names: Vec<&str> = a.schema.columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["id", "y"]);
    assert_eq!(a.schema.columns[1].data_type, DataType::Utf8);
    let c = table(&found, "c");
    assert_eq!(c.schema.identity, Identity::Key(vec![0]));
    assert!(
        c.notes.iter().any(|note| note.contains("no unique index")),
        "{:?}",
        c.notes
    );

    let wrong = TableOverride {
        exclude_columns: vec!["id".into()],
        ..TableOverride::default()
    };
    selection.overrides.insert("public.a".into(), wrong);
    let wrong = TableOverride {
        key: vec!["idd".into()],
        ..TableOverride::default()
    };
    selection.overrides.insert("c".into(), wrong);
    let found = load_tables(&client, &selection).await.unwrap();
    assert!(std::ptr::eq(
        table(&found, "a").refused.as_ref().unwrap().code,
        &code::SCHEMA_COLUMN
    ));
    assert!(
        table(&found, "c")
            .refused
            .as_ref()
            .unwrap()
            .message
            .contains("idd")
    );

    let id = TableId::new("public", "a");
    assert!(
        load_table(&client, &id, &everything())
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        load_table(&client, &TableId::new("public", "b"), &selection)
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        load_table(&client, &TableId::new("public", "x"), &everything())
            .await
            .unwrap()
            .is_none()
    );
}

/// What the pipeline must notice while it runs; and what happens all the time and must not make it
/// load all tables.
#[tokio::test]
async fn the_fingerprint_tells_changes_of_shape_from_the_rest() {
    let client = client(&database("fingerprint").await).await;
    let run = async |sql: &str| client.batch_execute(sql).await.unwrap();
    run(
        "SET search_path = public; CREATE SCHEMA s; CREATE TABLE s.t (id int NOT NULL, v text);
         CREATE TABLE part (id int) PARTITION BY RANGE (id); CREATE TABLE leaf (id int);
         CREATE TYPE pair AS (a int, b int); CREATE TABLE pairs (p pair)",
    )
    .await;
    let mut before = fingerprint(&client).await.unwrap();
    for shape in [
        "CREATE TABLE new_one (id int PRIMARY KEY)",
        "ALTER TABLE s.t ADD COLUMN w int",
        "ALTER TABLE s.t ADD COLUMN d int DEFAULT 7",
        "ALTER TABLE s.t ALTER COLUMN w TYPE text",
        "ALTER TABLE s.t RENAME COLUMN w TO x",
        "ALTER TABLE s.t DROP COLUMN x",
        "CREATE UNIQUE INDEX by_id ON s.t (id)",
        "ALTER TABLE s.t REPLICA IDENTITY USING INDEX by_id",
        "ALTER TABLE s.t REPLICA IDENTITY FULL",
        "DROP INDEX s.by_id",
        "ALTER TABLE part ATTACH PARTITION leaf FOR VALUES FROM (0) TO (9)",
        "ALTER TABLE part DETACH PARTITION leaf",
        "ALTER TYPE pair ADD ATTRIBUTE c int",
        "ALTER TABLE s.t RENAME TO u",
        "ALTER SCHEMA s RENAME TO s2",
        "ALTER TABLE s2.u SET SCHEMA public",
        "TRUNCATE u",
        "DROP TABLE u; CREATE TABLE u (id int)",
        "DROP TABLE u",
    ] {
        run(shape).await;
        let after = fingerprint(&client).await.unwrap();
        assert_ne!(before, after, "{shape}");
        before = after;
    }
    for rest in [
        "INSERT INTO new_one SELECT generate_series(1, 1000)",
        "VACUUM ANALYZE new_one",
        "VACUUM FREEZE new_one",
        "CREATE TEMP TABLE passing (id int PRIMARY KEY, v text)",
        "CREATE VIEW a_view AS SELECT 1",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ] {
        run(rest).await;
        assert_eq!(before, fingerprint(&client).await.unwrap(), "{rest}");
    }
}
