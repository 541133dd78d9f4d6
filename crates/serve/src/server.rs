//! The servers as a whole: they listen, serve on threads of their own, end with the pipeline.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alluvium_change::{Code, Error, Result, code};
use alluvium_pipeline::project::Project;
use alluvium_pipeline::status::StatusBoard;
use alluvium_pipeline::views::Views;
use axum::Router;
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::guard::Guard;
use crate::query::Queries;
use crate::routes::{self, Context};
use crate::wire;

/// How long answers in hand may take once the server is to end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Running servers. Dropping it ends them at once.
#[derive(Debug)]
pub struct Server {
    board: StatusBoard,
    end: watch::Sender<bool>,
    serving: Vec<JoinHandle<()>>,
    /// That of the servers, and that of queries.
    runtimes: [Option<Runtime>; 2],
}

impl Server {
    /// Starts the servers that the project asks for, if it does; their addresses go to the board.
    ///
    /// # Errors
    /// `HTTP_LISTEN`, `WIRE_LISTEN` when an address is taken, or not one of this machine.
    pub fn start(project: &Project, board: &StatusBoard, views: Views) -> Result<Option<Self>> {
        let settings = &project.serve;
        if !settings.answers_queries() {
            return Ok(None);
        }
        let serve_runtime = runtime("alluvium-serve", 1)?;
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let query_runtime = runtime("alluvium-sql", threads)?;
        let (end, ended) = watch::channel(false);
        let (spawner, query_handle) = (
            serve_runtime.handle().clone(),
            query_runtime.handle().clone(),
        );
        // Before anything can fail: a runtime that is merely dropped waits.
        let mut server = Self {
            board: board.clone(),
            end,
            serving: Vec::new(),
            runtimes: [Some(serve_runtime), Some(query_runtime)],
        };
        let queries = Queries::new(
            query_handle,
            (project.lake_path.clone(), views),
            &settings.sql,
            threads,
        )?;
        let _within = spawner.enter();
        if let Some(http) = &settings.http {
            let (listener, address) = listen(http.listen).map_err(|error| {
                cannot_listen(&code::HTTP_LISTEN, "HTTP", "http", http.listen, &error)
            })?;
            let context = Context {
                board: board.clone(),
                file: project.file.clone(),
                queries: queries.clone(),
            };
            let routes = routes::all(context, Guard::of(address));
            server
                .serving
                .push(spawner.spawn(serve_http(listener, routes, ended.clone())));
            board.update(|status| status.http.address = Some(address.to_string()));
            tracing::info!(address = %format!("http://{address}"), "serving /metrics, /healthz and /api/v1");
        }
        if let Some(pg) = &settings.pg {
            let (listener, address) = listen(pg.listen).map_err(|error| {
                cannot_listen(&code::WIRE_LISTEN, "PostgreSQL", "pg", pg.listen, &error)
            })?;
            let shared = Arc::new(wire::Shared::new(pg, queries, board.clone())?);
            server
                .serving
                .push(spawner.spawn(wire::serve(listener, shared, ended)));
            board.update(|status| status.pg.address = Some(address.to_string()));
            tracing::info!(address = %format!("postgres://{address}/lake"), "serving SQL by PostgreSQL's protocol");
        }
        Ok(Some(server))
    }

    /// Takes no more requests, and lets answers in hand go out for a moment.
    pub async fn stop(mut self) {
        self.end.send_replace(true);
        let serving = futures::future::join_all(self.serving.drain(..));
        if tokio::time::timeout(LAST_ANSWERS, serving).await.is_err() {
            tracing::debug!("answers in hand took too long");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.board.update(|status| {
            status.http = Default::default();
            status.pg = Default::default();
        });
        for runtime in &mut self.runtimes {
            // Waits for nothing: a runtime may not be waited for within another.
            if let Some(runtime) = runtime.take() {
                runtime.shutdown_background();
            }
        }
    }
}

async fn serve_http(listener: TcpListener, routes: Router, mut ended: watch::Receiver<bool>) {
    let until_end = async move {
        // The sender's end is an end too.
        let _ = ended.wait_for(|ended| *ended).await;
    };
    // An answer goes out in pieces, which must not wait for each other.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let serving = axum::serve(listener, routes).with_graceful_shutdown(until_end);
    if let Err(error) = serving.await {
        tracing::error!(error = %error, "the HTTP server ended");
    }
}

fn cannot_listen(
    code: &'static Code,
    server: &str,
    section: &str,
    wanted: SocketAddr,
    failure: &io::Error,
) -> Error {
    let error = Error::new(
        code,
        format!("the {server} server cannot listen at \"{wanted}\""),
    )
    .with_detail(failure.to_string());
    match failure.kind() {
        io::ErrorKind::AddrInUse => error.with_hint(format!(
            "another program has this port (see: ss -ltnp); stop it, or choose another: \
             [serve.{section}] listen = \"{}:0\" takes any free one",
            wanted.ip()
        )),
        _ => error,
    }
}

/// Within a runtime.
fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((TcpListener::from_std(listener)?, address))
}

fn runtime(name: &str, threads: usize) -> Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|error| Error::bug("a runtime could not be started").with_source(error))
}
