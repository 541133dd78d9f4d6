//! What identifies a row of a table: from replica identities, keys and the project file. Pure.
//!
//! Invariant: what is decided here can be kept. A key is taken only when every table that holds
//! rows sends it with each update and delete; otherwise the table is append-only or refused.

use alluvium_change::{Error, Result, code};

use super::rows::IndexRow;

/// The identity, by column names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    Key(Vec<String>),
    WholeRow,
    AppendOnly,
}

/// What the server sends of an old row.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sent {
    Nothing,
    Columns(Vec<String>),
    Everything,
}

impl Sent {
    fn holds(&self, key: &[String]) -> bool {
        match self {
            Self::Nothing => false,
            Self::Columns(columns) => key.iter().all(|name| columns.contains(name)),
            Self::Everything => true,
        }
    }
}

/// A table that holds rows, or the root above such.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holder<'a> {
    pub(super) name: &'a str,
    pub(super) replica_identity: char,
    pub(super) indexes: &'a [IndexRow],
}

impl Holder<'_> {
    fn primary_key(&self) -> Option<&[String]> {
        let found = self
            .indexes
            .iter()
            .find(|index| index.is_primary && index.is_usable);
        found.map(|index| index.columns.as_slice())
    }

    fn sent(&self) -> Sent {
        let columns = |found: Option<&[String]>| {
            found.map_or(Sent::Nothing, |columns| Sent::Columns(columns.to_vec()))
        };
        match self.replica_identity {
            'f' => Sent::Everything,
            'd' => columns(self.primary_key()),
            'i' => {
                let mut usable = self
                    .indexes
                    .iter()
                    .filter(|index| index.is_replica_identity && index.is_usable);
                columns(usable.next().map(|index| index.columns.as_slice()))
            }
            _ => Sent::Nothing,
        }
    }
}

/// At each moment, within a transaction too.
pub(super) fn is_unique<S: AsRef<str>>(indexes: &[IndexRow], key: &[S]) -> bool {
    let is_of_key = |name: &String| key.iter().any(|column| column.as_ref() == name);
    indexes
        .iter()
        .any(|index| index.is_usable && index.columns.iter().all(is_of_key))
}

/// Decides for `root` (`quoted` for SQL), whose rows lie in `leaves` (itself when ordinary).
/// Adds to `notes` what the user should know.
pub(super) fn decide(
    root: Holder<'_>,
    quoted: &str,
    leaves: &[Holder<'_>],
    key_override: &[String],
    notes: &mut Vec<String>,
) -> Result<Decision> {
    let wanted = if key_override.is_empty() {
        own_identity(root)
    } else {
        Decision::Key(key_override.to_vec())
    };
    let weakest = leaves.iter().find(|leaf| match &wanted {
        Decision::Key(key) => !leaf.sent().holds(key),
        Decision::WholeRow => leaf.sent() != Sent::Everything,
        Decision::AppendOnly => false,
    });
    if let (Some(leaf), false) = (weakest, key_override.is_empty())
        && leaf.sent() != Sent::Nothing
    {
        return Err(key_not_sent(quoted, key_override, leaf));
    }
    if let Some(leaf) = weakest {
        notes.push(format!(
            "append-only: the server sends no old rows of {}; to follow updates and deletes too: \
             ALTER TABLE {} REPLICA IDENTITY FULL",
            leaf.name, leaf.name
        ));
        return Ok(Decision::AppendOnly);
    }
    match &wanted {
        Decision::AppendOnly => notes.push(format!(
            "append-only: no primary key and no replica identity, so the server sends no updates \
             and deletes; to follow them: ALTER TABLE {quoted} ADD PRIMARY KEY (...), or ALTER \
             TABLE {quoted} REPLICA IDENTITY FULL"
        )),
        Decision::Key(key) if !key_override.is_empty() && !is_unique(root.indexes, key) => {
            notes.push(format!(
                "no unique index covers the key ({}): rows that share a key would overwrite each \
                 other",
                key.join(", ")
            ));
        }
        Decision::Key(_) | Decision::WholeRow => {}
    }
    Ok(wanted)
}

fn own_identity(root: Holder<'_>) -> Decision {
    match (root.replica_identity, root.sent()) {
        ('f', _) => match root.primary_key() {
            Some(key) => Decision::Key(key.to_vec()),
            None => Decision::WholeRow,
        },
        (_, Sent::Columns(key)) => Decision::Key(key),
        _ => Decision::AppendOnly,
    }
}

fn key_not_sent(quoted: &str, key: &[String], leaf: &Holder<'_>) -> Error {
    let sent = match leaf.sent() {
        Sent::Columns(columns) => columns.join(", "),
        Sent::Nothing | Sent::Everything => String::new(),
    };
    Error::new(
        &code::CONFIG_VALUE,
        format!(
            "the key ({}) set for table {quoted} cannot be used",
            key.join(", ")
        ),
    )
    .with_detail(format!(
        "of an old row of {} the server sends only ({sent})",
        leaf.name
    ))
    .with_hint(format!(
        "leave the key out, or ALTER TABLE {} REPLICA IDENTITY FULL",
        leaf.name
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    fn index(columns: &[&str], is_primary: bool, is_replica_identity: bool) -> IndexRow {
        IndexRow {
            relation_oid: 1,
            is_primary,
            is_replica_identity,
            is_usable: true,
            columns: columns.iter().map(ToString::to_string).collect(),
        }
    }

    fn holder(replica_identity: char, indexes: &[IndexRow]) -> Holder<'_> {
        Holder {
            name: "t",
            replica_identity,
            indexes,
        }
    }

    fn key(names: &[&str]) -> Decision {
        Decision::Key(names.iter().map(ToString::to_string).collect())
    }

    fn decide_one(identity: char, indexes: &[IndexRow], key: &[&str]) -> Result<Decision> {
        let key: Vec<String> = key.iter().map(ToString::to_string).collect();
        let table = holder(identity, indexes);
        decide(table, "t", &[table], &key, &mut Vec::new())
    }

    #[test]
    fn the_matrix_of_one_table() {
        let pk = [index(&["a", "b"], true, false)];
        let by_index = [index(&["a"], true, false), index(&["u"], false, true)];
        let unusable = [IndexRow {
            is_usable: false,
            ..index(&["a"], true, true)
        }];
        assert_eq!(decide_one('d', &pk, &[]).unwrap(), key(&["a", "b"]));
        assert_eq!(decide_one('f', &pk, &[]).unwrap(), key(&["a", "b"]));
        assert_eq!(decide_one('n', &pk, &[]).unwrap(), Decision::AppendOnly);
        assert_eq!(decide_one('i', &by_index, &[]).unwrap(), key(&["u"]));
        assert_eq!(decide_one('d', &[], &[]).unwrap(), Decision::AppendOnly);
        assert_eq!(decide_one('f', &[], &[]).unwrap(), Decision::WholeRow);
        // A deferrable key lets two rows share it within a transaction.
        assert_eq!(
            decide_one('d', &unusable, &[]).unwrap(),
            Decision::AppendOnly
        );
        assert_eq!(
            decide_one('i', &unusable, &[]).unwrap(),
            Decision::AppendOnly
        );
        assert_eq!(decide_one('f', &unusable, &[]).unwrap(), Decision::WholeRow);
    }

    #[test]
    fn a_key_of_the_project_file_has_to_be_sent() {
        let pk = [index(&["a"], true, false)];
        assert_eq!(decide_one('f', &[], &["x"]).unwrap(), key(&["x"]));
        assert_eq!(decide_one('f', &pk, &["x"]).unwrap(), key(&["x"]));
        assert!(
            decide_one('d', &pk, &["x"])
                .unwrap_err()
                .is(&code::CONFIG_VALUE)
        );
        assert_eq!(decide_one('d', &pk, &["a"]).unwrap(), key(&["a"]));
        assert_eq!(decide_one('n', &[], &["x"]).unwrap(), Decision::AppendOnly);
    }

    #[test]
    fn the_weakest_partition_decides() {
        let pk = [index(&["a"], true, false)];
        let root = holder('d', &pk);
        let mut notes = Vec::new();
        let mut decide =
            |leaves: &[Holder<'_>]| decide(root, "t", leaves, &[], &mut notes).unwrap();
        assert_eq!(decide(&[holder('d', &pk), holder('f', &[])]), key(&["a"]));
        assert_eq!(
            decide(&[holder('d', &pk), holder('n', &pk)]),
            Decision::AppendOnly
        );
        assert_eq!(decide(&[]), key(&["a"]));
        assert_eq!(notes.len(), 1);
    }
}
