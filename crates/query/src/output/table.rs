//! An aligned box for people.
//!
//! Widths come from the first [`SAMPLE_ROWS`] rows; a later longer cell widens its column from
//! there on, so nothing short of the cell limit is ever cut and memory stays bounded.

use std::io::Write;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::cell::{Cells, is_number};
use super::{Failure, Layout, Options};

/// Rows looked at before the first line is written.
pub(super) const SAMPLE_ROWS: usize = 1000;
/// Text held back at most, in bytes, while looking.
const SAMPLE_BYTES: usize = 4 << 20;

const DIM: &str = "\u{1b}[2m";
const RESET: &str = "\u{1b}[0m";

struct Column {
    name: String,
    width: usize,
    right: bool,
}

/// A cell as shown; `None` is NULL.
type Shown = Option<String>;

pub(super) struct Table {
    columns: Vec<Column>,
    max_cell_width: usize,
    color: bool,
    /// Rows held back until the widths are known; `None` after.
    sample: Option<Vec<Vec<Shown>>>,
    sample_bytes: usize,
    line: String,
}

impl Table {
    pub(super) fn new(schema: &Schema, options: &Options) -> Self {
        let max_cell_width = options.max_cell_width.max(4);
        let columns = schema
            .fields()
            .iter()
            .map(|field| {
                let name = shown(field.name(), max_cell_width);
                let width = name.width();
                Column {
                    name,
                    width,
                    right: is_number(field.data_type()),
                }
            })
            .collect();
        Self {
            columns,
            max_cell_width,
            color: options.color,
            sample: Some(Vec::new()),
            sample_bytes: 0,
            line: String::new(),
        }
    }

    fn widen(&mut self, row: &[Shown]) {
        for (column, cell) in self.columns.iter_mut().zip(row) {
            let width = cell.as_deref().map_or(NULL.len(), UnicodeWidthStr::width);
            column.width = column.width.max(width);
        }
    }

    /// Ends the sample: header, then the rows held back.
    fn begin(&mut self, out: &mut dyn Write) -> Result<(), Failure> {
        let Some(rows) = self.sample.take() else {
            return Ok(());
        };
        if self.columns.is_empty() {
            return Ok(());
        }
        self.rule('┌', '┬', '┐', out)?;
        self.line.clear();
        for column in &self.columns {
            self.line.push_str("│ ");
            push_aligned(&column.name, column, &mut self.line);
            self.line.push(' ');
        }
        self.line.push_str("│\n");
        out.write_all(self.line.as_bytes())?;
        self.rule('├', '┼', '┤', out)?;
        for row in rows {
            self.row(&row, out)?;
        }
        Ok(())
    }

    fn row(&mut self, row: &[Shown], out: &mut dyn Write) -> Result<(), Failure> {
        self.line.clear();
        for (column, cell) in self.columns.iter().zip(row) {
            self.line.push_str("│ ");
            match cell {
                Some(text) => push_aligned(text, column, &mut self.line),
                None if self.color => {
                    self.line.push_str(DIM);
                    push_aligned(NULL, column, &mut self.line);
                    self.line.push_str(RESET);
                }
                None => push_aligned(NULL, column, &mut self.line),
            }
            self.line.push(' ');
        }
        self.line.push_str("│\n");
        out.write_all(self.line.as_bytes())?;
        Ok(())
    }

    fn rule(
        &mut self,
        left: char,
        cross: char,
        right: char,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        self.line.clear();
        for (place, column) in self.columns.iter().enumerate() {
            self.line.push(if place == 0 { left } else { cross });
            self.line.extend(std::iter::repeat_n('─', column.width + 2));
        }
        self.line.push(right);
        self.line.push('\n');
        out.write_all(self.line.as_bytes())?;
        Ok(())
    }
}

const NULL: &str = "NULL";

impl Layout for Table {
    fn batch(&mut self, batch: &RecordBatch, out: &mut dyn Write) -> Result<(), Failure> {
        let mut columns = Vec::with_capacity(batch.num_columns());
        for array in batch.columns() {
            columns.push(Cells::new(array.as_ref())?);
        }
        let mut text = String::new();
        for row in 0..batch.num_rows() {
            let mut cells: Vec<Shown> = Vec::with_capacity(columns.len());
            for column in &columns {
                if column.is_null(row) {
                    cells.push(None);
                    continue;
                }
                text.clear();
                column.push_text(row, &mut text);
                // The word is kept apart from the missing value, also without colours.
                let cell = if text == NULL {
                    format!("\"{NULL}\"")
                } else {
                    shown(&text, self.max_cell_width)
                };
                cells.push(Some(cell));
            }
            self.widen(&cells);
            if let Some(sample) = &mut self.sample {
                self.sample_bytes += cells.iter().flatten().map(String::len).sum::<usize>();
                sample.push(cells);
                if sample.len() >= SAMPLE_ROWS || self.sample_bytes >= SAMPLE_BYTES {
                    self.begin(out)?;
                }
            } else {
                self.row(&cells, out)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, rows: u64, out: &mut dyn Write) -> Result<(), Failure> {
        self.begin(out)?;
        if !self.columns.is_empty() {
            self.rule('└', '┴', '┘', out)?;
        }
        let plural = if rows == 1 { "" } else { "s" };
        writeln!(out, "{rows} row{plural}")?;
        Ok(())
    }
}

/// `text` for one line of a screen: control and direction characters escaped (a value must not
/// steer the terminal), cut to `max_width` columns with an ellipsis.
fn shown(text: &str, max_width: usize) -> String {
    let mut shown = String::new();
    let mut width = 0;
    // Where to cut so that the ellipsis still fits.
    let mut cut = 0;
    for character in text.chars() {
        let start = shown.len();
        match character {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            _ if character.is_control() || steers(character) => {
                shown.extend(character.escape_unicode());
            }
            _ => shown.push(character),
        }
        width += shown.get(start..).map_or(0, |added| {
            added.chars().map(|c| c.width().unwrap_or(0)).sum::<usize>()
        });
        if width < max_width {
            cut = shown.len();
        }
        if width > max_width {
            shown.truncate(cut);
            shown.push('…');
            return shown;
        }
    }
    shown
}

/// Characters that reorder or hide text on a screen.
fn steers(character: char) -> bool {
    matches!(character, '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

fn push_aligned(text: &str, column: &Column, out: &mut String) {
    let padding = column.width.saturating_sub(text.width());
    if column.right {
        out.extend(std::iter::repeat_n(' ', padding));
        out.push_str(text);
    } else {
        out.push_str(text);
        out.extend(std::iter::repeat_n(' ', padding));
    }
}
