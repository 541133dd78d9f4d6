//! Checks of the wanted tables and of the publication that carries them.

use alluvium_change::{Identity, Result, TableId, code};

use super::{Check, Subject, bytes_text};
use crate::catalog::{SourceTable, TableSelection, get};
use crate::connect::map_error;
use crate::publication;

/// So many names are listed before the rest is counted.
const MAX_NAMES: usize = 8;

pub(super) async fn check(
    subject: &Subject<'_>,
    selection: &TableSelection,
    tables: &[SourceTable],
) -> Vec<Check> {
    let mut checks = vec![summary(tables)];
    checks.extend(unused_settings(selection, tables));
    for table in tables {
        if let Some(refusal) = &table.refused {
            checks.push(Check::error("table", &refusal.to_error()));
        }
    }
    let followed: Vec<&SourceTable> = tables
        .iter()
        .filter(|table| table.refused.is_none())
        .collect();
    checks.extend(identities(&followed));
    checks.extend(peculiarities(&followed));
    match rights(subject, &followed).await {
        Ok(missing) => checks.extend(missing),
        Err(error) => checks.push(Check::error("rights", &error)),
    }
    match publication_checks(subject, &followed).await {
        Ok(found) => checks.extend(found),
        Err(error) => checks.push(Check::error("publication", &error)),
    }
    checks
}

fn summary(tables: &[SourceTable]) -> Check {
    let rows: f64 = tables.iter().map(|table| table.estimated_rows).sum();
    let bytes: u64 = tables.iter().map(|table| table.total_bytes).sum();
    let finding = format!(
        "{} tables, about {rows:.0} rows, {}",
        tables.len(),
        bytes_text(bytes)
    );
    Check::ok("tables", finding)
}

fn unused_settings(selection: &TableSelection, tables: &[SourceTable]) -> Option<Check> {
    let is_used = |key: &str| {
        tables.iter().any(|table| {
            let id = table.id();
            id.to_string() == key || (id.schema == "public" && id.name == key)
        })
    };
    let unused: Vec<String> = selection
        .overrides
        .keys()
        .filter(|key| !is_used(key))
        .cloned()
        .collect();
    (!unused.is_empty()).then(|| {
        Check::warn(
            "settings_of_tables",
            format!("no table is meant by: {}", list(&unused)),
        )
        .meaning("these settings have no effect")
        .fix("mend the names in the project file: [tables.\"schema.table\"]")
    })
}

fn list(names: &[String]) -> String {
    let mut text = names
        .iter()
        .take(MAX_NAMES)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > MAX_NAMES {
        text.push_str(&format!(" and {} more", names.len() - MAX_NAMES));
    }
    text
}

fn names_of(tables: &[&SourceTable], wanted: impl Fn(&SourceTable) -> bool) -> Vec<String> {
    let found = tables.iter().filter(|table| wanted(table));
    found.map(|table| table.id().to_string()).collect()
}

fn identities(tables: &[&SourceTable]) -> Vec<Check> {
    let mut checks = Vec::new();
    let keyed = names_of(tables, |table| {
        matches!(table.schema.identity, Identity::Key(_))
    });
    if !keyed.is_empty() {
        checks.push(Check::ok(
            "identity",
            format!("{} tables have a key", keyed.len()),
        ));
    }
    let whole = names_of(tables, |table| table.schema.identity == Identity::WholeRow);
    if !whole.is_empty() {
        checks.push(Check::ok("identity", format!("matched by whole rows: {}", list(&whole))).meaning(
            "no key, REPLICA IDENTITY FULL: rows are mirrored and equal rows counted; a key is faster",
        ));
    }
    let asked = names_of(tables, |table| table.append_only_asked);
    if !asked.is_empty() {
        let finding = format!("append-only, as asked: {}", list(&asked));
        checks.push(Check::ok("identity", finding).meaning("updates and deletes are not followed"));
    }
    for table in tables
        .iter()
        .filter(|table| table.schema.identity == Identity::AppendOnly && !table.append_only_asked)
    {
        let quoted = table.id().quoted();
        checks.push(
            Check::warn("identity", format!("\"{}\" is append-only", table.id()))
                .meaning(
                    "it has no replica identity: inserts and truncates are followed, but the \
                     server sends no updates and deletes, so the lake keeps the rows as inserted",
                )
                .fix(format!(
                    "ALTER TABLE {quoted} ADD PRIMARY KEY (...); or ALTER TABLE {quoted} REPLICA \
                     IDENTITY FULL; then: alluvium resync {}",
                    table.id()
                )),
        );
    }
    checks
}

fn peculiarities(tables: &[&SourceTable]) -> Vec<Check> {
    let mut checks = Vec::new();
    for table in tables {
        // What makes a table append-only has a check of its own.
        for note in table
            .notes
            .iter()
            .filter(|note| !note.starts_with("append-only"))
        {
            checks.push(
                Check::warn("table", format!("\"{}\": {note}", table.id()))
                    .meaning("values are kept as told; nothing is left out"),
            );
        }
    }
    let toast = names_of(tables, |table| !table.toast_columns.is_empty());
    if !toast.is_empty() {
        checks.push(
            Check::ok(
                "toast",
                format!("large values are possible in: {}", list(&toast)),
            )
            .meaning(
                "the server does not send a large value that an update leaves as it was; it is \
                 taken from the lake",
            ),
        );
    }
    let generated: Vec<String> = tables
        .iter()
        .flat_map(|table| {
            let id = table.id();
            table
                .generated_columns
                .iter()
                .map(move |column| format!("{id}.{column}"))
        })
        .collect();
    if !generated.is_empty() {
        checks.push(
            Check::warn("generated", format!("left out: {}", list(&generated)))
                .meaning("the stream does not carry generated columns; compute them when reading"),
        );
    }
    let partitioned = names_of(tables, |table| table.is_partitioned);
    if !partitioned.is_empty() {
        checks.push(
            Check::ok("partitions", format!("partitioned: {}", list(&partitioned))).meaning(
                "each is one table of the lake. PostgreSQL does not publish the TRUNCATE, DETACH, \
                 DROP or ATTACH (with rows) of a single partition: after one, alluvium resync the \
                 table",
            ),
        );
    }
    checks
}

async fn rights(subject: &Subject<'_>, tables: &[&SourceTable]) -> Result<Vec<Check>> {
    let oids: Vec<u32> = tables
        .iter()
        .flat_map(|table| {
            let leaves = table.leaves.iter().map(|leaf| leaf.oid);
            leaves.chain([table.schema.relation_oid])
        })
        .collect();
    let sql = "SELECT DISTINCT n.nspname, c.relname,
                      has_schema_privilege(n.oid, 'USAGE'),
                      has_table_privilege(c.oid, 'SELECT')
                          OR has_any_column_privilege(c.oid, 'SELECT'),
                      row_security_active(c.oid)
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE c.oid = ANY($1) ORDER BY 1, 2";
    let rows = subject
        .client
        .query(sql, &[&oids])
        .await
        .map_err(|error| map_error(error, "checking the role's rights"))?;
    let role = publication::quote(&subject.options.user);
    let mut checks = Vec::new();
    for row in &rows {
        let id = TableId {
            schema: get(row, 0)?,
            name: get(row, 1)?,
        };
        let (usage, select, filtered): (bool, bool, bool) =
            (get(row, 2)?, get(row, 3)?, get(row, 4)?);
        let quoted_schema = publication::quote(&id.schema);
        if !usage {
            checks.push(
                Check::fail(
                    "rights",
                    &code::PG_RIGHTS,
                    format!("no USAGE on schema of \"{id}\""),
                )
                .meaning("the table cannot be copied")
                .fix(format!("GRANT USAGE ON SCHEMA {quoted_schema} TO {role};")),
            );
        }
        if !select {
            checks.push(
                Check::fail("rights", &code::PG_RIGHTS, format!("no SELECT on \"{id}\""))
                    .meaning("the table cannot be copied")
                    .fix(format!("GRANT SELECT ON {} TO {role};", id.quoted())),
            );
        }
        if filtered {
            let finding = format!("row-level security hides rows of \"{id}\"");
            checks.push(
                Check::fail("rights", &code::PG_RIGHTS, finding)
                    .meaning("a copy would miss rows, so it is refused")
                    .fix(format!("ALTER ROLE {role} BYPASSRLS;")),
            );
        }
    }
    if checks.is_empty() {
        checks.push(Check::ok("rights", "every table can be read"));
    }
    Ok(checks)
}

async fn publication_checks(subject: &Subject<'_>, tables: &[&SourceTable]) -> Result<Vec<Check>> {
    let name = subject.publication;
    let plan = publication::plan(subject.client, name, tables).await?;
    let mut checks = Vec::new();
    if plan.statements.is_empty() {
        checks.push(Check::ok(
            "publication",
            format!("\"{name}\" covers the tables"),
        ));
    } else {
        checks.push(may_publish(subject, tables, &plan.statements).await?);
    }
    if let Some(main) = publication::load(subject.client, name).await? {
        for table in tables.iter().filter(|table| {
            table.schema.identity == Identity::AppendOnly
                && !table.append_only_asked
                && (main.update || main.delete)
                && main.members.contains_key(table.id())
        }) {
            let finding = format!("\"{name}\" publishes updates of \"{}\"", table.id());
            checks.push(
                Check::warn("publication", finding)
                    .meaning(
                        "the table has no replica identity, so every UPDATE and DELETE on it \
                         fails on the source",
                    )
                    .fix(format!(
                        "ALTER TABLE {} REPLICA IDENTITY FULL; or take the table out of the \
                         publication",
                        table.id().quoted()
                    )),
            );
        }
    }
    Ok(checks)
}

/// Whether this role may run what the publication needs.
async fn may_publish(
    subject: &Subject<'_>,
    tables: &[&SourceTable],
    statements: &[String],
) -> Result<Check> {
    let sql = "SELECT has_database_privilege(current_database(), 'CREATE'),
                      NOT EXISTS (SELECT FROM pg_publication
                                  WHERE pubname = ANY($2)
                                    AND NOT pg_has_role(pubowner, 'USAGE')),
                      NOT EXISTS (SELECT FROM pg_class
                                  WHERE oid = ANY($1) AND NOT pg_has_role(relowner, 'USAGE'))";
    let oids: Vec<u32> = tables
        .iter()
        .map(|table| table.schema.relation_oid)
        .collect();
    let names = vec![
        subject.publication.to_owned(),
        publication::append_name(subject.publication),
    ];
    let row = subject
        .client
        .query_one(sql, &[&oids, &names])
        .await
        .map_err(|error| map_error(error, "checking the role's rights"))?;
    let creates = statements
        .iter()
        .any(|statement| statement.starts_with("CREATE"));
    let may_create: bool = get(&row, 0)?;
    let (owns_publications, owns_tables): (bool, bool) = (get(&row, 1)?, get(&row, 2)?);
    let text = format!("{};", statements.join("; "));
    if (may_create || !creates) && owns_publications && owns_tables {
        let finding = format!(
            "\"{}\" is made or extended by the first run",
            subject.publication
        );
        return Ok(Check::ok("publication", finding).meaning(text));
    }
    let why = if owns_tables {
        "the role may not create or change the publication"
    } else {
        "only the owner of a table can publish it"
    };
    Ok(Check::fail(
        "publication",
        &code::PG_PUBLICATION,
        format!("\"{}\" lacks tables", subject.publication),
    )
    .meaning(why)
    .fix(text))
}
