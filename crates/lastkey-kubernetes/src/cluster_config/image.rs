//! The name of the plugin's container image.
//!
//! containerd keeps an imported image under the very name that its index gives, and the kubelet asks
//! for what its pod names after completing it: `lastkey:1` becomes `docker.io/library/lastkey:1`,
//! which was never imported, and `acme/lastkey:1` is fetched from strangers. A name with its
//! registry is the same for both.

use super::ConfigError;

/// Whether a kubelet and `packaging/oci/build-image.sh` mean the same by a name.
pub(super) fn check_image(image: &str) -> Result<(), ConfigError> {
    let refuse = |reason| Err(ConfigError::Image { image: image.to_owned(), reason });
    let (registry, rest) = image.split_once('/').unwrap_or(("", image));
    if registry != "localhost" && !registry.contains(['.', ':']) {
        return refuse(
            "it begins with no registry, so that a kubelet would look for it at docker.io: write \
             localhost/… for one that is imported on the node",
        );
    }
    if rest.is_empty() || !image.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse("that is no image's name");
    }
    if !rest.contains([':', '@']) {
        return refuse("it has no tag");
    }
    Ok(())
}

/// When a kubelet fetches it: never where it can only have been imported.
pub(super) fn pull_policy(image: &str) -> &'static str {
    if image.starts_with("localhost/") { "Never" } else { "IfNotPresent" }
}
