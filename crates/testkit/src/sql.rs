//! Schemas and data that several tests use, each to be run with
//! [`PgCluster::execute_in`](crate::PgCluster::execute_in).

/// Every type of the type map with its difficult values: one table per group of types, all in
/// schema `types`, each with the primary key `id`.
pub const TYPES: &str = include_str!("../sql/types.sql");

/// Run after [`TYPES`]: inserts, an update of each column, and deletes, in several transactions.
pub const TYPES_CHANGES: &str = include_str!("../sql/types_changes.sql");

/// Types that PostgreSQL has only from version 14 on (multiranges); otherwise as [`TYPES`].
pub const TYPES_14: &str = include_str!("../sql/types_14.sql");

/// Tables with unusual names, identities, partitions, generated columns, inheritance.
pub const NAMES: &str = include_str!("../sql/names.sql");

/// Run after [`NAMES`]: changes each of its tables, in one transaction.
pub const NAMES_CHANGES: &str = include_str!("../sql/names_changes.sql");

/// The Shop database: customers, products, orders, order items, with triggers and seed rows.
pub const SHOP: &str = include_str!("../sql/shop.sql");

/// The function `shop_step()`: one random small transaction on [`SHOP`]'s tables a call.
pub const SHOP_TRAFFIC: &str = include_str!("../../../examples/shop/traffic.sql");
