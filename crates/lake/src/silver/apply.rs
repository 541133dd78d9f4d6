//! Applying changes: plan, fill, write, index.

use std::ops::Range;
use std::sync::Arc;

use alluvium_change::{ChangeBatch, Error, Identity, Lsn, Op, Result, code};
use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::interleave;
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::Silver;
use super::index::{Index, Lookups};
use super::segments::Segments;
use super::stage::{Rows, Stage};
use crate::OnConflict;
use crate::key_index::{Key, KeyEncoder, Location};
use crate::merge::{
    Action, Before, Event, Misfit, Plan, PlannedRow, Reason, Refusal, plan_keyed, plan_rows,
};
use crate::owned::same_type;
use crate::write::EncodedRows;

/// What a batch did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
    /// Truncates, not rows.
    pub truncated: u64,
    /// Changes that did not fit, with `on_conflict = "repair"`.
    pub conflicts: u64,
    /// Changes the table has already.
    pub skipped: u64,
}

impl Silver {
    /// Stages changes: whole transactions, or part of one whose rest follows before the commit.
    /// Rows at or below the position are skipped.
    ///
    /// # Errors
    /// `CONFLICT`, `NO_IDENTITY`, `COPY_AGAIN`, `SCHEMA_CHANGED`, or the lake's own. After an error the
    /// table must be opened again; nothing was committed.
    pub fn apply(&mut self, batch: &ChangeBatch) -> Result<Applied> {
        self.apply_encoded(batch, None)
    }

    /// As [`Self::apply`], with the batch's rows as bronze encoded them: where the table takes all of
    /// them as they are, they are not encoded again.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_encoded(
        &mut self,
        batch: &ChangeBatch,
        encoded: Option<&EncodedRows>,
    ) -> Result<Applied> {
        self.check_usable()?;
        if !self.positions.is_complete() {
            return Err(Error::bug(format!(
                "changes for table \"{}\" before its copy is complete",
                self.owner.table
            )));
        }
        self.check_columns(&batch.rows)?;
        // A part of a cut may be empty, or all of it be there already.
        if batch.commit_lsn.last().copied() > Some(self.position()) {
            self.stages_more();
        }
        self.guarded(|silver| silver.apply_all(batch, encoded))
    }

    pub(super) fn check_columns(&self, rows: &RecordBatch) -> Result<()> {
        let held = &self.schema.columns;
        let schema = rows.schema();
        let same = schema.fields().len() == held.len()
            && schema.fields().iter().zip(held).all(|(field, column)| {
                *field.name() == column.name && same_type(field.data_type(), &column.data_type)
            });
        if same {
            return Ok(());
        }
        Err(Error::new(
            &code::SCHEMA_CHANGED,
            format!(
                "rows of table \"{}\" have other columns than its silver table",
                self.owner.table
            ),
        ))
    }

    fn apply_all(&mut self, batch: &ChangeBatch, encoded: Option<&EncodedRows>) -> Result<Applied> {
        let position = self.position();
        let rows = batch.num_rows();
        let start = batch.commit_lsn.partition_point(|lsn| *lsn <= position);
        let mut applied = Applied {
            skipped: start as u64,
            ..Applied::default()
        };
        let mut from = start;
        for (row, op) in batch.ops.iter().enumerate().skip(start) {
            if *op == Op::Truncate {
                // What came before it in this batch leaves no trace but in the counts.
                applied.add(&count(batch.ops.get(from..row).unwrap_or_default()));
                let lsn = batch.commit_lsn.get(row).copied().unwrap_or_default();
                self.truncate(lsn)?;
                applied.truncated += 1;
                from = row + 1;
            }
        }
        applied.add(&self.apply_range(batch, from..rows, encoded, self.misfit())?);
        self.conflicts += applied.conflicts;
        Ok(applied)
    }

    /// Empties the table, but for rows copied under a later snapshot.
    fn truncate(&mut self, at: Lsn) -> Result<()> {
        let window = at < self.positions.reconcile_until();
        let survives = |snapshot: Option<Lsn>| window && snapshot.is_some_and(|s| s > at);
        self.stage.discard(survives);
        self.segments
            .retain(&self.dir, |segment| survives(segment.snapshot()));
        let (segments, stage) = (&self.segments, &self.stage);
        let is_live =
            |at: Location| segments.get(at.segment).is_some() || stage.is_open(at.segment);
        match &mut self.index {
            Index::Keyed(index) if !window => index.clear(),
            Index::Keyed(index) => index.retain(&is_live)?,
            Index::Rows(index) if !window => index.clear(),
            Index::Rows(_) => {
                return Err(Error::bug(
                    "a table without a key was copied under two snapshots",
                ));
            }
            Index::None => {}
        }
        Ok(())
    }

    /// Changes without truncates.
    pub(super) fn apply_range(
        &mut self,
        batch: &ChangeBatch,
        range: Range<usize>,
        encoded: Option<&EncodedRows>,
        misfit: Misfit,
    ) -> Result<Applied> {
        if range.is_empty() {
            return Ok(Applied::default());
        }
        let (from, to) = (range.start, range.end);
        // Rows completed with other values are not those that were encoded.
        let encoded = encoded.filter(|encoded| {
            batch.unchanged.is_empty()
                && encoded.num_rows() == batch.num_rows()
                && self.has_columns(encoded)
        });
        let batch = self.completed(batch)?;
        let batch = batch.as_ref();
        let events = self.keyed_events(batch, from, to)?;
        let plan = match &self.index {
            Index::Keyed(index) => {
                let state = State {
                    lookups: Lookups::new(index),
                    segments: &self.segments,
                    stage: &self.stage,
                };
                let until = self.positions.reconcile_until();
                let plan = plan_keyed(batch, &events, &state, until, misfit);
                state.lookups.check()?;
                plan
            }
            Index::Rows(index) => {
                let events = row_events(batch, from, to)?;
                plan_rows(&events, index, misfit)
            }
            Index::None => self.append_only_plan(batch, from, to),
        };
        let plan = plan.map_err(|refusal| self.refuse(batch, refusal))?;
        let encoded = encoded.filter(|_| plan.takes_all(batch.num_rows()));
        self.carry_out(batch, &plan, encoded)?;
        Ok(Applied {
            inserted: plan.inserted,
            updated: plan.updated,
            deleted: plan.deleted,
            truncated: 0,
            conflicts: plan.conflicts,
            skipped: plan.skipped,
        })
    }

    fn misfit(&self) -> Misfit {
        match self.settings.on_conflict {
            OnConflict::Stop => Misfit::Refuse,
            OnConflict::Repair => Misfit::Repair,
        }
    }

    /// Whether all source columns of the table are encoded as it has them.
    pub(super) fn has_columns(&self, encoded: &EncodedRows) -> bool {
        let is_metadata = |name: &str| self.metadata.iter().any(|(_, ours)| ours == name);
        let mut fields = self.columns.fields().iter();
        fields.all(|field| is_metadata(field.name()) || encoded.has(field))
    }

    fn carry_out(
        &mut self,
        batch: &ChangeBatch,
        plan: &Plan,
        encoded: Option<&EncodedRows>,
    ) -> Result<()> {
        let metadata = match encoded {
            Some(_) => self.metadata_columns(batch, plan)?,
            None => None,
        };
        let recent = match encoded {
            Some(_) if self.recent.is_kept() => {
                Some(self.with_metadata(&batch.rows, metadata.as_ref())?)
            }
            _ => None,
        };
        let metadata = self.encode(metadata)?;
        // Values come from rows that may be dead afterwards: read first.
        let rows = match encoded {
            Some(encoded) => Some(Rows::Encoded(
                std::iter::once(encoded).chain(&metadata).collect(),
            )),
            None => self.materialize(batch, plan)?.map(Rows::Plain),
        };
        for dead in &plan.dead {
            self.bury(*dead)?;
        }
        let first = match rows {
            Some(rows) => {
                let (columns, segments) = (&self.columns, &mut self.segments);
                let first = self.stage.write(&rows, columns, None, segments)?;
                self.recent.push(
                    first.segment,
                    match rows {
                        Rows::Plain(rows) => Some(rows),
                        Rows::Encoded(_) => recent,
                    },
                );
                Some(first)
            }
            None => None,
        };
        for (key, place) in &plan.index {
            let location = match (place, first) {
                (Some(place), Some(first)) => Some(Location {
                    segment: first.segment,
                    row: first.row + place,
                }),
                (Some(_), None) => return Err(Error::bug("a planned row was not written")),
                (None, _) => None,
            };
            match (&mut self.index, location) {
                (Index::Keyed(index), Some(location)) => {
                    index.insert(*key, location)?;
                }
                (Index::Keyed(index), None) => {
                    index.remove(*key)?;
                }
                (Index::Rows(index), Some(location)) => index.insert(*key, location),
                (Index::Rows(index), None) => {
                    index.remove(*key);
                }
                (Index::None, _) => {}
            }
        }
        self.settle_index()
    }

    /// After changes of the index.
    pub(super) fn settle_index(&mut self) -> Result<()> {
        match &mut self.index {
            Index::Keyed(index) => index.settle(),
            Index::Rows(_) | Index::None => Ok(()),
        }
    }

    /// Marks a row deleted, wherever it is.
    pub(super) fn bury(&mut self, location: Location) -> Result<()> {
        if self.stage.delete(location)? {
            return Ok(());
        }
        self.segments.delete(location)
    }

    /// Without a key: the batch with its unchanged values filled from the old images.
    fn completed<'a>(&self, batch: &'a ChangeBatch) -> Result<std::borrow::Cow<'a, ChangeBatch>> {
        use std::borrow::Cow;
        if !matches!(self.index, Index::Rows(_)) || batch.unchanged.is_empty() {
            return Ok(Cow::Borrowed(batch));
        }
        let mut complete = batch.clone();
        let columns: Vec<usize> = (0..batch.rows.num_columns()).collect();
        let columns = patched(batch, &columns)?;
        complete.rows = RecordBatch::try_new(batch.rows.schema(), columns)
            .map_err(|e| Error::bug("old and new images differ").with_source(e))?;
        complete.unchanged.clear();
        Ok(Cow::Owned(complete))
    }

    /// The changes with their keys, of which the index knows then where they are. None of a table
    /// without a key.
    fn keyed_events(&mut self, batch: &ChangeBatch, from: usize, to: usize) -> Result<Vec<Event>> {
        let Identity::Key(key) = &self.schema.identity else {
            return Ok(Vec::new());
        };
        // A key column that was not sent is as in the old image.
        let is_key = |column: u32| key.contains(&(column as usize));
        let new_keys = if batch
            .unchanged
            .iter()
            .any(|unchanged| is_key(unchanged.column))
        {
            patched(batch, key)?
        } else {
            pick(&batch.rows, key)?
        };
        let mut encoder = KeyEncoder::of_key(&new_keys)?;
        let old_keys = batch
            .old
            .as_ref()
            .map(|old| pick(&old.rows, key))
            .transpose()?;
        let mut old_encoder = old_keys.as_deref().map(KeyEncoder::of_key).transpose()?;
        let mut events = Vec::with_capacity(to - from);
        for row in from..to {
            let action = action(batch, row)?;
            if encoder.has_null(row) {
                return Err(self.null_key(batch, row));
            }
            let mut old_key = None;
            if let (Some(old_row), Some(encoder)) = (batch.old_row(row), &mut old_encoder) {
                if encoder.has_null(old_row as usize) {
                    return Err(self.null_key(batch, row));
                }
                old_key = Some(encoder.key(old_row as usize));
            }
            events.push(event(batch, row, action, encoder.key(row), old_key));
        }
        if let Index::Keyed(index) = &mut self.index
            && index.is_on_disk()
        {
            let keys = events.iter().flat_map(|e| [Some(e.key), e.old_key]);
            index.prepare(&keys.flatten().collect::<Vec<_>>())?;
        }
        Ok(events)
    }

    fn append_only_plan(
        &self,
        batch: &ChangeBatch,
        from: usize,
        to: usize,
    ) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        for row in from..to {
            let row = u32::try_from(row).unwrap_or(u32::MAX);
            match batch.ops.get(row as usize) {
                Some(Op::Insert | Op::Read) => {
                    plan.inserted += 1;
                    plan.rows.push(PlannedRow {
                        row,
                        fills: Vec::new(),
                    });
                }
                _ => {
                    return Err(Refusal {
                        row,
                        reason: Reason::NoOldImage,
                    });
                }
            }
        }
        Ok(plan)
    }

    fn null_key(&self, batch: &ChangeBatch, row: usize) -> Error {
        Error::new(
            &code::CONFLICT,
            format!(
                "a row of table \"{}\" has a NULL in its key",
                self.owner.table
            ),
        )
        .with_detail(describe(batch, row))
        .with_hint("name columns that are never NULL as the table's key")
    }

    fn refuse(&self, batch: &ChangeBatch, refusal: Refusal) -> Error {
        let row = refusal.row as usize;
        let table = &self.owner.table;
        let op = batch.ops.get(row).map_or("a change", |op| op_name(*op));
        let key = self.key_text(batch, row);
        let what = describe(batch, row);
        match refusal.reason {
            Reason::Absent => Error::new(
                &code::CONFLICT,
                format!("{op} of {key} in table \"{table}\", which the lake does not have"),
            )
            .with_detail(what),
            Reason::Present => Error::new(
                &code::CONFLICT,
                format!("{op} of {key} in table \"{table}\", which the lake has already"),
            )
            .with_detail(what),
            Reason::NoValue => Error::new(
                &code::CONFLICT,
                format!(
                    "{op} of {key} in table \"{table}\" lacks a value that the lake does not have"
                ),
            )
            .with_detail(what)
            .with_hint(format!(
                "copy the table afresh with: alluvium resync {table}"
            )),
            Reason::Recopy => Error::new(
                &code::COPY_AGAIN,
                format!(
                    "{op} of {key} in table \"{table}\" lacks a value the copy has not reached"
                ),
            )
            .with_detail(what),
            Reason::NoOldImage => Error::new(
                &code::NO_IDENTITY,
                format!("{op} came for table \"{table}\" without the row it changes"),
            )
            .with_detail(what),
        }
    }

    /// The key of the change at `row`, for people: `(id=7)`.
    fn key_text(&self, batch: &ChangeBatch, row: usize) -> String {
        let Identity::Key(key) = &self.schema.identity else {
            return "a row".to_owned();
        };
        let (images, at) = match (&batch.old, batch.old_row(row)) {
            (Some(old), Some(old_row)) => (&old.rows, old_row as usize),
            _ => (&batch.rows, row),
        };
        let options = FormatOptions::default().with_null("NULL");
        let parts: Vec<String> = key
            .iter()
            .filter_map(|&column| {
                let values = images.columns().get(column)?;
                let name = &self.schema.columns.get(column)?.name;
                let formatter = ArrayFormatter::try_new(values, &options).ok()?;
                Some(format!("{name}={}", formatter.value(at)))
            })
            .collect();
        format!("({})", parts.join(", "))
    }
}

impl Applied {
    fn add(&mut self, other: &Self) {
        self.inserted += other.inserted;
        self.updated += other.updated;
        self.deleted += other.deleted;
        self.truncated += other.truncated;
        self.conflicts += other.conflicts;
        self.skipped += other.skipped;
    }
}

fn count(ops: &[Op]) -> Applied {
    let of = |wanted: &[Op]| ops.iter().filter(|op| wanted.contains(op)).count() as u64;
    Applied {
        inserted: of(&[Op::Insert, Op::Read]),
        updated: of(&[Op::Update]),
        deleted: of(&[Op::Delete]),
        ..Applied::default()
    }
}

/// The state before a batch, as planning sees it.
pub(super) struct State<'a> {
    pub(super) lookups: Lookups<'a>,
    pub(super) segments: &'a Segments,
    pub(super) stage: &'a Stage,
}

impl Before for State<'_> {
    fn find(&self, key: Key) -> Option<Location> {
        self.lookups.find(key)
    }

    fn snapshot_of(&self, location: Location) -> Option<Lsn> {
        match self.segments.get(location.segment) {
            Some(segment) => segment.snapshot(),
            None => self.stage.snapshot_of(location.segment),
        }
    }
}

fn action(batch: &ChangeBatch, row: usize) -> Result<Action> {
    match batch.ops.get(row) {
        Some(Op::Insert | Op::Read) => Ok(Action::Insert),
        Some(Op::Update) => Ok(Action::Update),
        Some(Op::Delete) => Ok(Action::Delete),
        Some(Op::Truncate) | None => Err(Error::bug("a truncate among the changes of rows")),
    }
}

fn event(batch: &ChangeBatch, row: usize, action: Action, key: Key, old_key: Option<Key>) -> Event {
    Event {
        action,
        row: u32::try_from(row).unwrap_or(u32::MAX),
        commit_lsn: batch.commit_lsn.get(row).copied().unwrap_or_default(),
        key,
        old_key,
    }
}

fn row_events(batch: &ChangeBatch, from: usize, to: usize) -> Result<Vec<Event>> {
    let mut encoder = KeyEncoder::of_row(batch.rows.columns())?;
    let mut old_encoder = batch
        .old
        .as_ref()
        .map(|old| KeyEncoder::of_row(old.rows.columns()))
        .transpose()?;
    let mut events = Vec::with_capacity(to - from);
    for row in from..to {
        let action = action(batch, row)?;
        let old_key = match (batch.old_row(row), &mut old_encoder) {
            (Some(old_row), Some(encoder)) => Some(encoder.key(old_row as usize)),
            _ => None,
        };
        events.push(event(batch, row, action, encoder.key(row), old_key));
    }
    Ok(events)
}

pub(super) fn pick(rows: &RecordBatch, columns: &[usize]) -> Result<Vec<ArrayRef>> {
    columns
        .iter()
        .map(|&column| {
            rows.columns()
                .get(column)
                .map(Arc::clone)
                .ok_or_else(|| Error::bug("a key column beyond the table"))
        })
        .collect()
}

/// New images of some columns, with values that were not sent taken from the old images.
fn patched(batch: &ChangeBatch, columns: &[usize]) -> Result<Vec<ArrayRef>> {
    let new = pick(&batch.rows, columns)?;
    let Some(old) = &batch.old else {
        return Ok(new);
    };
    let old_columns = pick(&old.rows, columns)?;
    columns
        .iter()
        .zip(new.iter().zip(&old_columns))
        .map(|(column, (new, old))| {
            let mut places: Vec<(usize, usize)> =
                (0..batch.num_rows()).map(|row| (0, row)).collect();
            let mut any = false;
            for unchanged in batch
                .unchanged
                .iter()
                .filter(|u| u.column as usize == *column)
            {
                let row = unchanged.row as usize;
                if let (Some(old_row), Some(place)) = (batch.old_row(row), places.get_mut(row)) {
                    *place = (1, old_row as usize);
                    any = true;
                }
            }
            if !any {
                return Ok(Arc::clone(new));
            }
            interleave(&[new.as_ref(), old.as_ref()], &places)
                .map_err(|e| Error::bug("old and new images differ").with_source(e))
        })
        .collect()
}

fn op_name(op: Op) -> &'static str {
    match op {
        Op::Read => "a copied row",
        Op::Insert => "an insert",
        Op::Update => "an update",
        Op::Delete => "a delete",
        Op::Truncate => "a truncate",
    }
}

fn describe(batch: &ChangeBatch, row: usize) -> String {
    format!(
        "transaction {} committed at {}, change {}",
        batch.xid.get(row).copied().unwrap_or_default(),
        batch.commit_lsn.get(row).copied().unwrap_or_default(),
        batch.event_serial.get(row).copied().unwrap_or_default(),
    )
}

/// Rows of the batch in their order, as indices.
pub(super) fn planned_indices(plan: &Plan) -> UInt32Array {
    UInt32Array::from_iter_values(plan.rows.iter().map(|row| row.row))
}
