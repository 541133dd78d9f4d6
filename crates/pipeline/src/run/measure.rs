//! Once a second: what the pipeline knows of itself goes to the status board and its file. Also asks
//! the server how far its WAL is, which the stream alone does not tell: a server that is behind with
//! decoding names only what it has sent.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use alluvium_source_postgres::slot;
use tokio_postgres::Client;

use super::Pipeline;
use crate::status::{Part, PipelineStatus, RateStatus, StatusBoard, now_micros};

/// The recent past that rates are taken from.
const RATE_OVER: Duration = Duration::from_secs(5);

/// Counts at moments of the recent past, oldest first.
#[derive(Debug, Default)]
pub(super) struct Rates(VecDeque<(Instant, Counts)>);

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    changes: u64,
    copied_rows: u64,
    received_bytes: u64,
}

impl Rates {
    fn at(&mut self, now: Instant, counts: Counts) -> RateStatus {
        while self.0.len() > 1
            && self
                .0
                .get(1)
                .is_some_and(|(at, _)| now.duration_since(*at) >= RATE_OVER)
        {
            self.0.pop_front();
        }
        let (since, before) = *self.0.front().unwrap_or(&(now, counts));
        self.0.push_back((now, counts));
        let elapsed_ms = now.duration_since(since).as_millis().max(1);
        // A copy that begins again counts from 0 again.
        let rate = |after: u64, before: u64| {
            let per_sec = u128::from(after.saturating_sub(before)) * 1000 / elapsed_ms;
            u64::try_from(per_sec).unwrap_or(u64::MAX)
        };
        RateStatus {
            changes_per_sec: rate(counts.changes, before.changes),
            copied_rows_per_sec: rate(counts.copied_rows, before.copied_rows),
            received_bytes_per_sec: rate(counts.received_bytes, before.received_bytes),
        }
    }
}

impl Pipeline {
    /// Brings the board up to date and writes it beside the project.
    pub(super) fn report_status(&mut self) {
        let told = self.board.server_position();
        let complete = self.stream.complete_until(told);
        let stream = self.stream.status();
        let limits = self.project.limits;
        let lake = &self.owner_context.lake;
        let recent = Part::of(lake.recent_bytes(), lake.settings().recent_bytes);
        let (rates, waiting) = (&mut self.rates, &self.stream);
        self.board.update(|status| {
            status.received_lsn = waiting.received();
            status.acknowledged_lsn = waiting.flushed();
            let seen = waiting.server().max(waiting.flushed());
            status.server_lsn = status.server_lsn.max(seen);
            status.complete_until_micros = status.complete_until_micros.max(complete);
            for (id, owner) in &waiting.owners {
                if let Some(table) = status.tables.get_mut(&id.to_string()) {
                    table.queued_commands = owner.queued() as u64;
                }
            }
            status.stream = stream;
            waiting.measure_memory(&mut status.memory);
            let index_bytes = status.tables.values().map(|table| table.index_bytes).sum();
            status.memory.index = Part {
                bytes: index_bytes,
                limit_bytes: limits.index_memory_bytes,
            };
            status.memory.recent = recent;
            status.memory.budget_bytes = limits.memory_bytes;
            status.memory.resident_bytes = resident_bytes(Path::new("/proc/self/status"));
            status.rates = rates.at(Instant::now(), counts(status));
        });
        self.board.save(&self.project.state_dir());
    }
}

fn counts(status: &PipelineStatus) -> Counts {
    Counts {
        changes: status.stream.changes,
        copied_rows: status.tables.values().map(|table| table.copied_rows).sum(),
        received_bytes: status.stream.received_bytes,
    }
}

/// The process's resident memory; none where the system does not tell it so.
fn resident_bytes(proc_status: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(proc_status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Asks the server for the end of its WAL, once a second for as long as `duration`.
pub(super) async fn watch_wal_end(client: &Client, board: &StatusBoard, duration: Duration) {
    const EVERY: Duration = Duration::from_secs(1);
    let until = Instant::now() + duration;
    loop {
        let asked_micros = now_micros();
        // Who cannot be asked is noticed by the stream.
        if let Ok(end) = slot::current_lsn(client).await {
            board.update(|status| {
                status.server_lsn = status.server_lsn.max(end);
                status.server_asked_micros = Some(asked_micros);
            });
        }
        tokio::time::sleep(EVERY.min(until.saturating_duration_since(Instant::now()))).await;
        if Instant::now() >= until {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn rates_are_of_the_last_seconds() {
        let mut rates = Rates::default();
        let start = Instant::now();
        let counts = |changes| Counts {
            changes,
            ..Counts::default()
        };
        let at = |rates: &mut Rates, secs, changes| {
            let now = start + Duration::from_secs(secs);
            rates.at(now, counts(changes)).changes_per_sec
        };
        assert_eq!(at(&mut rates, 0, 0), 0);
        assert_eq!(at(&mut rates, 1, 500), 500);
        for secs in 2..20 {
            at(&mut rates, secs, 1000);
            assert!(rates.0.len() <= 7, "{}", rates.0.len());
        }
        assert_eq!(at(&mut rates, 20, 1000), 0, "it is long ago");
        assert_eq!(at(&mut rates, 21, 0), 0, "counted from 0 again");
    }

    #[test]
    fn resident_memory_is_read_where_the_system_tells_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("status");
        assert_eq!(resident_bytes(&file), None);
        std::fs::write(&file, "Name:\tx\nVmHWM:\t 9 kB\nVmRSS:\t  1204 kB\n").unwrap();
        assert_eq!(resident_bytes(&file), Some(1204 * 1024));
        std::fs::write(&file, "VmRSS:\t many\n").unwrap();
        assert_eq!(resident_bytes(&file), None);
    }
}
