//! Lines of the HBA file become rules (auth 7.2, 7.3).

use super::{Addresses, Kind, Method, Names, Rule, Rules};
use crate::base::{Journal, Level};
use crate::config::ident::IdentMaps;
use crate::config::token::{lines, Token, Tokens};
use std::io;
use std::net::IpAddr;
use std::path::Path;

/// So many files may be open at a time, one named by the other.
const DEEPEST: usize = 10;

/// Why a line is skipped: words of their own, if any, that follow `hba line <n>: `.
struct Skip(Option<String>);

/// Reads the text of the HBA file `file`. Lines that can't be read are skipped with a WARNING.
/// `read` returns the bytes of a file that is named by `@file`.
pub fn parse(
    file: &str,
    text: &[u8],
    maps: &IdentMaps,
    read: &mut dyn FnMut(&str) -> io::Result<Vec<u8>>,
    journal: &mut Journal,
) -> Rules {
    let mut parser = Parser { file, open: Vec::new(), maps, read, journal };
    let mut rules = Vec::new();
    for (number, text) in lines(text) {
        let mut tokens = Tokens::new(&text);
        if tokens.now == Token::End {
            continue;
        }
        match parser.rule(number, &mut tokens) {
            Ok(rule) => rules.push(rule),
            Err(Skip(complaint)) => {
                if let Some(complaint) = complaint {
                    parser.warn(format!("hba line {number}: {complaint}"));
                }
                parser.warn(format!("could not parse hba config line {number}"));
            }
        }
    }
    Rules(rules)
}

fn skip<T>(complaint: impl Into<String>) -> Result<T, Skip> {
    Err(Skip(Some(complaint.into())))
}

struct Parser<'a> {
    file: &'a str,
    /// The files that are being read because an `@file` names them, outermost first.
    open: Vec<String>,
    maps: &'a IdentMaps,
    read: &'a mut dyn FnMut(&str) -> io::Result<Vec<u8>>,
    journal: &'a mut Journal,
}

impl Parser<'_> {
    fn warn(&mut self, text: String) {
        self.journal.line(Level::Warning, text);
    }

    fn rule(&mut self, line: usize, tokens: &mut Tokens<'_>) -> Result<Rule, Skip> {
        let kind = match &tokens.now {
            Token::Word(word) if word == "local" => Kind::Local,
            Token::Word(word) if word == "host" => Kind::Host,
            Token::Word(word) if word == "hostssl" => Kind::HostSsl,
            Token::Word(word) if word == "hostnossl" => Kind::HostNoSsl,
            _ => return skip("unknown type"),
        };
        tokens.advance();
        let databases = self.list(tokens)?;
        let users = self.list(tokens)?;
        let addresses = match kind {
            Kind::Local => Addresses::All,
            _ => self.addresses(line, tokens)?,
        };
        let method = self.method(tokens)?;
        Ok(Rule { line, method, kind, databases, users, addresses })
    }

    fn list(&mut self, tokens: &mut Tokens<'_>) -> Result<Names, Skip> {
        let mut names = Names::default();
        self.open.clear();
        self.names(&mut names, tokens)?;
        Ok(names)
    }

    /// A list of names, which stands in the innermost open file.
    fn names(&mut self, names: &mut Names, tokens: &mut Tokens<'_>) -> Result<(), Skip> {
        loop {
            match &tokens.now {
                Token::Word(word) => match word.as_str() {
                    "all" => names.all = true,
                    "sameuser" => names.same_user = true,
                    "replication" => names.replication = true,
                    "samerole" | "samegroup" => {
                        let text = format!("{word} is not supported");
                        self.warn(text);
                        return Err(Skip(None));
                    }
                    word if word.starts_with('+') => return Err(Skip(None)),
                    word => match word.strip_prefix('@') {
                        Some(other) => self.names_of_file(names, other)?,
                        None => {
                            names.listed.insert(word.to_owned());
                        }
                    },
                },
                Token::Quoted(name) => {
                    names.listed.insert(name.clone());
                }
                Token::Comma | Token::Broken | Token::End => return Err(Skip(None)),
            }
            tokens.advance();
            if tokens.now != Token::Comma {
                return Ok(());
            }
            tokens.advance();
        }
    }

    /// The lists of a file, one a line; what follows a list on its line is ignored.
    fn names_of_file(&mut self, names: &mut Names, file: &str) -> Result<(), Skip> {
        let file = beside(self.open.last().map_or(self.file, String::as_str), file);
        if self.open.len() == DEEPEST || self.open.contains(&file) {
            return Err(Skip(None));
        }
        let text = (self.read)(&file).map_err(|_| Skip(None))?;
        self.open.push(file);
        for (_, line) in lines(&text) {
            let mut tokens = Tokens::new(&line);
            if tokens.now != Token::End {
                self.names(names, &mut tokens)?;
            }
        }
        self.open.pop();
        Ok(())
    }

    fn addresses(&mut self, line: usize, tokens: &mut Tokens<'_>) -> Result<Addresses, Skip> {
        if tokens.eat("all") {
            return Ok(Addresses::All);
        }
        let Token::Word(word) = tokens.now.clone() else {
            let kind = match tokens.now {
                Token::Quoted(_) => 0,
                Token::Word(_) => 1,
                Token::Comma => 2,
                Token::Broken => 3,
                Token::End => 4,
            };
            return skip(format!("did not find address - {kind} - '{}'", tokens.last));
        };
        let (address, bits) = match word.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (word.as_str(), None),
        };
        let Ok(net) = address.parse::<IpAddr>() else {
            return skip(format!("failed to parse address - {address}"));
        };
        let mask = match bits {
            Some(bits) => match mask_of(net, bits) {
                Some(mask) => mask,
                None => return skip("invalid mask"),
            },
            None => {
                tokens.advance();
                let Token::Word(mask) = &tokens.now else {
                    return skip("did not find mask");
                };
                match mask.parse::<IpAddr>() {
                    Ok(found) if found.is_ipv4() == net.is_ipv4() => found,
                    _ => return skip(format!("failed to parse mask: {mask}")),
                }
            }
        };
        // So the contract's messages show it.
        if bits.is_some() {
            tokens.last = address.to_owned();
        }
        tokens.advance();
        let (addresses, fits) = match (net, mask) {
            (IpAddr::V4(net), IpAddr::V4(mask)) => {
                let (net, mask) = (net.to_bits(), mask.to_bits());
                (Addresses::V4(net, mask), net & mask == net)
            }
            (IpAddr::V6(net), IpAddr::V6(mask)) => {
                let (net, mask) = (net.to_bits(), mask.to_bits());
                (Addresses::V6(net, mask), net & mask == net)
            }
            _ => return skip("invalid mask"),
        };
        if !fits {
            let place = format!("in {} line #{line}", self.file);
            self.warn(format!("address does not match mask {place}: {net} / {mask}"));
        }
        Ok(addresses)
    }

    fn method(&mut self, tokens: &mut Tokens<'_>) -> Result<Method, Skip> {
        let unsupported = |last: &str| skip(format!("unsupported method: buf={last}"));
        let Token::Word(word) = tokens.now.clone() else {
            return unsupported(&tokens.last);
        };
        if word == "ldap" {
            return Ok(Method::Ldap(Some(tokens.rest().trim().into())));
        }
        if !matches!(
            word.as_str(),
            "trust" | "reject" | "password" | "md5" | "scram-sha-256" | "peer" | "cert"
        ) {
            return unsupported(&tokens.last);
        }
        tokens.advance();
        let map = match tokens.word() {
            None => None,
            Some(option) => {
                let Some(name) = option.strip_prefix("map=").filter(|name| !name.is_empty()) else {
                    let text = "is malformed. It is not in map=value format.";
                    return skip(format!("Ident map {option} {text}"));
                };
                let Some(map) = self.maps.get(name) else {
                    return skip(format!("Ident map {name} is not found in ident config file"));
                };
                Some(map.clone())
            }
        };
        if tokens.now != Token::End {
            return skip("unsupported parameters");
        }
        Ok(match word.as_str() {
            "trust" => Method::Trust,
            "reject" => Method::Reject,
            "password" => Method::Password,
            "md5" => Method::Md5,
            "peer" => Method::Peer(map),
            "cert" => Method::Cert(map),
            _ => Method::ScramSha256,
        })
    }
}

/// The mask for `/bits`; no digits at all are as good as 0.
fn mask_of(net: IpAddr, bits: &str) -> Option<IpAddr> {
    let most = if net.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        "" => 0,
        bits => bits.parse::<u32>().ok().filter(|bits| *bits <= most)?,
    };
    let low = most.checked_sub(bits)?;
    Some(match net {
        IpAddr::V4(_) => IpAddr::V4(u32::MAX.checked_shl(low).unwrap_or(0).into()),
        IpAddr::V6(_) => IpAddr::V6(u128::MAX.checked_shl(low).unwrap_or(0).into()),
    })
}

/// The path of a file that `file` names: relative ones begin in its folder.
fn beside(file: &str, other: &str) -> String {
    let folder = Path::new(file).parent().unwrap_or(Path::new(""));
    folder.join(other).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::hba::Connection;
    use crate::config::ident;

    fn read_file(name: &str) -> io::Result<Vec<u8>> {
        let text = match name {
            "/etc/pt/names" => "d, e f g\n",
            "/etc/pt/blank" => "\n# note\nd\n",
            "/etc/pt/trailing" => "d,\n",
            "/etc/pt/quote" => "d\n\"e\n",
            "/etc/pt/sub/nested" => "@deeper/x , y\nsameuser\n",
            "/etc/pt/sub/deeper/x" => "d\n@../../names\n",
            "/etc/pt/sub/deeper/../../names" => "e\n",
            "/etc/pt/loop" => "d\n@loop\n@loop\n",
            "/etc/pt/group" => "+d\n",
            "/etc/pt/role" => "samerole\n",
            "/etc/pt/empty" | "/etc/pt/" => "",
            "/abs" => "all\n",
            _ => return Err(io::Error::from_raw_os_error(2)),
        };
        Ok(text.as_bytes().to_vec())
    }

    fn read(text: &str) -> (Rules, Vec<String>) {
        let mut journal = Journal::default();
        let maps = ident::parse(b"m joe all\n", &mut journal);
        let rules = parse("/etc/pt/hba", text.as_bytes(), &maps, &mut read_file, &mut journal);
        let lines = std::iter::from_fn(|| journal.pop());
        (rules, lines.map(|(level, text)| format!("{level:?} {text}")).collect())
    }

    /// Lines that are skipped; "" is a line without words of its own.
    const BAD: &[(&str, &str)] = &[
        ("hostgssenc all all 127.0.0.1/32 trust", "unknown type"),
        ("hostnogssenc all all 127.0.0.1/32 trust", "unknown type"),
        ("\"host\" all all 127.0.0.1/32 trust", "unknown type"),
        ("LOCAL all all trust", "unknown type"),
        (", all", "unknown type"),
        ("\"local", "unknown type"),
        ("include other", "unknown type"),
        ("local", ""),
        ("local all", ""),
        ("local , all trust", ""),
        ("local a,", ""),
        ("local a, \"b all trust", ""),
        ("local \"all all trust", ""),
        ("local all \"a trust", ""),
        ("local +x all trust", ""),
        ("local + all trust", ""),
        ("local all +x trust", ""),
        ("local @missing all trust", ""),
        ("local @trailing all trust", ""),
        ("local @quote all trust", ""),
        ("local @loop all trust", ""),
        ("local @group all trust", ""),
        ("local all all", "unsupported method: buf=all"),
        ("local a, all trust", "unsupported method: buf=trust"),
        ("local a\"b\" c trust", "unsupported method: buf=c"),
        ("local @\"names\" all trust", "unsupported method: buf=all"),
        ("host all all \"127.0.0.1/32\" trust", "did not find address - 0 - '127.0.0.1/32'"),
        ("host all all \"127.0.0.1 trust", "did not find address - 3 - 'all'"),
        ("host all all", "did not find address - 4 - 'all'"),
        ("host all all , trust", "did not find address - 4 - 'trust'"),
        ("host all all 127.0.0.01/8 trust", "failed to parse address - 127.0.0.01"),
        ("host all all fe80::1%lo/64 trust", "failed to parse address - fe80::1%lo"),
        ("host all all samehost trust", "failed to parse address - samehost"),
        ("host all all samenet trust", "failed to parse address - samenet"),
        ("host all all localhost trust", "failed to parse address - localhost"),
        ("host all all ALL trust", "failed to parse address - ALL"),
        ("host all all 0/0 trust", "failed to parse address - 0"),
        ("host all all /8 trust", "failed to parse address - "),
        ("host all all 127.0.0.1/33 trust", "invalid mask"),
        ("host all all ::1/129 trust", "invalid mask"),
        ("host all all 127.0.0.1/x trust", "invalid mask"),
        ("host all all 127.0.0.1/8x trust", "invalid mask"),
        ("host all all 127.0.0.1/-1 trust", "invalid mask"),
        ("host all all 127.0.0.1/8/9 trust", "invalid mask"),
        ("host all all 127.0.0.1/4294967300 trust", "invalid mask"),
        ("host all all 127.0.0.1", "did not find mask"),
        ("host all all 127.0.0.1 \"255.0.0.0\" trust", "did not find mask"),
        ("host all all 127.0.0.0 , trust", "did not find mask"),
        ("host all all 127.0.0.1 trust", "failed to parse mask: trust"),
        ("host all all 127.0.0.1 ::1 trust", "failed to parse mask: ::1"),
        ("host all all 127.0.0.0 255.0.0.0x trust", "failed to parse mask: 255.0.0.0x"),
        ("host all all 127.0.0.1/32", "unsupported method: buf=127.0.0.1"),
        ("host all all 127.0.0.1/32, trust", "unsupported method: buf=127.0.0.1"),
        ("host all all 127.0.0.1/32 \"trust", "unsupported method: buf=127.0.0.1"),
        ("host all all 127.0.0.1/32 \"trust\"", "unsupported method: buf=trust"),
        ("host all all 127.0.0.1/32 TRUST", "unsupported method: buf=TRUST"),
        ("host all all 127.0.0.1/32 any", "unsupported method: buf=any"),
        ("host all all 127.0.0.1/32 plain", "unsupported method: buf=plain"),
        ("host all all 127.0.0.1/32 pam", "unsupported method: buf=pam"),
        ("host all all 127.0.0.1/32 ident", "unsupported method: buf=ident"),
        ("host all all 127.0.0.1/32 gss", "unsupported method: buf=gss"),
        ("local all all trust \"x\"", "unsupported parameters"),
        ("local all all trust \"x", "unsupported parameters"),
        ("local all all trust, x", "unsupported parameters"),
        ("local all all peer map=m map=m", "unsupported parameters"),
        (
            "local all all peer map=\"m\"",
            "Ident map map= is malformed. It is not in map=value format.",
        ),
        ("local all all peer m", "Ident map m is malformed. It is not in map=value format."),
        ("local all all md5 x=y", "Ident map x=y is malformed. It is not in map=value format."),
        ("local all all peer map=n", "Ident map n is not found in ident config file"),
        ("local all all trust map=n", "Ident map n is not found in ident config file"),
    ];

    #[test]
    fn bad_lines_are_skipped_with_the_contract_s_words() {
        for (line, complaint) in BAD {
            let (rules, lines) = read(&format!("# note\n\n{line}\nlocal all all trust\n"));
            let mut want = Vec::new();
            if !complaint.is_empty() {
                want.push(format!("Warning hba line 3: {complaint}"));
            }
            want.push("Warning could not parse hba config line 3".to_owned());
            assert_eq!(lines, want, "{line}");
            assert_eq!(rules.0.iter().map(|rule| rule.line).collect::<Vec<_>>(), [4], "{line}");
        }
        for (line, word) in [
            ("local samerole all trust", "samerole"),
            ("local all samegroup trust", "samegroup"),
            ("local @role all trust", "samerole"),
        ] {
            let want = [
                format!("Warning {word} is not supported"),
                "Warning could not parse hba config line 1".to_owned(),
            ];
            assert_eq!(read(line).1, want, "{line}");
        }
    }

    #[test]
    fn networks_with_bits_beyond_the_mask_are_kept_with_a_warning() {
        for (address, shown) in [
            ("127.0.0.1/", "127.0.0.1 / 0.0.0.0"),
            ("10.0.0.1/8", "10.0.0.1 / 255.0.0.0"),
            ("10.0.0.1/+08", "10.0.0.1 / 255.0.0.0"),
            ("10.0.0.1 255.0.255.0", "10.0.0.1 / 255.0.255.0"),
            ("::1/64", "::1 / ffff:ffff:ffff:ffff::"),
            ("::ffff:1.2.3.4/96", "::ffff:1.2.3.4 / ffff:ffff:ffff:ffff:ffff:ffff::"),
        ] {
            let (rules, lines) = read(&format!("\nhost all all {address} trust"));
            let want = "Warning address does not match mask in /etc/pt/hba line #2:";
            assert_eq!(lines, [format!("{want} {shown}")]);
            assert_eq!(rules.len(), 1);
        }
    }

    #[test]
    fn lines_become_methods() {
        for (text, want) in [
            ("trust", "Trust"),
            ("reject", "Reject"),
            ("password", "Password"),
            ("md5#note", "Md5"),
            ("scram-sha-256 # note", "ScramSha256"),
            ("peer", "Peer(None)"),
            ("cert", "Cert(None)"),
            ("trust map=m", "Trust"),
            ("ldap", "Ldap(Some(\"\"))"),
            (
                "ldap ldapserver=\"a b\", ldapport=3 # x ",
                "Ldap(Some(\"ldapserver=\\\"a b\\\", ldapport=3 # x\"))",
            ),
        ] {
            for line in [format!("local all all {text}"), format!("host all all all {text}")] {
                let (rules, lines) = read(&line);
                assert!(lines.is_empty(), "{lines:?}");
                let methods: Vec<_> =
                    rules.0.iter().map(|rule| format!("{:?}", rule.method)).collect();
                assert_eq!(methods, [want], "{line}");
            }
        }
        let (rules, _) = read("local all all peer map=m # note\nhost all all all cert map=m");
        for rule in rules.0 {
            let (Method::Peer(Some(map)) | Method::Cert(Some(map))) = rule.method else {
                panic!("{rule:?}")
            };
            assert_eq!(map.name, "m");
        }
    }

    #[test]
    fn lists_come_from_files() {
        for (list, fits, misses) in [
            ("@names", "d e", "f g"),
            ("x,@names , y", "d e x y", "f"),
            ("@blank", "d", "x"),
            ("@sub/nested", "d e y u", "x"),
            ("@/abs", "x", ""),
            ("@empty", "", "d"),
            ("@", "", "d"),
            ("\"@missing\"", "@missing", "missing"),
            ("all@names", "all@names", "d"),
            ("\"\"", "", "d"),
        ] {
            let (rules, lines) = read(&format!("local {list} all trust"));
            assert!(lines.is_empty(), "{list}: {lines:?}");
            for (names, want) in [(fits, 1), (misses, 0)] {
                for database in names.split(' ').filter(|name| !name.is_empty()) {
                    let at = Connection {
                        address: None,
                        tls: false,
                        database,
                        user: "u",
                        physical_replication: false,
                    };
                    assert_eq!(rules.first(&at).iter().count(), want, "{list}: {database}");
                }
            }
        }
    }

    #[test]
    fn anything_can_be_read() {
        let pieces = [
            "local ", "host ", "all ", ",", "\"", "@loop ", "1.2.3.4", "/8 ", " ", "#", "\n",
            "::1", "md5 ", "map=", "ldap ", "\0", "ä",
        ];
        let mut seed = 7_u32;
        for _ in 0..3000 {
            let text: String = (0..14)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    pieces[(seed >> 16) as usize % pieces.len()]
                })
                .collect();
            read(&text);
        }
    }
}
