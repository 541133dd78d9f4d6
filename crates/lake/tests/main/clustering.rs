//! Files whose rows are in the order of some columns: `cluster_by`.

use std::path::Path;
use std::sync::Arc;

use alluvium_change::{Error, Identity, Lsn, TableSchema, code};
use alluvium_lake::{
    ClusterBy, CompactionSettings, LakeSettings, RestingTable, Silver, SilverSettings, read,
};
use arrow::array::AsArray as _;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::support::{TestLake, batch, delete, insert, items, owner, read_items, row, update};

const FILES: CompactionSettings = CompactionSettings {
    small_files: 3,
    deleted_percent: 50,
    least_deleted_rows: 1,
    kept_percent: u32::MAX,
    sort_small: false,
};

fn by(columns: &[&str]) -> ClusterBy {
    ClusterBy::Columns(columns.iter().map(|&name| name.to_owned()).collect())
}

fn try_open(
    test: &TestLake,
    schema: &Arc<TableSchema>,
    cluster_by: ClusterBy,
) -> Result<Silver, Error> {
    let settings = SilverSettings {
        cluster_by,
        ..SilverSettings::default()
    };
    Silver::open(&test.lake, &owner("items"), schema, settings)
}

fn open(test: &TestLake, cluster_by: ClusterBy) -> Silver {
    try_open(test, &items(Identity::Key(vec![0])), cluster_by).unwrap()
}

/// Three files, in which `small` falls and then begins again.
fn fill(silver: &mut Silver) {
    silver.begin_copy(Lsn(100)).unwrap();
    silver.finish_copy().unwrap();
    let schema = items(Identity::Key(vec![0]));
    for n in 0..3_u16 {
        let lsn = 200 + u64::from(n);
        let ids = (n * 400)..(n * 400 + 400);
        let rows =
            ids.map(|id| insert(lsn, row(id.into(), &format!("{:04}", 9999 - id % 600), "b")));
        silver
            .apply(&batch(&schema, &rows.collect::<Vec<_>>()))
            .unwrap();
        silver.commit(Lsn(lsn)).unwrap();
    }
}

/// The texts of `column`, of each file, in the order in which they are written.
fn texts(dir: &Path, column: &str) -> Vec<Vec<String>> {
    let table = read::open_table(dir, None).unwrap();
    let texts = |file: &read::DataFile| {
        let file = std::fs::File::open(&file.path).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let mut texts = Vec::new();
        for rows in reader.build().unwrap() {
            let rows = rows.unwrap();
            let column = rows.column_by_name(column).unwrap().as_string::<i32>();
            texts.extend(
                column
                    .iter()
                    .map(|text| text.unwrap_or_default().to_owned()),
            );
        }
        texts
    };
    table.files.iter().map(texts).collect()
}

#[test]
fn rows_are_sorted_where_files_become_one_and_changes_go_on() {
    // Parts of a few rows, or all of them in memory.
    for staging_bytes in [1, 32 << 20] {
        let settings = LakeSettings {
            fsync: false,
            staging_bytes,
            ..LakeSettings::default()
        };
        let test = TestLake::with_index(settings, usize::MAX);
        let schema = items(Identity::Key(vec![0]));
        let mut silver = open(&test, by(&["small"]));
        fill(&mut silver);
        let job = silver.take_compaction_job(&FILES).unwrap().unwrap();
        let done = job.run(&|_| true).unwrap().unwrap();
        let change = |silver: &mut Silver, lsn: u64, from: i64| {
            let changes = [
                delete(lsn, from),
                update(lsn, row(from + 500, "0000", "b")),
                insert(lsn, row(from + 5000, "new", "b")),
            ];
            silver.apply(&batch(&schema, &changes)).unwrap();
            silver.commit(Lsn(lsn)).unwrap();
        };
        change(&mut silver, 300, 7);
        let before = read_items(silver.dir());
        silver.adopt_compaction(done).unwrap().unwrap();
        assert_eq!(read_items(silver.dir()), before);
        silver.check_index().unwrap();
        let files = texts(silver.dir(), "small");
        let sorted = files.iter().find(|file| file.len() == 1200).unwrap();
        assert!(sorted.is_sorted());
        change(&mut silver, 400, 8);
        silver.save_index();
        drop(silver);
        let mut silver = open(&test, by(&["small"]));
        silver.check_index().unwrap();
        // Moved a second time, one order on top of another.
        change(&mut silver, 500, 9);
        let job = silver
            .take_compaction_job(&CompactionSettings::by_hand())
            .unwrap()
            .unwrap();
        let done = job.run(&|_| true).unwrap().unwrap();
        change(&mut silver, 600, 10);
        silver.adopt_compaction(done).unwrap().unwrap();
        change(&mut silver, 700, 11);
        silver.check_index().unwrap();
        let rows = read_items(silver.dir());
        assert_eq!(rows.len(), 1200);
        assert!((7..12).all(|id| rows.iter().all(|row| row.id != id)));
        assert!((507..512).all(|id| {
            rows.iter()
                .any(|row| row.id == id && row.small.as_deref() == Some("0000"))
        }));
    }
}

#[test]
fn another_order_is_taken_on_by_hand_in_a_resting_lake() {
    let test = TestLake::new();
    let mut silver = open(&test, by(&["small"]));
    fill(&mut silver);
    let dir = silver.dir().to_owned();
    drop(silver);
    let optimize = || {
        let tables = read::list_tables(test.lake.root()).unwrap();
        let name = tables.iter().find(|table| table.layer == "silver").unwrap();
        let app_id = |_: &str| owner("items").app_id();
        let mut table = RestingTable::open(name, test.lake.settings(), &app_id).unwrap();
        table.optimize().unwrap();
        texts(&dir, "small")
    };
    let by_small = optimize();
    assert!(by_small.len() == 1 && by_small[0].is_sorted());
    let version = || read::open_table(&dir, None).unwrap().version;
    let settled = version();
    assert_eq!(optimize(), by_small);
    assert_eq!(version(), settled, "nothing is left to do");
    drop(open(&test, ClusterBy::Key));
    let by_id = optimize();
    assert!(!by_id[0].is_sorted());
    assert_eq!(by_id[0][0], "9999");
    drop(open(&test, ClusterBy::Nothing));
    let settled = version();
    optimize();
    assert_eq!(version(), settled);
}

#[test]
fn an_order_that_cannot_be_is_refused() {
    let test = TestLake::new();
    let refused = |identity: Identity, by: ClusterBy| {
        let error = try_open(&test, &items(identity), by).err().unwrap();
        assert!(error.is(&code::CONFIG_VALUE));
        (error.to_string(), error.hint().to_owned())
    };
    let (what, _) = refused(Identity::Key(vec![0]), by(&["id", "price"]));
    let expected = "cluster_by of table \"public.items\" names \"price\", which is no column of it";
    assert_eq!(what, expected);
    let (what, hint) = refused(Identity::WholeRow, ClusterBy::Key);
    assert!(what.contains("\"public.items\" is \"key\", and the table has none"));
    assert!(hint.contains("cluster_by = ["), "{hint}");
}
