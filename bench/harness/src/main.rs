//! What the benchmarks need and Python is too slow for. Measured by `bench/run`, which reads the
//! JSON line each subcommand prints. Not part of the product.

mod age;
mod parts;
mod read_keys;
mod read_slot;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};

#[derive(Debug, Parser)]
#[command(name = "alluvium-bench", about = "Helper of bench/run")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Reads whenever something is there
    Eager,
    /// Naps after a short read, to find full buffers
    Lazy,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read a slot to an LSN and throw everything away
    ReadSlot {
        #[arg(long)]
        host: String,
        #[arg(long)]
        port: u16,
        #[arg(long)]
        user: String,
        #[arg(long)]
        database: String,
        #[arg(long)]
        slot: String,
        #[arg(long)]
        publication: String,
        #[arg(long)]
        end_lsn: String,
        #[arg(long, value_enum, default_value_t = Mode::Eager)]
        mode: Mode,
        /// Ask for binary tuples
        #[arg(long)]
        binary: bool,
    },
    /// Read one column of a Delta table's live files with a bare Parquet reader
    ReadKeys {
        #[arg(long)]
        table: PathBuf,
        #[arg(long)]
        column: String,
    },
    /// Many small commits into one silver table, with care, looked at now and then
    Age {
        #[arg(long)]
        lake: PathBuf,
        #[arg(long)]
        rows: i64,
        #[arg(long)]
        commits: u64,
        /// Of each commit
        #[arg(long)]
        changes: i64,
        #[arg(long)]
        keep_seconds: u64,
        /// Commits between two looks
        #[arg(long)]
        look_every: u64,
    },
    /// Rates of the pure parts, on one core
    Parts {
        #[arg(long)]
        url: String,
        /// Its rows are copied and decoded
        #[arg(long)]
        table: String,
        /// A slot that holds changes of the table, which are peeked at and decoded
        #[arg(long)]
        slot: String,
        #[arg(long)]
        publication: String,
        /// For files written and removed
        #[arg(long)]
        scratch: PathBuf,
    },
}

fn main() -> std::process::ExitCode {
    let outcome = run(Args::parse().command);
    let (code, text) = match &outcome {
        Ok(report) => (0, report.to_string()),
        Err(error) => (1, format!("error: {error}")),
    };
    let line = format!("{text}\n");
    let written = if code == 0 {
        std::io::stdout().write_all(line.as_bytes())
    } else {
        std::io::stderr().write_all(line.as_bytes())
    };
    std::process::ExitCode::from(if written.is_ok() { code } else { 1 })
}

fn run(command: Command) -> Result<Value, Box<dyn std::error::Error>> {
    match command {
        Command::ReadSlot {
            host,
            port,
            user,
            database,
            slot,
            publication,
            end_lsn,
            mode,
            binary,
        } => {
            let report = read_slot::read_slot(&read_slot::Options {
                host,
                port,
                user,
                database,
                slot,
                publication,
                end_lsn,
                lazy: mode == Mode::Lazy,
                binary,
            })?;
            Ok(json!({
                "messages": report.messages,
                "changes": report.changes,
                "transactions": report.transactions,
                "bytes": report.bytes,
                "reads": report.reads,
                "seconds": report.seconds,
                "first_change_seconds": report.first_change_seconds,
            }))
        }
        Command::ReadKeys { table, column } => Ok(read_keys::read_keys(&table, &column)?),
        Command::Age {
            lake,
            rows,
            commits,
            changes,
            keep_seconds,
            look_every,
        } => age::age(&age::Options {
            lake,
            rows,
            commits,
            changes,
            keep: Duration::from_secs(keep_seconds),
            look_every,
        }),
        Command::Parts {
            url,
            table,
            slot,
            publication,
            scratch,
        } => Ok(parts::measure(&parts::Input {
            url,
            table,
            slot,
            publication,
            scratch,
        })?),
    }
}
