//! Who gets in: methods, secrets, users (auth 2 and 3).

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::secrets::{md5_secret, scram_secret};
use crate::rig::wire::last_error;

/// A database whose servers are always reached as `trusty`, so that only the client's side is tested; users with all kinds of
/// secrets, each with the password `<name>-pw`.
fn start(auth_type: &str) -> Pooler {
    let scram = scram_secret("scrammer-pw", b"salt salt salt 1", 4096);
    let users = format!(
        "; a comment\n\"trusty\" \"\"\n\"plain\" \"plain-pw\"\n\"md\" \"{}\" third field\n\
         \"scrammer\" \"{scram}\"\n\"quo\"\"te\" \"quo\"\"te-pw\"\n",
        md5_secret("md", "md-pw")
    );
    let databases =
        format!("shop = host=127.0.0.1 port={} user=trusty dbname=template1\n", postgres().port);
    let settings = format!("auth_type = {auth_type}\npool_mode = transaction\n");
    Pooler::start(&Setup { databases, settings, users })
}

/// The codes of the authentication messages of a login as `user`, and how it ended.
fn attempt(pooler: &Pooler, user: &str, password: &str) -> (Vec<u8>, Result<(), String>) {
    let codes = |msgs: &[crate::rig::wire::Msg]| {
        msgs.iter().filter(|m| m.tag == b'R').map(|m| m.body[3]).collect()
    };
    match pooler.login(user, "shop", password) {
        Ok((mut client, welcome)) => {
            assert_eq!(client.value("select current_user"), "trusty");
            (codes(&welcome), Ok(()))
        }
        Err(msgs) => {
            let (severity, code, text) = last_error(&msgs);
            assert_eq!((severity.as_str(), code.as_str()), ("FATAL", "08P01"), "{text}");
            (codes(&msgs), Err(text))
        }
    }
}

/// Rows of user, password, expected authentication codes, and the error (empty: gets in).
fn check(auth_type: &str, rows: &[(&str, &str, &[u8], &str)]) {
    let pooler = start(auth_type);
    for (user, password, codes, error) in rows {
        let expected = if error.is_empty() { Ok(()) } else { Err((*error).to_owned()) };
        let got = attempt(&pooler, user, password);
        assert_eq!(got, (codes.to_vec(), expected), "{auth_type}: {user}/{password}");
    }
}

#[test]
fn trust_lets_known_users_in() {
    check(
        "trust",
        &[
            ("plain", "", &[0], ""),
            ("md", "wrong", &[0], ""),
            ("nobody", "", &[], "\"trust\" authentication failed"),
        ],
    );
}

#[test]
fn any_lets_everybody_in_as_the_forced_user() {
    check("any", &[("plain", "", &[0], ""), ("nobody", "", &[0], "")]);
}

#[test]
fn any_needs_a_forced_user() {
    let mut setup = Setup::trust("auth_type = any\n");
    setup.databases = format!("shop = host=127.0.0.1 port={}\n", postgres().port);
    let pooler = Pooler::start(&setup);
    assert_eq!(pooler.refusal("plain", "shop", ""), "bouncer config error");
    pooler.wait_log("auth_type=any requires forced user");
}

#[test]
fn plain_compares_with_every_kind_of_secret() {
    let failed = "password authentication failed";
    check(
        "plain",
        &[
            ("plain", "plain-pw", &[3, 0], ""),
            ("md", "md-pw", &[3, 0], ""),
            ("scrammer", "scrammer-pw", &[3, 0], ""),
            ("quo\"te", "quo\"te-pw", &[3, 0], ""),
            ("plain", "wrong", &[3], failed),
            ("md", "wrong", &[3], failed),
            ("scrammer", "wrong", &[3], failed),
            ("nobody", "x", &[3], failed),
            ("trusty", "x", &[3], failed),
        ],
    );
}

#[test]
fn md5_takes_plain_and_md5_secrets_and_asks_scram_users_for_scram() {
    let failed = "password authentication failed";
    check(
        "md5",
        &[
            ("plain", "plain-pw", &[5, 0], ""),
            ("md", "md-pw", &[5, 0], ""),
            ("scrammer", "scrammer-pw", &[10, 11, 12, 0], ""),
            ("plain", "wrong", &[5], failed),
            ("md", "wrong", &[5], failed),
            ("scrammer", "wrong", &[10, 11], "SASL authentication failed"),
            ("nobody", "x", &[5], failed),
            ("trusty", "x", &[5], failed),
        ],
    );
}

#[test]
fn scram_takes_plain_and_scram_secrets() {
    let failed = "SASL authentication failed";
    check(
        "scram-sha-256",
        &[
            ("plain", "plain-pw", &[10, 11, 12, 0], ""),
            ("scrammer", "scrammer-pw", &[10, 11, 12, 0], ""),
            ("plain", "wrong", &[10, 11], failed),
            ("scrammer", "wrong", &[10, 11], failed),
            ("nobody", "x", &[10, 11], failed),
        ],
    );
    let pooler = start("scram-sha-256");
    let (_, md) = attempt(&pooler, "md", "md-pw");
    assert_eq!(md, Err(failed.to_owned()));
    pooler.wait_log("SCRAM authentication failed: user has MD5 secret");
}

/// auth 10.3 A: a stored empty secret never lets anybody in.
#[test]
fn empty_secret_does_not_match_an_empty_password() {
    let pooler = start("scram-sha-256");
    let (_, outcome) = attempt(&pooler, "trusty", "");
    assert_eq!(outcome, Err("SASL authentication failed".to_owned()));
}

#[test]
fn psql_logs_in_with_each_method() {
    for (auth_type, user) in
        [("plain", "plain"), ("md5", "plain"), ("md5", "md"), ("scram-sha-256", "scrammer")]
    {
        let pooler = start(auth_type);
        let mut psql = pooler.psql(user, "shop", &format!("{user}-pw"));
        let out = psql.args(["-c", "select 7"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "7\n", "{auth_type}/{user}: {out:?}");
        let mut psql = pooler.psql(user, "shop", "wrong");
        let out = psql.args(["-c", "select 7"]).output().unwrap();
        assert_eq!(out.status.code(), Some(2), "{auth_type}/{user}");
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(text.contains("authentication failed"), "{text}");
    }
}

#[test]
fn unknown_database_is_told_only_after_the_password() {
    let pooler = start("md5");
    assert_eq!(pooler.refusal("plain", "nowhere", "wrong"), "password authentication failed");
    assert_eq!(pooler.refusal("plain", "nowhere", "plain-pw"), "no such database: nowhere");
    pooler.wait_log("login failed: db=nowhere user=plain");
    pooler.wait_log("login attempt: db=nowhere user=plain tls=no replication=no");
}

#[test]
fn salts_differ_per_login_and_mock_salts_do_not() {
    let pooler = start("md5");
    let salt = || match pooler.login("nobody", "shop", "x") {
        Err(msgs) => msgs[0].body[4..].to_vec(),
        Ok(_) => panic!("nobody got in"),
    };
    assert_ne!((salt(), salt()), (salt(), salt()));

    let pooler = start("scram-sha-256");
    let first = |user: &str| match pooler.login(user, "shop", "x") {
        Err(msgs) => {
            let text = String::from_utf8(msgs[1].body[4..].to_vec()).unwrap();
            text[text.find(",s=").unwrap()..].to_owned()
        }
        Ok(_) => panic!("{user} got in"),
    };
    assert_eq!(first("nobody"), first("nobody"), "an unknown user looks like a known one");
    assert_ne!(first("nobody"), first("somebody"));
    assert!(first("nobody").ends_with(",i=4096"));
}

#[test]
fn changed_auth_file_counts_after_reload() {
    let mut setup = Setup::trust("auth_type = plain\n");
    setup.databases =
        format!("shop = host=127.0.0.1 port={} user=trusty dbname=template1\n", postgres().port);
    setup.users = "\"one\" \"old password\"\n\"two\" \"pw\"\n".to_owned();
    let pooler = Pooler::start(&setup);
    assert!(pooler.login("one", "shop", "old password").is_ok());
    assert!(pooler.login("two", "shop", "pw").is_ok());
    setup.users = "\"one\" \"new\"\n\"three\" \"pw\"\n".to_owned();
    pooler.rewrite(&setup);
    assert!(pooler.login("one", "shop", "old password").is_ok(), "not before the reload");
    pooler.command("RELOAD");
    let failed = "password authentication failed";
    assert_eq!(pooler.refusal("one", "shop", "old password"), failed);
    assert_eq!(pooler.refusal("two", "shop", "pw"), failed, "removed users are unknown");
    for (user, password) in [("one", "new"), ("three", "pw")] {
        assert!(pooler.login(user, "shop", password).is_ok(), "{user}");
    }
}
