//! The stream's own thread: reads ahead of the decoder, and writes what the server is told.
//!
//! A runtime with many threads wakes one of them for each packet, whether anybody waits for it or
//! not; under a backlog that costs both sides more than the packets. Here nobody watches the socket
//! during a nap, so the kernel collects.
//!
//! Invariant: at most [`CHUNKS`] reads of at most [`READ_BYTES`] wait for the decoder; then the server
//! has to wait.

use std::thread;
use std::time::Instant;

use alluvium_change::{Error, Result, code};
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::pace::{NAP, Pace};
use crate::wire::Wire;

/// Reads that may wait for the decoder.
const CHUNKS: usize = 4;
/// Statuses that may wait to be written: the stream is told of some fifty in a second at most.
const OUTGOING: usize = 16;

/// The decoder's end of a stream that a thread of its own reads.
#[derive(Debug)]
pub(super) struct Pump {
    chunks: mpsc::Receiver<Result<BytesMut>>,
    /// Gone when the stream is to end.
    outgoing: Option<mpsc::Sender<Bytes>>,
}

impl Pump {
    /// Hands a connection that has entered the stream to a thread of its own.
    pub(super) fn start(wire: Wire) -> Result<Self> {
        let cannot = |error: std::io::Error| {
            Error::new(
                &code::PG_CONNECTION_LOST,
                "the thread that reads the stream cannot start",
            )
            .with_source(error)
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(cannot)?;
        let (chunk_sender, chunks) = mpsc::channel(CHUNKS);
        let (outgoing, to_send) = mpsc::channel(OUTGOING);
        thread::Builder::new()
            .name("alluvium-stream".to_owned())
            .spawn(move || runtime.block_on(pump(wire, chunk_sender, to_send)))
            .map_err(cannot)?;
        Ok(Self {
            chunks,
            outgoing: Some(outgoing),
        })
    }

    /// Waits for bytes that were read. Safe to cancel.
    pub(super) async fn read(&mut self) -> Result<BytesMut> {
        self.chunks.recv().await.unwrap_or_else(|| Err(gone()))
    }

    /// Has `message` written: all of it, in the order of the calls. Safe to cancel.
    pub(super) async fn send(&self, message: Bytes) -> Result<()> {
        let Some(outgoing) = &self.outgoing else {
            return Err(gone());
        };
        outgoing.send(message).await.map_err(|_| gone())
    }

    /// Lets the thread write what waits and close the connection; answers how that went.
    pub(super) async fn end(&mut self) -> Result<()> {
        self.outgoing = None;
        while let Some(chunk) = self.chunks.recv().await {
            chunk?;
        }
        Ok(())
    }
}

fn gone() -> Error {
    Error::new(
        &code::PG_CONNECTION_LOST,
        "the stream's connection has ended",
    )
}

/// Reads and writes until the decoder's end is dropped or the connection fails.
async fn pump(
    mut wire: Wire,
    chunks: mpsc::Sender<Result<BytesMut>>,
    mut to_send: mpsc::Receiver<Bytes>,
) {
    if let Err(error) = pump_until_end(&mut wire, &chunks, &mut to_send).await {
        // Nobody is there to be told when the decoder's end is gone. What came before the error may
        // be the server's own words on it.
        if !wire.received.is_empty() {
            let _ = chunks.send(Ok(wire.received.split())).await;
        }
        let _ = chunks.send(Err(error)).await;
    }
}

async fn pump_until_end(
    wire: &mut Wire,
    chunks: &mpsc::Sender<Result<BytesMut>>,
    to_send: &mut mpsc::Receiver<Bytes>,
) -> Result<()> {
    wire.move_to_this_runtime()?;
    let mut pace = Pace::new(Instant::now());
    loop {
        tokio::select! {
            biased;
            message = to_send.recv() => match message {
                Some(message) => {
                    wire.outgoing().extend_from_slice(&message);
                    wire.flush().await?;
                }
                None => return wire.shutdown().await,
            },
            place = chunks.reserve(), if !wire.received.is_empty() => match place {
                Ok(place) => place.send(Ok(wire.received.split())),
                Err(_) => return wire.shutdown().await,
            },
            bytes = wire.read("streaming"), if wire.received.is_empty() => {
                pace.read(Instant::now(), bytes?);
            }
        }
        if pace.should_nap() && wire.received.is_empty() {
            thread::sleep(NAP);
        }
    }
}
