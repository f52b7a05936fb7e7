//! Certificates and kubeconfigs of the cluster's parts.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;

use super::{API_ADDRESS, NODE, NODE_ADDRESS};

/// Writes everything to `pki` in the folder.
pub(super) fn write(folder: &Path) -> Result<()> {
    let pki = folder.join("pki");
    let accounts = KeyPair::generate()?;
    fs::write(pki.join("sa.key"), accounts.serialize_pem())?;
    fs::write(pki.join("sa.pub"), accounts.public_key_pem())?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    ca.distinguished_name.push(DnType::CommonName, "ca");
    let key = KeyPair::generate()?;
    fs::write(pki.join("ca.crt"), ca.self_signed(&key)?.pem())?;
    let ca = Issuer::new(ca, key);

    let node = format!("system:node:{NODE}");
    let server = ["10.96.0.1", "127.0.0.1", NODE_ADDRESS, "kubernetes.default.svc", "localhost"];
    certificate(&pki, &ca, "apiserver", ("kube-apiserver", None), &server)?;
    certificate(
        &pki,
        &ca,
        "kubelet-serving",
        (&node, Some("system:nodes")),
        &[NODE_ADDRESS, NODE],
    )?;
    for (name, common_name, organization) in [
        ("apiserver-kubelet", "kube-apiserver-kubelet", Some("system:masters")),
        ("admin", "admin", Some("system:masters")),
        ("controller-manager", "system:kube-controller-manager", None),
        ("scheduler", "system:kube-scheduler", None),
        ("kubelet", &node, Some("system:nodes")),
    ] {
        certificate(&pki, &ca, name, (common_name, organization), &[])?;
        let file = |ending: &str| pki.join(format!("{name}.{ending}"));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://{API_ADDRESS}:443"),
                "certificate-authority": pki.join("ca.crt"),
            }}],
            "users": [{"name": "u", "user": {
                "client-certificate": file("crt"), "client-key": file("key"),
            }}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        });
        fs::write(file("conf"), config.to_string())?;
    }
    Ok(())
}

/// A server's if it has names, else a client's.
fn certificate(
    pki: &Path,
    ca: &Issuer<'_, KeyPair>,
    name: &str,
    (common_name, organization): (&str, Option<&str>),
    names: &[&str],
) -> Result<()> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let usage = if names.is_empty() {
        ExtendedKeyUsagePurpose::ClientAuth
    } else {
        ExtendedKeyUsagePurpose::ServerAuth
    };
    params.extended_key_usages = vec![usage];
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*name).try_into()?),
        });
    }
    let key = KeyPair::generate()?;
    fs::write(pki.join(format!("{name}.crt")), params.signed_by(&key, ca)?.pem())?;
    fs::write(pki.join(format!("{name}.key")), key.serialize_pem())?;
    Ok(())
}
