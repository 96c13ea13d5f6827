//! The text of `auth_ldap_options`, and of an HBA line behind `ldap` (auth 8.2). It is read at each
//! login; what is wrong with it is a line for the log.

use super::ldap_url;
use crate::base::text::cut;

/// Longer texts are cut, in bytes.
const TEXT_MAX: usize = 1023;
/// Longer filters are cut, in bytes.
const FILTER_MAX: usize = 255;
/// What would change the meaning of a filter.
const FORBIDDEN: &[char] = &['*', '(', ')', '\\', '/'];

/// How far below its base a search looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The base itself.
    Base,
    /// Its children.
    One,
    /// Everything.
    Subtree,
    /// Everything but the base.
    Children,
}

/// What is asked of an LDAP server for one login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `ldap` or `ldaps`.
    pub scheme: &'static str,
    /// Where to.
    pub place: Place,
    /// Begin with StartTLS.
    pub start_tls: bool,
    /// How the name becomes a DN.
    pub find: Find,
}

/// Which servers are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// These; `server` is what messages show.
    Servers {
        /// Host names, separated by spaces.
        server: String,
        /// TCP port.
        port: i32,
    },
    /// Those that the domain's SRV records name.
    Domain(String),
}

/// How a user's DN is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Find {
    /// It is this one.
    Dn(String),
    /// By a search.
    Search(Search),
}

/// A search for a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// Where it begins.
    pub base: String,
    /// DN to log in with for it; empty for nobody.
    pub bind_dn: String,
    /// The password for that.
    pub bind_password: String,
    /// How far it goes.
    pub scope: Scope,
    /// With the user's name in it.
    pub filter: String,
}

/// The options as they stand in the text; `None` if not given.
#[derive(Default)]
pub(super) struct Given {
    pub(super) server: Option<String>,
    pub(super) port: Option<i32>,
    pub(super) scheme: Option<String>,
    pub(super) base: Option<String>,
    pub(super) attribute: Option<String>,
    pub(super) filter: Option<String>,
    pub(super) scope: Option<Scope>,
    tls: bool,
    prefix: Option<String>,
    suffix: Option<String>,
    bind_dn: Option<String>,
    bind_password: Option<String>,
}

/// What the options say for this user; `Err` is a line for the log.
pub fn request(text: &str, user: &str) -> Result<Request, String> {
    let given = read(cut(text, TEXT_MAX))?;
    let scheme = match given.scheme.as_deref() {
        Some("ldaps") => "ldaps",
        _ => "ldap",
    };
    let is_simple = given.prefix.is_some() || given.suffix.is_some();
    let server = given.server.as_deref().unwrap_or("");
    let base = given.base.as_deref().unwrap_or("");
    let place = if !server.is_empty() {
        let usual = if scheme == "ldaps" { 636 } else { 389 };
        Place::Servers { server: server.to_owned(), port: given.port.unwrap_or(usual) }
    } else if base.is_empty() {
        return Err("LDAP server not specified, and no ldapbasedn".into());
    } else {
        let domain = domain_of(base).ok_or("could not extract domain name from ldapbasedn")?;
        Place::Domain(domain)
    };
    let find = if is_simple {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        Find::Dn(format!("{}{user}{}", part(&given.prefix), part(&given.suffix)))
    } else {
        if user.contains(FORBIDDEN) {
            return Err("invalid character in user name for LDAP authentication".into());
        }
        let filter = match (&given.filter, &given.attribute) {
            (Some(filter), _) => filter.replace("$username", user),
            (None, attribute) => format!("({}={user})", attribute.as_deref().unwrap_or("uid")),
        };
        Find::Search(Search {
            base: base.to_owned(),
            bind_dn: given.bind_dn.unwrap_or_default(),
            bind_password: given.bind_password.unwrap_or_default(),
            scope: given.scope.unwrap_or(Scope::Subtree),
            filter: cut(&filter, FILTER_MAX).to_owned(),
        })
    };
    Ok(Request { scheme, place, start_tls: given.tls, find })
}

fn read(text: &str) -> Result<Given, String> {
    let mut given = Given::default();
    let mut rest = text.trim_start();
    while let Some((key, value, behind)) = pair(rest) {
        put(&mut given, &key, value)?;
        let behind = behind.trim_start();
        rest = behind.strip_prefix(',').unwrap_or(behind).trim_start();
    }
    let searches =
        [&given.base, &given.bind_dn, &given.bind_password, &given.attribute, &given.filter];
    if given.prefix.is_some() || given.suffix.is_some() {
        if searches.iter().any(|option| option.is_some()) {
            return Err("cannot mix options for simple bind and search+bind modes".into());
        }
    } else if given.base.is_none() {
        return Err("authentication method \"ldap\" requires argument \"ldapbasedn\", \
                    \"ldapprefix\", or \"ldapsuffix\" to be set"
            .into());
    }
    if given.attribute.is_some() && given.filter.is_some() {
        return Err("cannot use ldapsearchattribute together with ldapsearchfilter".into());
    }
    Ok(given)
}

fn put(given: &mut Given, key: &str, value: String) -> Result<(), String> {
    match key {
        "ldapserver" => given.server = Some(value),
        "ldapport" => {
            let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
            let port = value.get(..digits).and_then(|digits| digits.parse().ok());
            let port = port.filter(|port| *port != 0);
            given.port = Some(port.ok_or(format!("invalid LDAP port number: \"{value}\""))?);
        }
        "ldapscheme" if value != "ldap" && value != "ldaps" => {
            return Err(format!("invalid ldapscheme value: \"{value}\""));
        }
        "ldapscheme" => given.scheme = Some(value),
        "ldaptls" => given.tls = value == "1",
        "ldapprefix" => given.prefix = Some(value),
        "ldapsuffix" => given.suffix = Some(value),
        "ldapbasedn" => given.base = Some(value),
        "ldapbinddn" => given.bind_dn = Some(value),
        "ldapbindpasswd" => given.bind_password = Some(value),
        "ldapsearchattribute" => given.attribute = Some(value),
        "ldapsearchfilter" => given.filter = Some(value),
        "ldapurl" => ldap_url::read(&value, given)?,
        _ => return Err(format!("invalid LDAP option: \"{key}\"")),
    }
    Ok(())
}

/// The next `key=value`, and what follows it.
fn pair(text: &str) -> Option<(String, String, &str)> {
    let (key, rest) = token(text, |c| c == '=')?;
    let (value, rest) = token(rest.strip_prefix('=')?, |_| false)?;
    (!key.is_empty()).then_some((key, value, rest))
}

/// A word that may be quoted.
fn token(text: &str, ends: impl Fn(char) -> bool) -> Option<(String, &str)> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let len = text.find(|c: char| c.is_ascii_whitespace() || c == ',' || ends(c));
        let (word, rest) = text.split_at_checked(len.unwrap_or(text.len()))?;
        return Some((word.to_owned(), rest));
    };
    let mut word = String::new();
    loop {
        let Some((part, behind)) = rest.split_once('"') else {
            word.push_str(rest);
            return Some((word, ""));
        };
        word.push_str(part);
        let Some(more) = behind.strip_prefix('"') else {
            return Some((word, behind));
        };
        word.push('"');
        rest = more;
    }
}

/// The domain that the last components of a DN spell (RFC 2247).
fn domain_of(dn: &str) -> Option<String> {
    let labels = dn.rsplit(',').map_while(|component| {
        let (name, value) = component.split_once('=')?;
        name.trim().eq_ignore_ascii_case("dc").then(|| value.trim())
    });
    let mut labels: Vec<&str> = labels.filter(|label| !label.is_empty()).collect();
    labels.reverse();
    (!labels.is_empty()).then(|| labels.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(filter: &str) -> Search {
        Search {
            base: "dc=a,dc=b".into(),
            bind_dn: String::new(),
            bind_password: String::new(),
            scope: Scope::Subtree,
            filter: filter.into(),
        }
    }

    fn asked(find: Find) -> Request {
        let place = Place::Servers { server: "h".into(), port: 389 };
        Request { scheme: "ldap", place, start_tls: false, find }
    }

    #[test]
    fn options_become_a_request() {
        let dn = |dn: &str| asked(Find::Dn(dn.into()));
        let found = |search| asked(Find::Search(search));
        for (text, want) in [
            ("ldapserver=h ldapprefix=cn=", dn("cn=bob")),
            (" ldapserver=h,ldapprefix=\"cn=\" , ldapsuffix=\", dc=a\"", dn("cn=bob, dc=a")),
            ("ldapserver=h ldapsuffix=\"a\"\"b", dn("boba\"b")),
            ("\"ldapserver\"=h ldapsuffix=@a # ldaptls=1", dn("bob@a")),
            ("ldapserver=h ldapsuffix=@a ldaptls = 1", dn("bob@a")),
            ("ldapserver=h ldapsuffix=@a,,ldaptls=1", dn("bob@a")),
            ("ldapserver=h ldapsuffix=@a ldapport=389x", dn("bob@a")),
            ("ldapserver=h ldapbasedn=\"dc=a,dc=b\"", found(search("(uid=bob)"))),
            (
                "ldapserver=h ldapbasedn=\"dc=a,dc=b\" ldapsearchattribute=cn",
                found(search("(cn=bob)")),
            ),
            (
                "ldapserver=h ldapbasedn=\"dc=a,dc=b\" ldapsearchfilter=(|(a=$username)(b=$username))",
                found(search("(|(a=bob)(b=bob))")),
            ),
            (
                "ldapserver=h ldapbasedn=\"dc=a,dc=b\" ldapbinddn=me ldapbindpasswd=pw",
                found(Search { bind_dn: "me".into(), bind_password: "pw".into(), ..search("(uid=bob)") }),
            ),
            (
                "ldapserver=h ldapscheme=ldaps ldaptls=1 ldapsuffix=x",
                Request {
                    scheme: "ldaps",
                    place: Place::Servers { server: "h".into(), port: 636 },
                    start_tls: true,
                    find: Find::Dn("bobx".into()),
                },
            ),
            (
                "ldapbasedn=\"ou=x, dc=a, DC=b\"",
                Request {
                    place: Place::Domain("a.b".into()),
                    ..found(Search { base: "ou=x, dc=a, DC=b".into(), ..search("(uid=bob)") })
                },
            ),
        ] {
            assert_eq!(request(text, "bob"), Ok(want), "{text}");
        }
        let long =
            format!("ldapserver=h ldapbasedn=\"dc=a,dc=b\" ldapsearchfilter={}", "x".repeat(300));
        assert_eq!(request(&long, "bob"), Ok(found(search(&"x".repeat(255)))));
        let cut = format!("ldapserver=h ldapsuffix={}", "x".repeat(2000));
        assert_eq!(request(&cut, "bob"), Ok(dn(&format!("bob{}", "x".repeat(1023 - 24)))));
    }

    #[test]
    fn mistakes_are_named() {
        let required = "authentication method \"ldap\" requires argument \"ldapbasedn\", \
                        \"ldapprefix\", or \"ldapsuffix\" to be set";
        let mixed = "cannot mix options for simple bind and search+bind modes";
        for (text, want) in [
            ("", required),
            ("ldapserver=h", required),
            ("ldapserver=h ldapport=0 ldapprefix=x", "invalid LDAP port number: \"0\""),
            ("ldapport=abc", "invalid LDAP port number: \"abc\""),
            ("ldapport=99999999999", "invalid LDAP port number: \"99999999999\""),
            ("ldapscheme=http", "invalid ldapscheme value: \"http\""),
            ("nonsense=1", "invalid LDAP option: \"nonsense\""),
            ("ldapprefix=x ldapbasedn=y", mixed),
            ("ldapsuffix=x ldapbinddn=y", mixed),
            ("ldapsuffix=x ldapbindpasswd=y", mixed),
            ("ldapsuffix=x ldapsearchattribute=y", mixed),
            ("ldapsuffix=x ldapsearchfilter=y", mixed),
            ("ldapsuffix=x ldapurl=ldap://h/dc=a", mixed),
            (
                "ldapserver=h ldapbasedn=x ldapsearchattribute=y ldapsearchfilter=z",
                "cannot use ldapsearchattribute together with ldapsearchfilter",
            ),
            ("ldapprefix=x", "LDAP server not specified, and no ldapbasedn"),
            ("ldapbasedn=\"ou=x\"", "could not extract domain name from ldapbasedn"),
            ("ldapbasedn=\"dc=a,ou=x\"", "could not extract domain name from ldapbasedn"),
        ] {
            assert_eq!(request(text, "bob"), Err(want.to_owned()), "{text}");
        }
        for user in ["a*", "a(", "a)", "a\\", "a/"] {
            let want = "invalid character in user name for LDAP authentication";
            assert_eq!(request("ldapserver=h ldapbasedn=x", user), Err(want.into()));
            assert!(request("ldapserver=h ldapprefix=x", user).is_ok());
        }
    }
}
