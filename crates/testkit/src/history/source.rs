//! Random histories of a table, with the rows they leave, as PostgreSQL would send them.

use std::collections::BTreeMap;

use alluvium_change::{Identity, Op, surroundings::next_random};

use super::{Change, Row};

/// A small generator of numbers: the same seed gives the same history.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        next_random(&mut self.0)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What a table holds: rows by place, as a heap has them, so that equal rows are kept apart.
#[derive(Debug, Clone, Default)]
pub struct Heap {
    rows: BTreeMap<u64, Row>,
    next: u64,
}

impl Heap {
    pub fn rows(&self) -> Vec<Row> {
        super::sorted(self.rows.values().cloned())
    }

    /// Rows with their places, in order.
    pub fn by_place(&self) -> impl Iterator<Item = (u64, &Row)> {
        self.rows.iter().map(|(place, row)| (*place, row))
    }

    fn by_id(&self, id: i64) -> Option<u64> {
        self.rows
            .iter()
            .find(|(_, row)| row.id == id)
            .map(|(place, _)| *place)
    }
}

/// Makes histories.
pub struct Source {
    pub heap: Heap,
    pub random: Random,
    pub lsn: u64,
    identity: Identity,
    ids: i64,
    counter: u64,
    /// Keys may be exchanged without a third one, as a deferred constraint allows.
    pub direct_exchanges: bool,
    /// Columns that were added, each as rows from before show it.
    pub added: Vec<Option<String>>,
}

impl Source {
    pub fn new(seed: u64, identity: Identity, ids: i64) -> Self {
        Self {
            heap: Heap::default(),
            random: Random(seed),
            lsn: 100,
            identity,
            ids,
            counter: 0,
            direct_exchanges: true,
            added: Vec::new(),
        }
    }

    fn keyed(&self) -> bool {
        matches!(self.identity, Identity::Key(_))
    }

    fn value(&mut self, few: u64) -> Option<String> {
        self.counter += 1;
        match self.random.below(10) {
            0 => None,
            _ if self.keyed() => Some(format!("v{}", self.counter)),
            // Equal rows should happen.
            _ => Some(format!("v{}", self.random.below(few))),
        }
    }

    fn id(&mut self) -> i64 {
        i64::try_from(self.random.below(u64::try_from(self.ids).unwrap())).unwrap()
    }

    /// Changes of one transaction.
    pub fn transaction(&mut self, changes: usize) -> Vec<Change> {
        self.begin();
        self.changes(changes)
    }

    pub fn begin(&mut self) {
        self.lsn += 1 + self.random.below(50);
    }

    /// Adds a column, in the transaction that was begun last.
    pub fn add_column(&mut self, shown_before: Option<String>) {
        for row in self.heap.rows.values_mut() {
            row.more.push(shown_before.clone());
        }
        self.added.push(shown_before);
    }

    /// Changes in the transaction that was begun last.
    pub fn changes(&mut self, changes: usize) -> Vec<Change> {
        let mut made = Vec::new();
        while made.len() < changes {
            match self.random.below(100) {
                0..30 => made.extend(self.insert()),
                30..70 => made.extend(self.update()),
                70..90 => made.extend(self.delete()),
                90..97 if self.keyed() => made.extend(self.swap().unwrap_or_default()),
                99 if self.random.chance(15) => {
                    self.heap.rows.clear();
                    made.push(Change {
                        op: Op::Truncate,
                        lsn: self.lsn,
                        new: Row::key(0),
                        old: None,
                        unchanged: false,
                    });
                }
                _ => made.extend(self.insert()),
            }
        }
        made
    }

    fn change(&self, op: Op, new: Row, old: Option<Row>, unchanged: bool) -> Change {
        Change {
            op,
            lsn: self.lsn,
            new,
            old,
            unchanged,
        }
    }

    fn row(&mut self, id: i64) -> Row {
        Row {
            id,
            small: self.value(3),
            big: self.value(2),
            more: (0..self.added.len()).map(|_| self.value(2)).collect(),
        }
    }

    fn insert(&mut self) -> Option<Change> {
        let id = self.id();
        if self.keyed() && self.heap.by_id(id).is_some() {
            return None;
        }
        let new = self.row(id);
        self.heap.rows.insert(self.heap.next, new.clone());
        self.heap.next += 1;
        Some(self.change(Op::Insert, new, None, false))
    }

    fn any_place(&mut self) -> Option<u64> {
        let count = self.heap.rows.len() as u64;
        let nth = if count == 0 {
            return None;
        } else {
            self.random.below(count)
        };
        self.heap
            .rows
            .keys()
            .nth(usize::try_from(nth).unwrap())
            .copied()
    }

    fn update(&mut self) -> Option<Change> {
        let place = self.any_place()?;
        let before = self.heap.rows.get(&place).cloned().unwrap();
        let mut after = self.row(before.id);
        if self.random.chance(20) {
            let id = self.id();
            if !self.keyed() || self.heap.by_id(id).is_none() {
                after.id = id;
            }
        }
        let change = self.update_to(place, after);
        // A new version of a row stands where there is room.
        if self.random.chance(30)
            && let Some(row) = self.heap.rows.remove(&place)
        {
            self.heap.rows.insert(self.heap.next, row);
            self.heap.next += 1;
        }
        Some(change)
    }

    fn update_to(&mut self, place: u64, mut after: Row) -> Change {
        let before = self.heap.rows.get(&place).cloned().unwrap();
        let unchanged = before.big.is_some() && self.random.chance(40);
        if unchanged {
            after.big.clone_from(&before.big);
        }
        self.heap.rows.insert(place, after.clone());
        let old = if self.keyed() {
            // A whole old image now and then: a key under REPLICA IDENTITY FULL.
            match self.random.below(10) {
                0 => Some(before),
                _ => (before.id != after.id).then_some(Row::key(before.id)),
            }
        } else {
            Some(before)
        };
        self.change(Op::Update, after, old, unchanged)
    }

    fn delete(&mut self) -> Option<Change> {
        let place = self.any_place()?;
        let before = self.heap.rows.remove(&place)?;
        let sent = if self.keyed() {
            Row::key(before.id)
        } else {
            before
        };
        Some(self.change(Op::Delete, sent, None, false))
    }

    /// Exchanges the keys of two rows, through a third key or (a deferred constraint) directly.
    fn swap(&mut self) -> Option<Vec<Change>> {
        let (first, second) = (self.any_place()?, self.any_place()?);
        if first == second {
            return None;
        }
        let a = self.heap.rows.get(&first).cloned()?;
        let b = self.heap.rows.get(&second).cloned()?;
        let with_key = |row: &Row, id| Row { id, ..row.clone() };
        let mut changes = Vec::new();
        if self.random.chance(50) || !self.direct_exchanges {
            changes.push(self.update_to(first, with_key(&a, -1 - a.id)));
            changes.push(self.update_to(second, with_key(&b, a.id)));
            changes.push(self.update_to(first, with_key(&a, b.id)));
        } else {
            changes.push(self.update_to(first, with_key(&a, b.id)));
            changes.push(self.update_to(second, with_key(&b, a.id)));
        }
        Some(changes)
    }
}
