//! What the fuzz targets call: parsers of this crate that are not public.

use http::{HeaderMap, HeaderValue, header::RETRY_AFTER};

/// When a receiver wants to be asked again.
pub fn retry_after(value: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    let headers = HeaderMap::from_iter([(RETRY_AFTER, value)]);
    if let Some(wait) = crate::webhook::retry_after(&headers) {
        assert!(wait <= crate::webhook::MAX_RETRY_AFTER);
    }
}

/// The file that remembers how far a sink has come.
pub fn place(bytes: &[u8]) {
    let _ = crate::place::parse(bytes);
}
