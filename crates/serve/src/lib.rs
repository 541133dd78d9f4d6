//! The servers inside `alluvium run`: metrics, health, status and SQL over HTTP, SQL by PostgreSQL's protocol.
//!
//! ```text
//! StatusBoard ──► GET /metrics, /healthz, /api/v1/status
//! lake ─► query ─► POST /api/v1/sql, psql and its kin
//! ```
//!
//! Stands above `pipeline` and `query`, and thin: what is answered is made there. Invariant: nothing
//! here holds up the pipeline. The server has a runtime of its own and queries have another; of the
//! pipeline it takes a copy of the status.
//!
//! - [`Server`]: from the settings to a running server, and its end

mod answer;
mod guard;
mod query;
mod routes;
mod server;
mod wire;

pub use server::Server;
