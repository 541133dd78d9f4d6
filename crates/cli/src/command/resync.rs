//! `alluvium resync`: asks that tables be copied afresh.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use alluvium_change::{Error, Result, TableId, code};
use alluvium_pipeline::{LakeLock, project, requests, status};
use alluvium_query::check_condition;

use crate::args::Resync;
use crate::print;

/// Leaves the requests for the running pipeline, or for the next run.
pub(crate) fn resync(config: &Path, resync: &Resync) -> Result<ExitCode> {
    let project = project::load(config)?;
    let state_dir = project.state_dir();
    let known = followed_tables(&project);
    let wanted: Vec<String> = if resync.all {
        known.iter().cloned().collect()
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
        if !known.is_empty() && !known.contains(name) {
            let names: Vec<&str> = known.iter().map(String::as_str).collect();
            return Err(
                Error::new(&code::USAGE, format!("no table \"{name}\" is followed"))
                    .with_hint(format!("followed are: {}", names.join(", "))),
            );
        }
    }
    let predicate = resync.predicate.as_deref();
    if let Some(predicate) = predicate {
        check_condition(predicate)?;
    }
    for name in &wanted {
        let Some((schema, table)) = name.split_once('.') else {
            continue;
        };
        requests::ask_resync(&state_dir, &TableId::new(schema, table), predicate)?;
    }
    let when = if LakeLock::holder(&project.lake_path).is_some() {
        "by the running pipeline, now; see: alluvium status"
    } else {
        "by the next: alluvium run"
    };
    let what = match predicate {
        None => "copied afresh".to_owned(),
        Some(predicate) => format!("compared where {predicate}"),
    };
    print::write(&format!("{} to be {what}, {when}\n", wanted.join(", ")))?;
    Ok(ExitCode::SUCCESS)
}

/// Tables of the last run, and those of the lake.
fn followed_tables(project: &project::Project) -> BTreeSet<String> {
    let status = status::load(&project.state_dir()).unwrap_or_default();
    let mut tables: BTreeSet<String> = status.tables.into_keys().collect();
    // A damaged table cannot be listed, and is named by the last run's status.
    let lake = alluvium_query::tables::list(&project.lake_path).unwrap_or_default();
    tables.extend(lake.into_iter().filter_map(|table| table.source_table));
    tables
}
