//! `ldapurl`: an LDAP URL (RFC 4516): `ldap://host:port/base?attributes?scope?filter`.

use super::ldap::{Given, Scope};

/// Puts what a URL says where the other options put it.
pub(super) fn read(url: &str, given: &mut Given) -> Result<(), String> {
    let failed = |why: &str| format!("could not parse LDAP URL \"{url}\": {why}");
    let (scheme, rest) = url.split_once("://").ok_or_else(|| failed("bad or missing scheme"))?;
    let scheme = scheme.to_ascii_lowercase();
    if scheme != "ldap" && scheme != "ldaps" {
        return Err(format!("unsupported LDAP URL scheme: {scheme}"));
    }
    let (host, rest) = match rest.split_once(['/', '?']) {
        Some((host, _)) => (host, rest.get(host.len()..).unwrap_or_default()),
        None => (rest, ""),
    };
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    let mut parts = rest.splitn(5, '?');
    let mut part = || parts.next().map(|part| decoded(part).ok_or_else(|| failed("bad encoding")));
    let base = part().transpose()?;
    let attributes = part().transpose()?.unwrap_or_default();
    let scope = part().transpose()?.unwrap_or_default();
    let filter = part().transpose()?.filter(|filter| !filter.is_empty());
    let (host, port) = split_port(host).ok_or_else(|| failed("bad host or port"))?;
    let scope = match &*scope.to_ascii_lowercase() {
        "" | "base" => Scope::Base,
        "one" | "onelevel" => Scope::One,
        "sub" | "subtree" => Scope::Subtree,
        "children" | "subordinate" => Scope::Children,
        _ => return Err(failed("bad scope")),
    };
    let usual = if scheme == "ldaps" { 636 } else { 389 };
    given.scheme = Some(scheme);
    given.server = (!host.is_empty()).then(|| host.to_owned()).or_else(|| given.server.take());
    given.port = Some(port.unwrap_or(usual));
    given.base = base.filter(|base| !base.is_empty()).or_else(|| given.base.take());
    let first = attributes.split(',').next().filter(|attribute| !attribute.is_empty());
    given.attribute = first.map(str::to_owned).or_else(|| given.attribute.take());
    given.scope = Some(scope);
    given.filter = filter.or_else(|| given.filter.take());
    Ok(())
}

/// Host, and port if there is one; addresses of IPv6 stand in brackets.
fn split_port(text: &str) -> Option<(&str, Option<i32>)> {
    let end = text.rfind(']').map_or(0, |at| at.saturating_add(1));
    match text.get(end..)?.rfind(':') {
        None => Some((text, None)),
        Some(at) => {
            let (host, port) = text.split_at_checked(end.checked_add(at)?)?;
            let port: u16 = port.get(1..)?.parse().ok()?;
            Some((host, Some(i32::from(port))))
        }
    }
}

/// `%41` is `A`.
fn decoded(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        out.push(u8::try_from((high << 4) | low).ok().filter(|byte| *byte != 0)?);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::super::ldap::{request, Find, Place, Scope, Search};

    #[test]
    fn urls_say_where_and_what_to_search() {
        let search = |base: &str, scope, filter: &str| Search {
            base: base.into(),
            bind_dn: String::new(),
            bind_password: String::new(),
            scope,
            filter: filter.into(),
        };
        use Scope as S;
        for (url, scheme, server, port, want) in [
            ("ldap://h/dc=a", "ldap", "h", 389, search("dc=a", S::Base, "(uid=bob)")),
            ("LDAPS://h/dc=a??sub", "ldaps", "h", 636, search("dc=a", S::Subtree, "(uid=bob)")),
            ("ldap://h:77/dc=a?cn,x?one", "ldap", "h", 77, search("dc=a", S::One, "(cn=bob)")),
            (
                "ldap://[::1]:7/o=x%20y??children?(mail=$username)",
                "ldap",
                "[::1]",
                7,
                search("o=x y", S::Children, "(mail=bob)"),
            ),
            ("ldap://[::1]/o=x", "ldap", "[::1]", 389, search("o=x", S::Base, "(uid=bob)")),
        ] {
            let got = request(&format!("ldapurl=\"{url}\""), "bob").unwrap();
            assert_eq!((got.scheme, got.find), (scheme, Find::Search(want)), "{url}");
            assert_eq!(got.place, Place::Servers { server: server.into(), port }, "{url}");
        }
        let added = request("ldapurl=ldap://h ldapbasedn=o=x", "bob").unwrap();
        assert_eq!(added.find, Find::Search(search("o=x", S::Base, "(uid=bob)")));
    }

    #[test]
    fn bad_urls_are_named() {
        for (url, want) in [
            ("http://h/x", "unsupported LDAP URL scheme: http"),
            ("ldapi://h/x", "unsupported LDAP URL scheme: ldapi"),
            ("nonsense", "could not parse LDAP URL \"nonsense\": bad or missing scheme"),
            ("ldap://h:x/y", "could not parse LDAP URL \"ldap://h:x/y\": bad host or port"),
            ("ldap://h:70000/", "could not parse LDAP URL \"ldap://h:70000/\": bad host or port"),
            ("ldap://h/%zz", "could not parse LDAP URL \"ldap://h/%zz\": bad encoding"),
            ("ldap://h/%00", "could not parse LDAP URL \"ldap://h/%00\": bad encoding"),
            ("ldap://h/%e", "could not parse LDAP URL \"ldap://h/%e\": bad encoding"),
            ("ldap://h/x??all", "could not parse LDAP URL \"ldap://h/x??all\": bad scope"),
        ] {
            let text = format!("ldapurl=\"{url}\"");
            assert_eq!(request(&text, "bob"), Err(want.to_owned()));
        }
    }
}
