//! What an owner does when something went wrong: stop its table, copy it again, or end the pipeline.

use std::path::Path;

use alluvium_change::{Error, Lsn, Result, TableId, code};
use alluvium_lake::{CopyState, ForeignWriters};

use super::{Event, TableOwner};
use crate::status::{ErrorStatus, Phase, now_micros};

impl TableOwner {
    /// Sorts an error: does it stop this table, ask for a new copy, or end the pipeline?
    pub(super) fn failed(&mut self, error: Error) -> Vec<Event> {
        self.catch_up = None;
        if !is_of_lake(&error) {
            self.silver = None;
        }
        let error = match self.after_foreign(error) {
            Ok(()) => return vec![Event::PhaseChanged],
            Err(error) => error,
        };
        if is_of_lake(&error) {
            return vec![Event::Fatal(error)];
        }
        if error.is(&code::COPY_AGAIN) {
            tracing::warn!(table = %self.table.schema.id, error = %error, "copying the table again");
            return vec![self.wait_for_copy()];
        }
        self.phase = Phase::Stopped;
        self.tell_error(&error);
        vec![Event::PhaseChanged]
    }

    /// Another program wrote to silver, whose rows are in other files now, or as they were again: opens it
    /// and goes on. All that was staged is in bronze.
    ///
    /// # Errors
    /// What is the matter otherwise.
    pub(super) fn after_foreign(&mut self, error: Error) -> Result<()> {
        if !self.is_for_us_to_settle(&error) {
            return Err(error);
        }
        let silver = self.open_silver()?;
        if !matches!(silver.copy_state(), CopyState::Complete) {
            return Err(copy_again(&self.table.schema.id));
        }
        self.silver = Some(silver);
        self.phase = Phase::CatchingUp;
        Ok(())
    }

    /// Whether what another program did is followed or undone when silver is opened again.
    pub(super) fn is_for_us_to_settle(&self, error: &Error) -> bool {
        error.is(&code::LAKE_FOREIGN)
            && self.context.lake.settings().foreign != ForeignWriters::Refuse
    }

    pub(super) fn break_at(&mut self, at: Lsn, ended: Lsn, error: &Error) -> Result<()> {
        if let Some(through) = self
            .staged_through
            .take()
            .filter(|through| *through <= ended)
        {
            // Whole transactions from before are kept.
            self.bronze.commit(through)?;
            if let (Phase::Live, Some(silver)) = (self.phase, &mut self.silver)
                && silver.has_staged()
            {
                silver.commit(through)?;
            }
        }
        self.commit_held()?;
        self.broken = true;
        self.phase = Phase::Stopped;
        self.catch_up = None;
        self.give_up_beside()?;
        self.bronze.discard_staged();
        self.staged_through = None;
        let mut silver = match self.silver.take() {
            Some(silver) if !silver.has_staged() => silver,
            staged => {
                drop(staged);
                self.open_silver()?
            }
        };
        silver.stop(at, error.message())?;
        self.silver = Some(silver);
        self.tell_error(error);
        Ok(())
    }

    pub(super) fn tell_error(&self, error: &Error) {
        tracing::error!(
            table = %self.table.schema.id,
            code = error.code().id,
            error = %error,
            detail = error.detail().unwrap_or(""),
            hint = error.hint(),
            "table stopped, the others go on"
        );
        self.context
            .board
            .table(&self.table.schema.id.to_string(), |status| {
                status.error = Some(ErrorStatus::from(error));
            });
    }
}

/// What is being copied is not what it was.
pub(super) fn copy_again(table: &TableId) -> Error {
    Error::new(
        &code::COPY_AGAIN,
        format!("table \"{table}\" changed while it was copied"),
    )
}

/// Whether the lake as a whole fails, not one table: a full disk, lost rights.
pub(crate) fn is_of_lake(error: &Error) -> bool {
    [&code::LAKE_IO, &code::LAKE_FULL, &code::LAKE_READ_ONLY]
        .into_iter()
        .any(|c| error.is(c))
}

/// Opens a table that will be copied afresh: a damaged one is moved out of the way.
pub(super) fn open_or_set_aside<T>(open: impl Fn() -> Result<T>, dir: &Path) -> Result<T> {
    match open() {
        Err(error) if error.is(&code::LAKE_CORRUPT) || error.is(&code::LAKE_FOREIGN) => {
            let aside = dir.with_file_name(format!(
                "~damaged-{}-{}",
                now_micros(),
                dir.file_name().unwrap_or_default().to_string_lossy()
            ));
            tracing::warn!(error = %error, aside = %aside.display(), "damaged table set aside");
            std::fs::rename(dir, &aside).map_err(|io| {
                Error::new(&code::LAKE_IO, format!("cannot move \"{}\"", dir.display()))
                    .with_detail(io.to_string())
            })?;
            open()
        }
        opened => opened,
    }
}
