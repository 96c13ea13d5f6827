//! The words of the TLS parameters (auth 9.1), and OpenSSL's own.

use crate::net::options;
use openssl::asn1::Asn1Object;
use openssl::ec::EcGroup;
use openssl::error::{Error, ErrorStack};
use openssl::nid::Nid;
use openssl::ssl::{ErrorCode, SslContextBuilder, SslMethod, SslOptions, SslVersion};
use std::io;

/// The versions of TLS, oldest first, with what forbids each.
const VERSIONS: [(SslVersion, SslOptions); 4] = [
    (SslVersion::TLS1, SslOptions::NO_TLSV1),
    (SslVersion::TLS1_1, SslOptions::NO_TLSV1_1),
    (SslVersion::TLS1_2, SslOptions::NO_TLSV1_2),
    (SslVersion::TLS1_3, SslOptions::NO_TLSV1_3),
];

/// A set of versions: bit 0 is TLS 1.0, bit 3 is TLS 1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Protocols(u8);

impl Protocols {
    const ALL: u8 = 0b1111;
    const SECURE: u8 = 0b1100;

    /// Reads a list such as `tlsv1.2,tlsv1.3` or `all:!tlsv1.0`.
    pub(super) fn parse(text: &str) -> Option<Protocols> {
        if text.is_empty() {
            return Some(Protocols(Protocols::SECURE));
        }
        let mut set = 0;
        for (number, item) in text.split([',', ':']).enumerate() {
            let item = item.trim_ascii_start();
            let (removes, word) = match item.strip_prefix('!') {
                Some(word) => (true, word),
                None => (false, item),
            };
            let bits = match word.to_ascii_lowercase().as_str() {
                "tlsv1" | "all" => Protocols::ALL,
                "tlsv1.0" => 0b0001,
                "tlsv1.1" => 0b0010,
                "tlsv1.2" => 0b0100,
                "tlsv1.3" => 0b1000,
                "secure" | "default" => Protocols::SECURE,
                _ => return None,
            };
            match (removes, number) {
                (false, _) => set |= bits,
                (true, 0) => set = Protocols::ALL & !bits,
                (true, _) => set &= !bits,
            }
        }
        Some(Protocols(set))
    }

    /// Allows these versions and no others, whatever the system's defaults are.
    pub(super) fn apply(self, context: &mut SslContextBuilder) -> Result<(), ErrorStack> {
        let is_in = |place: usize| self.0 & (1 << place) != 0;
        let in_set = || VERSIONS.iter().enumerate().filter(|(place, _)| is_in(*place));
        let first = in_set().next().map(|(_, (version, _))| *version);
        let last = in_set().next_back().map(|(_, (version, _))| *version);
        context.set_min_proto_version(first)?;
        context.set_max_proto_version(last)?;
        for (place, (_, forbids)) in VERSIONS.iter().enumerate() {
            match is_in(place) {
                true => context.clear_options(*forbids),
                false => context.set_options(*forbids),
            };
        }
        Ok(())
    }
}

/// A list of ciphers for TLS up to 1.2; `None` leaves the library's choice.
pub(super) fn ciphers(text: &str) -> Result<Option<&str>, ()> {
    const DEFAULTS: [&str; 5] = ["", "default", "secure", "normal", "fast"];
    if DEFAULTS.iter().any(|word| word.eq_ignore_ascii_case(text)) {
        return Ok(None);
    }
    let mut trial = SslContextBuilder::new(SslMethod::tls()).map_err(drop)?;
    let is_text = !text.contains('\0');
    let accepted = is_text && trial.set_cipher_list(text).is_ok();
    accepted.then_some(Some(text)).ok_or(())
}

/// What `client_tls_ecdhcurve` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Curve {
    /// The library's choice.
    Default,
    /// This one only.
    Named(String),
    /// The name of something that is no curve of this kind.
    Useless,
}

/// Reads the name of a curve; `None` for names that OpenSSL doesn't know.
pub(super) fn curve(text: &str) -> Option<Curve> {
    if ["", "auto", "none"].iter().any(|word| word.eq_ignore_ascii_case(text)) {
        return Some(Curve::Default);
    }
    if text.contains('\0') || text.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let nid = Asn1Object::from_str(text).ok()?.nid();
    let name = nid.short_name().ok().filter(|_| nid != Nid::UNDEF)?;
    match EcGroup::from_curve_name(nid) {
        Ok(_) => Some(Curve::Named(name.to_owned())),
        Err(_) => Some(Curve::Useless),
    }
}

/// Reads `client_tls_dheparams`: whether there are any.
pub(super) fn dhe_params(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "auto" | "" => Some(true),
        "none" => Some(false),
        _ => None,
    }
}

/// The long form of the first error: `error:0A000086:SSL routines::certificate verify failed`.
pub(super) fn first_of(errors: &ErrorStack) -> String {
    errors.errors().first().map_or_else(|| "unknown error".to_owned(), long)
}

/// Set in the code of an error that the system reported.
const SYSTEM: u64 = 0x8000_0000;

fn long(error: &Error) -> String {
    #[allow(clippy::useless_conversion)] // C's unsigned long has 32 bits elsewhere.
    let code = u64::from(error.code());
    if code & SYSTEM != 0 {
        return system(i32::try_from(code & !SYSTEM).unwrap_or(0));
    }
    let library = error.library().unwrap_or_default();
    let reason =
        error.reason().map_or_else(|| format!("reason({})", error.reason_code()), Into::into);
    format!("error:{code:08X}:{library}::{reason}")
}

/// The long form of an error of the system, as OpenSSL would have it.
pub(super) fn system(errno: i32) -> String {
    let code = SYSTEM | u64::try_from(errno).unwrap_or(0);
    let reason = options::reason(&io::Error::from_raw_os_error(errno));
    format!("error:{code:08X}:system library::{reason}")
}

/// What ended a session, without what it was about to do.
pub(super) fn failure(error: &openssl::ssl::Error) -> String {
    match (error.code(), error.io_error(), error.ssl_error()) {
        (ErrorCode::ZERO_RETURN, ..) | (ErrorCode::SYSCALL, None, None) => "unexpected EOF".into(),
        (_, Some(error), _) => options::reason(error),
        (_, None, Some(errors)) => first_of(errors),
        (_, None, None) => "unknown error".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_lists_of_words() {
        for (text, want) in [
            ("", Some(0b1100)),
            ("secure", Some(0b1100)),
            ("DEFAULT", Some(0b1100)),
            ("tlsv1", Some(0b1111)),
            ("all", Some(0b1111)),
            ("tlsv1.0", Some(0b0001)),
            ("TLSv1.1,tlsv1.3", Some(0b1010)),
            ("tlsv1.1: tlsv1.2", Some(0b0110)),
            ("tlsv1.1 ,tlsv1.2", None),
            ("!tlsv1.0", Some(0b1110)),
            ("!tlsv1.0:!tlsv1.1", Some(0b1100)),
            ("secure,!tlsv1.3", Some(0b0100)),
            ("all:!secure,tlsv1.3", Some(0b1011)),
            ("legacy", None),
            ("tlsv1.4", None),
            ("secure,", None),
            ("! tlsv1.0", None),
            (" secure", Some(0b1100)),
        ] {
            assert_eq!(Protocols::parse(text).map(|set| set.0), want, "{text:?}");
        }
    }

    #[test]
    fn ciphers_are_openssls_or_the_defaults() {
        for text in ["", "default", "Secure", "normal", "FAST"] {
            assert_eq!(ciphers(text), Ok(None));
        }
        for text in ["ALL", "HIGH:!aNULL", "AES128-SHA"] {
            assert_eq!(ciphers(text), Ok(Some(text)));
        }
        for text in ["all", "nonsense", "AES128-SHA\0"] {
            assert_eq!(ciphers(text), Err(()), "{text}");
        }
    }

    #[test]
    fn curves_have_openssls_names() {
        let named = |name: &str| Some(Curve::Named(name.into()));
        for (text, want) in [
            ("auto", Some(Curve::Default)),
            ("None", Some(Curve::Default)),
            ("prime256v1", named("prime256v1")),
            ("secp384r1", named("secp384r1")),
            ("X25519", Some(Curve::Useless)),
            ("P-384", None),
            ("nonsense", None),
            ("1.3.132.0.34", None),
            ("prime256v1\0", None),
        ] {
            assert_eq!(curve(text), want, "{text}");
        }
    }

    #[test]
    fn dhe_parameters_are_there_or_not() {
        for (text, want) in
            [("auto", Some(true)), ("AUTO", Some(true)), ("none", Some(false)), ("legacy", None)]
        {
            assert_eq!(dhe_params(text), want, "{text}");
        }
    }

    #[test]
    fn errors_of_the_system_look_like_openssls() {
        assert_eq!(system(2), "error:80000002:system library::No such file or directory");
    }
}
