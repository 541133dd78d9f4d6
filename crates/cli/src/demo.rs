//! `alluvium demo`: a private PostgreSQL with a small shop, streamed live into a lake of its own.
//!
//! Everything lies in one directory that is removed at the end, however the demo ends short of
//! being killed.

mod postgres;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use alluvium_change::{Error, Result, code};
use alluvium_pipeline::project::{self, InitAnswers, Project};
use alluvium_pipeline::run::{RunOptions, Shared, run as run_pipeline};
use alluvium_pipeline::status::{Phase, StatusBoard};
use alluvium_pipeline::views::Views;
use alluvium_source_postgres::connect::{self, ConnectOptions};
use tokio::sync::watch;

use crate::args::Demo;
use crate::command::run::shutdown_on_signal;
use crate::command::sql;
use crate::print::{self, Grid};
use postgres::PrivatePostgres;

const SCHEMA: &str = include_str!("../../testkit/sql/shop.sql");
const TRAFFIC: &str = include_str!("../../../examples/shop/traffic.sql");
const TABLES: [&str; 4] = ["customers", "products", "orders", "order_items"];
const STEP_PAUSE: Duration = Duration::from_millis(20);
const SHOW_EVERY: Duration = Duration::from_secs(3);
const QUERY: &str = "SELECT status, count(*) AS orders, sum(total_amount) AS amount \
                     FROM orders GROUP BY status ORDER BY status";

/// Runs the demo.
pub(crate) async fn demo(options: &Demo) -> Result<ExitCode> {
    let dir = DemoDir::make(options.dir.as_deref())?;
    let mut stop = shutdown_on_signal()?;
    say("starting a private PostgreSQL");
    let server = PrivatePostgres::start(&dir.path.join("postgres")).await?;
    let outcome = show(options, &dir.path, &server, &mut stop).await;
    server.stop().await;
    outcome?;
    say("everything is stopped and removed; your own database: alluvium init");
    Ok(ExitCode::SUCCESS)
}

async fn show(
    options: &Demo,
    dir: &Path,
    server: &PrivatePostgres,
    stop: &mut watch::Receiver<bool>,
) -> Result<()> {
    let url = server.url();
    let connect_options = ConnectOptions::parse(&url, None)?;
    let client = connect::connect(&connect_options).await?;
    let execute = async |sql: &str| {
        client
            .batch_execute(sql)
            .await
            .map_err(|error| connect::map_error(error, "setting up the shop"))
    };
    execute("SET search_path = public").await?;
    execute(SCHEMA).await?;
    execute(TRAFFIC).await?;
    let project = write_project(dir, &url)?;
    let config = project.file.display().to_string();
    say(&format!("the shop is at {url}"));
    say(&format!(
        "streaming it into {}",
        project.lake_path.display()
    ));

    let board = StatusBoard::default();
    let (end_pipeline, pipeline_stop) = watch::channel(false);
    let mut pipeline = tokio::spawn(Box::pin(run_pipeline(
        project.clone(),
        RunOptions::default(),
        Shared {
            board: board.clone(),
            shutdown: pipeline_stop,
            view_requests: Views::new().1,
            find_rows: crate::rows::find_rows(&project),
        },
    )));
    let ends_at = options
        .seconds
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut shown = Instant::now();
    let mut steps = 0_u64;
    let mut ended_early = None;
    while ends_at.is_none_or(|at| Instant::now() < at) {
        execute("SELECT shop_step()").await?;
        steps += 1;
        if shown.elapsed() >= SHOW_EVERY {
            shown = Instant::now();
            eprintln!("\n{}", live(&board, steps));
        }
        tokio::select! {
            () = tokio::time::sleep(STEP_PAUSE) => {}
            _ = stop.changed() => break,
            ended = &mut pipeline => { ended_early = Some(ended); break; }
        }
    }
    let interrupted = *stop.borrow();
    if let Some(ended) = ended_early {
        return Err(match joined(ended) {
            Err(error) => error,
            Ok(_) => Error::bug("the demo's pipeline ended by itself"),
        });
    }
    if !interrupted {
        wait_until_live(&board, &client).await?;
        eprintln!("\n{}", live(&board, steps));
        say(&format!(
            "{} transactions streamed; the lake answers:\n  {QUERY}",
            print::count(steps)
        ));
        sql::query_lake(&project, QUERY).await?;
        say_further(&config, &project);
        if options.hold > 0 {
            say(&format!("holding for {} s", options.hold));
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(options.hold)) => {}
                _ = stop.changed() => {}
            }
        }
    }
    end_pipeline.send_replace(true);
    joined(pipeline.await).map(|_| ())
}

fn joined<T>(ended: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    ended.map_err(|error| Error::bug("the demo's pipeline panicked").with_source(error))?
}

fn write_project(dir: &Path, url: &str) -> Result<Project> {
    let file = dir.join(project::FILE_NAME);
    let text = project::render_template(&InitAnswers {
        source_name: "shop".to_owned(),
        url: url.to_owned(),
        tables: vec!["public.*".to_owned()],
        lake_path: "./lake".to_owned(),
    });
    std::fs::write(&file, text).map_err(|error| cannot_write(&file, &error))?;
    project::load(&file)
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Error {
    Error::new(&code::USAGE, format!("cannot write \"{}\"", path.display()))
        .with_detail(error.to_string())
        .with_hint("choose another place with: alluvium demo --dir DIR")
}

fn live(board: &StatusBoard, steps: u64) -> String {
    let status = board.read();
    let mut grid = Grid::new(&["table", "phase", "rows in silver", "changes", "commit lag"]);
    for name in TABLES {
        let Some(table) = status.tables.get(&format!("public.{name}")) else {
            continue;
        };
        let lag = table
            .commit_lag_ms
            .map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
        grid.push(vec![
            name.to_owned(),
            format!("{:?}", table.phase).to_lowercase(),
            print::count(table.silver_rows),
            print::count(table.changes),
            lag,
        ]);
    }
    format!("{grid}{} shop transactions so far", print::count(steps))
}

/// Waits until everything the shop has committed is durable in the lake.
async fn wait_until_live(board: &StatusBoard, client: &tokio_postgres::Client) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let row = client
        .query_one(
            "SELECT pg_catalog.pg_current_wal_flush_lsn()::pg_catalog.text",
            &[],
        )
        .await
        .map_err(|error| connect::map_error(error, "reading the WAL position"))?;
    let text: String = row
        .try_get(0)
        .map_err(|error| connect::map_error(error, "reading the WAL position"))?;
    let target = text
        .parse::<alluvium_change::Lsn>()
        .map_err(|error| Error::new(&code::PG_PROTOCOL, error.to_string()))?;
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        let status = board.read();
        let all_live = status
            .tables
            .values()
            .all(|table| table.phase == Phase::Live);
        if all_live && !status.tables.is_empty() && status.acknowledged_lsn >= target {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(Error::bug(
        "the demo's pipeline did not catch up within a minute",
    ))
}

fn say(text: &str) {
    eprintln!("▸ {text}");
}

fn say_further(config: &str, project: &Project) {
    let silver = project.lake_path.join("silver");
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("alluvium"));
    let program = program.display();
    say("look further, from another terminal, while the demo runs:");
    eprintln!(
        "    {program} --config {config} status\n    \
         {program} --config {config} sql \"SELECT _op, count(*) FROM bronze.orders GROUP BY _op\"\n    \
         duckdb -c \"INSTALL delta; LOAD delta; SELECT * FROM delta_scan('{}') LIMIT 5\"\n    \
         python -c \"from deltalake import DeltaTable, QueryBuilder as Q; \
         print(Q().register('o', DeltaTable('{}')).execute('SELECT count(*) FROM o').read_all())\"",
        silver.join("orders").display(),
        silver.join("orders").display(),
    );
}

/// The demo's directory, removed when dropped.
struct DemoDir {
    path: PathBuf,
}

impl DemoDir {
    fn make(wanted: Option<&Path>) -> Result<Self> {
        let path = match wanted {
            Some(path) => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            None => std::env::temp_dir().join(format!("alluvium-demo-{}", std::process::id())),
        };
        if path.exists() {
            return Err(Error::new(
                &code::USAGE,
                format!("\"{}\" exists already", path.display()),
            )
            .with_detail("the demo removes its directory at the end, so it wants a new one")
            .with_hint("choose another place with: alluvium demo --dir DIR"));
        }
        std::fs::create_dir_all(&path).map_err(|error| cannot_write(&path, &error))?;
        Ok(Self { path })
    }
}

impl Drop for DemoDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(error = %error, dir = %self.path.display(), "cannot remove");
        }
    }
}
