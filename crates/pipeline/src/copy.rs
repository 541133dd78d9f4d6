//! The initial copy: tables' pages in ranges, several connections in one snapshot, each range
//! recorded in the lake as it is done.
//!
//! ```text
//! ranges ─► workers (COPY … binary ─► Arrow) ─► in order ─► owner ─► bronze, silver
//! ```
//!
//! Invariant: an owner gets the ranges of its table in order, so that "copied up to page n" says
//! everything. Stands beside `stream`: changes are kept in bronze meanwhile.

mod repair;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use alluvium_change::{Error, Identity, Lsn, Result, TableId, code, failpoint};
use alluvium_lake::CopyState;
use alluvium_source_postgres::catalog::{self, SourceTable, TableSelection};
use alluvium_source_postgres::connect::ConnectOptions;
use alluvium_source_postgres::copy::{
    CopyRange, CopyReader, CopySession, SnapshotSession, plan_ranges,
};
use alluvium_source_postgres::replication::{CreatedSlot, ReplicationConnection, SlotKind};
use arrow::array::RecordBatch;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::owner::{Command, CopiedRows, OwnerHandle, Reached, is_of_lake};
use crate::requests::Pending;
use crate::status::{ErrorStatus, StatusBoard, TableStatus};

pub use repair::{FindRows, FoundRows, RowQuery};
pub(crate) use repair::{RepairTarget, repair};

/// A table to be copied.
#[derive(Clone)]
pub(crate) struct CopyTarget {
    pub table: Arc<SourceTable>,
    pub owner: OwnerHandle,
    /// Forget what is copied already.
    pub afresh: bool,
    /// Who asked for it: not to be asked again once the copy has begun.
    pub request: Option<Arc<Pending>>,
}

/// How to copy.
#[derive(Clone)]
pub(crate) struct CopyContext {
    pub options: ConnectOptions,
    pub workers: u32,
    /// Bytes of the source's pages in one range, and of rows a worker holds.
    pub range_bytes: u64,
    pub board: StatusBoard,
    pub selection: TableSelection,
}

/// A snapshot that sessions can enter, as long as the slot's connection does nothing else.
pub(crate) struct ExportedSnapshot {
    name: String,
    lsn: Lsn,
    /// Keeps a temporary slot, and with it the snapshot, alive.
    keeper: Option<ReplicationConnection>,
}

impl ExportedSnapshot {
    /// The snapshot that came with a slot just created.
    #[must_use]
    pub(crate) fn of_slot(slot: &CreatedSlot) -> Self {
        Self {
            name: slot.snapshot_name.clone(),
            lsn: slot.consistent_point,
            keeper: None,
        }
    }

    /// A snapshot whose place in the WAL is known exactly: that of a temporary slot.
    async fn temporary(options: &ConnectOptions) -> Result<Self> {
        let mut keeper = ReplicationConnection::connect(options).await?;
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default()
            .subsec_nanos();
        let name = format!("alluvium_copy_{}_{nanos}", std::process::id());
        let slot = keeper
            .create_slot(
                &name,
                SlotKind {
                    temporary: true,
                    ..SlotKind::default()
                },
            )
            .await?;
        Ok(Self {
            keeper: Some(keeper),
            ..Self::of_slot(&slot)
        })
    }
}

/// Sessions within one snapshot.
pub(crate) struct CopySessions {
    /// Has every table locked against being rewritten.
    guard: SnapshotSession,
    sessions: Vec<CopySession>,
    snapshot: Lsn,
}

impl CopySessions {
    /// Enters the snapshot with as many sessions as there are workers, and the one that locks.
    ///
    /// # Errors
    /// The server cannot be reached, has no room, or refuses to lock a table for reading.
    pub(crate) async fn enter(
        context: &CopyContext,
        targets: &mut [CopyTarget],
        snapshot: ExportedSnapshot,
    ) -> Result<Self> {
        let guard = SnapshotSession::open(&context.options, &snapshot.name).await?;
        see_tables(context, targets, &guard).await?;
        let mut sessions = Vec::new();
        for _ in 0..context.workers {
            sessions.push(CopySession::open(&context.options, &snapshot.name).await?);
        }
        if let Some(keeper) = snapshot.keeper
            && let Err(error) = keeper.close().await
        {
            tracing::debug!(error = %error, "the temporary slot's connection ended badly");
        }
        Ok(Self {
            guard,
            sessions,
            snapshot: snapshot.lsn,
        })
    }
}

/// Takes the tables as the snapshot shows them, their leaves above all, and locks them.
async fn see_tables(
    context: &CopyContext,
    targets: &mut [CopyTarget],
    session: &SnapshotSession,
) -> Result<()> {
    let seen = catalog::load_tables(session.client(), &context.selection).await?;
    let mut seen: BTreeMap<TableId, SourceTable> = seen
        .into_iter()
        .map(|table| (table.schema.id.clone(), table))
        .collect();
    let again = |id: &TableId, what: &str| {
        Error::new(
            &code::COPY_AGAIN,
            format!("table \"{id}\" {what} just before its copy"),
        )
    };
    for target in targets.iter_mut() {
        let id = target.table.schema.id.clone();
        match seen.remove(&id) {
            Some(table) if table.schema == target.table.schema => target.table = Arc::new(table),
            Some(table) => {
                let error = again(&id, "changed");
                target.table = Arc::new(table);
                return Err(error);
            }
            None => return Err(again(&id, "went away")),
        }
    }
    let tables = targets.iter().map(|target| target.table.as_ref());
    let locked = session.lock_all(tables).await?;
    match targets
        .iter()
        .zip(locked)
        .find(|(_, found)| found.rewritten)
    {
        Some((target, _)) => Err(again(target.table.id(), "was rewritten")),
        None => Ok(()),
    }
}

/// Copies tables until none is left; a lost connection is tried again under a new snapshot.
pub(crate) async fn copy_all(
    context: CopyContext,
    mut targets: Vec<CopyTarget>,
    mut sessions: Option<CopySessions>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<()> {
    let mut pause = Duration::from_millis(200);
    while !targets.is_empty() {
        let entered = match sessions.take() {
            Some(sessions) => Ok(sessions),
            None => enter_new(&context, &mut targets).await,
        };
        let outcome = match entered {
            Ok(sessions) => copy_in_snapshot(&context, &targets, sessions, &shutdown).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => return Ok(()),
            Err(error) if is_of_lake(&error) => return Err(error),
            Err(error) if error.retry() == alluvium_change::Retry::Backoff => {
                tracing::warn!(error = %error, detail = error.detail().unwrap_or(""), "copying was interrupted, trying again");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = shutdown.changed() => return Ok(()),
                }
                pause = (pause * 2).min(Duration::from_secs(30));
            }
            Err(error) => {
                for target in &targets {
                    fail(target, &error).await?;
                }
                return Err(error);
            }
        }
        targets.retain(|target| {
            let id = target.table.schema.id.to_string();
            context.board.of_table(&id, TableStatus::is_being_copied) != Some(false)
        });
        for target in &mut targets {
            target.afresh = false;
        }
    }
    Ok(())
}

/// Has the table's changes kept in bronze from now on, in its newest shape; must come before the copy's
/// snapshot.
///
/// # Errors
/// The owner has ended, or the lake cannot be written.
pub(crate) async fn prepare(target: &mut CopyTarget) -> Result<()> {
    let table = Arc::clone(&target.table);
    let prepared = target
        .owner
        .ask(|reply| Command::PrepareCopy { table, reply });
    target.table = prepared.await?;
    Ok(())
}

async fn enter_new(context: &CopyContext, targets: &mut [CopyTarget]) -> Result<CopySessions> {
    for target in targets.iter_mut() {
        prepare(target).await?;
    }
    let snapshot = ExportedSnapshot::temporary(&context.options).await?;
    CopySessions::enter(context, targets, snapshot).await
}

/// One range of one table's leaf, and its place among the table's ranges.
struct Work {
    target: usize,
    range: CopyRange,
    turn: usize,
    /// How many ranges the table has.
    of: usize,
}

/// A table's ranges are handed over in order: whose turn it is.
struct Turns(Vec<watch::Sender<usize>>);

impl Turns {
    async fn wait(&self, target: usize, turn: usize) -> Result<()> {
        let Some(sender) = self.0.get(target) else {
            return Err(Error::bug("a range belongs to no table"));
        };
        let mut receiver = sender.subscribe();
        receiver
            .wait_for(|at| *at >= turn)
            .await
            .map_err(|_| Error::bug("copying ended while a range waited"))?;
        Ok(())
    }

    /// Never goes back: of a table that cannot be copied nobody waits any more, also when a range of it
    /// that was being handed over ends after that.
    fn advance(&self, target: usize, to: usize) {
        if let Some(sender) = self.0.get(target) {
            sender.send_if_modified(|at| {
                let goes_on = to > *at;
                *at = to.max(*at);
                goes_on
            });
        }
    }
}

struct Shared {
    context: CopyContext,
    targets: Vec<CopyTarget>,
    snapshot: Lsn,
    queue: Mutex<VecDeque<Work>>,
    turns: Turns,
    /// Tables that cannot be copied: the rest of their ranges is passed over.
    failed: Mutex<HashSet<usize>>,
    started: Instant,
}

async fn copy_in_snapshot(
    context: &CopyContext,
    targets: &[CopyTarget],
    CopySessions {
        guard,
        sessions,
        snapshot,
    }: CopySessions,
    shutdown: &watch::Receiver<bool>,
) -> Result<()> {
    let mut queue = VecDeque::new();
    for (place, ranges) in begin_all(context, targets, snapshot).await? {
        let of = ranges.len();
        for (turn, range) in ranges.into_iter().enumerate() {
            queue.push_back(Work {
                target: place,
                range,
                turn,
                of,
            });
        }
    }
    let shared = Arc::new(Shared {
        context: context.clone(),
        targets: targets.to_vec(),
        snapshot,
        queue: Mutex::new(queue),
        turns: Turns(targets.iter().map(|_| watch::Sender::new(0)).collect()),
        failed: Mutex::default(),
        started: Instant::now(),
    });
    let guard = Arc::new(guard);
    let mut workers = JoinSet::new();
    for session in sessions {
        let (shared, guard) = (Arc::clone(&shared), Arc::clone(&guard));
        workers.spawn(work(shared, session, guard, shutdown.clone()));
    }
    while let Some(ended) = workers.join_next().await {
        // Dropping the set ends the other workers.
        ended.map_err(|error| Error::bug("a copying task panicked").with_source(error))??;
    }
    Ok(())
}

/// Tells all owners, which then write at the same time, and plans what is left to copy of each
/// target, by its place.
async fn begin_all(
    context: &CopyContext,
    targets: &[CopyTarget],
    snapshot: Lsn,
) -> Result<BTreeMap<usize, Vec<CopyRange>>> {
    let mut beginning = JoinSet::new();
    for (place, target) in targets.iter().cloned().enumerate() {
        let range_bytes = context.range_bytes;
        beginning.spawn(async move { Ok((place, begin(&target, range_bytes, snapshot).await?)) });
    }
    let mut planned = BTreeMap::new();
    while let Some(begun) = beginning.join_next().await {
        let begun: Result<_> =
            begun.map_err(|error| Error::bug("a copying task panicked").with_source(error))?;
        planned.extend([begun?]);
    }
    Ok(planned)
}

/// Tells the owner, and plans what is left to copy; of a table that is copied already, tells it so.
async fn begin(target: &CopyTarget, range_bytes: u64, snapshot: Lsn) -> Result<Vec<CopyRange>> {
    let table = &target.table;
    // Without a key, rows copied under two snapshots could not be told apart.
    let keyed = matches!(table.schema.identity, Identity::Key(_));
    let begin = |afresh| {
        let schema = Arc::clone(&table.schema);
        target.owner.ask(move |reply| Command::BeginCopy {
            schema,
            snapshot,
            afresh,
            reply,
        })
    };
    let mut state = begin(target.afresh || !keyed).await?;
    if let Some(request) = &target.request {
        request.finish();
    }
    let leaf_files: HashSet<u32> = table.leaves.iter().map(|leaf| leaf.relfilenode).collect();
    if let CopyState::Copying { progress, .. } = &state
        && progress.keys().any(|file| !leaf_files.contains(file))
    {
        // The table was rewritten: its rows have other places now.
        state = begin(true).await?;
    }
    let progress = match state {
        CopyState::Copying { progress, .. } => progress,
        _ => BTreeMap::new(),
    };
    let mut ranges = plan_ranges(table, range_bytes);
    ranges.retain_mut(|range| {
        let file = table.leaves.get(range.leaf).map(|leaf| leaf.relfilenode);
        let Some(&next_page) = file.and_then(|file| progress.get(&file)) else {
            return true;
        };
        let ended = match range.end_page {
            Some(end) => end <= next_page,
            None => next_page == u32::MAX,
        };
        range.start_page = range.start_page.max(next_page);
        !ended
    });
    tracing::info!(
        table = %table.schema.id,
        ranges = ranges.len(),
        resumed = !progress.is_empty(),
        snapshot = %snapshot,
        "copying"
    );
    if ranges.is_empty() {
        target
            .owner
            .ask(|reply| Command::FinishCopy { reply })
            .await?;
    }
    Ok(ranges)
}

/// Copies ranges until none are left. While an owner takes in a range, the next is read.
async fn work(
    shared: Arc<Shared>,
    mut session: CopySession,
    guard: Arc<SnapshotSession>,
    shutdown: watch::Receiver<bool>,
) -> Result<()> {
    let mut delivering = JoinSet::new();
    loop {
        let next = if *shutdown.borrow() {
            None
        } else {
            shared
                .queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front()
        };
        let last = next.is_none();
        let read = match next {
            Some(work) if !shared.has_failed(work.target) => {
                let target = work.target;
                let read = read_range(&shared, &mut session, &guard, work).await;
                shared.unless_of_table(target, read).await?.flatten()
            }
            _ => None,
        };
        if let Some(before) = delivering.join_next().await {
            before.map_err(|error| Error::bug("a copying task panicked").with_source(error))??;
        }
        if last {
            return Ok(());
        }
        if let Some(range) = read {
            delivering.spawn(deliver(Arc::clone(&shared), range));
        }
    }
}

impl Shared {
    /// Rows a worker holds of a range.
    fn held_bytes(&self) -> usize {
        usize::try_from(self.context.range_bytes).unwrap_or(usize::MAX)
    }

    fn has_failed(&self, target: usize) -> bool {
        self.failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&target)
    }

    /// Waits until it is the range's turn to hand over rows. False when its table was given up
    /// meanwhile: nothing more of it is handed over.
    async fn its_turn(&self, work: &Work) -> Result<bool> {
        self.turns.wait(work.target, work.turn).await?;
        Ok(!self.has_failed(work.target))
    }

    /// An error that is one table's own stops the copying of that table alone.
    async fn unless_of_table<T>(&self, place: usize, outcome: Result<T>) -> Result<Option<T>> {
        let error = match outcome {
            Err(error) if is_tables_own(&error) => error,
            outcome => return outcome.map(Some),
        };
        let Some(target) = self.targets.get(place) else {
            return Ok(None);
        };
        self.failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(place);
        // Those that wait for their turn must not wait for ever.
        self.turns.advance(place, usize::MAX);
        if error.is(&code::COPY_AGAIN) {
            tracing::info!(table = %target.table.schema.id, error = %error, "copying later");
        } else {
            fail(target, &error).await?;
        }
        Ok(None)
    }
}

fn is_tables_own(error: &Error) -> bool {
    [
        &code::VALUE,
        &code::CONFLICT,
        &code::COPY_AGAIN,
        &code::PG_RIGHTS,
        &code::SCHEMA_COLUMN,
    ]
    .into_iter()
    .any(|code| error.is(code))
}

/// Has the table's owner give up the copy.
async fn fail(target: &CopyTarget, error: &Error) -> Result<()> {
    let error = ErrorStatus::from(error);
    target
        .owner
        .ask(|reply| Command::HaltCopy { error, reply })
        .await
}

/// The last rows of a range, read and not handed over.
struct ReadRange {
    work: Work,
    held: Vec<RecordBatch>,
}

async fn read_range(
    shared: &Shared,
    session: &mut CopySession,
    guard: &SnapshotSession,
    work: Work,
) -> Result<Option<ReadRange>> {
    let Some(target) = shared.targets.get(work.target) else {
        return Err(Error::bug("a range belongs to no table"));
    };
    let reader = session
        .copy_range(&target.table, work.range, shared.held_bytes() / 4)
        .await?;
    let read = read_rows(shared, reader, work).await?;
    // Had the locks been lost, the rows could have moved to pages that count as copied.
    guard.check().await?;
    Ok(read)
}

/// Reads a range's rows, and hands over what a worker does not hold. None when the table was given
/// up meanwhile.
async fn read_rows(
    shared: &Shared,
    mut reader: CopyReader<'_>,
    work: Work,
) -> Result<Option<ReadRange>> {
    let mut held: Vec<RecordBatch> = Vec::new();
    let mut held_bytes = 0;
    while let Some(batch) = reader.next().await? {
        held_bytes += batch.get_array_memory_size();
        held.push(batch);
        if held_bytes > shared.held_bytes() {
            if !shared.its_turn(&work).await? {
                return Ok(None);
            }
            hand_over(shared, &work, std::mem::take(&mut held), None).await?;
            held_bytes = 0;
        }
    }
    Ok(Some(ReadRange { work, held }))
}

/// Hands over a range when its turn has come.
async fn deliver(shared: Arc<Shared>, range: ReadRange) -> Result<()> {
    let target = range.work.target;
    let delivered = deliver_in_turn(&shared, range).await;
    shared.unless_of_table(target, delivered).await.map(|_| ())
}

async fn deliver_in_turn(shared: &Shared, ReadRange { work, held }: ReadRange) -> Result<()> {
    let Some(target) = shared.targets.get(work.target) else {
        return Err(Error::bug("a range belongs to no table"));
    };
    if !shared.its_turn(&work).await? {
        return Ok(());
    }
    let Some(leaf) = target.table.leaves.get(work.range.leaf) else {
        return Err(Error::bug("a range belongs to no leaf"));
    };
    let reached = Reached {
        relfilenode: leaf.relfilenode,
        next_page: work.range.end_page.unwrap_or(u32::MAX),
    };
    hand_over(shared, &work, held, Some(reached)).await?;
    if work.turn + 1 == work.of {
        target
            .owner
            .ask(|reply| Command::FinishCopy { reply })
            .await?;
    }
    Ok(())
}

async fn hand_over(
    shared: &Shared,
    work: &Work,
    batches: Vec<RecordBatch>,
    reached: Option<Reached>,
) -> Result<()> {
    let Some(target) = shared.targets.get(work.target) else {
        return Err(Error::bug("a range belongs to no table"));
    };
    let rows: u64 = batches.iter().map(|batch| batch.num_rows() as u64).sum();
    let bytes: u64 = batches
        .iter()
        .map(|batch| batch.get_array_memory_size() as u64)
        .sum();
    let rows_of_range = CopiedRows {
        batches: batches.into_iter().map(Into::into).collect(),
        snapshot: shared.snapshot,
        reached,
    };
    let answer = target
        .owner
        .submit(|reply| Command::Copied {
            rows: rows_of_range,
            reply,
        })
        .await?;
    if reached.is_some() {
        // The next range may come after this one; if this one fails, the owner takes no more.
        shared.turns.advance(work.target, work.turn + 1);
    }
    answer.await?;
    let elapsed_ms = shared.started.elapsed().as_millis().max(1);
    shared
        .context
        .board
        .table(&target.table.schema.id.to_string(), |status| {
            status.copied_rows += rows;
            status.copied_bytes += bytes;
            let rate = u128::from(status.copied_rows) * 1000 / elapsed_ms;
            status.copied_rows_per_sec = u64::try_from(rate).unwrap_or(u64::MAX);
        });
    Ok(())
}

/// Called once the slot that starts the stream exists.
pub(crate) fn slot_created() {
    failpoint::hit("copy.slot_created");
}

#[cfg(test)]
mod tests;
