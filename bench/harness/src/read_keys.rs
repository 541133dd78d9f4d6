//! The least that rebuilding a key index must read: one column of all live files.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use alluvium_change::{Error, Result};
use alluvium_lake::read::open_table;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

/// Reads `column` of every live file of the table in `dir`; deleted rows are read too.
pub(crate) fn read_keys(dir: &Path, column: &str) -> Result<Value> {
    let failed = |e: &dyn std::error::Error| Error::bug(format!("cannot read keys: {e}"));
    let since = Instant::now();
    let table = open_table(dir, None)?;
    let opened = since.elapsed().as_secs_f64();
    let (mut rows, mut batches) = (0, 0_u64);
    for file in &table.files {
        let opened = File::open(&file.path).map_err(|e| failed(&e))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(opened).map_err(|e| failed(&e))?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), [column]);
        let reader = builder
            .with_projection(mask)
            .with_batch_size(8192)
            .build()
            .map_err(|e| failed(&e))?;
        for batch in reader {
            let batch = batch.map_err(|e| failed(&e))?;
            rows += batch.num_rows();
            batches += 1;
        }
    }
    Ok(json!({
        "files": table.files.len(),
        "rows": rows,
        "batches": batches,
        "open_seconds": opened,
        "seconds": since.elapsed().as_secs_f64(),
    }))
}
