//! Types of values in configuration files, with the text forms of the reference (config 2.5).

use crate::base::Micros;
use std::fmt;

/// A value that can be read from a file or `SET`, and shown by `SHOW CONFIG`.
pub trait Value: Sized {
    /// Name of the type in the manual.
    const KIND: &'static str;
    /// Reads the whole text; `None` if it is not a value of this type.
    fn parse(text: &str) -> Option<Self>;
    /// The text form; `None` stands for SQL NULL.
    fn show(&self) -> Option<String>;
}

/// A number as C's `strtol` and `strtoul` read it, with base 0 or 10: its sign, its size (clamped),
/// and what follows it. `None` if there is no digit.
struct Number<'a> {
    negative: bool,
    size: u128,
    rest: &'a str,
}

fn number(text: &str, detect_base: bool) -> Option<Number<'_>> {
    let text = skip_space(text);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let hex = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
        .filter(|rest| rest.starts_with(|c: char| c.is_ascii_hexdigit()));
    let (base, digits) = match hex {
        Some(rest) if detect_base => (16, rest),
        _ if detect_base && digits.starts_with('0') => (8, digits),
        _ => (10, digits),
    };
    let mut size = 0_u128;
    let mut rest = digits;
    let mut chars = digits.chars();
    while let Some(digit) = chars.next().and_then(|c| c.to_digit(base)) {
        size = size.saturating_mul(u128::from(base)).saturating_add(u128::from(digit));
        rest = chars.as_str();
    }
    (rest.len() < digits.len()).then_some(Number { negative, size, rest })
}

impl Number<'_> {
    /// The low 32 bits of what `strtol` returns, which clamps to 64 bits.
    fn low_signed(&self) -> i32 {
        let long = if self.negative {
            i64::try_from(self.size).map_or(i64::MIN, i64::wrapping_neg)
        } else {
            i64::try_from(self.size).unwrap_or(i64::MAX)
        };
        long as i32
    }

    /// The low 32 bits of what `strtoul` returns: clamped first, negated then.
    fn low_unsigned(&self) -> u32 {
        match u64::try_from(self.size) {
            Ok(size) if self.negative => size.wrapping_neg() as u32,
            Ok(size) => size as u32,
            Err(_) => u32::MAX,
        }
    }
}

/// Without leading white space as the C locale defines it.
fn skip_space(text: &str) -> &str {
    text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r'])
}

/// C's `atoi`: what follows the digits is ignored, and no digits are zero (config 2.6).
pub fn atoi(text: &str) -> i32 {
    number(text, false).map_or(0, |number| number.low_signed())
}

impl Value for i32 {
    const KIND: &'static str = "integer";
    fn parse(text: &str) -> Option<i32> {
        let number = number(text, true)?;
        number.rest.is_empty().then(|| number.low_signed())
    }
    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for u32 {
    const KIND: &'static str = "unsigned integer";
    fn parse(text: &str) -> Option<u32> {
        let number = number(text, true)?;
        number.rest.is_empty().then(|| number.low_unsigned())
    }
    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// A boolean: a number of which only "zero or not" matters, shown as it was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flag(pub i32);

impl Flag {
    /// True for any number but zero.
    pub fn on(self) -> bool {
        self.0 != 0
    }
}

impl Value for Flag {
    const KIND: &'static str = "boolean";
    fn parse(text: &str) -> Option<Flag> {
        i32::parse(text).map(Flag)
    }
    fn show(&self) -> Option<String> {
        self.0.show()
    }
}

impl Value for Micros {
    const KIND: &'static str = "seconds";
    /// Seconds as C's `strtod` reads them; negative ones are refused, infinite ones clamped.
    fn parse(text: &str) -> Option<Micros> {
        let seconds = float(text)?;
        if seconds < 0.0 {
            return None;
        }
        Some(Micros((seconds * 1e6) as u64))
    }
    fn show(&self) -> Option<String> {
        Some(six_digits(self.0 as f64 / 1e6))
    }
}

/// A whole text as C's `strtod` reads it in the C locale.
fn float(text: &str) -> Option<f64> {
    let text = skip_space(text);
    let (sign, size) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if size.starts_with(['+', '-']) {
        return None;
    }
    match size.get(..2) {
        Some("0x" | "0X") => hex_float(size.get(2..)?).map(|value| sign * value),
        _ => size.parse::<f64>().ok().map(|value| sign * value),
    }
}

/// The part of a hexadecimal floating point number behind its `0x`.
fn hex_float(text: &str) -> Option<f64> {
    let (digits, exponent) = match text.split_once(['p', 'P']) {
        Some((digits, exponent)) => (digits, Some(exponent)),
        None => (text, None),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut value = 0.0;
    for c in whole.chars() {
        value = value * 16.0 + f64::from(c.to_digit(16)?);
    }
    let mut scale = 1.0;
    for c in fraction.chars() {
        scale /= 16.0;
        value += scale * f64::from(c.to_digit(16)?);
    }
    match exponent {
        None => Some(value),
        // A text like "p" or "p1x" must not pass; f64 clamps what is too large.
        Some(exponent) => Some(value * 2_f64.powi(exponent.parse::<i32>().ok()?)),
    }
}

/// C's `%g`: six significant digits, no trailing zeros.
fn six_digits(value: f64) -> String {
    let scientific = format!("{value:.5e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        let decimals = usize::try_from(5 - exponent).unwrap_or(0);
        return without_zeros(&format!("{value:.decimals$}")).to_owned();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    let digits = without_zeros(digits);
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

fn without_zeros(digits: &str) -> &str {
    if digits.contains('.') {
        digits.trim_end_matches('0').trim_end_matches('.')
    } else {
        digits
    }
}

impl Value for String {
    const KIND: &'static str = "text";
    fn parse(text: &str) -> Option<String> {
        Some(text.to_owned())
    }
    fn show(&self) -> Option<String> {
        Some(self.clone())
    }
}

impl Value for Option<String> {
    const KIND: &'static str = "text";
    fn parse(text: &str) -> Option<Option<String>> {
        Some(Some(text.to_owned()))
    }
    fn show(&self) -> Option<String> {
        self.clone()
    }
}

/// The port of a server, or a list with one for each of its hosts; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(Vec<i32>);

impl Ports {
    /// Reads each element as `atoi` does; in a list, an empty one is `default`. `None` if one is 0.
    pub fn read(text: &str, default: i32) -> Option<Ports> {
        let is_list = text.contains(',');
        let port = |element: &str| match element {
            "" if is_list => default,
            _ => atoi(element),
        };
        let ports: Vec<i32> = text.split(',').map(port).collect();
        (!ports.contains(&0)).then_some(Ports(ports))
    }

    /// The port of the host at this place of its list.
    pub fn of(&self, host: usize) -> i32 {
        self.0.get(host).or(self.0.first()).copied().unwrap_or(0)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl From<i32> for Ports {
    fn from(port: i32) -> Ports {
        Ports(vec![port])
    }
}

impl Value for Ports {
    const KIND: &'static str = "integer or list of integers";
    fn parse(text: &str) -> Option<Ports> {
        Ports::read(text, 0)
    }
    fn show(&self) -> Option<String> {
        let ports: Vec<String> = self.0.iter().map(i32::to_string).collect();
        Some(ports.join(","))
    }
}

/// A password out of a file. Never printed, and not to be compared outside `auth`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Value for Secret {
    const KIND: &'static str = "text";
    fn parse(text: &str) -> Option<Secret> {
        Some(Secret(text.as_bytes().to_vec()))
    }
    fn show(&self) -> Option<String> {
        None
    }
}

/// Declares an enumeration whose values are written as words, in any case; the first is `Default`.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$item_doc])* $item,)+ }

        impl $name {
            /// All words, in order of declaration.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word for this value, in lower case.
            pub fn word(self) -> &'static str {
                match self { $($name::$item => $word,)+ }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                const ALL: &[$name] = &[$($name::$item),+];
                ALL[0]
            }
        }

        impl Value for $name {
            const KIND: &'static str = concat!("one of" $(, " ", $word)+);
            fn parse(text: &str) -> Option<Self> {
                $(if text.eq_ignore_ascii_case($word) {
                    return Some($name::$item);
                })+
                None
            }
            fn show(&self) -> Option<String> {
                Some(self.word().to_owned())
            }
        }
    };
}

choice! {
    /// When a server goes back to its pool.
    PoolMode {
        /// After the client disconnected.
        Session = "session",
        /// After each transaction.
        Transaction = "transaction",
        /// After each query; transactions of several statements are refused.
        Statement = "statement",
    }
}

choice! {
    /// How clients prove who they are. `peer` and `reject` exist in HBA files only.
    AuthType {
        /// MD5, or SCRAM if the stored secret asks for it.
        Md5 = "md5",
        /// Everybody is let in, as the forced user of the database.
        Any = "any",
        /// Every known user is let in.
        Trust = "trust",
        /// Password in clear text.
        Plain = "plain",
        /// The certificate's common name is the user's name.
        Cert = "cert",
        /// The HBA file decides.
        Hba = "hba",
        /// An LDAP server decides.
        Ldap = "ldap",
        /// PAM decides.
        Pam = "pam",
        /// SCRAM only.
        ScramSha256 = "scram-sha-256",
    }
}

choice! {
    /// What servers must be like (libpq's target_session_attrs).
    SessionAttrs {
        /// Any server will do.
        Any = "any",
        /// Sessions accept writes by default.
        ReadWrite = "read-write",
        /// Sessions don't accept writes by default.
        ReadOnly = "read-only",
        /// Not in hot standby mode.
        Primary = "primary",
        /// In hot standby mode.
        Standby = "standby",
        /// A standby if one of the hosts is one, else any.
        PreferStandby = "prefer-standby",
    }
}

choice! {
    /// How much TLS is wanted (client and server side).
    SslMode {
        /// None.
        Disable = "disable",
        /// The same as `Prefer`.
        Allow = "allow",
        /// If the other side wants or can.
        Prefer = "prefer",
        /// Always; the certificate is not looked at.
        Require = "require",
        /// Always; the certificate must come from the CA file.
        VerifyCa = "verify-ca",
        /// Always; the certificate's name must also match.
        VerifyFull = "verify-full",
    }
}

impl SslMode {
    /// True for the modes in which nothing may go over TCP in plain text.
    pub fn forbids_plain(self) -> bool {
        matches!(self, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull)
    }
}

choice! {
    /// Which host of a comma-separated list is connected next.
    LoadBalance {
        /// The next one at each attempt.
        RoundRobin = "round-robin",
        /// The same one until a connect fails.
        Disable = "disable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_as_strtol_does() {
        for (text, want) in [
            ("5", Some(5)),
            (" \t\r5", Some(5)),
            ("+5", Some(5)),
            ("-5", Some(-5)),
            ("0x10", Some(16)),
            ("0X1f", Some(31)),
            ("0777", Some(511)),
            ("0", Some(0)),
            ("00", Some(0)),
            ("4294967301", Some(5)),
            ("100000000000000000000000", Some(-1)),
            ("-100000000000000000000000", Some(0)),
            ("99999999999999999999999999999999999999999999", Some(-1)),
            ("", None),
            (" ", None),
            ("-", None),
            ("5 ", None),
            ("5x", None),
            ("08", None),
            ("0x", None),
            ("0xg", None),
            ("1.5", None),
            ("true", None),
            ("yes", None),
            ("on", None),
            ("٣", None),
        ] {
            assert_eq!(i32::parse(text), want, "{text}");
            assert_eq!(Flag::parse(text), want.map(Flag), "{text}");
        }
        assert_eq!(Flag(7).show().as_deref(), Some("7"));
        assert!(Flag(-1).on() && !Flag(0).on());
    }

    #[test]
    fn unsigned_integers_wrap() {
        for (text, want) in [
            ("2147483647", Some(2_147_483_647)),
            ("-1", Some(4_294_967_295)),
            ("4294967295", Some(4_294_967_295)),
            ("0x10", Some(16)),
            ("100000000000000000000000", Some(4_294_967_295)),
            ("-100000000000000000000000", Some(4_294_967_295)),
            ("", None),
            ("1x", None),
        ] {
            assert_eq!(u32::parse(text), want, "{text}");
        }
        assert_eq!(u32::MAX.show().as_deref(), Some("4294967295"));
    }

    #[test]
    fn seconds_are_read_as_strtod_does_and_shown_with_six_digits() {
        for (text, micros, shown) in [
            ("3600", 3_600_000_000, "3600"),
            ("0.25", 250_000, "0.25"),
            (" 1e3", 1_000_000_000, "1000"),
            ("0x10", 16_000_000, "16"),
            ("0x1.8p1", 3_000_000, "3"),
            (".5", 500_000, "0.5"),
            ("5.", 5_000_000, "5"),
            ("1e6", 1_000_000_000_000, "1e+06"),
            ("1234567", 1_234_567_000_000, "1.23457e+06"),
            ("0.1234561", 123_456, "0.123456"),
            ("0.00001", 10, "1e-05"),
            ("0.0001", 100, "0.0001"),
            ("999999.9", 999_999_900_000, "1e+06"),
            ("0.0000001", 0, "0"),
            ("-0", 0, "0"),
            ("nan", 0, "0"),
            ("inf", u64::MAX, "1.84467e+13"),
            ("1e300", u64::MAX, "1.84467e+13"),
        ] {
            let value = Micros::parse(text);
            assert_eq!(value, Some(Micros(micros)), "{text}");
            assert_eq!(value.and_then(|v| v.show()).as_deref(), Some(shown), "{text}");
        }
        for text in [
            "", " ", "-1", "-inf", "5s", "5 ", "1e", "1,5", "0x", "0xp1", "0x1p", "+-1", ".",
            "5 min",
        ] {
            assert_eq!(Micros::parse(text), None, "{text}");
        }
    }

    #[test]
    fn atoi_ignores_what_is_no_number() {
        for (text, want) in [
            ("abc", 0),
            ("5432x", 5432),
            ("1.5", 1),
            (" -3", -3),
            ("+4", 4),
            ("0x10", 0),
            ("010", 10),
            ("", 0),
            ("4294967301", 5),
        ] {
            assert_eq!(atoi(text), want, "{text}");
        }
    }

    #[test]
    fn choices_ignore_case_and_show_lower_case() {
        assert_eq!(PoolMode::parse("TransAction"), Some(PoolMode::Transaction));
        assert_eq!(PoolMode::Statement.show().as_deref(), Some("statement"));
        assert_eq!(PoolMode::parse("trans"), None);
        assert_eq!(AuthType::parse("SCRAM-sha-256"), Some(AuthType::ScramSha256));
        for text in ["peer", "reject", "password", "gss", ""] {
            assert_eq!(AuthType::parse(text), None, "{text}");
        }
        assert_eq!(SslMode::parse("verify-full"), Some(SslMode::VerifyFull));
        assert_eq!(LoadBalance::default().word(), "round-robin");
        assert_eq!(PoolMode::WORDS, ["session", "transaction", "statement"]);
    }

    #[test]
    fn text_is_kept_and_may_be_unset() {
        assert_eq!(Option::<String>::parse(""), Some(Some(String::new())));
        assert_eq!(None::<String>.show(), None);
        assert_eq!(String::parse("'x' ").and_then(|v| v.show()).as_deref(), Some("'x' "));
        assert_eq!(format!("{:?}", Secret(b"hidden".to_vec())), "Secret");
    }
}
