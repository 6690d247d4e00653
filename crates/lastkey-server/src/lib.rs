//! The HTTP and TLS front ends of Lastkey.
#[path = "../../lastkey-engine/src/time.rs"]
mod time;
pub mod alibaba;
pub mod params;
