//! The project file `alluvium.toml`: what to read, where to write, with which limits.
//!
//! Stands before everything: the other modules see only [`Project`], whose values are checked,
//! whose paths are absolute and whose `${VARIABLES}` are filled in.

mod load;
mod maintain;
mod names;
mod serve;
mod template;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use alluvium_lake::Compression;
use alluvium_source_postgres::replication::Protocol;
use alluvium_source_postgres::tuples::Tuples;
use alluvium_source_postgres::type_map::OnInvalid;
use serde::Deserialize;

pub use load::{load, parse};
pub use maintain::MaintainSettings;
pub use names::assign_names;
pub use serve::{HttpSettings, PgSettings, ServeSettings, SqlSettings};
pub use template::{InitAnswers, render as render_template};

/// The file's usual name.
pub const FILE_NAME: &str = "alluvium.toml";

/// A checked project.
#[derive(Debug, Clone)]
pub struct Project {
    /// Directory of the project file; `.alluvium/` lies in it.
    pub dir: PathBuf,
    pub file: PathBuf,
    /// First part of every application id in the lake.
    pub pipeline: String,
    pub source: SourceSettings,
    pub lake_path: PathBuf,
    /// Of data files written from now on.
    pub compression: Compression,
    pub limits: Limits,
    pub commit: CommitSettings,
    pub maintain: MaintainSettings,
    /// The servers inside `alluvium run`.
    pub serve: ServeSettings,
    /// By `schema.table`.
    pub tables: BTreeMap<String, TableSettings>,
}

impl Project {
    /// State that can be rebuilt: locks, requests, the status of the running pipeline.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join(".alluvium")
    }
}

/// The file as written: unknown keys are refused by serde, which names the valid ones.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProjectFile {
    #[serde(default = "default_pipeline")]
    pipeline: String,
    source: BTreeMap<String, SourceFile>,
    lake: LakeFile,
    #[serde(default)]
    limits: LimitsFile,
    #[serde(default)]
    commit: CommitSettings,
    #[serde(default)]
    maintain: maintain::MaintainFile,
    #[serde(default)]
    serve: serve::ServeFile,
    #[serde(default)]
    tables: BTreeMap<String, TableSettings>,
}

fn default_pipeline() -> String {
    "default".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceFile {
    #[serde(rename = "type")]
    kind: String,
    url: String,
    password_file: Option<PathBuf>,
    #[serde(default = "all_public")]
    tables: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
    publication: Option<String>,
    slot: Option<String>,
    protocol: Option<ProtocolFile>,
    tuples: Option<String>,
    #[serde(default)]
    two_phase: bool,
}

/// `"auto"`, or a number.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ProtocolFile {
    Version(i64),
    Word(String),
}

fn all_public() -> Vec<String> {
    vec!["public.*".to_owned()]
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LakeFile {
    path: String,
    compression: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsFile {
    memory: String,
    index_memory: Option<String>,
    copy_workers: u32,
}

impl Default for LimitsFile {
    fn default() -> Self {
        Self {
            memory: "1GiB".to_owned(),
            index_memory: None,
            copy_workers: 2,
        }
    }
}

/// A PostgreSQL database.
#[derive(Clone)]
pub struct SourceSettings {
    pub name: String,
    /// May hold a password: never printed.
    pub url: String,
    pub password_file: Option<PathBuf>,
    pub tables: Vec<String>,
    pub exclude: Vec<String>,
    pub publication: String,
    pub slot: String,
    pub protocol: Protocol,
    pub tuples: Tuples,
    /// Prepared transactions are received when they are prepared.
    pub two_phase: bool,
}

impl std::fmt::Debug for SourceSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceSettings")
            .field("name", &self.name)
            .field("tables", &self.tables)
            .field("slot", &self.slot)
            .finish_non_exhaustive()
    }
}

/// How much the pipeline may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Changes, copied rows and files being written, together.
    pub memory_bytes: u64,
    /// Key indexes of tables with a key, together; beyond it they are on disk.
    pub index_memory_bytes: u64,
    /// Connections that copy at the same time.
    pub copy_workers: u32,
}

/// How often changes are committed to the lake.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CommitSettings {
    /// Shortest time between two commits, in milliseconds.
    pub min_interval_ms: u64,
    /// Longest time a change waits for its commit, in milliseconds.
    pub max_interval_ms: u64,
    /// Commits of a table between two Delta checkpoints.
    pub delta_checkpoint_every_commits: u64,
}

impl Default for CommitSettings {
    fn default() -> Self {
        Self {
            min_interval_ms: 100,
            max_interval_ms: 5_000,
            delta_checkpoint_every_commits: 100,
        }
    }
}

/// What is special about one table.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TableSettings {
    /// Another name in the lake.
    pub name: Option<String>,
    pub key: Vec<String>,
    pub columns: Vec<String>,
    pub exclude_columns: Vec<String>,
    pub metadata_columns: Vec<String>,
    pub on_conflict: OnConflict,
    pub merge_mode: MergeMode,
    /// How often a table with [`MergeMode::CopyOnWrite`] is committed.
    #[serde(deserialize_with = "maintain::duration")]
    pub commit_every: Option<Duration>,
    pub change_data_feed: bool,
    pub cluster_by: Option<ClusterBy>,
    /// For all columns that do not say otherwise.
    pub on_invalid: Option<OnInvalid>,
    pub column: BTreeMap<String, ColumnSettings>,
}

/// In which order rows are where files are written anew.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "cluster_by is \"key\" or a list of columns")]
pub enum ClusterBy {
    Key(Word),
    Columns(Vec<String>),
}

/// The one word that `cluster_by` may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    Key,
}

/// How the lake follows updates and deletes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeMode {
    #[default]
    DeletionVectors,
    CopyOnWrite,
    /// Not at all.
    AppendOnly,
}

/// What is special about one column.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ColumnSettings {
    pub on_invalid: Option<OnInvalid>,
    pub stored_as: Option<String>,
}

/// What to do with a change that does not fit the row the lake holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    #[default]
    Stop,
    Repair,
}
