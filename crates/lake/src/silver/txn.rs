//! Progress of a silver table, as the `txn` actions that carry it.

use std::collections::BTreeMap;

use alluvium_change::{Identity, Lsn, TableSchema};

use super::CopyState;

const NONE: i64 = -1;

/// The table's application ids and their versions.
#[derive(Debug, Clone)]
pub(super) struct Positions {
    app_id: String,
    txns: BTreeMap<String, i64>,
}

/// Tells a table of the source from another of the same name: its oid, and what identifies its
/// rows, as a number that fits into a `txn` action.
pub(super) fn source_mark(schema: &TableSchema) -> i64 {
    let identity = match &schema.identity {
        Identity::Key(_) => format!("key {:?}", schema.key_names()),
        Identity::WholeRow => "whole row".to_owned(),
        Identity::AppendOnly => "append-only".to_owned(),
    };
    let hash = xxhash_rust::xxh3::xxh3_64(format!("{} {identity}", schema.relation_oid).as_bytes());
    i64::try_from(hash >> 1).unwrap_or(i64::MAX)
}

/// Whether a table with these has all that its initial copy is reconciled with: only then may rows of
/// several snapshots stand in one file.
pub(crate) fn is_settled(app_id: String, txns: BTreeMap<String, i64>) -> bool {
    Positions::new(app_id, txns).is_settled()
}

type Txns = Vec<(String, i64)>;

impl Positions {
    pub(super) fn new(app_id: String, txns: BTreeMap<String, i64>) -> Self {
        Self { app_id, txns }
    }

    fn id(&self, suffix: &str) -> String {
        format!("{}/{suffix}", self.app_id)
    }

    fn lsn(&self, id: &str) -> Option<Lsn> {
        let version = *self.txns.get(id)?;
        (version >= 0).then(|| Lsn::from_txn_version(version))
    }

    pub(super) fn position(&self) -> Lsn {
        self.lsn(&self.app_id).unwrap_or(Lsn::ZERO)
    }

    pub(super) fn stopped_at(&self) -> Option<Lsn> {
        self.lsn(&self.id("stopped"))
    }

    /// Changes that commit before this may be in the initial copy already.
    pub(super) fn reconcile_until(&self) -> Lsn {
        self.lsn(&self.id("reconcile_until")).unwrap_or(Lsn::ZERO)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.lsn(&self.app_id).is_some()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.is_complete() && self.position() >= self.reconcile_until()
    }

    pub(super) fn copy_state(&self) -> CopyState {
        if self.is_complete() {
            return CopyState::Complete;
        }
        match (
            self.lsn(&self.id("copy_first")),
            self.lsn(&self.id("copy_last")),
        ) {
            (Some(first_snapshot), Some(last_snapshot)) => CopyState::Copying {
                progress: self.progress(),
                first_snapshot,
                last_snapshot,
            },
            _ => CopyState::None,
        }
    }

    fn progress(&self) -> BTreeMap<u32, u32> {
        let prefix = self.id("copy/");
        self.txns
            .iter()
            .filter_map(|(id, page)| {
                let relfilenode = id.strip_prefix(&prefix)?.parse().ok()?;
                Some((relfilenode, u32::try_from(*page).ok()?))
            })
            .collect()
    }

    /// A commit was made with these.
    pub(super) fn set(&mut self, txns: &[(String, i64)]) {
        self.txns.extend(txns.iter().cloned());
    }

    pub(super) fn at(&self, position: Lsn) -> Txns {
        vec![(self.app_id.clone(), position.as_txn_version())]
    }

    pub(super) fn stopped(&self, at: Lsn) -> Txns {
        vec![(self.id("stopped"), at.as_txn_version())]
    }

    /// Those of this table that say anything.
    fn own(&self) -> impl Iterator<Item = (&String, i64)> {
        let below = format!("{}/", self.app_id);
        self.txns
            .iter()
            .filter(move |(id, _)| **id == self.app_id || id.starts_with(&below))
            .map(|(id, version)| (id, *version))
            .filter(|(_, version)| *version != NONE)
    }

    /// Everything forgotten.
    pub(super) fn reset(&self) -> Txns {
        self.own().map(|(id, _)| (id.clone(), NONE)).collect()
    }

    /// All that `other` has, and nothing else.
    pub(super) fn become_those_of(&self, other: &Self) -> Txns {
        let mut txns: BTreeMap<String, i64> = self.reset().into_iter().collect();
        txns.extend(other.own().map(|(id, version)| (id.clone(), version)));
        txns.into_iter().collect()
    }

    /// A copy of the table `source` begun under `snapshot`, all before forgotten.
    pub(super) fn begin(&self, snapshot: Lsn, source: i64) -> Txns {
        let mut txns: BTreeMap<String, i64> = self.reset().into_iter().collect();
        for suffix in ["copy_first", "copy_last"] {
            txns.insert(self.id(suffix), snapshot.as_txn_version());
        }
        txns.insert(self.id("source"), source);
        txns.into_iter().collect()
    }

    /// What was copied: see [`source_mark`].
    pub(super) fn source(&self) -> Option<i64> {
        self.txns
            .get(&self.id("source"))
            .copied()
            .filter(|mark| *mark != NONE)
    }

    /// A range copied, up to `next_page` of `relfilenode`, under `snapshot` or an earlier one.
    pub(super) fn copied(&self, relfilenode: u32, next_page: u32, snapshot: Option<Lsn>) -> Txns {
        let mut txns = vec![(
            self.id(&format!("copy/{relfilenode}")),
            i64::from(next_page),
        )];
        let last = self.lsn(&self.id("copy_last"));
        if let Some(snapshot) = snapshot.filter(|snapshot| Some(*snapshot) > last) {
            txns.push((self.id("copy_last"), snapshot.as_txn_version()));
        }
        txns
    }

    /// The copy complete, under snapshots from `first` to `last`.
    pub(super) fn finish(&self, first: Lsn, last: Lsn) -> Txns {
        let reconcile_until = if last > first {
            last.as_txn_version()
        } else {
            NONE
        };
        vec![
            (self.app_id.clone(), first.before().as_txn_version()),
            (self.id("reconcile_until"), reconcile_until),
        ]
    }
}
