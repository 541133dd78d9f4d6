//! The table's copy: into silver where that has no rows yet, else into a table beside it, which takes
//! its place when it has all that bronze has. Silver goes on meanwhile, unless it cannot.

use std::sync::Arc;

use alluvium_change::{Error, Lsn, Result, TableSchema, code, failpoint};
use alluvium_lake::{CopyState, Silver};
use alluvium_source_postgres::catalog::SourceTable;

use super::catch_up::CatchUp;
use super::failure::copy_again;
use super::{CopiedRows, Event, TableOwner, is_of_lake};
use crate::status::{ErrorStatus, Phase, now_micros};

/// A copy that is taken beside the table that stands.
pub(super) struct Beside {
    pub(super) silver: Silver,
    pub(super) catch_up: Option<CatchUp>,
}

impl Beside {
    fn of(silver: Silver) -> Self {
        Self {
            silver,
            catch_up: None,
        }
    }

    pub(super) fn is_copying(&self) -> bool {
        matches!(self.silver.copy_state(), CopyState::Copying { .. })
    }
}

impl TableOwner {
    /// When the owner is opened: a copy that was begun goes on. One that is damaged begins again.
    pub(super) fn find_beside(&mut self) -> Result<()> {
        let lake = &self.context.lake;
        let (schema, settings) = (&self.table.schema, self.settings.clone());
        match Silver::open_beside(lake, &self.identity, schema, settings) {
            Ok(found) => self.beside = found.map(Beside::of),
            Err(error) if is_of_lake(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(table = %schema.id, error = %error, "copying the table again");
                Silver::discard_beside(lake, &self.identity)?;
                self.copy_wanted = true;
            }
        }
        let begun = |beside: &Beside| beside.silver.copy_state() != CopyState::None;
        let Some(beside) = self.beside.take_if(|beside| begun(beside)) else {
            return self.give_up_beside();
        };
        if !self.goes_on() {
            self.broken = false;
            self.phase = if beside.is_copying() {
                Phase::Waiting
            } else {
                Phase::Copying
            };
        }
        self.beside = Some(beside);
        Ok(())
    }

    /// Forgets the copy beside, if there is one.
    pub(super) fn give_up_beside(&mut self) -> Result<()> {
        self.beside = None;
        Silver::discard_beside(&self.context.lake, &self.identity)
    }

    /// As [`Self::give_up_beside`], to copy the table again.
    pub(super) fn begin_beside_again(&mut self) -> Result<()> {
        if self.beside.is_some() {
            self.give_up_beside()?;
            self.copy_wanted = true;
        }
        Ok(())
    }

    /// Whether changes come to silver.
    pub(super) fn is_followed(&self) -> bool {
        matches!(self.phase, Phase::Live | Phase::CatchingUp)
    }

    /// Whether silver follows the source while the table is copied beside.
    fn goes_on(&self) -> bool {
        let fits = |silver: &Silver| {
            silver.schema().columns == self.table.schema.columns
                && silver.is_copy_of(&self.table.schema)
        };
        !self.broken && self.is_followed() && self.silver.as_ref().is_some_and(fits)
    }

    pub(super) fn prepare_copy(&mut self, table: Arc<SourceTable>) -> Result<Arc<SourceTable>> {
        self.copy_wanted = false;
        self.bronze.discard_copied();
        if table.read >= self.table.read {
            self.table = table;
        }
        let goes_on = self.goes_on();
        let stands = match &self.silver {
            Some(silver) => silver.copy_state() == CopyState::Complete,
            None => Silver::stands(&self.context.lake, &self.identity)?,
        };
        if !goes_on {
            self.catch_up = None;
            self.phase = Phase::Waiting;
            self.broken = false;
        }
        let columns = &self.table.schema.columns;
        if self.bronze.schema().columns != *columns {
            match self.bronze.add_columns(&self.table.schema) {
                Err(error) if error.is(&code::SCHEMA_CHANGED) => {
                    self.bronze.replace_schema(&self.table.schema)?;
                    self.staged_through = None;
                }
                added => added?,
            }
        }
        if stands {
            self.prepare_beside()?;
        } else {
            self.prepare_silver()?;
        }
        self.context
            .board
            .table(&self.table.schema.id.to_string(), |status| {
                status.error = None
            });
        Ok(Arc::clone(&self.table))
    }

    fn prepare_beside(&mut self) -> Result<()> {
        let schema = &self.table.schema;
        // One that is complete could be in its place before the new copy begins, which would empty it.
        let fits = |beside: &Beside| {
            !beside.silver.has_staged()
                && beside.silver.schema().columns == schema.columns
                && (beside.silver.copy_state() != CopyState::Complete
                    || failpoint::is_planted("copy.into_complete"))
        };
        // What was staged of a range is to be read again.
        let (lake, identity, settings) = (&self.context.lake, &self.identity, &self.settings);
        let beside = match self.beside.take().filter(fits) {
            Some(beside) => Some(beside),
            None => match Silver::open_beside(lake, identity, schema, settings.clone()) {
                Ok(found) => found.map(Beside::of).filter(fits),
                Err(error) if is_of_lake(&error) => return Err(error),
                // Damaged: it begins again.
                Err(_) => None,
            },
        };
        self.beside = match beside {
            Some(beside) => Some(beside),
            None => {
                let new = Silver::new_beside(lake, identity, schema, settings.clone())?;
                Some(Beside::of(new))
            }
        };
        Ok(())
    }

    fn prepare_silver(&mut self) -> Result<()> {
        let opened_for_it = self.silver.as_ref().is_some_and(|silver| {
            !silver.has_staged() && silver.schema().as_ref() == self.table.schema.as_ref()
        });
        if !opened_for_it {
            self.silver = None;
            self.silver = Some(self.open_silver()?);
        }
        if let Some(silver) = &mut self.silver
            && silver.schema().columns != self.table.schema.columns
        {
            silver.replace_schema(&self.table.schema)?;
        }
        Ok(())
    }

    /// What is copied into.
    fn target(&mut self) -> Option<&mut Silver> {
        match &mut self.beside {
            Some(beside) => Some(&mut beside.silver),
            None => self.silver.as_mut(),
        }
    }

    /// Silver cannot go on: the copy that is under way beside it is silver next, or one is asked for.
    pub(super) fn wait_for_copy(&mut self) -> Event {
        let state = self
            .beside
            .as_ref()
            .map(|beside| beside.silver.copy_state());
        self.phase = match state {
            Some(CopyState::Copying { .. } | CopyState::Complete) => Phase::Copying,
            Some(CopyState::None) | None => Phase::Waiting,
        };
        match state {
            Some(_) => Event::PhaseChanged,
            None => Event::NeedsCopy(self.table.schema.id.clone()),
        }
    }

    pub(super) fn begin_copy(
        &mut self,
        schema: &Arc<TableSchema>,
        snapshot: Lsn,
        afresh: bool,
    ) -> Result<CopyState> {
        self.copy_failed = false;
        let is_prepared = schema.columns == self.table.schema.columns;
        // Under two snapshots it is not known which row a change means if two rows exchange a key.
        let is_clear = self.table.is_key_enforced || schema.key_names().is_empty();
        let Some(target) = self.target().filter(|_| is_prepared) else {
            // Something went wrong, or the table changed, before its snapshot was there.
            return Err(copy_again(&schema.id));
        };
        let resume = !afresh
            && is_clear
            && matches!(target.copy_state(), CopyState::Copying { .. })
            && target.is_copy_of(schema);
        if !resume {
            if self.bronze.version() > 0 {
                self.bronze.record_restart(snapshot, now_micros())?;
                self.bronze.commit_copied()?;
            }
            if let Some(target) = self.target() {
                target.begin_copy(snapshot)?;
            }
        }
        if let Some(beside) = &mut self.beside {
            beside.catch_up = None;
        }
        if self.phase == Phase::Waiting {
            self.phase = Phase::Copying;
        }
        let estimated_rows = self.table.estimated_rows;
        self.context.board.table(&schema.id.to_string(), |status| {
            status.error = None;
            // A negative estimate means that the table was never analysed.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an estimate"
            )]
            let estimated_rows = estimated_rows.max(0.0) as u64;
            status.estimated_rows = estimated_rows;
            if !resume {
                status.copied_rows = 0;
                status.copied_bytes = 0;
            }
        });
        let state = self.target().map(|target| target.copy_state());
        Ok(state.unwrap_or(CopyState::None))
    }

    /// What another program did to the table that is copied into is settled when it is opened again, for
    /// another copy.
    pub(super) fn unless_foreign<T>(&mut self, outcome: Result<T>) -> Result<T> {
        match outcome {
            Err(error) if self.is_for_us_to_settle(&error) => {
                self.copy_wanted = true;
                if self.beside.take().is_none() {
                    self.silver = None;
                    self.phase = Phase::Waiting;
                }
                Err(copy_again(&self.table.schema.id))
            }
            outcome => outcome,
        }
    }

    /// Takes in rows of the next range. Ranges come in order without waiting for each other: after one
    /// that failed none is taken.
    pub(super) fn copied(&mut self, rows: CopiedRows) -> Result<()> {
        let copied = self.stage_copied(rows);
        let copied = self.unless_foreign(copied);
        self.copy_failed |= copied.is_err();
        copied
    }

    fn stage_copied(&mut self, rows: CopiedRows) -> Result<()> {
        let silver = match &mut self.beside {
            Some(beside) => Some(&mut beside.silver),
            None if self.phase == Phase::Copying => self.silver.as_mut(),
            None => None,
        };
        let is_copied = |silver: &&mut Silver| {
            matches!(silver.copy_state(), CopyState::Copying { .. }) && !self.copy_failed
        };
        let Some(silver) = silver.filter(is_copied) else {
            return Err(copy_again(&self.table.schema.id));
        };
        failpoint::hit("copy.before_stage");
        for landing in rows.batches {
            let (batch, ready) = (&landing.rows, landing.ready);
            let encoded =
                self.bronze
                    .stage_copied_ready(batch, rows.snapshot, now_micros(), ready)?;
            silver.stage_copied_encoded(batch, rows.snapshot, encoded.as_ref())?;
        }
        if let Some(reached) = rows.reached {
            failpoint::hit("copy.before_commit");
            self.bronze.commit_copied()?;
            silver.commit_copied(rows.snapshot, reached.relfilenode, reached.next_page)?;
            failpoint::hit("copy.after_commit");
        }
        Ok(())
    }

    pub(super) fn finish_copy(&mut self) -> Result<()> {
        let Some(target) = self.target() else {
            return Err(Error::bug("the copy of a stopped table ended"));
        };
        failpoint::hit("copy.before_finish");
        target.finish_copy()?;
        if self.beside.is_none() {
            self.phase = Phase::CatchingUp;
        }
        Ok(())
    }

    /// The table beside has all that bronze has: it is silver from now on.
    pub(super) fn swap(&mut self) -> Result<()> {
        let Some(Beside { mut silver, .. }) = self.beside.take() else {
            return Ok(());
        };
        let lake = &self.context.lake;
        let standing = self.silver.take();
        self.catch_up = None;
        let version = silver.take_place(lake, standing)?;
        tracing::info!(table = %self.table.schema.id, version, "the new copy is in place");
        self.silver = Some(silver);
        self.phase = Phase::CatchingUp;
        Ok(())
    }

    /// What was copied beside cannot be brought forward, or not be put in its place.
    pub(super) fn beside_failed(&mut self, error: Error) -> Vec<Event> {
        if is_of_lake(&error) {
            return vec![Event::Fatal(error)];
        }
        let goes_on = self.is_followed();
        let mut events = Vec::new();
        if self.silver.is_none() && goes_on {
            self.phase = Phase::CatchingUp;
            match self.open_silver() {
                Ok(silver) => self.silver = Some(silver),
                Err(error) => events.extend(self.failed(error)),
            }
        }
        if !error.is(&code::COPY_AGAIN) && !self.is_for_us_to_settle(&error) {
            self.tell_not_copied_afresh(ErrorStatus::from(&error));
            events.push(Event::PhaseChanged);
            return events;
        }
        tracing::warn!(table = %self.table.schema.id, error = %error, "copying the table again");
        events.push(match self.give_up_beside() {
            Ok(()) => Event::NeedsCopy(self.table.schema.id.clone()),
            Err(error) => Event::Fatal(error),
        });
        self.copy_wanted = true;
        events
    }

    /// What was copied stays: the next run goes on with it.
    pub(super) fn halt_copy(&mut self, error: ErrorStatus) -> Event {
        match (&self.beside, self.phase) {
            (Some(_), _) => self.tell_not_copied_afresh(error),
            (None, Phase::Waiting | Phase::Copying) => {
                self.tell_not_copied(error, "copying of the table stopped, the others go on");
            }
            // Copied before the error came, or stopped for a reason of its own.
            (None, _) => {}
        }
        Event::PhaseChanged
    }

    fn tell_not_copied_afresh(&mut self, error: ErrorStatus) {
        self.beside = None;
        self.tell_not_copied(error, "the table is not copied afresh, and is as it was");
    }

    fn tell_not_copied(&mut self, error: ErrorStatus, outcome: &str) {
        if !self.is_followed() {
            self.phase = Phase::Stopped;
        }
        tracing::error!(
            table = %self.table.schema.id,
            code = error.code,
            error = error.message,
            detail = error.detail,
            hint = error.hint,
            "{outcome}"
        );
        self.context
            .board
            .table(&self.table.schema.id.to_string(), |status| {
                status.error = Some(error);
            });
    }
}
