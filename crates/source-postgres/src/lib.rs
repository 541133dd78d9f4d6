//! source-postgres

pub mod capture;
pub mod catalog;
pub mod connect;
pub mod copy;
pub mod pgoutput;
pub mod preflight;
pub mod publication;
pub mod replication;
pub mod slot;
pub mod streamed;
pub mod tuples;
pub mod type_map;
pub mod value;

mod wire;
