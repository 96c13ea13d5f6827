//! Who gets in: methods, secrets, users (auth 2 and 3).

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::secrets::{md5_secret, scram_secret};

/// A database whose servers are always reached as `trusty`, so that only the client's side is tested; users with these
/// secrets.
pub(crate) fn start(auth_type: &str, secret: &dyn Fn(&str) -> String) -> Pooler {
    let quoted = |text: &str| text.replace('"', "\"\"");
    let line = |name: &str| {
        let more = if name == "md" { " third field" } else { "" };
        format!("\"{}\" \"{}\"{more}\n", quoted(name), quoted(&secret(name)))
    };
    let users = ["trusty", "plain", "md", "scrammer", "quo\"te", "upper", "broken"];
    let users = format!("; a comment\n{}", users.map(line).concat());
    let databases =
        format!("shop = host=127.0.0.1 port={} user=trusty dbname=template1\n", postgres().port);
    let settings = format!("auth_type = {auth_type}\npool_mode = transaction\n");
    Pooler::start(&Setup { databases, settings, users })
}

/// The password is `<name>-pw`, stored as text or as the name tells.
fn usual(user: &str) -> String {
    match user {
        "md" => md5_secret(user, "md-pw"),
        "scrammer" => scram_secret("scrammer-pw", b"salt salt salt 1", 4096),
        user => format!("{user}-pw"),
    }
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
fn the_log_tells_why_an_md5_secret_is_no_good_for_scram() {
    let pooler = start("scram-sha-256", &usual);
    assert_eq!(pooler.refusal("md", "shop", "md-pw"), "SASL authentication failed");
    pooler.wait_log("SCRAM authentication failed: user has MD5 secret");
}

#[test]
fn psql_logs_in_with_each_method() {
    for (auth_type, user) in
        [("plain", "plain"), ("md5", "plain"), ("md5", "md"), ("scram-sha-256", "scrammer")]
    {
        let pooler = start(auth_type, &usual);
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
    let pooler = start("md5", &usual);
    assert_eq!(pooler.refusal("plain", "nowhere", "wrong"), "password authentication failed");
    assert_eq!(pooler.refusal("plain", "nowhere", "plain-pw"), "no such database: nowhere");
    pooler.wait_log("login failed: db=nowhere user=plain");
    pooler.wait_log("login attempt: db=nowhere user=plain tls=no replication=no");
}

#[test]
fn salts_differ_per_login_and_mock_salts_do_not() {
    let pooler = start("md5", &usual);
    let salt = || match pooler.login("nobody", "shop", "x") {
        Err(msgs) => msgs[0].body[4..].to_vec(),
        Ok(_) => panic!("nobody got in"),
    };
    assert_ne!((salt(), salt()), (salt(), salt()));

    let pooler = start("scram-sha-256", &usual);
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
