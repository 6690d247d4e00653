//! How a request proves who sends it when no client certificate does.

pub mod acs3;
