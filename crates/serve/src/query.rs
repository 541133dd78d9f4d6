//! Queries over HTTP: a few at a time, on threads of their own, their rows sent as they come.
//!
//! Invariant: memory is bounded by the settings and two pieces of an answer for each query. A query
//! ends when its client goes away.

use std::cell::RefCell;
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alluvium_change::{Error, Result, code};
use alluvium_pipeline::project::SqlSettings;
use alluvium_pipeline::status::HttpStatus;
use alluvium_pipeline::views::Views;
use alluvium_query::output::{Format, Options, Printer};
use alluvium_query::{Engine, QueryResult, QuerySettings, Session};
use axum::body::Bytes;
use futures::{Stream, StreamExt as _, stream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Rows are sent when they are so many bytes of JSON. What fails before that has a status of its own.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that may wait for the client.
const PIECES: usize = 1;
/// Queries that may wait for each one that may run.
const WAITING_PER_RUNNING: usize = 8;
/// How long a query waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);

/// A piece of an answer, or why there is no more.
type Piece = Result<Bytes>;

/// Where queries run.
#[derive(Debug, Clone)]
pub(crate) struct Queries {
    runtime: Handle,
    lake: PathBuf,
    views: Views,
    engine: Engine,
    running: Arc<Semaphore>,
    /// Running or waiting.
    admitted: Arc<Semaphore>,
    most: [usize; 2],
    taken_up: Arc<AtomicU64>,
    timeout: Option<Duration>,
}

/// A place among the queries that run.
pub(crate) struct Turn {
    _held: [OwnedSemaphorePermit; 2],
}

impl Queries {
    pub(crate) fn new(
        runtime: Handle,
        (lake, views): (PathBuf, Views),
        settings: &SqlSettings,
        threads: usize,
    ) -> Result<Self> {
        let running = usize::try_from(settings.concurrency).unwrap_or(1).max(1);
        let admitted = running * (1 + WAITING_PER_RUNNING);
        let memory_bytes = usize::try_from(settings.memory_bytes).unwrap_or(usize::MAX);
        let engine = Engine::new(&QuerySettings {
            memory_bytes,
            threads,
        })?;
        Ok(Self {
            runtime,
            lake,
            views,
            engine,
            running: Arc::new(Semaphore::new(running)),
            admitted: Arc::new(Semaphore::new(admitted)),
            most: [running, admitted],
            taken_up: Arc::new(AtomicU64::new(0)),
            timeout: settings.timeout,
        })
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) fn views(&self) -> &Views {
        &self.views
    }

    /// After which a query is given up, unless its client says otherwise.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    pub(crate) fn open(&self) -> Result<Session> {
        self.engine.open(&self.lake)
    }

    /// Waits until a query may run.
    ///
    /// # Errors
    /// `HTTP_BUSY`.
    pub(crate) async fn turn(&self) -> Result<Turn> {
        let busy = || Error::new(&code::HTTP_BUSY, "too many queries wait already");
        let admitted = Arc::clone(&self.admitted)
            .try_acquire_owned()
            .map_err(|_| busy())?;
        let turn = Arc::clone(&self.running).acquire_owned();
        let turn = match tokio::time::timeout(PATIENCE, turn).await {
            Ok(Ok(turn)) => turn,
            _ => return Err(busy()),
        };
        self.taken_up.fetch_add(1, Ordering::Relaxed);
        Ok(Turn {
            _held: [turn, admitted],
        })
    }

    /// Runs `sql`. Answers when the first rows are there: they and the rest as one JSON array.
    ///
    /// # Errors
    /// `HTTP_BUSY`; what the query fails with before its first rows.
    pub(crate) async fn answer(
        &self,
        sql: String,
    ) -> Result<impl Stream<Item = Piece> + Send + use<>> {
        let turn = self.turn().await?;
        let (sender, mut receiver) = mpsc::channel(PIECES);
        let queries = self.clone();
        // A thread of its own, because rows are written as text between two waits for more.
        self.runtime.spawn_blocking(move || {
            let _held_until_the_end = turn;
            queries.runtime.block_on(async {
                let work = async {
                    let session = queries.open()?;
                    let statements = session.statements(&sql)?;
                    let named = session.silver_tables(&statements.iter().collect::<Vec<_>>());
                    session.show(queries.views.of(named).await)?;
                    send_rows(session.answer(&statements).await?, &sender).await
                };
                let outcome = tokio::select! {
                    outcome = work => outcome,
                    // Nobody listens any more.
                    () = sender.closed() => Ok(()),
                };
                if let Err(error) = outcome {
                    let _ = sender.send(Err(error)).await;
                }
            });
        });
        let first = receiver
            .recv()
            .await
            .unwrap_or_else(|| Err(Error::bug("a query ended without an answer")))?;
        let rest = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
        Ok(stream::iter([Ok(first)]).chain(rest))
    }

    /// Counts for the status.
    pub(crate) fn note(&self, status: &mut HttpStatus) {
        let [most_running, most_admitted] = self.most;
        let running = most_running.saturating_sub(self.running.available_permits());
        let admitted = most_admitted.saturating_sub(self.admitted.available_permits());
        status.running_queries = running as u64;
        status.waiting_queries = admitted.saturating_sub(running) as u64;
        status.queries = self.taken_up.load(Ordering::Relaxed);
    }
}

/// Collects text until it is taken.
#[derive(Debug, Clone, Default)]
struct Collected(Rc<RefCell<Vec<u8>>>);

impl Collected {
    fn len(&self) -> usize {
        self.0.borrow().len()
    }

    fn take(&self) -> Bytes {
        self.0.take().into()
    }
}

impl Write for Collected {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The rows of an answer, as JSON.
async fn send_rows(mut result: QueryResult, pieces: &mpsc::Sender<Piece>) -> Result<()> {
    let text = Collected::default();
    let mut out = text.clone();
    let options = Options::new(Format::Json);
    let mut printer = Printer::new(&result.schema, &options, &mut out);
    while let Some(batch) = result.batches.next().await {
        printer.write(&batch?)?;
        if text.len() >= PIECE_BYTES && pieces.send(Ok(text.take())).await.is_err() {
            return Ok(());
        }
    }
    printer.finish()?;
    // Nobody listening is no error.
    let _ = pieces.send(Ok(text.take())).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        reason = "tests fail by panicking"
    )]
    use super::*;

    #[test]
    fn more_queries_than_may_wait_are_refused() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let settings = SqlSettings {
            concurrency: 1,
            memory_bytes: 1 << 20,
            timeout: None,
        };
        let lake = PathBuf::from("/there/is/no/such/lake");
        let (views, _requests) = Views::new();
        let queries = Queries::new(runtime.handle().clone(), (lake, views), &settings, 1).unwrap();
        let ask = || {
            let answer = runtime.block_on(queries.answer("SELECT 1".to_owned()));
            answer.err().expect("there is no lake")
        };
        let counts = || {
            let mut status = HttpStatus::default();
            queries.note(&mut status);
            (
                status.running_queries,
                status.waiting_queries,
                status.queries,
            )
        };
        let all = u32::try_from(1 + WAITING_PER_RUNNING).unwrap();
        let held = queries.admitted.try_acquire_many(all).unwrap();
        assert_eq!(counts(), (0, u64::from(all), 0));
        let error = ask();
        assert!(error.is(&code::HTTP_BUSY), "{error}");
        drop(held);
        let error = ask();
        assert!(error.is(&code::LAKE_IO), "{error}");
        // Its places are given back, by a thread that may need a moment.
        while counts() != (0, 0, 1) {
            std::thread::yield_now();
        }
    }
}
