//! Who gets in by the rules of an HBA file (auth 7).

use std::net::TcpStream;
use std::path::PathBuf;

use crate::rig::hba::{own_name, ruled};
use crate::rig::pooler::{Pooler, Setup};
use crate::rig::raw::{Login, Raw};
use crate::rig::scratch::{scratch, write};
use crate::rig::wire::{last_error, tags};

/// Where the test connects from.
#[derive(Clone, Copy, Debug)]
enum Via {
    Four,
    Six,
    Unix,
}
use Via::{Four, Six, Unix};

const NO_RULE: &str = "no authentication method is found";
const WRONG: &str = "password authentication failed";
const NOT_PEER: &str = "unix socket login rejected";

/// Users, passwords and outcomes.
type Attempts<'a> = &'a [(&'a str, &'a str, &'a str)];

/// A pooler with an HBA file in a folder of its own, where the test puts further files.
struct Ruled {
    pooler: Pooler,
    setup: Setup,
    folder: PathBuf,
}

impl Ruled {
    /// Starts with these rules behind one for the rig's console; `files` are names and contents.
    fn start(rules: &str, files: &[(&str, &str)]) -> Ruled {
        let folder = scratch().folder();
        std::fs::create_dir(folder.join("sub")).unwrap();
        for (name, text) in files {
            write(&folder.join(name), text);
        }
        if !files.iter().any(|(name, _)| *name == "ident") {
            write(&folder.join("ident"), "");
        }
        write(&folder.join("hba"), with_console(rules));
        let setup = ruled(&folder, &format!("auth_ident_file = {}/ident\n", folder.display()));
        Ruled { pooler: Pooler::start(&setup), setup, folder }
    }

    fn rewrite(&self, rules: &str) {
        write(&self.folder.join("hba"), with_console(rules));
    }

    fn connect(&self, via: Via) -> Raw {
        match via {
            Four => self.pooler.tcp(),
            Six => Raw::over(TcpStream::connect(("::1", self.pooler.port)).unwrap()),
            Unix => self.pooler.unix(),
        }
    }

    fn login(&self, via: Via, user: &str, database: &str, password: &str) -> Login {
        self.connect(via).login(user, database, password)
    }

    /// The codes of the authentication messages, and how the login ended.
    fn attempt(&self, via: Via, user: &str, database: &str, password: &str) -> String {
        let (msgs, end) = match self.login(via, user, database, password) {
            Ok((mut client, msgs)) => {
                if database != "pgbouncer" {
                    assert_eq!(client.value("select current_user"), "trusty");
                }
                (msgs, "in".to_owned())
            }
            Err(msgs) => {
                let (severity, code, text) = last_error(&msgs);
                assert_eq!((severity.as_str(), code.as_str()), ("FATAL", "08P01"), "{text}");
                (msgs, text)
            }
        };
        let codes = msgs.iter().filter(|m| m.tag == b'R').map(|m| format!("{} ", m.body[3]));
        codes.collect::<String>() + &end
    }

    /// Rows of origin, user, database and outcome; the password is the right one.
    fn check(&self, rows: &[(Via, &str, &str, &str)]) {
        for (via, user, database, want) in rows {
            let got = self.attempt(*via, user, database, &format!("{user}-pw"));
            assert_eq!(got, *want, "{via:?} {user} {database}\n{}", self.pooler.log());
        }
    }
}

fn with_console(rules: &str) -> String {
    format!("host pgbouncer admin 127.0.0.1/32 md5\n{rules}")
}

#[test]
fn each_method_asks_what_it_asks_for() {
    let rules = "host store all all trust\nhost all all all METHOD\nlocal all all METHOD\n";
    let sasl = "10 11 SASL authentication failed";
    let (plain, md5) = (&*format!("3 {WRONG}"), &*format!("5 {WRONG}"));
    let no_certificate = "certificate authentication failed";
    let rows: &[(&str, Attempts<'_>)] = &[
        ("trust", &[("app", "x", "0 in"), ("nobody", "x", "\"trust\" authentication failed")]),
        ("reject", &[("app", "app-pw", "login rejected"), ("nobody", "x", "login rejected")]),
        (
            "password",
            &[
                ("app", "app-pw", "3 0 in"),
                ("md", "md-pw", "3 0 in"),
                ("app", "x", plain),
                ("nobody", "x", plain),
            ],
        ),
        (
            "md5",
            &[
                ("app", "app-pw", "5 0 in"),
                ("md", "md-pw", "5 0 in"),
                ("scrammer", "scrammer-pw", "10 11 12 0 in"),
                ("app", "x", md5),
                ("empty", "x", md5),
                ("nobody", "x", md5),
            ],
        ),
        (
            "scram-sha-256",
            &[
                ("scrammer", "scrammer-pw", "10 11 12 0 in"),
                ("app", "app-pw", "10 11 12 0 in"),
                ("app", "x", sasl),
                ("empty", "", sasl),
                ("nobody", "x", sasl),
            ],
        ),
        ("cert", &[("app", "x", no_certificate), ("nobody", "x", no_certificate)]),
    ];
    for (method, rows) in rows {
        let ruled = Ruled::start(&rules.replace("METHOD", method), &[]);
        for via in [Four, Six, Unix] {
            for (user, password, want) in *rows {
                let got = ruled.attempt(via, user, "shop", password);
                assert_eq!(got, *want, "{method}: {via:?} {user}");
            }
        }
        ruled.check(&[(Four, "app", "store", "0 in")]);
        if *method == "cert" {
            ruled.pooler.wait_log("TLS connection required");
        }
    }
}

#[test]
fn psql_logs_in_by_the_method_of_its_rule() {
    let ruled = Ruled::start(
        "host shop md all md5\nhost shop all all scram-sha-256\nhost store all all reject\n",
        &[],
    );
    let run = |user: &str, database: &str, password: &str| {
        let mut psql = ruled.pooler.psql(user, database, password);
        let out = psql.args(["-c", "select 7"]).output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
    };
    for user in ["md", "scrammer", "app"] {
        assert_eq!(run(user, "shop", &format!("{user}-pw")), "7\n", "{user}");
        assert!(run(user, "shop", "wrong").contains("authentication failed"), "{user}");
        assert!(run(user, "store", "x").contains("login rejected"), "{user}");
        assert!(run(user, "all", "x").contains(NO_RULE), "{user}");
    }
}

#[test]
fn the_first_rule_decides_even_if_it_fails() {
    let ruled = Ruled::start(
        "hostssl all all all trust\nhost shop ann all reject\nhost shop all 127.0.0.0/31 password\n\
         host shop all ::1 ffff:: trust\nhostnossl shop,store app ::1/128 trust\n\
         host shop app all trust\nhost all bob 127.0.0.1 255.255.255.255 trust\n\
         host store ann 127.0.0.2/31 trust\nlocal shop bob trust\nhost all \"all\" all trust\n",
        &[],
    );
    ruled.check(&[
        (Four, "ann", "shop", "login rejected"),
        (Four, "app", "shop", "3 0 in"),
        (Six, "app", "shop", "0 in"),
        (Six, "app", "store", "0 in"),
        (Four, "app", "store", NO_RULE),
        (Six, "bob", "shop", NO_RULE),
        (Four, "bob", "store", "0 in"),
        (Four, "bob", "shop", "3 0 in"),
        (Unix, "bob", "shop", "0 in"),
        (Unix, "bob", "store", NO_RULE),
        (Unix, "ann", "shop", NO_RULE),
        (Four, "ann", "store", NO_RULE),
        (Four, "nobody", "shop", &format!("3 {WRONG}")),
        (Four, "nobody", "store", NO_RULE),
    ]);
    assert_eq!(ruled.attempt(Four, "bob", "shop", "x"), format!("3 {WRONG}"), "no second chance");
    ruled.pooler.wait_lines(&[
        "LOG C shop/ann login attempt: db=shop user=ann tls=no replication=no",
        "LOG C shop/ann closing because: login rejected",
        "WARNING C shop/ann pooler error: login rejected",
        "LOG C store/app closing because: no authentication method is found",
        "LOG C (nodb)/nobody no such user: nobody",
    ]);
}

#[test]
fn lists_keywords_and_files_name_databases_and_users() {
    let ruled = Ruled::start(
        "local \"all\" ann trust\nlocal @dbs bob,@sub/users password\n\
         local sameuser all trust\nlocal replication all reject\n\
         host store, nowhere ann , app all trust # note\n",
        &[
            ("dbs", "# databases\n\nstore , nowhere and more\n"),
            ("sub/users", "@more\n"),
            ("sub/more", "\"md\"\n"),
        ],
    );
    ruled.check(&[
        (Unix, "ann", "all", "0 in"),
        (Unix, "ann", "store", NO_RULE),
        (Unix, "bob", "store", "3 0 in"),
        (Unix, "md", "store", "3 0 in"),
        (Unix, "md", "shop", NO_RULE),
        (Unix, "shop", "shop", "0 in"),
        (Unix, "ann", "shop", NO_RULE),
        (Unix, "bob", "nowhere", "3 no such database: nowhere"),
        (Unix, "bob", "more", NO_RULE),
        (Four, "ann", "store", "0 in"),
        (Four, "app", "store", "0 in"),
        (Four, "bob", "store", NO_RULE),
    ]);
    assert_eq!(ruled.attempt(Unix, "bob", "nowhere", "x"), format!("3 {WRONG}"));
}

#[test]
fn rules_count_for_the_console_too() {
    let ruled = Ruled::start("local pgbouncer admin reject\nlocal all all trust\n", &[]);
    ruled.check(&[
        (Four, "admin", "pgbouncer", "5 0 in"),
        (Six, "admin", "pgbouncer", NO_RULE),
        (Unix, "admin", "pgbouncer", "login rejected"),
        (Unix, "app", "pgbouncer", "not allowed"),
    ]);
    // The process's own user is asked for nothing, whatever the rules say.
    ruled.rewrite("");
    ruled.pooler.command("RELOAD");
    let mut psql = ruled.pooler.psql("pgbouncer", "pgbouncer", "");
    let out = psql.arg("-h").arg(&ruled.pooler.folder).args(["-c", "show version"]).output();
    assert!(out.unwrap().status.success());
}

#[test]
fn reload_takes_new_rules_and_skips_broken_lines() {
    let ruled = Ruled::start("host all all all reject\n", &[]);
    ruled.check(&[(Four, "app", "shop", "login rejected")]);
    ruled.rewrite(
        "host all ann samenet trust\nhost all ann 127.0.0.1/8 trust\nhost all bob 127.0.0.1/x md5\n\
         host all all 127.0.0.1/32 trust extra\nlocal +x all trust\nhost shop all all password\n",
    );
    ruled.check(&[(Four, "app", "shop", "login rejected")]);
    ruled.pooler.command("RELOAD");
    ruled.check(&[
        (Four, "app", "shop", "3 0 in"),
        (Four, "ann", "store", NO_RULE),
        (Unix, "x", "x", NO_RULE),
    ]);
    let file = ruled.folder.join("hba");
    let mask = format!(
        "WARNING address does not match mask in {} line #3: 127.0.0.1 / 255.0.0.0",
        file.display()
    );
    ruled.pooler.wait_lines(&[
        "WARNING hba line 2: failed to parse address - samenet",
        "WARNING could not parse hba config line 2",
        &mask,
        "WARNING hba line 4: invalid mask",
        "WARNING could not parse hba config line 4",
        "WARNING hba line 5: Ident map extra is malformed. It is not in map=value format.",
        "WARNING could not parse hba config line 5",
        "WARNING could not parse hba config line 6",
    ]);
}

#[test]
fn reload_without_the_file_keeps_the_rules() {
    let ruled = Ruled::start("host all all all trust\n", &[]);
    let file = ruled.folder.join("hba");
    std::fs::rename(&file, ruled.folder.join("away")).unwrap();
    let answer = ruled.pooler.console().query("RELOAD");
    let (_, code, text) = last_error(&answer[..1]);
    assert_eq!((&*code, &*text), ("F0000", "RELOAD failed, see logs for additional details"));
    let shown = file.display();
    let line = format!("ERROR could not open hba config file {shown}: No such file or directory");
    ruled.pooler.wait_lines(&[&line]);
    ruled.check(&[(Four, "app", "shop", "0 in")]);
}

#[test]
fn a_start_without_the_file_lets_nobody_in_until_it_is_there() {
    let folder = scratch().folder();
    let pooler = Pooler::start(&ruled(&folder, "auth_ident_file = \n"));
    assert_eq!(pooler.refusal("app", "shop", "app-pw"), NO_RULE);
    assert_eq!(pooler.refusal("admin", "pgbouncer", "admin-pw"), NO_RULE);
    let at = folder.display();
    pooler.wait_lines(&[
        "ERROR could not open ident config file : No such file or directory",
        &format!("ERROR could not open hba config file {at}/hba: No such file or directory"),
    ]);
    write(&folder.join("hba"), "host all all all md5\n");
    pooler.signal(nix::sys::signal::Signal::SIGHUP);
    pooler.wait_log("got SIGHUP");
    crate::rig::wait_until("the rules are read", || pooler.login("app", "shop", "app-pw").is_ok());
}

#[test]
fn reload_switches_between_rules_and_other_types() {
    let ruled = Ruled::start("host all all all password\n", &[]);
    ruled.check(&[(Four, "app", "shop", "3 0 in")]);
    let mut setup = ruled.setup.clone();
    setup.settings.push_str("auth_type = trust\n");
    ruled.pooler.rewrite(&setup);
    ruled.pooler.command("RELOAD");
    ruled.check(&[(Four, "app", "shop", "0 in"), (Unix, "app", "shop", "0 in")]);
    // Back again: the file is read anew, and nothing is left of the old rules.
    std::fs::remove_file(ruled.folder.join("hba")).unwrap();
    ruled.pooler.rewrite(&ruled.setup);
    assert_eq!(tags(&ruled.pooler.console().query("RELOAD")), "EZ");
    ruled.check(&[(Four, "app", "shop", NO_RULE)]);
}

#[test]
fn peers_are_who_the_system_says() {
    let own = own_name();
    let ruled = Ruled::start(
        "local shop all peer\nlocal store all peer map=m\nhost shop all all peer\n\
         local all all peer map=pattern\nlocal all all peer map=unknown\n",
        &[(
            "ident",
            &format!(
                "m {own} app\nm somebody all\nm \"{own}\" \"bob\" # note\nm x y z\n\
                 pattern /^({})(.*)$ \\1\npattern /( x\n",
                &own[..1]
            ),
        )],
    );
    let first = own[..1].to_owned();
    ruled.check(&[
        (Unix, &own, "shop", "0 in"),
        (Unix, "app", "shop", NOT_PEER),
        (Unix, "nobody", "shop", NOT_PEER),
        (Four, &own, "shop", NOT_PEER),
        (Unix, "app", "store", "0 in"),
        (Unix, "bob", "store", "0 in"),
        (Unix, "ann", "store", NOT_PEER),
        (Unix, &own, "store", NOT_PEER),
        (Unix, &own, "all", NOT_PEER),
        (Unix, &first, "all", NOT_PEER),
    ]);
    ruled.pooler.wait_log("ident map m cannot be matched");
    ruled.pooler.wait_log("WARNING ident line 4: unsupported parameters");
    ruled.pooler.wait_log("WARNING could not parse ident config line 4");
    ruled.pooler.wait_log("WARNING could not parse ident config line 6");
    let missing = "WARNING hba line 6: Ident map unknown is not found in ident config file";
    ruled.pooler.wait_log(missing);
    ruled.pooler.wait_log("WARNING could not parse hba config line 6");
    // Now the captured letter is a user of auth_file.
    let mut setup = ruled.setup.clone();
    setup.users.push_str(&format!("\"{first}\" \"\"\n"));
    ruled.pooler.rewrite(&setup);
    ruled.pooler.command("RELOAD");
    ruled.check(&[(Unix, &first, "all", "0 in"), (Unix, "app", "all", NOT_PEER)]);
}

#[test]
fn a_client_that_connected_before_the_rules_is_named_by_the_reload() {
    let ruled = Ruled::start("local all all trust\n", &[]);
    let early = ruled.pooler.unix();
    ruled.pooler.command("SHOW VERSION");
    ruled.rewrite("local all all peer\n");
    ruled.pooler.command("RELOAD");
    let own = own_name();
    assert!(early.login(&own, "shop", "").is_ok(), "{}", ruled.pooler.log());
    ruled.check(&[(Unix, "app", "shop", NOT_PEER)]);
}

#[test]
fn the_rule_is_named_in_the_noise() {
    let ruled = Ruled::start("\n# note\nhost all all all trust\n", &[]);
    let mut setup = ruled.setup.clone();
    setup.settings.push_str("verbose = 2\n");
    ruled.pooler.rewrite(&setup);
    ruled.pooler.command("RELOAD");
    ruled.check(&[(Four, "app", "shop", "0 in")]);
    ruled.pooler.wait_lines(&["NOISE HBA Line 4 is matched"]);
}
