//! `alluvium resync`: asks that tables be copied afresh.

use std::path::Path;
use std::process::ExitCode;

use alluvium_change::{Error, Result, TableId, code};
use alluvium_pipeline::{LakeLock, project, requests, status};

use crate::args::Resync;
use crate::print;

/// Leaves the requests for the running pipeline, or for the next run.
pub fn resync(config: &Path, resync: &Resync) -> Result<ExitCode> {
    let project = project::load(config)?;
    let state_dir = project.state_dir();
    let known = status::load(&state_dir)
        .map(|status| status.tables)
        .unwrap_or_default();
    let wanted: Vec<String> = if resync.all {
        known.keys().cloned().collect()
    } else {
        let qualified = |name: &String| {
            if name.contains('.') {
                name.clone()
            } else {
                format!("public.{name}")
            }
        };
        resync.tables.iter().map(qualified).collect()
    };
    if wanted.is_empty() {
        return Err(Error::new(&code::USAGE, "this project has no tables yet")
            .with_hint("they are copied by: alluvium run"));
    }
    for name in &wanted {
        if !known.is_empty() && !known.contains_key(name) {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            return Err(
                Error::new(&code::USAGE, format!("no table \"{name}\" is followed"))
                    .with_hint(format!("followed are: {}", names.join(", "))),
            );
        }
    }
    for name in &wanted {
        let Some((schema, table)) = name.split_once('.') else {
            continue;
        };
        requests::ask_resync(&state_dir, &TableId::new(schema, table))?;
    }
    let when = if LakeLock::holder(&project.lake_path).is_some() {
        "the running pipeline copies them now; see: alluvium status"
    } else {
        "they are copied by the next: alluvium run"
    };
    print::write(&format!(
        "{} to be copied afresh: {when}\n",
        wanted.join(", ")
    ))?;
    Ok(ExitCode::SUCCESS)
}
