//! Handoffs between processes that are not alike: other limits, other settings, and a signal in the
//! midst of it.

use nix::sys::signal::Signal;

use crate::rig::certs::certs;
use crate::rig::fds::Taker;
use crate::rig::pooler::{binary, in_transactions, Pooler, Setup};
use crate::rig::postgres::{postgres, tls_postgres};
use crate::rig::raw::Raw;
use crate::rig::scratch::{scratch, write};
use crate::rig::wait_until;
use crate::rig::wire::{startup, tags};

/// The program under test with fewer descriptors than it could have.
fn limited(limit: u32) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = scratch().folder().join("limited");
    let text = format!("#!/bin/sh\nulimit -S -n {limit}\nexec {} \"$@\"\n", binary().display());
    write(&path, text);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_successor_may_have_what_its_hard_limit_allows() {
    let (mut pooler, database) = in_transactions("max_client_conn = 500\n");
    let mut clients: Vec<Raw> = (0..120).map(|_| pooler.client(&database)).collect();
    pooler.replace(&limited(60));
    for client in &mut clients {
        assert_eq!(client.value("select 1"), "1");
    }
    // And as many besides.
    let mut more: Vec<Raw> = (0..20).map(|_| pooler.client(&database)).collect();
    assert_eq!(more[19].value("select 2"), "2");
}

#[test]
fn servers_with_other_tls_are_replaced() {
    let settings = |more: &str| {
        let mut setup =
            Setup::trust(&format!("pool_mode = transaction\nserver_tls_sslmode = require\n{more}"));
        setup.databases = format!("* = host=127.0.0.1 port={}\n", tls_postgres().port);
        setup
    };
    let mut pooler = Pooler::start(&settings(""));
    let database = tls_postgres().new_database();
    let mut client = pooler.client(&database);
    let pid = |client: &mut Raw| client.value("select pg_backend_pid()");
    let (mut last, mut keepers) = (pid(&mut client), Vec::new());
    let ca = format!("server_tls_ca_file = {}/ca.crt\n", certs().display());
    for (more, is_other) in [
        ("", false),
        ("server_tls_ciphers = HIGH\n", true),
        ("server_tls_ciphers = HIGH\n", false),
        (&ca, true),
        (&ca, false),
        ("server_tls_protocols = tlsv1.2\n", true),
    ] {
        pooler.rewrite(&settings(more));
        keepers.push(pooler.succeed(binary()));
        let now = pid(&mut client);
        assert_eq!(now != last, is_other, "{more}");
        last = now;
    }
    // What SET has changed is so in the successor, and its servers stay.
    pooler.command("SET server_tls_protocols = 'tlsv1.3'");
    last = pid(&mut client);
    for _ in 0..2 {
        keepers.push(pooler.succeed(binary()));
        assert_eq!(pid(&mut client), last);
    }
    let tls = pooler.show("SERVERS", "tls", ("database", &database));
    assert!(tls.len() == 1 && tls[0].starts_with("TLSv1.3/"), "{tls:?}");
    drop(pooler);
    for mut keeper in keepers {
        wait_until("the keeper ends", || keeper.try_wait().unwrap().is_some());
    }
}

#[test]
fn values_of_parameters_that_are_not_tracked_any_more_are_told_of() {
    let tracked = |names: &str| {
        Setup::trust(&format!("pool_mode = transaction\ntrack_extra_parameters = {names}\n"))
    };
    let mut pooler = Pooler::start(&tracked("IntervalStyle"));
    let database = postgres().new_database();
    let login = |style: &str| {
        let hello =
            startup(0, &[("user", "trusty"), ("database", &database), ("IntervalStyle", style)]);
        pooler.tcp().login_with(&hello, "trusty", "").unwrap().0
    };
    let mut clients = [login("iso_8601"), login("postgres"), login("sql_standard")];
    assert_eq!(clients[0].value("show intervalstyle"), "iso_8601");
    pooler.rewrite(&tracked(""));
    pooler.replace(binary());
    let text =
        "WARNING IntervalStyle is not tracked any more (track_extra_parameters): clients that \
                have set it (2) have the server's value from their next server on";
    assert_eq!(pooler.count(text), 1, "{}", pooler.log());
    for client in &mut clients {
        assert_eq!(client.value("show intervalstyle"), "postgres");
    }
}

#[test]
fn a_signal_in_the_midst_of_it_is_obeyed() {
    for (signal, line) in [
        (Signal::SIGTERM, "got SIGTERM"),
        (Signal::SIGINT, "got SIGINT"),
        (Signal::SIGHUP, "got SIGHUP"),
        (Signal::SIGUSR1, "got SIGUSR1"),
    ] {
        let (mut pooler, database) = in_transactions("");
        let mut open = pooler.holder(&database);
        let mut new = Taker::own_user(&pooler);
        new.ask("HANDOFF 1;");
        // It stands still from the first row on.
        new.skip(1);
        std::thread::sleep(std::time::Duration::from_millis(20));
        pooler.signal(signal);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!pooler.log().contains(line), "it turns: {}", pooler.log());
        new.ask("SHUTDOWN;");
        pooler.wait_log("WARNING handoff failed, going on: a signal came");
        pooler.wait_log(line);
        let said = String::from_utf8_lossy(&new.rest()).into_owned();
        assert!(said.contains("Ma signal came\0\0"), "{said:?}");
        assert_eq!(tags(&open.query("commit")), "CZ");
        if matches!(signal, Signal::SIGTERM | Signal::SIGINT) {
            drop(open);
            wait_until("it ends", || pooler.exited().is_some());
        } else {
            assert_eq!(pooler.exited(), None);
        }
    }
}
