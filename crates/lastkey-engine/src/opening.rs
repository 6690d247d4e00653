//! Opening a store: is it the one we left, and the newest?
//!
//! In numbered steps, which docs/promises/rollback.md explains:
//!
//! 1. Every record is compared with the sealed heads ([`crate::heads`]).
//! 2. The log opens, with the key that is behind the barrier, and its checkpoints are compared with
//!    the one that the store remembers. If they do not fit, that is said and holds nothing: the store
//!    is none the worse for it.
//! 3. The heads are compared with the anchor, which lies apart from the store.
//! 4. The log is compared with the store: a change in the log that the store does not know was
//!    made in a newer store.
//! 5. Anything that does not fit holds the store: nothing is served, and nothing is written, until
//!    an operator puts the right store back or accepts this one, in the log, with a reason.
//! 6. A new store, one of a release without heads, and one that was accepted get heads.

use std::sync::Arc;

use lastkey_crypto::{Entropy, KeyMaterial, SecretBytes};

use crate::{
    Caller, Error, StartError,
    action::Action,
    anchor,
    audit::{AuditSink, Head, Recalled, Record, Remembered},
    barrier::{Barrier, Batch, Expect, Inspection, Stored},
    engine::{AUDIT_KEY_PATH, CHECKPOINT_PATH, Parts},
    outbox::Outbox,
};

/// A store that can be trusted, and its log.
pub(crate) struct Opened {
    pub(crate) audit: Arc<dyn AuditSink>,
    /// Where the log ended, as the store remembered it.
    pub(crate) remembered: Option<Head>,
    /// What is missing of the log's checkpoints, or of what is known of them, for the operator.
    pub(crate) lost: Vec<String>,
    /// The operator accepted it as it is, so what callers know of it may be newer.
    pub(crate) accepted: bool,
}

/// Opens the log, and makes sure of the store, or holds it.
pub(crate) async fn open(
    parts: &Parts,
    barrier: &Barrier,
    accepted: Option<&str>,
) -> Result<Opened, StartError> {
    // 1. Records and heads.
    let inspection = barrier.inspect().await?;
    let mut findings = inspection.findings.clone();
    // 2. The log. Where what is kept of it does not open, there are findings already.
    let key = read_kept(barrier, AUDIT_KEY_PATH, &findings).await?;
    let key = key.map(|stored| KeyMaterial::from_slice(stored.value.expose()));
    let (checkpoint, forgotten) = read_checkpoint(barrier, &findings).await?;
    let audit = key.map(|key| (parts.audit)(key)).transpose()?;
    let Recalled { warning, begins_anew } = match &audit {
        Some(audit) => compare_checkpoints(audit, checkpoint).await?,
        None => Recalled::default(),
    };
    let lost: Vec<String> = forgotten.into_iter().chain(warning).collect();
    // 3. The anchor, 4. the log's newer changes.
    findings.extend(anchor::compare(&*parts.anchor, barrier, &inspection)?);
    if let Some(audit) = &audit {
        findings.extend(newer_in_log(audit, &inspection).await?);
    }
    // 5. Held, unless the operator said so.
    let restored = match (findings.is_empty(), accepted) {
        (true, _) => false,
        (false, Some(reason)) => {
            if let Some(audit) = &audit {
                findings.extend(lost.clone());
                record_acceptance(parts, &**audit, reason, &findings).await?;
            }
            true
        }
        (false, None) => {
            if let Some(audit) = audit {
                let _ = tokio::task::spawn_blocking(move || audit.close()).await;
            }
            return Err(held(&findings));
        }
    };
    // 6. Heads, where there are none that fit.
    let remembered = inspection.remembered;
    if restored || !inspection.has_heads {
        barrier.make_heads(parts.clock.now(), &*parts.anchor).await?;
    } else {
        barrier.accept(inspection)?;
    }
    if begins_anew && let Err(error) = forget_checkpoint(barrier).await {
        // The first checkpoint of the new log takes its place.
        tracing::warn!(%error, "the store still remembers a checkpoint of the log before this one");
    }
    // What it says already is true as well; a full disk must not keep an operator out.
    if let Err(error) = anchor::write(&*parts.anchor, barrier) {
        tracing::warn!(%error, "the anchor fell behind the store");
    }
    let audit = match audit {
        Some(audit) => audit,
        None => (parts.audit)(new_audit_key(barrier, &*parts.entropy).await?)?,
    };
    Ok(Opened { audit, remembered, lost, accepted: restored })
}

/// Reads a record that a store with findings may have lost.
async fn read_kept(
    barrier: &Barrier,
    path: &str,
    findings: &[String],
) -> Result<Option<Stored<SecretBytes>>, StartError> {
    match barrier.read(path).await {
        Err(_) if !findings.is_empty() => Err(held(findings)),
        read => Ok(read?),
    }
}

/// Reads which checkpoint the store remembers, or says that it does not any more: nothing but the
/// search for missing ones needs it, and the next one takes its place.
async fn read_checkpoint(
    barrier: &Barrier,
    findings: &[String],
) -> Result<(Option<Remembered>, Option<String>), StartError> {
    let known = match barrier.read(CHECKPOINT_PATH).await {
        Ok(None) => return Ok((None, None)),
        Ok(Some(stored)) => Remembered::decode(stored.value.expose()),
        Err(Error::CorruptRecord { .. }) => None,
        Err(_) if !findings.is_empty() => return Err(held(findings)),
        Err(error) => return Err(error.into()),
    };
    let forgotten = known.is_none().then(|| {
        let warning = format!(
            "the store's {CHECKPOINT_PATH} is damaged, or of another release, so nobody misses \
             checkpoints that were taken away before this start: compare audit/checkpoints.log \
             with a copy that was kept elsewhere"
        );
        tracing::error!("{warning}");
        warning
    });
    Ok((known, forgotten))
}

/// Looks whether the checkpoints are there that the store remembers.
async fn compare_checkpoints(
    audit: &Arc<dyn AuditSink>,
    remembered: Option<Remembered>,
) -> Result<Recalled, Error> {
    let log = Arc::clone(audit);
    let compared = tokio::task::spawn_blocking(move || log.recall_checkpoint(remembered));
    compared.await.map_err(|_| Error::Internal)
}

/// Has the store forget its checkpoint, which belongs to a log that was moved away.
async fn forget_checkpoint(barrier: &Barrier) -> Result<(), Error> {
    let Some(stored) = barrier.read(CHECKPOINT_PATH).await? else { return Ok(()) };
    let mut batch = Batch::default();
    batch.delete(CHECKPOINT_PATH, stored.expect());
    barrier.commit(&batch).await?;
    Ok(())
}

fn held(findings: &[String]) -> StartError {
    StartError::Held {
        reason: format!(
            "this is not the newest state of the store: {}. Put the right store.redb back, \
             or restore the whole data directory from one backup; if what is there now is what \
             you want to go on with, run `lastkey operator accept-restore --reason TEXT`",
            findings.join("; ")
        ),
    }
}

/// Looks for changes that a newer store has made.
async fn newer_in_log(
    audit: &Arc<dyn AuditSink>,
    inspection: &Inspection,
) -> Result<Option<String>, Error> {
    let remembered = inspection.remembered.map_or(0, |head| head.seq);
    if audit.head().seq <= remembered {
        return Ok(None);
    }
    let (log, parcels) = (Arc::clone(audit), inspection.parcels.clone());
    let newer =
        tokio::task::spawn_blocking(move || Outbox::newer_changes(&*log, remembered, &parcels));
    let newer = newer.await.map_err(|_| Error::Internal)??;
    Ok(newer.map(|seq| {
        format!("the audit log has a change (record {seq}) that the store does not have")
    }))
}

/// Nothing is accepted that is not in the log.
async fn record_acceptance(
    parts: &Parts,
    audit: &dyn AuditSink,
    reason: &str,
    findings: &[String],
) -> Result<(), Error> {
    let caller = Caller::system(&*parts.entropy);
    let mut record = Record::begin(Action::AcceptRestore.name(), &caller, parts.clock.now());
    record.field("reason", reason);
    record.field("found", findings.join("; "));
    tracing::warn!(reason, "the store is accepted as it is: key ids change");
    audit.append(record.finish("ok", std::time::Duration::ZERO)).await?;
    Ok(())
}

/// The key of the log's authentication codes: made once, kept behind the barrier.
async fn new_audit_key(barrier: &Barrier, entropy: &dyn Entropy) -> Result<KeyMaterial, Error> {
    let key = KeyMaterial::generate(32, entropy);
    let mut batch = Batch::default();
    batch.put(barrier, AUDIT_KEY_PATH, key.expose(), Expect::Absent)?;
    barrier.commit(&batch).await?;
    Ok(key)
}
