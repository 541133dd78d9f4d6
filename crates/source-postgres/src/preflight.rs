//! Checks of the source, shared by `doctor` and `run`: what was found, what it means, what mends it.
//!
//! Nothing is changed on the server. A check that cannot be made is a failed one, never a silent
//! gap; all checks run, so one visit to the server mends everything.

mod server;
mod tables;
mod tuples;
mod two_phase;

use alluvium_change::{Code, Error, code};
use serde::{Serialize, Serializer};
use tokio_postgres::Client;

use crate::catalog::{TableSelection, load_tables};
use crate::connect::{self, ConnectOptions};

pub use tuples::check_tuples;
pub use two_phase::check_two_phase;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    Ok,
    /// It works, but somebody should know.
    Warn,
    /// `run` would stop here, or leave a table out.
    Fail,
}

/// One finding.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub status: CheckStatus,
    pub finding: String,
    /// What follows from it.
    pub meaning: String,
    /// SQL or a command.
    pub fix: Option<String>,
    #[serde(serialize_with = "code_id")]
    pub code: Option<&'static Code>,
}

fn code_id<S: Serializer>(code: &Option<&'static Code>, serializer: S) -> Result<S::Ok, S::Error> {
    code.map(|code| code.id).serialize(serializer)
}

impl Check {
    fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self::new(name, CheckStatus::Ok, finding)
    }

    fn warn(name: &'static str, finding: impl Into<String>) -> Self {
        Self::new(name, CheckStatus::Warn, finding)
    }

    fn fail(name: &'static str, code: &'static Code, finding: impl Into<String>) -> Self {
        Self {
            code: Some(code),
            ..Self::new(name, CheckStatus::Fail, finding)
        }
    }

    fn new(name: &'static str, status: CheckStatus, finding: impl Into<String>) -> Self {
        Self {
            name,
            status,
            finding: finding.into(),
            meaning: String::new(),
            fix: None,
            code: None,
        }
    }

    fn meaning(mut self, meaning: impl Into<String>) -> Self {
        self.meaning = meaning.into();
        self
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// A failed check out of an error.
    fn error(name: &'static str, error: &Error) -> Self {
        Self::fail(name, error.code(), error.message())
            .meaning(error.detail().unwrap_or(error.code().title))
            .fix(error.hint())
    }
}

/// Where and what to check.
struct Subject<'a> {
    client: &'a Client,
    options: &'a ConnectOptions,
    version: i32,
    slot: &'a str,
    publication: &'a str,
}

/// Checks the server, the role, the slot, the publication and every wanted table.
pub async fn check_source(
    options: &ConnectOptions,
    selection: &TableSelection,
    slot: &str,
    publication: &str,
) -> Vec<Check> {
    let client = match connect::connect(options).await {
        Ok(client) => client,
        Err(error) => return vec![Check::error("connection", &error)],
    };
    let version = match crate::catalog::server_version(&client).await {
        Ok(version) => version,
        Err(error) => return vec![Check::error("version", &error)],
    };
    let mut checks = vec![
        Check::ok(
            "connection",
            format!("\"{options}\" as \"{}\"", options.user),
        ),
        server::version(version),
    ];
    if checks.iter().any(|check| check.status == CheckStatus::Fail) {
        return checks;
    }
    let subject = Subject {
        client: &client,
        options,
        version,
        slot,
        publication,
    };
    checks.extend(server::check(&subject).await);
    match load_tables(&client, selection).await {
        Ok(found) if found.is_empty() => checks.push(no_tables(selection)),
        Ok(found) => checks.extend(tables::check(&subject, selection, &found).await),
        Err(error) => checks.push(Check::error("tables", &error)),
    }
    checks
}

fn no_tables(selection: &TableSelection) -> Check {
    Check::fail(
        "tables",
        &code::PG_NO_TABLES,
        "no table matches the patterns",
    )
    .meaning(format!(
        "tables = {:?}, exclude = {:?}",
        selection.include, selection.exclude
    ))
    .fix(code::PG_NO_TABLES.hint)
}

/// Bytes for people.
fn bytes_text(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in UNITS {
        if bytes >= size {
            let tenths = bytes.saturating_mul(10) / size;
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}
