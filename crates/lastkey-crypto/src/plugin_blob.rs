//! What the Kubernetes plugin hands to the apiserver.
