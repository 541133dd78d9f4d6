//! `alluvium doctor`: every check, what it means, how to mend it.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use alluvium_change::Result;
use alluvium_pipeline::{doctor as checks, project};
use alluvium_source_postgres::connect::ConnectOptions;
use alluvium_source_postgres::preflight::{Check, CheckStatus};

use crate::args::Output;
use crate::print;

struct Report(Vec<Check>);

impl print::Rows for Report {
    type Row = Check;

    fn rows(&self) -> &[Check] {
        &self.0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.0 {
            let mark = match check.status {
                CheckStatus::Ok => "ok  ",
                CheckStatus::Warn => "warn",
                CheckStatus::Fail => "FAIL",
            };
            writeln!(f, "{mark}  {:<20} {}", check.name, check.finding)?;
            if check.status == CheckStatus::Ok {
                continue;
            }
            writeln!(f, "      {:<20} why: {}", "", check.meaning)?;
            if let Some(fix) = &check.fix {
                let mut lines = fix.lines();
                writeln!(f, "      {:<20} fix: {}", "", lines.next().unwrap_or(""))?;
                for line in lines {
                    writeln!(f, "      {:<20}      {line}", "")?;
                }
            }
        }
        let count = |status| self.0.iter().filter(|check| check.status == status).count();
        let (failed, warned) = (count(CheckStatus::Fail), count(CheckStatus::Warn));
        match (failed, warned) {
            (0, 0) => writeln!(f, "\nall good: alluvium run"),
            (0, _) => writeln!(f, "\n{warned} to know about; ready: alluvium run"),
            _ => writeln!(f, "\n{failed} to mend before alluvium run"),
        }
    }
}

/// Makes all checks. Exit code 1 when one fails.
pub(crate) async fn doctor(config: &Path, output: Output) -> Result<ExitCode> {
    let project = project::load(config)?;
    let source = &project.source;
    let options = ConnectOptions::parse(&source.url, source.password_file.as_deref())?;
    let report = Report(checks::check_all(&project, &options).await);
    print::rows(&report, output)?;
    let failed = report
        .0
        .iter()
        .any(|check| check.status == CheckStatus::Fail);
    Ok(if failed {
        ExitCode::from(1)
    } else {
        ExitCode::SUCCESS
    })
}
