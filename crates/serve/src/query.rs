//! Queries: a few at a time, on threads of their own, their rows sent as they come.
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
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use axum::body::Bytes;
use futures::{Stream, StreamExt as _, TryFutureExt as _, stream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

/// Rows are sent when they are so many bytes of JSON. What fails before that has a status of its own.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that may wait for the client.
const PIECES: usize = 1;
/// Queries that may wait for each one that may run.
const WAITING_PER_RUNNING: usize = 8;
/// How long a query waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);

/// A piece of an answer over HTTP, or why there is no more.
type Piece = Result<Bytes>;

/// Where queries run.
#[derive(Debug, Clone)]
pub(crate) struct Queries {
    runtime: Handle,
    lake: PathBuf,
    views: Views,
    engine: Engine,
    running: Arc<Semaphore>,
    most_running: usize,
    waiting: Arc<AtomicU64>,
    /// Those of HTTP, running or waiting.
    admitted: Arc<Semaphore>,
    taken_up: Arc<AtomicU64>,
    timeout: Option<Duration>,
}

/// When a query has to end though it is not done.
pub(crate) struct Limits {
    /// Of work; waiting for its client does not count.
    pub(crate) timeout: Option<Duration>,
    /// How long it waits for its turn.
    pub(crate) patience: Option<Duration>,
    pub(crate) cancelled: Option<oneshot::Receiver<()>>,
}

/// A query that runs. It ends when this is dropped.
pub(crate) struct Running<P> {
    pub(crate) schema: SchemaRef,
    pub(crate) pieces: mpsc::Receiver<Result<P>>,
}

/// One of those that wait for their turn.
struct Waits(Arc<AtomicU64>);

impl Waits {
    fn among(all: &Arc<AtomicU64>) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(all))
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
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
            most_running: running,
            waiting: Arc::default(),
            taken_up: Arc::new(AtomicU64::new(0)),
            timeout: settings.timeout,
        })
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

    /// A place among those that run or wait over HTTP, whose clients nobody counts.
    ///
    /// # Errors
    /// `HTTP_BUSY`.
    fn admit(&self) -> Result<OwnedSemaphorePermit> {
        let admitted = Arc::clone(&self.admitted).try_acquire_owned();
        admitted.map_err(|_| busy())
    }

    /// Waits until a query may run.
    ///
    /// # Errors
    /// `HTTP_BUSY`: its patience is over.
    async fn turn(&self, patience: Option<Duration>) -> Result<OwnedSemaphorePermit> {
        let _waits = Waits::among(&self.waiting);
        let turn = Arc::clone(&self.running).acquire_owned();
        let turn = match patience {
            Some(patience) => tokio::time::timeout(patience, turn)
                .await
                .map_err(|_| busy())?,
            None => turn.await,
        };
        self.taken_up.fetch_add(1, Ordering::Relaxed);
        turn.map_err(|_| busy())
    }

    /// Runs the query that `opened` plans. Answers when its columns are known; what `encoder` makes of
    /// each batch, where it was computed, waits to be taken. `cancelled` ends it.
    ///
    /// # Errors
    /// `HTTP_BUSY`, `SQL_ENDED`; what the query fails with before its first rows.
    pub(crate) async fn run<P, E>(
        &self,
        opened: impl Future<Output = Result<QueryResult>> + Send + 'static,
        encoder: impl FnOnce(&SchemaRef) -> E + Send + 'static,
        limits: Limits,
    ) -> Result<Running<P>>
    where
        P: Send + 'static,
        E: FnMut(&RecordBatch) -> Result<P> + Send + 'static,
    {
        let (told, telling) = oneshot::channel();
        let (sender, mut pieces) = mpsc::channel(PIECES);
        let (queries, out) = (self.clone(), sender.clone());
        let work = async move {
            let _turn = queries.turn(limits.patience).await?;
            let mut result = opened.await?;
            let mut encode = encoder(&result.schema);
            let _ = told.send(Arc::clone(&result.schema));
            while let Some(batch) = result.batches.next().await {
                if out.send(Ok(encode(&batch?)?)).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let mut working = JoinSet::new();
        working.spawn_on(work, &self.runtime);
        // Not on the threads of queries: those may be busy with what is to be ended.
        tokio::spawn(async move {
            if let Err(error) = watch(&mut working, &sender, limits).await {
                let _ = sender.send(Err(error)).await;
            }
        });
        match telling.await {
            Ok(schema) => Ok(Running { schema, pieces }),
            Err(_) => Err(match pieces.recv().await {
                Some(Err(error)) => error,
                _ => Error::bug("a query ended without an answer"),
            }),
        }
    }

    /// Runs `sql`. Answers when the first rows are there: they and the rest as one JSON array.
    ///
    /// # Errors
    /// As [`Queries::run`].
    pub(crate) async fn answer(
        &self,
        sql: String,
    ) -> Result<impl Stream<Item = Piece> + Send + use<>> {
        let admitted = self.admit()?;
        let queries = self.clone();
        let opened = async move {
            let session = queries.open()?;
            let statements = session.statements(&sql)?;
            let named = session.silver_tables(&statements.iter().collect::<Vec<_>>());
            session.show(queries.views.of(named).await)?;
            session.answer(&statements).await
        };
        let limits = Limits {
            timeout: self.timeout,
            patience: Some(PATIENCE),
            cancelled: None,
        };
        let running = self.run(opened, |_| |batch: &RecordBatch| Ok(batch.clone()), limits);
        let running = running.await?;
        let (sender, mut receiver) = mpsc::channel(PIECES);
        // A thread of its own, because rows are written as text between two waits for more.
        self.runtime.spawn_blocking(move || {
            let _until_the_end = admitted;
            if let Err(error) = send_rows(running, &sender) {
                let _ = sender.blocking_send(Err(error));
            }
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
        let running = self
            .most_running
            .saturating_sub(self.running.available_permits());
        status.running_queries = running as u64;
        status.waiting_queries = self.waiting.load(Ordering::Relaxed);
        status.queries = self.taken_up.load(Ordering::Relaxed);
    }
}

fn busy() -> Error {
    Error::new(&code::HTTP_BUSY, "too many queries wait already")
}

/// Until the query is done, or must not go on.
async fn watch<P>(
    working: &mut JoinSet<Result<()>>,
    sender: &mpsc::Sender<Result<P>>,
    limits: Limits,
) -> Result<()> {
    let ended = |why: &str| Err(Error::new(&code::SQL_ENDED, why));
    let cancelled = async {
        match limits.cancelled {
            // Nobody who could is no reason.
            Some(cancelled) => drop(
                cancelled
                    .or_else(|_| std::future::pending::<Result<()>>())
                    .await,
            ),
            None => std::future::pending().await,
        }
    };
    let late = async {
        match limits.timeout {
            Some(timeout) => worked_for(timeout, sender).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        Some(done) = working.join_next() => done.unwrap_or_else(|error| {
            Err(Error::bug("a query broke off").with_detail(error.to_string()))
        }),
        () = cancelled => ended("canceling statement due to user request"),
        () = late => ended("canceling statement due to statement timeout"),
        // Nobody takes its rows any more.
        () = sender.closed() => Ok(()),
    }
}

/// Until a query worked for so long: while it waits for its client the clock stands.
async fn worked_for<P>(most: Duration, sender: &mpsc::Sender<P>) {
    const TICK: Duration = Duration::from_millis(50);
    let mut left = most;
    while !left.is_zero() {
        let tick = left.min(TICK);
        tokio::time::sleep(tick).await;
        if sender.capacity() > 0 {
            left -= tick;
        }
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

/// The rows of an answer, as JSON. Nobody listening is no error.
fn send_rows(mut running: Running<RecordBatch>, pieces: &mpsc::Sender<Piece>) -> Result<()> {
    let text = Collected::default();
    let mut out = text.clone();
    let options = Options::new(Format::Json);
    let mut printer = Printer::new(&running.schema, &options, &mut out);
    while let Some(batch) = running.pieces.blocking_recv() {
        printer.write(&batch?)?;
        if text.len() >= PIECE_BYTES && pieces.blocking_send(Ok(text.take())).is_err() {
            return Ok(());
        }
    }
    printer.finish()?;
    let _ = pieces.blocking_send(Ok(text.take()));
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
        let error = ask();
        assert!(error.is(&code::HTTP_BUSY), "{error}");
        drop(held);
        let turn = queries.running.try_acquire().unwrap();
        assert_eq!(counts(), (1, 0, 0));
        drop(turn);
        let error = ask();
        assert!(error.is(&code::LAKE_IO), "{error}");
        // Its places are given back, by a thread that may need a moment.
        while counts() != (0, 0, 1) {
            std::thread::yield_now();
        }
    }
}
