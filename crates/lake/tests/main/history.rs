//! Random histories leave in silver exactly the rows they leave in the source.

use std::time::Duration;

use alluvium_change::{Identity, Lsn};
use alluvium_lake::{
    Bronze, ClusterBy, Compacted, CompactionSettings, LakeSettings, MergeMode, MetadataColumn,
    OnConflict, Silver, SilverSettings,
};

use crate::support::{TestLake, batch, items, owner, read_items, view_items};
use alluvium_testkit::history::{Random, Source, doubled};

/// Applies random transactions in random pieces, opening the table again now and then.
fn run(seed: u64, identity: Identity, settings: LakeSettings) -> Seen {
    run_in(&TestLake::with(settings), seed, identity)
}

/// What happened in a history.
#[derive(Debug, Default)]
struct Seen {
    /// Indexes that were read back.
    read_back: usize,
    /// Times files were written anew as one.
    compacted: usize,
}

/// Of all kinds, by turns.
fn silver_settings(seed: u64) -> SilverSettings {
    SilverSettings {
        on_conflict: OnConflict::Stop,
        change_data_feed: seed.is_multiple_of(4),
        longest_pause: Duration::ZERO,
        cluster_by: if seed.is_multiple_of(3) {
            ClusterBy::Columns(vec!["small".to_owned()])
        } else {
            ClusterBy::Nothing
        },
        merge_mode: if seed.is_multiple_of(5) {
            let commit_every = Duration::ZERO;
            MergeMode::CopyOnWrite { commit_every }
        } else {
            MergeMode::DeletionVectors
        },
        metadata_columns: if seed.is_multiple_of(2) {
            vec![
                MetadataColumn::CommitLsn,
                MetadataColumn::CommitTime,
                MetadataColumn::Op,
            ]
        } else {
            Vec::new()
        },
    }
}

fn run_in(test: &TestLake, seed: u64, identity: Identity) -> Seen {
    let mut seen = Seen::default();
    let saves = test.lake.settings().index.dir.is_some();
    let schema = items(identity.clone());
    let owner = owner("items");
    let silver_settings = silver_settings(seed);
    let open = || Silver::open(&test.lake, &owner, &schema, silver_settings.clone()).unwrap();
    let mut silver = open();
    let mut bronze = Bronze::open(&test.lake, &owner, &schema).unwrap();
    silver.begin_copy(Lsn(100)).unwrap();
    silver.finish_copy().unwrap();
    let mut source = Source::new(seed, identity, 40);
    let mut random = Random(seed ^ 0xABCD);
    let mut held = None;
    let mut compacted: Option<Compacted> = None;
    for round in 0..12 {
        let mut all = Vec::new();
        for _ in 0..1 + random.below(4) {
            let size = 1 + usize::try_from(random.below(40)).unwrap();
            all.extend(source.transaction(size));
        }
        // Pieces end where no two rows have one key: between the two steps of an exchange a key is
        // double.
        let mut from = 0;
        while from < all.len() {
            let mut to = (from + 1 + usize::try_from(random.below(30)).unwrap()).min(all.len());
            while to < all.len() && doubled(&all[..to]) {
                to += 1;
            }
            let piece = batch(&schema, &all[from..to]);
            let encoded = bronze.stage(&piece).unwrap();
            silver.apply_encoded(&piece, encoded.as_ref()).unwrap();
            from = to;
        }
        let view = silver.view(Lsn(source.lsn)).unwrap().unwrap();
        assert_eq!(
            view_items(&view),
            source.heap.rows(),
            "seed {seed} view {round}"
        );
        assert_eq!(view.position, Lsn(source.lsn));
        if let Some((view, rows)) = held.replace((view, source.heap.rows())) {
            assert_eq!(
                view_items(&view),
                rows,
                "seed {seed}: a view held over round {round}"
            );
        }
        bronze.commit(Lsn(source.lsn)).unwrap();
        let before = silver.version();
        let version = silver.commit(Lsn(source.lsn)).unwrap();
        if let Some(version) = version {
            assert_eq!(version, before + 1, "one commit");
            assert_eq!(silver.position(), Lsn(source.lsn));
            assert!(silver.is_ahead_of(Lsn(source.lsn - 1)));
        }
        assert!(!silver.is_ahead_of(Lsn(source.lsn)));
        if let Some(job) = silver.take_checkpoint_job(false) {
            silver.adopt_checkpoint(job.run()).unwrap();
        }
        assert_eq!(silver.num_rows(), source.heap.rows().len() as u64);
        let adopts = random.chance(60);
        seen.compacted += usize::from(compact(&mut silver, &mut compacted, adopts));
        compact_bronze(&mut bronze);
        if random.chance(30) {
            if saves && random.chance(60) {
                silver.save_index();
            }
            drop(silver);
            silver = open();
            seen.read_back += usize::from(silver.index_read_back());
        }
        silver.check_index().unwrap();
        assert_eq!(
            read_items(silver.dir()),
            source.heap.rows(),
            "seed {seed} round {round}"
        );
        assert_eq!(silver.index_len(), source.heap.rows().len());
        // What was applied is skipped when it comes again.
        let again = silver.apply(&batch(&schema, &all)).unwrap();
        if version.is_some() {
            assert_eq!(again.skipped, all.len() as u64);
            assert!(!silver.has_staged());
        } else {
            drop(silver);
            silver = open();
            silver.set_position(Lsn(source.lsn)).unwrap();
        }
    }
    seen
}

/// Begins a compaction where there is none; adopts it now, before more changes come, or later. Says
/// whether files were put in place.
fn compact(silver: &mut Silver, begun: &mut Option<Compacted>, adopts: bool) -> bool {
    if begun.is_none()
        && let Some(job) = silver.take_compaction_job(&eager()).unwrap()
    {
        *begun = job.run(&|_| true).unwrap();
    }
    match begun.take() {
        Some(done) if adopts => silver.adopt_compaction(done).unwrap().is_some(),
        later => {
            *begun = later;
            false
        }
    }
}

fn compact_bronze(bronze: &mut Bronze) {
    if let Some(job) = bronze.take_compaction_job(&eager()) {
        let done = job.run(&|_| true).unwrap().unwrap();
        bronze.adopt_compaction(done).unwrap();
    }
}

fn tiny() -> LakeSettings {
    // Files of a few hundred bytes: every path of rolling over and closing is taken.
    LakeSettings {
        fsync: false,
        target_file_bytes: 600,
        staging_bytes: 1,
        share_from_rows: 1,
        recent_bytes: 1 << 20,
        delta_checkpoint_every_commits: 3,
        compaction: eager(),
        ..LakeSettings::default()
    }
}

/// Every occasion to write files anew is taken.
fn eager() -> CompactionSettings {
    CompactionSettings {
        small_files: 2,
        deleted_percent: 10,
        least_deleted_rows: 1,
        kept_percent: u32::MAX,
        sort_small: false,
    }
}

#[test]
fn keyed_histories() {
    let compacted = (0..32).map(|seed| run(seed, Identity::Key(vec![0]), tiny()).compacted);
    assert!(compacted.sum::<usize>() > 100);
}

/// In memory, always on disk, and from the one to the other and back.
#[test]
fn keyed_histories_with_saved_indexes() {
    for memory_bytes in [usize::MAX, 0, 30_000] {
        let mut read_back = 0;
        for seed in 300..312 {
            let test = TestLake::with_index(tiny(), memory_bytes);
            read_back += run_in(&test, seed, Identity::Key(vec![0])).read_back;
        }
        assert!(read_back > 20, "{read_back} with {memory_bytes} bytes");
    }
    let test = TestLake::with_index(tiny(), 0);
    let seen = run_in(&test, 400, Identity::WholeRow);
    assert_eq!(seen.read_back, 0, "tables without a key always rebuild");
}

#[test]
fn keyed_histories_in_large_files() {
    let mut compacted = 0;
    for seed in 100..112 {
        let settings = LakeSettings {
            fsync: false,
            recent_bytes: 1 << 20,
            compaction: eager(),
            ..LakeSettings::default()
        };
        compacted += run(seed, Identity::Key(vec![0]), settings).compacted;
    }
    assert!(compacted > 12, "{compacted}");
}

#[test]
fn histories_of_whole_rows() {
    let compacted = (200..232).map(|seed| run(seed, Identity::WholeRow, tiny()).compacted);
    assert!(compacted.sum::<usize>() > 100);
}
