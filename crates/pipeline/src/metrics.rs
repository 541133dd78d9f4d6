//! Every metric: its name, type, unit, labels and help, in one place, and the text Prometheus reads.
//!
//! After the status board, of which a scrape is a picture. `docs/reference/metrics.md` is made from the
//! list below by `cargo xtask docs`; `cargo xtask check` fails when it is stale.
//!
//! Invariant: what is rendered is what the list names, each family once, with HELP and TYPE before its
//! samples. Labels are bounded by the tables that are followed.

use std::fmt::Write as _;

use crate::status::{MemoryStatus, Part, Phase, PipelineStatus, TableStatus};

/// How Prometheus takes the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only grows, from 0 at the start of a run.
    Counter,
}

impl Kind {
    /// As in a `# TYPE` line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
        }
    }
}

/// A value, written exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Whole(u64),
    Millis(u64),
    Micros(u64),
}

/// What a scrape is a picture of.
struct Scrape<'a> {
    status: &'a PipelineStatus,
    now_micros: i64,
}

/// Where a metric's samples come from. `None` is no sample: not known.
enum Samples {
    Pipeline(fn(&Scrape<'_>) -> Option<Value>),
    /// One for each table, with label `table`.
    Table(fn(&Scrape<'_>, &TableStatus) -> Option<Value>),
    /// One for each table and phase: 1 for the phase it is in.
    Phase,
    /// One for each part of the memory, with label `part`.
    Part(fn(&Part) -> u64),
    /// 1, with labels that say what runs.
    Info,
}

/// One metric.
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// `"bytes"`, `"seconds"`; `""` for a plain number.
    pub unit: &'static str,
    pub labels: &'static [&'static str],
    pub help: &'static str,
    samples: Samples,
}

macro_rules! metrics {
    ($($const:ident $name:literal $kind:ident $unit:literal [$($label:literal),*] $help:literal => $samples:expr;)*) => {
        $(
            #[doc = $help]
            pub const $const: Metric = Metric {
                name: $name, kind: Kind::$kind, unit: $unit, labels: &[$($label),*], help: $help, samples: $samples,
            };
        )*
        /// All metrics, in the order they are rendered.
        pub static ALL: &[&Metric] = &[$(&$const),*];
    };
}

// The head of each entry stands on one line: `cargo xtask docs` reads them.
metrics! {
    PIPELINE_INFO "alluvium_pipeline_info" Gauge "" ["version", "source", "slot"] "Always 1; the labels say what runs."
        => Samples::Info;
    PIPELINE_START_TIME "alluvium_pipeline_start_time_seconds" Gauge "seconds" [] "When this run began, since 1970."
        => Samples::Pipeline(|s| micros(s.status.started_micros));
    PIPELINE_CONNECTED "alluvium_pipeline_connected" Gauge "" [] "Whether the source is followed: 1 or 0."
        => Samples::Pipeline(|s| whole(u64::from(s.status.connected)));

    SOURCE_LAG_BYTES "alluvium_source_lag_bytes" Gauge "bytes" [] "WAL of the server that is not durable in the lake yet."
        => Samples::Pipeline(|s| whole(s.status.lag_bytes()));
    SOURCE_LAG_SECONDS "alluvium_source_lag_seconds" Gauge "seconds" [] "How long there has been WAL that is not durable in the lake: 0 when there is none. Absent until it is known."
        => Samples::Pipeline(|s| millis(s.status.source_lag_ms(s.now_micros)));
    COMMIT_LAG "alluvium_commit_lag_seconds" Gauge "seconds" [] "Of the newest change in the lake: from its commit at the source to its Delta commit, by both machines' clocks."
        => Samples::Pipeline(|s| millis(s.status.commit_lag_ms()));
    FRESHNESS "alluvium_freshness_seconds" Gauge "seconds" [] "How old a state of the source readers of silver see, at most: of the table that is worst off."
        => Samples::Pipeline(worst_freshness);

    SERVER_POSITION "alluvium_source_server_position_bytes" Gauge "bytes" [] "LSN of the end of the server's WAL, as a number."
        => Samples::Pipeline(|s| whole(s.status.server_lsn.0));
    RECEIVED_POSITION "alluvium_source_received_position_bytes" Gauge "bytes" [] "LSN up to which the stream was received."
        => Samples::Pipeline(|s| whole(s.status.received_lsn.0));
    ACKNOWLEDGED_POSITION "alluvium_source_acknowledged_position_bytes" Gauge "bytes" [] "LSN up to which everything is durable in the lake. The server is told so, unless a prepared transaction waits for its decision."
        => Samples::Pipeline(|s| whole(s.status.acknowledged_lsn.0));

    STREAM_RECEIVED "alluvium_stream_received_bytes_total" Counter "bytes" [] "Bytes of pgoutput messages received."
        => Samples::Pipeline(|s| whole(s.status.stream.received_bytes));
    STREAM_TRANSACTIONS "alluvium_stream_transactions_total" Counter "" [] "Transactions received whole."
        => Samples::Pipeline(|s| whole(s.status.stream.transactions));
    STREAM_CHANGES "alluvium_stream_changes_total" Counter "" [] "Changed rows handed over to the tables."
        => Samples::Pipeline(|s| whole(s.status.stream.changes));
    STREAM_OPEN_CUTS "alluvium_stream_open_cuts" Gauge "" [] "Cuts of the stream on their way to the lake; at most 2."
        => Samples::Pipeline(|s| whole(s.status.stream.open_cuts));
    STREAM_QUEUED_COMMANDS "alluvium_stream_queued_commands" Gauge "" [] "Commands that wait for tables' owners, all together."
        => Samples::Pipeline(|s| whole(s.status.stream.queued_commands));
    STREAM_RUNNING_TRANSACTIONS "alluvium_stream_running_transactions" Gauge "" [] "Transactions that the server sends while they run, and that have not ended."
        => Samples::Pipeline(|s| whole(s.status.stream.running_transactions));
    STREAM_PREPARED_TRANSACTIONS "alluvium_stream_prepared_transactions" Gauge "" [] "Prepared transactions, received and kept, that are neither committed nor rolled back: only with two_phase."
        => Samples::Pipeline(|s| whole(s.status.stream.prepared_transactions));
    SPILL_DISK "alluvium_spill_disk_bytes" Gauge "bytes" [] "What running and prepared transactions hold in spill files."
        => Samples::Pipeline(|s| whole(s.status.stream.spilled_bytes));
    SPILL_WRITTEN "alluvium_spill_written_bytes_total" Counter "bytes" [] "All that was written to spill files."
        => Samples::Pipeline(|s| whole(s.status.stream.spilled_total_bytes));

    MEMORY_BUDGET "alluvium_memory_budget_bytes" Gauge "bytes" [] "The budget [limits] memory."
        => Samples::Pipeline(|s| whole(s.status.memory.budget_bytes));
    MEMORY_RESIDENT "alluvium_memory_resident_bytes" Gauge "bytes" [] "Resident memory of the whole process, by the system's count."
        => Samples::Pipeline(|s| s.status.memory.resident_bytes.map(Value::Whole));
    MEMORY_BYTES "alluvium_memory_bytes" Gauge "bytes" ["part"] "Memory held by a part: rows decoded, rows handed_over to tables, running transactions (streamed), key and row indexes (index), rows kept for queries until they are committed (recent)."
        => Samples::Part(|part| part.bytes);
    MEMORY_LIMIT "alluvium_memory_limit_bytes" Gauge "bytes" ["part"] "What that part may hold. Row indexes of tables without a key are not limited."
        => Samples::Part(|part| part.limit_bytes);

    SQL_QUERIES "alluvium_sql_queries_total" Counter "" [] "Queries that were taken up, over HTTP and by PostgreSQL's protocol."
        => Samples::Pipeline(|s| whole(s.status.http.queries));
    SQL_RUNNING "alluvium_sql_running_queries" Gauge "" [] "Those that run now, cursors that are open among them; at most [serve] sql_concurrency."
        => Samples::Pipeline(|s| whole(s.status.http.running_queries));
    SQL_WAITING "alluvium_sql_waiting_queries" Gauge "" [] "Those that wait for their turn."
        => Samples::Pipeline(|s| whole(s.status.http.waiting_queries));
    SQL_CONNECTIONS "alluvium_sql_connections" Gauge "" [] "Clients connected by PostgreSQL's protocol; at most [serve.pg] max_connections."
        => Samples::Pipeline(|s| whole(s.status.pg.connections));

    TABLE_PHASE "alluvium_table_phase" Gauge "" ["table", "phase"] "1 for the phase the table is in, 0 for the others."
        => Samples::Phase;
    TABLE_FRESHNESS "alluvium_table_freshness_seconds" Gauge "seconds" ["table"] "How old a state of the source readers of the table in silver see, at most. Absent until the table was live."
        => Samples::Table(|s, table| millis(s.status.freshness_ms(table, s.now_micros)));
    TABLE_COMMIT_LAG "alluvium_table_commit_lag_seconds" Gauge "seconds" ["table"] "Of the newest change: from its commit at the source to its Delta commit. Absent before the first."
        => Samples::Table(|_, table| millis(table.commit_lag_ms));
    TABLE_ROWS "alluvium_table_rows" Gauge "" ["table"] "Rows in silver."
        => Samples::Table(|_, table| whole(table.silver_rows));
    TABLE_SILVER_VERSION "alluvium_table_silver_version" Gauge "" ["table"] "Delta version of silver."
        => Samples::Table(|_, table| whole(table.silver_version));
    TABLE_SILVER_POSITION "alluvium_table_silver_position_bytes" Gauge "bytes" ["table"] "LSN up to which every transaction is in silver."
        => Samples::Table(|_, table| whole(table.silver_position.0));
    TABLE_BRONZE_POSITION "alluvium_table_bronze_position_bytes" Gauge "bytes" ["table"] "LSN up to which every transaction is in bronze."
        => Samples::Table(|_, table| whole(table.bronze_position.0));
    TABLE_CHANGES "alluvium_table_changes_total" Counter "" ["table"] "Changed rows that are in bronze, and in silver while the table is live."
        => Samples::Table(|_, table| whole(table.changes));
    TABLE_CONFLICTS "alluvium_table_conflicts_total" Counter "" ["table"] "Changes that did not fit and were repaired (on_conflict = \"repair\")."
        => Samples::Table(|_, table| whole(table.conflicts));
    TABLE_COMMITS "alluvium_table_commits_total" Counter "" ["table"] "Cuts that were made durable in the table."
        => Samples::Table(|_, table| whole(table.commits));
    TABLE_COMMIT_SECONDS "alluvium_table_commit_seconds_total" Counter "seconds" ["table"] "What committing them took, together: once the rows were staged, until they were durable. Divided by commits: the mean."
        => Samples::Table(|_, table| Some(Value::Micros(table.commit_micros_total)));
    TABLE_LAST_COMMIT "alluvium_table_last_commit_seconds" Gauge "seconds" ["table"] "What the last one took. Absent before the first."
        => Samples::Table(|_, table| table.last_commit_micros.map(Value::Micros));
    TABLE_QUEUED_COMMANDS "alluvium_table_queued_commands" Gauge "" ["table"] "Commands that wait for the table's owner; at most 16."
        => Samples::Table(|_, table| whole(table.queued_commands));
    TABLE_INDEX_BYTES "alluvium_table_index_bytes" Gauge "bytes" ["table"] "Memory of the key or row index."
        => Samples::Table(|_, table| whole(table.index_bytes));
    TABLE_INDEX_DISK "alluvium_table_index_disk_bytes" Gauge "bytes" ["table"] "Disk space of a key index that is too large for its part of the memory."
        => Samples::Table(|_, table| whole(table.index_disk_bytes));
    TABLE_SILVER_FILES "alluvium_table_silver_files" Gauge "" ["table"] "Data files of silver."
        => Samples::Table(|_, table| whole(table.silver_files));
    TABLE_BRONZE_FILES "alluvium_table_bronze_files" Gauge "" ["table"] "Data files of bronze."
        => Samples::Table(|_, table| whole(table.bronze_files));
    TABLE_COMPACTIONS "alluvium_table_compactions_total" Counter "" ["table"] "Commits that wrote files anew as one, of silver and bronze."
        => Samples::Table(|_, table| whole(table.compactions));
    TABLE_REMOVED_FILES "alluvium_table_removed_files_total" Counter "" ["table"] "Data files, deletion vectors and files of the log that were removed because no version needs them."
        => Samples::Table(|_, table| whole(table.removed_files));
    TABLE_REMOVED_BYTES "alluvium_table_removed_bytes_total" Counter "bytes" ["table"] "What they took on disk."
        => Samples::Table(|_, table| whole(table.removed_bytes));
    TABLE_COPIED_ROWS "alluvium_table_copied_rows_total" Counter "" ["table"] "Rows copied in this run; from 0 again when a copy begins afresh."
        => Samples::Table(|_, table| whole(table.copied_rows));
    TABLE_COPIED_BYTES "alluvium_table_copied_bytes_total" Counter "bytes" ["table"] "Bytes of COPY data of these rows."
        => Samples::Table(|_, table| whole(table.copied_bytes));
    TABLE_ESTIMATED_ROWS "alluvium_table_estimated_rows" Gauge "" ["table"] "The planner's estimate of all rows to copy; 0 when none was copied in this run."
        => Samples::Table(|_, table| whole(table.estimated_rows));
}

fn whole(value: u64) -> Option<Value> {
    Some(Value::Whole(value))
}

fn millis(value: Option<u64>) -> Option<Value> {
    value.map(Value::Millis)
}

fn micros(value: i64) -> Option<Value> {
    u64::try_from(value).ok().map(Value::Micros)
}

fn worst_freshness(scrape: &Scrape<'_>) -> Option<Value> {
    let tables = scrape.status.tables.values();
    let known = tables.filter_map(|table| scrape.status.freshness_ms(table, scrape.now_micros));
    millis(known.max())
}

/// The parts of the memory, by the names they have as labels.
fn parts(memory: &MemoryStatus) -> [(&'static str, &Part); 5] {
    [
        ("decoded", &memory.decoded),
        ("handed_over", &memory.handed_over),
        ("streamed", &memory.streamed),
        ("index", &memory.index),
        ("recent", &memory.recent),
    ]
}

impl Phase {
    /// All, with the names they have as labels and in JSON.
    pub const NAMED: [(Self, &'static str); 5] = [
        (Self::Waiting, "waiting"),
        (Self::Copying, "copying"),
        (Self::CatchingUp, "catching_up"),
        (Self::Live, "live"),
        (Self::Stopped, "stopped"),
    ];
}

/// The media type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The status as Prometheus reads it, text format 0.0.4.
#[must_use]
pub fn render(status: &PipelineStatus, now_micros: i64) -> String {
    let scrape = Scrape { status, now_micros };
    let mut text = String::with_capacity(8192 + status.tables.len() * 2048);
    for metric in ALL {
        let (name, kind) = (metric.name, metric.kind.name());
        text.push_str("# HELP ");
        text.push_str(name);
        text.push(' ');
        escape(metric.help, false, &mut text);
        // Writing to a string cannot fail.
        let _ = write!(text, "\n# TYPE {name} {kind}\n");
        metric.render(&scrape, &mut text);
    }
    text
}

impl Metric {
    fn render(&self, scrape: &Scrape<'_>, text: &mut String) {
        let status = scrape.status;
        match &self.samples {
            Samples::Pipeline(value) => {
                if let Some(value) = value(scrape) {
                    self.sample(&[], value, text);
                }
            }
            Samples::Table(value) => {
                for (name, table) in &status.tables {
                    if let Some(value) = value(scrape, table) {
                        self.sample(&[name], value, text);
                    }
                }
            }
            Samples::Phase => {
                for (name, table) in &status.tables {
                    for (phase, phase_name) in Phase::NAMED {
                        let value = Value::Whole(u64::from(phase == table.phase));
                        self.sample(&[name, phase_name], value, text);
                    }
                }
            }
            Samples::Part(value) => {
                for (name, part) in parts(&status.memory) {
                    self.sample(&[name], Value::Whole(value(part)), text);
                }
            }
            Samples::Info => {
                let labels = [env!("CARGO_PKG_VERSION"), &status.source, &status.slot];
                self.sample(&labels, Value::Whole(1), text);
            }
        }
    }

    /// One line; `labels` are the values of [`Self::labels`].
    fn sample(&self, labels: &[&str], value: Value, text: &mut String) {
        text.push_str(self.name);
        for (at, (label, value)) in self.labels.iter().zip(labels).enumerate() {
            text.push(if at == 0 { '{' } else { ',' });
            text.push_str(label);
            text.push_str("=\"");
            escape(value, true, text);
            text.push('"');
        }
        text.push_str(if labels.is_empty() { " " } else { "} " });
        // Writing to a string cannot fail.
        let _ = match value {
            Value::Whole(value) => writeln!(text, "{value}"),
            Value::Millis(value) => writeln!(text, "{}.{:03}", value / 1_000, value % 1_000),
            Value::Micros(value) => {
                writeln!(text, "{}.{:06}", value / 1_000_000, value % 1_000_000)
            }
        };
    }
}

/// As the format wants text: a line feed would end the line, a quote the label.
fn escape(value: &str, in_label: bool, text: &mut String) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if in_label => text.push_str("\\\""),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests;
