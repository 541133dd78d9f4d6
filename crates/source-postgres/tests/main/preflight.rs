//! The checks of `doctor` and `run`.

use alluvium_change::code;
use alluvium_source_postgres::catalog::{TableOverride, TableSelection};
use alluvium_source_postgres::preflight::{Check, CheckStatus, check_source};
use alluvium_source_postgres::publication::ensure;
use alluvium_testkit::PgCluster;

use crate::{client, database, everything, options, tables};

fn of<'a>(checks: &'a [Check], name: &str) -> Vec<&'a Check> {
    checks.iter().filter(|check| check.name == name).collect()
}

fn failed(checks: &[Check]) -> Vec<&Check> {
    checks
        .iter()
        .filter(|check| check.status == CheckStatus::Fail)
        .collect()
}

#[tokio::test]
async fn a_good_source_passes_and_its_peculiarities_are_told() {
    let options = database("pre_good").await;
    let client = client(&options).await;
    client
        .batch_execute(
            "CREATE TABLE public.keyed (a int PRIMARY KEY, big text, g int GENERATED ALWAYS AS (a + 1) STORED);
             CREATE TABLE public.bare (a int);
             CREATE TABLE public.part (k int PRIMARY KEY) PARTITION BY RANGE (k)",
        )
        .await
        .unwrap();
    let mut selection = everything();
    selection
        .overrides
        .insert("public.misspelt".into(), TableOverride::default());
    let checks = check_source(&options, &selection, "slot_1", "pub_1").await;
    assert!(failed(&checks).is_empty(), "{checks:#?}");
    let identity = of(&checks, "identity");
    let bare = identity
        .iter()
        .find(|check| check.status == CheckStatus::Warn)
        .unwrap();
    assert!(
        bare.finding.contains("public.bare") && bare.fix.is_some(),
        "{bare:?}"
    );
    assert!(
        of(&checks, "generated")[0]
            .finding
            .contains("public.keyed.g")
    );
    assert!(of(&checks, "toast")[0].finding.contains("public.keyed"));
    assert!(of(&checks, "partitions")[0].finding.contains("public.part"));
    assert!(
        of(&checks, "settings_of_tables")[0]
            .finding
            .contains("misspelt")
    );
    assert!(
        of(&checks, "publication")[0]
            .meaning
            .contains("CREATE PUBLICATION")
    );
    assert!(
        of(&checks, "slot")[0]
            .finding
            .contains("does not exist yet")
    );

    let found = tables(&client).await;
    let all: Vec<_> = found.iter().collect();
    ensure(&client, "pub_1", &all).await.unwrap();
    client
        .batch_execute("SELECT pg_create_logical_replication_slot('pre_slot', 'pgoutput')")
        .await
        .unwrap();
    let checks = check_source(&options, &everything(), "pre_slot", "pub_1").await;
    assert!(failed(&checks).is_empty(), "{checks:#?}");
    assert!(of(&checks, "publication")[0].finding.contains("covers"));
    assert!(of(&checks, "slot")[0].finding.contains("acknowledged"));
    let nothing = TableSelection {
        include: vec!["x.*".into()],
        ..TableSelection::default()
    };
    let checks = check_source(&options, &nothing, "pre_slot", "pub_1").await;
    assert!(std::ptr::eq(
        failed(&checks)[0].code.unwrap(),
        &code::PG_NO_TABLES
    ));
    client
        .batch_execute("SELECT pg_drop_replication_slot('pre_slot')")
        .await
        .unwrap();
}

#[tokio::test]
async fn each_missing_right_has_the_sql_that_mends_it() {
    let admin_options = database("pre_rights").await;
    let admin = client(&admin_options).await;
    admin
        .batch_execute(
            r#"CREATE ROLE "we ak" LOGIN; CREATE SCHEMA "s x"; CREATE TABLE "s x".t (a int PRIMARY KEY);
               CREATE TABLE "s x".p (k int PRIMARY KEY) PARTITION BY RANGE (k);
               CREATE TABLE "s x".p_1 PARTITION OF "s x".p FOR VALUES FROM (0) TO (10);
               ALTER TABLE "s x".t ENABLE ROW LEVEL SECURITY"#,
        )
        .await
        .unwrap();
    let mut options = admin_options;
    options.user = "we ak".into();
    let checks = check_source(&options, &everything(), "slot_1", "pub_1").await;
    let names: Vec<&str> = failed(&checks).iter().map(|check| check.name).collect();
    for name in ["role", "replication", "rights", "publication"] {
        assert!(names.contains(&name), "{name} did not fail: {checks:#?}");
    }
    // Grants, then what needs them, as an administrator would go down the list.
    for _ in 0..2 {
        for check in failed(&check_source(&options, &everything(), "slot_1", "pub_1").await) {
            if check.name == "replication" {
                continue;
            }
            let fix = check.fix.as_ref().unwrap();
            let sql = fix.split(" -- ").next().unwrap();
            admin
                .batch_execute(sql)
                .await
                .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        }
    }
    let checks = check_source(&options, &everything(), "slot_1", "pub_1").await;
    assert!(failed(&checks).is_empty(), "{checks:#?}");
}

#[tokio::test]
async fn a_server_not_made_for_it() {
    let conf = [
        ("wal_level", "replica"),
        ("max_replication_slots", "0"),
        ("wal_sender_timeout", "0"),
    ];
    let cluster = PgCluster::start(None, &conf).unwrap();
    cluster
        .execute("CREATE TABLE t (a int PRIMARY KEY)")
        .unwrap();
    let options = options(&cluster.url("postgres"));
    let checks = check_source(&options, &everything(), "slot_1", "pub_1").await;
    let codes: Vec<&str> = failed(&checks)
        .iter()
        .filter_map(|c| c.code)
        .map(|c| c.id)
        .collect();
    assert!(codes.contains(&code::PG_WAL_LEVEL.id), "{checks:#?}");
    assert!(codes.contains(&code::PG_SLOTS_FULL.id), "{checks:#?}");
    assert_eq!(of(&checks, "settings")[0].status, CheckStatus::Warn);

    let mut nowhere = options;
    nowhere.port = 1;
    let checks = check_source(&nowhere, &everything(), "slot_1", "pub_1").await;
    assert_eq!(checks.len(), 1);
    assert!(std::ptr::eq(checks[0].code.unwrap(), &code::PG_CONNECT));
}
