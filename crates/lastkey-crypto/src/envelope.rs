//! The file envelope.
