//! What must be refused, and what an error leaves behind.

use std::fs;

use alluvium_change::{Identity, Lsn, code};
use alluvium_lake::{Bronze, Lake, LakeSettings, OnConflict, Owner, Silver, SilverSettings, read};

use crate::support::{
    TestLake, batch, delete, insert, items, open_items, owner, read_items, row, update,
};

/// A table with the rows 1 and 2 at 110.
fn started(test: &TestLake) -> Silver {
    let schema = items(Identity::Key(vec![0]));
    let mut silver = open_items(test).unwrap();
    silver.begin_copy(Lsn(100)).unwrap();
    silver.finish_copy().unwrap();
    let changes = [insert(110, row(1, "a", "b")), insert(110, row(2, "a", "b"))];
    silver.apply(&batch(&schema, &changes)).unwrap();
    silver.commit(Lsn(110)).unwrap();
    silver
}

#[test]
fn a_conflict_stops_the_table_and_leaves_the_commit_before() {
    let test = TestLake::new();
    let schema = items(Identity::Key(vec![0]));
    let mut silver = started(&test);
    silver
        .apply(&batch(&schema, &[insert(120, row(3, "a", "b"))]))
        .unwrap();
    let error = silver
        .apply(&batch(&schema, &[update(130, row(9, "a", "b"))]))
        .unwrap_err();
    assert!(error.is(&code::CONFLICT));
    assert!(
        error
            .message()
            .contains("an update of (id=9) in table \"public.items\""),
        "{error}"
    );
    assert!(silver.commit(Lsn(130)).unwrap_err().is(&code::BUG));
    drop(silver);
    let parquet = |test: &TestLake| {
        fs::read_dir(test.lake.silver_dir("items"))
            .unwrap()
            .filter(|entry| {
                entry
                    .as_ref()
                    .unwrap()
                    .path()
                    .extension()
                    .is_some_and(|e| e == "parquet")
            })
            .count()
    };
    assert_eq!(parquet(&test), 1, "what was staged is gone");
    let silver = open_items(&test).unwrap();
    assert_eq!(silver.position(), Lsn(110));
    assert_eq!(
        read_items(silver.dir()),
        [row(1, "a", "b"), row(2, "a", "b")]
    );
}

#[test]
fn a_conflict_is_repaired_and_counted_when_asked() {
    let test = TestLake::new();
    let schema = items(Identity::Key(vec![0]));
    drop(started(&test));
    let settings = SilverSettings {
        on_conflict: OnConflict::Repair,
        ..SilverSettings::default()
    };
    let mut silver = Silver::open(&test.lake, &owner("items"), &schema, settings).unwrap();
    let changes = [
        insert(120, row(1, "again", "b")),
        update(120, row(9, "new", "b")),
        delete(120, 77),
    ];
    let applied = silver.apply(&batch(&schema, &changes)).unwrap();
    assert_eq!(applied.conflicts, 3);
    assert_eq!(silver.conflicts(), 3);
    silver.commit(Lsn(120)).unwrap();
    let now = [row(1, "again", "b"), row(2, "a", "b"), row(9, "new", "b")];
    assert_eq!(read_items(silver.dir()), now);
}

#[test]
fn a_table_without_identity_takes_inserts_only() {
    let test = TestLake::new();
    let schema = items(Identity::AppendOnly);
    let mut silver = Silver::open(
        &test.lake,
        &owner("items"),
        &schema,
        SilverSettings::default(),
    )
    .unwrap();
    silver.begin_copy(Lsn(100)).unwrap();
    silver.finish_copy().unwrap();
    let twice = [insert(110, row(1, "a", "b")), insert(110, row(1, "a", "b"))];
    silver.apply(&batch(&schema, &twice)).unwrap();
    silver.commit(Lsn(110)).unwrap();
    assert_eq!(read_items(silver.dir()).len(), 2);
    let error = silver
        .apply(&batch(&schema, &[delete(120, 1)]))
        .unwrap_err();
    assert!(error.is(&code::NO_IDENTITY), "{error}");
}

#[test]
fn a_table_of_another_source_is_refused() {
    let test = TestLake::new();
    drop(started(&test));
    let schema = items(Identity::Key(vec![0]));
    let other = Owner {
        system_identifier: "1".into(),
        ..owner("items")
    };
    let opened = Silver::open(&test.lake, &other, &schema, SilverSettings::default());
    let error = opened.err().unwrap();
    assert!(error.is(&code::LAKE_NOT_OURS), "{error}");
    assert!(
        error
            .detail()
            .unwrap()
            .contains("alluvium.system_identifier")
    );
}

#[test]
fn a_commit_of_someone_else_is_noticed() {
    let test = TestLake::new();
    let schema = items(Identity::Key(vec![0]));
    let mut silver = started(&test);
    let mut other = open_items(&test).unwrap();
    other.set_position(Lsn(115)).unwrap();
    silver
        .apply(&batch(&schema, &[insert(120, row(3, "a", "b"))]))
        .unwrap();
    let error = silver.commit(Lsn(120)).unwrap_err();
    assert!(error.is(&code::LAKE_FOREIGN), "{error}");
}

#[test]
fn missing_and_damaged_files_are_named() {
    type Damage = fn(&std::path::Path);
    let damages: [(&str, Damage); 4] = [
        ("removed", |path| fs::remove_file(path).unwrap()),
        ("cut", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("garbled", |path| {
            let length = fs::read(path).unwrap().len();
            fs::write(path, vec![7; length]).unwrap();
        }),
        ("empty", |path| fs::write(path, []).unwrap()),
    ];
    for (what, damage) in damages {
        let test = TestLake::new();
        let schema = items(Identity::Key(vec![0]));
        let mut silver = started(&test);
        silver.apply(&batch(&schema, &[delete(120, 1)])).unwrap();
        silver.commit(Lsn(120)).unwrap();
        drop(silver);
        let dir = test.lake.silver_dir("items");
        let table = read::open_table(&dir, None).unwrap();
        let name = table.files[0].path.clone();
        damage(&name);
        let error = open_items(&test).err().unwrap();
        assert!(error.is(&code::LAKE_CORRUPT), "{what}: {error}");
        assert!(
            error.message().contains(name.to_str().unwrap()),
            "{what}: {error}"
        );
        assert!(error.hint().contains("resync"));
    }
}

#[test]
fn a_damaged_log_or_deletion_vector_is_found() {
    for pick in [".bin", "00000000000000000003.json"] {
        let test = TestLake::new();
        let schema = items(Identity::Key(vec![0]));
        let mut silver = started(&test);
        silver.apply(&batch(&schema, &[delete(120, 1)])).unwrap();
        silver.commit(Lsn(120)).unwrap();
        drop(silver);
        let dir = test.lake.silver_dir("items");
        let found = [dir.clone(), dir.join("_delta_log")]
            .iter()
            .flat_map(|dir| fs::read_dir(dir).unwrap())
            .map(|entry| entry.unwrap().path())
            .find(|path| path.to_str().unwrap().ends_with(pick))
            .unwrap();
        fs::write(&found, b"{ not what it was").unwrap();
        let error = open_items(&test).err().unwrap();
        assert!(error.is(&code::LAKE_CORRUPT), "{pick}: {error:?}");
    }
}

#[test]
fn what_a_crash_leaves_behind_does_not_matter() {
    let test = TestLake::new();
    drop(started(&test));
    let log = test.lake.silver_dir("items").join("_delta_log");
    fs::write(log.join("left-behind.tmp"), b"half a com").unwrap();
    let silver = open_items(&test).unwrap();
    assert_eq!(silver.num_rows(), 2);
    assert!(!log.join("left-behind.tmp").exists());
    // A crash while the table was being created.
    let other = test.lake.bronze_dir("items").join("_delta_log");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("left-behind.tmp"), b"").unwrap();
    Bronze::open(&test.lake, &owner("items"), &items(Identity::Key(vec![0]))).unwrap();
}

#[test]
fn a_lake_that_cannot_be_made_is_an_error() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(Lake::open(&file.join("lake"), LakeSettings::default()).is_err());
    assert!(Lake::open(&file, LakeSettings::default()).is_err());
}

#[test]
fn tables_are_listed() {
    let test = TestLake::new();
    drop(started(&test));
    Bronze::open(&test.lake, &owner("items"), &items(Identity::Key(vec![0]))).unwrap();
    fs::create_dir_all(test.lake.silver_dir("no table")).unwrap();
    let tables = read::list_tables(test.lake.root()).unwrap();
    let names: Vec<_> = tables.iter().map(|t| (t.layer, t.name.as_str())).collect();
    assert_eq!(names, [("bronze", "items"), ("silver", "items")]);
    assert!(
        read::list_tables(&test.lake.root().join("nowhere"))
            .unwrap()
            .is_empty()
    );
}
