//! The table of errors, as clients see it.

use lastkey_engine::{Error, NonceRefusal};

use super::{Refusal, signature::SignatureError};
use crate::params::ParamsError;

fn every_refusal() -> Vec<Refusal> {
    let mut all: Vec<Refusal> = every_engine_error().into_iter().map(Refusal::from).collect();
    all.extend([
        ParamsError::Duplicate.into(),
        SignatureError::Unsigned.into(),
        SignatureError::Missing("Timestamp").into(),
        SignatureError::Incomplete("the signature does not cover the host").into(),
        SignatureError::Method.into(),
        SignatureError::Timestamp.into(),
        SignatureError::SecurityToken.into(),
        Refusal::CertificateEnded,
        Refusal::UnknownAccessKey,
        Refusal::SignatureMismatch,
        NonceRefusal::Replayed.into(),
        NonceRefusal::Skewed.into(),
        Refusal::UnknownAction,
        Refusal::UnsupportedAction,
        Refusal::Version,
        Refusal::HttpMethod,
        Refusal::NotText,
        Refusal::NoSuchPath,
        Refusal::WrongMethod,
        Refusal::NotJson,
        Refusal::TooLarge(1000),
        Refusal::Incomplete,
        Refusal::Malformed,
        Refusal::Certificate { request: true, message: "the request is bad".to_owned() },
        Refusal::Certificate { request: false, message: "no certificate".to_owned() },
    ]);
    all
}

fn every_engine_error() -> Vec<Error> {
    vec![
        Error::Denied,
        Error::KeyNotFound,
        Error::KeyVersionNotFound,
        Error::AliasNotFound,
        Error::NotFound("cluster"),
        Error::AliasExists,
        Error::Exists("cluster"),
        Error::UnderWay("rotate"),
        Error::KeyDisabled,
        Error::KeyPendingDeletion,
        Error::StateConflict { state: "Enabled" },
        Error::KeyVersionRetired,
        Error::PrimaryVersion,
        Error::AwaitsSecondPerson {
            id: "r-1".into(),
            by: "root".into(),
            until: lastkey_engine::Timestamp::from_millis(0),
        },
        Error::SamePerson { by: "local/0".into() },
        Error::DeletionProtected,
        Error::MissingParameter("KeyId"),
        Error::invalid("PageSize", "give 1 to 100"),
        Error::InvalidCiphertext,
        Error::LimitExceeded { what: "tags", limit: 20 },
        Error::Unsupported("this KeySpec"),
        Error::StaleKeyVersion,
        Error::DryRun,
        Error::Busy,
        Error::StorageFull,
        Error::Unavailable("why".to_owned()),
        Error::Uncertain("why".to_owned()),
        Error::CorruptRecord { path: "key/1".to_owned() },
        Error::Internal,
    ]
}

#[test]
fn the_table_of_errors() {
    let line = |refusal: &Refusal| {
        let told = refusal.told(false);
        format!("{} {}: {}", told.status.as_u16(), told.code, told.message)
    };
    let table: Vec<_> = every_refusal().iter().map(line).collect();
    insta::assert_snapshot!(table.join("\n"));
}

#[test]
fn the_table_of_dry_run_errors() {
    let line = |error: Error| {
        let refusal = Refusal::from(error);
        let told = refusal.told(true);
        format!("{} {} <- {}", told.status.as_u16(), told.code, refusal.code())
    };
    let table: Vec<_> = every_engine_error().into_iter().map(line).collect();
    insta::assert_snapshot!(table.join("\n"));
}
