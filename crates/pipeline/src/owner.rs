//! One owner per table: the only one who touches its bronze and silver tables.
//!
//! ```text
//! cut ─► bronze (always) ─► silver (when live)
//! copied rows ─► bronze, silver (a later copy: a table beside it, which takes its place)
//! bronze ─► silver (catching up: what came while the table was copied, or before a crash)
//! ```
//!
//! Invariant: silver is what bronze says, up to silver's position. A change reaches bronze before
//! it is acknowledged to the source, so silver can always be brought forward from bronze.

mod ahead;
mod care;
mod catch_up;
mod command;
mod copying;
mod failure;
mod measure;
mod repair;
mod shape;
mod task;

use std::sync::Arc;
use std::time::{Duration, Instant};

use alluvium_change::surroundings::instant;
use alluvium_change::{ChangeBatch, Error, Lsn, Result, failpoint};
use alluvium_lake::{Bronze, CopyState, Lake, Silver, SilverSettings};
use alluvium_source_postgres::catalog::SourceTable;
use tokio::sync::{Semaphore, mpsc};

use ahead::Landing;
use care::Care;
pub(crate) use care::CareShare;
use catch_up::CatchUp;
pub(crate) use command::{Command, CopiedRows, CutEnd, Event, OwnerHandle, Reached, Shown};
use copying::Beside;
pub(crate) use failure::is_of_lake;
use failure::open_or_set_aside;
use measure::Summary;

use crate::status::{Phase, StatusBoard, now_micros};
use crate::tables::{ShapeStep, in_shape_of};

/// What all owners share.
#[derive(Clone)]
pub(crate) struct OwnerContext {
    pub lake: Lake,
    pub board: StatusBoard,
    pub events: mpsc::Sender<Event>,
    /// One permit per core: owners' work never takes more threads than that.
    pub cpu: Arc<Semaphore>,
    /// Care of tables' files.
    pub care: CareShare,
}

/// A table's owner: everything it does happens between two commands.
pub(crate) struct TableOwner {
    identity: alluvium_lake::Owner,
    settings: SilverSettings,
    table: Arc<SourceTable>,
    bronze: Bronze,
    /// Absent while the table is stopped by an error in silver.
    silver: Option<Silver>,
    phase: Phase,
    /// Changes after a gap are not kept: only a new copy helps.
    broken: bool,
    /// The last transaction of which changes are staged and not committed.
    staged_through: Option<Lsn>,
    /// When the newest of them was committed at the source.
    newest_staged_micros: Option<i64>,
    catch_up: Option<CatchUp>,
    /// A copied range could not be taken in: none of the same copy is, after it.
    copy_failed: bool,
    /// The table's new copy, while silver goes on.
    beside: Option<Beside>,
    /// The table is to be copied, though its phase does not say so.
    copy_wanted: bool,
    /// Every change of the table up to here is in bronze.
    passed: Lsn,
    care: Care,
    context: OwnerContext,
}

impl TableOwner {
    /// Opens (or creates) the table's bronze and silver. Blocks: reads the key index or column.
    ///
    /// # Errors
    /// The lake cannot be read or written, or the table in it belongs to another source.
    pub(crate) fn open(
        identity: alluvium_lake::Owner,
        settings: SilverSettings,
        table: Arc<SourceTable>,
        context: OwnerContext,
        afresh: bool,
    ) -> Result<Self> {
        let lake = &context.lake;
        let open_bronze = || Bronze::open(lake, &identity, &table.schema);
        let open_silver = || Silver::open(lake, &identity, &table.schema, settings.clone());
        let (bronze, silver) = if afresh {
            let bronze = open_or_set_aside(open_bronze, &lake.bronze_dir(&identity.name))?;
            (
                bronze,
                open_or_set_aside(open_silver, &lake.silver_dir(&identity.name))?,
            )
        } else {
            (open_bronze()?, open_silver()?)
        };
        let broken = silver.stopped_at().is_some();
        let retention = context.lake.settings().retention;
        let versions = (bronze.version(), silver.version());
        let care = Care::new(context.care.clone(), retention, versions);
        let mut owner = Self {
            identity,
            settings,
            table,
            bronze,
            silver: Some(silver),
            phase: Phase::Waiting,
            broken,
            staged_through: None,
            newest_staged_micros: None,
            catch_up: None,
            copy_failed: false,
            beside: None,
            copy_wanted: false,
            passed: Lsn::ZERO,
            care,
            context,
        };
        owner.phase = owner.first_phase();
        if afresh {
            owner.give_up_beside()?;
        } else {
            owner.find_beside()?;
        }
        owner.tell_status();
        Ok(owner)
    }

    fn first_phase(&self) -> Phase {
        match &self.silver {
            _ if self.broken => Phase::Stopped,
            Some(silver) if matches!(silver.copy_state(), CopyState::Complete) => Phase::CatchingUp,
            Some(_) => Phase::Waiting,
            None => Phase::Stopped,
        }
    }

    #[must_use]
    pub(crate) fn table(&self) -> &Arc<SourceTable> {
        &self.table
    }

    /// Adopts the table's newest shape before the owner's task runs.
    ///
    /// # Errors
    /// The lake cannot be written.
    pub(crate) fn reshape_now(&mut self, table: Arc<SourceTable>, step: &ShapeStep) -> Result<()> {
        self.reshape(table, step, Lsn::ZERO)?;
        self.tell_status();
        Ok(())
    }

    /// Before the owner's task runs, and before a copy: the server's history forks off at `fork`, what
    /// the lake has beyond is no part of it.
    ///
    /// # Errors
    /// The lake cannot be written.
    pub(crate) fn forget_beyond(&mut self, fork: Lsn) -> Result<()> {
        if self.position() > fork {
            self.lose_the_stream("the server has another history")?;
        }
        self.begin_beside_again()?;
        if self.bronze.position() > fork {
            self.bronze.start_anew(fork)?;
        }
        Ok(())
    }

    /// Before the owner's task runs, and before a copy: changes were missed. Readers see the rows there
    /// are until that copy is in their place, and no change comes to them.
    ///
    /// # Errors
    /// The lake cannot be written.
    pub(crate) fn lose_the_stream(&mut self, why: &str) -> Result<()> {
        self.begin_beside_again()?;
        let at = self.position();
        if let Some(silver) = &mut self.silver
            && silver.copy_state() == CopyState::Complete
        {
            silver.stop(at, why)?;
            self.broken = true;
            self.phase = Phase::Stopped;
        }
        Ok(())
    }

    /// Stops the table before the owner's task runs: its changes cannot be decoded any more.
    ///
    /// # Errors
    /// The lake cannot be written.
    pub(crate) fn stop_now(&mut self, error: &Error) -> Result<()> {
        self.break_at(self.position(), Lsn::ZERO, error)?;
        self.tell_status();
        Ok(())
    }

    /// The table's columns as the lake has them: silver waits for a copy where it has fewer than bronze.
    #[must_use]
    pub(crate) fn lake_columns(&self) -> &arrow::datatypes::SchemaRef {
        let bronze = self.bronze.schema();
        let silver = self.silver.as_ref().map(Silver::schema);
        let fewer = silver.filter(|silver| silver.columns.len() < bronze.columns.len());
        fewer.unwrap_or(bronze).arrow()
    }

    /// Whether the lake has the rows of this very table, told apart in the same way.
    #[must_use]
    pub(crate) fn is_copy_of_its_table(&self) -> bool {
        self.silver
            .as_ref()
            .is_none_or(|silver| silver.is_copy_of(&self.table.schema))
    }

    #[must_use]
    pub(crate) fn needs_copy(&self) -> bool {
        self.phase == Phase::Waiting
            || self.copy_wanted
            || self.beside.as_ref().is_some_and(Beside::is_copying)
    }

    /// The furthest position the lake has of this table.
    #[must_use]
    pub(crate) fn position(&self) -> Lsn {
        let silver = self
            .silver
            .as_ref()
            .map_or(Lsn::ZERO, |silver| match silver.copy_state() {
                CopyState::Copying { last_snapshot, .. } => last_snapshot,
                _ => silver.position(),
            });
        silver.max(self.bronze.position())
    }

    /// The owner's task, to be spawned, and how to reach it.
    pub(crate) fn start(self) -> (OwnerHandle, impl Future<Output = ()> + Send) {
        let (handle, receiver) = OwnerHandle::of(self.table.schema.id.clone());
        (handle, task::work(self, receiver))
    }

    /// Does one command. Answers what must be told to the pipeline.
    fn perform(&mut self, command: Command) -> Vec<Event> {
        let mut events = Vec::new();
        match command {
            Command::Cut {
                batches,
                end,
                permit,
            } => {
                let took = match self.cut(batches, end) {
                    Ok(took) => took,
                    Err(error) => {
                        events.extend(self.failed(error));
                        Duration::ZERO
                    }
                };
                drop(permit);
                if let Some(end) = end
                    && !events.iter().any(|event| matches!(event, Event::Fatal(_)))
                {
                    events.push(Event::Durable { cut: end.id, took });
                }
            }
            Command::PrepareCopy { table, reply } => {
                let _ = reply.send(self.prepare_copy(table));
            }
            Command::BeginCopy {
                schema,
                snapshot,
                afresh,
                reply,
            } => {
                let begun = self.begin_copy(&schema, snapshot, afresh);
                let _ = reply.send(self.unless_foreign(begun));
                events.push(Event::PhaseChanged);
            }
            Command::Copied { rows, reply } => {
                let wanted = self.copy_wanted;
                let _ = reply.send(self.copied(rows));
                events.extend(self.wants_copy_now(wanted));
            }
            Command::FinishCopy { reply } => {
                let wanted = self.copy_wanted;
                let finished = self.finish_copy();
                let _ = reply.send(self.unless_foreign(finished));
                events.extend(self.wants_copy_now(wanted));
                events.push(Event::PhaseChanged);
            }
            Command::View { through, reply } => {
                let _ = reply.send(self.show(through));
            }
            Command::Care(request) => {
                let files = self.silver.as_ref().map_or(0, Silver::num_files);
                self.care.ask(request, files.max(self.bronze.num_files()));
            }
            Command::Shape { table, step, ended } => match self.reshape(table, &step, ended) {
                Err(error) => events.extend(self.failed(error)),
                Ok(true) => events.push(Event::NeedsCopy(self.table.schema.id.clone())),
                Ok(false) => {}
            },
            Command::Broken { at, ended, error } => {
                if let Err(error) = self.break_at(at, ended, &error) {
                    events.push(Event::Fatal(error));
                }
                events.push(Event::PhaseChanged);
            }
            Command::Repair { repair, reply } => {
                let (repaired, more) = self.repair(repair);
                let _ = reply.send(repaired);
                events.extend(more);
            }
            Command::HaltCopy { error, reply } => {
                events.push(self.halt_copy(error));
                // Whoever asked looks at the status next.
                self.tell_status();
                let _ = reply.send(Ok(()));
            }
            Command::Passed(position) => self.passed = position,
            Command::Restarted => {
                if let Err(error) = self.restarted() {
                    events.extend(self.failed(error));
                }
            }
        }
        self.tell_status();
        events
    }

    /// Whether it is to be copied, and was not `before`.
    fn wants_copy_now(&self, before: bool) -> Option<Event> {
        let wants = self.copy_wanted && !before;
        wants.then(|| Event::NeedsCopy(self.table.schema.id.clone()))
    }

    /// Stages changes in bronze, and in silver where it is live and has not failed. An error of
    /// silver does not keep changes out of bronze.
    fn stage(&mut self, landing: Landing<ChangeBatch>, merged: &mut Result<()>) -> Result<()> {
        failpoint::hit("land.before_stage");
        let batch = &landing.rows;
        let encoded = self.bronze.stage_ready(batch, landing.ready)?;
        self.staged_through = batch.commit_lsn.last().copied().max(self.staged_through);
        if let (Phase::Live, Some(silver), true) = (self.phase, &mut self.silver, merged.is_ok()) {
            failpoint::hit("merge.before_stage");
            *merged = silver.apply_encoded(batch, encoded.as_ref()).map(|_| ());
            failpoint::hit("merge.after_stage");
        }
        Ok(())
    }

    /// Stages all changes of a cut, or of a part of one. Answers what silver said.
    fn land(&mut self, batches: Vec<Landing<ChangeBatch>>) -> Result<Result<()>> {
        let mut merged = Ok(());
        for mut landing in batches {
            if landing.rows.table.columns != self.table.schema.columns {
                landing = in_shape_of(landing.rows, &self.table)?.into();
            }
            self.stage(landing, &mut merged)?;
        }
        Ok(merged)
    }

    /// Takes in a cut, or a part of one. Answers how long its commit took.
    fn cut(&mut self, batches: Vec<Landing<ChangeBatch>>, end: Option<CutEnd>) -> Result<Duration> {
        if self.broken {
            return Ok(Duration::ZERO);
        }
        let began = Instant::now();
        let lacks_only_this = self.lacks_only_this_cut();
        let summary = Summary::of(&batches);
        let landed = self.land(batches);
        let staged = Instant::now();
        let landed = landed.and_then(|merged| {
            if let Some(end) = end {
                self.commit_bronze(end.position)?;
            }
            Ok(merged)
        });
        match landed {
            Ok(merged) => merged?,
            Err(error) if is_of_lake(&error) => return Err(error),
            Err(error) => {
                // Bronze itself cannot go on: what comes now is not kept.
                self.break_at(summary.first.unwrap_or_default(), Lsn::ZERO, &error)?;
                return Ok(Duration::ZERO);
            }
        }
        if let (Phase::Live, Some(end), Some(silver)) = (self.phase, end, &mut self.silver) {
            failpoint::hit("merge.before_commit");
            // Nothing is staged where all of it was committed before a restart.
            if silver.has_staged() {
                silver.commit_in_time(end.position)?;
            }
            failpoint::hit("merge.after_commit");
        }
        if lacks_only_this && end.is_some() {
            self.catch_up_wholly()?;
        }
        let took = staged.elapsed();
        tracing::debug!(
            table = %self.table.schema.id,
            changes = summary.changes,
            staging_ms = (staged - began).as_millis(),
            commit_ms = end.map(|_| took.as_millis()),
            "cut"
        );
        self.note_cut(&summary, end.map(|_| took));
        Ok(took)
    }

    fn commit_bronze(&mut self, position: Lsn) -> Result<()> {
        failpoint::hit("land.before_commit");
        self.bronze.commit(position)?;
        failpoint::hit("land.after_commit");
        self.staged_through = None;
        Ok(())
    }

    fn show(&self, through: Lsn) -> Shown {
        let Some(silver) = self.silver.as_ref().filter(|_| self.phase == Phase::Live) else {
            return Shown::No;
        };
        if silver.is_ahead_of(through) {
            return Shown::Ahead;
        }
        match silver.view(through) {
            Ok(view) => view.map_or(Shown::No, Shown::Table),
            Err(error) => {
                tracing::warn!(table = %self.table.schema.id, error = %error, "the table cannot be shown now");
                Shown::No
            }
        }
    }

    fn open_silver(&self) -> Result<Silver> {
        let settings = self.settings.clone();
        Silver::open(
            &self.context.lake,
            &self.identity,
            &self.table.schema,
            settings,
        )
    }

    /// Uncommitted parts of a cut are void: the source will send them again.
    fn restarted(&mut self) -> Result<()> {
        self.bronze.discard_changes();
        if self.staged_through.take().is_none() {
            return Ok(());
        }
        if let Some(silver) = &mut self.silver
            && silver.has_staged()
            && self.phase == Phase::Live
        {
            self.silver = None;
            self.silver = Some(self.open_silver()?);
            self.phase = Phase::CatchingUp;
        }
        Ok(())
    }

    /// Commits what silver has staged of whole transactions.
    fn commit_held(&mut self) -> Result<()> {
        match &mut self.silver {
            Some(silver) => silver.commit_held().map(|_| ()),
            None => Ok(()),
        }
    }

    /// When silver is to be committed, though nothing happens.
    fn held_until(&self) -> Option<Instant> {
        self.silver.as_ref().and_then(Silver::held_until)
    }

    /// Whether silver is to be committed now, though nothing happens.
    fn is_due(&self) -> bool {
        self.held_until().is_some_and(|until| until <= instant())
    }

    /// When to look again, though nothing happened.
    fn next_look(&self) -> Option<Instant> {
        self.care
            .next_look()
            .into_iter()
            .chain(self.held_until())
            .min()
    }

    /// The run ends in order: leaves what makes the next start quick.
    fn close(&mut self) {
        if let Err(error) = self.commit_held() {
            tracing::debug!(table = %self.table.schema.id, error = %error, "left to the next run");
        }
        let beside = self.beside.as_mut().map(|beside| &mut beside.silver);
        for silver in self.silver.iter_mut().chain(beside) {
            silver.save_index();
        }
    }

    fn tell_status(&self) {
        self.context
            .board
            .table(&self.table.schema.id.to_string(), |status| {
                measure::note_phase(status, self.phase);
                status.lake_name.clone_from(&self.identity.name);
                status.resyncing = self.beside.is_some();
                status.identity = crate::tables::describe_identity(&self.table.schema);
                status.bronze_position = self.bronze.position();
                status.bronze_files = self.bronze.num_files() as u64;
                if let Some(silver) = &self.silver {
                    status.silver_files = silver.num_files() as u64;
                    status.silver_rows = silver.num_rows();
                    status.silver_version = silver.version();
                    status.silver_position = silver.committed_position();
                    let waits = silver.held_since().map(|since| instant() - since);
                    let micros = |waits: Duration| i64::try_from(waits.as_micros()).ok();
                    status.waiting_since_micros =
                        waits.and_then(micros).map(|micros| now_micros() - micros);
                    status.conflicts = silver.conflicts();
                    status.index_bytes = silver.index_bytes() as u64;
                    status.index_disk_bytes = silver.index_disk_bytes();
                }
            });
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
