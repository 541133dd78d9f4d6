//! What makes index files valid: the table and version they were written for.
//!
//! An entry says "this key is at this row of this file". Files never change, so an entry that was
//! right once is right as long as its file has that row. Hence the manifest needs the files the
//! runs speak of, not a history of the log: files it does not name are read, rows deleted since
//! are dropped, and then each file must have exactly as many entries as live rows.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::Arc;

use alluvium_change::{Error, Result, failpoint};
use roaring::RoaringTreemap;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::files::{Home, MANIFEST};
use super::restore::Covered;
use super::run::Run;
use crate::key_index::forward::{Forwarding, Moved};
use crate::key_index::{KeyWidth, SegmentId};

const TEMPORARY: &str = "manifest.tmp";
/// Raised with every change of the files or of how keys are encoded.
const FORMAT: u64 = 5;

/// A data file as the runs number it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ManifestSegment {
    pub(crate) id: SegmentId,
    pub(crate) path: String,
    pub(crate) size_bytes: i64,
    pub(crate) num_rows: u64,
    /// What the log calls its deleted rows.
    pub(crate) deletion_vector: String,
}

/// The state of a table an index belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stand {
    /// Delta's id of the table.
    pub(crate) table_id: String,
    pub(crate) version: u64,
    /// Columns of the key with their types, in order.
    pub(crate) key: String,
}

/// A manifest as it was read; its runs are not opened yet.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(super) width: KeyWidth,
    pub(super) runs: Vec<(String, u64)>,
    /// By path.
    pub(crate) segments: HashMap<String, ManifestSegment>,
    /// No run speaks of a file with this number or a higher one.
    pub(crate) next_segment: SegmentId,
    /// How many keys the runs have, if these are exactly the rows its files had then.
    pub(super) keys: Option<u64>,
    /// From the places that entries name to those of then.
    pub(crate) forwarding: Forwarding,
}

/// What is written into a manifest beside the runs.
#[derive(Debug)]
pub(crate) struct Saved<'a> {
    pub(crate) stand: &'a Stand,
    /// How many keys the runs have, if these are exactly the rows of that version. They are not when
    /// they were gathered over several.
    pub(crate) keys: Option<u64>,
    pub(crate) segments: &'a [ManifestSegment],
    pub(crate) next_segment: SegmentId,
    pub(crate) forwarding: &'a Forwarding,
}

/// Makes the runs, and nothing else, the table's index. A crash leaves the manifest before or this.
///
/// `tidy` removes all other files: not while a merge writes one.
pub(super) fn write(home: &Home, saved: &Saved<'_>, runs: &[&Run], tidy: bool) -> Result<()> {
    for run in runs {
        run.sync(home)?;
    }
    let segments = saved.segments.iter().map(|segment| {
        json!({
            "id": segment.id,
            "path": segment.path,
            "size_bytes": segment.size_bytes,
            "num_rows": segment.num_rows,
            "deletion_vector": segment.deletion_vector,
        })
    });
    let runs_written = runs
        .iter()
        .map(|run| json!({ "name": run.name, "checksum": run.checksum }));
    let body = json!({
        "format": FORMAT,
        "table_id": saved.stand.table_id,
        "version": saved.stand.version,
        "keys": saved.keys,
        "key": saved.stand.key,
        "next_segment": saved.next_segment,
        "runs": runs_written.collect::<Vec<_>>(),
        "segments": segments.collect::<Vec<_>>(),
        "moved": saved.forwarding.moves().map(moved_json).collect::<Result<Vec<_>>>()?,
    })
    .to_string();
    let text = format!("{:016x}\n{body}", xxh3_64(body.as_bytes()));
    home.remove(TEMPORARY)?;
    let file = home.create(TEMPORARY)?;
    home.write(&file, TEMPORARY, text.as_bytes(), 0)?;
    home.sync(&file, TEMPORARY)?;
    // The runs' names, too, are durable before the manifest that needs them has its own.
    home.sync_dir()?;
    failpoint::hit("index.before_manifest");
    home.rename(TEMPORARY, MANIFEST)?;
    home.sync_dir()?;
    failpoint::hit("index.after_manifest");
    if !tidy {
        return Ok(());
    }
    let mut names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    names.push(MANIFEST);
    home.keep_only(&names)
}

/// The manifest, if there is one for a table that stands so. Anything else says why not.
pub(crate) fn read(
    home: &Home,
    stand: &Stand,
    width: KeyWidth,
) -> std::result::Result<Manifest, String> {
    let text = fs::read(home.path(MANIFEST)).map_err(|e| e.to_string())?;
    let (checksum, body) = text
        .split_at_checked(17)
        .ok_or("the manifest is too short")?;
    if checksum != format!("{:016x}\n", xxh3_64(body)).as_bytes() {
        return Err("the manifest is damaged".to_owned());
    }
    let value: Value = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let number = |name: &str| value.get(name).and_then(Value::as_u64);
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    if number("format") != Some(FORMAT) {
        return Err("the manifest is of another format".to_owned());
    }
    if text("table_id") != Some(&stand.table_id) {
        return Err("the index is of another table".to_owned());
    }
    if text("key") != Some(&stand.key) {
        return Err("the index is of another key".to_owned());
    }
    if number("version").is_none_or(|version| version > stand.version) {
        return Err("the index is ahead of the table".to_owned());
    }
    parse(&value, width).ok_or_else(|| "the manifest lacks something".to_owned())
}

fn parse(value: &Value, width: KeyWidth) -> Option<Manifest> {
    let id = |value: &Value| SegmentId::try_from(value.as_u64()?).ok();
    let next_segment = id(value.get("next_segment")?)?;
    // Numbers are used up by files long gone: a rebuild begins anew, long before they run out.
    if next_segment > SegmentId::MAX / 2 {
        return None;
    }
    let mut runs = Vec::new();
    for run in value.get("runs")?.as_array()? {
        let name = run.get("name")?.as_str()?;
        runs.push((name.to_owned(), run.get("checksum")?.as_u64()?));
    }
    let mut segments = HashMap::new();
    let mut ids = HashSet::new();
    for segment in value.get("segments")?.as_array()? {
        let segment = ManifestSegment {
            id: id(segment.get("id")?).filter(|id| *id < next_segment)?,
            path: segment.get("path")?.as_str()?.to_owned(),
            size_bytes: segment.get("size_bytes")?.as_i64()?,
            num_rows: segment.get("num_rows")?.as_u64()?,
            deletion_vector: segment.get("deletion_vector")?.as_str()?.to_owned(),
        };
        if !ids.insert(segment.id) {
            return None;
        }
        segments.insert(segment.path.clone(), segment);
    }
    let mut moves = Vec::new();
    for moved in value.get("moved")?.as_array()? {
        moves.push(parse_moved(moved)?);
    }
    let mut forwarding = Forwarding::default();
    forwarding.add(moves);
    Some(Manifest {
        width,
        runs,
        segments,
        next_segment,
        keys: value.get("keys")?.as_u64(),
        forwarding,
    })
}

/// The rows left out stand in hexadecimal, as roaring bitmaps are written, and so do places, of four bytes
/// each, the lowest first.
fn moved_json(moved: &Moved) -> Result<Value> {
    let mut gone = Vec::new();
    moved
        .gone
        .serialize_into(&mut gone)
        .map_err(|e| Error::bug("a bitmap cannot be written").with_source(e))?;
    Ok(json!({
        "from": moved.from,
        "to": moved.to,
        "base": moved.base,
        "kept": moved.kept,
        "gone": hex::encode(gone),
        "places": moved.places.as_ref().map(|places| {
            let bytes: Vec<u8> = places.iter().flat_map(|place| place.to_le_bytes()).collect();
            hex::encode(bytes)
        }),
    }))
}

fn parse_moved(value: &Value) -> Option<Moved> {
    let number = |name: &str| value.get(name).and_then(Value::as_u64);
    let small = |name: &str| u32::try_from(number(name)?).ok();
    let gone = hex::decode(value.get("gone")?.as_str()?).ok()?;
    let kept = number("kept")?;
    let places = match value.get("places")? {
        Value::Null => None,
        written => {
            let bytes = hex::decode(written.as_str()?).ok()?;
            let (places, rest) = bytes.as_chunks();
            let is_whole = rest.is_empty() && places.len() as u64 == kept;
            let places = places.iter().map(|place| u32::from_le_bytes(*place));
            Some(is_whole.then(|| places.collect())?)
        }
    };
    Some(Moved {
        from: small("from")?,
        to: small("to")?,
        base: small("base")?,
        kept,
        places,
        gone: Arc::new(RoaringTreemap::deserialize_from(gone.as_slice()).ok()?),
    })
}

impl Manifest {
    /// How many keys the runs have, if they have exactly the live rows of these files, by number
    /// and name of their deleted rows. Equal names are equal files: both have a random part.
    pub(super) fn keys_of(&self, covered: &[Covered<'_>]) -> Option<u64> {
        let saved: HashMap<SegmentId, &str> = self
            .segments
            .values()
            .map(|segment| (segment.id, segment.deletion_vector.as_str()))
            .collect();
        let as_saved = |file: &Covered<'_>| {
            saved.get(&file.id).copied() == Some(file.deletion_vector.as_str())
        };
        self.keys
            .filter(|_| covered.len() == saved.len() && covered.iter().all(as_saved))
    }

    /// Opens the runs, oldest first.
    pub(super) fn open_runs(&self, home: &Home) -> Result<Vec<Run>> {
        let names: Vec<&str> = self
            .runs
            .iter()
            .map(|(name, _)| name.as_str())
            .chain([MANIFEST])
            .collect();
        home.keep_only(&names)?;
        self.runs
            .iter()
            .map(|(name, checksum)| Run::open(home, self.width, name, *checksum))
            .collect()
    }
}

/// Takes the manifest away, so that nothing is valid any more.
pub(super) fn forget(home: &Home) -> Result<()> {
    home.remove(MANIFEST)
}

/// The index is not to be trusted.
pub(crate) fn doubt(what: impl Into<String>) -> Error {
    Error::bug(format!(
        "the key index on disk is in doubt: {}",
        what.into()
    ))
}
