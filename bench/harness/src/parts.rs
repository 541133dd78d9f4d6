//! The pure parts on one core: how many rows a second each can do at most.
//!
//! Input is real: bytes of a `COPY` and messages of a slot, held in memory before the clock starts.

use std::fs::File;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use alluvium_change::{ChangeBatch, Error, Op, Result};
use alluvium_lake::bench_support::{Index, deletion_vector_bytes, write_data_file};
use alluvium_lake::{Compression, LakeSettings};
use alluvium_source_postgres::capture::{Assembler, Step};
use alluvium_source_postgres::catalog::{SourceTable, TableSelection, load_tables};
use alluvium_source_postgres::connect::{ConnectOptions, connect};
use alluvium_source_postgres::copy::CopyReader;
use arrow::array::RecordBatch;
use bytes::Bytes;
use futures::TryStreamExt as _;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression as ParquetCompression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::{Map, Value, json};
use tokio_postgres::Client;

const ROUNDS: usize = 5;
const BATCH_BYTES: usize = 4 << 20;
/// Rows collected before batches are taken, as under backlog.
const CUT_BYTES: usize = 32 << 20;
const INDEX_KEYS: u64 = 2_000_000;
const DELETED_ROWS: u32 = 100_000;
const MEMORY_BYTES: usize = 256 << 20;

/// Where the input comes from.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) url: String,
    pub(crate) table: String,
    pub(crate) slot: String,
    pub(crate) publication: String,
    pub(crate) scratch: PathBuf,
}

struct Loaded {
    table: SourceTable,
    copied: Vec<Bytes>,
    messages: Vec<Vec<u8>>,
    /// The same with values in binary form.
    binary_messages: Vec<Vec<u8>>,
}

/// Rates by part; each the values of all rounds.
pub(crate) fn measure(input: &Input) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::bug(e.to_string()))?;
    let loaded = runtime.block_on(load(input))?;
    let mut parts = Map::new();
    let copied = rates(&mut parts, "copy_decode_rows", || {
        let batches = runtime.block_on(decode_copy(&loaded))?;
        Ok((count(&batches), batches))
    })?;
    let changes = rates(&mut parts, "pgoutput_decode_rows", || {
        let batches = decode_stream(&loaded, &loaded.messages)?;
        Ok((batches.iter().map(ChangeBatch::num_rows).sum(), batches))
    })?;
    rates(&mut parts, "pgoutput_binary_decode_rows", || {
        let batches = decode_stream(&loaded, &loaded.binary_messages)?;
        Ok((batches.iter().map(ChangeBatch::num_rows).sum(), batches))
    })?;
    plan_rates(&mut parts, changes)?;
    index_rates(&mut parts)?;
    rates(&mut parts, "deletion_vector_rows", || {
        let rows: Vec<u32> = (0..DELETED_ROWS)
            .map(|n| n.wrapping_mul(7919) % 1_000_000)
            .collect();
        Ok((rows.len(), black_box(deletion_vector_bytes(&rows)?)))
    })?;
    encode_rates(&mut parts, &copied, &input.scratch)?;
    let source = vec![1_u8; MEMORY_BYTES];
    let mut target = vec![0_u8; MEMORY_BYTES];
    rates(&mut parts, "memory_copy_bytes", || {
        target.copy_from_slice(black_box(&source));
        black_box(&mut target);
        Ok((MEMORY_BYTES, ()))
    })?;
    Ok(Value::Object(parts))
}

/// Runs `work` some times, which returns how much it did, and notes how much that is a second.
fn rates<T>(
    parts: &mut Map<String, Value>,
    name: &str,
    mut work: impl FnMut() -> Result<(usize, T)>,
) -> Result<T> {
    let mut values = Vec::with_capacity(ROUNDS);
    let mut last = work()?.1;
    for _ in 0..ROUNDS {
        let since = Instant::now();
        let (done, output) = work()?;
        #[allow(clippy::cast_precision_loss, reason = "a rate")]
        values.push(done as f64 / since.elapsed().as_secs_f64());
        last = output;
    }
    parts.insert(name.to_owned(), json!(values));
    Ok(last)
}

/// Planning as if each row had been there, and was updated.
fn plan_rates(parts: &mut Map<String, Value>, mut changes: Vec<ChangeBatch>) -> Result<()> {
    let planned: usize = changes.iter().map(ChangeBatch::num_rows).sum();
    let empty = Index::default();
    rates(parts, "plan_insert_changes", || {
        for batch in &changes {
            black_box(empty.plan(batch)?);
        }
        Ok((planned, ()))
    })?;
    let mut index = Index::default();
    // Keys count from 1.
    for (row, key) in (0..u32::MAX).zip(1..=planned as u64) {
        index.insert(key, row);
    }
    for batch in &mut changes {
        batch.ops.fill(Op::Update);
    }
    rates(parts, "plan_update_changes", || {
        for batch in &changes {
            black_box(index.plan(batch)?);
        }
        Ok((planned, ()))
    })
}

fn index_rates(parts: &mut Map<String, Value>) -> Result<()> {
    // All keys, in an order without order.
    let keys: Vec<u64> = (0..INDEX_KEYS)
        .map(|n| n.wrapping_mul(7_368_787) % INDEX_KEYS)
        .collect();
    let fill = |index: &mut Index| {
        for key in &keys {
            index.insert(*key, u32::try_from(*key).unwrap_or(u32::MAX));
        }
    };
    let mut index = rates(parts, "index_insert_keys", || {
        let mut index = Index::default();
        fill(&mut index);
        Ok((keys.len(), index))
    })?;
    rates(parts, "index_update_keys", || {
        fill(&mut index);
        Ok((keys.len(), ()))
    })?;
    rates(parts, "index_lookup_keys", || {
        let found = keys.iter().filter(|key| index.contains(**key)).count();
        Ok((keys.len(), black_box(found)))
    })?;
    parts.insert("index_bytes".to_owned(), json!(index.memory_bytes()));
    Ok(())
}

fn encode_rates(parts: &mut Map<String, Value>, rows: &[RecordBatch], dir: &Path) -> Result<()> {
    let settings = LakeSettings {
        compression: Compression::Zstd(1),
        fsync: false,
        ..LakeSettings::default()
    };
    rates(parts, "encode_rows", || {
        let name = "encoded.parquet";
        let bytes = write_data_file(dir, name, rows, &settings)?;
        std::fs::remove_file(dir.join(name)).map_err(|e| Error::bug(e.to_string()))?;
        Ok((count(rows), black_box(bytes)))
    })?;
    rates(parts, "bare_encode_rows", || {
        let path = dir.join("bare.parquet");
        bare_encode(&path, rows).map_err(|e| Error::bug(e.to_string()))?;
        std::fs::remove_file(&path).map_err(|e| Error::bug(e.to_string()))?;
        Ok((count(rows), ()))
    })
}

/// The encoder as it is, with the settings silver uses.
fn bare_encode(
    path: &Path,
    rows: &[RecordBatch],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let Some(first) = rows.first() else {
        return Ok(());
    };
    let properties = WriterProperties::builder()
        .set_compression(ParquetCompression::ZSTD(ZstdLevel::try_new(1)?))
        .set_max_row_group_row_count(Some(1 << 20))
        .build();
    let mut writer = ArrowWriter::try_new(File::create(path)?, first.schema(), Some(properties))?;
    for batch in rows {
        writer.write(batch)?;
        if writer.memory_size() > 32 << 20 {
            writer.flush()?;
        }
    }
    writer.finish()?;
    Ok(())
}

fn count(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

async fn decode_copy(loaded: &Loaded) -> Result<Vec<RecordBatch>> {
    let mut reader = CopyReader::of_chunks(&loaded.table, loaded.copied.clone(), BATCH_BYTES);
    let mut batches = Vec::new();
    while let Some(batch) = reader.next().await? {
        batches.push(batch);
    }
    Ok(batches)
}

fn decode_stream(loaded: &Loaded, messages: &[Vec<u8>]) -> Result<Vec<ChangeBatch>> {
    let mut assembler = Assembler::new();
    assembler.know(Arc::new(loaded.table.clone()))?;
    let mut batches = Vec::new();
    for (number, message) in messages.iter().enumerate() {
        if let Step::Unknown(_) | Step::Failed(_) = assembler.handle(message)? {
            return Err(Error::bug(
                "the slot holds changes that do not fit the table",
            ));
        }
        if number % 1024 == 0 && !assembler.in_transaction() && assembler.memory_bytes() > CUT_BYTES
        {
            batches.extend(assembler.take_batches()?);
        }
    }
    batches.extend(assembler.take_batches()?);
    Ok(batches)
}

async fn load(input: &Input) -> Result<Loaded> {
    let options = ConnectOptions::parse(&input.url, None)?;
    let client = connect(&options).await?;
    let selection = TableSelection {
        include: vec![format!("public.{}", input.table)],
        ..TableSelection::default()
    };
    let table = load_tables(&client, &selection).await?.into_iter().next();
    let table = table.ok_or_else(|| Error::bug("there is no such table"))?;
    let failed = |e: tokio_postgres::Error| {
        let says = e
            .as_db_error()
            .map_or_else(|| e.to_string(), ToString::to_string);
        Error::bug(format!("cannot load: {says}"))
    };
    let copied = copy_bytes(&client, &input.table).await.map_err(failed)?;
    let peek = "SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', $2, 'binary', $3)";
    let mut forms = Vec::new();
    for binary in ["false", "true"] {
        let rows = client
            .query(peek, &[&input.slot, &input.publication, &binary])
            .await
            .map_err(failed)?;
        forms.push(rows.iter().map(|row| row.get(0)).collect());
    }
    Ok(Loaded {
        table,
        copied,
        binary_messages: forms.pop().unwrap_or_default(),
        messages: forms.pop().unwrap_or_default(),
    })
}

async fn copy_bytes(
    client: &Client,
    table: &str,
) -> std::result::Result<Vec<Bytes>, tokio_postgres::Error> {
    let sql = format!("COPY (SELECT * FROM public.\"{table}\") TO STDOUT (FORMAT binary)");
    client.copy_out(&sql).await?.try_collect().await
}
