//! Checks of server, role and slot.

use alluvium_change::{Result, code};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::{Check, Subject, bytes_text};
use crate::catalog::get;
use crate::connect::map_error;
use crate::replication::ReplicationConnection;
use crate::slot::{self, SlotState};

const OLDEST_VERSION: i32 = 130_000;
/// The first version that decodes on a standby.
const STANDBY_VERSION: i32 = 160_000;
const OLD_TRANSACTION_SECS: i64 = 60;
const SHORT_SENDER_TIMEOUT_MS: i64 = 10_000;

pub(super) fn version(version: i32) -> Check {
    let text = format!("PostgreSQL {}.{}", version / 10_000, version % 10_000);
    if version < OLDEST_VERSION {
        return Check::fail("version", &code::PG_VERSION, text)
            .meaning("versions before 13 are not supported")
            .fix("upgrade the server");
    }
    Check::ok("version", text)
}

pub(super) async fn check(subject: &Subject<'_>) -> Vec<Check> {
    let client = subject.client;
    let slot_state = slot::state(client, subject.slot).await;
    let slot_exists = matches!(slot_state, Ok(Some(_)));
    let mut checks = vec![
        or_error("wal_level", wal_level(client).await),
        or_error("role", role(subject).await),
        session(subject).await,
        or_error("slots", slots(client, slot_exists).await),
        or_error("senders", senders(client).await),
    ];
    match slot_state {
        Err(error) => checks.push(Check::error("slot", &error)),
        Ok(None) => {
            checks.push(
                Check::ok("slot", format!("\"{}\" does not exist yet", subject.slot))
                    .meaning("it is created by the first run"),
            );
            checks.push(or_error("transactions", old_transactions(client).await));
        }
        Ok(Some(state)) => {
            checks.push(slot_use(subject, &state));
            checks.push(or_error("slot_wal", slot_wal(subject, &state).await));
        }
    }
    checks.push(or_error("settings", sender_timeout(client).await));
    if let Some(check) = standby(subject).await.transpose() {
        checks.push(or_error("standby", check));
    }
    if let Some(check) = encoding(client).await.transpose() {
        checks.push(or_error("encoding", check));
    }
    checks
}

fn or_error(name: &'static str, check: Result<Check>) -> Check {
    check.unwrap_or_else(|error| Check::error(name, &error))
}

/// One row of a query.
async fn row(
    client: &Client,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<tokio_postgres::Row> {
    client
        .query_one(sql, parameters)
        .await
        .map_err(|error| map_error(error, "checking the server"))
}

async fn wal_level(client: &Client) -> Result<Check> {
    let level: String = get(
        &row(client, "SELECT current_setting('wal_level')", &[]).await?,
        0,
    )?;
    if level == "logical" {
        return Ok(Check::ok("wal_level", "logical"));
    }
    Ok(Check::fail("wal_level", &code::PG_WAL_LEVEL, level)
        .meaning("the log does not hold what logical replication needs")
        .fix("ALTER SYSTEM SET wal_level = 'logical'; then restart the server"))
}

async fn role(subject: &Subject<'_>) -> Result<Check> {
    let sql = "SELECT r.rolname, r.rolsuper, r.rolreplication, EXISTS (
                   SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication'
                      AND pg_has_role(current_user, g.oid, 'member'))
               FROM pg_roles r WHERE r.rolname = current_user";
    let row = row(subject.client, sql, &[]).await?;
    let name: String = get(&row, 0)?;
    let how = match (get(&row, 1)?, get(&row, 2)?, get(&row, 3)?) {
        (true, _, _) => "is a superuser",
        (_, true, _) => "has the REPLICATION attribute",
        (_, _, true) => "is a member of rds_replication",
        _ => {
            return Ok(Check::fail(
                "role",
                &code::PG_RIGHTS,
                format!("\"{name}\" may not replicate"),
            )
            .meaning("only a role with the REPLICATION attribute may read the log")
            .fix(format!(
                "ALTER ROLE {} REPLICATION; -- on Amazon RDS: GRANT rds_replication TO {}",
                crate::publication::quote(&name),
                crate::publication::quote(&name)
            )));
        }
    };
    Ok(Check::ok("role", format!("\"{name}\" {how}")))
}

/// Really opens a replication session: `pg_hba.conf` and proxies have their say here.
async fn session(subject: &Subject<'_>) -> Check {
    let identify = async {
        let mut connection = ReplicationConnection::connect(subject.options).await?;
        let identity = connection.identify_system().await?;
        connection.close().await?;
        Ok(identity)
    };
    match identify.await {
        Ok(identity) => Check::ok(
            "replication",
            format!(
                "system {}, timeline {}",
                identity.system_identifier, identity.timeline
            ),
        ),
        Err(error) => Check::error("replication", &error),
    }
}

async fn slots(client: &Client, ours_exists: bool) -> Result<Check> {
    let sql = "SELECT count(*), current_setting('max_replication_slots')::int8 \
               FROM pg_replication_slots";
    let row = row(client, sql, &[]).await?;
    let (used, limit): (i64, i64) = (get(&row, 0)?, get(&row, 1)?);
    let finding = format!("{used} of {limit} in use");
    if ours_exists || used < limit {
        return Ok(Check::ok("slots", finding));
    }
    Ok(Check::fail("slots", &code::PG_SLOTS_FULL, finding)
        .meaning("no slot can be created")
        .fix(
            "SELECT slot_name, active FROM pg_replication_slots; then drop an unused one: SELECT \
             pg_drop_replication_slot('...'); or ALTER SYSTEM SET max_replication_slots = 20; and \
             restart",
        ))
}

async fn senders(client: &Client) -> Result<Check> {
    let sql = "SELECT count(*), current_setting('max_wal_senders')::int8 \
               FROM pg_stat_activity WHERE backend_type = 'walsender'";
    let row = row(client, sql, &[]).await?;
    let (used, limit): (i64, i64) = (get(&row, 0)?, get(&row, 1)?);
    let finding = format!("{used} of {limit} in use");
    if used < limit {
        return Ok(Check::ok("senders", finding));
    }
    Ok(Check::fail("senders", &code::PG_SLOTS_FULL, finding)
        .meaning("no stream can be opened")
        .fix("ALTER SYSTEM SET max_wal_senders = 20; then restart the server"))
}

async fn old_transactions(client: &Client) -> Result<Check> {
    let sql = "SELECT pid, extract(epoch FROM age)::int8 FROM (
                   SELECT pid, clock_timestamp() - xact_start AS age FROM pg_stat_activity
                   WHERE backend_xid IS NOT NULL AND datname = current_database()
                   UNION ALL
                   SELECT NULL, clock_timestamp() - prepared FROM pg_prepared_xacts) AS t
               WHERE age IS NOT NULL ORDER BY age DESC LIMIT 1";
    let oldest = client
        .query_opt(sql, &[])
        .await
        .map_err(|error| map_error(error, "checking transactions"))?;
    let Some(oldest) = oldest else {
        return Ok(Check::ok("transactions", "no transaction is open"));
    };
    let (pid, age_secs): (Option<i32>, i64) = (get(&oldest, 0)?, get(&oldest, 1)?);
    if age_secs < OLD_TRANSACTION_SECS {
        return Ok(Check::ok(
            "transactions",
            format!("the oldest is {age_secs} s old"),
        ));
    }
    let (who, fix) = match pid {
        Some(pid) => (
            format!("process {pid}"),
            format!("SELECT * FROM pg_stat_activity WHERE pid = {pid};"),
        ),
        None => (
            "a prepared transaction".to_owned(),
            "SELECT * FROM pg_prepared_xacts;".to_owned(),
        ),
    };
    Ok(Check::warn(
        "transactions",
        format!("{who} has written for {age_secs} s without a commit"),
    )
    .meaning("creating the slot waits until it ends")
    .fix(fix))
}

fn slot_use(subject: &Subject<'_>, state: &SlotState) -> Check {
    let name = subject.slot;
    let drop = format!(
        "SELECT pg_drop_replication_slot('{}');",
        name.replace('\'', "''")
    );
    if state.plugin.as_deref() != Some("pgoutput") {
        let plugin = state.plugin.as_deref().unwrap_or("none: it is physical");
        return Check::fail(
            "slot",
            &code::CONFIG_VALUE,
            format!("\"{name}\" has plugin {plugin}"),
        )
        .meaning("it belongs to another program")
        .fix("name another slot in the project file: slot = \"...\"");
    }
    if state.database.as_ref() != Some(&subject.options.database) {
        let database = state.database.as_deref().unwrap_or("?");
        let finding = format!("\"{name}\" belongs to database \"{database}\"");
        return Check::fail("slot", &code::CONFIG_VALUE, finding)
            .meaning("a slot reads one database")
            .fix("name another slot in the project file: slot = \"...\"");
    }
    if let Some(reason) = &state.invalidation {
        let finding = format!("\"{name}\" is no longer usable: {reason}");
        return Check::fail("slot", &code::PG_SLOT_LOST, finding)
            .meaning("changes since its last position are lost to this lake")
            .fix(format!("{drop} then: alluvium resync --all"));
    }
    if let Some(pid) = state.active_pid.filter(|_| state.active) {
        let application = state.active_application.as_deref().unwrap_or("unknown");
        let finding =
            format!("\"{name}\" is read by process {pid} (application \"{application}\")");
        return Check::warn("slot", finding)
            .meaning(
                "only one program can read a slot; this is right when it is this project's run",
            )
            .fix(format!("SELECT pg_terminate_backend({pid});"));
    }
    let confirmed = state
        .confirmed_flush_lsn
        .map_or_else(|| "nothing".to_owned(), |lsn| lsn.to_string());
    Check::ok(
        "slot",
        format!("\"{name}\" is acknowledged up to {confirmed}"),
    )
}

async fn slot_wal(subject: &Subject<'_>, state: &SlotState) -> Result<Check> {
    let sql = "SELECT setting::int8 * 1024 * 1024 FROM pg_settings \
               WHERE name = 'max_slot_wal_keep_size'";
    let limit: i64 = get(&row(subject.client, sql, &[]).await?, 0)?;
    let retained = state.retained_wal_bytes.unwrap_or(0).max(0);
    let held = bytes_text(retained.unsigned_abs());
    if limit < 0 {
        return Ok(
            Check::ok("slot_wal", format!("{held} of log kept, without a limit"))
                .meaning("the log grows on the server's disk while alluvium does not run"),
        );
    }
    let finding = format!(
        "{held} of log kept, of {} allowed",
        bytes_text(limit.unsigned_abs())
    );
    let in_danger = matches!(state.wal_status.as_deref(), Some("unreserved" | "lost"));
    if in_danger || retained > limit / 2 {
        return Ok(Check::warn("slot_wal", finding)
            .meaning("beyond the limit the slot is lost and all tables have to be copied afresh")
            .fix("start alluvium, or ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf();"));
    }
    Ok(Check::ok("slot_wal", finding))
}

async fn sender_timeout(client: &Client) -> Result<Check> {
    let sql = "SELECT setting::int8 FROM pg_settings WHERE name = 'wal_sender_timeout'";
    let timeout_ms: i64 = get(&row(client, sql, &[]).await?, 0)?;
    if timeout_ms == 0 {
        return Ok(Check::warn("settings", "wal_sender_timeout is off")
            .meaning("after a broken network the slot stays taken until TCP gives up")
            .fix("ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();"));
    }
    if timeout_ms < SHORT_SENDER_TIMEOUT_MS {
        return Ok(
            Check::warn("settings", format!("wal_sender_timeout is {timeout_ms} ms"))
                .meaning("a short pause already ends the stream, which then reconnects")
                .fix("ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();"),
        );
    }
    Ok(Check::ok(
        "settings",
        format!("wal_sender_timeout is {} s", timeout_ms / 1000),
    ))
}

async fn standby(subject: &Subject<'_>) -> Result<Option<Check>> {
    let sql = "SELECT pg_is_in_recovery(), current_setting('hot_standby_feedback') = 'on'";
    let row = row(subject.client, sql, &[]).await?;
    let (is_standby, has_feedback): (bool, bool) = (get(&row, 0)?, get(&row, 1)?);
    if !is_standby {
        return Ok(None);
    }
    if subject.version < STANDBY_VERSION {
        return Ok(Some(
            Check::fail("standby", &code::PG_VERSION, "the server is a standby")
                .meaning("standbys can be read from PostgreSQL 16 on")
                .fix("point url at the primary"),
        ));
    }
    if !has_feedback {
        return Ok(Some(
            Check::warn(
                "standby",
                "the server is a standby without hot_standby_feedback",
            )
            .meaning("the primary may remove what the slot needs, and the slot is lost")
            .fix("ALTER SYSTEM SET hot_standby_feedback = on; SELECT pg_reload_conf();"),
        ));
    }
    Ok(Some(
        Check::ok("standby", "the server is a standby")
            .meaning("publications have to be made on its primary"),
    ))
}

async fn encoding(client: &Client) -> Result<Option<Check>> {
    let sql = "SELECT current_setting('server_encoding')";
    let encoding: String = get(&row(client, sql, &[]).await?, 0)?;
    Ok((encoding == "SQL_ASCII").then(|| {
        Check::warn("encoding", "the database's encoding is SQL_ASCII").meaning(
            "the server does not know the encoding of its texts; a text that is not UTF-8 stops \
             its table",
        )
    }))
}
