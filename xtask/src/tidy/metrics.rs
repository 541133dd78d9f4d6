//! The table of metrics in the documentation is made from the list in the code: `cargo xtask docs`
//! writes it, this check finds a stale one.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::{Fault, read};

const LIST: &str = "crates/pipeline/src/metrics.rs";
const PAGE: &str = "docs/reference/metrics.md";
const BEGIN: &str = "<!-- made by cargo xtask docs from crates/pipeline/src/metrics.rs -->\n";
const END: &str = "<!-- end of what is made -->\n";

pub(super) fn faults(root: &Path) -> Result<Vec<Fault>> {
    let page = read(&root.join(PAGE))?;
    let wanted = with_table(&page, &table(&read(&root.join(LIST))?)?)?;
    let stale = "does not list the metrics as the code has them: run cargo xtask docs";
    Ok(if page == wanted {
        Vec::new()
    } else {
        vec![Fault::new(PAGE, stale)]
    })
}

/// Brings the page up to date.
pub(crate) fn write(root: &Path) -> Result<()> {
    let path = root.join(PAGE);
    let page = with_table(&read(&path)?, &table(&read(&root.join(LIST))?)?)?;
    fs::write(&path, page).with_context(|| format!("cannot write {PAGE}"))
}

/// The page with `table` between its two marks.
fn with_table(page: &str, table: &str) -> Result<String> {
    let (before, rest) = page
        .split_once(BEGIN)
        .with_context(|| format!("{PAGE} has no line {BEGIN}"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("{PAGE} has no line {END}"))?;
    Ok(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

/// The list as a table. Each entry's head stands on one line:
/// `NAME "alluvium_name" Kind "unit" ["label"] "help"`.
fn table(source: &str) -> Result<String> {
    let (_, list) = source
        .split_once("\nmetrics! {\n")
        .with_context(|| format!("{LIST} has no list of metrics"))?;
    let list = list.split("\n}\n").next().unwrap_or(list);
    let mut table =
        String::from("| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n");
    let heads = list.lines().filter(|line| line.contains("\"alluvium_"));
    let mut rows = 0;
    for head in heads {
        let row = row(head).with_context(|| format!("{LIST}: cannot be read: {head}"))?;
        table.push_str(&row);
        rows += 1;
    }
    // Each has its samples on the next line.
    let entries = list.matches("=> Samples::").count();
    if rows == 0 || rows != entries {
        bail!("{LIST}: {rows} heads of metrics were found for {entries} entries");
    }
    Ok(table)
}

fn row(head: &str) -> Option<String> {
    let (name, rest) = literal(head)?;
    let (kind, rest) = rest.trim_start().split_once(' ')?;
    let (unit, rest) = literal(rest)?;
    let (labels, rest) = rest.trim_start().strip_prefix('[')?.split_once(']')?;
    let (help, _) = literal(rest)?;
    let labels: Vec<String> = labels
        .split(',')
        .filter_map(literal)
        .map(|(label, _)| format!("`{label}`"))
        .collect();
    Some(format!(
        "| `{name}` | {} | {unit} | {} | {} |\n",
        kind.to_lowercase(),
        labels.join(", "),
        help.replace('|', "\\|")
    ))
}

/// The next string literal of `text`, and what follows it.
fn literal(text: &str) -> Option<(String, &str)> {
    let (_, rest) = text.split_once('"')?;
    let mut value = String::new();
    let mut letters = rest.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, rest.get(at + 1..)?)),
            '\\' => value.push(letters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "x\nmetrics! {\n    A \"alluvium_a_bytes\" Gauge \"bytes\" [] \"Says \\\"a\\\" | b.\"\n        => Samples::X;\n    B \"alluvium_b_total\" Counter \"\" [\"table\", \"phase\"] \"B.\"\n        => Samples::Y;\n}\n";

    #[test]
    fn the_list_becomes_a_table() -> Result<()> {
        let table = table(LISTED)?;
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| `alluvium_a_bytes` | gauge | bytes |  | Says \"a\" \\| b. |",
                "| `alluvium_b_total` | counter |  | `table`, `phase` | B. |",
            ]
        );
        Ok(())
    }

    #[test]
    fn a_stale_page_is_noticed_and_a_written_one_stays() -> Result<()> {
        let page = format!("# M\n{BEGIN}| old |\n{END}\nmore\n");
        let made = with_table(&page, &table(LISTED)?)?;
        assert_ne!(made, page);
        assert_eq!(with_table(&made, &table(LISTED)?)?, made);
        assert!(made.starts_with("# M\n") && made.ends_with("\nmore\n"));
        assert!(with_table("# M\n", "").is_err());
        Ok(())
    }

    #[test]
    fn an_entry_that_cannot_be_read_is_no_silent_gap() {
        let broken = LISTED.replace("A \"alluvium_a_bytes\"", "A concat!(\"a\")");
        assert!(table(&broken).is_err());
        assert!(table("nothing").is_err());
    }
}
