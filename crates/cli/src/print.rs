//! How results and errors look.

use std::fmt;
use std::io::Write as _;

use alluvium_change::{Error, Result, code};
use serde::Serialize;

use crate::args::Output;

/// An error as people see it: code and message, detail, hint, and what lay beneath.
pub(crate) struct ErrorText<'a>(pub &'a Error);

impl fmt::Display for ErrorText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = self.0;
        writeln!(f, "error[{}]: {}", error.code().id, error.message())?;
        if let Some(detail) = error.detail() {
            writeln!(f, "detail: {detail}")?;
        }
        let mut cause = std::error::Error::source(error);
        while let Some(beneath) = cause {
            writeln!(f, "cause: {beneath}")?;
            cause = beneath.source();
        }
        writeln!(f, "hint: {}", error.hint())
    }
}

/// A result that is a list of like things.
pub(crate) trait Rows {
    type Row: Serialize;
    fn rows(&self) -> &[Self::Row];
}

/// Prints a list in the format asked for; `Display` is the one for people.
///
/// # Errors
/// Standard output is gone.
pub(crate) fn rows<T: Rows + fmt::Display>(result: &T, output: Output) -> Result<()> {
    let text = match output {
        Output::Table => result.to_string(),
        Output::Json => format!("{}\n", json(result.rows())?),
        Output::Ndjson => {
            let lines = result.rows().iter().map(|row| Ok(json(row)? + "\n"));
            lines.collect::<Result<String>>()?
        }
        Output::Csv => csv(result.rows())?,
    };
    write(&text)
}

/// Prints one JSON document.
///
/// # Errors
/// Standard output is gone.
pub(crate) fn document<T: Serialize>(value: &T) -> Result<()> {
    write(&(json(value)? + "\n"))
}

/// Writes text to standard output; a reader that has gone away is no error.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn write(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::new(&code::USAGE, "cannot write to standard output").with_source(error))
        }
        _ => Ok(()),
    }
}

fn json<T: Serialize + ?Sized>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| Error::bug("a result cannot be written as JSON").with_source(error))
}

fn csv<T: Serialize>(rows: &[T]) -> Result<String> {
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        let value = serde_json::to_value(row)
            .map_err(|error| Error::bug("a result cannot be written as CSV").with_source(error))?;
        let serde_json::Value::Object(fields) = value else {
            return Err(Error::bug("a row of a result is not an object"));
        };
        let line = |cells: Vec<String>| cells.join(",") + "\n";
        if at == 0 {
            text.push_str(&line(fields.keys().map(|name| csv_cell(name)).collect()));
        }
        let cells = fields.values().map(|value| match value {
            serde_json::Value::Null => String::new(),
            serde_json::Value::String(text) => csv_cell(text),
            other => csv_cell(&other.to_string()),
        });
        text.push_str(&line(cells.collect()));
    }
    Ok(text)
}

fn csv_cell(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// Columns of text, each as wide as its widest cell; numbers to the right.
pub(crate) struct Grid {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    #[must_use]
    pub(crate) fn new(header: &[&'static str]) -> Self {
        Self {
            header: header.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            widest.max(self.header.get(column).map_or(0, |name| name.len()))
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let header: Vec<String> = self.header.iter().map(|name| (*name).to_owned()).collect();
        for row in std::iter::once(&header).chain(&self.rows) {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
                let number = cell.starts_with(|c: char| c.is_ascii_digit());
                if number {
                    line.push_str(&pad);
                }
                line.push_str(cell);
                if !number {
                    line.push_str(&pad);
                }
                line.push_str("  ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// `1234567` as `1,234,567`.
#[must_use]
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A time as people say it.
#[must_use]
pub(crate) fn duration_ms(ms: u64) -> String {
    let secs = ms / 1000;
    match ms {
        0 => "0 s".to_owned(),
        1..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{secs}.{} s", ms % 1000 / 100),
        60_000..3_600_000 => format!("{} min {} s", secs / 60, secs % 60),
        _ => format!("{} h {} min", count(secs / 3600), secs / 60 % 60),
    }
}

/// A size with a binary unit.
#[must_use]
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let mut size = number as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("");
    if unit == 0 {
        format!("{number} {name}")
    } else {
        format!("{size:.1} {name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(3 << 20), "3.0 MiB");
        assert_eq!(duration_ms(0), "0 s");
        assert_eq!(duration_ms(82), "82 ms");
        assert_eq!(duration_ms(1950), "1.9 s");
        assert_eq!(duration_ms(125_000), "2 min 5 s");
        assert_eq!(duration_ms(7_260_000), "2 h 1 min");
    }

    #[test]
    fn csv_cells_are_quoted_when_needed() {
        assert_eq!(csv_cell("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(csv_cell("plain"), "plain");
    }
}
