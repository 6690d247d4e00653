//! The service: its status and its certificates.

use lastkey_engine::{
    Timestamp,
    command::{DescribeService, ReadCertificate, RenewCertificate, ServiceStatus},
};
use serde::Serialize;

use super::{Answer, Body, Call, json};

#[derive(Serialize)]
struct Status {
    #[serde(flatten)]
    service: ServiceStatus,
    /// When the server's certificate ends.
    certificate_not_after: Timestamp,
    /// The newest record that an audit checkpoint vouches for.
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_checkpoint: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_checkpoint_time: Option<Timestamp>,
    /// How the audit log's further sinks do.
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_sinks: Option<serde_json::Value>,
}

pub(super) async fn status(call: &Call<'_>) -> Answer {
    let mut service = call.execute(DescribeService).await?;
    let context = call.context;
    service.warnings.extend(context.pki.warning());
    let checkpoint = context.engine.newest_checkpoint();
    json(&Status {
        service,
        certificate_not_after: context.pki.certificate_not_after(),
        audit_checkpoint: checkpoint.map(|(seq, _)| seq),
        audit_checkpoint_time: checkpoint.map(|(_, time)| time),
        audit_sinks: context.sinks.map(|status| status()),
    })
}

pub(super) async fn ca(call: &Call<'_>) -> Answer {
    call.execute(ReadCertificate).await?;
    Ok(Body::Pem(call.context.pki.ca_pem().to_owned()))
}

#[derive(Serialize)]
struct Renewed {
    not_after: Timestamp,
    /// Whether there is no new one: the files that somebody brought were read again.
    from_files: bool,
}

pub(super) async fn renew(call: &Call<'_>) -> Answer {
    call.execute(RenewCertificate).await?;
    let pki = call.context.pki;
    pki.renew(call.context.engine)?;
    json(&Renewed { not_after: pki.certificate_not_after(), from_files: pki.is_brought() })
}
