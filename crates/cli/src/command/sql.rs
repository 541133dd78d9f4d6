//! `alluvium sql`: queries over the lake, each table at its last commit.

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;
use std::process::ExitCode;

use alluvium_change::{Error, Result, code};
use alluvium_pipeline::project::{self, Project};
use alluvium_query::output::{self, Format, Options};
use alluvium_query::{QuerySettings, Session};

use crate::args::{History, Output, Sql};
use crate::rows::threads;

/// Runs the statements given, or those on standard input.
pub(crate) async fn sql(config: &Path, sql: &Sql, format: Output) -> Result<ExitCode> {
    let project = project::load(config)?;
    let text = match &sql.query {
        Some(query) => query.clone(),
        None => read_stdin()?,
    };
    answer(&project, &text, format).await?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the commits of a table.
pub(crate) async fn history(config: &Path, history: &History, format: Output) -> Result<ExitCode> {
    let project = project::load(config)?;
    let query = format!(
        "SELECT version, committed_at, operation, program, lsn, rows_added, rows_deleted, files_added, \
         files_removed, readable FROM history('{}') LIMIT {}",
        history.table.replace('\'', "''"),
        history.limit
    );
    answer(&project, &query, format).await?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a query's answer as people read it.
pub(crate) async fn query_lake(project: &Project, query: &str) -> Result<()> {
    answer(project, query, Output::Table).await
}

async fn answer(project: &Project, text: &str, format: Output) -> Result<()> {
    let settings = QuerySettings {
        memory_bytes: usize::try_from(project.limits.memory_bytes).unwrap_or(usize::MAX),
        threads: threads(),
    };
    let session = Session::open(&project.lake_path, &settings)?;
    let options = Options {
        color: std::io::stdout().is_terminal(),
        ..Options::new(match format {
            Output::Table => Format::Table,
            Output::Json => Format::Json,
            Output::Ndjson => Format::Ndjson,
            Output::Csv => Format::Csv,
        })
    };
    for statement in session.statements(text)? {
        let result = session.run(&statement).await?;
        if !result.has_columns() {
            continue;
        }
        let mut out = std::io::BufWriter::new(std::io::stdout());
        let printed = output::print(&result.schema, result.batches, &options, &mut out).await?;
        if printed.reader_gone {
            break;
        }
    }
    Ok(())
}

fn read_stdin() -> Result<String> {
    if std::io::stdin().is_terminal() {
        return Err(Error::new(&code::USAGE, "there is no query")
            .with_hint("alluvium sql \"SELECT ...\", or pass statements on standard input"));
    }
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .read_to_string(&mut text)
        .map_err(|error| Error::new(&code::USAGE, "cannot read the query").with_source(error))?;
    Ok(text)
}
