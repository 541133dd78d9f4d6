//! The status as it is shown: what `alluvium status --output json` prints and `GET /api/v1/status`
//! answers. After the board; adds only what follows from it and the time.

use serde::Serialize;

use super::{Phase, PipelineStatus, TableStatus};

/// The three clocks, in the state of a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Clocks {
    /// WAL of the server that is not durable in the lake.
    pub source_lag_bytes: u64,
    /// Since when there is any; 0 when there is none.
    pub source_lag_ms: Option<u64>,
    /// Of the newest change in the lake: from its commit at the source to its Delta commit.
    pub commit_lag_ms: Option<u64>,
    /// Of the table that is worst off: how old a state of the source its readers see.
    pub freshness_ms: Option<u64>,
    /// That table, when it is worse off than those that are live.
    pub freshness_table: Option<String>,
}

/// One table, by its name at the source.
#[derive(Debug, Clone, Serialize)]
pub struct TableReport {
    pub table: String,
    pub freshness_ms: Option<u64>,
    #[serde(flatten)]
    pub status: TableStatus,
}

/// The whole.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Who works on the lake now, if anybody.
    pub running: Option<String>,
    pub clocks: Clocks,
    /// Without its tables.
    #[serde(flatten)]
    pub pipeline: PipelineStatus,
    pub tables: Vec<TableReport>,
}

impl Report {
    /// What `status` says at the moment `now`, while `running` holds the lake.
    #[must_use]
    pub fn new(mut pipeline: PipelineStatus, running: Option<String>, now: i64) -> Self {
        let worst = pipeline
            .tables
            .iter()
            .filter_map(|(name, table)| Some((pipeline.freshness_ms(table, now)?, name, table)))
            .max_by_key(|(ms, _, _)| *ms);
        let clocks = Clocks {
            source_lag_bytes: pipeline.lag_bytes(),
            source_lag_ms: pipeline.source_lag_ms(now),
            commit_lag_ms: pipeline.commit_lag_ms(),
            freshness_ms: worst.map(|(ms, _, _)| ms),
            freshness_table: worst
                .filter(|(_, _, table)| table.phase != Phase::Live)
                .map(|(_, name, _)| name.clone()),
        };
        let tables = std::mem::take(&mut pipeline.tables)
            .into_iter()
            .map(|(table, status)| TableReport {
                table,
                freshness_ms: pipeline.freshness_ms(&status, now),
                status,
            })
            .collect();
        Self {
            running,
            clocks,
            pipeline,
            tables,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn tables_come_once_and_the_worst_is_named() {
        let mut pipeline = PipelineStatus {
            connected: true,
            updated_micros: 5_000_000,
            ..PipelineStatus::default()
        };
        let table = |phase, current_until_micros| TableStatus {
            phase,
            current_until_micros,
            ..TableStatus::default()
        };
        pipeline.tables.extend([
            ("a.fine".to_owned(), table(Phase::Live, None)),
            (
                "a.stopped".to_owned(),
                table(Phase::Stopped, Some(1_000_000)),
            ),
            ("a.unknown".to_owned(), table(Phase::Waiting, None)),
        ]);
        let mut all_live = pipeline.clone();
        all_live
            .tables
            .retain(|_, table| table.phase == Phase::Live);
        let clocks = Report::new(all_live, None, 5_000_000).clocks;
        assert_eq!(
            (clocks.freshness_ms, clocks.freshness_table),
            (Some(0), None)
        );
        let report = Report::new(pipeline, None, 5_000_000);
        assert_eq!(report.clocks.freshness_ms, Some(4000));
        assert_eq!(report.clocks.freshness_table.as_deref(), Some("a.stopped"));
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(text.matches("\"tables\":").count(), 1, "{text}");
        let fresh: Vec<_> = report.tables.iter().map(|t| t.freshness_ms).collect();
        assert_eq!(fresh, [Some(0), Some(4000), None]);
    }
}
