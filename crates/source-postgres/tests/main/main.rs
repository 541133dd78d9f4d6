//! The source against real, private PostgreSQL clusters.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod catalog;
mod connect;
mod copy;
mod preflight;
mod publication;
mod replication;
mod tuples;

use std::sync::OnceLock;

use alluvium_source_postgres::catalog::{SourceTable, TableSelection, load_tables};
use alluvium_source_postgres::connect::{self as pg, ConnectOptions};
use alluvium_testkit::PgCluster;
use tokio_postgres::Client;

/// One cluster for all tests, of the version tests are run on first; each test has a database of
/// its own.
fn cluster() -> &'static PgCluster {
    static CLUSTER: OnceLock<PgCluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let versions = PgCluster::versions_to_test().unwrap();
        PgCluster::start(versions.first().copied(), &[]).unwrap()
    })
}

/// A database with everything in the way that settings can put there.
async fn database(name: &str) -> ConnectOptions {
    let cluster = cluster();
    let client = client(&options(&cluster.url("postgres"))).await;
    client
        .batch_execute(&format!("CREATE DATABASE {name}"))
        .await
        .unwrap();
    for setting in [
        "datestyle = 'German'",
        "intervalstyle = 'postgres_verbose'",
        "timezone = 'Asia/Kathmandu'",
        "extra_float_digits = -15",
        "bytea_output = 'escape'",
        "search_path = 'public'",
        "statement_timeout = '1h'",
    ] {
        client
            .batch_execute(&format!("ALTER DATABASE {name} SET {setting}"))
            .await
            .unwrap();
    }
    options(&cluster.url(name))
}

fn options(url: &str) -> ConnectOptions {
    ConnectOptions::parse(url, None).unwrap()
}

async fn client(options: &ConnectOptions) -> Client {
    pg::connect(options).await.unwrap()
}

fn everything() -> TableSelection {
    TableSelection {
        include: vec!["*.*".into()],
        ..TableSelection::default()
    }
}

async fn tables(client: &Client) -> Vec<SourceTable> {
    load_tables(client, &everything()).await.unwrap()
}

fn table<'a>(tables: &'a [SourceTable], name: &str) -> &'a SourceTable {
    tables.iter().find(|table| table.id().name == name).unwrap()
}

/// Runs statements that name their tables without a schema; sessions of ours find none so.
async fn in_public(client: &Client, sql: &str) {
    let sql = format!("SET search_path = public; {sql}; SET search_path = ''");
    client.batch_execute(&sql).await.unwrap();
}
