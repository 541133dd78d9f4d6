//! Commits that change a table's schema.
//!
//! The kernel cannot combine them with file actions, nor replace a schema, so they are written
//! wholly here, and the snapshot is built anew from the log afterwards.

use std::sync::Arc;

use alluvium_change::{Error, Result, failpoint};
use arrow::datatypes::{DataType, Schema};
use delta_kernel::snapshot::Snapshot;
use serde_json::{Value, json};

use super::commit::{Commit, Committed, NewFile, now_ms};
use super::committer::write_commit;
use super::deletion_vector::Descriptor;
use super::engine::kernel_error;
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
        let mut actions = vec![json!({"commitInfo": {
            "timestamp": now,
            "operation": operation,
            "operationParameters": {},
            "engineInfo": ENGINE_INFO,
            "txnId": uuid::Uuid::new_v4().to_string(),
        }})];
        actions.extend(self.protocol_action(schema)?);
        actions.push(self.metadata_action(schema, properties)?);
        for (app_id, version) in &commit.txns {
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
        let mut lines = Vec::new();
        for action in actions {
            lines.extend_from_slice(action.to_string().as_bytes());
            lines.push(b'\n');
        }
        if self.fsync {
            durable::sync_dir(&self.dir)?;
        }
        failpoint::hit("commit.data_synced");
        let version = self.version() + 1;
        if write_commit(&self.dir, version, &lines, self.fsync)? == Link::Taken {
            return Err(foreign(&self.dir));
        }
        self.snapshot = Snapshot::builder_from(Arc::clone(&self.snapshot))
            .build(self.engine.as_ref())
            .map_err(|e| kernel_error("open", &self.dir, e))?;
        if self.version() != version {
            return Err(foreign(&self.dir));
        }
        self.commits_since_checkpoint += 1;
        Ok(Committed {
            version,
            deletes: Vec::new(),
            adds: vectors.adds,
        })
    }

    fn metadata_action(&self, schema: &Schema, properties: &[(&str, String)]) -> Result<Value> {
        let bug = |e| Error::bug("a table's metadata is not JSON").with_source(e);
        let delta = to_delta(schema, &self.dir)?;
        let schema_text = serde_json::to_string(&delta).map_err(bug)?;
        let current = self.snapshot.table_configuration().metadata();
        let mut metadata = serde_json::to_value(current).map_err(bug)?;
        let fields = metadata
            .as_object_mut()
            .ok_or_else(|| Error::bug("a table's metadata is no object"))?;
        fields.insert("schemaString".to_owned(), schema_text.into());
        fields.retain(|_, value| !value.is_null());
        if let Some(configuration) = fields
            .get_mut("configuration")
            .and_then(Value::as_object_mut)
        {
            for (name, value) in properties {
                configuration.insert((*name).to_owned(), value.clone().into());
            }
        }
        Ok(json!({"metaData": metadata}))
    }

    /// A new protocol, when the schema needs a feature the table does not have yet.
    fn protocol_action(&self, schema: &Schema) -> Result<Option<Value>> {
        const FEATURE: &str = "timestampNtz";
        if !schema
            .fields()
            .iter()
            .any(|field| has_local_timestamp(field.data_type()))
        {
            return Ok(None);
        }
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
            let features = fields.entry(side).or_insert_with(|| json!([]));
            if let Some(features) = features.as_array_mut()
                && !features.iter().any(|feature| feature == FEATURE)
            {
                features.push(FEATURE.into());
                changed = true;
            }
        }
        Ok(changed.then(|| json!({"protocol": protocol})))
    }
}

fn has_local_timestamp(data_type: &DataType) -> bool {
    match data_type {
        DataType::Timestamp(_, None) => true,
        DataType::List(field) | DataType::Map(field, _) => has_local_timestamp(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|f| has_local_timestamp(f.data_type())),
        _ => false,
    }
}

fn remove_action(file: &LiveFile, now: i64) -> Value {
    let mut remove = json!({
        "path": file.path,
        "deletionTimestamp": now,
        "dataChange": true,
        "extendedFileMetadata": true,
        "partitionValues": {},
        "size": file.size_bytes,
    });
    insert_vector(&mut remove, file.deletion_vector.as_ref());
    json!({"remove": remove})
}

fn add_action(file: &NewFile, vector: Option<&Descriptor>) -> Value {
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
