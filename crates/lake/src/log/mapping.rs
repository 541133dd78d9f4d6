//! Column mapping, for tables with column names that Delta otherwise refuses (spaces and the like).
//!
//! Mode `name`, with each column's physical name the same as its own: files and statistics are
//! named as everywhere else, and a table can be given the mapping later, without rewriting a file.
//! Source of the format: the Delta protocol, "Column Mapping".

use std::collections::BTreeMap;

use alluvium_change::{Error, Result};
use arrow::datatypes::{DataType, Field, Schema};
use serde_json::{Map, Value, json};

pub(super) const FEATURE: &str = "columnMapping";
pub(super) const MODE_PROPERTY: &str = "delta.columnMapping.mode";
const MAX_ID_PROPERTY: &str = "delta.columnMapping.maxColumnId";
const ID: &str = "delta.columnMapping.id";
const PHYSICAL_NAME: &str = "delta.columnMapping.physicalName";
/// What a column name may not contain without a mapping.
const REFUSED: [char; 10] = [' ', ',', ';', '{', '}', '(', ')', '\n', '\t', '='];

/// Whether a name of the schema, nested ones included, needs the mapping.
pub(super) fn is_needed(schema: &Schema) -> bool {
    schema.fields().iter().any(|field| field_needs(field))
}

fn field_needs(field: &Field) -> bool {
    field.name().contains(REFUSED) || type_needs(field.data_type())
}

fn type_needs(data_type: &DataType) -> bool {
    match data_type {
        DataType::Struct(fields) => fields.iter().any(|field| field_needs(field)),
        DataType::List(item) => type_needs(item.data_type()),
        DataType::Map(entries, _) => type_needs(entries.data_type()),
        _ => false,
    }
}

/// A schema's JSON with an id and a physical name for each column, and the properties that go with
/// it. Columns that `current` has keep their ids.
pub(super) fn map_columns(
    mut schema: Value,
    current: Option<&Value>,
    configuration: &mut Map<String, Value>,
) -> Result<Value> {
    let mut ids = BTreeMap::new();
    if let Some(current) = current {
        collect(current, "", &mut ids);
    }
    let recorded = configuration.get(MAX_ID_PROPERTY).and_then(Value::as_str);
    let mut highest: i64 = recorded.and_then(|text| text.parse().ok()).unwrap_or(0);
    highest = ids.values().copied().fold(highest, i64::max);
    assign(&mut schema, "", &ids, &mut highest)?;
    configuration.insert(MODE_PROPERTY.to_owned(), "name".into());
    configuration.insert(MAX_ID_PROPERTY.to_owned(), highest.to_string().into());
    Ok(schema)
}

/// The types directly below a type, each with the name that leads to it.
fn below(data_type: &Value) -> Vec<(&'static str, &Value)> {
    ["elementType", "keyType", "valueType"]
        .into_iter()
        .filter_map(|name| data_type.get(name).map(|inner| (name, inner)))
        .collect()
}

fn collect(data_type: &Value, path: &str, ids: &mut BTreeMap<String, i64>) {
    for field in data_type
        .get("fields")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let name = field.get("name").and_then(Value::as_str).unwrap_or("");
        let path = format!("{path}/{name}");
        if let Some(id) = field
            .pointer("/metadata")
            .and_then(|m| m.get(ID))
            .and_then(Value::as_i64)
        {
            ids.insert(path.clone(), id);
        }
        if let Some(inner) = field.get("type") {
            collect(inner, &path, ids);
        }
    }
    for (name, inner) in below(data_type) {
        collect(inner, &format!("{path}/<{name}>"), ids);
    }
}

fn assign(
    data_type: &mut Value,
    path: &str,
    ids: &BTreeMap<String, i64>,
    highest: &mut i64,
) -> Result<()> {
    let Some(object) = data_type.as_object_mut() else {
        return Ok(());
    };
    for name in ["elementType", "keyType", "valueType"] {
        if let Some(inner) = object.get_mut(name) {
            assign(inner, &format!("{path}/<{name}>"), ids, highest)?;
        }
    }
    let Some(fields) = object.get_mut("fields").and_then(Value::as_array_mut) else {
        return Ok(());
    };
    for field in fields {
        let odd = || Error::bug("a column of a Delta schema has no name");
        let field = field.as_object_mut().ok_or_else(odd)?;
        let name = field
            .get("name")
            .and_then(Value::as_str)
            .ok_or_else(odd)?
            .to_owned();
        let path = format!("{path}/{name}");
        let id = ids.get(&path).copied().unwrap_or_else(|| {
            *highest += 1;
            *highest
        });
        let metadata = field.entry("metadata").or_insert_with(|| json!({}));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert(ID.to_owned(), id.into());
            metadata.insert(PHYSICAL_NAME.to_owned(), name.into());
        }
        if let Some(inner) = field.get_mut("type") {
            assign(inner, &path, ids, highest)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn names_with_spaces_need_it_at_any_depth() {
        let plain = Schema::new(vec![Field::new("ünï.code-%41", DataType::Int32, true)]);
        assert!(!is_needed(&plain));
        let inner = Field::new("a b", DataType::Int32, true);
        let nested = DataType::Struct(vec![inner].into());
        let list = DataType::List(Field::new("element", nested, true).into());
        assert!(is_needed(&Schema::new(vec![Field::new("l", list, true)])));
    }

    #[test]
    fn columns_keep_their_ids_and_new_ones_get_new_ones() {
        let column =
            |name: &str| json!({"name": name, "type": "integer", "nullable": true, "metadata": {}});
        let mut configuration = Map::new();
        let first = json!({"type": "struct", "fields": [column("a"), column("b c")]});
        let first = map_columns(first, None, &mut configuration).unwrap();
        let second = json!({"type": "struct", "fields": [column("new"), column("b c")]});
        let second = map_columns(second, Some(&first), &mut configuration).unwrap();
        let id = |schema: &Value, at: usize| schema["fields"][at]["metadata"][ID].as_i64().unwrap();
        assert_eq!((id(&first, 0), id(&first, 1)), (1, 2));
        assert_eq!((id(&second, 0), id(&second, 1)), (3, 2));
        assert_eq!(configuration[MAX_ID_PROPERTY], "3");
        assert_eq!(second["fields"][1]["metadata"][PHYSICAL_NAME], "b c");
    }
}
