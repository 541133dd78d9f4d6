//! Does the lake equal the database? Asked of `tools/check/compare.py`, which shares no code with
//! the engine and reads the lake through DuckDB and delta-rs.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::tools::{check_script, output_of, project_dir, write_file};

/// The comparer's verdict.
#[derive(Debug, Clone)]
pub struct Report {
    /// Both readers see exactly the source's rows in all tables, with the types of the map.
    pub equal: bool,
    /// Everything the comparer says, as its README describes it.
    pub json: Value,
}

impl Report {
    /// Fails with what differs, unless all is equal.
    pub fn expect_equal(&self) -> Result<()> {
        if !self.equal {
            bail!("the lake differs from the source\n{self}");
        }
        Ok(())
    }

    /// The report of one table, by `schema.table`.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&Value> {
        self.tables().iter().find(|table| table["table"] == name)
    }

    /// How many tables were compared.
    #[must_use]
    pub fn num_tables(&self) -> usize {
        self.tables().len()
    }

    fn tables(&self) -> &[Value] {
        self.json["tables"].as_array().map_or(&[], Vec::as_slice)
    }
}

impl fmt::Display for Report {
    /// The tables that are not equal, whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for table in self
            .tables()
            .iter()
            .filter(|table| table["status"] != "equal")
        {
            writeln!(f, "{table:#}")?;
        }
        Ok(())
    }
}

/// Compares the tables of the database `pg_url` with `<lake_dir>/silver`. `extra_args` are those of
/// `compare.py` (`--tables`, `--special strict`, ...).
///
/// A difference is a [`Report`]; an error is what kept the comparer from comparing.
pub fn compare(pg_url: &str, lake_dir: &Path, extra_args: &[&str]) -> Result<Report> {
    let mut command = check_script("compare.py");
    command.args(["--output", "json", "--pg", pg_url, "--lake"]);
    command.arg(lake_dir).args(extra_args);
    let output = output_of(&mut command)?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let equal = match output.status.code() {
        Some(0) => true,
        Some(1) => false,
        _ => bail!("compare.py ended with {}\n{stdout}{stderr}", output.status),
    };
    let json = serde_json::from_str(&stdout)
        .with_context(|| format!("compare.py did not print a report\n{stdout}{stderr}"))?;
    Ok(Report { equal, json })
}

/// Follows the change data feed of the Delta table in `dir` from `version` on, with delta-rs, and compares
/// what it leads to with the table. Answers how many changes there were of each kind, as JSON.
pub fn follow_feed(dir: &Path, key: &str, version: u64) -> Result<String> {
    let mut command = check_script("feed.py");
    command.arg(dir).args([key, "--from", &version.to_string()]);
    let output = output_of(&mut command)?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!(
            "feed.py ended with {}\n{stdout}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(stdout.into_owned())
}

/// Writes to the Delta table in `dir` as another program would, with delta-rs: `what` and its arguments
/// are those of `foreign.py`. Answers whether that writer took the table.
pub fn write_as_another(dir: &Path, what: &[&str]) -> Result<bool> {
    let mut command = check_script("foreign.py");
    command.arg(dir).args(what);
    let output = output_of(&mut command)?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    match output.status.code() {
        Some(0) => Ok(true),
        Some(3) => Ok(false),
        _ => bail!(
            "foreign.py {what:?} ended with {}\n{stdout}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}

/// Runs statements in Spark with Delta Lake, one after the other, and answers what each gave: its rows, or
/// an object with its `error`. `tools/spark/sql` fetches what that needs.
pub fn spark(statements: &[String]) -> Result<Vec<Value>> {
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    let file = dir.path().join("statements.sql");
    write_file(&file, &statements.join(";\n"))?;
    let mut command = std::process::Command::new(project_dir().join("tools/spark/sql"));
    let output = output_of(command.arg(&file).arg("--keep-going"))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let answers: Vec<Value> = stdout
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    if answers.len() != statements.len() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("Spark ended with {}\n{stdout}{stderr}", output.status);
    }
    Ok(answers)
}
