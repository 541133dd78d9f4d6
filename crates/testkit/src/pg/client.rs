//! SQL from tests, callable with and without an async runtime around.

use std::future::Future;

use anyhow::{Context as _, Result, anyhow};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

pub(super) fn execute(url: &str, sql: &str) -> Result<()> {
    on_own_runtime(async {
        let client = connect(url).await?;
        client
            .batch_execute(sql)
            .await
            .map_err(|error| explain(&error, sql))
    })
}

pub(super) fn query_text(url: &str, sql: &str) -> Result<String> {
    on_own_runtime(async {
        let client = connect(url).await?;
        let messages = client
            .simple_query(sql)
            .await
            .map_err(|error| explain(&error, sql))?;
        let lines: Vec<String> = messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(
                    (0..row.len())
                        .map(|column| row.get(column).unwrap_or_default())
                        .collect::<Vec<_>>()
                        .join("|"),
                ),
                _ => None,
            })
            .collect();
        Ok(lines.join("\n"))
    })
}

async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .map_err(|error| explain(&error, url))?;
    // Ends by itself when the client is dropped.
    tokio::spawn(connection);
    Ok(client)
}

/// On a thread of its own: a test may itself run inside a runtime, where blocking is not allowed.
fn on_own_runtime<T: Send>(work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let run = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime")?
            .block_on(work)
    };
    std::thread::scope(|scope| scope.spawn(run).join())
        .map_err(|_| anyhow!("the thread that ran the query panicked"))?
}

/// The server's own words: the error's `Display` says only "db error".
fn explain(error: &tokio_postgres::Error, sql: &str) -> anyhow::Error {
    let said = error.as_db_error().map_or_else(
        || error.to_string(),
        |db| format!("{}: {}", db.code().code(), db.message()),
    );
    let start: String = sql.chars().take(300).collect();
    anyhow!("{said}\nin: {start}")
}
