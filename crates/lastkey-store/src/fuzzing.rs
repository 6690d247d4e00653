//! What the fuzz target calls. The file's own structure is redb's to read; the tests of damage and
//! of crashes give it broken ones.

/// A value of the table: what is read is written again as it was.
pub fn entry(raw: &[u8]) {
    crate::redb_store::parse_entry(raw);
}
