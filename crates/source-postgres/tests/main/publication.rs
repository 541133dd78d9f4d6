//! Publications: made, extended, used as they are, and never a trap for the source.

use alluvium_change::code;
use alluvium_source_postgres::catalog::SourceTable;
use alluvium_source_postgres::publication::{ensure, load};

use crate::{client, cluster, database, in_public, table, tables};

fn all(tables: &[SourceTable]) -> Vec<&SourceTable> {
    tables.iter().collect()
}

#[tokio::test]
async fn tables_without_identity_go_apart_and_their_updates_still_work() {
    let client = client(&database("pub_made").await).await;
    in_public(
        &client,
            r#"CREATE TABLE keyed (a int PRIMARY KEY, b int); CREATE TABLE bare (a int);
               CREATE TABLE nothing (a int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
               CREATE TABLE parent (a int PRIMARY KEY); CREATE TABLE child () INHERITS (parent);
               CREATE TABLE part (k int PRIMARY KEY) PARTITION BY RANGE (k);
               CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
               INSERT INTO keyed VALUES (1, 1); INSERT INTO bare VALUES (1); INSERT INTO nothing VALUES (1);
               INSERT INTO child VALUES (1);"#,
    )
    .await;
    let found = tables(&client).await;
    let names = ensure(&client, "p\"1", &all(&found)).await.unwrap();
    assert_eq!(names, ["p\"1", "p\"1_append"]);
    // The law: nothing that worked before fails now.
    for name in ["keyed", "bare", "nothing", "child"] {
        let sql = format!("UPDATE public.{name} SET a = a + 1; DELETE FROM ONLY public.{name}");
        client.batch_execute(&sql).await.unwrap();
    }
    let main = load(&client, "p\"1").await.unwrap().unwrap();
    let members: Vec<&str> = main.members.keys().map(|id| id.name.as_str()).collect();
    assert_eq!(members, ["keyed", "parent", "part"]);
    assert!(main.via_root && main.insert && main.update && main.delete && main.truncate);
    let append = load(&client, "p\"1_append").await.unwrap().unwrap();
    let members: Vec<&str> = append.members.keys().map(|id| id.name.as_str()).collect();
    assert_eq!(members, ["bare", "child", "nothing"]);
    assert!(append.insert && append.truncate && !append.update && !append.delete);

    // Again: nothing to do. With new tables: they are added.
    assert_eq!(ensure(&client, "p\"1", &all(&found)).await.unwrap(), names);
    client
        .batch_execute(
            "CREATE TABLE public.keyed_2 (a int PRIMARY KEY); CREATE TABLE public.bare_2 (a int)",
        )
        .await
        .unwrap();
    let found = tables(&client).await;
    assert_eq!(ensure(&client, "p\"1", &all(&found)).await.unwrap(), names);
    let main = load(&client, "p\"1").await.unwrap().unwrap();
    assert!(main.members.contains_key(table(&found, "keyed_2").id()));
    assert!(!main.members.contains_key(table(&found, "bare_2").id()));
}

#[tokio::test]
async fn a_publication_of_all_tables_is_used_as_it_is() {
    let client = client(&database("pub_all").await).await;
    client
        .batch_execute(
            "CREATE TABLE public.a (a int PRIMARY KEY); CREATE PUBLICATION everything FOR ALL TABLES",
        )
        .await
        .unwrap();
    let found = tables(&client).await;
    assert_eq!(
        ensure(&client, "everything", &all(&found)).await.unwrap(),
        ["everything"]
    );
    assert!(load(&client, "everything_append").await.unwrap().is_none());
    // But not where it would hide the root of partitions.
    client
        .batch_execute(
            "CREATE TABLE public.p (k int PRIMARY KEY) PARTITION BY RANGE (k);
             CREATE TABLE public.p_1 PARTITION OF public.p FOR VALUES FROM (0) TO (10)",
        )
        .await
        .unwrap();
    let found = tables(&client).await;
    let error = ensure(&client, "everything", &all(&found))
        .await
        .unwrap_err();
    assert!(error.is(&code::PG_PUBLICATION), "{error:?}");
    let (fix, _) = error.hint().split_once(';').unwrap();
    client.batch_execute(fix).await.unwrap();
    ensure(&client, "everything", &all(&found)).await.unwrap();
}

#[tokio::test]
async fn what_would_lose_changes_is_refused() {
    let client = client(&database("pub_refused").await).await;
    client
        .batch_execute(
            "CREATE TABLE public.a (a int PRIMARY KEY, b int);
             CREATE PUBLICATION no_deletes FOR TABLE public.a WITH (publish = 'insert, update')",
        )
        .await
        .unwrap();
    let mut cases = vec![("no_deletes", "delete")];
    if cluster().version() >= 15 {
        client
            .batch_execute(
                "CREATE PUBLICATION filtered FOR TABLE public.a WHERE (a > 5);
                 CREATE PUBLICATION some_columns FOR TABLE public.a (a)",
            )
            .await
            .unwrap();
        cases.extend([("filtered", "some rows"), ("some_columns", "\"b\"")]);
    }
    let found = tables(&client).await;
    for (name, word) in cases {
        let error = ensure(&client, name, &all(&found)).await.unwrap_err();
        assert!(error.is(&code::PG_PUBLICATION), "{error:?}");
        assert!(error.message().contains(word), "{error:?}");
    }
}

#[tokio::test]
async fn without_the_right_the_sql_is_told() {
    let admin_options = database("pub_rights").await;
    let admin = client(&admin_options).await;
    admin
        .batch_execute(
            "CREATE ROLE no_owner LOGIN; CREATE TABLE public.a (a int PRIMARY KEY);
             GRANT SELECT ON public.a TO no_owner",
        )
        .await
        .unwrap();
    let mut options = admin_options;
    options.user = "no_owner".into();
    let client = client(&options).await;
    let found = tables(&client).await;
    let error = ensure(&client, "p", &all(&found)).await.unwrap_err();
    assert!(error.is(&code::PG_PUBLICATION), "{error:?}");
    let (_, sql) = error.hint().split_once(": ").unwrap();
    admin.batch_execute(sql).await.unwrap();
    assert_eq!(
        ensure(&client, "p", &all(&found)).await.unwrap(),
        ["p", "p_append"]
    );
}
