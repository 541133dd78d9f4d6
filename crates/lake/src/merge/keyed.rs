//! Tables with a key.
//!
//! For each key met, an overlay over the index holds the rows it has at this point of the batch:
//! normally none or one. A second one appears only between two updates that exchange keys
//! (deferrable constraints check at the end); updates and deletes take the oldest, so that the row
//! that moves away is the one that was there before.
//!
//! While a copy under several snapshots is reconciled, one case cannot be told apart and is not
//! supported: two rows exchanging keys directly (only deferrable constraints allow it, which cannot
//! be a replica identity, so the key must have been named by hand) where the copy has one of them.

use std::collections::VecDeque;
use std::mem;

use alluvium_change::{ChangeBatch, Lsn, Unchanged, failpoint};
use arrow::array::Array;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::{Action, Event, Fill, FillFrom, Misfit, Plan, PlannedRow, Reason, Refusal};
use crate::key_index::{Key, Location};

/// What planning asks of the state before the batch.
pub(crate) trait Before {
    fn find(&self, key: Key) -> Option<Location>;
    /// The snapshot under which the row was copied; None when a change wrote it.
    fn snapshot_of(&self, location: Location) -> Option<Lsn>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Stored(Location),
    /// Place in `Planner::slots`.
    Planned(u32),
}

/// The rows a key has, oldest first.
#[derive(Debug, Default)]
struct KeyState {
    /// What the index says.
    before: Option<Location>,
    oldest: Option<Source>,
    newer: VecDeque<Source>,
}

impl KeyState {
    fn take_oldest(&mut self) -> Option<Source> {
        mem::replace(&mut self.oldest, self.newer.pop_front())
    }

    fn push(&mut self, source: Source) {
        if self.oldest.is_none() {
            self.oldest = Some(source);
        } else {
            self.newer.push_back(source);
        }
    }
}

struct Slot {
    row: u32,
    fills: Vec<Fill>,
    alive: bool,
}

struct Planner<'a> {
    batch: &'a ChangeBatch,
    before: &'a dyn Before,
    /// Changes that commit before this may be in the initial copy already.
    reconcile_until: Lsn,
    misfit: Misfit,
    keys: HashMap<Key, KeyState>,
    /// In order of first use: plans are deterministic.
    key_order: Vec<Key>,
    slots: Vec<Slot>,
    plan: Plan,
}

/// Plans changes of a table with a key, in order.
pub(crate) fn plan_keyed(
    batch: &ChangeBatch,
    events: &[Event],
    before: &dyn Before,
    reconcile_until: Lsn,
    misfit: Misfit,
) -> Result<Plan, Refusal> {
    let mut planner = Planner {
        batch,
        before,
        reconcile_until,
        misfit,
        keys: HashMap::with_capacity(events.len()),
        key_order: Vec::with_capacity(events.len()),
        slots: Vec::with_capacity(events.len()),
        plan: Plan::default(),
    };
    for event in events {
        match event.action {
            Action::Insert => planner.insert(event)?,
            Action::Update => planner.update(event)?,
            Action::Delete => planner.delete(event)?,
        }
    }
    planner.finish()
}

impl Planner<'_> {
    fn state(&mut self, key: Key) -> &mut KeyState {
        match self.keys.entry(key) {
            Entry::Occupied(occupied) => occupied.into_mut(),
            Entry::Vacant(vacant) => {
                let before = self.before.find(key);
                self.key_order.push(key);
                vacant.insert(KeyState {
                    before,
                    oldest: before.map(Source::Stored),
                    newer: VecDeque::new(),
                })
            }
        }
    }

    /// The initial copy holds the key as it was after this change.
    fn is_copied_after(&mut self, key: Key, event: &Event) -> bool {
        if event.commit_lsn >= self.reconcile_until {
            return false;
        }
        let Some(Source::Stored(location)) = self.state(key).oldest else {
            return false;
        };
        self.before
            .snapshot_of(location)
            .is_some_and(|snapshot| snapshot > event.commit_lsn)
    }

    fn in_window(&self, event: &Event) -> bool {
        event.commit_lsn < self.reconcile_until
    }

    /// A change that does not fit the row silver holds.
    fn misfit(&mut self, event: &Event, reason: Reason) -> Result<(), Refusal> {
        match self.misfit {
            Misfit::Refuse => Err(Refusal {
                row: event.row,
                reason,
            }),
            Misfit::Repair => {
                self.plan.conflicts += 1;
                Ok(())
            }
        }
    }

    fn bury(&mut self, source: Option<Source>) {
        match source {
            Some(Source::Stored(location)) => self.plan.dead.push(location),
            Some(Source::Planned(slot)) => {
                if let Some(slot) = self.slots.get_mut(slot as usize) {
                    slot.alive = false;
                }
            }
            None => {}
        }
    }

    fn write(&mut self, key: Key, event: &Event, fills: Vec<Fill>) {
        let slot = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        self.slots.push(Slot {
            row: event.row,
            fills,
            alive: true,
        });
        self.state(key).push(Source::Planned(slot));
    }

    fn insert(&mut self, event: &Event) -> Result<(), Refusal> {
        if self.is_copied_after(event.key, event) {
            self.plan.skipped += 1;
            return Ok(());
        }
        if self.state(event.key).oldest.is_some() {
            if !self.in_window(event) {
                self.misfit(event, Reason::Present)?;
            }
            let replaced = self.state(event.key).take_oldest();
            self.bury(replaced);
        }
        self.plan.inserted += 1;
        self.write(event.key, event, Vec::new());
        Ok(())
    }

    fn delete(&mut self, event: &Event) -> Result<(), Refusal> {
        if self.is_copied_after(event.key, event) {
            self.plan.skipped += 1;
            return Ok(());
        }
        match self.state(event.key).take_oldest() {
            Some(source) => {
                self.plan.deleted += 1;
                self.bury(Some(source));
            }
            None if self.in_window(event) => self.plan.skipped += 1,
            None => self.misfit(event, Reason::Absent)?,
        }
        Ok(())
    }

    fn update(&mut self, event: &Event) -> Result<(), Refusal> {
        let old_key = event.old_key.unwrap_or(event.key);
        let skip_old = self.is_copied_after(old_key, event);
        if old_key == event.key {
            if skip_old {
                self.plan.skipped += 1;
                return Ok(());
            }
            let old = self.take_updated(old_key, event)?;
            let fills = self.fills(event, old)?;
            self.bury(old);
            self.plan.updated += 1;
            self.write(event.key, event, fills);
            return Ok(());
        }
        let skip_new = self.is_copied_after(event.key, event);
        let old = if skip_old {
            None
        } else {
            self.take_updated(old_key, event)?
        };
        if !failpoint::is_planted("merge.loses_a_delete") {
            self.bury(old);
        }
        if skip_new {
            self.plan.skipped += 1;
            return Ok(());
        }
        let fills = self.fills(event, old)?;
        self.plan.updated += 1;
        self.write(event.key, event, fills);
        Ok(())
    }

    /// Takes away the row an update changes; None where the table does not have it and may not.
    fn take_updated(&mut self, key: Key, event: &Event) -> Result<Option<Source>, Refusal> {
        let old = self.state(key).take_oldest();
        if old.is_none() && !self.in_window(event) {
            self.misfit(event, Reason::Absent)?;
        }
        Ok(old)
    }

    /// Where the values the update did not send come from.
    fn fills(&self, event: &Event, old: Option<Source>) -> Result<Vec<Fill>, Refusal> {
        let batch = self.batch;
        let unchanged = batch.unchanged_of(event.row as usize);
        let fill = |unchanged: &Unchanged| {
            let column = unchanged.column;
            let from = self
                .in_old_image(event, column)
                .or_else(|| old.and_then(|old| self.in_source(old, column)));
            match from {
                Some(from) => Ok(Fill { column, from }),
                None if self.in_window(event) => Err(Refusal {
                    row: event.row,
                    reason: Reason::Recopy,
                }),
                None => Err(Refusal {
                    row: event.row,
                    reason: Reason::NoValue,
                }),
            }
        };
        unchanged.iter().map(fill).collect()
    }

    /// The old image has the column: an unchanged value is never NULL, so a NULL there says that
    /// the source sent the key only.
    fn in_old_image(&self, event: &Event, column: u32) -> Option<FillFrom> {
        let row = self.batch.old_row(event.row as usize)?;
        let images = &self.batch.old.as_ref()?.rows;
        let values = images.columns().get(column as usize)?;
        let at = row as usize;
        (at < values.len() && values.is_valid(at)).then_some(FillFrom::OldImage(row))
    }

    fn in_source(&self, source: Source, column: u32) -> Option<FillFrom> {
        match source {
            Source::Stored(location) => Some(FillFrom::Stored(location)),
            Source::Planned(slot) => {
                let slot = self.slots.get(slot as usize)?;
                // A value not sent twice comes from where it came the first time.
                let filled = slot.fills.iter().find(|fill| fill.column == column);
                Some(filled.map_or(FillFrom::Batch(slot.row), |fill| fill.from))
            }
        }
    }

    fn finish(mut self) -> Result<Plan, Refusal> {
        let mut plan = mem::take(&mut self.plan);
        self.settle_doubles(&mut plan)?;
        let mut places = vec![None; self.slots.len()];
        for (slot, place) in self.slots.iter_mut().zip(&mut places) {
            if slot.alive {
                *place = u32::try_from(plan.rows.len()).ok();
                plan.rows.push(PlannedRow {
                    row: slot.row,
                    fills: mem::take(&mut slot.fills),
                });
            }
        }
        for key in &self.key_order {
            let Some(state) = self.keys.get(key) else {
                continue;
            };
            match state.oldest {
                Some(Source::Planned(slot)) => {
                    let place = places.get(slot as usize).copied().flatten();
                    plan.index.push((*key, place));
                }
                None if state.before.is_some() => plan.index.push((*key, None)),
                // Untouched, or never there.
                Some(Source::Stored(_)) | None => {}
            }
        }
        Ok(plan)
    }

    /// No key has two rows in the end.
    fn settle_doubles(&mut self, plan: &mut Plan) -> Result<(), Refusal> {
        let doubled: Vec<Key> = self
            .key_order
            .iter()
            .copied()
            .filter(|key| {
                self.keys
                    .get(key)
                    .is_some_and(|state| !state.newer.is_empty())
            })
            .collect();
        for key in doubled {
            while let Some(state) = self.keys.get_mut(&key).filter(|s| !s.newer.is_empty()) {
                let older = state.take_oldest();
                // What is pushed over another row is always a row of the batch.
                let newest = match state.oldest {
                    Some(Source::Planned(slot)) => self.slots.get(slot as usize),
                    _ => None,
                };
                let row = newest.map_or(0, |slot| slot.row);
                let lsn = self
                    .batch
                    .commit_lsn
                    .get(row as usize)
                    .copied()
                    .unwrap_or_default();
                if lsn >= self.reconcile_until {
                    if self.misfit == Misfit::Refuse {
                        return Err(Refusal {
                            row,
                            reason: Reason::Present,
                        });
                    }
                    plan.conflicts += 1;
                }
                match older {
                    Some(Source::Stored(location)) => plan.dead.push(location),
                    other => self.bury(other),
                }
            }
        }
        Ok(())
    }
}
