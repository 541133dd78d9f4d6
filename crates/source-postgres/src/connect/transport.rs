//! The byte stream to the server: TCP, unix socket, or TLS over TCP.
//!
//! Ordinary sessions and the replication session both start here, so encryption and timeouts mean
//! the same for both.

use std::io;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use alluvium_change::{Error, Result, code};
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::{map_io, server_error};
use super::options::{ConnectOptions, Host, SslMode};
use super::tls;

/// A dead peer is found after about this much silence.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// An open stream on which the server awaits the startup message.
#[derive(Debug)]
pub(crate) enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// One way to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Plain,
    /// Encrypted where the server offers it.
    TlsIfOffered,
    Tls,
}

fn attempts(options: &ConnectOptions) -> &'static [Attempt] {
    match (&options.host, options.ssl_mode) {
        (Host::Unix(_), _) | (_, SslMode::Disable) => &[Attempt::Plain],
        (_, SslMode::Allow) => &[Attempt::Plain, Attempt::Tls],
        (_, SslMode::Prefer) => &[Attempt::TlsIfOffered, Attempt::Plain],
        _ => &[Attempt::Tls],
    }
}

/// Opens a stream and hands it to `start`; where `sslmode` leaves a choice and the server's rules
/// refuse one way, tries the other.
pub(super) async fn open<T, F>(
    options: &ConnectOptions,
    start: impl Fn(Transport) -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let attempts = attempts(options);
    let run = async {
        let mut last = Error::bug("no way to connect was tried");
        for (place, &attempt) in attempts.iter().enumerate() {
            let (outcome, was_tls) = match connect_socket(options, attempt).await {
                Ok(transport) => {
                    let is_tls = matches!(transport, Transport::Tls(_));
                    (start(transport).await, is_tls)
                }
                Err(error) => (Err(error), false),
            };
            let error = match outcome {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let is_last = place + 1 == attempts.len();
            let refused_by_rules =
                server_error(&error).is_some_and(|server| server.sqlstate == "28000");
            let other_way_may_work = match attempt {
                Attempt::Plain => refused_by_rules,
                Attempt::TlsIfOffered => error.is(&code::PG_TLS) || (was_tls && refused_by_rules),
                Attempt::Tls => false,
            };
            if is_last || !other_way_may_work {
                return Err(error);
            }
            last = error;
        }
        Err(last)
    };
    match tokio::time::timeout(options.connect_timeout, run).await {
        Ok(result) => result,
        Err(_) => Err(
            Error::new(&code::PG_CONNECT, format!("\"{options}\" did not answer"))
                .with_detail(format!("waited {} s", options.connect_timeout.as_secs())),
        ),
    }
}

async fn connect_socket(options: &ConnectOptions, attempt: Attempt) -> Result<Transport> {
    let unreachable = |error: io::Error| {
        Error::new(
            &code::PG_CONNECT,
            format!("cannot connect to \"{options}\""),
        )
        .with_detail(error.to_string())
        .with_source(error)
    };
    let mut stream = match &options.host {
        Host::Unix(directory) => {
            let path = directory.join(format!(".s.PGSQL.{}", options.port));
            let stream = UnixStream::connect(path).await.map_err(unreachable)?;
            return Ok(Transport::Unix(stream));
        }
        Host::Tcp(host) => TcpStream::connect((host.as_str(), options.port))
            .await
            .map_err(unreachable)?,
    };
    stream.set_nodelay(true).map_err(unreachable)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL);
    if let Err(error) = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive) {
        tracing::debug!(error = %error, "tcp keepalive could not be set");
    }
    if attempt == Attempt::Plain {
        return Ok(Transport::Tcp(stream));
    }
    if !ask_for_tls(&mut stream).await? {
        return match attempt {
            Attempt::Tls => Err(
                Error::new(&code::PG_TLS, "the server does not offer encryption").with_hint(
                    format!(
                        "sslmode is {}: switch ssl on at the server, or use sslmode=prefer",
                        options.ssl_mode.name()
                    ),
                ),
            ),
            _ => Ok(Transport::Tcp(stream)),
        };
    }
    let connector = TlsConnector::from(Arc::new(tls::client_config(options)?));
    let name = tls::server_name(options)?;
    match connector.connect(name, stream).await {
        Ok(stream) => Ok(Transport::Tls(Box::new(stream))),
        Err(error) => Err(tls::tls_error("the TLS handshake failed", error)),
    }
}

/// Whether the server offers TLS. Reads the one byte of its answer and no more: what came in
/// clear after it must not be taken for encrypted.
async fn ask_for_tls(stream: &mut TcpStream) -> Result<bool> {
    let doing = "asking for encryption";
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream
        .write_all(&request)
        .await
        .map_err(|error| map_io(error, doing))?;
    match stream
        .read_u8()
        .await
        .map_err(|error| map_io(error, doing))?
    {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(Error::new(
            &code::PG_CONNECT,
            "the answer is not that of a PostgreSQL server",
        )),
    }
}

impl Transport {
    /// Has the socket watched by the runtime this is called in, and no longer by another.
    pub(crate) fn move_to_this_runtime(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => *stream = watched_here(stream)?,
            Self::Unix(stream) => {
                let socket = stream.as_fd().try_clone_to_owned()?;
                *stream = UnixStream::from_std(socket.into())?;
            }
            Self::Tls(stream) => {
                let (stream, _) = stream.get_mut();
                *stream = watched_here(stream)?;
            }
        }
        Ok(())
    }
}

fn watched_here(stream: &TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(stream.as_fd().try_clone_to_owned()?.into())
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}
