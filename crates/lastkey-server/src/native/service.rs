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
}

pub(super) async fn status(call: &Call<'_>) -> Answer {
    let service = call.execute(DescribeService).await?;
    json(&Status { service, certificate_not_after: call.context.pki.certificate_not_after() })
}

pub(super) async fn ca(call: &Call<'_>) -> Answer {
    call.execute(ReadCertificate).await?;
    Ok(Body::Pem(call.context.pki.ca_pem().to_owned()))
}

#[derive(Serialize)]
struct Renewed {
    not_after: Timestamp,
}

pub(super) async fn renew(call: &Call<'_>) -> Answer {
    call.execute(RenewCertificate).await?;
    let pki = call.context.pki;
    pki.renew(call.context.engine)?;
    json(&Renewed { not_after: pki.certificate_not_after() })
}
