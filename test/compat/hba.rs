//! Verdicts of HBA rules, as far as 1.18 has them: no maps, no `all` as address, no replication.

use std::net::TcpStream;

use crate::rig::hba::{own_name, ruled};
use crate::rig::pooler::Pooler;
use crate::rig::raw::Raw;
use crate::rig::scratch::{scratch, write};
use crate::rig::wire::last_error;
use crate::transcript::reference;

/// Every user at every database by every way in, with the right password and a wrong one: what was
/// asked for, and the outcome. Then the warnings.
fn everybody(pooler: &Pooler) -> Vec<String> {
    let own = own_name();
    let mut seen = Vec::new();
    for user in ["app", "ann", "bob", "shop", "md", "scrammer", "nobody", &own] {
        for database in ["shop", "store", "all", "nowhere"] {
            for way in ["IPv4", "IPv6", "Unix"] {
                let connect = || match way {
                    "IPv4" => pooler.tcp(),
                    "IPv6" => Raw::over(TcpStream::connect(("::1", pooler.port)).unwrap()),
                    _ => pooler.unix(),
                };
                for password in [format!("{user}-pw"), "wrong".to_owned()] {
                    let (msgs, end) = match connect().login(user, database, &password) {
                        Ok((_, msgs)) => (msgs, "in".to_owned()),
                        Err(msgs) => {
                            let end = format!("{:?}", last_error(&msgs));
                            (msgs, end)
                        }
                    };
                    let asked: Vec<u8> =
                        msgs.iter().filter(|m| m.tag == b'R').map(|m| m.body[3]).collect();
                    seen.push(format!("{user} {database} {way} {password}: {asked:?} {end}"));
                }
            }
        }
    }
    seen.extend(pooler.log().lines().filter_map(|line| {
        let text = line.split_once(" WARNING ")?.1;
        (!text.starts_with("C-")).then(|| text.to_owned())
    }));
    seen
}

/// Compares the verdicts of these rules.
fn compare(rules: &str, files: &[(&str, &str)]) {
    let folder = scratch().folder();
    for (name, text) in files {
        write(&folder.join(name), text);
    }
    write(&folder.join("hba"), rules);
    let setup = ruled(&folder, "");
    let expected = everybody(&Pooler::start_program(&reference(), &setup));
    let got = everybody(&Pooler::start(&setup));
    // 1.18 has one text for this and for a rule that rejects.
    let no_rule = "no authentication method is found";
    let got: Vec<_> = got.iter().map(|line| line.replace(no_rule, "login rejected")).collect();
    for (want, have) in expected.iter().zip(&got) {
        assert_eq!(want, have, "left: reference, by these rules:\n{rules}");
    }
    assert_eq!(expected.len(), got.len(), "reference: {expected:#?}\nunder test: {got:#?}");
}

#[test]
fn methods() {
    for method in ["trust", "reject", "password", "md5", "peer", "cert"] {
        compare(
            &format!("host all all 0.0.0.0/0 {method}\nhost all all ::/0 {method}\nlocal all all {method}\n"),
            &[],
        );
    }
    // Users with an MD5 secret are refused after different steps.
    compare("host all app,scrammer,nobody 127.0.0.1/32 scram-sha-256\n", &[]);
}

#[test]
fn order_addresses_and_kinds() {
    compare(
        "hostssl all all 127.0.0.1/32 trust\nhost shop ann 127.0.0.1/32 reject\n\
         host shop all 127.0.0.0/31 password\nhost shop all ::1 ffff:: trust\n\
         hostnossl shop,store app ::1/128 trust\nhost shop app 127.0.0.1/32 trust\n\
         host all bob 127.0.0.1 255.255.255.255 md5\nhost store ann 127.0.0.2/31 trust\n\
         local shop bob trust\nhost all \"all\" 127.0.0.1/8 trust\nlocal store bob,app reject\n\
         host all md 127.0.0.1/ trust\nhost all md 0.0.0.0/ md5\n",
        &[],
    );
}

#[test]
fn names_and_files() {
    compare(
        "local \"all\" ann trust\nlocal @dbs bob,@users password\nlocal sameuser all trust\n\
         host store, nowhere ann , app 127.0.0.1/32 trust # note\nhost @none all ::1/128 trust\n\
         host all sameuser ::1/128 trust\nhost /shop all 127.0.0.1/32 trust\n\
         host \"@dbs\",\"+x\" all 127.0.0.1/32 reject\nhost @trailing md 127.0.0.1/32 trust\n",
        &[
            ("dbs", "store , nowhere and more\n"),
            ("users", "@more\n"),
            ("more", "\"md\"\n"),
            ("trailing", "shop,\n"),
        ],
    );
}

#[test]
fn broken_lines() {
    compare(
        "hostgssenc all all 127.0.0.1/32 trust\nhost all all \"127.0.0.1/32\" trust\n\
         host all all \"127.0.0.1 trust\nhost all all\nhost all all , trust\n\
         host all all 127.0.0.01/8 trust\nhost all all samenet trust\nhost all all 0/0 trust\n\
         host all all 127.0.0.1/33 trust\nhost all all 127.0.0.1/8x trust\n\
         host all all 127.0.0.1\nhost all all 127.0.0.1 \"255.0.0.0\" trust\n\
         host all all 127.0.0.1 trust\nhost all all 127.0.0.1 ::1 trust\n\
         host all all 127.0.0.1/32\nhost all all 127.0.0.1/32, trust\n\
         host all all 127.0.0.1/32 \"trust\"\nhost all all 127.0.0.1/32 TRUST\n\
         host all all 127.0.0.1/32 pam\nlocal all all trust \"x\"\nlocal all all trust, x\n\
         local\nlocal all\nlocal a, all trust\nlocal \"all all trust\nlocal +x all trust\n\
         local samerole all trust\nlocal all samegroup trust\nlocal @missing all trust\n\
         local a\"b\" c trust\nlocal @\"x\" all trust\nhost all all 10.0.0.1 255.0.255.0 trust\n\
         host all all ::1/64 trust\nhost all all 1.2.3.4/8\"x\" trust\n, all\n\"host\"\n\
         local shop app trust\n",
        &[],
    );
}
