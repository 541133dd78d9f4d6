//! Source files: size of the production part, and the words a module opens with.

use std::path::Path;

use anyhow::Result;

use super::{Fault, files_below, read, shown};

/// A file is shorter than this, its tests not counted.
const LIMIT_LINES: usize = 700;

pub(super) fn faults(root: &Path) -> Result<Vec<Fault>> {
    let mut faults = Vec::new();
    for dir in ["crates", "bench/harness", "xtask"] {
        for path in files_below(&root.join(dir), "rs")? {
            faults.extend(of_file(&shown(root, &path), &read(&path)?));
        }
    }
    Ok(faults)
}

fn of_file(name: &str, text: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    // A `tests.rs` is the end of the module beside it, moved out.
    if !text.starts_with("//!") && !name.ends_with("/tests.rs") {
        let says = "does not open with //! (what it is, where it stands, its invariant)";
        faults.push(Fault::new(name, says));
    }
    let lines = production_lines(text);
    if !is_test_file(name) && lines >= LIMIT_LINES {
        let says = format!("{lines} lines without its tests, the limit is {LIMIT_LINES}: split it");
        faults.push(Fault::new(name, says));
    }
    faults
}

fn is_test_file(name: &str) -> bool {
    name.contains("/tests/") || name.ends_with("/tests.rs")
}

/// Lines before the inline test module, which stands last.
fn production_lines(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let opens_tests = |pair: &[&str]| {
        matches!(pair, [attribute, module]
            if attribute.trim() == "#[cfg(test)]" && module.trim_start().starts_with("mod "))
    };
    lines
        .windows(2)
        .position(opens_tests)
        .unwrap_or(lines.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(lines: usize, end: &str) -> String {
        format!("//! m\n{}{end}", "let x = 1;\n".repeat(lines - 1))
    }

    #[test]
    fn size_counts_without_tests() {
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "x\n".repeat(1000));
        assert_eq!(of_file("crates/a/src/b.rs", &long(699, &tests)), []);
        assert_eq!(of_file("crates/a/src/b.rs", &long(700, &tests)).len(), 1);
        assert_eq!(of_file("crates/a/src/b/tests.rs", &long(900, "")), []);
        assert_eq!(of_file("crates/a/tests/main.rs", &long(900, "")), []);
    }

    #[test]
    fn a_module_without_words_is_a_fault() {
        assert_eq!(of_file("crates/a/src/b.rs", "use std::fmt;\n").len(), 1);
        assert_eq!(of_file("crates/a/src/b.rs", "").len(), 1);
        assert_eq!(of_file("crates/a/tests/main.rs", "").len(), 1);
        assert_eq!(of_file("crates/a/src/b/tests.rs", "use super::*;\n"), []);
    }
}
