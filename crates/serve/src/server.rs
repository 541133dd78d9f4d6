//! The server as a whole: listens, serves on threads of its own, ends with the pipeline.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use alluvium_change::{Error, Result, code};
use alluvium_pipeline::project::Project;
use alluvium_pipeline::status::StatusBoard;
use alluvium_pipeline::views::Views;
use axum::serve::ListenerExt as _;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::guard::Guard;
use crate::query::Queries;
use crate::routes::{self, Context};

/// How long answers in hand may take once the server is to end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// A running server. Dropping it ends it at once.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    board: StatusBoard,
    end: watch::Sender<bool>,
    serving: Option<JoinHandle<()>>,
    /// That of the server, and that of queries.
    runtimes: [Option<Runtime>; 2],
}

impl Server {
    /// Starts the server that the project asks for, if it does; its address goes to the board.
    ///
    /// # Errors
    /// `HTTP_LISTEN` when the address is taken, or not one of this machine.
    pub fn start(project: &Project, board: &StatusBoard, views: Views) -> Result<Option<Self>> {
        let Some(settings) = &project.http else {
            return Ok(None);
        };
        let wanted = settings.listen;
        let (listener, address) = listen(wanted).map_err(|error| {
            let error_kind = error.kind();
            let error = Error::new(
                &code::HTTP_LISTEN,
                format!("the HTTP server cannot listen at \"{wanted}\""),
            )
            .with_detail(error.to_string());
            match error_kind {
                std::io::ErrorKind::AddrInUse => error.with_hint(format!(
                    "another program has this port (see: ss -ltnp); stop it, or choose another: \
                     [serve.http] listen = \"{}:0\" takes any free one",
                    wanted.ip()
                )),
                _ => error,
            }
        })?;
        let serve_runtime = runtime("alluvium-http", 1)?;
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let query_runtime = runtime("alluvium-sql", threads)?;
        let context = Context {
            board: board.clone(),
            file: project.file.clone(),
            queries: Queries::new(
                query_runtime.handle().clone(),
                (project.lake_path.clone(), views),
                settings,
                threads,
            )?,
        };
        let routes = routes::all(context, Guard::of(address));
        let (end, mut ended) = watch::channel(false);
        let serving = serve_runtime.spawn(async move {
            let listener = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(error = %error, "the HTTP server could not be started");
                    return;
                }
            };
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
        });
        board.update(|status| status.http.address = Some(address.to_string()));
        tracing::info!(address = %format!("http://{address}"), "serving /metrics, /healthz and /api/v1");
        Ok(Some(Self {
            address,
            board: board.clone(),
            end,
            serving: Some(serving),
            runtimes: [Some(serve_runtime), Some(query_runtime)],
        }))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more requests, and lets answers in hand go out for a moment.
    pub async fn stop(mut self) {
        self.end.send_replace(true);
        if let Some(serving) = self.serving.take()
            && tokio::time::timeout(LAST_ANSWERS, serving).await.is_err()
        {
            tracing::debug!("answers in hand took too long");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.board.update(|status| status.http = Default::default());
        for runtime in &mut self.runtimes {
            // Waits for nothing: a runtime may not be waited for within another.
            if let Some(runtime) = runtime.take() {
                runtime.shutdown_background();
            }
        }
    }
}

fn listen(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn runtime(name: &str, threads: usize) -> Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|error| Error::bug("a runtime could not be started").with_source(error))
}
