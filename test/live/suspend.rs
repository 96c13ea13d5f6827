//! SUSPEND (admin 4.3): everything comes to rest between two packets, and goes on as if nothing had
//! been.

use nix::sys::signal::Signal;

use crate::rig::pooler::in_transactions as start;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{last_error, query, startup, tags};

fn suspended(console: &mut Raw) {
    let done = console.query("SUSPEND");
    assert_eq!((tags(&done).as_str(), &done[0].body[..]), ("CZ", &b"SUSPEND\0"[..]));
}

#[test]
fn traffic_stops_until_resume() {
    let (pooler, database) = start("");
    let (mut idle, mut busy) = (pooler.client(&database), pooler.client(&database));
    assert_eq!(idle.value("select 1"), "1");
    assert_eq!(tags(&busy.query("begin")), "CZ");
    busy.send(&query("select 2 from pg_sleep(3)"));
    wait_until("it runs", || crate::cancel::sleeping(&database));
    let mut console = pooler.console();
    suspended(&mut console);
    idle.send(&query("select 3"));
    let refused = console.query("PAUSE");
    assert_eq!(refused[0].field(b'M'), "already suspended/paused");
    assert_eq!(pooler.log().matches("closing because").count(), 0);
    assert_eq!(console.value("SHOW VERSION")[..9], *"PgBouncer");
    assert_eq!(tags(&console.query("RESUME")), "CZ");
    assert_eq!(idle.until(b'Z')[1].cells()[0].as_deref(), Some("3"));
    assert_eq!(busy.until(b'Z')[1].cells()[0].as_deref(), Some("2"));
    assert_eq!(tags(&busy.query("commit")), "CZ");
}

#[test]
fn half_a_packet_keeps_it_from_completing_until_suspend_timeout() {
    let (pooler, database) = start("suspend_timeout = 1\n");
    let (mut half, mut whole) = (pooler.client(&database), pooler.client(&database));
    let mut login = pooler.tcp();
    login.send(&[0, 0]);
    half.send(&query("select 1")[..9]);
    let logging_in = || pooler.show("LISTS", "items", ("list", "login_clients"));
    wait_until("both are known", || {
        pooler.pool(&database, "sv_active") == 1 && logging_in() == ["1"]
    });
    let mut console = pooler.console();
    suspended(&mut console);
    assert_eq!(last_error(&half.rest()).2, "suspend_timeout");
    assert_eq!(last_error(&login.rest()).2, "suspend_timeout");
    pooler.wait_log("closing because: suspend_timeout");
    console.query("RESUME");
    assert_eq!(whole.value("select 2"), "2");
}

#[test]
fn new_clients_are_accepted_after_resume() {
    let (pooler, database) = start("");
    let mut console = pooler.console();
    suspended(&mut console);
    let mut later = pooler.tcp();
    later.send(&startup(0, &[("user", "trusty"), ("database", &database)]));
    assert_eq!(console.value("SHOW VERSION")[..9], *"PgBouncer");
    assert!(!pooler.log().contains(&format!("login attempt: db={database}")));
    console.query("RESUME");
    assert!(tags(&later.until(b'Z')).starts_with('R'));
}

#[test]
fn everything_goes_on_when_the_last_console_has_gone() {
    let (pooler, database) = start("");
    let mut client = pooler.client(&database);
    let mut console = pooler.console();
    suspended(&mut console);
    client.send(&query("select 1"));
    drop(console);
    assert_eq!(client.until(b'Z')[1].cells()[0].as_deref(), Some("1"));
    pooler.wait_log("admin disappeared when suspended, doing RESUME");
}

#[test]
fn signals_know_a_suspended_process() {
    let (mut pooler, _) = start("");
    let mut console = pooler.console();
    suspended(&mut console);
    pooler.signal(Signal::SIGUSR1);
    pooler.wait_log("got SIGUSR1, but already paused/suspended");
    pooler.signal(Signal::SIGUSR2);
    pooler.wait_log("got SIGUSR2, continuing from SUSPEND");
    suspended(&mut console);
    pooler.signal(Signal::SIGTERM);
    assert_eq!(pooler.wait_exit().code(), Some(1));
    pooler.wait_log("LOG got SIGTERM, shutting down, waiting for all clients disconnect");
    pooler.wait_log("FATAL suspend was in progress, going down immediately");
    assert!(pooler.folder.join(format!(".s.PGSQL.{}", pooler.port)).exists());
    assert!(!pooler.folder.join("pid").exists());
}
