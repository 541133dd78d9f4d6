//! `alluvium optimize`, `vacuum`, `checkpoint`: care of tables by hand. The pipeline that runs does it,
//! as it owns the tables; where none runs, it is done here.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use alluvium_change::{Error, Result, TableId, code};
use alluvium_lake::read::{TableName, list_tables, open_table, source_table};
use alluvium_lake::{RestingTable, app_id, look_for_unneeded};
use alluvium_pipeline::project::Project;
use alluvium_pipeline::requests::{CareKind, ask_care};
use alluvium_pipeline::{LakeLock, project, run};
use serde::Serialize;

use crate::args::{Output, Vacuum};
use crate::print::{self, Grid};

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A table of the lake, and the source's table that it is of.
struct Chosen {
    name: TableName,
    source: String,
}

impl Chosen {
    fn shown(&self) -> String {
        format!("{}.{}", self.name.layer, self.name.name)
    }
}

/// What is to be cared for, and by whom.
struct Work {
    project: Project,
    tables: Vec<Chosen>,
}

impl Work {
    fn new(config: &Path, wanted: &[String]) -> Result<Self> {
        let project = project::load(config)?;
        let qualified = |name: &String| match name.contains('.') {
            true => name.clone(),
            false => format!("public.{name}"),
        };
        let wanted: Vec<String> = wanted.iter().map(qualified).collect();
        let mut tables = Vec::new();
        for name in list_tables(&project.lake_path)? {
            let Some(source) = source_table(&name.dir)? else {
                continue;
            };
            if wanted.is_empty() || wanted.contains(&source) {
                tables.push(Chosen { name, source });
            }
        }
        let is_there = |name: &&String| tables.iter().any(|table| table.source == **name);
        if let Some(missing) = wanted.iter().find(|name| !is_there(name)) {
            return Err(
                Error::new(&code::USAGE, format!("the lake has no table \"{missing}\""))
                    .with_hint("see them with: alluvium tables"),
            );
        }
        Ok(Self { project, tables })
    }

    fn open(&self, table: &Chosen) -> Result<RestingTable> {
        let Project {
            pipeline, source, ..
        } = &self.project;
        let app_id = |table: &str| app_id(pipeline, &source.name, table);
        RestingTable::open(&table.name, &run::lake_settings(&self.project), &app_id)
    }

    /// Lets a running pipeline do it, and waits until it is done; otherwise does it by `work`.
    fn carry_out(
        &self,
        kind: CareKind,
        mut work: impl FnMut(&mut RestingTable) -> Result<()>,
    ) -> Result<()> {
        if LakeLock::holder(&self.project.lake_path).is_some() {
            return self.ask(kind);
        }
        let _lock = LakeLock::take(&self.project.lake_path, &self.project.file)?;
        // What is the matter with one table is told after the others were cared for.
        let mut done = Ok(());
        for table in &self.tables {
            let cared = self.open(table).and_then(|mut table| work(&mut table));
            done = done.and(cared);
        }
        done
    }

    fn ask(&self, kind: CareKind) -> Result<()> {
        let mut asked: Vec<PathBuf> = Vec::new();
        for table in &self.tables {
            if let Some((schema, name)) = table.source.split_once('.') {
                let id = TableId::new(schema, name);
                asked.push(ask_care(&self.project.state_dir(), kind, &id)?);
            }
        }
        while asked.iter().any(|file| file.exists()) {
            if LakeLock::holder(&self.project.lake_path).is_none() {
                return Err(Error::new(
                    &code::USAGE,
                    "the running pipeline ended before it was done",
                )
                .with_hint("the next run goes on with it: alluvium run"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

/// A list of what was done, under its column titles.
struct Report<T> {
    header: &'static [&'static str],
    rows: Vec<T>,
    cells: fn(&T) -> Vec<String>,
    /// Said after the list.
    note: String,
}

impl<T: Serialize> print::Rows for Report<T> {
    type Row = T;

    fn rows(&self) -> &[T] {
        &self.rows
    }
}

impl<T> fmt::Display for Report<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut grid = Grid::new(self.header);
        for row in &self.rows {
            grid.push((self.cells)(row));
        }
        write!(f, "{grid}{}", self.note)
    }
}

#[derive(Serialize)]
struct Optimized {
    table: String,
    files_before: usize,
    files_after: usize,
    bytes_before: u64,
    bytes_after: u64,
}

/// Files and bytes of a table.
fn size(table: &Chosen) -> Result<(usize, u64)> {
    let version = open_table(&table.name.dir, None)?;
    let bytes = version.files.iter().map(|file| file.size_bytes).sum();
    Ok((version.files.len(), bytes))
}

/// Writes files anew as one.
pub(crate) fn optimize(config: &Path, tables: &[String], output: Output) -> Result<ExitCode> {
    let work = Work::new(config, tables)?;
    let before = work.tables.iter().map(size).collect::<Result<Vec<_>>>()?;
    work.carry_out(CareKind::Optimize, |table| table.optimize())?;
    let mut rows = Vec::new();
    for (table, (files_before, bytes_before)) in work.tables.iter().zip(before) {
        let (files_after, bytes_after) = size(table)?;
        rows.push(Optimized {
            table: table.shown(),
            files_before,
            files_after,
            bytes_before,
            bytes_after,
        });
    }
    let report = Report {
        header: &["table", "files", "now", "size", "now"],
        rows,
        cells: |row: &Optimized| {
            vec![
                row.table.clone(),
                print::count(row.files_before as u64),
                print::count(row.files_after as u64),
                print::bytes(row.bytes_before),
                print::bytes(row.bytes_after),
            ]
        },
        note: String::new(),
    };
    print::rows(&report, output)?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Unneeded {
    table: String,
    data_files: usize,
    data_bytes: u64,
    log_files: usize,
    log_bytes: u64,
    /// Older versions that stay readable, beside all of the last time.
    old_versions: String,
}

/// Shows, or removes, what no version needs.
pub(crate) fn vacuum(config: &Path, vacuum: &Vacuum, output: Output) -> Result<ExitCode> {
    let work = Work::new(config, &vacuum.tables)?;
    let settings = run::lake_settings(&work.project);
    let mut rows = Vec::new();
    let mut unneeded: Vec<PathBuf> = Vec::new();
    for table in &work.tables {
        let found = look_for_unneeded(&table.name.dir, &settings)?;
        let old: Vec<String> = found.old_versions.iter().map(u64::to_string).collect();
        rows.push(Unneeded {
            table: table.shown(),
            data_files: found.data_files.len(),
            data_bytes: found.data_bytes,
            log_files: found.log_files.len(),
            log_bytes: found.log_bytes,
            old_versions: old.join(" "),
        });
        unneeded.extend(found.data_files);
        unneeded.extend(found.log_files);
    }
    let note = if unneeded.is_empty() {
        "there is nothing to remove\n".to_owned()
    } else if vacuum.delete {
        work.carry_out(CareKind::Vacuum, |table| {
            table.cleaning_job().run().map(|_| ())
        })?;
        match unneeded.iter().filter(|path| path.exists()).count() {
            0 => "removed\n".to_owned(),
            left => format!("{left} files are still there: the pipeline's log says why\n"),
        }
    } else {
        "nothing was removed; to remove them: alluvium vacuum --delete\n".to_owned()
    };
    let report = Report {
        header: &[
            "table",
            "files",
            "size",
            "log files",
            "size",
            "old versions that stay",
        ],
        rows,
        cells: |row: &Unneeded| {
            vec![
                row.table.clone(),
                print::count(row.data_files as u64),
                print::bytes(row.data_bytes),
                print::count(row.log_files as u64),
                print::bytes(row.log_bytes),
                row.old_versions.clone(),
            ]
        },
        note,
    };
    print::rows(&report, output)?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Checkpointed {
    table: String,
    /// Of the newest there is.
    version: Option<u64>,
}

/// Writes Delta checkpoints.
pub(crate) fn checkpoint(config: &Path, tables: &[String], output: Output) -> Result<ExitCode> {
    let work = Work::new(config, tables)?;
    work.carry_out(CareKind::Checkpoint, |table| table.checkpoint())?;
    let mut rows = Vec::new();
    for table in &work.tables {
        rows.push(Checkpointed {
            table: table.shown(),
            version: open_table(&table.name.dir, None)?.checkpoint,
        });
    }
    let report = Report {
        header: &["table", "version"],
        rows,
        cells: |row: &Checkpointed| {
            let version = row.version.map(|version| version.to_string());
            vec![
                row.table.clone(),
                version.unwrap_or_else(|| "none".to_owned()),
            ]
        },
        note: String::new(),
    };
    print::rows(&report, output)?;
    Ok(ExitCode::SUCCESS)
}
