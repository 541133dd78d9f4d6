//! What an owner is asked to do, what it tells, and how others reach it.

use std::sync::Arc;
use std::time::Duration;

use alluvium_change::{ChangeBatch, Error, Lsn, Result, TableId, TableSchema};
use alluvium_lake::{CopyState, Repair, Repaired, SilverView};
use alluvium_source_postgres::catalog::SourceTable;
use arrow::array::RecordBatch;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::ahead::Landing;
use crate::acknowledge::CutId;
use crate::requests::PendingCare;
use crate::status::ErrorStatus;
use crate::tables::ShapeStep;

/// Commands that may wait for an owner.
const QUEUE_COMMANDS: usize = 16;

/// The end of a cut: commit up to `position`, then report.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CutEnd {
    pub id: CutId,
    pub position: Lsn,
}

/// Rows of one copied range, in the range's order.
#[derive(Debug)]
pub(crate) struct CopiedRows {
    pub batches: Vec<Landing<RecordBatch>>,
    pub snapshot: Lsn,
    /// With the last rows of a range: how far its leaf is copied now.
    pub reached: Option<Reached>,
}

/// How far one leaf of a table has been copied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reached {
    pub relfilenode: u32,
    /// First page not copied; `u32::MAX` when the leaf is done.
    pub next_page: u32,
}

/// What an owner is asked to do.
pub(crate) enum Command {
    /// Changes of one cut, or of a part of one when `end` is absent. The permit is the memory they
    /// hold.
    Cut {
        batches: Vec<Landing<ChangeBatch>>,
        end: Option<CutEnd>,
        permit: Option<OwnedSemaphorePermit>,
    },
    /// From now on keep every change in bronze, in this shape: a copy will be taken. Answers the shape,
    /// which is another where the stream told of a newer one.
    PrepareCopy {
        table: Arc<SourceTable>,
        reply: oneshot::Sender<Result<Arc<SourceTable>>>,
    },
    /// Start copying from nothing, or go on: answers what is copied already.
    BeginCopy {
        /// Of the rows to come.
        schema: Arc<TableSchema>,
        snapshot: Lsn,
        afresh: bool,
        reply: oneshot::Sender<Result<CopyState>>,
    },
    Copied {
        rows: CopiedRows,
        reply: oneshot::Sender<Result<()>>,
    },
    FinishCopy {
        reply: oneshot::Sender<Result<()>>,
    },
    /// Show the table, which has been given every transaction up to `through` and none beyond.
    View {
        through: Lsn,
        reply: oneshot::Sender<Shown>,
    },
    /// Care for the table's files now.
    Care(PendingCare),
    /// The table's newest shape; sent before the first change that has it.
    /// All transactions up to `ended` are complete.
    Shape {
        table: Arc<SourceTable>,
        step: ShapeStep,
        ended: Lsn,
    },
    /// Changes of the table cannot be decoded from `at` on; transactions up to `ended` are whole.
    Broken {
        at: Lsn,
        ended: Lsn,
        error: Error,
    },
    /// Set rows right; all that was committed before the snapshot is in bronze. Answers none when it
    /// cannot be done now.
    Repair {
        repair: Repair,
        reply: oneshot::Sender<Result<Option<Repaired>>>,
    },
    /// The copy that is under way cannot go on.
    HaltCopy {
        error: ErrorStatus,
        reply: oneshot::Sender<Result<()>>,
    },
    /// Every change up to here is in bronze; told while a copy waits for it.
    Passed(Lsn),
    /// The stream starts again: parts of a cut that never ended are void.
    Restarted,
}

/// What an owner tells the pipeline.
#[derive(Debug)]
pub(crate) enum Event {
    /// The table's part of a cut is committed, which took it so long.
    Durable {
        cut: CutId,
        took: Duration,
    },
    /// The table must be copied (again).
    NeedsCopy(TableId),
    PhaseChanged,
    /// The lake itself fails: nothing more can be made durable.
    Fatal(Error),
}

/// What an owner shows of its table.
#[derive(Debug)]
pub(crate) enum Shown {
    Table(SilverView),
    /// The lake has more of it than the stream has come to: after a copy, or when the stream began again.
    Ahead,
    /// It is not live, or rows that no commit has are not in memory.
    No,
}

/// How others reach an owner.
#[derive(Clone)]
pub(crate) struct OwnerHandle {
    pub table: TableId,
    commands: mpsc::Sender<Command>,
}

impl OwnerHandle {
    /// A handle, and the queue it fills.
    pub(crate) fn of(table: TableId) -> (Self, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(QUEUE_COMMANDS);
        (Self { table, commands }, receiver)
    }

    /// A place in the owner's queue, when there is one now.
    #[must_use]
    pub(crate) fn try_reserve(&self) -> Option<mpsc::OwnedPermit<Command>> {
        self.commands.clone().try_reserve_owned().ok()
    }

    /// Commands that wait for the owner.
    #[must_use]
    pub(crate) fn queued(&self) -> usize {
        self.commands
            .max_capacity()
            .saturating_sub(self.commands.capacity())
    }

    /// Hands over a command, waiting for room.
    ///
    /// # Errors
    /// The owner has ended.
    pub(crate) async fn send(&self, command: Command) -> Result<()> {
        self.commands
            .send(command)
            .await
            .map_err(|_| self.has_ended())
    }

    /// Hands over a command made from a reply channel; then there is an answer to wait for.
    ///
    /// # Errors
    /// The owner has ended; of the answer also its own.
    pub(crate) async fn submit<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T>>) -> Command,
    ) -> Result<impl Future<Output = Result<T>>> {
        let (reply, answer) = oneshot::channel();
        self.send(make(reply)).await?;
        Ok(async move { answer.await.map_err(|_| self.has_ended())? })
    }

    /// Hands over a command made from a reply channel and waits for the answer.
    ///
    /// # Errors
    /// The owner has ended, or its answer is an error.
    pub(crate) async fn ask<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T>>) -> Command,
    ) -> Result<T> {
        self.submit(make).await?.await
    }

    fn has_ended(&self) -> Error {
        Error::bug(format!("owner of \"{}\" has ended", self.table))
    }
}
