//! Replication slots seen from an ordinary session: state, retained log, removal.
//!
//! A slot that the server invalidated says so here before a stream is tried; what it no longer
//! holds is gone, so the pipeline stops loudly instead of going on with a gap.

use alluvium_change::{Lsn, Result};
use tokio_postgres::Client;

use crate::catalog::{get, server_version};
use crate::connect::map_error;

/// A slot as `pg_replication_slots` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    /// The output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    pub database: Option<String>,
    /// It sends transactions when they are prepared.
    pub two_phase: bool,
    pub active: bool,
    pub active_pid: Option<i32>,
    /// `application_name` of the session that holds it, where this role may see it.
    pub active_application: Option<String>,
    /// The oldest WAL it keeps.
    pub restart_lsn: Option<Lsn>,
    /// Everything before it was acknowledged.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// Why it can no longer be used, when so.
    pub invalidation: Option<String>,
    /// WAL the server keeps for it.
    pub retained_wal_bytes: Option<i64>,
    /// What may still be written before it is in danger; `None` without a limit.
    pub safe_wal_size: Option<i64>,
}

/// The slot `name`, of any kind; `None` when there is none.
///
/// # Errors
/// When the server cannot be asked.
pub async fn state(client: &Client, name: &str) -> Result<Option<SlotState>> {
    let failed = |error| map_error(error, &format!("reading slot \"{name}\""));
    let version = server_version(client).await?;
    let two_phase = if version >= 140_000 {
        "s.two_phase"
    } else {
        "false"
    };
    let invalidation = match version {
        170_000.. => "s.invalidation_reason",
        160_000.. => "CASE WHEN s.conflicting THEN 'conflict with recovery' END",
        _ => "NULL::text",
    };
    let sql = format!(
        "SELECT s.plugin::text, s.database::text, s.active, s.active_pid, a.application_name,
                s.restart_lsn::text, s.confirmed_flush_lsn::text, s.wal_status,
                COALESCE({invalidation}, CASE WHEN s.wal_status = 'lost' THEN 'wal_removed' END),
                pg_wal_lsn_diff({CURRENT_LSN}, s.restart_lsn)::int8, s.safe_wal_size,
                {two_phase}
         FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
         WHERE s.slot_name = $1::text"
    );
    let Some(row) = client
        .query_opt(sql.as_str(), &[&name])
        .await
        .map_err(failed)?
    else {
        return Ok(None);
    };
    Ok(Some(SlotState {
        plugin: get(&row, 0)?,
        database: get(&row, 1)?,
        active: get(&row, 2)?,
        active_pid: get(&row, 3)?,
        active_application: get(&row, 4)?,
        restart_lsn: lsn(get(&row, 5)?),
        confirmed_flush_lsn: lsn(get(&row, 6)?),
        wal_status: get(&row, 7)?,
        invalidation: get(&row, 8)?,
        retained_wal_bytes: get(&row, 9)?,
        safe_wal_size: get(&row, 10)?,
        two_phase: get(&row, 11)?,
    }))
}

/// Drops the slot `name`; nothing happens when there is none.
///
/// # Errors
/// `PG_SLOT_ACTIVE` while a session reads it.
pub async fn drop_slot(client: &Client, name: &str) -> Result<()> {
    let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
               WHERE slot_name = $1::text";
    match client.execute(sql, &[&name]).await {
        Ok(_) => Ok(()),
        Err(error) => Err(map_error(error, &format!("dropping slot \"{name}\""))),
    }
}

const CURRENT_LSN: &str = "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                           ELSE pg_current_wal_insert_lsn() END";

/// Where the log ends: every transaction that has committed so far lies before it.
///
/// Also those whose commit was not awaited (`synchronous_commit = off`). At the border of a page
/// the server reports the place after the page's header, which a stream reaches only with the next
/// record; the border itself is meant.
///
/// # Errors
/// When the server cannot be asked.
pub async fn current_lsn(client: &Client) -> Result<Lsn> {
    let failed = |error| map_error(error, "asking for the end of the log");
    let sql = format!("SELECT ({CURRENT_LSN})::text, current_setting('wal_block_size')::int4");
    let row = client.query_one(sql.as_str(), &[]).await.map_err(failed)?;
    let position = lsn(get(&row, 0)?).unwrap_or_default();
    let page_bytes = u64::try_from(get::<i32>(&row, 1)?).unwrap_or(8192).max(1);
    Ok(before_page_header(position, page_bytes))
}

fn before_page_header(position: Lsn, page_bytes: u64) -> Lsn {
    // Sizes of the short and the long header, the same in all supported versions.
    match position.0.checked_rem(page_bytes) {
        Some(in_page @ (24 | 40)) => Lsn(position.0 - in_page),
        _ => position,
    }
}

fn lsn(text: Option<String>) -> Option<Lsn> {
    text.and_then(|text| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_after_a_page_header_is_the_page_border() {
        assert_eq!(before_page_header(Lsn(8192 + 24), 8192), Lsn(8192));
        assert_eq!(
            before_page_header(Lsn(16 * 8192 + 40), 8192),
            Lsn(16 * 8192)
        );
        assert_eq!(before_page_header(Lsn(8192 + 56), 8192), Lsn(8192 + 56));
        assert_eq!(before_page_header(Lsn(8192), 8192), Lsn(8192));
    }
}
