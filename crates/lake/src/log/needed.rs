//! Which files of a table's directory its log speaks of: for removing the others.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use alluvium_change::{Error, Result};
use arrow::array::{Array, AsArray, Int32Array, Int64Array, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{Int32Type, Int64Type};
use delta_kernel::actions::deletion_vector::DeletionVectorDescriptor;
use delta_kernel::engine::arrow_data::ArrowEngineData;
use delta_kernel::schema::{DataType, StructField, StructType};
use delta_kernel::snapshot::{Snapshot, SnapshotRef};
use url::Url;
use xxhash_rust::xxh3::xxh3_64;

use super::engine::{Engine, kernel_error};
use super::files::log_dir;
use super::table::DeltaTable;

/// Names of files in a table's directory. As hashes: where two are the same, a file stays too long.
pub(crate) type Names = HashSet<u64>;

/// A name as [`Names`] has it.
pub(crate) fn name_hash(name: &str) -> u64 {
    xxh3_64(name.as_bytes())
}

/// A table at a version, for any thread.
#[derive(Clone)]
pub(crate) struct TableAt {
    dir: PathBuf,
    url: Url,
    engine: Arc<Engine>,
    snapshot: SnapshotRef,
}

impl DeltaTable {
    pub(crate) fn now(&self) -> TableAt {
        TableAt {
            dir: self.dir.clone(),
            url: self.url.clone(),
            engine: Arc::clone(&self.engine),
            snapshot: Arc::clone(&self.snapshot),
        }
    }

    /// The version of the Delta checkpoint from which on the table is read.
    pub(crate) fn checkpoint_version(&self) -> Option<u64> {
        checkpoint_of(&self.snapshot)
    }
}

fn checkpoint_of(snapshot: &Snapshot) -> Option<u64> {
    snapshot.log_segment().checkpoint_version
}

impl TableAt {
    pub(crate) fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    pub(crate) fn log_dir(&self) -> PathBuf {
        log_dir(&self.dir)
    }

    pub(crate) fn version(&self) -> u64 {
        self.snapshot.version()
    }

    /// The version of the Delta checkpoint from which on the table's owner knows its commits.
    pub(crate) fn checkpoint_version(&self) -> Option<u64> {
        checkpoint_of(&self.snapshot)
    }

    /// The same table at an earlier version, which must be in the log.
    pub(crate) fn at(&self, version: u64) -> Result<Self> {
        let snapshot = Snapshot::builder_for(self.url.as_str())
            .at_version(version)
            .build(self.engine.as_ref())
            .map_err(|e| kernel_error("read an old version of", &self.dir, e))?;
        Ok(Self {
            snapshot,
            ..self.clone()
        })
    }

    /// The table at its newest version, whoever made it.
    pub(crate) fn newest(&self) -> Result<Self> {
        let snapshot = Snapshot::builder_from(Arc::clone(&self.snapshot))
            .build(self.engine.as_ref())
            .map_err(|e| kernel_error("open", &self.dir, e))?;
        Ok(Self {
            snapshot,
            ..self.clone()
        })
    }

    /// Names of all files of the version, and of those removed since `removed_since_ms`.
    pub(crate) fn names(&self, removed_since_ms: i64) -> Result<Names> {
        let failed = |e| kernel_error("read the files of", &self.dir, e);
        let actions = action_schema().map_err(failed)?;
        let batches = self
            .snapshot
            .log_segment()
            .read_actions(self.engine.as_ref(), Arc::new(actions))
            .map_err(failed)?;
        let mut names = Names::new();
        // Newest commits come first: what is added and was removed later is no more.
        let mut seen: HashSet<u64> = HashSet::new();
        for batch in batches {
            let data = batch.map_err(failed)?.actions;
            let batch: RecordBatch =
                (*ArrowEngineData::try_from_engine_data(data).map_err(failed)?).into();
            for kind in ["add", "remove"] {
                let files = FileColumns::new(&batch, kind)?;
                for row in 0..batch.num_rows() {
                    if files.action.is_valid(row)
                        && seen.insert(files.identity(row))
                        && files.is_since(row, removed_since_ms)
                    {
                        self.insert(&files, row, &mut names)?;
                    }
                }
            }
        }
        Ok(names)
    }

    fn insert(&self, files: &FileColumns<'_>, row: usize, names: &mut Names) -> Result<()> {
        let failed = |e| kernel_error("read the files of", &self.dir, e);
        // Paths are written as in a URL.
        if let Ok(url) = self.url.join(files.path.value(row)) {
            names.extend(self.name_of(&url));
        }
        let Some(vector) = files.vector(row).map_err(failed)? else {
            return Ok(());
        };
        if let Some(url) = vector.absolute_path(&self.url).map_err(failed)? {
            names.extend(self.name_of(&url));
        }
        Ok(())
    }

    /// Of a file in the table's directory itself.
    fn name_of(&self, url: &Url) -> Option<u64> {
        let path = url.to_file_path().ok()?;
        let root = self.url.to_file_path().ok()?;
        let name = path.strip_prefix(root).ok()?.to_str()?;
        Some(name_hash(name))
    }
}

fn action_schema() -> delta_kernel::KernelResult<StructType> {
    let vector = StructType::try_new([
        StructField::nullable("storageType", DataType::STRING),
        StructField::nullable("pathOrInlineDv", DataType::STRING),
        StructField::nullable("offset", DataType::INTEGER),
        StructField::nullable("sizeInBytes", DataType::INTEGER),
        StructField::nullable("cardinality", DataType::LONG),
    ])?;
    let file = |time: Option<&str>| {
        let mut fields = vec![
            StructField::nullable("path", DataType::STRING),
            StructField::nullable("deletionVector", vector.clone()),
        ];
        fields.extend(time.map(|time| StructField::nullable(time, DataType::LONG)));
        StructType::try_new(fields)
    };
    StructType::try_new([
        StructField::nullable("add", file(None)?),
        StructField::nullable("remove", file(Some("deletionTimestamp"))?),
    ])
}

/// What actions of one kind say of files.
struct FileColumns<'a> {
    action: &'a StructArray,
    path: &'a StringArray,
    removed_ms: Option<&'a Int64Array>,
    vector: &'a StructArray,
    storage: &'a StringArray,
    place: &'a StringArray,
    offset: &'a Int32Array,
    size: &'a Int32Array,
    cardinality: &'a Int64Array,
}

impl<'a> FileColumns<'a> {
    fn new(batch: &'a RecordBatch, kind: &str) -> Result<Self> {
        Self::find(batch, kind)
            .ok_or_else(|| Error::bug(format!("the kernel's {kind} actions are not as expected")))
    }

    fn find(batch: &'a RecordBatch, kind: &str) -> Option<Self> {
        let action = batch.column_by_name(kind)?.as_struct_opt()?;
        let vector = action.column_by_name("deletionVector")?.as_struct_opt()?;
        let removed_ms = action
            .column_by_name("deletionTimestamp")
            .and_then(|column| column.as_primitive_opt::<Int64Type>());
        Some(Self {
            action,
            path: action.column_by_name("path")?.as_string_opt()?,
            removed_ms,
            vector,
            storage: vector.column_by_name("storageType")?.as_string_opt()?,
            place: vector.column_by_name("pathOrInlineDv")?.as_string_opt()?,
            offset: vector
                .column_by_name("offset")?
                .as_primitive_opt::<Int32Type>()?,
            size: vector
                .column_by_name("sizeInBytes")?
                .as_primitive_opt::<Int32Type>()?,
            cardinality: vector
                .column_by_name("cardinality")?
                .as_primitive_opt::<Int64Type>()?,
        })
    }

    /// Of a file with its deleted rows.
    fn identity(&self, row: usize) -> u64 {
        let vector = self.vector.is_valid(row) && self.place.is_valid(row);
        let (place, offset) = match vector {
            true => (self.place.value(row), self.offset.value(row)),
            false => ("", 0),
        };
        name_hash(&format!("{}\n{place}\n{offset}", self.path.value(row)))
    }

    /// A file that was removed, and nobody says when, was removed just now.
    fn is_since(&self, row: usize, since_ms: i64) -> bool {
        self.removed_ms
            .is_none_or(|times| !times.is_valid(row) || times.value(row) >= since_ms)
    }

    fn vector(&self, row: usize) -> delta_kernel::KernelResult<Option<DeletionVectorDescriptor>> {
        if self.vector.is_null(row) || self.storage.is_null(row) {
            return Ok(None);
        }
        DeletionVectorDescriptor::try_new(
            self.storage.value(row).parse()?,
            self.place.value(row),
            self.offset.is_valid(row).then(|| self.offset.value(row)),
            self.size.value(row),
            self.cardinality.value(row),
        )
        .map(Some)
    }
}
