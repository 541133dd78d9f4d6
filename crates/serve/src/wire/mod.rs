//! PostgreSQL's protocol, version 3: what psql, drivers and BI tools speak.
//!
//! ```text
//! client ─► startup ─► statement ─► Queries ─► rows, encoded where they are computed ─► client
//! ```
//!
//! Messages are pgwire's, <https://www.postgresql.org/docs/current/protocol.html>. Invariant: read-only;
//! what a client leaves behind (queries, cursors, its place among the connections) ends with it.

mod connection;
mod copy;
mod error;
mod extended;
mod parameters;
mod rows;
mod simple;
mod startup;
mod statement;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alluvium_change::Result;
use alluvium_pipeline::project::PgSettings;
use alluvium_pipeline::status::StatusBoard;
use pgwire::api::PgWireServerHandlers;
use pgwire::api::cancel::CancelHandler;
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::startup::SecretKey;
use pgwire::tokio::process_socket;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::query::Queries;
use connection::{Cancel, Connection};
use simple::Talk;
use startup::Users;

/// What all connections share.
pub(crate) struct Shared {
    queries: Queries,
    users: Option<Users>,
    tls: Option<pgwire::tokio::TlsAcceptor>,
    places: Arc<Semaphore>,
    /// By process id, as a client is told it.
    cancels: Mutex<HashMap<i32, (SecretKey, Cancel)>>,
    next_pid: AtomicI32,
    board: StatusBoard,
}

impl Shared {
    /// # Errors
    /// `CONFIG_VALUE`: certificate or key cannot be used.
    pub(crate) fn new(settings: &PgSettings, queries: Queries, board: StatusBoard) -> Result<Self> {
        let places = usize::try_from(settings.max_connections).unwrap_or(usize::MAX);
        Ok(Self {
            queries,
            users: Users::of(&settings.users),
            tls: settings.tls.as_ref().map(startup::acceptor).transpose()?,
            places: Arc::new(Semaphore::new(places)),
            cancels: Mutex::default(),
            next_pid: AtomicI32::new(1),
            board,
        })
    }

    /// What a client says who wants to end a query of this connection.
    fn register(&self, cancel: &Cancel, secret: SecretKey) -> i32 {
        let pid = self.next_pid.fetch_add(1, Ordering::Relaxed) & i32::MAX;
        let mut cancels = self.cancels.lock().unwrap_or_else(PoisonError::into_inner);
        cancels.insert(pid, (secret, cancel.clone()));
        pid
    }

    fn forget(&self, pid: i32) {
        let mut cancels = self.cancels.lock().unwrap_or_else(PoisonError::into_inner);
        cancels.remove(&pid);
    }

    fn cancel(&self, request: &CancelRequest) {
        let cancels = self.cancels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((secret, cancel)) = cancels.get(&request.pid)
            && secret.eq_value(&request.secret_key)
        {
            cancel.now();
        }
    }
}

/// Accepts connections until the server ends, and with it they do.
pub(crate) async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    mut ended: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let shared = Arc::clone(&shared);
                    connections.spawn(async move { converse(stream, shared).await });
                }
                Err(error) => {
                    // Such as too many open files: it passes.
                    tracing::warn!(%error, "a PostgreSQL client could not be let in");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = async { drop(ended.wait_for(|ended| *ended).await) } => return,
        }
    }
}

/// How often it is looked whether the client of a running query is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

async fn converse(stream: TcpStream, shared: Arc<Shared>) {
    let place = Arc::clone(&shared.places).try_acquire_owned().ok();
    let connection = Arc::new(Connection::new(Arc::clone(&shared), place));
    shared.board.update(|status| status.pg.connections += 1);
    let gone = watch_client(&stream);
    let handlers = Handlers(Arc::clone(&connection));
    let talking = process_socket(stream, shared.tls.clone(), handlers);
    tokio::select! {
        ended = talking => if let Err(error) = ended {
            tracing::debug!(%error, "a PostgreSQL client's connection failed");
        },
        () = gone => tracing::debug!("a PostgreSQL client went away"),
    }
    shared
        .board
        .update(|status| status.pg.connections = status.pg.connections.saturating_sub(1));
}

/// Ends when the client has closed its end: while a query runs nobody reads from it.
fn watch_client(stream: &TcpStream) -> impl Future<Output = ()> + Send + use<> {
    use std::os::fd::AsFd as _;
    let twin = stream
        .as_fd()
        .try_clone_to_owned()
        .map(std::net::TcpStream::from);
    let twin = twin.and_then(TcpStream::from_std).ok();
    async move {
        let Some(twin) = twin else {
            return std::future::pending().await;
        };
        let mut byte = [0];
        loop {
            match twin.peek(&mut byte).await {
                Ok(0) | Err(_) => {
                    // What it sent before is answered first, where it can be.
                    tokio::time::sleep(LOOK_EVERY).await;
                    return;
                }
                Ok(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }
}

struct Handlers(Arc<Connection>);

impl PgWireServerHandlers for Handlers {
    fn simple_query_handler(&self) -> Arc<impl pgwire::api::query::SimpleQueryHandler> {
        Arc::new(Talk(Arc::clone(&self.0)))
    }

    fn extended_query_handler(&self) -> Arc<impl pgwire::api::query::ExtendedQueryHandler> {
        Arc::new(Talk(Arc::clone(&self.0)))
    }

    fn startup_handler(&self) -> Arc<impl pgwire::api::auth::StartupHandler> {
        Arc::clone(&self.0)
    }

    fn cancel_handler(&self) -> Arc<impl CancelHandler> {
        Arc::clone(&self.0)
    }
}

#[async_trait::async_trait]
impl CancelHandler for Connection {
    async fn on_cancel_request(&self, request: CancelRequest) {
        self.shared.cancel(&request);
    }
}
