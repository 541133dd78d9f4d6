//! `alluvium errors`: the list of codes, and each one's page.

use std::fmt;
use std::process::ExitCode;

use alluvium_change::{Error, Result, code};
use serde::Serialize;

use crate::args::{Errors, Output};
use crate::print::{self, Grid};

include!(concat!(env!("OUT_DIR"), "/error_pages.rs"));

#[derive(Serialize)]
struct Row {
    code: &'static str,
    title: &'static str,
    hint: &'static str,
}

struct Report(Vec<Row>);

impl print::Rows for Report {
    type Row = Row;

    fn rows(&self) -> &[Row] {
        &self.0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut grid = Grid::new(&["code", "meaning"]);
        for row in &self.0 {
            grid.push(vec![row.code.to_owned(), row.title.to_owned()]);
        }
        writeln!(f, "{grid}\nexplain one: alluvium errors CODE")
    }
}

/// Lists all codes, or prints one's page.
pub(crate) fn errors(args: &Errors, output: Output) -> Result<ExitCode> {
    let row = |code: &&'static code::Code| Row {
        code: code.id,
        title: code.title,
        hint: code.hint,
    };
    let Some(wanted) = &args.code else {
        print::rows(&Report(code::ALL.iter().map(row).collect()), output)?;
        return Ok(ExitCode::SUCCESS);
    };
    let Some(code) = code::find(wanted) else {
        return Err(
            Error::new(&code::USAGE, format!("there is no error code \"{wanted}\""))
                .with_hint("list all with: alluvium errors"),
        );
    };
    match PAGES.iter().find(|(id, _)| *id == code.id) {
        Some((_, page)) if output == Output::Table => print::write(page)?,
        _ => print::rows(&Report(vec![row(&code)]), output)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_page() {
        for code in code::ALL {
            assert!(
                PAGES.iter().any(|(id, _)| *id == code.id),
                "no docs/errors/{}.md",
                code.id
            );
        }
    }
}
