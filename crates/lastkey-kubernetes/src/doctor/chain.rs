//! The chain of credentials: what in it is static, and what ends soon.

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    cluster::{Access, Credential, certificates_in},
    encryption_config::Finding,
};

const DAY: i64 = 24 * 3600;
/// A certificate with less than this left is told.
const SOON: i64 = 14 * DAY;
/// One that is good for longer than this counts as static.
const LONG: i64 = 100 * DAY;

/// What is registered of the cluster; `now` in seconds since 1970.
pub fn check_access(access: &Access, now: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &access.credential {
        Credential::Certificate { certificate_pem, .. } => {
            let message = "the cluster is reached by a client certificate, which nobody can take back before it ends";
            let fix = "`lastkey cluster add NAME --kubeconfig FILE` with an administrator's kubeconfig makes an account of its own, whose tokens renew themselves";
            findings.push(Finding::warning("credential-static", message).fix(fix));
            findings.extend(check_pem(certificate_pem, "the registered client certificate", now));
        }
        Credential::Token { account: None, .. } => {
            let message = "the cluster is reached by a token that nobody renews";
            let fix = "`lastkey cluster add NAME --kubeconfig FILE` with an administrator's kubeconfig makes an account of its own, whose tokens renew themselves";
            findings.push(Finding::warning("credential-static", message).fix(fix));
        }
        Credential::Token { .. } => {}
    }
    findings.extend(check_pem(&access.ca_pem, "the cluster's certificate authority", now));
    let Some(etcd) = &access.etcd else {
        let message = "etcd is not registered: what is under which key is not counted exactly, and its keys stay guarded for ever";
        let fix = "`lastkey cluster add NAME --kubeconfig FILE --etcd URL --etcd-ca F --etcd-cert F --etcd-key F`";
        findings.push(Finding::info("etcd-unknown", message).fix(fix));
        return findings;
    };
    if etcd.servers.iter().any(|url| !url.is_tls()) {
        let message = "etcd is read without TLS: what rests in clear crosses the network in clear, and anybody may read and write it";
        let fix =
            "start etcd with --cert-file, --key-file, --client-cert-auth and --trusted-ca-file";
        findings.push(Finding::warning("etcd-without-tls", message).fix(fix));
    }
    if let Some(pem) = &etcd.certificate_pem {
        findings.extend(check_pem(pem, "the client certificate for etcd", now));
        let message = "etcd is read by a client certificate that lies sealed in the server: whoever has it may write, too, unless etcd has users";
        let fix = "`etcdctl role grant-permission lastkey read --prefix=true /registry/` and enable etcd's authentication";
        findings.push(Finding::info("etcd-credential", message).fix(fix));
    }
    findings
}

/// A plugin's certificate, by when it was registered and when it ends (seconds since 1970). It is told
/// once a quarter of its life is left, as it should have been renewed at a third.
pub fn check_plugin(
    name: &str,
    (registered, ends): (Option<i64>, Option<i64>),
    now: i64,
) -> Option<Finding> {
    let ends = ends?;
    let left = ends.saturating_sub(now);
    let soon = registered.map_or(SOON, |since| ends.saturating_sub(since) / 4);
    if left < soon || left < 0 {
        let message = format!("the certificate of the plugin {name} {}", left_of(left));
        // one that a node enrolled is named by the node, and is enrolled again
        let fix = match left < 0 && !name.contains('/') {
            true => format!(
                "`lastkey cluster certificate NAME --plugin {name} --out DIR` makes another one for its node"
            ),
            false => {
                "look that the plugin runs and reaches the server; it renews by itself".to_owned()
            }
        };
        let finding = if left < 0 { Finding::error } else { Finding::warning };
        return Some(finding("plugin-certificate", message).fix(fix));
    }
    (left > LONG).then(|| {
        let message = format!("the plugin {name} has a certificate for {} days: a static credential on its node", left / DAY);
        let fix = "let its node enrol: `lastkey cluster node trust NAME --ca /etc/kubernetes/pki/ca.crt`, `lastkey kms-plugin --enrol`";
        Finding::info("plugin-static", message).fix(fix)
    })
}

fn check_pem(pem: &str, what: &str, now: i64) -> Option<Finding> {
    let certificates = certificates_in(pem);
    certificates.iter().filter_map(|der| check_certificate(der, what, now)).next()
}

/// Whether a certificate has ended or will soon.
pub(super) fn check_certificate(der: &[u8], what: &str, now: i64) -> Option<Finding> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let left = certificate.validity().not_after.timestamp() - now;
    if left >= SOON {
        return None;
    }
    let message = format!("{what} {}", left_of(left));
    let fix =
        "`kubeadm certs renew all` on a control plane of kubeadm; then register the cluster anew";
    let finding = if left < 0 { Finding::error } else { Finding::warning };
    Some(finding("certificate-ends", message).fix(fix))
}

fn left_of(left: i64) -> String {
    match left {
        ..0 => format!("ended {} days ago", -left / DAY),
        left => format!("ends in {} days", left / DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_that_end_are_told() {
        let mut params = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2030, 1, 31);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let end = 1_896_048_000;
        let severity = |now: i64| {
            check_certificate(certificate.der(), "it", now)
                .map(|finding| (finding.severity, finding.message))
        };
        use crate::encryption_config::Severity::{Error, Warning};
        assert_eq!(severity(end - 15 * DAY), None);
        assert_eq!(severity(end - 3 * DAY), Some((Warning, "it ends in 3 days".to_owned())));
        assert_eq!(severity(end + 2 * DAY), Some((Error, "it ended 2 days ago".to_owned())));
    }

    #[test]
    fn a_plugins_certificate_is_judged_by_its_own_life() {
        let plugin = |life: Option<i64>, left: i64| {
            let registered = life.map(|life| (left - life) * DAY);
            check_plugin("p", (registered, Some(left * DAY)), 0).map(|finding| finding.code)
        };
        let (late, fixed) = (Some("plugin-certificate"), Some("plugin-static"));
        assert_eq!([plugin(None, 365), plugin(None, 30), plugin(None, 3)], [fixed, None, late]);
        assert_eq!([plugin(Some(365), 340), plugin(Some(365), 90)], [fixed, late]);
        // renewed at ten days, and told two and a half days later
        assert_eq!([plugin(Some(30), 9), plugin(Some(30), 7)], [None, late]);
        assert_eq!(
            [plugin(Some(4), 4), plugin(Some(4), 0), plugin(Some(4), -1)],
            [None, late, late]
        );
        assert_eq!(check_plugin("p", (Some(0), None), 0), None);
    }

    /// For a cluster that is registered.
    #[test]
    fn a_plugins_fix_is_a_command_that_is_not_refused() {
        let fix = |name: &str, left: i64| {
            check_plugin(name, (Some((left - 365) * DAY), Some(left * DAY)), 0).unwrap().fix
        };
        assert!(fix("p", -1).contains("lastkey cluster certificate NAME --plugin p --out DIR"));
        assert!(fix("p", 1).contains("renews by itself"));
        assert!(fix("node/p", -1).contains("renews by itself"));
        assert!(fix("p", 364).contains("lastkey cluster node trust NAME --ca"));
    }
}
