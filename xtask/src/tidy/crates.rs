//! Which crate may use which, and one copy of what must be one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::Fault;

/// The binary whose dependencies are looked at for second copies.
const BINARY: &str = "alluvium";
/// In tests every crate may use it; no other code may.
const TESTKIT: &str = "alluvium-testkit";

/// Each crate of the workspace and the ones it may use, in the order a row flows.
const MAY_USE: &[(&str, &[&str])] = &[
    ("alluvium-change", &[]),
    ("alluvium-source-postgres", &["alluvium-change"]),
    ("alluvium-lake", &["alluvium-change"]),
    ("alluvium-query", &["alluvium-lake", "alluvium-change"]),
    (
        "alluvium-pipeline",
        &[
            "alluvium-source-postgres",
            "alluvium-lake",
            "alluvium-change",
        ],
    ),
    (
        "alluvium-serve",
        &["alluvium-pipeline", "alluvium-query", "alluvium-change"],
    ),
    (
        BINARY,
        &[
            "alluvium-serve",
            "alluvium-pipeline",
            "alluvium-query",
            "alluvium-lake",
            "alluvium-source-postgres",
            "alluvium-change",
        ],
    ),
    (TESTKIT, &["alluvium-lake", "alluvium-change"]),
    // Measures the parts one by one; nothing uses it.
    (
        "alluvium-bench",
        &[
            "alluvium-lake",
            "alluvium-source-postgres",
            "alluvium-change",
        ],
    ),
    ("xtask", &[]),
];

/// A package of these names, or whose name starts with one that ends in `-`, is in the binary once.
const ONE_COPY: &[&str] = &[
    "arrow",
    "arrow-",
    "parquet",
    "parquet-",
    "datafusion",
    "datafusion-",
    "object_store",
    "roaring",
    "delta_kernel",
];

pub(super) fn faults(root: &Path) -> Result<Vec<Fault>> {
    let metadata = metadata(root)?;
    let mut faults = edges(&metadata)?;
    faults.extend(copies(&metadata)?);
    Ok(faults)
}

fn metadata(root: &Path) -> Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn list<'a>(value: &'a Value, name: &str) -> Result<&'a [Value]> {
    let list = value[name].as_array();
    list.map(Vec::as_slice)
        .with_context(|| format!("cargo metadata has no list \"{name}\""))
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value[name]
        .as_str()
        .with_context(|| format!("cargo metadata has no text \"{name}\""))
}

fn edges(metadata: &Value) -> Result<Vec<Fault>> {
    let members: BTreeSet<&str> = list(metadata, "workspace_members")?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let mut faults = Vec::new();
    for package in list(metadata, "packages")? {
        if !members.contains(text(package, "id")?) {
            continue;
        }
        let name = text(package, "name")?;
        let Some((_, may_use)) = MAY_USE.iter().find(|(member, _)| *member == name) else {
            let says = "is not in the table of crates (xtask/src/tidy/crates.rs)";
            faults.push(Fault::new(format!("crate {name}"), says));
            continue;
        };
        for dependency in list(package, "dependencies")? {
            // Only crates of the workspace have a path.
            if dependency["path"].is_null() {
                continue;
            }
            let used = text(dependency, "name")?;
            let test_servers = used == TESTKIT && dependency["kind"] == "dev";
            if !may_use.contains(&used) && !test_servers {
                let says = format!("may not use {used} (allowed: {})", may_use.join(", "));
                faults.push(Fault::new(format!("crate {name}"), says));
            }
        }
    }
    Ok(faults)
}

/// Packages of [`ONE_COPY`] of which the binary would hold several versions.
fn copies(metadata: &Value) -> Result<Vec<Fault>> {
    let mut packages = BTreeMap::new();
    for package in list(metadata, "packages")? {
        let named = (text(package, "name")?, text(package, "version")?);
        packages.insert(text(package, "id")?, named);
    }
    let mut used: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in list(&metadata["resolve"], "nodes")? {
        let normal = list(node, "deps")?.iter().filter(|dep| is_normal(dep));
        let ids = normal.map(|dep| text(dep, "pkg")).collect::<Result<_>>()?;
        used.insert(text(node, "id")?, ids);
    }
    let start = packages.iter().find(|(_, (name, _))| *name == BINARY);
    let (&start, _) = start.with_context(|| format!("no package {BINARY}"))?;

    let mut reached = BTreeSet::from([start]);
    let mut open = vec![start];
    while let Some(id) = open.pop() {
        for &next in used.get(id).into_iter().flatten() {
            if reached.insert(next) {
                open.push(next);
            }
        }
    }
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, version) in reached.iter().filter_map(|id| packages.get(id)) {
        if must_be_one(name) {
            versions.entry(name).or_default().insert(version);
        }
    }
    if versions.is_empty() {
        bail!("none of {ONE_COPY:?} is a dependency of {BINARY}: the check looks at nothing");
    }
    let several = versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1);
    Ok(several
        .map(|(name, versions)| {
            let all = versions.into_iter().collect::<Vec<_>>().join(", ");
            let says = format!("{name} is there in several versions: {all} (cargo tree -i {name})");
            Fault::new("Cargo.lock", says)
        })
        .collect())
}

fn is_normal(dependency: &Value) -> bool {
    dependency["dep_kinds"]
        .as_array()
        .is_none_or(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
}

fn must_be_one(name: &str) -> bool {
    ONE_COPY.iter().any(|one| {
        if one.ends_with('-') {
            name.starts_with(one)
        } else {
            name == *one
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn workspace(dependencies: &Value) -> Value {
        json!({
            "workspace_members": ["lake"],
            "packages": [{"id": "lake", "name": "alluvium-lake", "dependencies": dependencies}],
        })
    }

    #[test]
    fn only_listed_edges_are_allowed() -> Result<()> {
        let allowed = json!([
            {"name": "alluvium-change", "path": "/x", "kind": null},
            {"name": "alluvium-testkit", "path": "/x", "kind": "dev"},
            {"name": "serde", "path": null, "kind": null},
        ]);
        assert_eq!(edges(&workspace(&allowed))?, []);
        for (name, kind) in [
            ("alluvium-query", json!(null)),
            ("alluvium-testkit", json!(null)),
            ("alluvium-pipeline", json!("dev")),
        ] {
            let wrong = json!([{"name": name, "path": "/x", "kind": kind}]);
            assert_eq!(edges(&workspace(&wrong))?.len(), 1, "{name} was allowed");
        }
        Ok(())
    }

    #[test]
    fn a_second_copy_counts_only_where_the_binary_uses_it() -> Result<()> {
        let graph = |kind: Value| {
            let dep = |id: &str, kind: &Value| json!({"pkg": id, "dep_kinds": [{"kind": kind}]});
            json!({
                "packages": [
                    {"id": "bin", "name": "alluvium", "version": "0.1.0"},
                    {"id": "a59", "name": "arrow-array", "version": "59.3.0"},
                    {"id": "a60", "name": "arrow-array", "version": "60.0.0"},
                ],
                "resolve": {"nodes": [
                    {"id": "bin", "deps": [dep("a59", &json!(null)), dep("a60", &kind)]},
                    {"id": "a59", "deps": []},
                    {"id": "a60", "deps": []},
                ]},
            })
        };
        assert_eq!(copies(&graph(json!(null)))?.len(), 1);
        assert_eq!(copies(&graph(json!("dev")))?, []);
        Ok(())
    }
}
