//! Both sides of TLS talking to each other in one process.

use super::*;
use crate::config::Settings;
use foreign_types::ForeignType;
use mio::net::TcpStream;
use nix::sys::socket::{setsockopt, sockopt};
use openssl::asn1::{Asn1Object, Asn1OctetString, Asn1Time};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509Extension, X509v3Context, X509};
use std::io::ErrorKind;
use std::path::PathBuf;

/// A folder with `a.crt` and `a.key`, removed at the end.
pub(in crate::net) struct Folder(PathBuf);

impl Folder {
    pub(in crate::net) fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("pgt-tls-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let folder = Folder(path);
        folder.make("first");
        folder
    }

    /// A new pair that signs itself.
    fn make(&self, common: &str) {
        self.make_for(common, |context| {
            let mut listed = SubjectAlternativeName::new();
            listed.dns("*.example.com").ip("10.0.0.1").build(context).unwrap()
        });
    }

    fn make_for(&self, common: &str, listed: impl Fn(&X509v3Context<'_>) -> X509Extension) {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let mut name = X509Name::builder().unwrap();
        name.append_entry_by_text("CN", common).unwrap();
        let name = name.build();
        let mut made = X509::builder().unwrap();
        made.set_version(2).unwrap();
        made.set_subject_name(&name).unwrap();
        made.set_issuer_name(&name).unwrap();
        made.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        made.set_not_after(&Asn1Time::days_from_now(9).unwrap()).unwrap();
        made.set_pubkey(&key).unwrap();
        let listed = listed(&made.x509v3_context(None, None));
        made.append_extension(listed).unwrap();
        made.sign(&key, MessageDigest::sha256()).unwrap();
        fs::write(self.file("a.crt"), made.build().to_pem().unwrap()).unwrap();
        fs::write(self.file("a.key"), key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Settings for both sides, each of which shows the pair.
    pub(in crate::net) fn settings(&self) -> Settings {
        Settings {
            client_tls_sslmode: SslMode::Require,
            client_tls_cert_file: self.file("a.crt"),
            client_tls_key_file: self.file("a.key"),
            client_tls_ca_file: self.file("a.crt"),
            server_tls_sslmode: SslMode::VerifyFull,
            server_tls_cert_file: self.file("a.crt"),
            server_tls_key_file: self.file("a.key"),
            server_tls_ca_file: self.file("a.crt"),
            ..Settings::default()
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The accepting and the connecting end, with the handshake behind them.
pub(in crate::net) fn pair(tls: &Tls) -> (Session, Session) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let one = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    let [mut accepts, mut connects] = [
        (other, tls.client().unwrap().begin().unwrap()),
        (one, tls.server().unwrap().begin("db.example.com").unwrap()),
    ]
    .map(|(stream, ssl)| {
        stream.set_nonblocking(true).unwrap();
        setsockopt(&stream, sockopt::SndBuf, &4096).unwrap();
        Session::new(ssl, TcpStream::from_std(stream)).unwrap()
    });
    let (mut first, mut second) = (Progress::Reads, Progress::Reads);
    for _ in 0..1_000 {
        for (session, progress) in [(&mut accepts, &mut first), (&mut connects, &mut second)] {
            session.set_readable(false);
            if *progress != Progress::Done {
                *progress = session.shake();
            }
        }
        if (&first, &second) == (&Progress::Done, &Progress::Done) {
            return (accepts, connects);
        }
    }
    panic!("{first:?} {second:?}");
}

#[test]
fn both_ends_know_each_other_after_the_handshake() {
    let folder = Folder::new("facts");
    let tls = Tls::new(&folder.settings()).unwrap();
    assert_eq!(tls.modes(), (SslMode::Require, SslMode::VerifyFull));
    let (accepts, connects) = pair(&tls);
    let end_point = tls.client().unwrap().end_point();
    let near = accepts.facts(Some(Rc::clone(&end_point)));
    let far = connects.facts(None);
    assert_eq!(&*near.text, "TLSv1.3/TLS_AES_256_GCM_SHA384");
    assert_eq!((near.text, &near.end_point), (far.text, &far.end_point));
    assert_eq!(near.end_point.len(), 32);
    let names = far.names.unwrap();
    assert_eq!(names.common(), Some(&b"first"[..]));
    for (name, want) in [("db.example.com", true), ("10.0.0.1", true), ("example.com", false)] {
        assert_eq!(names.include(name), want, "{name}");
    }
    assert_eq!(near.names.unwrap(), names);
}

#[test]
fn bytes_arrive_in_order_whatever_the_socket_takes() {
    let folder = Folder::new("bytes");
    let (mut from, mut to) = pair(&Tls::new(&folder.settings()).unwrap());
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7 / 5) as u8).collect();
    let (mut at, mut end, mut got, mut room) = (0, 0, Vec::new(), vec![0; 10_000]);
    while got.len() < sent.len() {
        // What was refused is offered again from another place, with more behind it.
        end = sent.len().min(end.max(at + 30_000 + got.len() % 90_000));
        let offer = sent[at..end].to_vec();
        match from.send(&offer) {
            Ok(count) => at += count,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
        to.set_readable(false);
        let most = 1 + got.len() % room.len();
        match to.recv(&mut room[..most]) {
            Ok(count) => got.extend_from_slice(&room[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert!(got == sent);
    // The end comes with the last bytes, and no event tells.
    assert_eq!(from.send(b"last").unwrap(), 4);
    drop(from);
    to.set_readable(false);
    let mut count = 0;
    while !to.has_end() {
        match to.recv(&mut room) {
            Ok(more) => count += more,
            Err(_) => to.set_readable(false),
        }
    }
    assert_eq!((count, to.recv(&mut room).unwrap()), (4, 0));
}

#[test]
fn servers_context_is_made_again_when_a_file_changes() {
    let folder = Folder::new("files");
    let tls = Tls::new(&folder.settings()).unwrap();
    let server = tls.server().unwrap();
    let shown = || {
        let ssl = server.begin("localhost").unwrap();
        let names = ssl.ssl_context().certificate().map(session::names).unwrap();
        String::from_utf8(names.common().unwrap().to_vec()).unwrap()
    };
    assert_eq!(shown(), "first");
    folder.make("second");
    assert_eq!(shown(), "second");
    fs::remove_file(folder.file("a.key")).unwrap();
    let text = server.begin("localhost").unwrap_err();
    assert!(text.starts_with("failed to load private key file"), "{text}");
    // Settings that are the same change nothing for servers.
    let mut settings = Settings { server_tls_ca_file: String::new(), ..Settings::default() };
    let plain = Tls::new(&settings).unwrap();
    assert!(tls.changes_servers(&plain) && !plain.changes_servers(&Tls::new(&settings).unwrap()));
    settings.server_tls13_ciphers = Some("TLS_AES_128_GCM_SHA256".into());
    assert!(plain.changes_servers(&Tls::new(&settings).unwrap()));
}

#[test]
fn contexts_stay_until_settings_or_files_change() {
    let folder = Folder::new("stay");
    let mut settings = folder.settings();
    let first = Tls::new(&settings).unwrap();
    let context_of = |tls: &Tls| tls.client().unwrap().context.as_ptr();
    let server_of = |tls: &Tls| tls.server().unwrap().context().unwrap().as_ptr();
    let server = server_of(&first);
    let second = first.renewed(&settings).unwrap();
    assert_eq!((context_of(&first), server), (context_of(&second), server_of(&second)));
    folder.make("other");
    let third = second.renewed(&settings).unwrap();
    assert_ne!(context_of(&second), context_of(&third));
    assert_ne!(second.client().unwrap().end_point(), third.client().unwrap().end_point());
    assert_ne!(server, server_of(&third));
    settings.client_tls_ecdhcurve = "secp384r1".into();
    let fourth = third.renewed(&settings).unwrap();
    assert_ne!(context_of(&third), context_of(&fourth));
    assert_eq!(server_of(&third), server_of(&fourth));
    // Another way to begin is no reason for another context, but for other connections.
    settings.server_tls_sslnegotiation = SslNegotiation::Direct;
    let fifth = fourth.renewed(&settings).unwrap();
    assert!(fifth.changes_servers(&fourth) && fifth.server().unwrap().is_direct());
    assert_eq!(server_of(&fourth), server_of(&fifth));
}

#[test]
fn chain_is_that_of_the_file_or_put_together_once() {
    let folder = Folder::new("chain");
    let chain = || {
        let tls = Tls::new(&folder.settings()).unwrap();
        let (_accepts, connects) = pair(&tls);
        connects.shown_chain()
    };
    assert_eq!(chain(), 1, "one that signs itself");
    let alone = fs::read(folder.file("a.crt")).unwrap();
    fs::write(folder.file("a.crt"), [&alone[..], &alone, &alone].concat()).unwrap();
    assert_eq!(chain(), 3);
}

#[test]
fn certificate_that_makes_no_sense_harms_no_other_connection() {
    let folder = Folder::new("broken");
    let (_accepts, mut innocent) = pair(&Tls::new(&folder.settings()).unwrap());
    folder.make_for("broken", |_| {
        let name = Asn1Object::from_str("subjectAltName").unwrap();
        let value = Asn1OctetString::new_from_bytes(b"\x30\x05\x82").unwrap();
        X509Extension::new_from_der(&name, false, &value).unwrap()
    });
    // OpenSSL shows no such certificate, but takes one.
    let shown = X509::from_pem(&fs::read(folder.file("a.crt")).unwrap()).unwrap();
    assert!(!session::names(&shown).include("db.example.com"));
    innocent.set_readable(false);
    let received = innocent.recv(&mut [0; 10]).map_err(|error| error.kind());
    assert_eq!(received, Err(ErrorKind::WouldBlock));
}
