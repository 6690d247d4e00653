use lastkey_engine::Clock as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

use super::*;

/// A cluster's CA; all of them have the same name, as kubeadm's have.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn subject(parts: &[(DnType, &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // `push` replaces what is of the same type: two organisations need two types.
    for (kind, value) in parts {
        name.push(kind.clone(), *value);
    }
    name
}

fn ca() -> Ca {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&[(DnType::CommonName, "kubernetes")]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let pem = params.self_signed(&key).unwrap().pem();
    Ca { issuer: Issuer::new(params, key), pem }
}

/// A certificate as a kubelet has it.
fn node(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name =
        subject(&[(DnType::OrganizationName, "system:nodes"), (DnType::CommonName, name)]);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

impl Ca {
    fn sign(&self, params: &CertificateParams) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &self.issuer).unwrap().der().clone()
    }

    fn roots(&self) -> Vec<NodeRoot> {
        roots_of(&self.pem, now()).unwrap()
    }

    fn judge(&self, params: &CertificateParams) -> Result<KubeletCertificate, KubeletError> {
        kubelet_of(&[self.sign(params)], &self.roots(), now())
    }
}

fn now() -> Timestamp {
    lastkey_engine::SystemClock.now()
}

#[test]
fn a_kubelet_is_the_node_that_it_names() {
    let ca = ca();
    let read = ca.judge(&node("system:node:cp-1.example.org")).unwrap();
    assert_eq!(read.node.as_str(), "cp-1.example.org");
    assert_ne!(read.certificate, read.key);
    let mut params = node("system:node:cp-1");
    // The apiserver's own client certificates for kubelets have both.
    params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    params.distinguished_name.push(DnType::CountryName, "DE");
    assert_eq!(ca.judge(&params).unwrap().node.as_str(), "cp-1");
}

#[test]
fn another_ca_of_the_same_name_proves_nothing() {
    let (ours, theirs) = (ca(), ca());
    let leaf = theirs.sign(&node("system:node:cp-1"));
    let judge = |roots: &[NodeRoot]| kubelet_of(std::slice::from_ref(&leaf), roots, now());
    assert_eq!(judge(&ours.roots()), Err(KubeletError::Untrusted));
    assert_eq!(judge(&[]), Err(KubeletError::Untrusted));
    assert!(judge(&theirs.roots()).is_ok());
    let both: Vec<NodeRoot> = ours.roots().into_iter().chain(theirs.roots()).collect();
    assert!(judge(&both).is_ok(), "an old root beside a new one");
    // What is sent along is no root.
    let der = CertificateDer::from_pem_slice(theirs.pem.as_bytes()).unwrap();
    assert_eq!(
        kubelet_of(&[leaf.clone(), der], &ours.roots(), now()),
        Err(KubeletError::Untrusted)
    );
    assert_eq!(kubelet_of(&[], &ours.roots(), now()), Err(KubeletError::Untrusted));
}

#[test]
fn who_is_not_a_node_is_refused() {
    let ca = ca();
    let with = |parts: &[(DnType, &str)]| {
        let mut params = node("");
        params.distinguished_name = subject(parts);
        ca.judge(&params)
    };
    use DnType::{CommonName, OrganizationName as Org, OrganizationalUnitName as Unit};
    let cn = (CommonName, "system:node:cp-1");
    for organisation in ["system:masters", "system:node", "system:nodes ", "System:nodes", ""] {
        let judged = with(&[(Org, organisation), cn.clone()]);
        assert_eq!(judged, Err(KubeletError::Organisation), "{organisation:?}");
    }
    assert_eq!(with(std::slice::from_ref(&cn)), Err(KubeletError::Organisation));
    assert_eq!(with(&[(Unit, "system:nodes"), cn]), Err(KubeletError::Organisation));
    let nodes = (Org, "system:nodes");
    for name in [
        "cp-1",
        "system:node:",
        "system:node",
        "system:node:CP",
        "system:node:a/b",
        "system:serviceaccount:kube-system:x",
        " system:node:cp-1",
        "system:node:cp-1\0",
    ] {
        let judged = with(&[nodes.clone(), (CommonName, name)]);
        assert_eq!(judged, Err(KubeletError::Name), "{name:?}");
    }
    assert_eq!(with(&[nodes]), Err(KubeletError::Name));
}

/// `system:nodes` beside another group: an administrator's certificate, or a trick.
#[test]
fn a_second_organisation_is_refused() {
    let ca = ca();
    let second = DnType::CustomDnType(vec![2, 5, 4, 10]);
    let mut params = node("system:node:cp-1");
    params.distinguished_name.push(second, "system:masters");
    assert_eq!(ca.judge(&params), Err(KubeletError::Organisation));
    let mut params = node("system:node:cp-1");
    params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "system:node:cp-2");
    assert_eq!(ca.judge(&params), Err(KubeletError::Name));
}

#[test]
fn usage_and_time_are_checked() {
    let ca = ca();
    let mut params = node("system:node:cp-1");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    assert_eq!(ca.judge(&params), Err(KubeletError::Usage));
    params.extended_key_usages = Vec::new();
    assert_eq!(ca.judge(&params), Err(KubeletError::Usage));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    assert_eq!(ca.judge(&params), Err(KubeletError::Usage));
    let mut params = node("system:node:cp-1");
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    assert_eq!(ca.judge(&params), Err(KubeletError::Expired));
    let mut params = node("system:node:cp-1");
    params.not_before = rcgen::date_time_ymd(2090, 1, 1);
    assert_eq!(ca.judge(&params), Err(KubeletError::Expired));
}

#[test]
fn a_ca_certificate_as_a_leaf_is_refused() {
    let ca = ca();
    let mut params = node("system:node:cp-1");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert!(ca.judge(&params).is_err());
}

#[test]
fn only_ca_certificates_are_pinned() {
    let (one, two) = (ca(), ca());
    assert_eq!(roots_of("", now()).unwrap(), []);
    let bundle = format!("# two\n{}{}{}", one.pem, two.pem, one.pem);
    assert_eq!(roots_of(&bundle, now()).unwrap().len(), 2);
    let leaf = one.sign(&node("system:node:cp-1"));
    let leaf = crate::tls::authority::to_pem(&leaf);
    let damaged = crate::tls::authority::to_pem(b"not DER");
    for bad in ["x", &leaf, &format!("{}{leaf}", one.pem), &damaged] {
        assert!(matches!(roots_of(bad, now()), Err(Error::InvalidParameter { .. })), "{bad}");
    }
    let late = now().after(Duration::from_secs(10_000 * 365 * 86_400));
    assert!(roots_of(&one.pem, late).is_err());
}
