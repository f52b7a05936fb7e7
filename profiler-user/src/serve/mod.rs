//! What the agent tells of itself over HTTP: metrics, whether it lives and is ready, and what it
//! profiles. Reads what the pipeline has left; never waits for it, and it never for this.

mod health;
mod http;
mod metrics;
mod telling;

pub use health::{Beat, Health};
pub use http::{DEFAULT_LISTEN, Listen, ListenError, serve};
pub use metrics::encode_metrics;
pub use telling::{Target, Telling};
