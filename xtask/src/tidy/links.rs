//! Links of the documentation: a linked file exists, and a link with a name in backticks,
//! ``[`name`](../crates/x/src/y.rs)``, points to a file that defines that name.
//!
//! So `docs/life-of-a-change.md`, which walks through named functions, cannot drift from the code.

use std::path::Path;

use anyhow::Result;

use super::{Fault, files_below, read, shown};

/// Must be there, and name at least this many definitions.
const LIFE: (&str, usize) = ("docs/life-of-a-change.md", 10);
const PAGES_OF_ROOT: &[&str] = &["README.md", "ARCHITECTURE.md", "CHANGELOG.md"];
const DEFINERS: &[&str] = &[
    "fn",
    "struct",
    "enum",
    "trait",
    "type",
    "const",
    "static",
    "mod",
    "macro_rules!",
];

struct Link<'a> {
    line: usize,
    text: &'a str,
    target: &'a str,
}

pub(super) fn faults(root: &Path) -> Result<Vec<Fault>> {
    let mut faults = Vec::new();
    let mut pages = files_below(&root.join("docs"), "md")?;
    pages.extend(files_below(&root.join("bench"), "md")?);
    pages.extend(
        PAGES_OF_ROOT
            .iter()
            .map(|name| root.join(name))
            .filter(|path| path.exists()),
    );
    for path in pages {
        let (name, text) = (shown(root, &path), read(&path)?);
        let dir = path.parent().unwrap_or(root);
        for link in links_in(&text) {
            if let Some(says) = fault_of(&link, dir)? {
                faults.push(Fault::new(format!("{name}:{}", link.line), says));
            }
        }
    }
    let (life, least) = LIFE;
    let text = read(&root.join(life)).unwrap_or_default();
    let named = links_in(&text)
        .iter()
        .filter(|link| defined_name(link).is_some())
        .count();
    if named < least {
        let says = format!("links {named} definitions, expected at least {least}");
        faults.push(Fault::new(life, says));
    }
    Ok(faults)
}

/// Inline links `[text](target)` outside of code blocks.
fn links_in(page: &str) -> Vec<Link<'_>> {
    let mut links = Vec::new();
    let mut in_code = false;
    for (at, line) in page.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let mut rest = line;
        while let Some((before, after)) = rest.split_once("](") {
            let text = before.rsplit_once('[').map_or("", |(_, text)| text);
            let Some((target, tail)) = after.split_once(')') else {
                break;
            };
            let line = at + 1;
            links.push(Link { line, text, target });
            rest = tail;
        }
    }
    links
}

/// The name that the linked Rust file must define: `name`, `name()` or `Type::name`.
fn defined_name<'a>(link: &Link<'a>) -> Option<&'a str> {
    let name = link.text.strip_prefix('`')?.strip_suffix('`')?;
    let (file, _) = link.target.split_once('#').unwrap_or((link.target, ""));
    let name = name.strip_suffix("()").unwrap_or(name);
    let is_path = name
        .chars()
        .all(|c| c.is_alphanumeric() || c == '_' || c == ':');
    (is_path && Path::new(file).extension().is_some_and(|ext| ext == "rs")).then_some(name)
}

fn fault_of(link: &Link<'_>, dir: &Path) -> Result<Option<String>> {
    let (file, _) = link.target.split_once('#').unwrap_or((link.target, ""));
    let is_elsewhere = file.is_empty() || file.contains("://") || file.starts_with("mailto:");
    if is_elsewhere {
        return Ok(None);
    }
    let path = dir.join(file);
    if !path.exists() {
        return Ok(Some(format!("links to {file}, which is not there")));
    }
    let Some(name) = defined_name(link) else {
        return Ok(None);
    };
    let source = read(&path)?;
    let missing = name
        .split("::")
        .last()
        .filter(|name| !defines(&source, name))
        .or_else(|| name.split("::").find(|part| !has_word(&source, part)));
    Ok(missing.map(|part| format!("{file} does not define \"{part}\"")))
}

fn defines(source: &str, name: &str) -> bool {
    DEFINERS
        .iter()
        .any(|definer| has_word(source, &format!("{definer} {name}")))
}

/// Whether `word` stands in `source` with no letter, digit or underscore beside it.
fn has_word(source: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    source.match_indices(word).any(|(at, _)| {
        let before = source.get(..at).and_then(|text| text.chars().next_back());
        let after = source
            .get(at + word.len()..)
            .and_then(|text| text.chars().next());
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_whole() {
        let source = "impl Merge {\n    pub async fn apply(&self) {}\n}\nstruct Planner;\n";
        assert!(defines(source, "apply") && defines(source, "Planner"));
        assert!(!defines(source, "app") && !defines(source, "Plan") && !defines(source, "Merge"));
        assert!(has_word(source, "Merge"));
    }

    #[test]
    fn links_and_names_are_found() {
        let page = "see [`Merge::apply`](a.rs) and [b](b.md#x)\n```\n[c](c.md)\n```\n[`d()`](d.rs)";
        let links = links_in(page);
        let seen: Vec<_> = links
            .iter()
            .map(|l| (l.line, l.target, defined_name(l)))
            .collect();
        assert_eq!(
            seen,
            [
                (1, "a.rs", Some("Merge::apply")),
                (1, "b.md#x", None),
                (5, "d.rs", Some("d"))
            ]
        );
    }

    #[test]
    fn a_link_to_a_name_that_is_gone_is_a_fault() -> Result<()> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tidy");
        let fault = |text, target| {
            fault_of(
                &Link {
                    line: 1,
                    text,
                    target,
                },
                &here,
            )
        };
        assert_eq!(fault("`fault_of`", "links.rs")?, None);
        assert_eq!(fault("`Link`", "links.rs#L1")?, None);
        assert_eq!(fault("elsewhere", "https://example.com/x.rs")?, None);
        assert!(fault("`fault_off`", "links.rs")?.is_some());
        // Put together, so that this file does not hold the word.
        let no_such_type = ["`Lin", "c::fault_of`"].concat();
        assert!(fault(&no_such_type, "links.rs")?.is_some());
        assert!(fault("text", "no-such-file.md")?.is_some());
        Ok(())
    }
}
