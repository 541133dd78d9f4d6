//! `alluvium run`: the pipeline, until a signal or until caught up.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use alluvium_change::{Error, Result};
use alluvium_pipeline::LakeLock;
use alluvium_pipeline::project::{self, Project};
use alluvium_pipeline::run::{RunOptions, RunReport, Shared, run as run_pipeline};
use alluvium_pipeline::status::StatusBoard;
use alluvium_pipeline::views::Views;
use alluvium_serve::Server;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::STOPPED_TABLES;
use crate::args::{Output, Run};
use crate::rows::find_rows;
use crate::{print, progress};

struct Report([RunReport; 1]);

impl print::Rows for Report {
    type Row = RunReport;

    fn rows(&self) -> &[RunReport] {
        &self.0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [report] = &self.0;
        writeln!(
            f,
            "{} tables, durable up to {}",
            report.tables, report.position
        )?;
        if !report.stopped.is_empty() {
            writeln!(
                f,
                "stopped by errors: {} (see: alluvium status)",
                report.stopped.join(", ")
            )?;
        }
        Ok(())
    }
}

/// Runs the project's pipeline.
pub(crate) async fn run(config: &Path, args: &Run, output: Output) -> Result<ExitCode> {
    let project = project::load(config)?;
    let shutdown = shutdown_on_signal()?;
    let board = StatusBoard::default();
    let (views, view_requests) = Views::new();
    let server = serve(&project, &board, views)?;
    let state_dir = project.state_dir();
    let follower = tokio::spawn(progress::follow(board.clone()));
    let options = RunOptions {
        until_caught_up: args.until_caught_up,
    };
    let shared = Shared {
        board: board.clone(),
        shutdown,
        view_requests,
        find_rows: find_rows(&project),
    };
    let outcome = Box::pin(run_pipeline(project, options, shared)).await;
    follower.abort();
    if let Some(server) = server {
        server.stop().await;
        board.save(&state_dir);
    }
    let report = outcome?;
    let stopped = !report.stopped.is_empty();
    print::rows(&Report([report]), output)?;
    Ok(if stopped {
        ExitCode::from(STOPPED_TABLES)
    } else {
        ExitCode::SUCCESS
    })
}

/// Starts the HTTP server, if there is to be one.
fn serve(project: &Project, board: &StatusBoard, views: Views) -> Result<Option<Server>> {
    Server::start(project, board, views).map_err(|error| {
        // The port is most likely taken by the pipeline that also has the lake.
        let held = LakeLock::holder(&project.lake_path).is_some();
        let locked = held.then(|| LakeLock::take(&project.lake_path, &project.file).err());
        locked.flatten().unwrap_or(error)
    })
}

/// Turns true at SIGINT or SIGTERM; a second signal ends the process at once.
pub(crate) fn shutdown_on_signal() -> Result<watch::Receiver<bool>> {
    let listen = |kind| {
        signal(kind).map_err(|error| Error::bug("cannot listen to signals").with_source(error))
    };
    let (mut interrupt, mut terminate) = (
        listen(SignalKind::interrupt())?,
        listen(SignalKind::terminate())?,
    );
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("finishing the commit in hand; once more to stop at once");
        sender.send_replace(true);
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(130);
    });
    Ok(receiver)
}
