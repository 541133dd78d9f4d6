//! The project file that `alluvium init` writes: every setting, with its default and its meaning.

/// What `init` was told.
#[derive(Debug, Clone)]
pub struct InitAnswers {
    pub source_name: String,
    pub url: String,
    pub tables: Vec<String>,
    pub lake_path: String,
}

/// The text of a new project file.
#[must_use]
pub fn render(answers: &InitAnswers) -> String {
    let InitAnswers {
        source_name,
        url,
        tables,
        lake_path,
    } = answers;
    let tables: Vec<String> = tables.iter().map(|table| quote(table)).collect();
    let (url, lake_path, tables) = (quote(url), quote(lake_path), tables.join(", "));
    format!(
        r#"# Alluvium project. All keys: docs/reference/config.md. ${{NAME}} is replaced by the environment variable NAME.

# First part of this pipeline's name in the lake; change it before the first run only.
# pipeline = "default"

[source.{source_name}]
type = "postgres"
# The password is best given by PGPASSWORD, ~/.pgpass or password_file; sslmode as in libpq.
url = {url}
# password_file = "secrets/password"
# Which tables: globs over schema.table. New tables that match are copied and followed while running.
tables = [{tables}]
# exclude = ["public.log_*"]
# Made when absent.
# publication = "alluvium_{source_name}"
# slot = "alluvium_{source_name}"
# Large transactions: 2 receives them while they run (PostgreSQL 14 and later), 1 when they have committed; "auto" is 2 where the server has it.
# protocol = "auto"
# Values in the stream: "text", "binary" (PostgreSQL 14 and later, and only where every column's type allows it), or "auto", the quicker of both.
# tuples = "auto"
# Receive transactions of PREPARE TRANSACTION when they are prepared (PostgreSQL 15 and later); they appear when they are committed, as without.
# two_phase = false

[lake]
# Delta tables appear in <path>/silver (exact mirror) and <path>/bronze (every change).
path = {lake_path}
# Of data files: "zstd" (small), "zstd:3" (levels 1 to 22), "lz4" or "snappy" (less CPU), "none".
# compression = "zstd"

[limits]
# Memory for changes, copied rows, files being written and key indexes.
# memory = "1GiB"
# Of it for key indexes (about 30 bytes a row); a larger index is on disk. A quarter of memory unless set.
# index_memory = "256MiB"
# Connections that copy at the same time.
# copy_workers = 2

[commit]
# A change waits at least and at most this long for its commit; in between it adapts to the load.
# min_interval_ms = 100
# max_interval_ms = 5000
# delta_checkpoint_every_commits = 100

# Small files become larger ones and deleted rows are left out, while it runs; what no version needs is removed.
[maintain]
# enabled = true
# Of one core, for writing files anew.
# cpu_percent = 50
# io_per_second = "50MiB"              # read and written for it; not limited unless set
# window = "22:00-06:00"               # in UTC: when it may begin; always unless set
# small_files = 10                     # so many of about one size become one
# deleted_percent = 5                  # of a file's rows: beyond it the file is written anew
# kept_percent = 100                   # of a table's size: old files beyond it, and that waits for more deleted rows
# How long versions can be read: all of them, and of older ones one for each ...
# all_versions = "1h"
# old_versions = "7d"
# old_versions_every = "1d"
# How long data files stay that no version needs any more.
# removed_files = "1h"
# How long bronze keeps changes: for ever unless set.
# bronze_changes = "90d"
# What other programs commit to the tables is kept where no row changed, and undone else: also "repair", "refuse".
# foreign = "follow"

# An HTTP server while it runs: /metrics for Prometheus, /healthz, /api/v1/status, and SQL: POST /api/v1/sql.
# There is no authentication: whoever reaches it can read the lake.
# [serve.http]
# listen = "127.0.0.1:9187"            # port 0 is any free one
# allow_remote = false                 # needed for an address that other machines can reach

# A server for psql and everything else that speaks to PostgreSQL, read-only.
# [serve.pg]
# listen = "127.0.0.1:5433"
# [serve.pg.users]                     # needed for an address that other machines can reach
# grafana = "a password"               # best as a variable of the environment: see docs/reference/config.md

# Queries of both.
# [serve]
# sql_concurrency = 4                  # at the same time
# sql_memory = "256MiB"                # for all of them, on top of [limits] memory; a quarter of that unless set
# statement_timeout = "5min"           # none unless set

# One table's own settings.
# [tables."public.orders"]
# name = "orders"                      # another name in the lake
# key = ["id"]                         # when the source has no primary key
# columns = ["id", "total"]            # only these
# exclude_columns = ["notes"]          # all but these
# metadata_columns = ["_commit_lsn", "_commit_time", "_op"]
# on_conflict = "stop"                 # or "repair"
# merge_mode = "copy_on_write"         # for readers without deletion vectors; "append_only" for logs
# commit_every = "1min"                # of a table that is copied on write
# change_data_feed = true              # for Spark's table_changes and delta-rs' load_cdf
# cluster_by = ["created_at"]          # order of rows in files that are written anew; "key" for the key
# on_invalid = "error"                 # values Delta cannot hold: "error", "clamp", "null" or "string"
# [tables."public.orders".column."total"]
# on_invalid = "null"
# stored_as = "decimal(38,9)"          # for numeric without precision; "string" for any type
"#
    )
}

fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn the_template_is_a_valid_project_with_its_comments_taken_away_too() {
        let answers = InitAnswers {
            source_name: "shop".to_owned(),
            url: "postgres://me@localhost/\"odd\\".to_owned(),
            tables: vec!["public.*".to_owned()],
            lake_path: "./lake".to_owned(),
        };
        let text = render(&answers);
        let file = std::path::Path::new("/p/alluvium.toml");
        let project = super::super::parse(&text, file, |_| None).unwrap();
        assert_eq!(project.source.url, answers.url);
        let is_setting = |line: &str| line.starts_with("# [") || line.contains(" = ");
        let all: Vec<&str> = text
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if is_setting(line) => rest,
                _ => line,
            })
            .collect();
        super::super::parse(&all.join("\n"), file, |_| None).unwrap();
    }
}
