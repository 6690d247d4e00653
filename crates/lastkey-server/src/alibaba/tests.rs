//! Snapshots of what this wire says.
