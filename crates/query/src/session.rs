//! SQL over a lake: parse, refuse what is not reading, plan, stream.
//!
//! The crate's entrance. Invariant: nothing a session runs can change a file: only queries,
//! `EXPLAIN`, `SHOW`, `DESCRIBE` and `SET` of harmless settings pass.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use alluvium_change::{Error, Result, code};
use alluvium_lake::SilverView;
use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::catalog::{CatalogProvider, MemoryCatalogProviderList};
use datafusion::common::{DataFusionError, ScalarValue};
use datafusion::execution::context::SQLOptions;
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{LogicalPlan, Statement as PlannedStatement};
use datafusion::optimizer::{Analyzer, AnalyzerRule};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::{DFParser, DFParserBuilder, Statement as ParsedStatement};
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};
use futures::{Stream, StreamExt};

use crate::as_of::{TableAsOf, take_moments};
use crate::catalog::{CATALOG, DEFAULT_SCHEMA, LakeCatalog, Listing};
use crate::coerce::CompareAsFloats;
use crate::command::parse_all;
use crate::disjoint::DisjointLists;
use crate::error::sql_error;
use crate::history::HistoryFunction;
use crate::yielding::YieldingJoins;

/// What a session may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuerySettings {
    /// Memory for sorting, grouping and joining; beyond it they spill to temporary files.
    pub memory_bytes: usize,
    /// Partitions a query is split into.
    pub threads: usize,
}

/// Rows of a query, as they are computed. Dropping it cancels the query.
pub type Batches = Pin<Box<dyn Stream<Item = Result<RecordBatch>> + Send>>;

/// The answer to one statement.
pub struct QueryResult {
    /// No columns for a statement that answers nothing (`SET`).
    pub schema: SchemaRef,
    pub batches: Batches,
}

impl std::fmt::Debug for QueryResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryResult")
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

impl QueryResult {
    /// Whether there are rows to show: false for `SET`.
    #[must_use]
    pub fn has_columns(&self) -> bool {
        !self.schema.fields().is_empty()
    }

    /// All rows at once.
    pub async fn collect(self) -> Result<Vec<RecordBatch>> {
        self.collect_within(usize::MAX).await
    }

    /// All rows at once, unless they take more than so many bytes.
    ///
    /// # Errors
    /// `MEMORY`; what the query fails with.
    pub async fn collect_within(mut self, most_bytes: usize) -> Result<Vec<RecordBatch>> {
        let (mut batches, mut bytes) = (Vec::new(), 0);
        while let Some(batch) = self.batches.next().await {
            let batch = batch?;
            bytes += batch.get_array_memory_size();
            if bytes > most_bytes {
                let mib = most_bytes >> 20;
                let message = format!("the rows of an answer are more than {mib} MiB");
                return Err(Error::new(&code::MEMORY, message)
                    .with_hint("ask for fewer at a time, or raise [limits] memory"));
            }
            batches.push(batch);
        }
        Ok(batches)
    }
}

/// What a statement needs and answers.
#[derive(Debug, Clone)]
pub struct Described {
    /// The types of `$1`, `$2` and so on, where the statement says them.
    pub parameters: Vec<Option<DataType>>,
    /// No columns for a statement that answers nothing.
    pub schema: SchemaRef,
}

/// A statement that was parsed.
#[derive(Debug, Clone)]
pub struct Statement(pub(crate) ParsedStatement);

/// What the sessions of one program share: memory, and the footers of files that were read.
#[derive(Clone)]
pub struct Engine(SessionState);

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

impl Engine {
    /// # Errors
    /// No temporary directory to spill to can be used.
    pub fn new(settings: &QuerySettings) -> Result<Self> {
        let pool = FairSpillPool::new(settings.memory_bytes);
        let largest = std::num::NonZeroUsize::MIN.saturating_add(2);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(TrackConsumersPool::new(pool, largest)))
            .build_arc()
            .map_err(|error| sql_error(&error))?;
        let mut rules: Vec<Arc<dyn AnalyzerRule + Send + Sync>> = vec![Arc::new(CompareAsFloats)];
        rules.extend(Analyzer::new().rules);
        rules.push(Arc::new(DisjointLists));
        let state = SessionStateBuilder::new_with_default_features()
            .with_config(config(settings))
            .with_runtime_env(runtime)
            .with_analyzer_rules(rules)
            .with_physical_optimizer_rule(Arc::new(YieldingJoins))
            .build();
        Ok(Self(state))
    }

    /// A session on the lake at `lake_root`.
    ///
    /// # Errors
    /// `LAKE_IO` when there is no such directory.
    pub fn open(&self, lake_root: &Path) -> Result<Session> {
        if let Err(error) = std::fs::read_dir(lake_root) {
            let message = format!("the lake \"{}\" cannot be read", lake_root.display());
            return Err(Error::new(&code::LAKE_IO, message)
                .with_detail(error.to_string())
                .with_hint("check [lake] path; a lake is made by: alluvium run"));
        }
        let state = SessionStateBuilder::new_from_existing(self.0.clone())
            // Or sessions would see each other's tables.
            .with_catalog_list(Arc::new(MemoryCatalogProviderList::new()))
            .build();
        let context = SessionContext::new_with_state(state);
        let listing = Listing::new(lake_root);
        let catalog = Arc::new(LakeCatalog::new(&listing));
        context.register_catalog(CATALOG, Arc::clone(&catalog) as Arc<dyn CatalogProvider>);
        context.register_udtf("history", Arc::new(HistoryFunction(listing.clone())));
        Ok(Session {
            context,
            listing,
            catalog,
        })
    }
}

impl Statement {
    /// The statements of `text`, to see what they ask for. To run them, see [`Session::statements`].
    ///
    /// # Errors
    /// `SQL`.
    pub fn all_of(text: &str) -> Result<Vec<Self>> {
        parse(text).map(|(statements, _)| statements)
    }
}

/// The statements of a text, and the tables at moments that it names.
fn parse(text: &str) -> Result<(Vec<Statement>, Vec<TableAsOf>)> {
    let (tokens, tables) = take_moments(tokens(text)?)?;
    let parsed = parser(tokens)
        .and_then(|mut parser| parse_all(&mut parser))
        .map_err(|error| sql_error(&error))?;
    Ok((parsed.into_iter().map(Statement).collect(), tables))
}

static DIALECT: PostgreSqlDialect = PostgreSqlDialect {};

fn tokens(text: &str) -> Result<Vec<TokenWithSpan>> {
    let tokens = Tokenizer::new(&DIALECT, text).tokenize_with_location();
    tokens.map_err(|error| sql_error(&DataFusionError::SQL(Box::new(error.into()), None)))
}

fn parser(tokens: Vec<TokenWithSpan>) -> std::result::Result<DFParser<'static>, DataFusionError> {
    DFParserBuilder::new(tokens).with_dialect(&DIALECT).build()
}

/// Whether `text` is one condition, as it comes after `WHERE`.
///
/// # Errors
/// `SQL`.
pub fn check_condition(text: &str) -> Result<()> {
    let parsed = parser(tokens(text)?).and_then(|mut parser| {
        parser.parser.parse_expr()?;
        let token = parser.parser.peek_token();
        match token.token {
            Token::EOF => Ok(()),
            _ => Err(DataFusionError::Plan(format!("\"{token}\" after its end"))),
        }
    });
    parsed.map_err(|error| {
        Error::new(&code::SQL, format!("\"{text}\" is no condition"))
            .with_detail(error.strip_backtrace())
            .with_hint("write it as it comes after WHERE: \"id < 1000 AND status = 'new'\"")
    })
}

/// Queries on one lake; each table stays at the version it had when first named.
pub struct Session {
    context: SessionContext,
    listing: Listing,
    catalog: Arc<LakeCatalog>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("listing", &self.listing)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// A session with an engine of its own.
    ///
    /// # Errors
    /// As [`Engine::new`] and [`Engine::open`].
    pub fn open(lake_root: &Path, settings: &QuerySettings) -> Result<Self> {
        Engine::new(settings)?.open(lake_root)
    }

    /// A table that is in no lake, as `test.public.<name>`.
    #[cfg(test)]
    pub(crate) fn register_for_test(&self, name: &str, table: Arc<crate::table::LakeTable>) {
        use datafusion::catalog::{
            CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider,
        };
        let schema = MemorySchemaProvider::new();
        let _ = schema.register_table(name.to_owned(), table);
        let catalog = MemoryCatalogProvider::new();
        let _ = catalog.register_schema("public", Arc::new(schema));
        self.context.register_catalog("test", Arc::new(catalog));
    }

    /// The statements of `text`, which are separated by `;`.
    pub fn statements(&self, text: &str) -> Result<Vec<Statement>> {
        let (statements, tables) = parse(text)?;
        self.catalog.travel(tables);
        Ok(statements)
    }

    /// The directories of the silver tables that statements name.
    #[must_use]
    pub fn silver_tables(&self, statements: &[&Statement]) -> Vec<String> {
        let state = self.context.state();
        let references = statements
            .iter()
            .filter_map(|statement| state.resolve_table_references(&statement.0).ok())
            .flatten();
        let silver = references.filter(|reference| {
            self.catalog.table_of(reference.table()) == reference.table()
                && reference.catalog().is_none_or(|catalog| catalog == CATALOG)
                && reference
                    .schema()
                    .is_none_or(|schema| schema == DEFAULT_SCHEMA)
        });
        let mut names: Vec<String> = silver
            .map(|reference| self.listing.dir_name(reference.table()))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// From now on these silver tables, by their directories, are as a running pipeline has them.
    ///
    /// # Errors
    /// `LAKE_CORRUPT` when a view's deletion vector does not fit its file.
    pub fn show(&self, views: BTreeMap<String, SilverView>) -> Result<()> {
        for (dir_name, view) in views {
            self.catalog.show(&dir_name, view)?;
        }
        Ok(())
    }

    /// Plans one statement and starts it; `SET` takes effect at once.
    pub async fn run(&self, statement: &Statement) -> Result<QueryResult> {
        self.run_with(statement, &[]).await
    }

    /// As [`Self::run`], with arrays of one value each in the places `$1`, `$2` and so on.
    pub async fn run_with(
        &self,
        statement: &Statement,
        values: &[ArrayRef],
    ) -> Result<QueryResult> {
        let plan = self.plan(statement).await?;
        let result = async {
            let plan = match values {
                [] => plan,
                values => {
                    let values = values
                        .iter()
                        .map(|value| ScalarValue::try_from_array(value, 0));
                    plan.with_param_values(values.collect::<std::result::Result<Vec<_>, _>>()?)?
                }
            };
            let frame = self.context.execute_logical_plan(plan).await?;
            frame.execute_stream().await
        };
        let stream = result.await.map_err(|error| sql_error(&error))?;
        let schema = stream.schema();
        let batches = stream.map(|batch| batch.map_err(|error| sql_error(&error)));
        Ok(QueryResult {
            schema,
            batches: Box::pin(batches),
        })
    }

    async fn plan(&self, statement: &Statement) -> Result<LogicalPlan> {
        read_only(&statement.0)?;
        let state = self.context.state();
        let plan = match state.statement_to_plan(statement.0.clone()).await {
            Ok(plan) => plan,
            Err(error) => return Err(self.explain(&statement.0, &error)),
        };
        check_plan(&plan)?;
        Ok(plan)
    }

    /// What a statement needs and answers, without running it.
    pub async fn describe(&self, statement: &Statement) -> Result<Described> {
        let plan = self.plan(statement).await?;
        let types = plan
            .get_parameter_types()
            .map_err(|error| sql_error(&error))?;
        let number = |name: &str| name.strip_prefix('$')?.parse::<usize>().ok();
        let most = types
            .keys()
            .filter_map(|name| number(name))
            .max()
            .unwrap_or(0);
        let of = |nth: usize| types.get(&format!("${nth}")).cloned().flatten();
        Ok(Described {
            parameters: (1..=most).map(of).collect(),
            schema: Arc::new(plan.schema().as_arrow().clone()),
        })
    }

    /// Runs statements, in order; the answers of those that have columns.
    ///
    /// All are planned before the first answer is read. To print answers as they come, go through
    /// [`Session::statements`] and [`Session::run`].
    pub async fn run_all(&self, statements: &[Statement]) -> Result<Vec<QueryResult>> {
        let mut results = Vec::new();
        for statement in statements {
            let result = self.run(statement).await?;
            if result.has_columns() {
                results.push(result);
            }
        }
        Ok(results)
    }

    /// Runs the statements of `text`, of which the last alone may have an answer.
    pub async fn sql(&self, text: &str) -> Result<QueryResult> {
        self.answer(&self.statements(text)?).await
    }

    /// Runs statements of which the last alone may have an answer.
    pub async fn answer(&self, statements: &[Statement]) -> Result<QueryResult> {
        let mut results = self.run_all(statements).await?;
        let last = results.pop();
        if !results.is_empty() {
            return Err(
                Error::new(&code::SQL, "more than one statement has an answer")
                    .with_hint("run them one by one"),
            );
        }
        Ok(last.unwrap_or_else(|| QueryResult {
            schema: Arc::new(Schema::empty()),
            batches: Box::pin(futures::stream::empty()),
        }))
    }

    /// The error of planning: about a table that is not there, when that is why.
    fn explain(&self, statement: &ParsedStatement, error: &DataFusionError) -> Error {
        let about_tables = matches!(error.find_root(), DataFusionError::Plan(_));
        let references = self.context.state().resolve_table_references(statement);
        for reference in references
            .ok()
            .filter(|_| about_tables)
            .into_iter()
            .flatten()
        {
            let name = reference.table().to_owned();
            let is_function = self.context.state().table_functions().contains_key(&name);
            let exists = self.context.table_exist(reference.clone()).unwrap_or(false);
            // A message that does not name the table is about something else.
            if !exists && !is_function && error.to_string().contains(&name) {
                let table = self.catalog.table_of(reference.table());
                return self.listing.unknown(reference.schema(), &table);
            }
        }
        sql_error(error)
    }
}

fn config(settings: &QuerySettings) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(settings.threads.max(1))
        .with_default_catalog_and_schema(CATALOG, DEFAULT_SCHEMA)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true);
    let options = config.options_mut();
    options.execution.time_zone = Some("UTC".to_owned());
    // A literal 0.1 is a decimal, as in PostgreSQL; names fold to lower case unless quoted.
    options.sql_parser.parse_float_as_decimal = true;
    options.sql_parser.enable_ident_normalization = true;
    options.sql_parser.dialect = datafusion::common::config::Dialect::PostgreSQL;
    // As the columns of the lake are: no conversion between text types on the way.
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.parquet.coerce_int96 = Some("us".to_owned());
    config
}

pub(crate) fn refused(what: &str) -> Error {
    Error::new(
        &code::SQL_WRITES,
        format!("{what} is refused: queries here only read"),
    )
}

/// Lets reading pass. What it lets pass is checked again as a plan.
pub(crate) fn read_only(statement: &ParsedStatement) -> Result<()> {
    match statement {
        ParsedStatement::Statement(statement) => match statement.as_ref() {
            SqlStatement::Query(_)
            | SqlStatement::Explain { .. }
            | SqlStatement::ExplainTable { .. }
            | SqlStatement::ShowTables { .. }
            | SqlStatement::ShowColumns { .. }
            | SqlStatement::ShowFunctions { .. }
            | SqlStatement::ShowVariable { .. }
            | SqlStatement::Set(_) => Ok(()),
            other => {
                let text = other.to_string();
                Err(refused(
                    text.split_whitespace().next().unwrap_or("the statement"),
                ))
            }
        },
        ParsedStatement::Explain(explain) => read_only(&explain.statement),
        ParsedStatement::Reset(_) => Ok(()),
        ParsedStatement::CopyTo(_) => Err(refused("COPY")),
        ParsedStatement::CreateExternalTable(_) => Err(refused("CREATE")),
    }
}

/// Refuses plans that write or change a setting they may not.
fn check_plan(plan: &LogicalPlan) -> Result<()> {
    let setting = match plan {
        LogicalPlan::Statement(PlannedStatement::SetVariable(set)) => Some(&set.variable),
        LogicalPlan::Statement(PlannedStatement::ResetVariable(reset)) => Some(&reset.variable),
        _ => None,
    };
    if let Some(setting) = setting
        && setting != "datafusion.execution.time_zone"
        && !setting.starts_with("datafusion.explain.")
    {
        return Err(Error::new(
            &code::SQL,
            format!("the setting \"{setting}\" cannot be changed here"),
        )
        .with_hint("TIME ZONE and datafusion.explain.* can"));
    }
    SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(setting.is_some())
        .verify_plan(plan)
        .map_err(|error| refused("a statement that writes").with_detail(error.strip_backtrace()))
}

#[cfg(test)]
mod tests;
