//! TLS at both ends: clients with any bytes inside, and servers that accept with any certificate.

use std::io::Write;
use std::net::TcpStream;

use openssl::ssl::{
    select_next_proto, AlpnError, NameType, Ssl, SslContext, SslContextBuilder, SslFiletype,
    SslMethod, SslStream, SslVerifyMode, SslVersion,
};
use std::io::Read;
use std::sync::{Arc, Mutex};

use super::certs::certs;
use super::fake::Fake;
use super::pooler::Setup;
use super::raw::{Raw, Stream};
use super::wire::{special, SSL_REQUEST};
use super::DEADLINE;

impl Stream for SslStream<TcpStream> {
    fn end_output(&self) {
        self.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    }
}

/// How a client makes its handshake.
#[derive(Clone, Default)]
pub(crate) struct Wishes {
    /// The pair in the folder of certificates that it shows.
    pub(crate) shows: Option<&'static str>,
    /// The newest version that it speaks.
    pub(crate) newest: Option<SslVersion>,
    /// Ciphers up to TLS 1.2.
    pub(crate) ciphers: Option<&'static str>,
    pub(crate) suites: Option<&'static str>,
    pub(crate) groups: Option<&'static str>,
    /// ALPN as it is sent: each name with its length in front.
    pub(crate) alpn: Option<&'static [u8]>,
    /// Without SSLRequest.
    pub(crate) direct: bool,
}

/// A new TCP connection.
pub(crate) fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Asks for TLS; the answer.
pub(crate) fn ask(stream: TcpStream) -> (Raw, u8) {
    let mut raw = Raw::over(stream);
    raw.send(&special(SSL_REQUEST, &[]));
    let answer = raw.byte().unwrap_or(0);
    (raw, answer)
}

impl Wishes {
    pub(crate) fn showing(pair: &'static str) -> Wishes {
        Wishes { shows: Some(pair), ..Wishes::default() }
    }

    fn context(&self) -> SslContext {
        let mut context = SslContext::builder(SslMethod::tls_client()).unwrap();
        context.set_ca_file(certs().join("ca.crt")).unwrap();
        context.set_verify(SslVerifyMode::PEER);
        context.set_max_proto_version(self.newest).unwrap();
        context.set_security_level(0);
        context.set_min_proto_version(Some(SslVersion::TLS1)).unwrap();
        if let Some(pair) = self.shows {
            let file = |kind: &str| certs().join(format!("{pair}.{kind}"));
            context.set_certificate_chain_file(file("crt")).unwrap();
            context.set_private_key_file(file("key"), SslFiletype::PEM).unwrap();
        }
        if let Some(ciphers) = self.ciphers {
            context.set_cipher_list(ciphers).unwrap();
        }
        if let Some(suites) = self.suites {
            context.set_ciphersuites(suites).unwrap();
        }
        if let Some(groups) = self.groups {
            context.set_groups_list(groups).unwrap();
        }
        if let Some(protocols) = self.alpn {
            context.set_alpn_protos(protocols).unwrap();
        }
        context.build()
    }

    /// A handshake over a connection on which nothing is left to be said in plain text.
    pub(crate) fn over(&self, stream: TcpStream) -> Result<SslStream<TcpStream>, String> {
        let mut stream = SslStream::new(Ssl::new(&self.context()).unwrap(), stream).unwrap();
        stream.connect().map_err(|error| error.to_string())?;
        Ok(stream)
    }

    pub(crate) fn session(&self, port: u16) -> Result<SslStream<TcpStream>, String> {
        let mut stream = connect(port);
        if !self.direct {
            stream.write_all(&special(SSL_REQUEST, &[])).unwrap();
            let mut answer = [0];
            Read::read_exact(&mut stream, &mut answer).unwrap();
            assert_eq!(answer, *b"S");
        }
        self.over(stream)
    }

    /// A client in front of its first packet.
    pub(crate) fn raw(&self, port: u16) -> Raw {
        Raw::through(self.session(port).expect("no handshake"))
    }

    /// True if a trusted user gets in. TLS 1.3 tells only behind the handshake that a certificate
    /// was refused.
    pub(crate) fn gets_in(&self, port: u16) -> bool {
        let Ok(mut stream) = self.session(port) else {
            return false;
        };
        let hello = super::wire::startup(0, &[("user", "trusty"), ("database", "postgres")]);
        let mut first = [0];
        stream.write_all(&hello).is_ok()
            && Read::read_exact(&mut stream, &mut first).is_ok()
            && first == *b"R"
    }
}

/// The lines that offer TLS to clients, with the pair of this name.
pub(crate) fn offers(mode: &str, pair: &str) -> String {
    let folder = certs().display();
    format!(
        "client_tls_sslmode = {mode}\nclient_tls_cert_file = {folder}/{pair}.crt\n\
         client_tls_key_file = {folder}/{pair}.key\nclient_tls_ca_file = {folder}/ca.crt\n"
    )
}

/// A pooler's setup for trusted users that offers TLS, with more settings.
pub(crate) fn setup(mode: &str, settings: &str) -> Setup {
    Setup::trust(&(offers(mode, "server") + settings))
}

/// A server that speaks TLS.
pub(crate) struct Encrypted {
    pub(crate) fake: Fake,
    /// Of each handshake: the name that was asked for and the common name that was shown; what came
    /// in plain text is `plain`.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Encrypted {
    /// Shows this pair, wants a certificate of the client's or not, speaks these versions at most.
    /// It lets everybody in and answers every query with `42`.
    pub(crate) fn start(pair: &'static str, wants: bool, newest: Option<SslVersion>) -> Encrypted {
        let mut context = Self::context(pair);
        context.set_max_proto_version(newest).unwrap();
        if wants {
            context.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        }
        Self::start_with(context.build(), false)
    }

    /// Like PostgreSQL 17, but without SSLRequest; chooses our protocol or knows of none.
    pub(crate) fn direct(pair: &'static str, chooses: bool) -> Encrypted {
        let mut context = Self::context(pair);
        if chooses {
            context.set_alpn_select_callback(|_, offered| {
                select_next_proto(b"\x0apostgresql", offered).ok_or(AlpnError::ALERT_FATAL)
            });
        }
        Self::start_with(context.build(), true)
    }

    fn context(pair: &str) -> SslContextBuilder {
        let mut context = SslContext::builder(SslMethod::tls_server()).unwrap();
        let file = |kind: &str| certs().join(format!("{pair}.{kind}"));
        context.set_certificate_chain_file(file("crt")).unwrap();
        context.set_private_key_file(file("key"), SslFiletype::PEM).unwrap();
        context.set_ca_file(certs().join("ca.crt")).unwrap();
        context
    }

    fn start_with(context: SslContext, direct: bool) -> Encrypted {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = seen.clone();
        let open = move |mut stream: TcpStream| {
            let mut first = [0; 8];
            stream.peek(&mut first).ok()?;
            if !direct {
                stream.read_exact(&mut first).ok()?;
            }
            match (direct, first) {
                (true, [0x16, ..]) => {}
                (false, first) if first[..] == special(SSL_REQUEST, &[]) => {
                    stream.write_all(b"S").unwrap();
                }
                _ => {
                    notes.lock().unwrap().push("plain".to_owned());
                    return None;
                }
            }
            let mut session = SslStream::new(Ssl::new(&context).unwrap(), stream).unwrap();
            session.accept().ok()?;
            let ssl = session.ssl();
            let asked = ssl.servername(NameType::HOST_NAME).unwrap_or("-").to_owned();
            let shown = ssl.peer_certificate().map_or_else(String::new, |certificate| {
                format!("{:?}", certificate.subject_name())
            });
            notes.lock().unwrap().push(format!("{asked} {shown}"));
            Some(Raw::through(session))
        };
        let fake = Fake::start_over(open, |mut peer| {
            peer.welcome();
            while let Some(message) = peer.raw.recv() {
                if message.tag == b'Q' {
                    peer.answer("42");
                }
            }
        });
        Encrypted { fake, seen }
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}
