//! Lane: the official SDKs.
