//! Every error code has its page `docs/errors/<ID>.md`, and every page its code.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};

use super::{Fault, files_below, read, shown};

const CODES: &str = "crates/change/src/code.rs";
const PAGES: &str = "docs/errors";
/// In this order, each with text below it.
const SECTIONS: &[&str] = &["What happened", "Why", "What to do", "Example output"];

pub(super) fn faults(root: &Path) -> Result<Vec<Fault>> {
    let codes = codes_in(&read(&root.join(CODES))?);
    if codes.is_empty() {
        bail!("no error codes found in {CODES}: has its form changed?");
    }
    let mut pages = BTreeMap::new();
    for path in files_below(&root.join(PAGES), "md")? {
        let id = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if id != "README" {
            pages.insert(id, (shown(root, &path), read(&path)?));
        }
    }
    let mut faults = Vec::new();
    for (at, (id, title)) in codes.iter().enumerate() {
        if codes.iter().take(at).any(|(before, _)| before == id) {
            faults.push(Fault::new(CODES, format!("{id} is used twice")));
            continue;
        }
        match pages.remove(id) {
            None => faults.push(Fault::new(
                CODES,
                format!("{id} has no page {PAGES}/{id}.md"),
            )),
            Some((name, page)) => faults.extend(of_page(&name, &page, id, title)),
        }
    }
    let orphans = pages
        .into_values()
        .map(|(name, _)| Fault::new(name, "no error has this code"));
    faults.extend(orphans);
    Ok(faults)
}

/// Id and title of each line `NAME "AL-..." Retry "title",` of the `codes!` block.
fn codes_in(source: &str) -> Vec<(String, String)> {
    source
        .lines()
        .take_while(|line| line.trim() != "#[cfg(test)]")
        .filter_map(|line| {
            let mut quoted = line.split('"').skip(1).step_by(2);
            let id = quoted.next().filter(|id| id.starts_with("AL-"))?;
            Some((id.to_owned(), quoted.next()?.to_owned()))
        })
        .collect()
}

fn of_page(name: &str, page: &str, id: &str, title: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    let heading = format!("# {id}: {title}");
    if page.lines().next() != Some(heading.as_str()) {
        faults.push(Fault::new(
            name,
            format!("does not open with \"{heading}\""),
        ));
    }
    let mut sections = page.split("\n## ").skip(1);
    for wanted in SECTIONS {
        let Some((heading, text)) = sections.next().and_then(|part| part.split_once('\n')) else {
            faults.push(Fault::new(name, format!("section \"{wanted}\" is missing")));
            continue;
        };
        if heading.trim() != *wanted {
            faults.push(Fault::new(
                name,
                format!("\"{heading}\" stands where \"{wanted}\" belongs"),
            ));
        } else if text.trim().is_empty() {
            faults.push(Fault::new(name, format!("section \"{wanted}\" is empty")));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# AL-X-001: it broke\n\n## What happened\na\n\n## Why\nb\n\n## What to do\nc\n\n## Example output\nd\n";

    #[test]
    fn codes_are_read_from_the_macro() {
        let source = "codes! {\n    A \"AL-X-001\" Never \"it broke\",\n        \"mend it\";\n}\n#[cfg(test)]\nB \"AL-T-001\" Never \"t\",\n";
        assert_eq!(
            codes_in(source),
            [("AL-X-001".to_owned(), "it broke".to_owned())]
        );
    }

    #[test]
    fn a_whole_page_has_no_fault() {
        assert_eq!(of_page("p", PAGE, "AL-X-001", "it broke"), []);
    }

    #[test]
    fn title_and_sections_are_checked() {
        assert_eq!(of_page("p", PAGE, "AL-X-001", "it burst").len(), 1);
        assert_eq!(
            of_page(
                "p",
                &PAGE.replace("## Why\nb", "## Why\n"),
                "AL-X-001",
                "it broke"
            )
            .len(),
            1
        );
        assert_eq!(
            of_page(
                "p",
                &PAGE.replace("## Example output\nd\n", ""),
                "AL-X-001",
                "it broke"
            )
            .len(),
            1
        );
        assert_eq!(
            of_page(
                "p",
                &PAGE.replace("## Why", "## Because"),
                "AL-X-001",
                "it broke"
            )
            .len(),
            1
        );
    }
}
