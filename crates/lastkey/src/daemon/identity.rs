//! The identity of `up`'s own plugin: a key pair that never leaves the data directory, and a
//! certificate of our CA over it.

use std::{fs, io, path::Path};

use lastkey_crypto::ClusterId;
use lastkey_engine::{
    ClusterName, Engine, PLUGIN_LIFE,
    command::{AddPlugin, PluginRequest},
};
use lastkey_server::Pki;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use zeroize::Zeroizing;

use super::{
    data_dir::{DataDir, replace},
    first_start::failed,
};
use crate::output::Failure;

/// The plugin's name within its cluster.
const NAME: &str = "up";

/// Gives the plugin a fresh certificate, and a key if it has none. Every start does.
pub(super) async fn issue(
    engine: &Engine,
    pki: &Pki,
    cluster: ClusterId,
    data: &DataDir,
) -> Result<(), Failure> {
    let pair = key_pair(&data.plugin_key())?;
    let request = pki.read_csr(&signing_request(&pair)?).map_err(failed)?;
    let plugin = PluginRequest {
        name: ClusterName::parse(NAME).map_err(failed)?,
        fingerprint: request.fingerprint(),
    };
    let add = AddPlugin { cluster, plugin };
    let cluster = engine.execute(&engine.system_caller(), add).await.map_err(failed)?;
    let until = cluster.plugin(NAME).and_then(|plugin| plugin.ends());
    let until = until.unwrap_or_else(|| engine.clock().now().after(PLUGIN_LIFE));
    let issued = pki.issue_plugin(engine, &request, (&cluster.id, NAME, until)).map_err(failed)?;
    replace(&data.plugin_certificate(), issued.certificate_pem.as_bytes(), 0o600)
}

/// A signing request (PEM) by that key; the CA decides about names.
pub(crate) fn signing_request(pair: &KeyPair) -> Result<String, Failure> {
    let params = CertificateParams::new(Vec::new()).map_err(failed)?;
    params.serialize_request(pair).and_then(|request| request.pem()).map_err(failed)
}

/// A new key pair and its private key (PKCS #8 PEM).
pub(crate) fn new_key_pair() -> Result<(KeyPair, Zeroizing<String>), Failure> {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let pem = Zeroizing::new(pair.serialize_pem());
    Ok((pair, pem))
}

fn key_pair(path: &Path) -> Result<KeyPair, Failure> {
    match fs::read_to_string(path) {
        Ok(pem) => {
            let pem = Zeroizing::new(pem);
            KeyPair::from_pem(&pem).map_err(|_| {
                Failure::failed(format_args!(
                    "{} is not a private key; remove it to have a new one made",
                    path.display()
                ))
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (pair, pem) = new_key_pair()?;
            replace(path, pem.as_bytes(), 0o600)?;
            Ok(pair)
        }
        Err(error) => Err(Failure::file(path, &error)),
    }
}
