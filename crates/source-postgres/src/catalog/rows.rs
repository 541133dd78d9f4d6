//! What the system catalogs say of the wanted tables: queries and plain rows.
//!
//! Before [`super::build`], which draws conclusions. A fixed number of queries, whatever the
//! number of tables.

use alluvium_change::{Error, Result, TableId, code};
use tokio_postgres::types::FromSql;
use tokio_postgres::{Client, Row};

use crate::connect::map_error;

const DOING: &str = "reading the catalog";

/// A row of `pg_class`: a table, or a leaf partition of one.
#[derive(Debug, Clone, Default)]
pub(super) struct Relation {
    pub(super) oid: u32,
    pub(super) id: Option<TableId>,
    pub(super) kind: char,
    pub(super) replica_identity: char,
}

#[derive(Debug, Clone)]
pub(super) struct AttributeRow {
    pub(super) relation_oid: u32,
    pub(super) attribute: super::Attribute,
    /// With type modifier, as people write it.
    pub(super) type_label: String,
    pub(super) dimensions: i32,
}

#[derive(Debug, Clone)]
pub(super) struct IndexRow {
    pub(super) relation_oid: u32,
    pub(super) is_primary: bool,
    pub(super) is_replica_identity: bool,
    /// Usable as an identity: valid, checked at once, of whole columns and all rows.
    pub(super) is_usable: bool,
    pub(super) columns: Vec<String>,
}

#[derive(Debug, Clone)]
pub(super) struct LeafRow {
    pub(super) root_oid: u32,
    pub(super) relation: Relation,
    pub(super) is_permanent: bool,
    pub(super) relfilenode: u32,
    pub(super) size_bytes: i64,
    /// With TOAST, without indexes.
    pub(super) total_bytes: i64,
    pub(super) has_toast: bool,
    pub(super) tuples: f64,
    pub(super) pages_then: i32,
}

/// A column of a row, or an error naming the place.
pub(crate) fn get<'r, T: FromSql<'r>>(row: &'r Row, at: usize) -> Result<T> {
    row.try_get(at).map_err(|error| {
        Error::new(
            &code::PG_PROTOCOL,
            format!("{DOING}: column {at} of an answer"),
        )
        .with_source(error)
    })
}

pub(crate) fn get_char(row: &Row, at: usize) -> Result<char> {
    Ok(get::<String>(row, at)?.chars().next().unwrap_or(' '))
}

/// `server_version_num`, 150004 for 15.4.
pub(crate) async fn server_version(client: &Client) -> Result<i32> {
    let row = client
        .query_one(
            "SELECT pg_catalog.current_setting('server_version_num')::int4",
            &[],
        )
        .await
        .map_err(|error| map_error(error, "asking for the server's version"))?;
    get(&row, 0)
}

/// Permanent tables and partitioned roots that belong to users.
pub(super) async fn relations(client: &Client) -> Result<Vec<Relation>> {
    let sql = r"
        SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relreplident::text
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition
          AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
          AND NOT EXISTS (
              SELECT FROM pg_depend d
              WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e')
        ORDER BY n.nspname, c.relname";
    let rows = client
        .query(sql, &[])
        .await
        .map_err(|error| map_error(error, DOING))?;
    rows.iter().map(|row| relation(row, 0)).collect()
}

/// A text that is another one after any change to users' tables, their columns, unique indexes or
/// schemas. By the rows' transactions, which VACUUM and ANALYZE leave as they are.
pub(super) async fn fingerprint(client: &Client) -> Result<String> {
    // 16384 is the first oid that is not the system's.
    let sql = r"
        SELECT concat_ws(' ',
            (SELECT concat_ws(' ', count(*),
                        sum(hashtext(concat_ws('.', c.oid, c.xmin, a.attnum, a.xmin))))
             FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
             WHERE c.oid >= 16384 AND c.relkind IN ('r', 'p', 'c') AND c.relpersistence <> 't'),
            (SELECT concat_ws(' ', count(*), sum(hashtext(concat_ws('.', i.indexrelid, i.xmin))))
             FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
             WHERE c.oid >= 16384 AND i.indisunique AND c.relpersistence <> 't'),
            (SELECT concat_ws(' ', count(*), sum(hashtext(concat_ws('.', oid, xmin))))
             FROM pg_namespace WHERE nspname !~ '^pg_'))";
    let row = client
        .query_one(sql, &[])
        .await
        .map_err(|error| map_error(error, DOING))?;
    get(&row, 0)
}

fn relation(row: &Row, at: usize) -> Result<Relation> {
    Ok(Relation {
        oid: get(row, at)?,
        id: Some(TableId {
            schema: get(row, at + 1)?,
            name: get(row, at + 2)?,
        }),
        kind: get_char(row, at + 3)?,
        replica_identity: get_char(row, at + 4)?,
    })
}

/// Columns that exist, in their order.
pub(super) async fn attributes(client: &Client, oids: &[u32]) -> Result<Vec<AttributeRow>> {
    // array_to_string prints the one element without an array's quotes.
    let sql = r"
        SELECT a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull,
               CASE WHEN a.atthasmissing THEN array_to_string(a.attmissingval, '') END,
               a.atthasdef, a.attidentity::text, a.attgenerated::text, a.attstorage::text,
               format_type(a.atttypid, a.atttypmod),
               CASE WHEN t.typtype = 'd' THEN t.typndims ELSE a.attndims::int4 END
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY a.attrelid, a.attnum";
    let rows = client
        .query(sql, &[&oids])
        .await
        .map_err(|error| map_error(error, DOING))?;
    let parse = |row: &Row| {
        Ok(AttributeRow {
            relation_oid: get(row, 0)?,
            attribute: super::Attribute {
                attnum: get(row, 1)?,
                name: get(row, 2)?,
                type_oid: get(row, 3)?,
                typmod: get(row, 4)?,
                not_null: get(row, 5)?,
                missing_value: get(row, 6)?,
                has_default: get(row, 7)?,
                is_identity: get_char(row, 8)? != ' ',
                is_generated: get_char(row, 9)? != ' ',
                storage: get_char(row, 10)?,
                column: None,
            },
            type_label: get(row, 11)?,
            dimensions: get(row, 12)?,
        })
    };
    rows.iter().map(parse).collect()
}

/// Unique indexes of tables and leaves.
pub(super) async fn indexes(client: &Client, oids: &[u32]) -> Result<Vec<IndexRow>> {
    let sql = r"
        SELECT i.indrelid, i.indisprimary, i.indisreplident,
               i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL,
               ARRAY(SELECT a.attname::text
                     FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
                     JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                     WHERE k.place <= i.indnkeyatts ORDER BY k.place)
        FROM pg_index i WHERE i.indrelid = ANY($1) AND i.indisunique
        ORDER BY i.indrelid, i.indexrelid";
    let rows = client
        .query(sql, &[&oids])
        .await
        .map_err(|error| map_error(error, DOING))?;
    let parse = |row: &Row| {
        Ok(IndexRow {
            relation_oid: get(row, 0)?,
            is_primary: get(row, 1)?,
            is_replica_identity: get(row, 2)?,
            is_usable: get(row, 3)?,
            columns: get(row, 4)?,
        })
    };
    rows.iter().map(parse).collect()
}

/// Where the rows of each table lie: itself, or its leaf partitions.
pub(super) async fn leaves(client: &Client, oids: &[u32]) -> Result<Vec<LeafRow>> {
    let sql = r"
        SELECT t.root, c.oid, n.nspname, c.relname, c.relkind::text, c.relreplident::text,
               c.relpersistence = 'p', c.relfilenode,
               COALESCE(pg_relation_size(c.oid), 0), COALESCE(pg_table_size(c.oid), 0),
               c.reltoastrelid <> 0, c.reltuples::float8, c.relpages
        FROM (SELECT o AS root, o AS leaf FROM unnest($1::oid[]) AS o
              JOIN pg_class r ON r.oid = o WHERE r.relkind = 'r'
              UNION ALL
              SELECT o, p.relid FROM unnest($1::oid[]) AS o
              JOIN pg_class r ON r.oid = o
              CROSS JOIN LATERAL pg_partition_tree(o) AS p
              WHERE r.relkind = 'p' AND p.isleaf) AS t
        JOIN pg_class c ON c.oid = t.leaf JOIN pg_namespace n ON n.oid = c.relnamespace
        ORDER BY t.root, n.nspname, c.relname";
    let rows = client
        .query(sql, &[&oids])
        .await
        .map_err(|error| map_error(error, DOING))?;
    let parse = |row: &Row| {
        Ok(LeafRow {
            root_oid: get(row, 0)?,
            relation: relation(row, 1)?,
            is_permanent: get(row, 6)?,
            relfilenode: get(row, 7)?,
            size_bytes: get(row, 8)?,
            total_bytes: get(row, 9)?,
            has_toast: get(row, 10)?,
            tuples: get(row, 11)?,
            pages_then: get(row, 12)?,
        })
    };
    rows.iter().map(parse).collect()
}

/// Decimal digits of the database's own currency: `money` counts in that unit.
///
/// Sessions print it under `lc_monetary = 'C'`, which hides the unit.
pub(super) async fn money_fraction_digits(client: &Client) -> Result<u8> {
    let failed = |error| map_error(error, "asking for the currency's unit");
    client
        .execute(
            "SELECT set_config('lc_monetary', reset_val, false) FROM pg_settings \
             WHERE name = 'lc_monetary'",
            &[],
        )
        .await
        .map_err(failed)?;
    let unit = client
        .query_one("SELECT cash_send(1::int4::money)", &[])
        .await
        .map_err(failed);
    client
        .batch_execute("SET lc_monetary = 'C'")
        .await
        .map_err(failed)?;
    let bytes: Vec<u8> = get(&unit?, 0)?;
    let unit = <[u8; 8]>::try_from(bytes.as_slice())
        .map(i64::from_be_bytes)
        .unwrap_or(100);
    Ok(unit
        .checked_ilog10()
        .and_then(|digits| u8::try_from(digits).ok())
        .unwrap_or(2))
}
