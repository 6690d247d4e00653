//! After a key or an identity was taken away: the answer waits until the plugins have confirmed, and
//! names those that have not (decision 8).

use std::time::Duration;

use lastkey_engine::{Engine, Error, Taken, Unconfirmed};

/// How long plugins that are connected have to confirm. They do within two round trips.
const PATIENCE: Duration = Duration::from_secs(3);

/// Who may still go by what it was told before.
///
/// # Errors
/// Nobody knows; the change was made all the same.
pub(crate) async fn unconfirmed(engine: &Engine, taken: &Taken) -> Result<Vec<Unconfirmed>, Error> {
    let held = engine.unconfirmed(taken, PATIENCE).await;
    let held = held.map_err(|error| Error::Uncertain(error.to_string()))?;
    for Unconfirmed { cluster, plugin, until, .. } in &held {
        tracing::warn!(%cluster, plugin, %until, "a plugin has not confirmed; its lease runs");
    }
    Ok(held)
}
