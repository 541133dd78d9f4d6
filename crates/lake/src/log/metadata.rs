//! Commits that change a table's schema.
//!
//! The kernel cannot combine them with file actions, nor replace a schema, so they are written
//! wholly here, and the snapshot is built anew from the log afterwards.

use std::path::Path;
use std::sync::Arc;

use alluvium_change::surroundings::now_ms;
use alluvium_change::{Error, Result, failpoint};
use arrow::datatypes::{DataType, Schema};
use delta_kernel::snapshot::Snapshot;
use serde_json::{Map, Value, json};

use super::commit::{Commit, Committed, NewFile, OWN_COMMIT, own_mark};
use super::committer::{insert_count, insert_metrics, write_commit};
use super::deletion_vector::Descriptor;
use super::engine::kernel_error;
use super::mapping;
use super::rows::LiveFile;
use super::schema::to_delta;
use super::table::{DeltaTable, ENGINE_INFO, foreign};
use crate::fs::{self as durable, Link};

impl DeltaTable {
    /// Makes `commit` together with a new schema and properties. Its `deletes` must be empty.
    pub(crate) fn commit_schema(
        &mut self,
        schema: &Schema,
        operation: &str,
        commit: &Commit<'_>,
        properties: &[(&str, String)],
    ) -> Result<Committed> {
        if !commit.deletes.is_empty() {
            return Err(Error::bug(
                "a schema change with deleted rows of files that stay",
            ));
        }
        let vectors = self.write_vectors(commit)?;
        let now = now_ms();
        let mut info = commit_info(operation, now);
        if let Some(info) = info.as_object_mut() {
            insert_metrics(info, commit.copied_rows);
        }
        let mut actions = vec![json!({"commitInfo": info})];
        actions.extend(self.protocol_action(schema, &[])?);
        actions.push(self.metadata_action(schema, properties)?);
        let mark = (OWN_COMMIT.to_owned(), own_mark(self.version() + 1));
        for (app_id, version) in commit.txns.iter().chain([&mark]) {
            actions.push(json!({"txn": {"appId": app_id, "version": version, "lastUpdated": now}}));
        }
        actions.extend(commit.removes.iter().map(|file| remove_action(file, now)));
        actions.extend(
            commit
                .adds
                .iter()
                .zip(&vectors.adds)
                .map(|(add, vector)| add_action(add, vector.as_ref())),
        );
        if self.fsync {
            durable::sync_dir(&self.dir)?;
        }
        failpoint::hit("commit.data_synced");
        let version = self.commit_actions(&actions)?;
        Ok(Committed {
            version,
            deletes: Vec::new(),
            adds: vectors.adds,
        })
    }

    /// Gives the table other properties, if they are not what it has.
    pub(crate) fn set_properties(&mut self, properties: &[(&str, String)]) -> Result<()> {
        let held = self.properties();
        if properties
            .iter()
            .all(|(name, value)| held.get(*name) == Some(value))
        {
            return Ok(());
        }
        self.set_properties_with(properties, &[])
    }

    /// Gives the table other properties, and what writers must know for them.
    pub(super) fn set_properties_with(
        &mut self,
        properties: &[(&str, String)],
        writer_features: &[&str],
    ) -> Result<()> {
        let schema = self.schema()?;
        let now = now_ms();
        let mark = own_mark(self.version() + 1);
        let mut actions = vec![json!({"commitInfo": commit_info("SET TBLPROPERTIES", now)})];
        actions.extend(self.protocol_action(&schema, writer_features)?);
        actions.push(self.metadata_action(&schema, properties)?);
        actions.push(json!({"txn": {"appId": OWN_COMMIT, "version": mark, "lastUpdated": now}}));
        self.commit_actions(&actions).map(|_| ())
    }

    /// Makes the next commit of these actions, and goes on from it. Answers its version.
    pub(super) fn commit_actions(&mut self, actions: &[Value]) -> Result<u64> {
        let version = self.version() + 1;
        if write_commit(&self.dir, version, &lines(actions), self.fsync)? == Link::Taken {
            return Err(foreign(&self.dir));
        }
        self.snapshot = Snapshot::builder_from(Arc::clone(&self.snapshot))
            .build(self.engine.as_ref())
            .map_err(|e| kernel_error("open", &self.dir, e))?;
        if self.version() != version {
            return Err(foreign(&self.dir));
        }
        self.commits_since_checkpoint += 1;
        Ok(version)
    }

    pub(super) fn metadata_action(
        &self,
        schema: &Schema,
        properties: &[(&str, String)],
    ) -> Result<Value> {
        let bug = |e| Error::bug("a table's metadata is not JSON").with_source(e);
        let delta = to_delta(schema, &self.dir)?;
        let current = self.snapshot.table_configuration().metadata();
        let mut metadata = serde_json::to_value(current).map_err(bug)?;
        let fields = metadata
            .as_object_mut()
            .ok_or_else(|| Error::bug("a table's metadata is no object"))?;
        let mut schema_json = serde_json::to_value(&delta).map_err(bug)?;
        let is_mapped = self.is_mapped() || mapping::is_needed(schema);
        let configuration = fields.entry("configuration").or_insert_with(|| json!({}));
        if let Some(configuration) = configuration.as_object_mut() {
            for (name, value) in properties {
                configuration.insert((*name).to_owned(), value.clone().into());
            }
            if is_mapped {
                let held = serde_json::to_value(self.snapshot.schema().as_ref()).map_err(bug)?;
                schema_json = mapping::map_columns(schema_json, Some(&held), configuration)?;
            }
        }
        fields.insert("schemaString".to_owned(), schema_json.to_string().into());
        fields.retain(|_, value| !value.is_null());
        Ok(json!({"metaData": metadata}))
    }

    fn is_mapped(&self) -> bool {
        let properties = self.snapshot.metadata_configuration();
        properties
            .get(mapping::MODE_PROPERTY)
            .is_some_and(|mode| mode != "none")
    }

    /// A new protocol, when the schema needs a feature the table does not have yet, or its writers do.
    fn protocol_action(&self, schema: &Schema, of_writers: &[&str]) -> Result<Option<Value>> {
        let wanted = features(schema);
        let current = self.snapshot.table_configuration().protocol();
        let mut protocol = serde_json::to_value(current)
            .map_err(|e| Error::bug("a table's protocol is not JSON").with_source(e))?;
        let mut changed = false;
        let fields = protocol
            .as_object_mut()
            .ok_or_else(|| Error::bug("a table's protocol is no object"))?;
        fields.retain(|_, value| !value.is_null());
        fields.insert("minReaderVersion".to_owned(), 3.into());
        fields.insert("minWriterVersion".to_owned(), 7.into());
        for side in ["readerFeatures", "writerFeatures"] {
            let has = fields.entry(side).or_insert_with(|| json!([]));
            let Some(has) = has.as_array_mut() else {
                continue;
            };
            let more = if side == "writerFeatures" {
                of_writers
            } else {
                &[]
            };
            for feature in wanted.iter().chain(more) {
                if !has.iter().any(|known| known == feature) {
                    has.push((*feature).into());
                    changed = true;
                }
            }
        }
        Ok(changed.then(|| json!({"protocol": protocol})))
    }

    /// Creates an empty table that needs column mapping, which the kernel would fill with physical
    /// names of its own.
    pub(super) fn create_mapped(
        dir: &Path,
        schema: &Schema,
        properties: &[(&str, String)],
        fsync: bool,
    ) -> Result<Self> {
        let bug = |e| Error::bug("a table's schema is not JSON").with_source(e);
        let mut configuration: Map<String, Value> = properties
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone().into()))
            .collect();
        let schema_json = serde_json::to_value(to_delta(schema, dir)?).map_err(bug)?;
        let schema_json = mapping::map_columns(schema_json, None, &mut configuration)?;
        let mut wanted = features(schema);
        if configuration
            .get("delta.enableDeletionVectors")
            .is_some_and(|on| on == "true")
        {
            wanted.push("deletionVectors");
        }
        let actions = [
            json!({"commitInfo": commit_info("CREATE TABLE", now_ms())}),
            json!({"protocol": {
                "minReaderVersion": 3,
                "minWriterVersion": 7,
                "readerFeatures": wanted,
                "writerFeatures": wanted,
            }}),
            json!({"metaData": {
                "id": durable::new_uuid().to_string(),
                "format": {"provider": "parquet", "options": {}},
                "schemaString": schema_json.to_string(),
                "partitionColumns": [],
                "configuration": configuration,
                "createdTime": now_ms(),
            }}),
        ];
        if write_commit(dir, 0, &lines(&actions), fsync)? == Link::Taken {
            return Err(foreign(dir));
        }
        Self::open(dir, fsync)
    }
}

/// Features that reading and writing such columns needs.
fn features(schema: &Schema) -> Vec<&'static str> {
    let mut features = Vec::new();
    if schema
        .fields()
        .iter()
        .any(|field| has_local_timestamp(field.data_type()))
    {
        features.push("timestampNtz");
    }
    if mapping::is_needed(schema) {
        features.push(mapping::FEATURE);
    }
    features
}

pub(super) fn commit_info(operation: &str, now: i64) -> Value {
    json!({
        "timestamp": now,
        "operation": operation,
        "operationParameters": {},
        "engineInfo": ENGINE_INFO,
        "txnId": durable::new_uuid().to_string(),
    })
}

fn lines(actions: &[Value]) -> Vec<u8> {
    let mut lines = Vec::new();
    for action in actions {
        lines.extend_from_slice(action.to_string().as_bytes());
        lines.push(b'\n');
    }
    lines
}

fn has_local_timestamp(data_type: &DataType) -> bool {
    match data_type {
        DataType::Timestamp(_, None) => true,
        DataType::List(field) | DataType::Map(field, _) => has_local_timestamp(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|f| has_local_timestamp(f.data_type())),
        _ => false,
    }
}

pub(super) fn remove_action(file: &LiveFile, now: i64) -> Value {
    let mut remove = json!({
        "path": file.path,
        "deletionTimestamp": now,
        "dataChange": true,
        "extendedFileMetadata": true,
        "partitionValues": {},
        "size": file.size_bytes,
    });
    if let Some(remove) = remove.as_object_mut() {
        insert_count(remove, &file.stats);
    }
    insert_vector(&mut remove, file.deletion_vector.as_ref());
    json!({"remove": remove})
}

pub(super) fn add_action(file: &NewFile, vector: Option<&Descriptor>) -> Value {
    let mut add = json!({
        "path": file.path,
        "partitionValues": {},
        "size": file.size_bytes,
        "modificationTime": file.modified_ms,
        "dataChange": true,
        "stats": file.stats.as_ref(),
    });
    insert_vector(&mut add, vector);
    json!({"add": add})
}

fn insert_vector(action: &mut Value, vector: Option<&Descriptor>) {
    if let (Some(fields), Some(vector)) = (action.as_object_mut(), vector) {
        fields.insert("deletionVector".to_owned(), vector.to_json());
    }
}
