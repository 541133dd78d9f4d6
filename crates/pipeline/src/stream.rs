//! The stream: from the replication connection to the tables' owners, and back as acknowledgement.
//!
//! ```text
//! frames ─► StreamedTransactions ─► Assembler ─► cut (at transaction boundaries) ─► owners
//!    ▲                                                                                │
//!    └─────────────────── standby status ◄─── Acknowledger ◄──────────────────────────┘
//! ```
//!
//! Invariant: a cut ends where a transaction ends; what is acknowledged is durable in the lake.
//! Memory: rows being decoded and rows handed over are each limited; beyond that nothing is read.
//! Transactions that still run are limited too, and go to disk beyond that.

mod measure;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alluvium_change::{ChangeBatch, Error, Lsn, Result, TableId, failpoint};
use alluvium_source_postgres::capture::{Assembler, Failure, Step};
use alluvium_source_postgres::replication::{Frame, ReplicationConnection};
use alluvium_source_postgres::streamed::StreamedTransactions;
use tokio::sync::mpsc::OwnedPermit;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::acknowledge::{Acknowledger, CutId};
use crate::owner::{Command, CutEnd, OwnerHandle};
use crate::project::CommitSettings;
use crate::told::{self, Told};
use crate::views::ViewRequest;
use measure::Measure;

/// Cuts on their way to the lake at the same time: one being written, one behind it.
const OPEN_CUTS: usize = 2;
const STATUS_EVERY: Duration = Duration::from_secs(1);
const BYTES_PER_PERMIT: usize = 1024;
/// Whole transactions of so many bytes are handed over before their cut ends, so that owners work
/// while the rest arrives. They make a row group.
const PART_BYTES: usize = 4 << 20;
/// Writing takes less than one part in so many of the time.
const PAUSE_FOR_WORK: u32 = 3;
/// How much of a transaction that has ended is decoded before the server, the owners and the clock
/// are looked after again.
const REPLAY_SLICE_BYTES: u64 = 256 * 1024;

/// Memory for changes, of the pipeline's budget.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamLimits {
    /// Decoded rows of a transaction that has not ended which are handed over all the same.
    pub cut_bytes: usize,
    /// Rows handed over to owners and not yet encoded.
    pub handed_over_bytes: usize,
    /// Messages of transactions that still run; the rest is spilled.
    pub streamed_bytes: usize,
}

/// What the stream found that needs the pipeline's help.
#[derive(Debug)]
pub(crate) enum Need {
    /// A relation that is unknown, or has columns that are: see [`Stream::resolve`].
    Catalog(alluvium_source_postgres::capture::Relation),
    Failed(Failure),
}

/// The stream's state; owned by the pipeline's main task.
pub(crate) struct Stream {
    pub assembler: Assembler,
    pub owners: BTreeMap<TableId, OwnerHandle>,
    streamed: StreamedTransactions,
    acknowledger: Acknowledger,
    limits: StreamLimits,
    commit: CommitSettings,
    memory: Arc<Semaphore>,
    /// Rows cut but not handed over yet, for want of room.
    waiting: Vec<ChangeBatch>,
    /// Tables that got rows of a cut that has not ended.
    dirty: HashSet<TableId>,
    /// The last transaction that ended, when it is not yet in a cut.
    ended: Option<(Lsn, Lsn)>,
    /// Where the parts of the open cut that were handed over end, if at a transaction's end.
    whole_through: Option<Lsn>,
    /// Every transaction that commits at or before this has come whole, and nothing of later ones but
    /// the one that is under way.
    complete_through: Lsn,
    last_cut: Instant,
    /// What owners worked to commit the cut that is open.
    worked: Duration,
    interval: Duration,
    last_status: Instant,
    told: Lsn,
    /// Where that is written down: the state directory, and the slot.
    memory_of_told: (PathBuf, String),
    received: Lsn,
    server: Lsn,
    /// Where a run that is to end when caught up ends.
    pub target: Option<Lsn>,
    /// Queries that want to see tables, and the owners of those.
    asked: Vec<(ViewRequest, Vec<(String, OwnerHandle)>)>,
    measure: Measure,
}

impl Stream {
    #[must_use]
    pub(crate) fn new(
        limits: StreamLimits,
        commit: CommitSettings,
        memory_of_told: (PathBuf, String),
    ) -> Self {
        let permits = limits.handed_over_bytes / BYTES_PER_PERMIT;
        let now = Instant::now();
        // Two projects in one directory have two slots.
        let spill_dir = memory_of_told.0.join("spill").join(&memory_of_told.1);
        Self {
            assembler: Assembler::new(),
            owners: BTreeMap::new(),
            streamed: StreamedTransactions::new(spill_dir, limits.streamed_bytes),
            acknowledger: Acknowledger::default(),
            limits,
            commit,
            memory: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))),
            waiting: Vec::new(),
            dirty: HashSet::new(),
            ended: None,
            whole_through: None,
            complete_through: Lsn::ZERO,
            last_cut: now,
            worked: Duration::ZERO,
            interval: Duration::from_millis(commit.min_interval_ms),
            last_status: now,
            told: Lsn::ZERO,
            memory_of_told,
            received: Lsn::ZERO,
            server: Lsn::ZERO,
            target: None,
            asked: Vec::new(),
            measure: Measure::default(),
        }
    }

    /// Forgets what was not handed over, as when the connection is made again. Whole transactions that
    /// were are committed.
    ///
    /// # Errors
    /// An owner has ended; spilled transactions cannot be removed.
    pub(crate) async fn restart(&mut self, confirmed: Lsn) -> Result<()> {
        if let Some(position) = self.whole_through.take() {
            let id = self.acknowledger.open(position, self.dirty.len());
            for table in &self.dirty {
                let end = Some(CutEnd { id, position });
                self.owner(table)?
                    .send(Command::Cut {
                        batches: Vec::new(),
                        end,
                        permit: None,
                    })
                    .await?;
            }
        }
        let (state_dir, slot) = &self.memory_of_told;
        let durable = told::recall(state_dir, slot).map_or(confirmed, |told| told.durable);
        self.assembler.reset();
        self.streamed.reset(durable)?;
        self.waiting.clear();
        self.dirty.clear();
        self.ended = None;
        self.complete_through = confirmed;
        self.worked = Duration::ZERO;
        self.acknowledger.restart(confirmed, durable);
        for owner in self.owners.values() {
            owner.send(Command::Restarted).await?;
        }
        Ok(())
    }

    /// Durable in every table's lake.
    #[must_use]
    pub(crate) fn flushed(&self) -> Lsn {
        self.acknowledger.flushed()
    }

    #[must_use]
    pub(crate) fn received(&self) -> Lsn {
        self.received
    }

    /// Every transaction that commits at or before this was received whole.
    #[must_use]
    pub(crate) fn complete_through(&self) -> Lsn {
        self.complete_through
    }

    /// The server's own position, as it last told.
    #[must_use]
    pub(crate) fn server(&self) -> Lsn {
        self.server
    }

    /// Nothing is on its way to the lake.
    #[must_use]
    pub(crate) fn is_settled(&self) -> bool {
        self.acknowledger.open_cuts() == 0 && self.ended.is_none() && self.waiting.is_empty()
    }

    /// A table's owner made a cut durable; to commit it took it so long.
    pub(crate) fn durable(&mut self, cut: CutId, took: Duration) {
        let open = self.acknowledger.open_cuts();
        self.acknowledger.done(cut);
        self.worked += took;
        if self.acknowledger.open_cuts() < open {
            let least = Duration::from_millis(self.commit.min_interval_ms);
            let most = Duration::from_millis(self.commit.max_interval_ms);
            self.interval = (self.worked * PAUSE_FOR_WORK).clamp(least, most);
            self.worked = Duration::ZERO;
        }
    }

    /// Whether more may be read: there is room for what would come.
    #[must_use]
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.is_empty()
            && (self.assembler.memory_bytes() < self.limits.cut_bytes || self.can_cut())
    }

    /// Whether a call of [`Self::take_frames`] would get on without anything new from the server.
    #[must_use]
    pub(crate) fn has_work(&self) -> bool {
        self.streamed.is_replaying() && self.has_room()
    }

    fn can_cut(&self) -> bool {
        self.acknowledger.open_cuts() < OPEN_CUTS || self.assembler.in_transaction()
    }

    /// Decodes the frames that have been received, as far as there is room, and of a transaction
    /// that has ended a piece: see [`Self::has_work`]. Answers the first thing that needs help; call
    /// again after giving it.
    ///
    /// # Errors
    /// The server sent what cannot be decoded, or ended the stream.
    pub(crate) fn take_frames(
        &mut self,
        connection: &mut ReplicationConnection,
    ) -> Result<Option<Need>> {
        let mut slice_start = self.streamed.replayed_bytes();
        while self.has_room() {
            if self.streamed.is_replaying() {
                let done = self.streamed.replayed_bytes();
                if done.saturating_sub(slice_start) >= REPLAY_SLICE_BYTES {
                    return Ok(None);
                }
                let step = self.streamed.replay_next(&mut self.assembler)?;
                if let Some(need) = self.step(step)? {
                    return Ok(Some(need));
                }
                continue;
            }
            slice_start = 0;
            let Some(frame) = connection.next_frame()? else {
                return Ok(None);
            };
            match frame {
                Frame::XLogData {
                    wal_start,
                    wal_end,
                    data,
                } => {
                    self.received = self.received.max(wal_start);
                    self.server = self.server.max(wal_end);
                    self.measure.received_bytes += data.len() as u64;
                    let step = self.streamed.handle(&data, &mut self.assembler)?;
                    if let Some(need) = self.step(step)? {
                        return Ok(Some(need));
                    }
                }
                Frame::Keepalive {
                    wal_end,
                    reply_requested,
                } => {
                    self.server = self.server.max(wal_end);
                    self.received = self.received.max(wal_end);
                    if !self.assembler.in_transaction() {
                        self.idle_through(wal_end);
                    }
                    if reply_requested {
                        self.last_status = Instant::now() - STATUS_EVERY;
                    }
                }
            }
        }
        Ok(None)
    }

    fn idle_through(&mut self, wal_end: Lsn) {
        self.complete_through = self.complete_through.max(wal_end);
        match &mut self.ended {
            Some((_, end_lsn)) => *end_lsn = (*end_lsn).max(wal_end),
            None => self.acknowledger.idle_through(wal_end),
        }
    }

    /// Acts on what the assembler answered.
    ///
    /// # Errors
    /// Arrow refuses decoded columns: a bug.
    pub(crate) fn step(&mut self, step: Step) -> Result<Option<Need>> {
        match step {
            Step::Continue => {
                if self.assembler.memory_bytes() >= self.limits.cut_bytes {
                    self.cut_part()?;
                }
                Ok(None)
            }
            Step::Committed {
                position,
                end_lsn,
                commit_time_micros,
            } => {
                self.measure.transactions += 1;
                self.measure.newest_commit_micros = commit_time_micros;
                self.ended = Some((position, end_lsn));
                self.complete_through = position;
                self.cut_if_due()?;
                if self.assembler.memory_bytes() >= PART_BYTES {
                    self.cut_whole_part()?;
                }
                self.show_asked()?;
                Ok(None)
            }
            Step::Unknown(relation) => Ok(Some(Need::Catalog(relation))),
            Step::Failed(failure) => Ok(Some(Need::Failed(failure))),
        }
    }

    /// Cuts when it is time, or all that was waited for has come.
    ///
    /// # Errors
    /// Arrow refuses decoded columns: a bug.
    pub(crate) fn cut_if_due(&mut self) -> Result<()> {
        let is_last = self.target.is_some_and(|target| {
            self.flushed() < target && self.ended.is_some_and(|(_, end_lsn)| end_lsn >= target)
        });
        if is_last || self.last_cut.elapsed() >= self.interval {
            self.cut()
        } else {
            Ok(())
        }
    }

    /// Ends a cut at the last transaction, when there is one and there is room.
    ///
    /// # Errors
    /// Arrow refuses decoded columns: a bug.
    pub(crate) fn cut(&mut self) -> Result<()> {
        if self.assembler.in_transaction() || !self.waiting.is_empty() {
            return Ok(());
        }
        let Some((position, end_lsn)) = self.ended else {
            return Ok(());
        };
        if self.acknowledger.open_cuts() >= OPEN_CUTS {
            return Ok(());
        }
        let batches = self.take_batches()?;
        let tables: HashSet<&TableId> = batches
            .iter()
            .map(|batch| &batch.table.id)
            .chain(&self.dirty)
            .collect();
        let owners: Vec<OwnerHandle> = tables
            .iter()
            .filter_map(|id| self.owners.get(*id))
            .cloned()
            .collect();
        let places: Option<Vec<_>> = owners
            .into_iter()
            .map(|owner| owner.try_reserve().map(|place| (owner.table, place)))
            .collect();
        match places {
            Some(places) => self.end_cut(batches, places, position, end_lsn),
            None => self.waiting = batches,
        }
        Ok(())
    }

    fn end_cut(
        &mut self,
        batches: Vec<ChangeBatch>,
        places: Vec<(TableId, OwnedPermit<Command>)>,
        position: Lsn,
        end_lsn: Lsn,
    ) {
        tracing::debug!(
            rows = batches.iter().map(ChangeBatch::num_rows).sum::<usize>(),
            tables = places.len(),
            open_cuts = self.acknowledger.open_cuts(),
            since_last_ms = self.last_cut.elapsed().as_millis(),
            "cutting"
        );
        self.measure.ended_at(end_lsn);
        let id = self.acknowledger.open(end_lsn, places.len());
        let mut by_table = group(batches);
        for (table, place) in places {
            let batches = by_table.remove(&table).unwrap_or_default();
            let permit = self.permit(&batches);
            place.send(Command::Cut {
                batches: batches.into_iter().map(Into::into).collect(),
                end: Some(CutEnd { id, position }),
                permit,
            });
        }
        self.dirty.clear();
        self.ended = None;
        self.whole_through = None;
        self.last_cut = Instant::now();
    }

    /// Cuts once more if there is room, and forgets what is not handed over: the source will send it
    /// again.
    pub(crate) fn last_cut(&mut self) {
        if let Err(error) = self.cut() {
            tracing::warn!(error = %error, "the last cut could not be made");
        }
        self.ended = None;
        self.waiting.clear();
    }

    /// Hands over what has come since the last cut or part of one: whole transactions.
    fn cut_whole_part(&mut self) -> Result<()> {
        self.cut_part()?;
        let whole = self.waiting.is_empty().then_some(self.ended).flatten();
        self.whole_through = whole.map(|(position, _)| position);
        Ok(())
    }

    /// A query wants to see tables: they are shown as soon as a transaction has ended.
    ///
    /// # Errors
    /// Arrow refuses decoded columns: a bug.
    pub(crate) fn show(
        &mut self,
        request: ViewRequest,
        names: &BTreeMap<TableId, String>,
    ) -> Result<()> {
        let owners = request.owners(names, &self.owners);
        self.asked.push((request, owners));
        self.show_asked()
    }

    /// Shows queries the tables they asked for, if whole transactions are all there is.
    ///
    /// # Errors
    /// Arrow refuses decoded columns: a bug.
    pub(crate) fn show_asked(&mut self) -> Result<()> {
        self.asked.retain(|(request, _)| !request.is_abandoned());
        if self.asked.is_empty() || self.assembler.in_transaction() {
            return Ok(());
        }
        if self.assembler.has_rows() {
            self.cut_whole_part()?;
        }
        if !self.waiting.is_empty() {
            return Ok(());
        }
        let through = self.complete_through;
        let asked = std::mem::take(&mut self.asked).into_iter();
        self.asked = asked
            .filter_map(|(request, owners)| {
                let refused = request.pass_on(owners.clone(), through).err()?;
                Some((refused, owners))
            })
            .collect();
        Ok(())
    }

    /// Hands over a part of a cut: whole transactions, or a part of one that is too large to be held
    /// whole.
    fn cut_part(&mut self) -> Result<()> {
        if !self.waiting.is_empty() {
            return Ok(());
        }
        self.whole_through = None;
        self.waiting = self.take_batches()?;
        self.hand_over_waiting();
        Ok(())
    }

    /// Hands over parts that waited for room.
    pub(crate) fn hand_over_waiting(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return;
        }
        // Owners have more than that now.
        self.whole_through = None;
        let mut kept = Vec::new();
        for batch in waiting {
            let Some(owner) = self.owners.get(&batch.table.id).cloned() else {
                continue;
            };
            let batches = std::slice::from_ref(&batch);
            match (self.permit(batches), owner.try_reserve()) {
                (Some(permit), Some(place)) => {
                    self.dirty.insert(owner.table);
                    let permit = Some(permit);
                    place.send(Command::Cut {
                        batches: vec![batch.into()],
                        end: None,
                        permit,
                    });
                }
                _ => kept.push(batch),
            }
        }
        self.waiting = kept;
    }

    /// Memory for rows handed over, when there is any; of more than all there is, all.
    fn permit(&self, batches: &[ChangeBatch]) -> Option<OwnedSemaphorePermit> {
        let bytes: usize = batches.iter().map(ChangeBatch::memory_bytes).sum();
        let most = self.limits.handed_over_bytes / BYTES_PER_PERMIT;
        let permits = u32::try_from((bytes / BYTES_PER_PERMIT).min(most)).unwrap_or(u32::MAX);
        Arc::clone(&self.memory)
            .try_acquire_many_owned(permits)
            .ok()
    }

    /// Tells the server how far everything is durable: when that changed, when asked, and now and
    /// then.
    ///
    /// # Errors
    /// The connection is lost.
    pub(crate) async fn tell_server(
        &mut self,
        connection: &mut ReplicationConnection,
        want_reply: bool,
    ) -> Result<()> {
        let held = self.streamed.held_from(self.flushed());
        let acknowledged = self.acknowledger.acknowledge(held);
        let due = self.last_status.elapsed() >= STATUS_EVERY;
        if !due && !want_reply && acknowledged <= self.told {
            return Ok(());
        }
        let mut flushed = acknowledged;
        if acknowledged > self.told {
            let (state_dir, slot) = self.memory_of_told.clone();
            let told = Told {
                acknowledged,
                durable: self.acknowledger.durable(),
            };
            tokio::task::spawn_blocking(move || told::remember(&state_dir, &slot, told))
                .await
                .map_err(|error| {
                    Error::bug("remembering a position panicked").with_source(error)
                })??;
        } else if held.is_some() {
            // No position, for which a server that shuts down takes what was received. It would wait for
            // the decision of a prepared transaction, which needs the server.
            flushed = Lsn::ZERO;
        }
        failpoint::hit("acknowledge.before_send");
        connection
            .send_status(flushed, self.received.max(flushed), want_reply)
            .await?;
        failpoint::hit("acknowledge.after_send");
        self.told = acknowledged;
        self.last_status = Instant::now();
        Ok(())
    }

    /// The owner of a table, to be told something outside the cuts.
    ///
    /// # Errors
    /// The table has no owner: a bug.
    pub(crate) fn owner(&self, table: &TableId) -> Result<&OwnerHandle> {
        self.owners
            .get(table)
            .ok_or_else(|| Error::bug(format!("table \"{table}\" has no owner")))
    }

    /// Hands over all rows decoded so far, in the middle of a transaction if need be, so that a
    /// command sent next comes after them.
    ///
    /// # Errors
    /// An owner has ended, or Arrow refuses decoded columns.
    pub(crate) async fn flush_parts(&mut self) -> Result<()> {
        self.whole_through = None;
        let mut batches = std::mem::take(&mut self.waiting);
        batches.extend(self.take_batches()?);
        for batch in batches {
            let Some(owner) = self.owners.get(&batch.table.id).cloned() else {
                continue;
            };
            self.dirty.insert(owner.table.clone());
            let permit = self.permit(std::slice::from_ref(&batch));
            owner
                .send(Command::Cut {
                    batches: vec![batch.into()],
                    end: None,
                    permit,
                })
                .await?;
        }
        Ok(())
    }
}

fn group(batches: Vec<ChangeBatch>) -> BTreeMap<TableId, Vec<ChangeBatch>> {
    let mut by_table: BTreeMap<TableId, Vec<ChangeBatch>> = BTreeMap::new();
    for batch in batches {
        by_table
            .entry(batch.table.id.clone())
            .or_default()
            .push(batch);
    }
    by_table
}

#[cfg(test)]
mod tests;
