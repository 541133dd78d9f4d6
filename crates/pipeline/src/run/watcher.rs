//! Watching the catalog for new tables and columns, beside the stream.
//!
//! Reading all tables' columns costs the source tens of milliseconds for a thousand tables, so it is
//! done when the catalog's fingerprint is another, now and then in any case, and again while news
//! have not been acted upon.

use std::time::{Duration, Instant};

use alluvium_change::Result;
use alluvium_source_postgres::catalog::{self, SourceTable, TableSelection};
use alluvium_source_postgres::connect::{self, ConnectOptions};
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::Client;

use super::measure::watch_wal_end;
use crate::status::StatusBoard;

/// How often the catalog is asked whether it changed.
const CATALOG_EVERY: Duration = Duration::from_secs(3);
/// How often the tables are loaded in any case: not every change shows in the fingerprint.
const LOAD_EVERY: Duration = Duration::from_secs(60);

/// The tables as the catalog has them.
pub(super) struct CatalogNews {
    pub tables: Vec<SourceTable>,
    /// To be told when nothing of it is left for later; else the news come again.
    pub settled: oneshot::Sender<()>,
}

/// What the catalog said when all of its news had been acted upon.
struct Seen {
    fingerprint: String,
    at: Instant,
}

/// Loads the selected tables when they changed, on a connection of its own.
pub(super) async fn watch_catalog(
    options: ConnectOptions,
    selection: TableSelection,
    board: StatusBoard,
    news: mpsc::Sender<CatalogNews>,
) {
    let mut seen = None;
    loop {
        let Ok(client) = connect::connect(&options).await else {
            tokio::time::sleep(CATALOG_EVERY * 3).await;
            continue;
        };
        loop {
            watch_wal_end(&client, &board, CATALOG_EVERY).await;
            match look(&client, &selection, &news, &mut seen).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::debug!(error = %error, "cannot read the catalog now");
                    break;
                }
            }
        }
    }
}

/// Tells the news, if there may be any. False when nobody listens any more.
async fn look(
    client: &Client,
    selection: &TableSelection,
    news: &mpsc::Sender<CatalogNews>,
    seen: &mut Option<Seen>,
) -> Result<bool> {
    // Before the tables: what changes in between shows the next time.
    let fingerprint = catalog::fingerprint(client).await?;
    let is_known = seen
        .as_ref()
        .is_some_and(|seen| seen.fingerprint == fingerprint && seen.at.elapsed() < LOAD_EVERY);
    if is_known {
        return Ok(true);
    }
    let at = Instant::now();
    let tables = catalog::load_tables(client, selection).await?;
    let (settled, done) = oneshot::channel();
    if news.send(CatalogNews { tables, settled }).await.is_err() {
        return Ok(false);
    }
    *seen = done.await.ok().map(|()| Seen { fingerprint, at });
    Ok(true)
}
