//! Checks of two-phase commit: whether prepared transactions can come when they are prepared, whether
//! the slot agrees with the setting, and whether one was forgotten.

use alluvium_change::{Result, code};
use tokio_postgres::Client;

use super::Check;
use crate::catalog::{get, server_version};
use crate::connect::{self, ConnectOptions, map_error};
use crate::replication::TWO_PHASE_VERSION;
use crate::slot;

/// Prepared transactions wait for another system's decision, which takes no longer when all is well.
const FORGOTTEN_SECS: i64 = 600;
/// The first version whose slots can be made to send no prepared transactions again.
const ALTER_VERSION: i32 = 180_000;

/// Checks prepared transactions, and what the slot does with them against what is `wanted`. A server
/// that cannot be reached is for the other checks to tell.
pub async fn check_two_phase(options: &ConnectOptions, slot: &str, wanted: bool) -> Vec<Check> {
    let Ok(client) = connect::connect(options).await else {
        return Vec::new();
    };
    match checks(&client, slot, wanted).await {
        Ok(checks) => checks,
        Err(error) => vec![Check::error("two_phase", &error)],
    }
}

async fn checks(client: &Client, slot: &str, wanted: bool) -> Result<Vec<Check>> {
    let version = server_version(client).await?;
    if wanted && i64::from(version) < i64::from(TWO_PHASE_VERSION) {
        let finding = "two_phase = true, but the server is older than PostgreSQL 15";
        let check = Check::fail("two_phase", &code::CONFIG_VALUE, finding)
            .meaning("it sends prepared transactions when they are committed")
            .fix("set two_phase = false, or upgrade the server");
        return Ok(vec![check]);
    }
    let state = slot::state(client, slot).await?;
    let slot_does = state.as_ref().is_some_and(|state| state.two_phase);
    let mut checks = Vec::new();
    if slot_does && !wanted {
        checks.push(stays_on(slot, version));
    } else if wanted {
        checks.push(on(client).await?);
    }
    if slot_does || wanted || state.is_some() {
        checks.extend(forgotten(client, slot_does || wanted).await?);
    }
    Ok(checks)
}

fn stays_on(slot: &str, version: i32) -> Check {
    let check = Check::warn(
        "two_phase",
        format!("slot \"{slot}\" sends transactions when they are prepared, and two_phase is off"),
    )
    .meaning("a slot goes on to do so once it did; they are received as with two_phase = true");
    if version < ALTER_VERSION {
        return check.fix("set two_phase = true");
    }
    check.fix(format!(
        "set two_phase = true, or while alluvium does not run: psql \"dbname=... \
         replication=database\" -c 'ALTER_REPLICATION_SLOT {slot} (TWO_PHASE false)'"
    ))
}

async fn on(client: &Client) -> Result<Check> {
    let sql = "SELECT current_setting('max_prepared_transactions')::int8";
    let row = client
        .query_one(sql, &[])
        .await
        .map_err(|error| map_error(error, "checking the server"))?;
    let most: i64 = get(&row, 0)?;
    Ok(if most == 0 {
        Check::ok("two_phase", "on, but max_prepared_transactions is 0")
            .meaning("the server prepares no transactions")
    } else {
        Check::ok("two_phase", "on")
            .meaning("transactions are received when they are prepared, and kept until decided")
    })
}

async fn forgotten(client: &Client, two_phase: bool) -> Result<Option<Check>> {
    let sql = "SELECT gid, extract(epoch FROM clock_timestamp() - prepared)::int8
               FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared LIMIT 1";
    let oldest = client
        .query_opt(sql, &[])
        .await
        .map_err(|error| map_error(error, "checking prepared transactions"))?;
    let Some(oldest) = oldest else {
        return Ok(None);
    };
    let (gid, age_secs): (String, i64) = (get(&oldest, 0)?, get(&oldest, 1)?);
    if age_secs < FORGOTTEN_SECS {
        return Ok(None);
    }
    let quoted = gid.replace('\'', "''");
    let meaning = if two_phase {
        "until it is decided the server keeps its log from then on, and sends it again after each \
         restart of alluvium"
    } else {
        "until it is decided the server keeps its log from then on, and no table can begin its copy"
    };
    Ok(Some(
        Check::warn(
            "prepared",
            format!("transaction \"{gid}\" was prepared {age_secs} s ago and is undecided"),
        )
        .meaning(meaning)
        .fix(format!(
            "SELECT * FROM pg_prepared_xacts; then COMMIT PREPARED '{quoted}' or ROLLBACK PREPARED '{quoted}'"
        )),
    ))
}
