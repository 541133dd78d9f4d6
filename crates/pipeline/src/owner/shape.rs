//! Columns that come while the table is followed.

use std::sync::Arc;

use alluvium_change::{Lsn, Result, code, failpoint};
use alluvium_lake::Silver;
use alluvium_source_postgres::catalog::SourceTable;
use arrow::array::{Array as _, ArrayRef};

use super::TableOwner;
use crate::status::Phase;
use crate::tables::ShapeStep;

impl TableOwner {
    /// Takes in the table's newest shape, `ended` the last transaction of which all changes came before it.
    /// Answers whether the table is to be copied.
    ///
    /// # Errors
    /// The lake cannot be read or written.
    pub(super) fn reshape(
        &mut self,
        table: Arc<SourceTable>,
        step: &ShapeStep,
        ended: Lsn,
    ) -> Result<bool> {
        let ShapeStep::AddColumns { fill, recopy } = step else {
            self.table = table;
            return Ok(false);
        };
        if self.broken {
            return Ok(false);
        }
        let columns = &table.schema.columns;
        let silver = self.silver.as_ref().filter(|_| self.is_followed());
        if self.bronze.schema().columns == *columns
            && silver.is_none_or(|silver| silver.schema().columns == *columns)
        {
            // A copy was prepared in this shape.
            self.table = table;
            return Ok(false);
        }
        self.begin_beside_again()?;
        let within = self.staged_through.is_some_and(|through| through > ended);
        let whole = self.staged_through.take_if(|_| !within);
        if let Some(through) = whole {
            self.bronze.commit(through)?;
        }
        let has_fill = fill.iter().any(|(_, value)| value.null_count() == 0);
        // In the middle of a transaction changes of both shapes are still to be merged.
        let readied = match self.ready_for_columns(whole, has_fill) {
            Ok(()) => Ok(!(within && has_fill)),
            // It was opened in the new columns: nothing was begun.
            Err(error) if error.is(&code::SCHEMA_CHANGED) => Ok(false),
            Err(error) if error.is(&code::COPY_AGAIN) || self.is_for_us_to_settle(&error) => {
                self.silver = None;
                Ok(false)
            }
            Err(error) => Err(error),
        };
        self.bronze.discard_copied();
        self.bronze.add_columns(&table.schema)?;
        self.table = table;
        self.catch_up = None;
        let is_ready = readied? && !*recopy;
        if !is_ready || matches!(self.phase, Phase::Waiting | Phase::Copying) {
            // Readers see the rows as they were until the copy is there: nobody knows the new values.
            self.phase = Phase::Waiting;
        }
        let has_part = self.silver.as_ref().is_some_and(Silver::has_staged);
        if has_part {
            self.silver = None;
            self.silver = Some(self.open_silver()?);
        }
        if self.is_followed() {
            if within || has_part {
                self.phase = Phase::CatchingUp;
            }
            self.add_to_silver(fill)?;
        }
        Ok(self.phase == Phase::Waiting || self.copy_wanted)
    }

    /// Commits what silver has of whole transactions, `whole` the last that was just committed. Changes in
    /// bronze from before a column do not have its value: silver must be past them.
    fn ready_for_columns(&mut self, whole: Option<Lsn>, has_fill: bool) -> Result<()> {
        if let (Phase::Live, Some(silver), Some(through)) = (self.phase, &mut self.silver, whole)
            && silver.has_staged()
        {
            silver.commit(through)?;
        }
        if has_fill && !self.is_level() && !failpoint::is_planted("columns.before_backlog") {
            self.catch_up_wholly()?;
        }
        self.commit_held()
    }

    /// Also when another program wrote just now.
    fn add_to_silver(&mut self, fill: &[(String, ArrayRef)]) -> Result<()> {
        while let Some(silver) = &mut self.silver {
            match silver.add_columns(&self.table.schema, fill) {
                Ok(()) => break,
                Err(error) => {
                    self.silver = None;
                    self.after_foreign(error)?;
                }
            }
        }
        Ok(())
    }
}
