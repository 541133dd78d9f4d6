//! Which directory of the lake each table gets.

use std::collections::BTreeMap;

use alluvium_change::{Error, Result, TableId, code, encode_path_segment};

use super::Project;

/// The lake name of each table: its own, or the one the project file gives it.
///
/// # Errors
/// Two tables would share a directory, also on a file system that ignores case.
pub fn assign_names(project: &Project, tables: &[TableId]) -> Result<BTreeMap<TableId, String>> {
    let mut names = BTreeMap::new();
    let mut taken: BTreeMap<String, &TableId> = BTreeMap::new();
    for table in tables {
        let settings = project.tables.get(&table.to_string());
        let name = match settings.and_then(|settings| settings.name.as_deref()) {
            Some(name) => encode_path_segment(name),
            None => table.lake_name(),
        };
        if let Some(other) = taken.insert(name.to_lowercase(), table) {
            return Err(Error::new(
                &code::CONFIG_NAMES,
                format!("tables \"{other}\" and \"{table}\" would share the directory \"{name}\""),
            )
            .with_detail("names that differ only by letter case are one on some file systems")
            .with_hint(format!(
                "give one of them another name in alluvium.toml: [tables.\"{table}\"] name = \"...\""
            )));
        }
        names.insert(table.clone(), name);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use std::path::Path;

    use super::*;

    fn project(more: &str) -> Project {
        let text = format!(
            "[source.s]\ntype = \"postgres\"\nurl = \"postgres://h/d\"\n[lake]\npath = \"l\"\n{more}"
        );
        super::super::parse(&text, Path::new("/p/alluvium.toml"), |_| None).unwrap()
    }

    #[test]
    fn names_that_collide_are_refused_until_one_is_renamed() {
        let tables = [
            TableId::new("public", "orders"),
            TableId::new("public", "Orders"),
        ];
        let error = assign_names(&project(""), &tables).unwrap_err();
        assert!(error.is(&code::CONFIG_NAMES));
        let renamed = project("[tables.\"public.Orders\"]\nname = \"orders_2\"\n");
        let names = assign_names(&renamed, &tables).unwrap();
        assert_eq!(names[&tables[1]], "orders_2");
        let clash = [TableId::new("public", "a__b"), TableId::new("a", "b")];
        assert!(assign_names(&project(""), &clash).is_err());
    }
}
