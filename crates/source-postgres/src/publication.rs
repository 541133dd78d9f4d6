//! Publications: what the server streams.
//!
//! Law: a table without replica identity never enters a publication that publishes updates or
//! deletes, for then the user's own UPDATE would fail on the source. Such tables go into a second
//! publication, `<name>_append`, of inserts and truncates.
//!
//! A publication is read from the catalog as it was at the position being decoded: one made after
//! a slot cannot be used by that slot before the slot has passed the moment it was made (before
//! PostgreSQL 18 the stream fails). So [`ensure`] makes both when it makes the first.

use std::collections::{BTreeMap, BTreeSet};

use alluvium_change::{Error, Identity, Result, TableId, code};
use tokio_postgres::Client;

use crate::catalog::{SourceTable, get, server_version};
use crate::connect::map_error;

/// The first version with column lists and row filters.
const FILTER_VERSION: i32 = 150_000;

/// The name of the publication for tables without identity.
#[must_use]
pub fn append_name(name: &str) -> String {
    format!("{name}_append")
}

/// A publication as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publication {
    pub name: String,
    pub all_tables: bool,
    pub insert: bool,
    pub update: bool,
    pub delete: bool,
    pub truncate: bool,
    pub via_root: bool,
    /// What it publishes, under the root's name where it publishes via the root.
    pub members: BTreeMap<TableId, Member>,
}

/// How a table is published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// Published columns; `None` means all that this version publishes.
    pub columns: Option<Vec<String>>,
    pub row_filter: Option<String>,
}

/// What to do before streaming.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// SQL to run first, in order.
    pub statements: Vec<String>,
    /// The publications to stream from.
    pub names: Vec<String>,
}

/// Makes the publications cover `tables` and returns the names to stream from.
///
/// What is there is used: tables are added when the role may, nothing else of it is changed.
///
/// # Errors
/// `PG_PUBLICATION` with the SQL to run, when something is missing that we must not or may not
/// change.
pub async fn ensure(client: &Client, name: &str, tables: &[&SourceTable]) -> Result<Vec<String>> {
    let plan = plan(client, name, tables).await?;
    for statement in &plan.statements {
        if let Err(error) = client.batch_execute(statement).await {
            let cause = map_error(error, "preparing the publication");
            if !cause.is(&code::PG_RIGHTS) {
                return Err(cause);
            }
            let message = format!("publication \"{name}\" cannot be prepared by this role");
            return Err(Error::new(&code::PG_PUBLICATION, message)
                .with_detail(cause.message().to_owned())
                .with_hint(format!(
                    "run as owner of the tables: {};",
                    plan.statements.join("; ")
                ))
                .with_source(cause));
        }
        tracing::info!(statement, "publication prepared");
    }
    Ok(plan.names)
}

/// What [`ensure`] would do.
///
/// # Errors
/// `PG_PUBLICATION` when what is there cannot be used.
pub async fn plan(client: &Client, name: &str, tables: &[&SourceTable]) -> Result<Plan> {
    let main = load(client, name).await?;
    let append = load(client, &append_name(name)).await?;
    make_plan(name, main.as_ref(), append.as_ref(), tables)
}

/// The publication `name`; `None` when there is none.
///
/// # Errors
/// When the server cannot be asked.
pub async fn load(client: &Client, name: &str) -> Result<Option<Publication>> {
    let failed = |error| map_error(error, &format!("reading publication \"{name}\""));
    let sql = "SELECT puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot \
               FROM pg_publication WHERE pubname = $1::text";
    let Some(row) = client.query_opt(sql, &[&name]).await.map_err(failed)? else {
        return Ok(None);
    };
    let mut publication = Publication {
        name: name.to_owned(),
        all_tables: get(&row, 0)?,
        insert: get(&row, 1)?,
        update: get(&row, 2)?,
        delete: get(&row, 3)?,
        truncate: get(&row, 4)?,
        via_root: get(&row, 5)?,
        members: BTreeMap::new(),
    };
    let sql = if server_version(client).await? >= FILTER_VERSION {
        "SELECT schemaname, tablename, attnames::text[], rowfilter \
         FROM pg_publication_tables WHERE pubname = $1::text"
    } else {
        "SELECT schemaname, tablename, NULL::text[], NULL::text \
         FROM pg_publication_tables WHERE pubname = $1::text"
    };
    for row in client.query(sql, &[&name]).await.map_err(failed)? {
        let id = TableId {
            schema: get(&row, 0)?,
            name: get(&row, 1)?,
        };
        let member = Member {
            columns: get(&row, 2)?,
            row_filter: get(&row, 3)?,
        };
        publication.members.insert(id, member);
    }
    Ok(Some(publication))
}

fn make_plan(
    name: &str,
    main: Option<&Publication>,
    append: Option<&Publication>,
    tables: &[&SourceTable],
) -> Result<Plan> {
    let (append_only, keyed): (Vec<&SourceTable>, Vec<&SourceTable>) = tables
        .iter()
        .copied()
        .partition(|table| table.schema.identity == Identity::AppendOnly);
    let append_name = append_name(name);
    let mut plan = Plan {
        statements: Vec::new(),
        names: vec![name.to_owned()],
    };

    let Some(main) = main else {
        plan.statements
            .push(create(name, &keyed, "insert, update, delete, truncate"));
        prepare_append(&append_name, append, &append_only, &mut plan)?;
        if append.is_none() && append_only.is_empty() {
            plan.statements
                .push(create(&append_name, &[], "insert, truncate"));
            plan.names.push(append_name);
        }
        return Ok(plan);
    };
    check_operations(main, &keyed, &["insert", "update", "delete", "truncate"])?;
    check_root(main, tables)?;
    if main.all_tables {
        check_operations(main, &append_only, &["insert", "truncate"])?;
        check_members(main, tables)?;
        return Ok(plan);
    }
    let (covered, mut uncovered): (Vec<_>, Vec<_>) = append_only
        .into_iter()
        .partition(|table| main.members.contains_key(table.id()));
    let (leaving, covered): (Vec<_>, Vec<_>) = covered
        .into_iter()
        .partition(|table| table.append_only_asked);
    if !leaving.is_empty() {
        // Of a table in both, updates and deletes would be sent.
        plan.statements.push(format!(
            "ALTER PUBLICATION {} DROP TABLE {}",
            quote(name),
            member_list(&leaving)
        ));
        uncovered.extend(leaving);
    }
    check_operations(main, &covered, &["insert", "truncate"])?;
    check_members(main, tables)?;
    add_missing(main, &keyed, &mut plan);
    prepare_append(&append_name, append, &uncovered, &mut plan)?;
    Ok(plan)
}

/// The second publication: made or filled when tables need it, streamed from when it exists.
fn prepare_append(
    append_name: &str,
    append: Option<&Publication>,
    tables: &[&SourceTable],
    plan: &mut Plan,
) -> Result<()> {
    match append {
        Some(append) => {
            if append.update || append.delete {
                return Err(
                    unusable(append_name, "it publishes updates or deletes").with_hint(format!(
                        "ALTER PUBLICATION {} SET (publish = 'insert, truncate');",
                        quote(append_name)
                    )),
                );
            }
            check_operations(append, tables, &["insert", "truncate"])?;
            check_root(append, tables)?;
            check_members(append, tables)?;
            add_missing(append, tables, plan);
        }
        None if tables.is_empty() => return Ok(()),
        None => plan
            .statements
            .push(create(append_name, tables, "insert, truncate")),
    }
    plan.names.push(append_name.to_owned());
    Ok(())
}

fn create(name: &str, tables: &[&SourceTable], operations: &str) -> String {
    let what = match member_list(tables) {
        list if list.is_empty() => String::new(),
        list => format!(" FOR TABLE {list}"),
    };
    format!(
        "CREATE PUBLICATION {}{what} \
         WITH (publish = '{operations}', publish_via_partition_root = true)",
        quote(name)
    )
}

fn add_missing(publication: &Publication, tables: &[&SourceTable], plan: &mut Plan) {
    let missing: Vec<&SourceTable> = tables
        .iter()
        .copied()
        .filter(|table| !publication.members.contains_key(table.id()))
        .collect();
    if !missing.is_empty() {
        plan.statements.push(format!(
            "ALTER PUBLICATION {} ADD TABLE {}",
            quote(&publication.name),
            member_list(&missing)
        ));
    }
}

/// ONLY keeps children by inheritance out: they are tables of their own. Of a partitioned table
/// the partitions always belong.
fn member_list(tables: &[&SourceTable]) -> String {
    let member = |table: &&SourceTable| {
        let only = if table.is_partitioned { "" } else { "ONLY " };
        format!("{only}{}", table.id().quoted())
    };
    tables.iter().map(member).collect::<Vec<_>>().join(", ")
}

fn check_operations(
    publication: &Publication,
    tables: &[&SourceTable],
    needed: &[&'static str],
) -> Result<()> {
    let published = [
        ("insert", publication.insert),
        ("update", publication.update),
        ("delete", publication.delete),
        ("truncate", publication.truncate),
    ];
    let missing: Vec<&str> = published
        .into_iter()
        .filter(|(name, is_published)| !is_published && needed.contains(name))
        .map(|(name, _)| name)
        .collect();
    if missing.is_empty() || tables.is_empty() {
        return Ok(());
    }
    let why = format!("it does not publish {}", missing.join(" and "));
    Err(unusable(&publication.name, &why).with_hint(format!(
        "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate'); or name another \
         publication in the project file",
        quote(&publication.name)
    )))
}

fn check_root(publication: &Publication, tables: &[&SourceTable]) -> Result<()> {
    let Some(table) = tables.iter().find(|table| table.is_partitioned) else {
        return Ok(());
    };
    if publication.via_root {
        return Ok(());
    }
    let why = format!(
        "it publishes the partitions of \"{}\" instead of the table",
        table.id()
    );
    Err(unusable(&publication.name, &why).with_hint(format!(
        "ALTER PUBLICATION {} SET (publish_via_partition_root = true); or name another publication \
         in the project file",
        quote(&publication.name)
    )))
}

/// A filter would make the stream differ from what was copied.
fn check_members(publication: &Publication, tables: &[&SourceTable]) -> Result<()> {
    for table in tables {
        let Some(member) = publication.members.get(table.id()) else {
            continue;
        };
        let id = table.id();
        if let Some(filter) = &member.row_filter {
            let why = format!("it publishes only some rows of \"{id}\"");
            return Err(unusable(&publication.name, &why)
                .with_detail(format!("WHERE {filter}"))
                .with_hint("name a publication of this project's own, which is made when absent"));
        }
        let Some(columns) = &member.columns else {
            continue;
        };
        let published: BTreeSet<&str> = columns.iter().map(String::as_str).collect();
        let missing: Vec<String> = table
            .schema
            .columns
            .iter()
            .filter(|column| !published.contains(column.name.as_str()))
            .map(|column| format!("\"{}\"", column.name))
            .collect();
        if !missing.is_empty() {
            let list = missing.join(", ");
            let why = format!("it does not publish the columns {list} of \"{id}\"");
            return Err(unusable(&publication.name, &why).with_hint(format!(
                "leave them out too: [tables.\"{id}\"] exclude_columns = [{list}]"
            )));
        }
    }
    Ok(())
}

fn unusable(name: &str, why: &str) -> Error {
    Error::new(
        &code::PG_PUBLICATION,
        format!("publication \"{name}\" cannot be used: {why}"),
    )
}

pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
