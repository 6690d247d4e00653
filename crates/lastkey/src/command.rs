//! The commands that talk to a server, one module each.

pub(crate) mod audit;
pub(crate) mod ca;
pub(crate) mod cluster;
pub(crate) mod doctor;
pub(crate) mod file;
pub(crate) mod generate;
pub(crate) mod key;
pub(crate) mod operator;
pub(crate) mod status;
mod wire;
