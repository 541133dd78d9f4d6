//! Leaves deleted rows out of what was read.
//!
//! Above DataFusion's Parquet reader, below all else. The reader adds to each row its file's number and
//! its place there; they end here. Not given to the reader as a selection: up to DataFusion 55.2 that
//! becomes runs, several times over, 55 ns for each deleted row. Invariant: rows and their order are those
//! of the input, less the deleted.

use std::fmt;
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, BooleanBufferBuilder, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int64Type, Schema, SchemaRef, UInt32Type};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics, internal_err};
use datafusion::config::ConfigOptions;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{
    CardinalityEffect, ChildrenPropertiesMode, ReplaceChildrenOptions,
};
use datafusion::physical_plan::filter_pushdown::{FilterDescription, FilterPushdownPhase};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PhysicalExpr,
    PlanProperties,
};
use futures::StreamExt;
use roaring::RoaringTreemap;

/// Columns that the reader adds at the end: the file's number, and the row's place in it.
pub(crate) const ADDED_COLUMNS: usize = 2;

/// Deleted rows of each file, by its number.
pub(crate) type DeletedRows = Arc<[Option<Arc<RoaringTreemap>>]>;

#[derive(Debug)]
pub(crate) struct LiveRows {
    input: Arc<dyn ExecutionPlan>,
    deleted: DeletedRows,
    /// Of what is left.
    statistics: Arc<Statistics>,
    properties: Arc<PlanProperties>,
}

impl LiveRows {
    pub(crate) fn new(
        input: Arc<dyn ExecutionPlan>,
        deleted: DeletedRows,
        statistics: Arc<Statistics>,
    ) -> Self {
        let read = input.schema();
        let kept = read.fields().len().saturating_sub(ADDED_COLUMNS);
        let fields: Vec<_> = read.fields().iter().take(kept).cloned().collect();
        let schema = Schema::new_with_metadata(fields, read.metadata().clone());
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::new(schema)),
            input.output_partitioning().clone(),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        Self {
            input,
            deleted,
            statistics,
            properties: Arc::new(properties),
        }
    }

    fn over(&self, input: Arc<dyn ExecutionPlan>) -> Self {
        let (deleted, statistics) = (Arc::clone(&self.deleted), Arc::clone(&self.statistics));
        Self::new(input, deleted, statistics)
    }
}

impl DisplayAs for LiveRows {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let files = self.deleted.iter().flatten();
        let rows: u64 = files.clone().map(|deleted| deleted.len()).sum();
        write!(f, "LiveRows: {rows} deleted in {} files", files.count())
    }
}

impl ExecutionPlan for LiveRows {
    fn name(&self) -> &'static str {
        "LiveRows"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    /// Only files are split below, by the scan itself: what mixes batches or sorts them belongs above,
    /// where deleted rows are gone.
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn repartitioned(
        &self,
        target_partitions: usize,
        config: &ConfigOptions,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let input = self.input.repartitioned(target_partitions, config)?;
        Ok(input.map(|input| Arc::new(self.over(input)) as Arc<dyn ExecutionPlan>))
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::LowerEqual
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (Some(input), true) = (children.pop(), children.is_empty()) else {
            return internal_err!("LiveRows has one input");
        };
        Ok(Arc::new(self.over(input)))
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(
            children,
            ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute),
        )
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let deleted = Arc::clone(&self.deleted);
        let rows = self.input.execute(partition, context)?;
        let live = rows.map(move |batch| live_rows(&batch?, &deleted));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), live)))
    }

    fn statistics_from_inputs(
        &self,
        _: &[Arc<Statistics>],
        args: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        Ok(match args.partition() {
            Some(_) => Arc::new(Statistics::new_unknown(&self.schema())),
            None => Arc::clone(&self.statistics),
        })
    }

    /// Columns have the same places below.
    fn gather_filters_for_pushdown(
        &self,
        _: FilterPushdownPhase,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        _: &ConfigOptions,
    ) -> Result<FilterDescription> {
        FilterDescription::from_children(filters, &self.children())
    }
}

/// The batch without its deleted rows, and without what the reader added.
fn live_rows(batch: &RecordBatch, deleted: &[Option<Arc<RoaringTreemap>>]) -> Result<RecordBatch> {
    let kept: Vec<usize> = (0..batch.num_columns().saturating_sub(ADDED_COLUMNS)).collect();
    let [files, places] = [kept.len(), kept.len() + 1].map(|column| batch.columns().get(column));
    let files = files.and_then(|files| files.as_primitive_opt::<UInt32Type>());
    let places = places.and_then(|places| places.as_primitive_opt::<Int64Type>());
    let (Some(files), Some(places)) = (files, places) else {
        return internal_err!("rows were read without their places");
    };
    let rows = batch.project(&kept)?;
    Ok(match live_mask(files.values(), places.values(), deleted) {
        Some(mask) => filter_record_batch(&rows, &BooleanArray::new(mask, None))?,
        None => rows,
    })
}

/// None where all rows are live.
fn live_mask(
    files: &[u32],
    places: &[i64],
    deleted: &[Option<Arc<RoaringTreemap>>],
) -> Option<BooleanBuffer> {
    let of_file = |file: u32| deleted.get(file as usize).and_then(Option::as_deref);
    let (first, last) = (*places.first()?, *places.last()?);
    let file = *files.first()?;
    let is_run = i64::try_from(places.len()).is_ok_and(|len| last - first + 1 == len)
        && places.is_sorted_by(|a, b| a < b)
        && files.iter().all(|other| *other == file);
    if !is_run {
        let is_live = |row: usize| {
            let place = places.get(row).and_then(|place| u64::try_from(*place).ok());
            let deleted = files.get(row).and_then(|file| of_file(*file));
            !matches!((deleted, place), (Some(deleted), Some(place)) if deleted.contains(place))
        };
        return Some(BooleanBuffer::collect_bool(places.len(), is_live));
    }
    let (first, last) = (u64::try_from(first).ok()?, u64::try_from(last).ok()?);
    let mut gone = of_file(file)?.iter();
    gone.advance_to(first);
    let mut gone = gone
        .take_while(|place| *place <= last)
        .filter_map(|place| usize::try_from(place - first).ok())
        .peekable();
    gone.peek()?;
    let mut live = BooleanBufferBuilder::new(places.len());
    live.append_n(places.len(), true);
    gone.for_each(|row| live.set_bit(row, false));
    Some(live.finish())
}

/// Names that no column of the table has, for those that the reader adds.
pub(crate) fn added_names(schema: &SchemaRef) -> [String; ADDED_COLUMNS] {
    ["file", "row"].map(|what| {
        let mut name = format!("alluvium {what}");
        while schema.column_with_name(&name).is_some() {
            name.push('\'');
        }
        name
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    /// The rows that are left of `(file, place)`.
    fn left(rows: &[(u32, i64)], deleted: &[Option<Arc<RoaringTreemap>>]) -> Vec<(u32, i64)> {
        let (files, places): (Vec<u32>, Vec<i64>) = rows.iter().copied().unzip();
        let Some(mask) = live_mask(&files, &places, deleted) else {
            return rows.to_vec();
        };
        assert_eq!(mask.len(), rows.len());
        let live = rows.iter().zip(&mask).filter(|(_, live)| *live);
        live.map(|(row, _)| *row).collect()
    }

    #[test]
    fn deleted_rows_are_left_out_whatever_was_read() {
        let many: RoaringTreemap = (0..200_000).filter(|row| row % 3 == 0).collect();
        let edges = RoaringTreemap::from_iter([0, 9, (1 << 33) + 2]);
        let deleted = [None, Some(Arc::new(many)), Some(Arc::new(edges))];
        let run = |file, places: std::ops::Range<i64>| places.map(move |place| (file, place));
        for rows in [
            vec![],
            run(0, 0..10).collect(),
            run(1, 65_530..65_545).collect(),
            run(1, 199_998..200_010).collect(),
            run(1, 7..8).collect(),
            run(1, 9..10).collect(),
            run(2, 0..10).collect(),
            run(2, 1..9).collect(),
            run(2, 1 << 33..(1 << 33) + 5).collect(),
            // Pages were skipped, in one place and in two that look like a run from outside.
            run(1, 0..5).chain(run(1, 20..25)).collect(),
            vec![(1, 3), (1, 3), (1, 5)],
            // Files that one batch spans, also where the second goes on at the place the first ended.
            run(2, 5..10).chain(run(1, 0..5)).collect(),
            run(1, 0..5).chain(run(2, 5..10)).collect(),
            run(0, 8..10)
                .chain(run(2, 10..12))
                .chain(run(1, 12..15))
                .collect(),
        ] {
            let is_live = |(file, place): &(u32, i64)| match &deleted[*file as usize] {
                Some(deleted) => !deleted.contains(u64::try_from(*place).unwrap()),
                None => true,
            };
            let expected: Vec<_> = rows.iter().copied().filter(is_live).collect();
            assert_eq!(left(&rows, &deleted), expected, "{rows:?}");
        }
        let untouched = live_mask(&[2, 2, 2], &[1, 2, 3], &deleted);
        assert!(
            untouched.is_none(),
            "nothing is copied where none is deleted"
        );
    }

    #[test]
    fn added_columns_have_names_of_their_own() {
        use arrow::datatypes::{DataType, Field};
        let taken = ["alluvium row", "alluvium row'", "id"];
        let fields = taken.map(|name| Field::new(name, DataType::Int32, false));
        let names = added_names(&Arc::new(Schema::new(fields.to_vec())));
        assert_eq!(names, ["alluvium file", "alluvium row''"]);
    }
}
