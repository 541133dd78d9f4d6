//! `alluvium status`: what the pipeline last told of itself, and whether it still runs.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use alluvium_change::Result;
use alluvium_pipeline::status::report::{Report, TableReport};
use alluvium_pipeline::status::{
    self, MemoryStatus, Part, Phase, PipelineStatus, TableStatus, now_micros,
};
use alluvium_pipeline::{LakeLock, project};

use super::STOPPED_TABLES;
use crate::args::Output;
use crate::print::{self, Grid};

struct Shown {
    /// None where nothing ever ran.
    has_run: bool,
    report: Report,
    now_micros: i64,
}

impl print::Rows for Shown {
    type Row = TableReport;

    fn rows(&self) -> &[TableReport] {
        &self.report.tables
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.has_run {
            return writeln!(f, "this project has not run yet: alluvium run");
        }
        let pipeline = &self.report.pipeline;
        match &self.report.running {
            Some(holder) if pipeline.connected => writeln!(f, "running ({holder})")?,
            Some(holder) => writeln!(f, "running ({holder}), not connected to the source")?,
            None => {
                let ago = self.now_micros.saturating_sub(pipeline.updated_micros);
                let ago = print::duration_ms(u64::try_from(ago / 1000).unwrap_or(0));
                writeln!(f, "not running; as of {ago} ago")?;
            }
        }
        self.fmt_clocks(f)?;
        writeln!(f)?;
        let mut grid = Grid::new(&[
            "table", "phase", "rows", "version", "position", "changes", "lag ms", "identity",
        ]);
        for TableReport { table, status, .. } in &self.report.tables {
            grid.push(vec![
                table.clone(),
                phase(status),
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
        self.fmt_errors(f)
    }
}

impl Shown {
    /// The clocks, the rates, the memory: a line each.
    fn fmt_clocks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pipeline, clocks) = (&self.report.pipeline, &self.report.clocks);
        let known = |ms: Option<u64>| ms.map_or_else(|| "not known".to_owned(), print::duration_ms);
        let since = match self.report.running {
            Some(_) => known(clocks.source_lag_ms),
            None => "as it ended".to_owned(),
        };
        writeln!(
            f,
            "source lag  {} of WAL, {since}; durable up to {}",
            print::bytes(clocks.source_lag_bytes),
            pipeline.acknowledged_lsn
        )?;
        let of_newest = clocks.commit_lag_ms.map_or_else(
            || "no change yet".to_owned(),
            |lag| print::duration_ms(lag) + " from COMMIT to Delta commit",
        );
        writeln!(f, "commit lag  {of_newest}")?;
        let worst = match (clocks.freshness_ms, &clocks.freshness_table) {
            (Some(1..), Some(table)) => format!(" behind the source at worst ({table})"),
            _ => String::new(),
        };
        let tables = self.report.tables.iter();
        let unknown = match tables.filter(|t| t.freshness_ms.is_none()).count() {
            0 => String::new(),
            _ if clocks.freshness_ms.is_none() => String::new(),
            tables => format!("; not known of {tables} tables"),
        };
        let freshness = known(clocks.freshness_ms);
        writeln!(f, "freshness   {freshness}{worst}{unknown}")?;
        if self.report.running.is_some() {
            writeln!(f, "rate        {}", rates(pipeline))?;
            writeln!(f, "waiting     {}", waiting(pipeline))?;
            writeln!(f, "memory      {}", memory(&pipeline.memory))?;
            if let Some(address) = &pipeline.http.address {
                writeln!(f, "serving     http://{address}")?;
            }
            if let Some(address) = &pipeline.pg.address {
                writeln!(f, "serving     postgres://{address}/lake")?;
            }
        }
        Ok(())
    }

    fn fmt_errors(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = &self.report.tables;
        let own = tables
            .iter()
            .map(|row| (row.table.as_str(), row.status.error.as_ref()));
        let whole = std::iter::once(("pipeline", self.report.pipeline.error.as_ref()));
        for (what, error) in whole.chain(own) {
            if let Some(error) = error {
                writeln!(f, "\n{what}: error[{}]: {}", error.code, error.message)?;
                if let Some(detail) = &error.detail {
                    writeln!(f, "  detail: {detail}")?;
                }
                writeln!(f, "  hint: {}", error.hint)?;
            }
        }
        for row in tables.iter().filter(|row| row.status.conflicts > 0) {
            writeln!(
                f,
                "\n{}: {} conflicts repaired",
                row.table, row.status.conflicts
            )?;
        }
        Ok(())
    }
}

fn rates(pipeline: &PipelineStatus) -> String {
    let rates = &pipeline.rates;
    let mut text = format!(
        "{} changes/s, {}/s received",
        print::count(rates.changes_per_sec),
        print::bytes(rates.received_bytes_per_sec)
    );
    if rates.copied_rows_per_sec > 0 {
        text.push_str(&format!(
            ", {} rows/s copied",
            print::count(rates.copied_rows_per_sec)
        ));
    }
    text
}

fn waiting(pipeline: &PipelineStatus) -> String {
    let stream = &pipeline.stream;
    let mut text = format!(
        "open cuts {}, queued commands {}",
        stream.open_cuts, stream.queued_commands
    );
    if stream.running_transactions > 0 {
        text.push_str(&format!(
            "; running transactions {}, with {} on disk",
            stream.running_transactions,
            print::bytes(stream.spilled_bytes)
        ));
    }
    if stream.prepared_transactions > 0 {
        text.push_str(&format!(
            "; prepared transactions {}, for which the server keeps its log",
            stream.prepared_transactions
        ));
    }
    text
}

fn memory(memory: &MemoryStatus) -> String {
    let resident = memory
        .resident_bytes
        .map_or_else(|| "?".to_owned(), print::bytes);
    let part =
        |name: &str, part: &Part| format!("{name} {}/{}", part.bytes >> 20, part.limit_bytes >> 20);
    format!(
        "{resident} resident, the budget is {}\n            {}, {}, {}, {}, {} MiB",
        print::bytes(memory.budget_bytes),
        part("decoded", &memory.decoded),
        part("handed over", &memory.handed_over),
        part("streamed", &memory.streamed),
        part("index", &memory.index),
        part("recent", &memory.recent),
    )
}

fn phase(status: &TableStatus) -> String {
    let phase = match status.phase {
        Phase::Waiting => "waiting",
        Phase::Copying => "copying",
        Phase::CatchingUp => "catching up",
        Phase::Live => "live",
        Phase::Stopped => "STOPPED",
    };
    let beside = if status.resyncing { ", resyncing" } else { "" };
    format!("{phase}{beside}")
}

/// Prints the status. Exit code 3 when a table is stopped.
pub(crate) fn status(config: &Path, output: Output) -> Result<ExitCode> {
    let project = project::load(config)?;
    let pipeline = status::load(&project.state_dir());
    let now_micros = now_micros();
    let running = LakeLock::holder(&project.lake_path);
    let shown = Shown {
        has_run: pipeline.is_some(),
        report: Report::new(pipeline.unwrap_or_default(), running, now_micros),
        now_micros,
    };
    match output {
        Output::Json => print::document(&shown.report)?,
        Output::Table | Output::Ndjson | Output::Csv => print::rows(&shown, output)?,
    }
    let stopped = shown
        .report
        .tables
        .iter()
        .any(|row| row.status.phase == Phase::Stopped);
    Ok(if stopped {
        ExitCode::from(STOPPED_TABLES)
    } else {
        ExitCode::SUCCESS
    })
}
