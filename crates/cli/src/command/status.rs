//! `alluvium status`: what the pipeline last told of itself, and whether it still runs.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use alluvium_change::Result;
use alluvium_pipeline::status::{self, Phase, PipelineStatus, TableStatus, now_micros};
use alluvium_pipeline::{LakeLock, project};
use serde::Serialize;

use super::STOPPED_TABLES;
use crate::args::Output;
use crate::print::{self, Grid};

#[derive(Serialize)]
struct Row {
    table: String,
    #[serde(flatten)]
    status: TableStatus,
}

struct Report {
    running: Option<String>,
    pipeline: Option<PipelineStatus>,
    rows: Vec<Row>,
}

impl print::Rows for Report {
    type Row = Row;

    fn rows(&self) -> &[Row] {
        &self.rows
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(pipeline) = &self.pipeline else {
            return writeln!(f, "this project has not run yet: alluvium run");
        };
        match &self.running {
            Some(holder) if pipeline.connected => writeln!(
                f,
                "running ({holder}), {} behind the server",
                print::bytes(pipeline.lag_bytes())
            )?,
            Some(holder) => writeln!(f, "running ({holder}), not connected to the source")?,
            None => {
                let secs = (now_micros() - pipeline.updated_micros) / 1_000_000;
                writeln!(f, "not running; as of {secs} s ago")?;
            }
        }
        writeln!(f, "durable up to {}\n", pipeline.acknowledged_lsn)?;
        let mut grid = Grid::new(&[
            "table", "phase", "rows", "version", "position", "changes", "lag ms", "identity",
        ]);
        for Row { table, status } in &self.rows {
            grid.push(vec![
                table.clone(),
                phase(status.phase).to_owned(),
                print::count(status.silver_rows),
                status.silver_version.to_string(),
                status.silver_position.to_string(),
                print::count(status.changes),
                status
                    .commit_lag_ms
                    .map_or_else(|| "-".to_owned(), |lag| lag.to_string()),
                status.identity.clone(),
            ]);
        }
        write!(f, "{grid}")?;
        let own = self
            .rows
            .iter()
            .map(|row| (row.table.as_str(), row.status.error.as_ref()));
        let whole = std::iter::once(("pipeline", pipeline.error.as_ref()));
        for (what, error) in whole.chain(own) {
            if let Some(error) = error {
                writeln!(f, "\n{what}: error[{}]: {}", error.code, error.message)?;
                if let Some(detail) = &error.detail {
                    writeln!(f, "  detail: {detail}")?;
                }
                writeln!(f, "  hint: {}", error.hint)?;
            }
        }
        for row in self.rows.iter().filter(|row| row.status.conflicts > 0) {
            writeln!(
                f,
                "\n{}: {} conflicts repaired",
                row.table, row.status.conflicts
            )?;
        }
        Ok(())
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waiting",
        Phase::Copying => "copying",
        Phase::CatchingUp => "catching up",
        Phase::Live => "live",
        Phase::Stopped => "STOPPED",
    }
}

/// Prints the status. Exit code 3 when a table is stopped.
pub(crate) fn status(config: &Path, output: Output) -> Result<ExitCode> {
    let project = project::load(config)?;
    let pipeline = status::load(&project.state_dir());
    let tables = pipeline
        .as_ref()
        .map(|pipeline| pipeline.tables.clone())
        .unwrap_or_default();
    let rows = tables
        .into_iter()
        .map(|(table, status)| Row { table, status });
    let report = Report {
        running: LakeLock::holder(&project.lake_path),
        rows: rows.collect(),
        pipeline,
    };
    print::rows(&report, output)?;
    let stopped = report
        .rows
        .iter()
        .any(|row| row.status.phase == Phase::Stopped);
    Ok(if stopped {
        ExitCode::from(STOPPED_TABLES)
    } else {
        ExitCode::SUCCESS
    })
}
