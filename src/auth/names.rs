//! The names that a certificate carries, and whether a host or user is one of them (auth 9.6).

use std::net::IpAddr;

/// The names in a certificate, as bytes: nobody has checked what they contain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    dns: Vec<Box<[u8]>>,
    ips: Vec<Box<[u8]>>,
    common: Option<Box<[u8]>>,
}

impl Names {
    /// Names of the kinds dNSName and iPAddress (4 or 16 bytes) in the subjectAltName, and the
    /// first common name of the subject.
    pub fn new(
        dns: impl Iterator<Item = Box<[u8]>>,
        ips: impl Iterator<Item = Box<[u8]>>,
        common: Option<Box<[u8]>>,
    ) -> Names {
        Names { dns: dns.collect(), ips: ips.collect(), common }
    }

    /// All of them as they are: those of kind dNSName, of kind iPAddress, and the common name.
    pub fn parts(&self) -> [&[Box<[u8]>]; 3] {
        let Names { dns, ips, common } = self;
        [dns, ips, common.as_slice()]
    }

    /// The common name, unless there is a NUL byte in it.
    pub fn common(&self) -> Option<&[u8]> {
        self.common.as_deref().filter(|name| !name.contains(&0))
    }

    /// True if the certificate is for this host, address or user: first by subjectAltName, then by
    /// common name. A certificate with a name that is made to deceive is for nobody.
    pub fn include(&self, wanted: &str) -> bool {
        let mut all = self.dns.iter().chain(&self.common);
        if wanted.is_empty() || all.any(|name| name.contains(&0)) {
            return false;
        }
        if self.dns.iter().any(|name| **name == *b" ") {
            return false;
        }
        let common = self.common.as_deref().unwrap_or_default();
        match wanted.parse::<IpAddr>() {
            Ok(ip) => {
                let same = |octets: &[u8]| self.ips.iter().any(|name| **name == *octets);
                let listed = match ip {
                    IpAddr::V4(ip) => same(&ip.octets()),
                    IpAddr::V6(ip) => same(&ip.octets()),
                };
                listed || common == wanted.as_bytes()
            }
            Err(_) => {
                self.dns.iter().any(|name| covers(name, wanted.as_bytes()))
                    || covers(common, wanted.as_bytes())
            }
        }
    }
}

/// True if a name of a certificate is this name, or a wildcard that covers it.
fn covers(pattern: &[u8], name: &[u8]) -> bool {
    if pattern.eq_ignore_ascii_case(name) {
        return !pattern.is_empty();
    }
    let Some(domain) = pattern.strip_prefix(b"*.") else {
        return false;
    };
    let mut labels = domain.split(|byte| *byte == b'.');
    if labels.clone().count() < 2 || labels.any(<[u8]>::is_empty) {
        return false;
    }
    match name.iter().position(|byte| *byte == b'.') {
        None | Some(0) => false,
        Some(dot) => {
            name.get(dot.saturating_add(1)..).unwrap_or_default().eq_ignore_ascii_case(domain)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dns: &[&str], ips: &[&[u8]], common: Option<&str>) -> Names {
        Names::new(
            dns.iter().map(|name| name.as_bytes().into()),
            ips.iter().map(|ip| Box::from(*ip)),
            common.map(|name| name.as_bytes().into()),
        )
    }

    #[test]
    fn hosts_are_found_by_name_or_wildcard() {
        for (pattern, host, want) in [
            ("db.example.com", "db.example.com", true),
            ("DB.Example.COM", "db.eXample.com", true),
            ("db.example.com", "db.example.co", false),
            ("db.example.com", "xdb.example.com", false),
            ("localhost", "localhost", true),
            ("*.example.com", "db.example.com", true),
            ("*.example.com", "DB.EXAMPLE.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "a.db.example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.com", "example.com", false),
            ("*", "example", false),
            ("*.", "example.", false),
            ("*..com", "a..com", false),
            ("*.example.", "a.example.", false),
            ("d*.example.com", "db.example.com", false),
            ("db.*.com", "db.example.com", false),
            ("*.*.com", "db.example.com", false),
            ("", "", false),
            ("", "x", false),
        ] {
            assert_eq!(names(&[pattern], &[], None).include(host), want, "{pattern} {host}");
            assert_eq!(names(&[], &[], Some(pattern)).include(host), want, "CN {pattern} {host}");
            assert_eq!(names(&["x.y"], &[], Some(pattern)).include(host), want, "both {pattern}");
        }
    }

    #[test]
    fn addresses_are_found_by_their_bytes() {
        let six = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let both: &[&[u8]] = &[&[127, 0, 0, 1], &six];
        for (dns, ips, common, host, want) in [
            ("", both, None, "127.0.0.1", true),
            ("", both, None, "::1", true),
            ("", both, None, "0:0::1", true),
            ("", both, None, "127.0.0.2", false),
            ("", both, None, "localhost", false),
            ("127.0.0.1", &[], None, "127.0.0.1", false),
            ("", &[], Some("127.0.0.1"), "127.0.0.1", true),
            ("", &[], Some("0:0::1"), "::1", false),
            ("", &[], Some("*.0.0.1"), "127.0.0.1", false),
        ] {
            assert_eq!(names(&[dns], ips, common).include(host), want, "{dns} {common:?} {host}");
        }
    }

    #[test]
    fn names_that_deceive_spoil_the_certificate() {
        for (dns, common) in [
            (&["a.b\0.evil", "a.b"][..], None),
            (&["a.b", " "], None),
            (&["a.b"], Some("a.b\0.evil")),
            (&[], Some("a.b\0")),
        ] {
            assert!(!names(dns, &[&[1, 2, 3, 4]], common).include("a.b"), "{dns:?} {common:?}");
        }
        assert_eq!(names(&[], &[], Some("a\0b")).common(), None);
        assert_eq!(names(&[], &[], Some("ab")).common(), Some(&b"ab"[..]));
    }
}
