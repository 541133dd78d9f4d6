//! Whether binary tuples, where the project insists on them, can be had.

use alluvium_change::Result;
use tokio_postgres::Client;

use super::Check;
use crate::catalog::{SourceTable, TableSelection, load_tables, server_version};
use crate::connect::{self, ConnectOptions};
use crate::tuples::{Tuples, choose};

const NAME: &str = "tuples";

/// The check of `tuples = "binary"`; `None` when another form is wanted, or when the server cannot be
/// asked, which other checks tell.
pub async fn check_tuples(
    options: &ConnectOptions,
    selection: &TableSelection,
    wanted: Tuples,
) -> Option<Check> {
    if wanted != Tuples::Binary {
        return None;
    }
    let client = connect::connect(options).await.ok()?;
    let (version, tables) = facts(&client, selection).await.ok()?;
    let followed = tables.iter().filter(|table| table.refused.is_none());
    Some(match choose(wanted, version, followed) {
        Ok(_) => Check::ok(NAME, "values come in binary form"),
        Err(error) => Check::error(NAME, &error),
    })
}

async fn facts(client: &Client, selection: &TableSelection) -> Result<(u32, Vec<SourceTable>)> {
    let version = server_version(client).await?;
    let tables = load_tables(client, selection).await?;
    Ok((u32::try_from(version).unwrap_or_default(), tables))
}
