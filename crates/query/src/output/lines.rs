//! JSON, NDJSON and CSV: one line per row.

use std::collections::HashSet;
use std::io::Write;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;

use super::cell::{Cells, push_json_string};
use super::{Failure, Layout};

fn columns(batch: &RecordBatch) -> Result<Vec<Cells<'_>>, Failure> {
    let mut columns = Vec::with_capacity(batch.num_columns());
    for array in batch.columns() {
        columns.push(Cells::new(array.as_ref())?);
    }
    Ok(columns)
}

/// Objects, in one array or one per line.
pub(super) struct Json {
    /// `"name":`, made unique.
    keys: Vec<String>,
    array: bool,
    started: bool,
    line: String,
}

impl Json {
    pub(super) fn new(schema: &Schema, array: bool) -> Self {
        let keys = unique_names(schema)
            .iter()
            .map(|name| {
                let mut key = String::new();
                push_json_string(name, &mut key);
                key.push(':');
                key
            })
            .collect();
        Self {
            keys,
            array,
            started: false,
            line: String::new(),
        }
    }
}

impl Layout for Json {
    fn batch(&mut self, batch: &RecordBatch, out: &mut dyn Write) -> Result<(), Failure> {
        let columns = columns(batch)?;
        for row in 0..batch.num_rows() {
            self.line.clear();
            if self.array {
                self.line.push_str(if self.started { ",\n" } else { "[\n" });
            }
            self.started = true;
            self.line.push('{');
            for (place, (key, cells)) in self.keys.iter().zip(&columns).enumerate() {
                if place > 0 {
                    self.line.push(',');
                }
                self.line.push_str(key);
                cells.push_json(row, &mut self.line);
            }
            self.line.push('}');
            if !self.array {
                self.line.push('\n');
            }
            out.write_all(self.line.as_bytes())?;
        }
        Ok(())
    }

    fn finish(&mut self, _rows: u64, out: &mut dyn Write) -> Result<(), Failure> {
        if self.array {
            out.write_all(if self.started { b"\n]\n" } else { b"[]\n" })?;
        }
        Ok(())
    }
}

/// Column names where the second `id` is `id_2`: an object may not have one key twice.
fn unique_names(schema: &Schema) -> Vec<String> {
    let given: HashSet<&str> = schema
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .collect();
    let mut taken: HashSet<String> = HashSet::new();
    let mut names = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let mut name = field.name().clone();
        let mut number = 2_u64;
        while taken.contains(&name) || (number > 2 && given.contains(name.as_str())) {
            name = format!("{}_{number}", field.name());
            number += 1;
        }
        taken.insert(name.clone());
        names.push(name);
    }
    names
}

/// Comma-separated values with a header line.
pub(super) struct Csv {
    header: Option<String>,
    line: String,
    text: String,
}

impl Csv {
    pub(super) fn new(schema: &Schema) -> Self {
        let mut header = String::new();
        for (place, field) in schema.fields().iter().enumerate() {
            if place > 0 {
                header.push(',');
            }
            push_csv(field.name(), &mut header);
        }
        header.push('\n');
        let header = (!schema.fields().is_empty()).then_some(header);
        Self {
            header,
            line: String::new(),
            text: String::new(),
        }
    }

    fn begin(&mut self, out: &mut dyn Write) -> Result<(), Failure> {
        if let Some(header) = self.header.take() {
            out.write_all(header.as_bytes())?;
        }
        Ok(())
    }
}

impl Layout for Csv {
    fn batch(&mut self, batch: &RecordBatch, out: &mut dyn Write) -> Result<(), Failure> {
        self.begin(out)?;
        let columns = columns(batch)?;
        for row in 0..batch.num_rows() {
            self.line.clear();
            for (place, cells) in columns.iter().enumerate() {
                if place > 0 {
                    self.line.push(',');
                }
                if !cells.is_null(row) {
                    self.text.clear();
                    cells.push_text(row, &mut self.text);
                    push_csv(&self.text, &mut self.line);
                }
            }
            self.line.push('\n');
            out.write_all(self.line.as_bytes())?;
        }
        Ok(())
    }

    fn finish(&mut self, _rows: u64, out: &mut dyn Write) -> Result<(), Failure> {
        self.begin(out)
    }
}

/// A field, quoted when a reader would otherwise take it for something else: the empty string
/// (NULL), white space at an edge (trimmed by some), `\.` (PostgreSQL's end of data).
fn push_csv(text: &str, out: &mut String) {
    let quoted = text.is_empty()
        || text == "\\."
        || text.contains([',', '"', '\n', '\r'])
        || text.starts_with(char::is_whitespace)
        || text.ends_with(char::is_whitespace);
    if !quoted {
        out.push_str(text);
        return;
    }
    out.push('"');
    for character in text.chars() {
        if character == '"' {
            out.push('"');
        }
        out.push(character);
    }
    out.push('"');
}
