//! The command line, from which help and completions are made.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Streams a PostgreSQL database into Delta tables: bronze (every change) and silver (exact mirror).
#[derive(Debug, Parser)]
#[command(name = "alluvium", version, after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// Project file, or the directory that holds alluvium.toml
    #[arg(
        long,
        global = true,
        default_value = "alluvium.toml",
        env = "ALLUVIUM_CONFIG"
    )]
    pub config: PathBuf,
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// How log lines are written to stderr
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Say more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 an error, printed as error[CODE]; 2 wrong arguments; \
                          3 done, but at least one table is stopped by an error.\n\
                          Explain an error: alluvium errors CODE";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// One JSON document
    Json,
    /// One JSON object a line
    Ndjson,
    /// Comma-separated, with a header
    Csv,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a project file with every setting and its default
    Init(Init),
    /// Check source and lake; each finding with the SQL or command that mends it
    Doctor,
    /// Copy the tables, then follow every change until stopped (SIGINT, SIGTERM)
    Run(Run),
    /// What the pipeline is doing, per table
    Status,
    /// The lake's tables: rows, files, versions
    Tables,
    /// Query the lake's tables at their last commit, or as they were
    Sql(Sql),
    /// The commits of a table, the newest first: when, what, by which program, up to which position
    History(History),
    /// Copy tables afresh; a running pipeline does it at once, else the next run
    Resync(Resync),
    /// Write tables' small files and files with deleted rows anew as few large ones
    Optimize(Tables),
    /// Show which files no readable version needs; with --delete remove them
    Vacuum(Vacuum),
    /// Write a Delta checkpoint of tables, so that they open quickly
    Checkpoint(Tables),
    /// List all error codes, or explain one
    Errors(Errors),
    /// See it work: a private PostgreSQL with a small shop, streamed live
    Demo(Demo),
    /// Print a completion script for a shell
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Init {
    /// Connection url of the database; asked for when left out
    #[arg(long)]
    pub url: Option<String>,
    /// Name of the source, part of the slot's name
    #[arg(long)]
    pub source: Option<String>,
    /// Tables to follow, as globs over schema.table; may be given several times
    #[arg(long = "table")]
    pub tables: Vec<String>,
    /// Where the Delta tables are to be
    #[arg(long)]
    pub lake: Option<String>,
    /// Replace an existing file
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Run {
    /// End when everything committed before the start is durable in the lake
    #[arg(long)]
    pub until_caught_up: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Sql {
    /// Statements, separated by semicolons; read from standard input when left out
    pub query: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct History {
    /// Table as in SQL: orders, bronze.orders, "Größe"
    pub table: String,
    /// So many commits
    #[arg(long, default_value_t = 20)]
    pub limit: u64,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Resync {
    /// Tables as schema.table (or table, in schema public)
    #[arg(required_unless_present = "all")]
    pub tables: Vec<String>,
    /// Every table of the lake
    #[arg(long, conflicts_with = "tables")]
    pub all: bool,
    /// Only rows for which this holds, a condition in SQL: those that differ from the source are set
    /// right, and the table is followed meanwhile
    #[arg(long = "where", value_name = "CONDITION", conflicts_with = "all")]
    pub predicate: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Tables {
    /// Tables as schema.table (or table, in schema public); all when left out
    pub tables: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Vacuum {
    /// Tables as schema.table (or table, in schema public); all when left out
    pub tables: Vec<String>,
    /// Remove them
    #[arg(long)]
    pub delete: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Errors {
    /// A code such as AL-PG-006
    pub code: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Demo {
    /// Stop by itself after so many seconds of traffic
    #[arg(long, env = "DEMO_SECONDS")]
    pub seconds: Option<u64>,
    /// Keep server and lake for so many seconds after the traffic has ended
    #[arg(long, default_value_t = 0, env = "DEMO_HOLD_SECONDS")]
    pub hold: u64,
    /// Where server and lake live; removed at the end
    #[arg(long)]
    pub dir: Option<PathBuf>,
}
