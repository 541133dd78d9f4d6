//! What waits for an owner, encoded while the owner works on what came before.
//!
//! ```text
//! commands ─► Ahead: rows are cut to size and encoded, on other threads ─► owner, in order
//! ```
//!
//! Memory: of a few commands, the rows in their encoded form beside themselves.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use alluvium_change::{ChangeBatch, Error, Lsn, Result};
use alluvium_lake::{BronzeEncoder, ReadyRows};
use arrow::array::RecordBatch;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{JoinError, JoinHandle};

use super::command::{Command, CopiedRows, CutEnd, Reached};
use crate::status::now_micros;

/// Commands taken from the queue while the owner is at work.
const MOST_AHEAD: usize = 2;

/// Rows on their way into bronze, and their encoded form where that was made before.
#[derive(Debug)]
pub(crate) struct Landing<T> {
    pub rows: T,
    pub ready: Option<ReadyRows>,
}

impl<T> From<T> for Landing<T> {
    fn from(rows: T) -> Self {
        Self { rows, ready: None }
    }
}

/// The owner's end of its queue.
pub(super) struct Ahead {
    commands: mpsc::Receiver<Command>,
    waiting: VecDeque<Waiting>,
    encoder: Arc<BronzeEncoder>,
    /// One permit per core.
    cpu: Arc<Semaphore>,
    /// Changes of more memory are parted: encoded rows are held whole.
    most_bytes: usize,
    closed: bool,
}

/// A command whose rows are being encoded.
enum Waiting {
    Cut {
        parts: Vec<Coming<ChangeBatch>>,
        end: Option<CutEnd>,
        permit: Option<OwnedSemaphorePermit>,
    },
    Copied {
        batches: Vec<Coming<RecordBatch>>,
        snapshot: Lsn,
        reached: Option<Reached>,
        reply: oneshot::Sender<Result<()>>,
    },
    Other(Command),
}

enum Coming<T> {
    Here(Landing<T>),
    Encoding(JoinHandle<Result<Landing<T>>>),
}

impl Ahead {
    pub(super) fn new(
        commands: mpsc::Receiver<Command>,
        encoder: Arc<BronzeEncoder>,
        cpu: Arc<Semaphore>,
        most_bytes: usize,
    ) -> Self {
        Self {
            commands,
            waiting: VecDeque::new(),
            encoder,
            cpu,
            most_bytes,
            closed: false,
        }
    }

    /// The table's columns may have changed. What was encoded for others is encoded again by the owner.
    pub(super) fn encode_for(&mut self, encoder: &Arc<BronzeEncoder>) {
        if !Arc::ptr_eq(&self.encoder, encoder) {
            self.encoder = Arc::clone(encoder);
        }
    }

    /// The next command, with its rows encoded; none when there will be no more. Nothing is lost when
    /// it is not waited for to the end.
    pub(super) async fn next(&mut self) -> Option<Result<Command>> {
        if self.waiting.is_empty() {
            let command = self.commands.recv().await?;
            self.begin(command);
        }
        if let Err(error) = self.waiting.front_mut()?.settle().await {
            return Some(Err(error));
        }
        self.waiting.pop_front().map(Waiting::into_command)
    }

    /// Begins to encode what comes after, as far ahead as is allowed. Never ends by itself.
    pub(super) async fn look_ahead(&mut self) -> Infallible {
        while !self.closed && self.waiting.len() < MOST_AHEAD {
            match self.commands.recv().await {
                Some(command) => self.begin(command),
                None => self.closed = true,
            }
        }
        std::future::pending().await
    }

    fn begin(&mut self, command: Command) {
        let waiting = match command {
            Command::Cut {
                batches,
                end,
                permit,
            } => {
                let mut parts = Vec::with_capacity(batches.len());
                for batch in batches {
                    for part in in_parts(batch.rows, self.most_bytes) {
                        let rows = part.num_rows();
                        parts.push(self.encode(part, rows, BronzeEncoder::changes));
                    }
                }
                Waiting::Cut { parts, end, permit }
            }
            Command::Copied { rows, reply } => {
                let CopiedRows {
                    batches,
                    snapshot,
                    reached,
                } = rows;
                let encode = |batch: Landing<RecordBatch>| {
                    let rows = batch.rows.num_rows();
                    self.encode(batch.rows, rows, move |encoder, batch| {
                        encoder.copied(batch, snapshot, now_micros())
                    })
                };
                Waiting::Copied {
                    batches: batches.into_iter().map(encode).collect(),
                    snapshot,
                    reached,
                    reply,
                }
            }
            other => Waiting::Other(other),
        };
        self.waiting.push_back(waiting);
    }

    fn encode<T: Send + 'static>(
        &self,
        rows: T,
        num_rows: usize,
        encode: impl FnOnce(&BronzeEncoder, &T) -> Result<ReadyRows> + Send + 'static,
    ) -> Coming<T> {
        if !self.encoder.encodes(num_rows) {
            return Coming::Here(rows.into());
        }
        let (encoder, cpu) = (Arc::clone(&self.encoder), Arc::clone(&self.cpu));
        Coming::Encoding(tokio::spawn(async move {
            let permit = cpu.acquire_owned().await;
            let work = move || {
                // What cannot be encoded is the owner's to tell: it tries again.
                let ready = encode(&encoder, &rows).ok();
                drop(permit);
                Landing { rows, ready }
            };
            tokio::task::spawn_blocking(work).await.map_err(panicked)
        }))
    }
}

impl Waiting {
    /// The command, once it is settled.
    fn into_command(self) -> Result<Command> {
        Ok(match self {
            Self::Cut { parts, end, permit } => Command::Cut {
                batches: landings(parts)?,
                end,
                permit,
            },
            Self::Copied {
                batches,
                snapshot,
                reached,
                reply,
            } => Command::Copied {
                rows: CopiedRows {
                    batches: landings(batches)?,
                    snapshot,
                    reached,
                },
                reply,
            },
            Self::Other(command) => command,
        })
    }

    async fn settle(&mut self) -> Result<()> {
        match self {
            Self::Cut { parts, .. } => settle_all(parts).await,
            Self::Copied { batches, .. } => settle_all(batches).await,
            Self::Other(_) => Ok(()),
        }
    }
}

async fn settle_all<T>(rows: &mut [Coming<T>]) -> Result<()> {
    for coming in rows {
        if let Coming::Encoding(encoding) = coming {
            let landing = encoding.await.map_err(panicked)??;
            *coming = Coming::Here(landing);
        }
    }
    Ok(())
}

fn panicked(error: JoinError) -> Error {
    Error::bug("encoding rows panicked").with_source(error)
}

fn landings<T>(rows: Vec<Coming<T>>) -> Result<Vec<Landing<T>>> {
    let here = rows.into_iter().map(|coming| match coming {
        Coming::Here(landing) => Ok(landing),
        Coming::Encoding(_) => Err(Error::bug(
            "a command was taken before its rows were encoded",
        )),
    });
    here.collect()
}

/// A batch in parts of at most so much memory each.
fn in_parts(batch: ChangeBatch, most_bytes: usize) -> Vec<ChangeBatch> {
    let rows = batch.num_rows();
    let parts = batch
        .memory_bytes()
        .div_ceil(most_bytes.max(1))
        .clamp(1, rows.max(1));
    if parts == 1 {
        return vec![batch];
    }
    let step = rows.div_ceil(parts);
    (0..rows)
        .step_by(step)
        .map(|from| batch.slice(from, step))
        .collect()
}
