//! A reader of Delta logs and deletion vectors that shares nothing with the program's, by the protocol
//! (<https://github.com/delta-io/delta/blob/master/PROTOCOL.md>). It reads each commit and each file
//! once: a simulation looks at every version.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use alluvium_testkit::history::{Row, item_rows_in_order, read_file};
use arrow::array::AsArray;
use roaring::RoaringTreemap;
use serde_json::Value;

/// A table at a version.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) txns: BTreeMap<String, i64>,
    /// The deletion vector of each data file: where it is, and from which byte on.
    pub(super) files: BTreeMap<String, Option<(String, u64)>>,
    /// What the last commit says that it did to rows.
    pub(super) feed: Option<String>,
    /// It deleted rows of files that stay.
    thins: bool,
    /// As they were added.
    pub(super) adds: BTreeMap<String, Value>,
    /// Columns that were added later.
    pub(super) columns: usize,
    /// The last commit is another program's.
    pub(super) is_foreign: bool,
    /// It puts back what another program took.
    undoes: bool,
}

pub(super) struct Log {
    dir: PathBuf,
    rows: HashMap<String, Arc<Vec<Row>>>,
}

impl Log {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            rows: HashMap::new(),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn commit(&self, version: u64) -> PathBuf {
        self.dir.join(format!("_delta_log/{version:020}.json"))
    }

    /// When a version was committed, in milliseconds since 1970.
    pub(super) fn committed_ms(&self, version: u64) -> i64 {
        let modified = fs::metadata(self.commit(version)).and_then(|file| file.modified());
        let since = modified.unwrap().duration_since(UNIX_EPOCH).unwrap();
        i64::try_from(since.as_millis()).unwrap()
    }

    /// The state after the commit of `version`.
    pub(super) fn next(&self, mut state: State, version: u64) -> Result<State, String> {
        let path = self.commit(version);
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let text_of = |value: &Value, name: &str| value[name].as_str().unwrap().to_owned();
        let mut added = Vec::new();
        let mut removed = BTreeSet::new();
        (state.feed, state.thins) = (None, false);
        (state.is_foreign, state.undoes) = (false, false);
        let mut adds = Vec::new();
        for line in text.lines() {
            let action: Value = serde_json::from_str(line).map_err(|e| format!("{line}: {e}"))?;
            if let Some(add) = action.get("add") {
                let vector = add.get("deletionVector").filter(|vector| !vector.is_null());
                let vector = vector.map(|vector| {
                    assert_eq!(vector["storageType"], "u", "{vector}");
                    let path = vector_path(vector["pathOrInlineDv"].as_str().unwrap());
                    (path, vector["offset"].as_u64().unwrap_or(1))
                });
                added.push((text_of(add, "path"), vector));
                adds.push((text_of(add, "path"), add.clone()));
            } else if let Some(remove) = action.get("remove") {
                let path = text_of(remove, "path");
                state.files.remove(&path);
                state.adds.remove(&path);
                if remove["dataChange"] == true {
                    removed.insert(path);
                }
            } else if let Some(feed) = action.get("cdc") {
                state.feed = Some(text_of(feed, "path"));
            } else if let Some(metadata) = action.get("metaData") {
                state.columns = metadata["schemaString"]
                    .as_str()
                    .unwrap()
                    .matches("\"more")
                    .count();
            } else if let Some(info) = action.get("commitInfo") {
                state.is_foreign = info["engineInfo"] == "another";
                state.undoes = info["operation"] == "RESTORE" && !state.is_foreign;
            } else if let Some(txn) = action.get("txn") {
                let version = txn["version"].as_i64().unwrap();
                state.txns.insert(text_of(txn, "appId"), version);
            }
        }
        state.thins = added.iter().any(|(path, _)| removed.contains(path));
        state.files.extend(added);
        state.adds.extend(adds);
        Ok(state)
    }

    /// Whether what the commit of `after` says of itself leads from the one state to the other.
    pub(super) fn check_feed(&mut self, before: &State, after: &State) -> Result<(), String> {
        let Some(feed) = &after.feed else {
            return match after.thins && !after.is_foreign && !after.undoes {
                true => Err("it deletes rows, and has no change data".to_owned()),
                false => Ok(()),
            };
        };
        let file = self.dir.join(feed);
        if !file.exists() {
            return Err(format!("there is no \"{feed}\""));
        }
        let batches = read_file(&file, None);
        let kinds = batches.iter().flat_map(|batch| {
            let kinds = batch.column_by_name("_change_type").unwrap();
            let kinds = kinds.as_string::<i32>();
            kinds
                .iter()
                .map(|kind| kind.unwrap().to_owned())
                .collect::<Vec<_>>()
        });
        let nothing = vec![None; after.columns];
        let widened = |row: Row| row.widened(&nothing);
        let mut rows: Vec<Row> = self.rows(before)?.into_iter().map(widened).collect();
        let mut came = Vec::new();
        let fed = item_rows_in_order(&batches).into_iter().map(widened);
        for (row, kind) in fed.zip(kinds) {
            if matches!(kind.as_str(), "insert" | "update_postimage") {
                came.push(row);
                continue;
            }
            let at = rows.binary_search(&row);
            rows.remove(at.map_err(|_| format!("{kind} of {row:?}, which was not there"))?);
        }
        rows.extend(came);
        rows.sort();
        if rows != self.rows(after)? {
            return Err("its change data do not lead to it".to_owned());
        }
        Ok(())
    }

    /// The rows of a state, sorted. Files from before a column have none of it.
    pub(super) fn rows(&mut self, state: &State) -> Result<Vec<Row>, String> {
        let mut rows = Vec::new();
        let nothing = vec![None; state.columns];
        for (path, vector) in &state.files {
            let all = self.file_rows(path)?;
            let deleted = match vector {
                Some((path, offset)) => read_vector(&self.dir.join(path), *offset)?,
                None => RoaringTreemap::new(),
            };
            let live = all.iter().zip(0..).filter(|(_, at)| !deleted.contains(*at));
            rows.extend(live.map(|(row, _)| row.clone().widened(&nothing)));
        }
        rows.sort();
        Ok(rows)
    }

    /// In the file's order.
    fn file_rows(&mut self, path: &str) -> Result<Arc<Vec<Row>>, String> {
        if let Some(rows) = self.rows.get(path) {
            return Ok(Arc::clone(rows));
        }
        let file = self.dir.join(path);
        if !file.exists() {
            return Err(format!("there is no \"{path}\""));
        }
        let rows = item_rows_in_order(&read_file(&file, None));
        let rows = Arc::new(rows);
        self.rows.insert(path.to_owned(), Arc::clone(&rows));
        Ok(rows)
    }

    /// Whether all files of a state are there.
    pub(super) fn check_files(&self, state: &State) -> Result<(), String> {
        let vectors = state.files.values().flatten().map(|(path, _)| path);
        match state
            .files
            .keys()
            .chain(vectors)
            .find(|path| !self.dir.join(path).exists())
        {
            Some(path) => Err(format!("there is no \"{path}\"")),
            None => Ok(()),
        }
    }
}

/// The file of a deletion vector that stands beside the data: a prefix, and 20 characters of Z85.
fn vector_path(encoded: &str) -> String {
    const DIGITS: &[u8] =
        b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
    let (prefix, id) = encoded.split_at(encoded.len() - 20);
    assert_eq!(prefix, "", "vectors stand beside the data");
    let mut bytes = Vec::new();
    for digits in id.as_bytes().chunks(5) {
        let value = digits.iter().fold(0_u64, |value, digit| {
            value * 85 + DIGITS.iter().position(|d| d == digit).unwrap() as u64
        });
        bytes.extend_from_slice(&u32::try_from(value).unwrap().to_be_bytes());
    }
    let hex = |range: std::ops::Range<usize>| -> String {
        bytes[range].iter().map(|b| format!("{b:02x}")).collect()
    };
    let parts = [hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16)];
    format!("deletion_vector_{}.bin", parts.join("-"))
}

fn read_vector(path: &Path, offset: u64) -> Result<RoaringTreemap, String> {
    const MAGIC: u32 = 1_681_511_377;
    let bytes = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let at = usize::try_from(offset).unwrap();
    let number = |at: usize| -> Option<[u8; 4]> { bytes.get(at..at + 4)?.try_into().ok() };
    let torn = || format!("\"{}\" is torn", path.display());
    let size = u32::from_be_bytes(number(at).ok_or_else(torn)?) as usize;
    let magic = u32::from_le_bytes(number(at + 4).ok_or_else(torn)?);
    assert_eq!(magic, MAGIC);
    let bitmap = bytes.get(at + 8..at + 4 + size).ok_or_else(torn)?;
    RoaringTreemap::deserialize_from(bitmap).map_err(|_| torn())
}
