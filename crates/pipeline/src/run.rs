//! `alluvium run`: prepares source and lake, then follows the stream until told to stop, or until
//! caught up.

mod history;
mod measure;
mod prepare;
mod session;
mod watcher;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alluvium_change::{Error, Lsn, Result, Retry, TableId, code};
use alluvium_source_postgres::catalog::SourceTable;
use alluvium_source_postgres::connect::ConnectOptions;
use alluvium_source_postgres::replication::ReplicationConnection;
use alluvium_source_postgres::tuples::Tuples;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub use prepare::lake_settings;

use crate::LakeLock;
use crate::copy::{CopyContext, CopySessions, CopyTarget};
pub use crate::copy::{FindRows, FoundRows, RowQuery};
use crate::owner::{Event, OwnerContext};
use crate::project::Project;
use crate::status::{ErrorStatus, Phase, StatusBoard};
use crate::stream::Stream;
use crate::views::ViewRequests;

/// How to run.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// End when all that was committed before the start is durable in the lake.
    pub until_caught_up: bool,
}

/// What a run shares with the rest of the program.
pub struct Shared {
    pub board: StatusBoard,
    /// Turns true when the run is to end.
    pub shutdown: watch::Receiver<bool>,
    pub view_requests: ViewRequests,
    pub find_rows: FindRows,
}

/// How a run ended.
#[derive(Debug, Clone, Serialize)]
pub struct RunReport {
    /// Everything up to here is durable in the lake.
    pub position: Lsn,
    pub tables: usize,
    /// Tables that an error keeps from following.
    pub stopped: Vec<String>,
}

/// The pipeline while it runs.
struct Pipeline {
    project: Project,
    run: RunOptions,
    options: ConnectOptions,
    board: StatusBoard,
    shutdown: watch::Receiver<bool>,
    owner_context: OwnerContext,
    events: mpsc::Receiver<Event>,
    owner_tasks: JoinSet<()>,
    stream: Stream,
    /// Tables as the catalog last had them, and their lake names.
    known: BTreeMap<TableId, Arc<SourceTable>>,
    names: BTreeMap<TableId, String>,
    system_identifier: String,
    publications: Vec<String>,
    /// The form of values that is wanted; text for the rest of the run once binary could not be.
    tuples: Tuples,
    copy_context: CopyContext,
    /// Tables to be copied with the next job; one job runs at a time.
    copy_queue: Vec<CopyTarget>,
    /// Requests for care that owners know of.
    care_asked: HashSet<PathBuf>,
    copy_jobs: JoinSet<Result<()>>,
    rates: measure::Rates,
    view_requests: ViewRequests,
    find_rows: FindRows,
    /// What was asked for before the start is under way.
    requests_heeded: bool,
    _lock: LakeLock,
}

/// Runs the pipeline of `project`.
///
/// Ends without error when [`Shared::shutdown`] turns true, or when caught up if that was asked.
///
/// # Errors
/// What keeps the whole pipeline from going on; one table's error stops that table alone and is in
/// the report.
pub async fn run(project: Project, options: RunOptions, shared: Shared) -> Result<RunReport> {
    let state_dir = project.state_dir();
    let board = shared.board.clone();
    let outcome = run_until_end(project, options, shared).await;
    // A run that ended before it knew its tables leaves what is known of them.
    let before = crate::status::load(&state_dir).unwrap_or_default();
    board.update(|status| {
        if status.tables.is_empty() {
            status.tables = before.tables;
        }
        status.connected = false;
        status.error = outcome.as_ref().err().map(ErrorStatus::from);
    });
    board.save(&state_dir);
    outcome
}

async fn run_until_end(project: Project, options: RunOptions, shared: Shared) -> Result<RunReport> {
    let (mut pipeline, mut connection, sessions) =
        prepare::prepare(project, options, shared).await?;
    pipeline.start_copy_job(sessions);
    let mut pause = Duration::from_millis(200);
    loop {
        let (had_frames, ended) = pipeline.follow(&mut connection).await;
        match ended {
            Ok(()) => break,
            Err(error) if error.retry() == Retry::Backoff && is_connection(&error) => {
                if had_frames {
                    pause = Duration::from_millis(200);
                }
                tracing::warn!(
                    error = %error,
                    detail = error.detail().unwrap_or(""),
                    "connection to the source is gone, trying again"
                );
                pipeline.board.update(|status| {
                    status.connected = false;
                    status.error = Some(ErrorStatus::from(&error));
                });
                pipeline.report_status();
            }
            Err(error) if error.is(&code::PG_TUPLES) && pipeline.tuples == Tuples::Auto => {
                tracing::info!(why = %error, "the stream starts again with values as text");
                pipeline.tuples = Tuples::Text;
            }
            Err(error) => return Err(error),
        }
        // The server must let go of the slot.
        connection.abandon();
        match pipeline.reconnect(&mut pause).await? {
            Some(again) => connection = again,
            None => break,
        }
    }
    Ok(pipeline.end(connection).await)
}

fn is_connection(error: &Error) -> bool {
    use alluvium_change::code::{PG_CONNECT, PG_CONNECTION_LOST, PG_SLOT_ACTIVE};
    [&PG_CONNECT, &PG_CONNECTION_LOST, &PG_SLOT_ACTIVE]
        .into_iter()
        .any(|code| error.is(code))
}

impl Pipeline {
    /// Connects again, waiting longer each time; `None` when told to stop meanwhile.
    async fn reconnect(&mut self, pause: &mut Duration) -> Result<Option<ReplicationConnection>> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(*pause) => {}
                _ = self.shutdown.changed() => return Ok(None),
            }
            *pause = (*pause * 2).min(Duration::from_secs(30));
            match prepare::connect_again(self).await {
                Ok(connection) => return Ok(Some(connection)),
                Err(error) if is_connection(&error) => {
                    tracing::warn!(error = %error, detail = error.detail().unwrap_or(""), "still no connection");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts copying the tables that wait for it, when no copy is running.
    fn start_copy_job(&mut self, sessions: Option<CopySessions>) {
        if self.copy_queue.is_empty() || !self.copy_jobs.is_empty() {
            return;
        }
        let targets = std::mem::take(&mut self.copy_queue);
        let shutdown = self.shutdown.clone();
        let context = self.copy_context.clone();
        self.copy_jobs
            .spawn(crate::copy::copy_all(context, targets, sessions, shutdown));
    }

    /// Lets the commits in hand finish, and says how far everything is.
    async fn end(mut self, mut connection: ReplicationConnection) -> RunReport {
        self.copy_jobs.shutdown().await;
        self.copy_queue.clear();
        self.stream.last_cut();
        let settle = async {
            while !self.stream.is_settled() {
                match self.events.recv().await {
                    Some(Event::Durable { cut, took }) => self.stream.durable(cut, took),
                    Some(Event::Fatal(_)) | None => return,
                    Some(_) => {}
                }
            }
        };
        // A commit takes milliseconds; what is not durable is sent again by the source.
        if tokio::time::timeout(Duration::from_secs(20), settle)
            .await
            .is_err()
        {
            tracing::warn!("commits in hand took too long, they will be repeated");
        }
        let _ = self.stream.tell_server(&mut connection, false).await;
        if let Err(error) = connection.close().await {
            tracing::debug!(error = %error, "the stream ended badly");
        }
        self.stream.owners.clear();
        self.events.close();
        while self.owner_tasks.join_next().await.is_some() {}
        self.report_status();
        let status = self.board.read();
        let stopped = status
            .tables
            .iter()
            .filter(|(_, table)| table.phase == Phase::Stopped || table.error.is_some());
        RunReport {
            position: self.stream.flushed(),
            tables: status.tables.len(),
            stopped: stopped.map(|(name, _)| name.clone()).collect(),
        }
    }
}
