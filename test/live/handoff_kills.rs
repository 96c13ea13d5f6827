//! A handoff that fails at any step loses nothing: before the point of no return clients go on with
//! the old process, after it with the new one.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::rig::fds::Taker;
use crate::rig::pooler::{binary, in_transactions, Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{query, rows, startup, tags};

/// Kills come at so many moments, a little later each time.
const MOMENTS: u64 = 24;
const STEP: Duration = Duration::from_millis(3);

/// Clients with nothing to do, in a transaction, in the midst of a packet, with a result to read.
struct Crowd {
    idle: Raw,
    open: Raw,
    cut: Raw,
    reading: Raw,
    round: u32,
}

const REST: usize = 7;

impl Crowd {
    fn new(pooler: &Pooler, database: &str) -> Crowd {
        let mut crowd = Crowd {
            idle: pooler.client(database),
            open: pooler.holder(database),
            cut: pooler.client(database),
            reading: pooler.client(database),
            round: 0,
        };
        assert_eq!(tags(&crowd.open.query("create temp table t as select 0 as n")), "CZ");
        crowd.begin();
        crowd
    }

    fn begin(&mut self) {
        self.cut.send(&query("select 'cut'")[..REST]);
        self.reading.send(&query("select repeat('r', 999) from generate_series(1, 20000)"));
        self.reading.until(b'T');
    }

    /// All of them go on where they were.
    fn check(&mut self) {
        self.round += 1;
        assert_eq!(self.idle.value("select 1"), "1");
        assert_eq!(tags(&self.open.query("update t set n = n + 1")), "CZ");
        assert_eq!(self.open.value("select n from t"), self.round.to_string());
        self.cut.send(&query("select 'cut'")[REST..]);
        assert_eq!(rows(&self.cut.until(b'Z'))[0][0].as_deref(), Some("cut"));
        assert_eq!(self.reading.until(b'Z').iter().filter(|msg| msg.tag == b'D').count(), 20000);
        self.begin();
    }
}

#[test]
fn the_old_process_goes_on_whenever_its_successor_leaves() {
    let (mut pooler, database) = in_transactions("default_pool_size = 10\n");
    let mut crowd = Crowd::new(&pooler, &database);
    for at in 0..7 {
        let mut new = Taker::own_user(&pooler);
        if at > 0 {
            new.query("HANDOFF 0;");
        }
        if at > 1 {
            new.ask("HANDOFF 1;");
        }
        // Part of the rows, as far as the socket holds them; then something that is no end.
        new.skip([0, 0, 0, 1, 100, 3000, 0][at]);
        if at == 6 {
            new.ask("SHOW VERSION;");
        }
        drop(new);
        crowd.check();
        pooler.assert_serves(&database);
    }
    // Some leave before they are heard.
    wait_until("failures are told of", || {
        pooler.log().matches("WARNING handoff failed, going on: ").count() >= 3
    });
}

/// Somebody who does not read what the console has for it: until then a handoff has to wait a second.
fn unread(pooler: &Pooler) -> Raw {
    let mut console = pooler.unix().login("admin", "pgbouncer", "admin-pw").unwrap().0;
    console.send(&query("show config;").repeat(300));
    console.until(b'T');
    console
}

#[test]
fn a_shutdown_ends_a_handoff_that_waits() {
    let (mut pooler, database) = in_transactions("");
    let mut held = pooler.holder(&database);
    let _unread = unread(&pooler);
    let mut new = Taker::own_user(&pooler);
    new.query("HANDOFF 0;");
    new.ask("HANDOFF 1;");
    pooler.wait_log("HANDOFF command issued");
    // Nobody is accepted meanwhile, and whoever waits for that comes in after all.
    let mut early = pooler.tcp();
    early.send(&startup(0, &[("user", "trusty"), ("database", &database)]));
    std::thread::sleep(Duration::from_millis(50));
    pooler.signal(Signal::SIGTERM);
    pooler.wait_log("WARNING handoff failed, going on: pooler is shutting down");
    early.until(b'Z');
    assert_eq!(early.value("select 1"), "1");
    assert_eq!(tags(&held.query("commit")), "CZ");
    assert_eq!(pooler.exited(), None);
    for client in [early, held] {
        client.bye();
    }
    drop((new, _unread));
    assert_eq!(pooler.wait_exit().code(), Some(0));
}

#[test]
fn a_second_successor_is_refused_while_the_first_one_waits() {
    let (mut pooler, database) = in_transactions("");
    let _unread = unread(&pooler);
    let mut first = Taker::own_user(&pooler);
    let mut second = Taker::own_user(&pooler);
    first.ask("HANDOFF 1;");
    pooler.wait_log("HANDOFF command issued");
    second.ask("HANDOFF 1;");
    assert_eq!(second.receive().msgs[0].tag, b'E');
    // It is the first one's; who leaves without it.
    first.skip(500);
    drop((first, second));
    pooler.assert_serves(&database);
}

#[test]
fn what_is_said_while_it_settles_counts() {
    for (command, text) in [
        ("SHUTDOWN WAIT_FOR_CLIENTS", "pooler is shutting down"),
        ("SUSPEND", "already suspended/paused"),
    ] {
        let (mut pooler, database) = in_transactions("default_pool_size = 10\n");
        // Not all of them would come to rest.
        let mut crowd = (command != "SUSPEND").then(|| Crowd::new(&pooler, &database));
        // Somebody is in the midst of an answer that nobody reads: for a second that is waited for.
        let mut lazy = pooler.console();
        lazy.send(&query("SHOW CONFIG").repeat(4000));
        lazy.until(b'T');
        let (mut other, mut console) = (Taker::own_user(&pooler), pooler.console());
        let mut new = Taker::own_user(&pooler);
        new.ask("HANDOFF 1;");
        let said = |taker: &mut Taker| {
            let mut msgs = taker.answer().into_iter().flat_map(|received| received.msgs);
            msgs.find(|msg| msg.tag == b'E').map(|msg| msg.field(b'M'))
        };
        other.ask("HANDOFF 1;");
        let refusal = said(&mut other);
        assert_eq!(refusal.as_deref(), Some("another process is taking over already"));
        console.send(&query(command));
        assert_eq!(said(&mut new).as_deref(), Some(text));
        drop((lazy, new));
        match crowd.as_mut() {
            Some(crowd) => crowd.check(),
            // A suspension ends with its console.
            None => {
                drop(console);
                pooler.assert_serves(&database);
            }
        }
        assert!(pooler.exited().is_none());
    }
}

#[test]
fn a_pidfile_that_can_not_be_written_ends_nobody() {
    let mut setup = Setup::trust("pool_mode = transaction\ndefault_pool_size = 10\n");
    let (mut pooler, database) = (Pooler::start(&setup), postgres().new_database());
    let mut crowd = Crowd::new(&pooler, &database);
    setup.settings.push_str("pidfile = /nowhere/pid\n");
    pooler.rewrite(&setup);
    pooler.replace(binary());
    crowd.check();
    pooler.wait_log("ERROR could not open pidfile '/nowhere/pid'");
}

#[test]
fn kills_of_the_successor_at_any_moment() {
    let mut taken_over = 0;
    let mut moment = 0;
    while moment < MOMENTS {
        let (mut pooler, database) = in_transactions("default_pool_size = 10\n");
        let mut crowd = Crowd::new(&pooler, &database);
        // Until one of them was too late: then there is nobody left to go on.
        while moment < MOMENTS {
            let mut new = pooler.attempt();
            std::thread::sleep(STEP * u32::try_from(moment).unwrap());
            new.kill().unwrap();
            new.wait().unwrap();
            moment += 1;
            if has_ended(&mut pooler) {
                taken_over += 1;
                break;
            }
            crowd.check();
        }
    }
    assert!(taken_over < MOMENTS, "some came in time");
}

#[test]
fn kills_of_the_old_process_at_any_moment() {
    let mut taken_over = 0;
    for moment in 0..MOMENTS {
        let (pooler, database) = in_transactions("default_pool_size = 10\n");
        let mut crowd = Crowd::new(&pooler, &database);
        let mut new = pooler.attempt();
        std::thread::sleep(STEP * u32::try_from(moment).unwrap());
        pooler.signal(Signal::SIGKILL);
        let ups = |pooler: &Pooler| pooler.log().matches("process up: ").count();
        wait_until("the new one is up or gone", || {
            ups(&pooler) == 2 || new.try_wait().unwrap().is_some()
        });
        if ups(&pooler) == 2 && !pooler.log().contains("old process not found") {
            taken_over += 1;
            crowd.check();
        }
        new.kill().unwrap();
        new.wait().unwrap();
    }
    assert!(taken_over > 0, "some took over");
}

/// True if the process has handed over: it ends then, and answers nobody any more.
fn has_ended(pooler: &mut Pooler) -> bool {
    let mut has_ended = None;
    wait_until("it answers or ends", || {
        has_ended = match pooler.exited() {
            Some(_) => Some(true),
            None => answers(pooler.port).then_some(false),
        };
        has_ended.is_some()
    });
    has_ended == Some(true)
}

/// True if there is an answer to an SSLRequest.
fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let request = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    stream.write_all(&request).is_ok() && stream.read(&mut [0; 1]).is_ok_and(|count| count == 1)
}
