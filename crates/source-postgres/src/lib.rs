//! source-postgres

pub mod connect;
pub mod replication;
