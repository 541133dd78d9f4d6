//! A session in replication mode: creates slots, streams changes, reports progress.
//!
//! Stands between the server and the pgoutput decoder, which gets [`Frame`]s. Written on
//! `postgres-protocol` because `tokio-postgres` cannot speak this mode. Reading is in bulk
//! ([`ReplicationConnection::fill`]) and apart from cutting ([`ReplicationConnection::next_frame`]),
//! so a caller decodes all that has arrived before it waits again.

mod frame;
mod pace;
mod pump;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alluvium_change::{Code, Error, Lsn, Result, code};
use bytes::BytesMut;
use postgres_protocol::message::frontend;

pub use frame::Frame;

use crate::connect::{ConnectOptions, ServerError, server_error};
use crate::tuples::{self, TupleForm};
use crate::wire::{Cell, Mode, Wire, protocol, take_message};
use frame::{parse_frame, put_status};
use pump::Pump;

/// How long an orderly end may take before the connection is just dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Which server answers, and where its log stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Made by `initdb`, shared by all standbys of a cluster.
    pub system_identifier: String,
    pub timeline: u32,
    pub flush_lsn: Lsn,
    pub database: String,
}

/// How long a slot lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlotKind {
    /// Dropped with the connection.
    pub temporary: bool,
    /// A transaction that is prepared is sent then. PostgreSQL 15 and later.
    pub two_phase: bool,
}

/// A slot just made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Transactions that commit at or after it are streamed, those before are in the snapshot.
    pub consistent_point: Lsn,
    /// For `SET TRANSACTION SNAPSHOT`; gone with this connection's next command.
    pub snapshot_name: String,
}

/// Version of pgoutput's protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// The newest of these that the server has.
    #[default]
    Auto,
    /// A transaction is sent when it has committed.
    V1,
    /// A large transaction is sent while it runs, in pieces. PostgreSQL 14 and later.
    V2,
}

/// How a stream is to come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamOptions {
    pub protocol: Protocol,
    pub tuples: TupleForm,
    /// A transaction is sent when it is prepared, not when that is committed: protocol 3, PostgreSQL 15
    /// and later. Once a slot has sent so, it goes on to, whatever is asked for later.
    pub two_phase: bool,
}

impl From<Protocol> for StreamOptions {
    fn from(protocol: Protocol) -> Self {
        Self {
            protocol,
            ..Self::default()
        }
    }
}

/// The first version of the server whose pgoutput sends transactions when they are prepared.
pub const TWO_PHASE_VERSION: u32 = 150_000;
/// The first version of the server that sends transactions in pieces.
const STREAMING_VERSION: u32 = 140_000;

/// A session with `replication=database`.
#[derive(Debug)]
pub struct ReplicationConnection {
    link: Link,
    slot: String,
    tuples: TupleForm,
    /// Of a stream: read, and not cut yet.
    received: BytesMut,
}

/// How the server is reached.
#[derive(Debug)]
enum Link {
    /// For commands and their answers.
    Commands(Wire),
    Stream(Pump),
    /// The stream could not begin.
    Gone,
}

impl ReplicationConnection {
    /// Opens the session with the same settings as an ordinary one.
    ///
    /// # Errors
    /// As [`crate::connect::connect`]; `PG_SLOTS_FULL` when all walsenders are taken, `PG_RIGHTS` without
    /// the REPLICATION attribute.
    pub async fn connect(options: &ConnectOptions) -> Result<Self> {
        Ok(Self {
            link: Link::Commands(Wire::connect(options, Mode::Replication).await?),
            slot: String::new(),
            tuples: TupleForm::Text,
            received: BytesMut::new(),
        })
    }

    async fn query(&mut self, command: &str, doing: &str) -> Result<Vec<Vec<Cell>>> {
        match &mut self.link {
            Link::Commands(wire) => wire.query(command, doing).await,
            Link::Stream(_) | Link::Gone => Err(Error::bug("a command in a stream")),
        }
    }

    /// `IDENTIFY_SYSTEM`.
    ///
    /// # Errors
    /// `PG_CONNECTION_LOST`, or `PG_PROTOCOL` for an answer of another shape.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity> {
        let rows = self
            .query("IDENTIFY_SYSTEM", "identifying the server")
            .await?;
        let row = first_row(rows)?;
        let [
            Some(system_identifier),
            Some(timeline),
            Some(lsn),
            database,
            ..,
        ] = row.as_slice()
        else {
            return Err(protocol("no identity".to_owned()));
        };
        Ok(SystemIdentity {
            system_identifier: system_identifier.clone(),
            timeline: timeline
                .parse()
                .map_err(|_| protocol("an odd timeline".to_owned()))?,
            flush_lsn: lsn.parse().map_err(|_| protocol("an odd LSN".to_owned()))?,
            database: database.clone().unwrap_or_default(),
        })
    }

    /// `TIMELINE_HISTORY`: of each timeline that `timeline` comes from, where it was left.
    ///
    /// # Errors
    /// As [`Self::identify_system`]; `PG_QUERY` when the server has no such timeline.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<Vec<(u32, Lsn)>> {
        if timeline <= 1 {
            return Ok(Vec::new());
        }
        let rows = self
            .query(
                &format!("TIMELINE_HISTORY {timeline}"),
                "reading the server's history",
            )
            .await?;
        let row = first_row(rows)?;
        let [_, Some(content), ..] = row.as_slice() else {
            return Err(protocol("no history of its timeline".to_owned()));
        };
        parse_history(content).ok_or_else(|| protocol("an odd history of its timeline".to_owned()))
    }

    /// Creates a logical slot for pgoutput and exports the snapshot that belongs to its start.
    ///
    /// Waits until transactions in progress have ended. The snapshot lives until the next command
    /// on this connection.
    ///
    /// # Errors
    /// `PG_SLOTS_FULL`, `PG_WAL_LEVEL`, `PG_RIGHTS`; `PG_QUERY` (42710) when it exists already.
    pub async fn create_slot(&mut self, name: &str, kind: SlotKind) -> Result<CreatedSlot> {
        // The form before PostgreSQL 15, which all later versions accept too.
        let temporary = if kind.temporary { " TEMPORARY" } else { "" };
        let two_phase = if kind.two_phase { " TWO_PHASE" } else { "" };
        let command = format!(
            "CREATE_REPLICATION_SLOT {}{temporary} LOGICAL \"pgoutput\" EXPORT_SNAPSHOT{two_phase}",
            quote_identifier(name)
        );
        let rows = self
            .query(&command, &format!("creating slot \"{name}\""))
            .await?;
        let row = first_row(rows)?;
        let [_, Some(lsn), Some(snapshot_name), ..] = row.as_slice() else {
            return Err(protocol("no slot".to_owned()));
        };
        Ok(CreatedSlot {
            consistent_point: lsn.parse().map_err(|_| protocol("an odd LSN".to_owned()))?,
            snapshot_name: snapshot_name.clone(),
        })
    }

    /// Starts the stream of `slot` after `start`; the server goes on from the slot's confirmed
    /// position where that is later.
    ///
    /// # Errors
    /// `PG_SLOT_ACTIVE`, `PG_SLOT_LOST`, `PG_WAL_LEVEL`, `PG_RIGHTS`; `CONFIG_VALUE` for a protocol
    /// that the server does not have.
    pub async fn start(
        &mut self,
        slot: &str,
        start: Lsn,
        publications: &[String],
        options: impl Into<StreamOptions>,
    ) -> Result<()> {
        let StreamOptions {
            protocol,
            tuples,
            two_phase,
        } = options.into();
        let streams = self.streams(protocol).await?;
        if two_phase {
            self.check_two_phase().await?;
        }
        // Only with the option does a server of any version take the slot for one that sends so.
        let version = match (two_phase, streams) {
            (false, false) => "\"proto_version\" '1'",
            (false, true) => "\"proto_version\" '2', \"streaming\" 'on'",
            (true, false) => "\"proto_version\" '3', \"two_phase\" 'on'",
            (true, true) => "\"proto_version\" '3', \"streaming\" 'on', \"two_phase\" 'on'",
        };
        let binary = match tuples {
            TupleForm::Text => "",
            TupleForm::Binary => ", \"binary\" 'true'",
        };
        slot.clone_into(&mut self.slot);
        self.tuples = tuples;
        let names: Vec<String> = publications
            .iter()
            .map(|name| quote_identifier(name))
            .collect();
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {start} ({version}{binary}, \"publication_names\" {})",
            quote_identifier(slot),
            quote_literal(&names.join(",")),
        );
        let doing = format!("starting the stream of slot \"{slot}\"");
        let Link::Commands(mut wire) = std::mem::replace(&mut self.link, Link::Gone) else {
            return Err(Error::bug("a stream in a stream"));
        };
        wire.enter(&command, b'W', &doing)
            .await
            .map_err(|error| stream_error(error, slot))?;
        self.link = Link::Stream(Pump::start(wire)?);
        Ok(())
    }

    /// The server's version as it numbers itself: 150004 for 15.4.
    ///
    /// # Errors
    /// As [`Self::identify_system`].
    pub async fn server_version(&mut self) -> Result<u32> {
        let rows = self
            .query("SHOW server_version_num", "identifying the server")
            .await?;
        let row = first_row(rows)?;
        row.first()
            .and_then(|cell| cell.as_deref()?.parse().ok())
            .ok_or_else(|| protocol("no version".to_owned()))
    }

    async fn check_two_phase(&mut self) -> Result<()> {
        let version = self.server_version().await?;
        if version < TWO_PHASE_VERSION {
            return Err(Error::new(
                &code::CONFIG_VALUE,
                "the server does not send prepared transactions",
            )
            .with_detail(format!("it is PostgreSQL {}", version / 10_000))
            .with_hint("set two_phase = false, or upgrade the server to 15 or later"));
        }
        Ok(())
    }

    /// Whether transactions will be sent while they run.
    async fn streams(&mut self, protocol: Protocol) -> Result<bool> {
        if protocol == Protocol::V1 {
            return Ok(false);
        }
        let version = self.server_version().await?;
        if version < STREAMING_VERSION && protocol == Protocol::V2 {
            return Err(
                Error::new(&code::CONFIG_VALUE, "the server does not have protocol 2")
                    .with_detail(format!("it is PostgreSQL {}", version / 10_000))
                    .with_hint("choose protocol = \"auto\", or upgrade the server to 14 or later"),
            );
        }
        Ok(version >= STREAMING_VERSION)
    }

    /// Waits for bytes that have been read ahead, and takes a part of them. Safe to cancel.
    ///
    /// # Errors
    /// `PG_CONNECTION_LOST`.
    pub async fn fill(&mut self) -> Result<()> {
        let Link::Stream(pump) = &mut self.link else {
            return Err(Error::bug("no stream was started"));
        };
        let bytes = pump.read().await?;
        if self.received.is_empty() {
            self.received = bytes;
        } else {
            self.received.unsplit(bytes);
        }
        Ok(())
    }

    /// The next frame of what was read; `None` when the rest is not whole yet.
    ///
    /// # Errors
    /// The server's own error, as of [`Self::start`]; `PG_CONNECTION_LOST` at the stream's end;
    /// `PG_PROTOCOL`.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        while let Some(message) = take_message(&mut self.received)? {
            match message.tag {
                b'd' => return parse_frame(message.body).map(Some),
                b'S' | b'N' => {}
                b'E' => {
                    let error = ServerError::from_fields(&message.body).into_error("streaming");
                    let error = tuples::server_refused(error, self.tuples);
                    return Err(stream_error(error, &self.slot));
                }
                // The server shuts down, or ended the stream for another reason.
                b'c' | b'C' | b'Z' => {
                    return Err(Error::new(
                        &code::PG_CONNECTION_LOST,
                        "the server ended the stream",
                    ));
                }
                tag => {
                    return Err(protocol(format!(
                        "a message \"{}\" in a stream",
                        char::from(tag)
                    )));
                }
            }
        }
        Ok(None)
    }

    /// Tells the server what is durable here (`flushed`: it may forget the WAL before) and what
    /// was received. Safe to cancel: a status is never sent in part.
    ///
    /// # Errors
    /// `PG_CONNECTION_LOST`.
    pub async fn send_status(
        &mut self,
        flushed: Lsn,
        received: Lsn,
        reply_requested: bool,
    ) -> Result<()> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now_micros = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
        let mut status = BytesMut::new();
        put_status(&mut status, received, flushed, now_micros, reply_requested);
        match &self.link {
            Link::Stream(pump) => pump.send(status.freeze()).await,
            Link::Commands(_) | Link::Gone => Err(Error::bug("a status outside a stream")),
        }
    }

    /// Drops the connection with what it has not given yet; the server notices by itself.
    pub fn abandon(&mut self) {
        self.link = Link::Gone;
        self.received.clear();
    }

    /// Ends the stream in order: the server releases the slot before this returns.
    ///
    /// # Errors
    /// `PG_CONNECTION_LOST`; the connection is closed in any case.
    pub async fn close(mut self) -> Result<()> {
        match tokio::time::timeout(CLOSE_TIMEOUT, self.close_in_order()).await {
            Ok(closed) => closed,
            Err(_) => Err(Error::new(
                &code::PG_CONNECTION_LOST,
                "the server did not end the stream in time",
            )),
        }
    }

    async fn close_in_order(&mut self) -> Result<()> {
        if let Link::Stream(pump) = &self.link {
            let mut done = BytesMut::new();
            frontend::copy_done(&mut done);
            pump.send(done.freeze()).await?;
            while self.take_until_ready()? {
                self.fill().await?;
            }
        }
        match &mut self.link {
            Link::Commands(wire) => wire.shutdown().await,
            Link::Stream(pump) => pump.end().await,
            Link::Gone => Ok(()),
        }
    }

    /// Drops what still comes; false when the server is ready for a command.
    fn take_until_ready(&mut self) -> Result<bool> {
        while let Some(message) = take_message(&mut self.received)? {
            match message.tag {
                b'Z' => return Ok(false),
                b'E' => return Err(ServerError::from_fields(&message.body).into_error("closing")),
                _ => {}
            }
        }
        Ok(true)
    }
}

fn first_row(rows: Vec<Vec<Cell>>) -> Result<Vec<Cell>> {
    rows.into_iter()
        .next()
        .ok_or_else(|| protocol("an empty answer".to_owned()))
}

/// Lines of a history file: `timeline LSN reason`, parted by white space; `#` begins a remark.
fn parse_history(content: &str) -> Option<Vec<(u32, Lsn)>> {
    content
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        })
        .collect()
}

/// Gives an error of `START_REPLICATION` and of the stream the meaning it has for the slot.
fn stream_error(error: Error, slot: &str) -> Error {
    let Some(server) = server_error(&error) else {
        return error;
    };
    // What another cause than the slot has was told apart by the server's routine already.
    if !error.is(&code::PG_QUERY) && !error.is(&code::PG_SLOT_ACTIVE) {
        return error;
    }
    let (code, message): (&'static Code, String) = match server.sqlstate.as_str() {
        // The message names the process that holds it.
        "55006" => (&code::PG_SLOT_ACTIVE, server.message.clone()),
        "42704" => (
            &code::PG_SLOT_LOST,
            format!("slot \"{slot}\" does not exist"),
        ),
        "55000" | "58P01" => (
            &code::PG_SLOT_LOST,
            format!("slot \"{slot}\" can no longer be read: {}", server.message),
        ),
        _ => return error,
    };
    let mut mapped = Error::new(code, message);
    if let Some(detail) = &server.detail {
        mapped = mapped.with_detail(detail.clone());
    }
    mapped.with_source(error)
}

/// An identifier of a replication command.
fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn a_history_file_gives_timelines_and_where_they_were_left() {
        let content = "1\t0/3000148\tno recovery target specified\n\n# remark\n2 16/B374D848 x\n";
        let history = parse_history(content).unwrap();
        assert_eq!(history, [(1, Lsn(0x300_0148)), (2, Lsn(0x16_B374_D848))]);
        assert_eq!(parse_history("1"), None);
        assert_eq!(parse_history("one 0/1"), None);
        assert_eq!(parse_history(""), Some(Vec::new()));
    }
}
