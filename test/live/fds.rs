//! SHOW FDS (admin 3.14, takeover 5): the rows, and descriptors with which somebody else goes on.

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::sys::signal::Signal;
use nix::sys::socket::{getpeername, SockaddrIn};
use sha2::{Digest, Sha256};

use crate::rig::fds::{Row, Taker};
use crate::rig::pooler::{in_transactions as start, Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{msg, query, rows, tags};

/// Suspends the pooler as its own user.
fn suspend(pooler: &Pooler) -> Taker {
    let mut taker = Taker::own_user(pooler);
    let done = taker.query("SUSPEND;");
    assert_eq!(
        (tags(&done[0].msgs).as_str(), &done[0].msgs[0].body[..]),
        ("CZ", &b"SUSPEND\0"[..])
    );
    taker
}

/// The row of this task whose connection has (or has not) a partner.
fn find<'a>(rows: &'a mut [Row], task: &str, linked: bool) -> &'a mut Row {
    let found = rows.iter_mut().find(|row| row.cell(2) == task && (row.cell(8) != "0") == linked);
    found.unwrap_or_else(|| panic!("no {task}, linked: {linked}"))
}

#[test]
fn passed_descriptors_outlive_the_pooler() {
    let (mut pooler, database) = start("");
    let (mut busy, mut idle) = (pooler.holder(&database), pooler.holder(&database));
    busy.query("create temp table mine (n int); insert into mine values (17)");
    assert_eq!(tags(&idle.query("commit")), "CZ");
    let mut taker = suspend(&pooler);
    let mut rows = taker.show_fds();
    let tasks: Vec<&str> = rows.iter().map(|row| row.cell(2)).collect();
    assert_eq!(tasks, ["pooler", "pooler", "client", "client", "server", "server"]);
    assert!(rows.iter().all(|row| row.passed.is_some()));
    let [client, server] = ["client", "server"].map(|task| {
        let row = find(&mut rows, task, true);
        [row.cell(1), row.cell(8)].map(str::to_owned)
    });
    assert_eq!(client, [server[1].as_str(), &server[0]]);
    let key = u64::from_be_bytes(busy.key[..].try_into().unwrap()).to_string();
    assert_eq!(find(&mut rows, "client", true).cell(7), key);

    pooler.signal(Signal::SIGKILL);
    pooler.wait_exit();
    // The server of the pair is the one that has the table, in a transaction.
    let mut to_server = Raw::through(find(&mut rows, "server", true).take());
    let mut to_client = Raw::through(find(&mut rows, "client", true).take());
    busy.send(&query("select n from mine"));
    let asked = to_client.recv().unwrap();
    to_server.send(&msg(asked.tag, &asked.body));
    let answer = to_server.until(b'Z');
    assert_eq!(answer.last().unwrap().body, b"T");
    answer.iter().for_each(|part| to_client.send(&msg(part.tag, &part.body)));
    assert_eq!(crate::fds::rows(&busy.until(b'Z')), [[Some("17".to_owned())]]);

    let mut to_server = Raw::through(find(&mut rows, "server", false).take());
    assert_eq!(to_server.value("select 40 + 2"), "42");
    let mut to_client = Raw::through(find(&mut rows, "client", false).take());
    to_client.send(&msg(b'Z', b"I"));
    assert_eq!(tags(&idle.until(b'Z')), "Z");

    for (row, mut late) in rows.iter_mut().zip([pooler.tcp(), pooler.unix()]) {
        late.send(&query("hello"));
        assert_eq!(Raw::through(row.take().accept()).recv().unwrap().body, b"hello\0");
    }
}

#[test]
fn everybody_else_gets_the_rows_without_descriptors() {
    let mut setup = Setup::trust("pool_mode = transaction\n");
    setup.users.push_str("\"stats\" \"\"\n");
    let (pooler, database) = (Pooler::start(&setup), postgres().new_database());
    let mut client = pooler.client(&database);
    assert_eq!(client.value("select 1"), "1");
    let mut own = Taker::own_user(&pooler);
    let shown: Vec<_> = own.show_fds().into_iter().map(|row| row.cells).collect();
    assert_eq!(shown.len(), 4);
    let row = [Some("pooler"), None, None, Some("unix")].map(|cell| cell.map(str::to_owned));
    assert_eq!(shown[1][1..5], row);
    assert_eq!(rows(&pooler.console().query("show fds")), shown);
    let all = Taker::trusted(&pooler, "admin").query("show fds");
    assert!(all.iter().all(|received| received.passed.is_none()));
    let msgs: Vec<_> = all.into_iter().flat_map(|received| received.msgs).collect();
    assert_eq!(rows(&msgs), shown);
    let mut stats = Taker::trusted(&pooler, "stats");
    assert_eq!(stats.query("show fds")[0].msgs[0].field(b'M'), "admin access needed");
}

#[test]
fn scram_keys_are_for_the_processes_own_user_only() {
    let postgres = postgres();
    let stored = "select rolpassword from pg_authid where rolname = 'scramy'";
    let scram = postgres.value("postgres", stored);
    let place = format!("host=127.0.0.1 port={} dbname={}", postgres.port, postgres.new_database());
    let setup = Setup {
        databases: format!("shop = {place}\nforced = {place} user=scramy\n"),
        settings: "pool_mode = transaction\nauth_type = scram-sha-256\n".to_owned(),
        users: format!("\"scramy\" \"{scram}\"\n"),
    };
    let pooler = Pooler::start(&setup);
    let _clients = ["shop", "forced"].map(|database| {
        let mut client = pooler.login("scramy", database, "scramy-pw").unwrap().0;
        assert_eq!(client.value("select 1"), "1");
        client
    });
    let mut own = Taker::own_user(&pooler);
    let rows = own.show_fds();
    let keys: Vec<(&str, &str)> = rows.iter().map(|row| (row.cell(14), row.cell(15))).collect();
    // The listening sockets, then the pair of the forced user, whose keys nobody may use.
    assert_eq!(keys[..4], [("NULL", "NULL"); 4]);
    assert_eq!((keys.len(), keys[4]), (6, keys[5]));
    let bytes = |hex: &str| -> Vec<u8> {
        let digits = hex.strip_prefix("\\x").unwrap().as_bytes();
        let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    };
    let (client_key, server_key) = (bytes(keys[4].0), bytes(keys[4].1));
    let stored = STANDARD.encode(Sha256::digest(&client_key));
    assert!(scram.ends_with(&format!("${stored}:{}", STANDARD.encode(server_key))));
    let shown = pooler.console().query("show fds");
    let hidden = crate::fds::rows(&shown).into_iter().all(|row| row[13..] == [None, None]);
    assert!(hidden, "{shown:?}");
    assert!(!pooler.log().contains(&keys[4].0[2..]));
}

#[test]
fn a_reader_that_stalls_stops_nobody() {
    const CLIENTS: usize = 2000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let (mut pooler, database) = start("max_client_conn = 3000\n");
    let mut clients: Vec<Raw> = (0..CLIENTS).map(|_| pooler.client(&database)).collect();
    let mut taker = Taker::own_user(&pooler);
    taker.ask("SHOW FDS;");
    taker.ask("SHOW VERSION;");
    let mut leaves = Taker::own_user(&pooler);
    leaves.ask("SHOW FDS");
    wait_until("it is asked", || pooler.pool("pgbouncer", "cl_active") >= 3);
    assert_eq!(clients[7].value("select 7"), "7");
    assert_eq!(pooler.console().query("SHOW VERSION").len(), 4);
    drop(leaves);
    assert_eq!(clients[8].value("select 8"), "8");
    // One of those whose row has not been read leaves; somebody new may get its descriptor's number.
    clients.remove(CLIENTS - 1).bye();
    let mut late = pooler.client(&database);
    assert_eq!(late.value("select 9"), "9");

    let mut ports = Vec::new();
    let mut alone = 0;
    let mut end = loop {
        let received = taker.receive();
        if received.msgs[0].tag == b'C' {
            break tags(&received.msgs);
        }
        let all = rows(&received.msgs);
        let Some((row, before)) = all.split_last() else { panic!("{received:?}") };
        // A row that has lost its descriptor comes together with the next one.
        alone += before.len();
        ports.extend(all.iter().filter(|row| is_client(row)).map(|row| row[5].clone().unwrap()));
        let passed = received.passed.unwrap();
        if is_client(row) {
            let peer = getpeername::<SockaddrIn>(passed.0).unwrap();
            assert_eq!(row[5], Some(peer.port().to_string()));
        }
    };
    if end == "CZ" {
        end += &tags(&taker.answer()[0].msgs);
    }
    assert_eq!(end, "CZTDCZ");
    assert_eq!((ports.len(), alone), (CLIENTS, 1));
    let now = pooler.show("CLIENTS", "port", ("database", &database));
    let still: Vec<&String> = ports.iter().filter(|port| now.contains(port)).collect();
    assert_eq!(still.len(), CLIENTS - 1);
    pooler.assert_serves(&database);
}

fn is_client(row: &[Option<String>]) -> bool {
    row[1].as_deref() == Some("client")
}
