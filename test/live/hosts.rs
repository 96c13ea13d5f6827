//! Forms of hosts, lists of hosts, and what waiting clients are told when servers fail (pooling 10).

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use crate::rig::fake::{Fake, Peer};
use crate::rig::pooler::{Pooler, Setup};
use crate::rig::raw::Raw;
use crate::rig::scratch::{scratch, DeadPort};
use crate::rig::wait_until;
use crate::rig::wire::{error, last_error, msg, query, startup, tags};

/// Answers every query with this text.
fn speak(mut peer: Peer, text: &str) {
    peer.welcome();
    while peer.raw.recv().is_some_and(|m| m.tag == b'Q') {
        peer.answer(text);
    }
}

/// A server that answers every query with its name.
fn named(name: &'static str) -> Fake {
    Fake::start(move |peer| speak(peer, name))
}

fn start(databases: String, settings: &str) -> Pooler {
    let users = "\"trusty\" \"\"\n".to_owned();
    let settings = format!("pool_mode = transaction\n{settings}");
    Pooler::start(&Setup { databases, settings, users })
}

/// A list of two hosts on these ports.
fn pair(name: &str, one: u16, two: u16, more: &str) -> String {
    format!("{name} = host=127.0.0.1,127.0.0.1 port={one},{two} {more}\n")
}

/// Which server each of so many connections at the same time has.
fn spread(pooler: &Pooler, database: &str, count: usize) -> Vec<String> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = pooler.client(database);
        let name = client.value("select 1");
        client.send(&crate::rig::wire::parse("", "begin"));
        client.send(&crate::rig::wire::flush());
        clients.push((client, name));
    }
    clients.into_iter().map(|(_, name)| name).collect()
}

#[test]
fn servers_are_reached_by_every_form_of_address() {
    let v6 = TcpListener::bind("[::1]:0").unwrap();
    let v6_port = v6.local_addr().unwrap().port();
    let name = format!("pgt-{}-{}", std::process::id(), scratch().serial());
    let address = SocketAddr::from_abstract_name(format!("{name}/.s.PGSQL.7")).unwrap();
    let hidden = UnixListener::bind_addr(&address).unwrap();
    let folder = scratch().folder();
    let open = |folder: &std::path::Path, port: u16| {
        let path = folder.join(format!(".s.PGSQL.{port}"));
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        listener
    };
    let unix = open(&folder, 8);
    let tcp = named("tcp");
    let databases = format!(
        "v6 = host=::1 port={v6_port}\nhidden = host=@{name} port=7\nunix = host={} port=8\n\
         none = port=9\nlocal = host=localhost port={}\n",
        folder.display(),
        tcp.port
    );
    let pooler = start(databases, "");
    let own = open(&pooler.folder, 9);
    std::thread::spawn(move || {
        speak(Peer::accept(Raw::over(v6.accept().unwrap().0)).unwrap(), "v6");
    });
    for (listener, name) in [(hidden, "hidden"), (unix, "unix"), (own, "none")] {
        std::thread::spawn(move || {
            let stream = listener.accept().unwrap().0;
            speak(Peer::accept(Raw::through(stream)).unwrap(), name);
        });
    }
    for (database, port) in [("v6", v6_port), ("hidden", 7), ("unix", 8), ("none", 9)] {
        assert_eq!(pooler.client(database).value("select 1"), database);
        let shown = pooler.show("SERVERS", "port", ("database", database));
        assert_eq!(shown, [port.to_string()], "{database}");
    }
    assert_eq!(pooler.client("local").value("select 1"), "tcp");
}

#[test]
fn without_a_socket_folder_there_is_no_unix_socket_to_connect_to() {
    let pooler = start("shop = port=9\n".into(), "unix_socket_dir =\nclient_login_timeout = 1\n");
    let text = pooler.refusal("trusty", "shop", "");
    assert_eq!(text, "client_login_timeout (server down)");
    pooler.wait_lines(&[
        "ERROR unix socket dir not configured: shop",
        "LOG S shop/trusty closing because: cannot connect",
    ]);
}

#[test]
fn hosts_are_used_in_turn_or_stuck_to() {
    let (one, two) = (named("one"), named("two"));
    let empties =
        format!("empties = host=,127.0.0.1,,127.0.0.1, port=1,{},2,{},3\n", one.port, two.port);
    let databases = pair("turns", one.port, two.port, "")
        + &pair("stays", one.port, two.port, "load_balance_hosts=disable")
        + &empties;
    let pooler = start(databases, "");
    assert_eq!(spread(&pooler, "turns", 4), ["one", "two", "one", "two"]);
    assert_eq!(spread(&pooler, "empties", 3), ["one", "two", "one"]);
    assert_eq!(spread(&pooler, "stays", 3), ["one", "one", "one"]);
    let shown = |column| pooler.show("DATABASES", column, ("name", "turns"));
    assert_eq!(shown("port"), [one.port.to_string()]);
    assert_eq!(shown("load_balance_hosts"), ["round-robin"]);
}

#[test]
fn any_works_with_one_host_down_after_the_retry() {
    let (dead, two) = (DeadPort::new(), named("two"));
    let databases = pair("turns", dead.port, two.port, "")
        + &pair("stays", dead.port, two.port, "load_balance_hosts=disable");
    let pooler = start(databases, "server_login_retry = 1\n");
    for database in ["turns", "stays"] {
        let before = std::time::Instant::now();
        assert_eq!(pooler.client(database).value("select 1"), "two");
        assert!(before.elapsed() > std::time::Duration::from_millis(900), "not skipped");
    }
    assert_eq!(spread(&pooler, "stays", 3), ["two", "two", "two"]);
    assert_eq!(pooler.count("LOG S stays/trusty closing because: connect failed"), 1);
}

#[test]
fn list_of_ports_must_be_as_long_as_the_list_of_hosts() {
    let text = "[databases]\nshop = host=a,b,c port=1,2\n[pgbouncer]\n";
    let (status, log) = Pooler::run_to_end(&|_| text.to_owned());
    assert!(!status.success(), "{log}");
    assert!(log.contains("ERROR could not match 2 port numbers to 3 hosts"), "{log}");
}

#[test]
fn cancel_request_goes_to_the_host_of_its_query() {
    let script = |cancels: Arc<AtomicU32>| {
        move |mut peer: Peer| {
            if peer.hello.is_empty() {
                cancels.fetch_add(1, Ordering::Relaxed);
                return;
            }
            peer.welcome();
            peer.raw.rest();
        }
    };
    let counts = [(); 2].map(|()| Arc::new(AtomicU32::new(0)));
    let fakes = counts.clone().map(|count| Fake::start(script(count)));
    let databases = pair("shop", fakes[0].port, fakes[1].port, "pool_size=4");
    let pooler = start(databases, "");
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = pooler.client("shop");
        client.send(&query("select 1"));
        clients.push(client);
        wait_until("it runs", || pooler.pool("shop", "sv_active") == clients.len() as i64);
    }
    let got = || counts.clone().map(|count| count.load(Ordering::Relaxed));
    for (client, want) in [(0, [1, 0]), (0, [2, 0]), (1, [2, 1]), (1, [2, 2])] {
        let mut raw = pooler.tcp();
        raw.send(&clients[client].cancel_request());
        raw.rest();
        wait_until(&format!("{want:?} cancels, not {:?}", got()), || got() == want);
    }
}

#[test]
fn login_error_is_not_told_to_clients_that_wait_for_another_server() {
    let tries = AtomicU32::new(0);
    let fake = Fake::start(move |mut peer| {
        if tries.fetch_add(1, Ordering::Relaxed) == 0 {
            peer.welcome();
            while peer.raw.recv().is_some_and(|m| m.tag == b'Q') {
                peer.answer("up");
            }
            return;
        }
        peer.raw.send(&error(&[(b'S', "FATAL"), (b'C', "53300"), (b'M', "sorry, full")]));
    });
    let pooler = start(fake.database(), "pool_mode = session\nserver_reset_query =\n");
    let mut holder = pooler.client("fake");
    assert_eq!(holder.value("select 1"), "up");
    let mut waiter = pooler.waiter("fake", "select 2");
    pooler.wait_log("server login failed: FATAL sorry, full");
    assert_eq!(pooler.pool("fake", "cl_waiting"), 1);
    holder.bye();
    assert_eq!(tags(&waiter.until(b'Z')), "TDCZ");
}

#[test]
fn paused_clients_wait_although_the_last_login_failed() {
    let up = std::sync::atomic::AtomicBool::new(true);
    let up = Arc::new(up);
    let is_up = up.clone();
    let fake = Fake::start(move |mut peer| {
        if is_up.load(Ordering::Relaxed) {
            peer.welcome();
            peer.raw.rest();
        }
    });
    let pooler = start(fake.database(), "server_login_retry = 100\n");
    let mut clients: Vec<_> = (0..3).map(|_| pooler.client("fake")).collect();
    up.store(false, Ordering::Relaxed);
    pooler.command("RECONNECT");
    clients[0].send(&query("select 1"));
    pooler.wait_log("closing because: server conn crashed?");
    // It does not know any more what to welcome with: this one waits, too.
    let mut new = pooler.tcp();
    new.send(&startup(0, &[("user", "trusty"), ("database", "fake")]));
    clients[1].send(&query("select 1"));
    let text =
        "server login has been failing, cached error: server conn crashed? (server_login_retry)";
    assert_eq!(last_error(&clients[1].rest()).2, text);
    pooler.command("PAUSE fake");
    clients[2].send(&query("select 1"));
    wait_until("three wait", || pooler.pool("fake", "cl_waiting") == 3);
}

#[test]
fn clients_that_wait_are_told_that_the_pooler_can_not_log_in() {
    let fake = Fake::start(|mut peer| {
        peer.raw.send(&msg(b'R', b"\0\0\0\x0aSCRAM-FUTURE\0\0"));
        peer.raw.rest();
    });
    let pooler = start(fake.database(), "server_login_retry = 100\n");
    let text = "none of the server's SASL authentication mechanisms are supported";
    let told = pooler.refusal("trusty", "fake", "");
    assert_eq!(told, format!("server login failed: {text}"));
    pooler.wait_lines(&["LOG S fake/trusty closing because: failed to answer authreq"]);
}
