//! A change of the seal of which nobody knows whether it was made.
//!
//! While its disk is away, the store answers neither a change with what became of it nor who looks.
//! The root key that came with the change may be the store's by then, and the one in memory open
//! nothing. So it is kept, in locked memory, and the store asked until it tells; nothing else is
//! ordered before that. Where the server is sealed or ends meanwhile, the next opening finds what
//! it needs in the seal and in the store's record of it; a token that came with the change is kept
//! for it, and the root key is not.

use std::{sync::Arc, time::Duration};

use lastkey_crypto::KeyMaterial;

use super::{Instance, OperatorError, Work};
use crate::{
    Engine, Parts, Seal, StartError,
    seal::{Kept, RootPrint, SealRecord},
};

/// The store is asked this often.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What the store holds if the change was made.
pub(super) struct Doubt {
    pub(super) next: SealRecord,
    pub(super) root: Option<Arc<KeyMaterial>>,
    /// The token that the root key is under then, where it is another one.
    pub(super) token: Option<Arc<dyn Seal>>,
}

impl Doubt {
    /// The token that came with the change, if the store's record says that it was made.
    pub(super) fn token_of(&self, record: &SealRecord) -> Option<Arc<dyn Seal>> {
        self.token.clone().filter(|_| *record == self.next)
    }
}

impl Instance {
    /// Keeps what the change may have brought, and asks the store what became of it.
    pub(super) fn doubt(&self, work: &mut Work, doubt: Doubt) {
        tracing::error!(
            "the seal may have been changed: the store cannot be read, and is asked on"
        );
        work.doubt = Some(doubt);
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(ASK_EVERY).await;
                let Some(inner) = inner.upgrade() else { return };
                let instance = Self { inner };
                let mut work = instance.work().await;
                if work.doubt.is_none() || instance.ask(&mut work).await.is_ok() {
                    return;
                }
            }
        });
    }

    /// Asks once; the doubt stays where there is no answer.
    async fn ask(&self, work: &mut Work) -> Result<(), StartError> {
        let Some(parts) = &self.inner.parts else { return Ok(()) };
        let kept = Kept::load(&*parts.store).await?;
        if let Ok(engine) = self.engine() {
            end_doubt(work, &kept, (&engine, parts)).await;
        }
        self.show(work).await
    }
}

/// Makes sure that the engine has the root key that the store's record names. An order that is
/// built upon another one leaves a store that nothing opens.
///
/// # Errors
/// It has not, and nobody here has.
pub(super) async fn settled(
    work: &mut Work,
    kept: &Kept,
    (engine, parts): (&Engine, &Parts),
) -> Result<(), OperatorError> {
    end_doubt(work, kept, (engine, parts)).await;
    // Stores of releases before 0.2 name none.
    match kept.record.root {
        Some(root) if root != RootPrint::of(&engine.root_key()) => Err(OperatorError::OtherRoot),
        _ => Ok(()),
    }
}

/// The store tells what it holds: goes on with the change if that is it, or without.
async fn end_doubt(work: &mut Work, kept: &Kept, (engine, parts): (&Engine, &Parts)) {
    let Some(Doubt { next, root, token }) = work.doubt.take() else { return };
    if kept.record == next {
        if let Some(token) = token {
            parts.seal.use_token(token);
        }
        engine.sealed_anew(&next, root, parts).await;
        tracing::warn!("the change of the seal that was in doubt was made");
    } else {
        tracing::warn!("the change of the seal that was in doubt was not made");
    }
}
