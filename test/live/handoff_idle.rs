//! From one of us to the next with hundreds of clients that have nothing to do: they come behind those
//! who are served, and nothing shows that (doc/handoff.md).

use std::sync::atomic::{AtomicBool, Ordering};

use crate::rig::fds::Taker;
use crate::rig::pooler::{binary, in_transactions, Pooler};
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{bind, close, execute, last_error, parse, query, rows, sync, tags};

/// Texts of prepared statements; more than a server keeps.
const TEXTS: usize = 7;

fn text(number: usize) -> String {
    format!("select '{}' || $1", number % TEXTS)
}

fn prepare(client: &mut Raw, number: usize) {
    client.send(&[parse("s", &text(number)), sync()].concat());
    assert_eq!(tags(&client.until(b'Z')), "1Z");
}

fn asks() -> Vec<u8> {
    [bind("s", &["x"]), execute(), sync()].concat()
}

fn check(client: &mut Raw, number: usize) {
    let answer = client.until(b'Z');
    let cell = rows(&answer).first().and_then(|row| row[0].clone());
    assert_eq!(cell, Some(format!("{}x", number % TEXTS)), "{}", tags(&answer));
}

/// Clients whose number is told with them, with a prepared statement each.
fn idle(pooler: &Pooler, database: &str, count: usize) -> Vec<(usize, Raw)> {
    let client = |number| {
        let mut client = pooler.client(database);
        prepare(&mut client, number);
        (number, client)
    };
    (0..count).map(client).collect()
}

fn count(pooler: &Pooler, database: &str) -> usize {
    pooler.show("CLIENTS", "ptr", ("database", database)).len()
}

#[test]
fn hundreds_with_nothing_to_do_are_all_there_with_what_they_have() {
    let settings = "default_pool_size = 3\nmax_prepared_statements = 3\nmax_client_conn = 1000\n";
    let (mut pooler, database) = in_transactions(settings);
    let mut clients = idle(&pooler, &database, 300);
    let port = pooler.port;
    for turn in 0..4 {
        let gone = clients.split_off(clients.len() - 20);
        let request = asks();
        let half = turn % request.len() + 3;
        for (_, client) in clients.iter_mut().step_by(9) {
            client.send(&request[..half]);
        }
        let is_over = AtomicBool::new(false);
        let during = || !is_over.load(Ordering::Relaxed);
        let mut new = std::thread::scope(|scope| {
            // Prepares and closes what others have, too, and has servers forget it.
            let busy = scope.spawn(|| {
                let mut client = Raw::tcp(port).login("trusty", &database, "").unwrap().0;
                for number in (0..).take_while(|_| during()) {
                    prepare(&mut client, number);
                    client.send(&asks());
                    check(&mut client, number);
                    client.send(&[close(b'S', "s"), sync()].concat());
                    assert_eq!(tags(&client.until(b'Z')), "3Z");
                }
            });
            let new = scope.spawn(|| {
                let login = |_| Raw::tcp(port).login("trusty", &database, "").unwrap().0;
                (0..).take_while(|_| during()).map(login).last()
            });
            let leave = scope.spawn(|| drop(gone));
            pooler.replace(binary());
            is_over.store(true, Ordering::Relaxed);
            leave.join().unwrap();
            busy.join().unwrap();
            new.join().unwrap()
        });
        let want = clients.len() + usize::from(new.is_some());
        wait_until("all are there", || count(&pooler, &database) == want);
        for (at, (number, client)) in clients.iter_mut().enumerate() {
            client.send(if at % 9 == 0 { &request[half..] } else { &request });
            check(client, *number);
        }
        if let Some(client) = &mut new {
            assert_eq!(client.value("select 5"), "5");
        }
    }
    assert!(!pooler.log().contains("can't be read"), "{}", pooler.log());
}

#[test]
fn commands_right_behind_the_handoff_find_everybody() {
    let (mut pooler, database) = in_transactions("max_client_conn = 1000\n");
    let mut clients = idle(&pooler, &database, 300);
    for _ in 0..3 {
        let mut console = pooler.console();
        pooler.replace(binary());
        assert_eq!(rows(&console.query("SHOW CLIENTS")).len(), 301);
        for command in ["PAUSE", "RELOAD", "RESUME"] {
            pooler.command(command);
        }
    }
    for (number, client) in clients.iter_mut().step_by(10) {
        client.send(&asks());
        check(client, *number);
    }
    let mut console = pooler.console();
    pooler.replace(binary());
    assert_eq!(tags(&console.query(&format!("KILL {database}"))), "CZ");
    for (_, mut client) in clients {
        assert_eq!(last_error(&client.rest()).2, "database removed");
    }
    assert_eq!(count(&pooler, &database), 0);
}

#[test]
fn a_successor_that_stops_reading_in_the_midst_of_rows_leaves_all_as_it_was() {
    let (mut pooler, database) = in_transactions("default_pool_size = 20\nsuspend_timeout = 1\n");
    let mut clients = idle(&pooler, &database, 50);
    let many = "select repeat('r', 999) from generate_series(1, 20000)";
    let mut reading: Vec<Raw> = (0..12).map(|_| pooler.client(&database)).collect();
    for client in &mut reading {
        client.send(&query(many));
        client.until(b'T');
    }
    let mut lazy = Taker::own_user(&pooler);
    lazy.ask("HANDOFF 1;");
    pooler.wait_log("handoff failed, going on: writing failed");
    drop(lazy);
    for turn in 0..2 {
        for client in &mut reading {
            assert_eq!(rows(&client.until(b'Z')).len(), 20000);
            client.send(&query(many));
            client.until(b'T');
        }
        for (number, client) in &mut clients {
            client.send(&asks());
            check(client, *number);
        }
        assert_eq!(count(&pooler, &database), 62);
        if turn == 0 {
            pooler.replace(binary());
        }
    }
}
