//! The `alluvium` binary: reads the command line, calls the crates, prints results.
//!
//! Data goes to stdout, everything else to stderr. A result is a struct that people read through
//! `Display` and programs through `Serialize`; an error is printed once, here, with its code.

mod args;
mod command;
mod demo;
mod print;
mod progress;
mod rows;

use std::process::ExitCode;

use alluvium_change::{Error, Result, failpoint};
use clap::Parser as _;

use args::{Args, Command, LogFormat};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    start_logging(&args);
    arm_failpoint();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return fail(&Error::bug("the runtime could not be started").with_source(error));
        }
    };
    let outcome = runtime.block_on(perform(args));
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match outcome {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

async fn perform(args: Args) -> Result<ExitCode> {
    let output = args.output;
    match args.command {
        Command::Init(init) => command::init::init(&args.config, &init),
        Command::Doctor => command::doctor::doctor(&args.config, output).await,
        Command::Run(run) => command::run::run(&args.config, &run, output).await,
        Command::Status => command::status::status(&args.config, output),
        Command::Tables => command::tables::tables(&args.config, output),
        Command::Sql(sql) => command::sql::sql(&args.config, &sql, output).await,
        Command::History(history) => command::sql::history(&args.config, &history, output).await,
        Command::Resync(resync) => command::resync::resync(&args.config, &resync),
        Command::Optimize(tables) => command::care::optimize(&args.config, &tables.tables, output),
        Command::Vacuum(vacuum) => command::care::vacuum(&args.config, &vacuum, output),
        Command::Checkpoint(tables) => {
            command::care::checkpoint(&args.config, &tables.tables, output)
        }
        Command::Errors(errors) => command::errors::errors(&errors, output),
        Command::Demo(options) => demo::demo(&options).await,
        Command::Completions { shell } => command::completions(shell),
    }
}

fn start_logging(args: &Args) {
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::fmt::format::FmtSpan;
    let own = match (&args.command, args.verbose) {
        (_, 2..) => "trace",
        (_, 1) => "debug",
        (Command::Run(_), 0) => "info",
        (_, 0) => "warn",
    };
    // What the Delta kernel has to say comes as an error of ours.
    let default = format!(
        "warn,delta_kernel=off,delta_kernel_default_engine=off,alluvium={own},alluvium_pipeline={own},alluvium_lake={own},alluvium_source_postgres={own},alluvium_query={own},alluvium_serve={own}"
    );
    let filter = EnvFilter::try_from_env("ALLUVIUM_LOG").unwrap_or_else(|_| default.into());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(args.verbose > 0);
    match args.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// `ALLUVIUM_CRASH_AT=name[:hits]` kills the process there: for tests of recovery.
fn arm_failpoint() {
    let Ok(wanted) = std::env::var("ALLUVIUM_CRASH_AT") else {
        return;
    };
    let (name, hits) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    failpoint::arm(name, hits.parse().unwrap_or(1));
}

fn fail(error: &Error) -> ExitCode {
    eprint!("{}", print::ErrorText(error));
    ExitCode::from(1)
}
