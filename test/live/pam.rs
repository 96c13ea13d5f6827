//! auth_type=pam with the real libpam; pam_wrapper has it look into a folder of the test's own
//! (auth 8.1).

use crate::rig::pooler::{binary, Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::scratch::{scratch, write};
use crate::rig::wire::{cstr, msg, startup};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// Where Debian's libpam-wrapper is.
fn wrapper() -> Option<PathBuf> {
    let multiarch = Path::new("/usr/lib");
    let folders = std::fs::read_dir(multiarch).ok()?.flatten().map(|entry| entry.path());
    let folders = std::iter::once(PathBuf::from(LIBRARIES)).chain(folders);
    folders.into_iter().find(|folder| folder.join("libpam_wrapper.so").exists())
}

/// For one test at a time: processes that use pam_wrapper for the first time in the same moment may
/// take its folder in /tmp away from each other.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pooler whose PAM service consists of these lines; `{matrix}` is the test module with a list of
/// users.
pub(crate) fn start(service: &str, settings: &str, databases: &str) -> Pooler {
    let libraries = wrapper().expect("test/bin/deps.sh pam");
    let folder = scratch().folder();
    let at = folder.display();
    let modules = libraries.join("pam_wrapper");
    let matrix = format!("{}/pam_matrix.so passdb={at}/passwords", modules.display());
    let service = service.replace("{matrix}", &matrix);
    let service = service.replace("{modules}", &modules.display().to_string());
    write(
        &folder.join("passwords"),
        "ann:ann-pw:pgbouncer\nbob:bob-pw:sshd\nadmin:admin-pw:pgbouncer\n",
    );
    write(&folder.join("pgbouncer"), service);
    let program = folder.join("program");
    write(
        &program,
        format!(
            "#!/bin/sh\nexport LD_PRELOAD={}/libpam_wrapper.so PAM_WRAPPER=1 \
             PAM_WRAPPER_SERVICE_DIR={at}\nexec {} \"$@\"\n",
            libraries.display(),
            binary().display()
        ),
    );
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let databases = match databases {
        "" => {
            format!("shop = host=127.0.0.1 port={} user=trusty dbname=template1\n", postgres().port)
        }
        databases => databases.to_owned(),
    };
    let settings = format!("auth_type = pam\npool_mode = transaction\n{settings}");
    Pooler::start_program(&program, &Setup { databases, settings, users: String::new() })
}

pub(crate) const SERVICE: &str = "auth required {matrix}\naccount required {matrix}\n";

#[test]
fn pam_decides_who_gets_in() {
    let _alone = alone();
    let pooler = start(SERVICE, "", "");
    let failed = "PAM authentication failed";
    let (mut client, welcome) = pooler.login("ann", "shop", "ann-pw").expect("ann gets in");
    assert_eq!(welcome[0].body, [0, 0, 0, 3], "a password in clear text is asked for");
    assert_eq!(client.value("select current_user"), "trusty");
    assert!(pooler.login("ann", "shop", "ann-pw").is_ok(), "and again");
    assert_eq!(pooler.refusal("ann", "shop", "wrong"), failed);
    pooler.wait_log("WARNING pam_authenticate() failed: Authentication failure");
    assert_eq!(pooler.refusal("bob", "shop", "bob-pw"), failed);
    pooler.wait_log("WARNING pam_acct_mgmt() failed: ");
    assert_eq!(pooler.refusal("nobody", "shop", "x"), failed);
    assert_eq!(pooler.refusal("ann", "shop", ""), "empty password returned by client");
    assert_eq!(pooler.refusal("ann", "nowhere", "wrong"), failed);
    assert_eq!(pooler.refusal("ann", "nowhere", "ann-pw"), "no such database: nowhere");
    assert_eq!(pooler.refusal("ann", "pgbouncer", "ann-pw"), "not allowed");
}

/// Only a password that PAM has found right gets a server; nothing is kept of who fails.
#[test]
fn passwords_serve_for_servers_and_strangers_leave_nothing() {
    let _alone = alone();
    let databases = format!("* = host=127.0.0.1 port={}\n", postgres().port);
    let service = "auth required pam_permit.so\naccount required pam_permit.so\n";
    let pooler = start(service, "", &databases);
    let (mut client, _) = pooler.login("scramy", "template1", "scramy-pw").expect("gets in");
    assert_eq!(client.value("select current_user"), "scramy");
    let service = "auth required {matrix}\naccount required {matrix}\n";
    let pooler = start(service, "", &databases);
    for number in 0..20 {
        let name = format!("stranger{number}");
        assert_eq!(pooler.refusal(&name, "template1", "x"), "PAM authentication failed");
    }
    assert!(!pooler.log().contains("no such user"));
    let users = pooler.show("users", "name", ("name", "stranger7"));
    assert!(users.is_empty(), "{users:?}");
}

#[test]
fn modules_may_talk() {
    let _alone = alone();
    let service = "auth optional {modules}/pam_chatty.so num_lines=2 error info\n\
                   auth required {matrix}\naccount required {matrix}\n";
    let pooler = start(service, "", "");
    assert!(pooler.login("ann", "shop", "ann-pw").is_ok());
    assert!(pooler.login("admin", "pgbouncer", "admin-pw").is_ok(), "consoles, too");
    assert_eq!(pooler.refusal("ann", "shop", "wrong"), "PAM authentication failed");
    assert_eq!(pooler.show("users", "name", ("name", "ann")), ["ann"]);
}

#[test]
fn pam_and_auth_user_do_not_go_together() {
    let _alone = alone();
    let databases = format!("shop = host=127.0.0.1 port={} auth_user=asker\n", postgres().port);
    let pooler = start(SERVICE, "", &databases);
    assert_eq!(pooler.refusal("ann", "shop", "ann-pw"), "bouncer config error");
    pooler.wait_log("PAM can't be used together with database authentication");
}

/// A user whom PAM has let in for one database and a look-up for another: servers of each are logged
/// in with what was proved last for it.
#[test]
fn pam_and_look_ups_leave_passwords_of_their_own() {
    let _alone = alone();
    let port = postgres().port;
    let entry = |name: &str| format!("{name} = host=127.0.0.1 port={port} dbname=template1\n");
    let service = "auth required pam_permit.so\naccount required pam_permit.so\n";
    let settings = "auth_user = trusty\npool_mode = session\nserver_login_retry = 0";
    let pooler = start(service, settings, &[entry("one"), entry("other")].concat());
    let mut console = pooler.console();
    let user = |database: &str, password: &str| {
        let (mut client, _) = pooler.login("scramy", database, password).ok()?;
        Some(client.value("select current_user"))
    };
    let is_in = Some("scramy".to_owned());
    assert_eq!(user("one", "wrong"), None, "PAM likes it, the server does not");
    console.query("SET auth_type = 'scram-sha-256'");
    assert_eq!(user("other", "wrong"), None);
    assert_eq!(user("other", "scramy-pw"), is_in, "by the keys of its login");
    console.query("SET auth_type = 'pam'");
    assert_eq!(user("one", "scramy-pw"), is_in);
    console.query("RECONNECT");
    assert_eq!(user("other", "scramy-pw"), is_in);
    console.query("RECONNECT");
    assert_eq!(user("other", "wrong"), None, "the last password counts");
}

/// A module that takes its time holds up nobody but those who wait for it; the warning comes once.
#[test]
fn full_queue_does_not_stall_queries() {
    let _alone = alone();
    let gate = scratch().folder().join("gate");
    let script = scratch().folder().join("wait");
    let text = "#!/bin/sh\n[ $PAM_USER = querier ] && exit 0\n\
                until [ -e GATE ]; do sleep 0.02; done\n";
    write(&script, text.replace("GATE", &gate.display().to_string()));
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let service = format!(
        "auth required pam_exec.so quiet {}\nauth required pam_permit.so\n\
         account required pam_permit.so\n",
        script.display()
    );
    let pooler = start(&service, "", "");
    let (mut querier, _) = pooler.login("querier", "shop", "x").expect("gets in");
    let waiting: Vec<_> = (0..25)
        .map(|number| {
            let mut raw = pooler.tcp();
            let name = format!("user{number}");
            raw.send(&startup(0, &[("user", &name), ("database", "shop")]));
            assert_eq!(raw.recv().unwrap().body[3], 3);
            raw.send(&msg(b'p', &cstr("x")));
            raw
        })
        .collect();
    pooler.wait_log("PAM queue is full, waiting");
    for number in 0..20 {
        assert_eq!(querier.value(&format!("select {number}")), number.to_string());
    }
    assert!(!gate.exists());
    // Some go away while they wait.
    let mut waiting = waiting.into_iter();
    drop(waiting.next());
    drop(waiting.next_back());
    write(&gate, "");
    for mut raw in waiting {
        assert_eq!(raw.recv().unwrap().body, [0, 0, 0, 0], "gets in");
    }
    assert_eq!(pooler.log().matches("PAM queue is full, waiting").count(), 1);
}
