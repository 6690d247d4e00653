//! What a control-plane node says about itself: static pod manifests, processes, and a plugin's
//! socket as an apiserver finds it.
//!
//! Read for the doctor alone; nothing here changes anything.

mod manifest;
mod probe;
mod process;

pub use manifest::{Manifest, ManifestError};
pub use probe::{Answer, ProbeError, ask_status};
pub use process::{Process, processes};
