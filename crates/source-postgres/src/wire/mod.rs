//! A session on the protocol itself: start-up, authentication, simple queries, and reading in bulk.
//!
//! Below the replication session, which `tokio-postgres` cannot speak, and the one that copies, where
//! a message is a row and the client's way through tasks and queues costs more than the row.

mod message;

use std::io;

use alluvium_change::{Error, Result, code};
use bytes::{Buf as _, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub(crate) use message::{HEADER_BYTES, Message, first_message, protocol, take_message};

use crate::connect::{
    self, ConnectOptions, NEWER_TIMEOUTS_SQL, SETTINGS, ServerError, Transport, map_io,
};

/// Large enough that a busy stream is read in few system calls.
pub(crate) const READ_BYTES: usize = 256 * 1024;
/// With less room than this a new buffer is taken.
const LEAST_ROOM_BYTES: usize = READ_BYTES / 4;
/// A buffer that a large row made larger than this is given back.
const MOST_KEPT_BYTES: usize = 16 * READ_BYTES;

/// A value of a simple query's row.
pub(crate) type Cell = Option<String>;

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Ordinary,
    /// `replication=database`.
    Replication,
}

#[derive(Debug)]
pub(crate) struct Wire {
    transport: Transport,
    /// Read, and not taken yet.
    pub(crate) received: BytesMut,
    /// Not yet written: survives a cancelled write.
    to_send: BytesMut,
}

impl Wire {
    /// Opens a session with every setting that decoding relies on.
    ///
    /// # Errors
    /// As [`connect::connect`].
    pub(crate) async fn connect(options: &ConnectOptions, mode: Mode) -> Result<Self> {
        let mut wire = connect::open(options, |transport| async move {
            Self::start(options, transport, mode)
                .await
                .map_err(|error| connect::start_error(error, options))
        })
        .await?;
        wire.query(NEWER_TIMEOUTS_SQL, "setting up the session")
            .await?;
        Ok(wire)
    }

    /// Speaks the start-up on a fresh transport, up to the server's readiness.
    async fn start(options: &ConnectOptions, transport: Transport, mode: Mode) -> Result<Self> {
        let mut wire = Self {
            transport,
            received: BytesMut::with_capacity(READ_BYTES),
            to_send: BytesMut::new(),
        };
        let doing = crate::connect::doing(options);
        let mut parameters = vec![
            ("user", options.user.as_str()),
            ("database", options.database.as_str()),
            ("application_name", options.application_name.as_str()),
        ];
        if mode == Mode::Replication {
            parameters.push(("replication", "database"));
        }
        if let Some(server_options) = &options.server_options {
            parameters.push(("options", server_options));
        }
        parameters.extend(SETTINGS);
        frontend::startup_message(parameters, &mut wire.to_send).map_err(not_sendable)?;
        wire.flush().await?;
        wire.authenticate(options, &doing).await?;
        wire.until_ready(&doing).await?;
        Ok(wire)
    }

    async fn authenticate(&mut self, options: &ConnectOptions, doing: &str) -> Result<()> {
        let password = || {
            options.password().ok_or_else(|| {
                Error::new(
                    &code::PG_AUTH,
                    format!("{doing}: the server asks for a password"),
                )
            })
        };
        let mut scram: Option<ScramSha256> = None;
        loop {
            let Message { tag, mut body } = self.message(doing).await?;
            if tag != b'R' || body.len() < 4 {
                return Err(protocol(format!(
                    "a message \"{}\" at start",
                    char::from(tag)
                )));
            }
            match (body.get_i32(), &mut scram) {
                (0, _) => return Ok(()),
                (3, _) => self.send_password(password()?.as_bytes())?,
                (5, _) => {
                    let salt = body
                        .get(..4)
                        .and_then(|salt| <[u8; 4]>::try_from(salt).ok());
                    let salt = salt.ok_or_else(|| protocol("a short salt".to_owned()))?;
                    let user = options.user.as_bytes();
                    let hash = md5_hash(user, password()?.as_bytes(), salt);
                    self.send_password(hash.as_bytes())?;
                }
                (10, _) => {
                    if !body
                        .split(|&byte| byte == 0)
                        .any(|name| name == SCRAM_SHA_256.as_bytes())
                    {
                        return Err(unsupported(doing, "its SASL mechanisms"));
                    }
                    let started =
                        ScramSha256::new(password()?.as_bytes(), ChannelBinding::unsupported());
                    frontend::sasl_initial_response(
                        SCRAM_SHA_256,
                        started.message(),
                        &mut self.to_send,
                    )
                    .map_err(not_sendable)?;
                    scram = Some(started);
                }
                (11, Some(scram)) => {
                    scram
                        .update(&body)
                        .map_err(|error| not_genuine(doing, error))?;
                    frontend::sasl_response(scram.message(), &mut self.to_send)
                        .map_err(not_sendable)?;
                }
                (12, Some(scram)) => {
                    scram
                        .finish(&body)
                        .map_err(|error| not_genuine(doing, error))?;
                }
                (kind, _) => return Err(unsupported(doing, &format!("method {kind}"))),
            }
            self.flush().await?;
        }
    }

    fn send_password(&mut self, password: &[u8]) -> Result<()> {
        frontend::password_message(password, &mut self.to_send).map_err(not_sendable)
    }

    /// Runs one command and returns its rows.
    pub(crate) async fn query(&mut self, command: &str, doing: &str) -> Result<Vec<Vec<Cell>>> {
        frontend::query(command, &mut self.to_send).map_err(not_sendable)?;
        self.flush().await?;
        self.until_ready(doing).await
    }

    /// Sends a command after which data comes; its first message has the tag `begins`.
    pub(crate) async fn enter(&mut self, command: &str, begins: u8, doing: &str) -> Result<()> {
        frontend::query(command, &mut self.to_send).map_err(not_sendable)?;
        self.flush().await?;
        loop {
            match self.message(doing).await?.tag {
                tag if tag == begins => return Ok(()),
                b'S' | b'N' => {}
                tag => {
                    let what = format!("a message \"{}\" instead of data", char::from(tag));
                    return Err(protocol(what));
                }
            }
        }
    }

    /// Rows up to the server's readiness for the next command. An error is returned after that,
    /// so the session stays usable.
    async fn until_ready(&mut self, doing: &str) -> Result<Vec<Vec<Cell>>> {
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let Message { tag, body } = match self.raw_message(doing).await {
                Ok(message) => message,
                // A fatal error closes the connection: the error says more than its end.
                Err(lost) => return Err(failed.unwrap_or(lost)),
            };
            match tag {
                b'Z' => return failed.map_or(Ok(rows), Err),
                b'D' => rows.push(parse_row(body)?),
                b'E' => failed = Some(ServerError::from_fields(&body).into_error(doing)),
                b'S' | b'K' | b'N' | b'T' | b'C' | b'I' | b'A' => {}
                other => {
                    return Err(protocol(format!(
                        "an unexpected message \"{}\"",
                        char::from(other)
                    )));
                }
            }
        }
    }

    /// Passes over everything up to the server's readiness, errors too.
    pub(crate) async fn skip_until_ready(&mut self, doing: &str) -> Result<()> {
        while self.raw_message(doing).await?.tag != b'Z' {}
        Ok(())
    }

    /// The next message; the server's error is an `Err`.
    async fn message(&mut self, doing: &str) -> Result<Message> {
        loop {
            let message = self.raw_message(doing).await?;
            match message.tag {
                b'E' => return Err(ServerError::from_fields(&message.body).into_error(doing)),
                // NegotiateProtocolVersion cannot come: nothing newer is asked for.
                b'N' => {}
                _ => return Ok(message),
            }
        }
    }

    async fn raw_message(&mut self, doing: &str) -> Result<Message> {
        loop {
            if let Some(message) = take_message(&mut self.received)? {
                return Ok(message);
            }
            self.read(doing).await?;
        }
    }

    /// Reads once; the bytes are in [`Self::received`]. Safe to cancel.
    pub(crate) async fn read(&mut self, doing: &str) -> Result<usize> {
        if self.received.is_empty() && self.received.capacity() > MOST_KEPT_BYTES {
            self.received = BytesMut::new();
        }
        if self.received.capacity() - self.received.len() < LEAST_ROOM_BYTES {
            self.received.reserve(READ_BYTES);
        }
        match self.transport.read_buf(&mut self.received).await {
            Ok(0) => Err(Error::new(
                &code::PG_CONNECTION_LOST,
                format!("{doing}: the server closed the connection"),
            )),
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(map_io(error, doing)),
        }
    }

    /// Adds to what the next [`Self::flush`] sends.
    pub(crate) fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.to_send
    }

    /// Writes all that waits. Safe to cancel: what was not written stays and goes first next time.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        let lost = |error| map_io(error, "writing to the server");
        while !self.to_send.is_empty() {
            let written = self
                .transport
                .write_buf(&mut self.to_send)
                .await
                .map_err(lost)?;
            if written == 0 {
                return Err(lost(io::ErrorKind::WriteZero.into()));
            }
        }
        self.transport.flush().await.map_err(lost)
    }

    /// Has the socket watched by the runtime this is called in, and no longer by another.
    pub(crate) fn move_to_this_runtime(&mut self) -> Result<()> {
        self.transport
            .move_to_this_runtime()
            .map_err(|error| map_io(error, "handing the connection to its thread"))
    }

    pub(crate) async fn shutdown(&mut self) -> Result<()> {
        frontend::terminate(&mut self.to_send);
        self.flush().await?;
        self.transport
            .shutdown()
            .await
            .map_err(|error| map_io(error, "closing the connection"))
    }
}

fn parse_row(mut body: Bytes) -> Result<Vec<Cell>> {
    let truncated = || protocol("a row that ends too early".to_owned());
    let count = body.try_get_u16().map_err(|_| truncated())?;
    let mut row = Vec::new();
    for _ in 0..count {
        let length = body.try_get_i32().map_err(|_| truncated())?;
        let Ok(length) = usize::try_from(length) else {
            row.push(None);
            continue;
        };
        if body.len() < length {
            return Err(truncated());
        }
        row.push(Some(
            String::from_utf8_lossy(&body.split_to(length)).into_owned(),
        ));
    }
    Ok(row)
}

fn not_sendable(error: io::Error) -> Error {
    Error::new(
        &code::PG_URL,
        "a name or password cannot be sent to the server",
    )
    .with_detail(error.to_string())
}

fn not_genuine(doing: &str, error: io::Error) -> Error {
    Error::new(
        &code::PG_AUTH,
        format!("{doing}: the authentication failed"),
    )
    .with_detail(error.to_string())
}

fn unsupported(doing: &str, what: &str) -> Error {
    Error::new(
        &code::PG_AUTH,
        format!("{doing}: the server asks for an unknown authentication"),
    )
    .with_detail(what.to_owned())
    .with_hint("allow scram-sha-256, md5 or a certificate for this role in pg_hba.conf")
}
