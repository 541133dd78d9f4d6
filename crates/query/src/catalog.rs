//! Which tables there are: one catalog `lake`, a schema for each layer.
//!
//! Above [`crate::table`]; asked by DataFusion while it plans. A table is opened when a query first
//! names it and then stays at that version for the life of the session, so that all queries of a
//! session see one state of a table.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use alluvium_change::{Error, code, encode_path_segment};
use alluvium_lake::SilverView;
use alluvium_lake::read::{self, History, TableName};
use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, SchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::TableType;

use crate::as_of::{Moment, TableAsOf};
use crate::error::{nearest, quoted};
use crate::table::LakeTable;

/// The one catalog's name.
pub(crate) const CATALOG: &str = "lake";
/// Where a table without a schema is looked for.
pub(crate) const DEFAULT_SCHEMA: &str = "silver";

/// A directory of the lake as the name its owner gave the table: `~XX` is the byte `XX`.
///
/// What is no such encoding, or decodes to something that is not UTF-8, is taken as it stands.
#[must_use]
pub fn decode_table_name(dir_name: &str) -> String {
    let mut bytes = Vec::with_capacity(dir_name.len());
    let mut rest = dir_name.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'~' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return dir_name.to_owned();
        };
        bytes.extend(u8::try_from(high * 16 + low));
    }
    String::from_utf8(bytes).unwrap_or_else(|_| dir_name.to_owned())
}

/// The tables of the lake, under the names people use.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    root: Arc<Path>,
}

impl Listing {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// All tables of a layer: name and directory, sorted by directory.
    pub(crate) fn tables(&self, layer: &str) -> alluvium_change::Result<Vec<(String, PathBuf)>> {
        let mut tables = read::list_tables(&self.root)?;
        tables.retain(|table| table.layer == layer);
        Ok(tables.into_iter().map(named).collect())
    }

    /// The directory name of the silver table that queries call `name`.
    pub(crate) fn dir_name(&self, name: &str) -> String {
        let silver = self.root.join(DEFAULT_SCHEMA);
        let plain = encode_path_segment(name);
        if silver.join(&plain).is_dir() {
            return plain;
        }
        // Of another schema, the two parts of its name are encoded each for itself.
        let found = self.directory(DEFAULT_SCHEMA, name).ok().flatten();
        let found = found.as_ref().and_then(|dir| dir.file_name());
        found.map_or(plain, |name| name.to_string_lossy().into_owned())
    }

    /// There is no table of this name, of `layer` if one is given; the nearest that there is, is offered.
    pub(crate) fn unknown(&self, layer: Option<&str>, table: &str) -> Error {
        let name = match layer {
            Some(layer) => format!("{layer}.{table}"),
            None => table.to_owned(),
        };
        let error = Error::new(&code::SQL_TABLE, format!("table \"{name}\" does not exist"));
        let wanted = layer.unwrap_or(DEFAULT_SCHEMA);
        // The schema asked for comes first: of equally near names the first is offered.
        let mut layers: Vec<&str> = read::LAYERS.to_vec();
        layers.sort_by_key(|layer| *layer != wanted);
        let mut candidates = Vec::new();
        for layer in layers {
            for (name, _) in self.tables(layer).unwrap_or_default() {
                candidates.push((layer, name));
            }
        }
        let Some(near) = nearest(table, candidates.iter().map(|(_, name)| name.as_str())) else {
            return match candidates.is_empty() {
                true => error.with_hint("the lake has no tables yet: alluvium run copies them"),
                false => error,
            };
        };
        let layer = candidates
            .iter()
            .find(|(_, name)| name == near)
            .map_or(DEFAULT_SCHEMA, |candidate| candidate.0);
        let near = quoted(near);
        error.with_hint(match layer == DEFAULT_SCHEMA {
            true => format!("did you mean {near}?"),
            false => format!("did you mean {layer}.{near}?"),
        })
    }

    pub(crate) fn directory(
        &self,
        layer: &str,
        name: &str,
    ) -> alluvium_change::Result<Option<PathBuf>> {
        let tables = self.tables(layer)?;
        Ok(tables
            .into_iter()
            .find(|(table, _)| table == name)
            .map(|(_, dir)| dir))
    }
}

fn named(table: TableName) -> (String, PathBuf) {
    (decode_table_name(&table.name), table.dir)
}

/// Tables at moments, by the names that stand for them; of all layers.
#[derive(Debug, Clone, Default)]
struct Travels(Arc<Mutex<HashMap<String, TableAsOf>>>);

impl Travels {
    fn add(&self, tables: Vec<TableAsOf>) {
        let mut travels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |table: TableAsOf| (table.stands_for_it.clone(), table);
        travels.extend(tables.into_iter().map(named));
    }

    /// The table that queries call `name`, and when.
    fn meant(&self, name: &str) -> (String, Option<Moment>) {
        let travels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match travels.get(name) {
            Some(travel) => (travel.table.clone(), Some(travel.moment)),
            None => (name.to_owned(), None),
        }
    }
}

/// The catalog `lake`.
#[derive(Debug)]
pub(crate) struct LakeCatalog {
    layers: Vec<(&'static str, Arc<Layer>)>,
    travels: Travels,
}

impl LakeCatalog {
    pub(crate) fn new(listing: &Listing) -> Self {
        let travels = Travels::default();
        let layer = |name| Layer {
            name,
            listing: listing.clone(),
            travels: travels.clone(),
            opened: Mutex::default(),
        };
        let layers = read::LAYERS
            .iter()
            .map(|name| (*name, Arc::new(layer(name))))
            .collect();
        Self { layers, travels }
    }
}

impl LakeCatalog {
    /// From now on queries may name these.
    pub(crate) fn travel(&self, tables: Vec<TableAsOf>) {
        self.travels.add(tables);
    }

    /// The table that `name` stands for, at a moment or not.
    pub(crate) fn table_of(&self, name: &str) -> String {
        self.travels.meant(name).0
    }

    /// A silver table as a running pipeline has it, for as long as the session lasts.
    pub(crate) fn show(&self, dir_name: &str, view: SilverView) -> alluvium_change::Result<()> {
        let Some((_, layer)) = self.layers.iter().find(|(name, _)| *name == DEFAULT_SCHEMA) else {
            return Ok(());
        };
        let dir = layer.listing.root.join(layer.name).join(dir_name);
        let table = Arc::new(LakeTable::of_view(view, &dir)?);
        let mut opened = layer.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.insert(decode_table_name(dir_name), table);
        Ok(())
    }
}

impl CatalogProvider for LakeCatalog {
    fn schema_names(&self) -> Vec<String> {
        self.layers
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let (_, layer) = self.layers.iter().find(|(layer, _)| *layer == name)?;
        Some(Arc::clone(layer) as Arc<dyn SchemaProvider>)
    }
}

/// A schema: `silver` or `bronze`.
#[derive(Debug)]
struct Layer {
    name: &'static str,
    listing: Listing,
    travels: Travels,
    opened: Mutex<HashMap<String, Arc<LakeTable>>>,
}

impl Layer {
    fn opened(&self, name: &str) -> Option<Arc<LakeTable>> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.get(name).map(Arc::clone)
    }
}

#[async_trait]
impl SchemaProvider for Layer {
    /// A directory that cannot be read lists nothing here; a query on its table says why.
    fn table_names(&self) -> Vec<String> {
        let tables = self.listing.tables(self.name).unwrap_or_default();
        tables.into_iter().map(|(name, _)| name).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if let Some(table) = self.opened(name) {
            return Ok(Some(table));
        }
        let (listing, layer) = (self.listing.clone(), self.name);
        let (wanted, moment) = self.travels.meant(name);
        // The lake is synchronous and must not run on an asynchronous thread.
        let opening = tokio::task::spawn_blocking(move || {
            let Some(dir) = listing.directory(layer, &wanted)? else {
                return Ok(None);
            };
            let version = moment.map(|moment| version_at(&dir, moment)).transpose()?;
            LakeTable::new(read::open_table(&dir, version)?, &dir).map(Some)
        });
        let opened = opening.await.unwrap_or_else(|error| {
            Err(Error::new(&code::BUG, "opening a table did not end").with_source(error))
        });
        let Some(table) = opened.map_err(|error| DataFusionError::External(Box::new(error)))?
        else {
            return Ok(None);
        };
        // Of two queries that open it at once the first one's version holds for both.
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let table = opened
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(table));
        Ok(Some(Arc::clone(table) as Arc<dyn TableProvider>))
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        Ok(self.table_exist(name).then_some(TableType::Base))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.opened(name).is_some()
            || self
                .listing
                .directory(self.name, &self.travels.meant(name).0)
                .is_ok_and(|dir| dir.is_some())
    }
}

/// The version that shows the table in `dir` at `moment`.
fn version_at(dir: &Path, moment: Moment) -> alluvium_change::Result<u64> {
    let history = History::of(dir)?;
    match moment {
        Moment::Version(version) => history.check(version),
        Moment::TimeMs(time_ms) => history.at_time(time_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_change::TableId;

    #[test]
    fn table_names_read_as_their_owner_wrote_them() {
        for name in [
            "orders", "Größe", "a b%c~", "_x", ".y", "~5F", "日本", "a\"b",
        ] {
            assert_eq!(
                decode_table_name(&TableId::new("public", name).lake_name()),
                name
            );
        }
        assert_eq!(decode_table_name("sales__~5Fx"), "sales___x");
        for foreign in ["a~", "a~4", "a~zz", "~FF"] {
            assert_eq!(decode_table_name(foreign), foreign);
        }
    }
}
