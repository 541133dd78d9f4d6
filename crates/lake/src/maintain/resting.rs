//! Care by hand for a table in which nothing runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use alluvium_change::{Error, Result, code};
use roaring::RoaringTreemap;

use super::{CLUSTER_PROPERTY, Candidate, Clustering, Input, Order, Output, choose};
use crate::bronze::in_order;
use crate::log::{DeltaTable, LiveFile};
use crate::owned::table_of;
use crate::read::TableName;
use crate::silver::{Origin, file_name, is_settled, is_unsorted};
use crate::{CleaningJob, CompactionJob, CompactionSettings, LakeSettings};

/// A Delta table of a lake that nobody else writes meanwhile.
pub struct RestingTable {
    table: DeltaTable,
    lake: LakeSettings,
    order: Order,
    clustering: Option<Arc<Clustering>>,
    files: Vec<(LiveFile, Arc<RoaringTreemap>)>,
    may_join: bool,
}

impl RestingTable {
    /// Opens a table at its last commit; `app_id` says which application id its position has, from the
    /// source's table.
    ///
    /// # Errors
    /// `LAKE_FOREIGN` when the last commit is not ours; `LAKE_CORRUPT`.
    pub fn open(
        name: &TableName,
        lake: &LakeSettings,
        app_id: &dyn Fn(&str) -> String,
    ) -> Result<Self> {
        let mut table = DeltaTable::open(&name.dir, lake.fsync)?;
        let txns = table.txns()?;
        table.settle_foreign(&txns)?;
        let is_silver = name.layer == "silver";
        let may_join = !is_silver || settled(&table, txns, app_id)?;
        let mut files = Vec::new();
        for file in table.files()? {
            let deleted = table.deleted_rows(&file)?.unwrap_or_default();
            files.push((file, Arc::new(deleted)));
        }
        let schema = table.schema()?;
        let by = table.properties().get(CLUSTER_PROPERTY).cloned();
        let clustering = by.and_then(|by| Clustering::of_property(&by, &schema));
        Ok(Self {
            clustering,
            table,
            lake: lake.clone(),
            order: if is_silver { Order::Any } else { Order::Kept },
            files,
            may_join,
        })
    }

    /// Writes files anew as one, until few are left and no row in them is deleted. Each step is a commit.
    ///
    /// # Errors
    /// The table's copy is not complete; the lake's own.
    pub fn optimize(&mut self) -> Result<()> {
        if !self.may_join {
            return Err(Error::new(
                &code::USAGE,
                format!(
                    "the copy of table \"{}\" is not complete",
                    self.table.dir().display()
                ),
            )
            .with_hint("let it end first: alluvium run --until-caught-up"));
        }
        while let Some(chosen) = self.choose()? {
            self.join(chosen)?;
        }
        Ok(())
    }

    fn choose(&self) -> Result<Option<Vec<usize>>> {
        let of = |at: usize, follows: bool| {
            let (file, deleted) = self.files.get(at)?;
            Some(Candidate {
                is_unsorted: is_unsorted(&file.path, self.clustering.as_ref()),
                ..Candidate::of(file, deleted.len(), follows)
            })
        };
        let places: Vec<(usize, bool)> = match self.order {
            Order::Any => (0..self.files.len()).map(|at| (at, true)).collect(),
            Order::Kept => in_order(
                self.files.iter().map(|(file, _)| file),
                &self.table.schema()?,
            )?,
        };
        let candidates: Vec<Candidate> = places
            .iter()
            .filter_map(|(at, follows)| of(*at, *follows))
            .collect();
        let chosen = choose(
            &candidates,
            self.order,
            self.lake.target_file_bytes,
            &CompactionSettings::by_hand(),
        );
        Ok(chosen.map(|chosen| {
            let place = |at: usize| places.get(at).map(|(at, _)| *at);
            chosen.into_iter().filter_map(place).collect()
        }))
    }

    fn join(&mut self, chosen: Vec<usize>) -> Result<()> {
        let inputs = chosen.iter().filter_map(|at| self.files.get(*at));
        let inputs = inputs.map(|(file, deleted)| Input::of(0, file, deleted));
        let output = Output {
            dir: self.table.dir().to_owned(),
            name: file_name(Origin::of(self.clustering.as_ref())),
            segment: 0,
            columns: self.table.schema()?,
            clustering: self.clustering.clone(),
            ticket: 0,
        };
        let job = CompactionJob::new(inputs.collect(), output, &self.lake);
        let mut joined = job
            .run(&|_| true)?
            .ok_or_else(|| Error::bug("a compaction was given up by nobody"))?;
        let removes = chosen.iter().filter_map(|at| self.files.get(*at));
        let removes = removes.map(|(file, _)| file).collect();
        let nothing = RoaringTreemap::new();
        let (_, file) = joined.commit(&mut self.table, removes, &nothing)?;
        let mut gone = chosen;
        gone.sort_unstable();
        for at in gone.iter().rev() {
            self.files.remove(*at);
        }
        self.files.push((file, Arc::new(nothing)));
        Ok(())
    }

    /// Writes a Delta checkpoint of the last commit.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn checkpoint(&mut self) -> Result<()> {
        match self.table.take_checkpoint_job(1) {
            Some(job) => self.table.adopt_checkpoint(job.run()),
            None => Ok(()),
        }
    }

    /// What no version needs any more.
    #[must_use]
    pub fn cleaning_job(&self) -> CleaningJob {
        CleaningJob::of(&self.table, &self.lake, Vec::new(), None)
    }
}

/// What no version of the table in `dir` needs any more, for looking at while somebody may write it.
///
/// # Errors
/// The table cannot be read.
pub fn look_for_unneeded(dir: &Path, lake: &LakeSettings) -> Result<super::Cleaned> {
    let table = DeltaTable::open_at(dir, None)?;
    CleaningJob::of(&table, lake, Vec::new(), None).find()
}

/// Whether silver has all that its initial copy is reconciled with.
fn settled(
    table: &DeltaTable,
    txns: BTreeMap<String, i64>,
    app_id: &dyn Fn(&str) -> String,
) -> Result<bool> {
    let source = table_of(table).ok_or_else(|| {
        Error::new(
            &code::LAKE_NOT_OURS,
            format!("table \"{}\" is not one of alluvium", table.dir().display()),
        )
    })?;
    Ok(is_settled(app_id(&source), txns))
}
