//! What the fuzz targets call: each function reads arbitrary bytes with parsers of this crate that
//! are not public, and panics only if one of them broke a promise.

use http::Method;
use rustls_pki_types::CertificateDer;

use crate::{alibaba, native, tls};

/// A path and a body of the native API.
pub fn native_request(path: &str, body: &[u8]) {
    for method in [Method::GET, Method::POST] {
        native::parse_path(&method, path);
    }
    native::parse_body(body);
}

/// The parameters of the Alibaba wire that have a form of their own.
pub fn parameter(text: &str) {
    alibaba::parse_parameter(text);
}

/// Certificates of callers, certificate requests, and the stored authority, each from DER.
pub fn certificate(der: &[u8]) {
    tls::parse_plugin(&CertificateDer::from(der));
    tls::parse_der(der);
}
