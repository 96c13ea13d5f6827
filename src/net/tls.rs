//! TLS towards clients and servers: what the settings come to (auth 9).
//!
//! A [`Tls`] is built as a whole or not at all, so that a mistake in a reload changes nothing.
//! Clients share one context. A server's is made from files that are looked at for each
//! connection; as long as they are the same files as before, so is the context.

mod session;
#[cfg(test)]
pub(in crate::net) mod tests;
mod words;

pub(in crate::net) use session::Progress;
pub use session::Session;

use super::sys;
use crate::config::{AuthType, Settings, SslMode, SslNegotiation};
use openssl::bn::BigNum;
use openssl::dh::Dh;
use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{
    select_next_proto, AlpnError, Ssl, SslContext, SslContextBuilder, SslMethod, SslMode as Mode,
    SslOptions, SslSessionCacheMode, SslVerifyMode,
};
use openssl::x509::X509Name;
use std::cell::RefCell;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use words::{Curve, Protocols};

/// The ALPN protocol of PostgreSQL, with its length in front.
const ALPN: &[u8] = b"\x0apostgresql";
/// How many certificates may stand between a certificate and its authority.
const DEPTH: u32 = 6;
/// The size of the prime for DHE with clients.
const DH_BITS: u32 = 2048;
/// Where systems keep the authorities that they trust; the first is Debian's.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What is in force towards both sides.
#[derive(Default)]
pub struct Tls {
    client: Option<ClientTls>,
    server: Option<ServerTls>,
}

impl Tls {
    /// Both sides as the settings want them. The error is the text of an ERROR line.
    pub fn new(settings: &Settings) -> Result<Tls, String> {
        Tls::default().renewed(settings)
    }

    /// As [`Tls::new`]; what would come out as it was, files included, is taken from here.
    pub fn renewed(&self, settings: &Settings) -> Result<Tls, String> {
        check(settings)?;
        Ok(Tls {
            client: match settings.client_tls_sslmode {
                SslMode::Disable => None,
                mode => Some(ClientTls::new(settings, mode, self.client.as_ref())?),
            },
            server: match settings.server_tls_sslmode {
                SslMode::Disable => None,
                mode => Some(ServerTls::new(settings, mode, self.server.as_ref())?),
            },
        })
    }

    /// The modes towards clients and servers.
    pub fn modes(&self) -> (SslMode, SslMode) {
        let client = self.client.as_ref().map(|tls| tls.mode);
        let server = self.server.as_ref().map(|tls| tls.mode);
        (client.unwrap_or(SslMode::Disable), server.unwrap_or(SslMode::Disable))
    }

    /// True if servers are to be connected in another way. What is in the files doesn't count.
    pub fn changes_servers(&self, before: &Tls) -> bool {
        self.way_to_servers() != before.way_to_servers()
    }

    /// How servers are connected, as a text that a successor compares; empty if without TLS.
    pub fn way_to_servers(&self) -> String {
        let Some(ServerTls { mode, direct, wishes, made: _ }) = &self.server else {
            return String::new();
        };
        let Wishes { key, certificate, ca, protocols, ciphers, suites } = wishes;
        let negotiation = if *direct { "direct" } else { "postgres" };
        let texts = [key, certificate, ca, protocols, ciphers];
        format!("{} {negotiation} {texts:?} {suites:?}", mode.word())
    }

    pub(in crate::net) fn client(&self) -> Option<&ClientTls> {
        self.client.as_ref()
    }

    pub(in crate::net) fn server(&self) -> Option<&ServerTls> {
        self.server.as_ref()
    }
}

/// What the settings ask for together (auth 9.3).
fn check(settings: &Settings) -> Result<(), String> {
    let mode = settings.client_tls_sslmode;
    let no_ca = settings.client_tls_ca_file.is_empty();
    let no_pair =
        settings.client_tls_key_file.is_empty() || settings.client_tls_cert_file.is_empty();
    let error = if mode != SslMode::Disable && no_pair {
        "To allow TLS connections from clients, client_tls_key_file and client_tls_cert_file must \
         be set."
    } else if settings.auth_type == AuthType::Cert && mode != SslMode::VerifyFull {
        "auth_type=cert requires client_tls_sslmode=SSLMODE_VERIFY_FULL"
    } else if settings.auth_type == AuthType::Cert && no_ca {
        "auth_type=cert requires client_tls_ca_file"
    } else if mode == SslMode::VerifyFull && no_ca {
        "client_tls_sslmode requires client_tls_ca_file"
    } else if is_direct(settings) && !settings.server_tls_sslmode.forbids_plain() {
        "server_tls_sslnegotiation=direct requires server_tls_sslmode=require, verify-ca or \
         verify-full"
    } else {
        return Ok(());
    };
    Err(error.to_owned())
}

fn is_direct(settings: &Settings) -> bool {
    settings.server_tls_sslnegotiation == SslNegotiation::Direct
}

/// TLS towards clients.
#[derive(Clone)]
pub(in crate::net) struct ClientTls {
    mode: SslMode,
    wishes: Wishes,
    /// What was said of DHE parameters and curves.
    words: [String; 2],
    /// The files as they were.
    stamps: Stamps,
    context: SslContext,
    end_point: Rc<[u8]>,
}

impl ClientTls {
    fn new(
        settings: &Settings,
        mode: SslMode,
        before: Option<&ClientTls>,
    ) -> Result<ClientTls, String> {
        let wishes = Wishes {
            key: settings.client_tls_key_file.clone(),
            certificate: settings.client_tls_cert_file.clone(),
            ca: settings.client_tls_ca_file.clone(),
            protocols: settings.client_tls_protocols.clone(),
            ciphers: settings.client_tls_ciphers.clone(),
            suites: settings.client_tls13_ciphers.clone(),
        };
        let words =
            [&settings.client_tls_dheparams, &settings.client_tls_ecdhcurve].map(Clone::clone);
        let stamps = wishes.stamps();
        let same = |tls: &&ClientTls| {
            (tls.mode, &tls.wishes, &tls.words, &tls.stamps) == (mode, &wishes, &words, &stamps)
        };
        if let Some(same) = before.filter(same) {
            return Ok(same.clone());
        }
        wishes.check("client_tls")?;
        let invalid = |name: &str, value: &str| format!("invalid client_tls_{name}: {value}");
        let [dhe, curve] = &words;
        let has_params = words::dhe_params(dhe).ok_or_else(|| invalid("dheparams", dhe))?;
        let curve = words::curve(curve).ok_or_else(|| invalid("ecdhecurve", curve))?;
        let (context, end_point) = wishes
            .client_context(mode, has_params, &curve)
            .map_err(|error| format!("TLS setup failed: {error}"))?;
        Ok(ClientTls { mode, wishes, words, stamps, context, end_point })
    }

    /// What a new connection begins with.
    pub(in crate::net) fn begin(&self) -> Result<Ssl, ErrorStack> {
        let mut ssl = Ssl::new(&self.context)?;
        ssl.set_accept_state();
        Ok(ssl)
    }

    /// The hash of our certificate, for channel binding.
    pub(in crate::net) fn end_point(&self) -> Rc<[u8]> {
        Rc::clone(&self.end_point)
    }
}

/// TLS towards servers.
pub(in crate::net) struct ServerTls {
    mode: SslMode,
    direct: bool,
    wishes: Wishes,
    made: RefCell<Option<(Stamps, SslContext)>>,
}

impl ServerTls {
    fn new(
        settings: &Settings,
        mode: SslMode,
        before: Option<&ServerTls>,
    ) -> Result<ServerTls, String> {
        let wishes = Wishes {
            key: settings.server_tls_key_file.clone(),
            certificate: settings.server_tls_cert_file.clone(),
            ca: settings.server_tls_ca_file.clone(),
            protocols: settings.server_tls_protocols.clone(),
            ciphers: settings.server_tls_ciphers.clone(),
            suites: settings.server_tls13_ciphers.clone(),
        };
        let direct = is_direct(settings);
        if let Some(same) = before.filter(|tls| (tls.mode, &tls.wishes) == (mode, &wishes)) {
            return Ok(ServerTls { mode, direct, wishes, made: same.made.clone() });
        }
        wishes.check("server_tls")?;
        Ok(ServerTls { mode, direct, wishes, made: RefCell::default() })
    }

    /// What a connection to this host begins with. The error is what a log line says.
    pub(in crate::net) fn begin(&self, host: &str) -> Result<Ssl, String> {
        let context = self.context()?;
        let mut ssl = Ssl::new(&context).map_err(|errors| words::first_of(&errors))?;
        ssl.set_connect_state();
        // Names that can't be said are left out: who cares for the name checks the certificate.
        if host.parse::<IpAddr>().is_err()
            && !host.contains('\0')
            && ssl.set_hostname(host).is_err()
        {
            drop(ErrorStack::get());
        }
        if self.direct {
            ssl.set_alpn_protos(ALPN).map_err(|errors| words::first_of(&errors))?;
        }
        Ok(ssl)
    }

    /// True if a handshake begins without asking first. The server has to choose our protocol then:
    /// one that doesn't know what it is asked for might speak another.
    pub(in crate::net) fn is_direct(&self) -> bool {
        self.direct
    }

    /// True if the server's certificate has to be for the host.
    pub(in crate::net) fn checks_name(&self) -> bool {
        self.mode == SslMode::VerifyFull
    }

    /// True if nothing may be said in plain text.
    pub(in crate::net) fn forbids_plain(&self) -> bool {
        self.mode.forbids_plain()
    }

    fn context(&self) -> Result<SslContext, String> {
        let wishes = &self.wishes;
        let stamps = wishes.stamps();
        if let Some((of, context)) = &*self.made.borrow() {
            if *of == stamps {
                return Ok(context.clone());
            }
        }
        let checks_chain = matches!(self.mode, SslMode::VerifyCa | SslMode::VerifyFull);
        let context = wishes.server_context(checks_chain)?;
        *self.made.borrow_mut() = Some((stamps, context.clone()));
        Ok(context)
    }
}

/// What tells one state of a file from another: device, number, size, time of the last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp(u64, u64, u64, i64, i64);

/// Those of key, certificate and authorities, as far as there are such files.
type Stamps = [Option<Stamp>; 3];

fn stamp(file: &str) -> Option<Stamp> {
    let data = fs::metadata(file).ok()?;
    Some(Stamp(data.dev(), data.ino(), data.size(), data.ctime(), data.ctime_nsec()))
}

/// What the settings of both sides have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wishes {
    key: String,
    certificate: String,
    ca: String,
    protocols: String,
    ciphers: String,
    suites: Option<String>,
}

impl Wishes {
    /// Checks what can be checked without files. `side` is the beginning of the parameters' names.
    fn check(&self, side: &str) -> Result<(), String> {
        let invalid = |name: &str, value: &str| format!("invalid {side}_{name}: {value}");
        Protocols::parse(&self.protocols).ok_or_else(|| invalid("protocols", &self.protocols))?;
        words::ciphers(&self.ciphers).map_err(|()| invalid("ciphers", &self.ciphers))?;
        Ok(())
    }

    fn stamps(&self) -> Stamps {
        [&self.key, &self.certificate, self.ca_file()].map(stamp)
    }

    /// The file with the authorities: a system's own, unless another is wanted.
    fn ca_file(&self) -> &str {
        match self.ca.as_str() {
            "" => BUNDLES.into_iter().find(|file| fs::metadata(file).is_ok()).unwrap_or(BUNDLES[0]),
            file => file,
        }
    }

    fn client_context(
        &self,
        mode: SslMode,
        has_params: bool,
        curve: &Curve,
    ) -> Result<(SslContext, Rc<[u8]>), String> {
        let other = |errors: ErrorStack| words::first_of(&errors);
        let mut context = self.base(SslMethod::tls_server()).map_err(other)?;
        context.set_options(SslOptions::CIPHER_SERVER_PREFERENCE | SslOptions::NO_TICKET);
        context.set_num_tickets(0).map_err(other)?;
        self.restrict(&mut context)?;
        self.load_pair(&mut context)?;
        if has_params {
            let prime = BigNum::get_rfc3526_prime_2048().map_err(other)?;
            let generator = BigNum::from_u32(2).map_err(other)?;
            let params = Dh::from_pqg(prime, None, generator).map_err(other)?;
            context.set_tmp_dh(&params).map_err(other)?;
        }
        let set = match curve {
            Curve::Default => true,
            Curve::Named(name) => context.set_groups_list(name).is_ok(),
            Curve::Useless => false,
        };
        if !set {
            return Err("failed to set ECDHE curve".into());
        }
        self.load_ca(&mut context)?;
        sys::build_chain(&mut context);
        if !self.ca.is_empty() {
            let names = X509Name::load_client_ca_file(&self.ca).map_err(ca_error)?;
            context.set_client_ca_list(names);
        }
        let required = match mode {
            SslMode::VerifyCa | SslMode::VerifyFull => SslVerifyMode::FAIL_IF_NO_PEER_CERT,
            _ => SslVerifyMode::empty(),
        };
        context.set_verify(SslVerifyMode::PEER | required);
        context.set_alpn_select_callback(|_, offered| {
            select_next_proto(ALPN, offered).ok_or(AlpnError::ALERT_FATAL)
        });
        let context = context.build();
        let end_point = context.certificate().map(session::end_point_of).unwrap_or_default();
        Ok((context, end_point))
    }

    fn server_context(&self, checks_chain: bool) -> Result<SslContext, String> {
        let mut context =
            self.base(SslMethod::tls_client()).map_err(|errors| words::first_of(&errors))?;
        self.restrict(&mut context)?;
        self.load_pair(&mut context)?;
        context.set_verify(SslVerifyMode::NONE);
        if checks_chain {
            self.load_ca(&mut context)?;
            sys::build_chain(&mut context);
            context.set_verify(SslVerifyMode::PEER);
        }
        Ok(context.build())
    }

    fn base(&self, method: SslMethod) -> Result<SslContextBuilder, ErrorStack> {
        let mut context = SslContextBuilder::new(method)?;
        context.set_options(
            SslOptions::NO_COMPRESSION
                | SslOptions::NO_RENEGOTIATION
                | SslOptions::IGNORE_UNEXPECTED_EOF
                | SslOptions::NO_SSLV3,
        );
        // Partial writes: what is refused stays in our own memory, in one place.
        context.set_mode(
            Mode::RELEASE_BUFFERS | Mode::ENABLE_PARTIAL_WRITE | Mode::ACCEPT_MOVING_WRITE_BUFFER,
        );
        // One receive for a record's header and body, and for what follows them.
        context.set_read_ahead(true);
        context.set_session_cache_mode(SslSessionCacheMode::OFF);
        context.set_verify_depth(DEPTH);
        Ok(context)
    }

    /// Sets what is allowed.
    fn restrict(&self, context: &mut SslContextBuilder) -> Result<(), String> {
        if let Some(protocols) = Protocols::parse(&self.protocols) {
            protocols.apply(context).map_err(|errors| words::first_of(&errors))?;
        }
        if let Ok(Some(ciphers)) = words::ciphers(&self.ciphers) {
            context.set_cipher_list(ciphers).map_err(|_| "failed to set ciphers")?;
        }
        match self.suites.as_deref() {
            None | Some("") => Ok(()),
            Some(suites) if suites.contains('\0') => Err("failed to set the TLSv1.3 cipher suites"),
            Some(suites) => context
                .set_ciphersuites(suites)
                .map_err(|_| "failed to set the TLSv1.3 cipher suites"),
        }
        .map_err(Into::into)
    }

    /// Loads certificate and key, as far as there are any.
    fn load_pair(&self, context: &mut SslContextBuilder) -> Result<(), String> {
        let (certificate, key) = (&self.certificate, &self.key);
        if certificate.is_empty() && key.is_empty() {
            return Ok(());
        }
        if !certificate.is_empty() {
            let failed = |error: String| {
                format!("failed to load certificate file \"{certificate}\": {error}")
            };
            readable(certificate).map_err(failed)?;
            let loaded = context.set_certificate_chain_file(certificate);
            loaded.map_err(|errors| failed(words::first_of(&errors)))?;
        }
        if !key.is_empty() {
            let failed =
                |error: String| format!("failed to load private key file \"{key}\": {error}");
            let pem = fs::read(key).map_err(|error| failed(system(&error)))?;
            let pem = zeroize::Zeroizing::new(pem);
            // Without this nobody would be asked for a passphrase but the terminal.
            let private = PKey::private_key_from_pem_callback(&pem, |_| Ok(0));
            private
                .and_then(|private| context.set_private_key(&private))
                .map_err(|errors| failed(words::first_of(&errors)))?;
        }
        context.check_private_key().map_err(|_| "private/public key mismatch".to_owned())
    }

    /// Loads the authorities.
    fn load_ca(&self, context: &mut SslContextBuilder) -> Result<(), String> {
        let file = self.ca_file();
        readable(file).map_err(|error| format!("failed to load CA: {error}"))?;
        context.set_ca_file(file).map_err(ca_error)
    }
}

fn ca_error(errors: ErrorStack) -> String {
    format!("failed to load CA: {}", words::first_of(&errors))
}

/// Opens a file to see whether it can be; OpenSSL's own way to say so depends on its version.
fn readable(file: &str) -> Result<(), String> {
    fs::File::open(file).map(drop).map_err(|error| system(&error))
}

fn system(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), words::system)
}
