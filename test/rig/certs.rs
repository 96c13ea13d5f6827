//! Certificates of the tests' own making, in one folder per run.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509Name, X509};

use super::scratch::{scratch, write};

/// What a certificate says.
#[derive(Clone, Copy, Default)]
pub(crate) struct Names<'a> {
    pub(crate) common: &'a str,
    pub(crate) dns: &'a [&'a str],
    pub(crate) ips: &'a [&'a str],
    pub(crate) expired: bool,
    pub(crate) rsa: bool,
}

/// Somebody who signs certificates.
pub(crate) struct Authority {
    certificate: X509,
    key: PKey<Private>,
}

fn key(rsa: bool) -> PKey<Private> {
    if rsa {
        return PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    }
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

/// A certificate for `key`, signed by `issuer` or by itself.
fn make(names: Names<'_>, key: &PKey<Private>, issuer: Option<&Authority>) -> X509 {
    let mut subject = X509Name::builder().unwrap();
    subject.append_entry_by_text("CN", names.common).unwrap();
    let subject = subject.build();
    let mut serial = BigNum::new().unwrap();
    serial.rand(100, MsbOption::ONE, false).unwrap();
    let (from, to) = if names.expired { (1, 86_400) } else { (1, 4_000_000_000) };
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&subject).unwrap();
    builder.set_not_before(&Asn1Time::from_unix(from).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::from_unix(to).unwrap()).unwrap();
    builder.set_pubkey(key).unwrap();
    let issuer_name = issuer.map_or(&*subject, |issuer| issuer.certificate.subject_name());
    builder.set_issuer_name(issuer_name).unwrap();
    if issuer.is_none() {
        builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
    }
    if !names.dns.is_empty() || !names.ips.is_empty() {
        let mut listed = SubjectAlternativeName::new();
        for name in names.dns {
            listed.dns(name);
        }
        for ip in names.ips {
            listed.ip(ip);
        }
        let context = builder.x509v3_context(None, None);
        let listed = listed.build(&context).unwrap();
        builder.append_extension(listed).unwrap();
    }
    let signer = issuer.map_or(key, |issuer| &issuer.key);
    builder.sign(signer, MessageDigest::sha256()).unwrap();
    builder.build()
}

impl Authority {
    pub(crate) fn new(common: &str) -> Authority {
        let key = key(false);
        let certificate = make(Names { common, ..Names::default() }, &key, None);
        Authority { certificate, key }
    }

    /// Writes a certificate and its key: `NAME.crt` and `NAME.key`.
    pub(crate) fn issue(&self, folder: &Path, name: &str, names: Names<'_>) {
        let key = key(names.rsa);
        let certificate = make(names, &key, Some(self));
        write(&folder.join(format!("{name}.crt")), certificate.to_pem().unwrap());
        let file = folder.join(format!("{name}.key"));
        write(&file, key.private_key_to_pem_pkcs8().unwrap());
        std::fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
    }

    /// Writes its own certificate.
    pub(crate) fn publish(&self, file: &Path) {
        write(file, self.certificate.to_pem().unwrap());
    }
}

/// The folder with what most tests need: `ca.crt`, `other-ca.crt`, and pairs. `server` is for
/// localhost and 127.0.0.1, `client` for the user trusty, `stranger` for that user, too, but from
/// the other authority; `wrong` has other names, `expired` is, `rsa` is RSA.
pub(crate) fn certs() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = scratch().folder();
        let (ca, other) = (Authority::new("test authority"), Authority::new("other authority"));
        ca.publish(&folder.join("ca.crt"));
        other.publish(&folder.join("other-ca.crt"));
        let server =
            Names { common: "x", dns: &["localhost"], ips: &["127.0.0.1"], ..Names::default() };
        let user = Names { common: "trusty", ..Names::default() };
        ca.issue(&folder, "server", server);
        ca.issue(&folder, "rsa", Names { rsa: true, ..server });
        ca.issue(&folder, "expired", Names { expired: true, ..server });
        ca.issue(&folder, "wrong", Names { dns: &["a.example"], ips: &[], ..server });
        ca.issue(&folder, "client", user);
        ca.issue(&folder, "stale", Names { expired: true, ..user });
        other.issue(&folder, "stranger", user);
        folder
    })
}
