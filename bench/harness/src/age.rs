//! Ages one silver table: small commits, one after the other, with the care that a pipeline gives it, and
//! looks at it now and then as a new reader would.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alluvium_change::{ChangeBatch, Column, Identity, Lsn, Op, TableId, TableSchema};
use alluvium_lake::{
    Cleaned, CompactionSettings, Lake, LakeSettings, Owner, RetentionSettings, Silver,
    SilverSettings, read,
};
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

pub(crate) struct Options {
    pub(crate) lake: PathBuf,
    pub(crate) rows: i64,
    pub(crate) commits: u64,
    /// Of rows all over the table, in each commit.
    pub(crate) changes: i64,
    /// How long each version can be read.
    pub(crate) keep: Duration,
    pub(crate) look_every: u64,
}

/// Each key is met once in so many changes as there are rows.
const STEP: i64 = 7_368_787;
/// Commits between two looks whether files should become one.
const COMPACT_EVERY: u64 = 50;

struct Table {
    schema: Arc<TableSchema>,
    silver: Silver,
    cleaned: Option<Cleaned>,
    last_cleaned: Instant,
}

/// Answers what was seen at each look.
pub(crate) fn age(options: &Options) -> Result<Value> {
    let mut table = make(options)?;
    let mut looks = Vec::new();
    let since = Instant::now();
    for commit in 1..=options.commits {
        change(&mut table, options, commit)?;
        care(&mut table, options, commit)?;
        if commit.is_multiple_of(options.look_every) {
            let mut look = look(table.silver.dir())?;
            look["commits"] = commit.into();
            look["seconds"] = since.elapsed().as_secs_f64().into();
            looks.push(look);
        }
    }
    let rows = read::open_table(table.silver.dir(), None)?.num_rows();
    if Ok(rows) != u64::try_from(options.rows) {
        return Err(format!("{rows} rows in the end").into());
    }
    Ok(json!(looks))
}

fn make(options: &Options) -> Result<Table> {
    let settings = LakeSettings {
        fsync: false,
        compaction: CompactionSettings::default(),
        retention: RetentionSettings {
            all_versions: options.keep,
            removed_files: options.keep,
            old_versions: options.keep,
            old_versions_every: options.keep,
        },
        ..LakeSettings::default()
    };
    let column = |name: &str, data_type: DataType| Column {
        name: name.to_owned(),
        source_type: data_type.to_string(),
        data_type,
    };
    let columns = vec![
        column("id", DataType::Int64),
        column("n", DataType::Int64),
        column("note", DataType::Utf8),
    ];
    let id = TableId::new("public", "aged");
    let schema = TableSchema::new(id.clone(), 1, columns, Identity::Key(vec![0]));
    let owner = Owner {
        pipeline: "bench".into(),
        source: "bench".into(),
        system_identifier: "1".into(),
        name: id.lake_name(),
        table: id,
    };
    let lake = Lake::open(&options.lake, settings)?;
    let mut silver = Silver::open(&lake, &owner, &schema, SilverSettings::default())?;
    silver.begin_copy(Lsn(1))?;
    let all: Vec<i64> = (0..options.rows).collect();
    for ids in all.chunks(8192) {
        silver.stage_copied(&rows(&schema, ids, 0)?, Lsn(1))?;
    }
    silver.commit_copied(Lsn(1), 1, u32::MAX)?;
    silver.finish_copy()?;
    Ok(Table {
        schema,
        silver,
        cleaned: None,
        last_cleaned: Instant::now(),
    })
}

fn rows(schema: &TableSchema, ids: &[i64], n: i64) -> Result<RecordBatch> {
    let notes = ids.iter().map(|id| format!("note {id} of {n}"));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(ids.to_vec())),
        Arc::new(Int64Array::from(vec![n; ids.len()])),
        Arc::new(StringArray::from_iter_values(notes)),
    ];
    Ok(RecordBatch::try_new(Arc::clone(schema.arrow()), columns)?)
}

fn change(table: &mut Table, options: &Options, commit: u64) -> Result<()> {
    let nth = i64::try_from(commit)?;
    let first = nth * options.changes;
    let ids = (first..first + options.changes).map(|n| n % options.rows * STEP % options.rows);
    let mut ids: Vec<i64> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    let count = ids.len();
    let lsn = Lsn(100 + commit);
    let batch = ChangeBatch {
        rows: rows(&table.schema, &ids, nth)?,
        table: Arc::clone(&table.schema),
        ops: vec![Op::Update; count],
        commit_lsn: vec![lsn; count],
        event_serial: (0..).take(count).collect(),
        xid: vec![1; count],
        commit_time_micros: vec![nth; count],
        old: None,
        unchanged: Vec::new(),
    };
    table.silver.apply(&batch)?;
    table.silver.commit(lsn)?;
    Ok(())
}

/// All that a pipeline does beside the stream, on this thread.
fn care(table: &mut Table, options: &Options, commit: u64) -> Result<()> {
    let silver = &mut table.silver;
    if let Some(job) = silver.take_checkpoint_job(false) {
        silver.adopt_checkpoint(job.run())?;
    }
    if commit.is_multiple_of(COMPACT_EVERY) {
        while let Some(job) = silver.take_compaction_job(&CompactionSettings::default())?
            && let Some(done) = job.run(&|_| true)?
        {
            silver.adopt_compaction(done)?;
        }
    }
    if table.last_cleaned.elapsed() > options.keep / 6 {
        table.cleaned = Some(silver.cleaning_job(table.cleaned.take()).run()?);
        table.last_cleaned = Instant::now();
    }
    Ok(())
}

/// Files, bytes, what opening it takes, and memory.
fn look(dir: &Path) -> Result<Value> {
    let count = |dir: &Path| -> Result<(u64, u64)> {
        let (mut files, mut bytes) = (0, 0);
        for entry in std::fs::read_dir(dir)? {
            let metadata = entry?.metadata()?;
            if metadata.is_file() {
                files += 1;
                bytes += metadata.len();
            }
        }
        Ok((files, bytes))
    };
    let (files, bytes) = count(dir)?;
    let (log_files, log_bytes) = count(&dir.join("_delta_log"))?;
    let mut took = Vec::new();
    let mut live_files = 0;
    for _ in 0..5 {
        let since = Instant::now();
        live_files = read::open_table(dir, None)?.files.len();
        took.push(since.elapsed());
    }
    took.sort_unstable();
    let open = took.get(2).copied().unwrap_or_default();
    Ok(json!({
        "files": files,
        "bytes": bytes,
        "log_files": log_files,
        "log_bytes": log_bytes,
        "live_files": live_files,
        "open_ms": open.as_secs_f64() * 1000.0,
        "anon_mib": anonymous_mib(),
    }))
}

fn anonymous_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}
