//! Is the server's history still the one that the lake follows?
//!
//! A server restored from a backup, or a standby promoted before it had everything, has lost
//! transactions that the lake may have, and gives their positions to others. It shows by a WAL that
//! ends before the lake's position, or by a timeline that forked off before it. The timeline last
//! followed is remembered beside the project; without that file only the first is seen.

use std::path::{Path, PathBuf};

use alluvium_change::{Error, Lsn, Result, code};
use alluvium_source_postgres::replication::{ReplicationConnection, SystemIdentity};

use crate::told;

/// Where the server's history leaves the one the lake has followed up to `known`: `None` when it
/// does not.
///
/// # Errors
/// The server does not tell its history.
pub(super) async fn fork(
    connection: &mut ReplicationConnection,
    system: &SystemIdentity,
    followed_timeline: Option<u32>,
    known: Lsn,
) -> Result<Option<Lsn>> {
    let mut end = system.flush_lsn;
    if let Some(followed) = followed_timeline.filter(|followed| *followed != system.timeline) {
        let history = connection.timeline_history(system.timeline).await?;
        let left = history
            .into_iter()
            .find(|(timeline, _)| *timeline == followed);
        // A timeline that is no ancestor has nothing in common that could be known.
        end = end.min(left.map_or(Lsn::ZERO, |(_, left)| left));
    }
    Ok((end < known).then_some(end))
}

/// The error for a server that forked off at `fork`.
pub(super) fn behind(fork: Lsn, known: Lsn) -> Error {
    Error::new(
        &code::PG_BEHIND,
        format!(
            "the server's history ends or forks at {fork}, but the lake has changes up to {known}"
        ),
    )
    .with_detail("the server was restored from a backup, or a failover lost transactions")
}

fn path(state_dir: &Path, slot: &str) -> PathBuf {
    state_dir.join(format!("timeline-{slot}"))
}

/// The timeline that was followed last, if that is known.
pub(super) fn followed_timeline(state_dir: &Path, slot: &str) -> Option<u32> {
    let text = std::fs::read_to_string(path(state_dir, slot)).ok()?;
    text.trim().parse().ok()
}

/// Writes down that the stream follows `timeline`.
///
/// # Errors
/// The project's state directory cannot be written.
pub(super) fn follow_timeline(state_dir: &Path, slot: &str, timeline: u32) -> Result<()> {
    if followed_timeline(state_dir, slot) == Some(timeline) {
        return Ok(());
    }
    told::write_whole(state_dir, &path(state_dir, slot), &timeline.to_string())
}
