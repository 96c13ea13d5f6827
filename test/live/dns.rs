//! Host names: what is asked, when, and what follows from the answers (pooling 10.3).

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::rig::dns::{ips, Dns, Reply, A, AAAA, NXDOMAIN, SERVFAIL, SOA};
use crate::rig::fake::Fake;
use crate::rig::pooler::{Pooler, Setup};
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{query, rows, startup};

/// Servers at several addresses with one port; each answers every query with its address, `sleep`
/// when it has been canceled.
struct Farm {
    port: u16,
    canceled: Canceled,
    _servers: Vec<Fake>,
}

/// Where cancel requests have arrived.
type Canceled = Arc<Mutex<Vec<IpAddr>>>;

fn server(ip: IpAddr, port: u16, canceled: &Canceled) -> std::io::Result<Fake> {
    let canceled = canceled.clone();
    let open = |stream| Some(Raw::over(stream));
    Fake::start_at(SocketAddr::new(ip, port), open, move |mut peer| {
        if peer.hello.is_empty() {
            return canceled.lock().unwrap().push(ip);
        }
        peer.welcome();
        while let Some(msg) = peer.raw.recv().filter(|m| m.tag == b'Q') {
            if msg.body == b"sleep\0" {
                wait_until("it is canceled", || canceled.lock().unwrap().contains(&ip));
            }
            peer.answer(&ip.to_string());
        }
    })
}

impl Farm {
    fn start(addrs: &[&str]) -> Self {
        for _ in 0..100 {
            let canceled = Canceled::default();
            let first = server(ips(&addrs[..1])[0], 0, &canceled).unwrap();
            let port = first.port;
            let others = ips(&addrs[1..]).into_iter().map(|ip| server(ip, port, &canceled));
            if let Ok(servers) = others.collect::<std::io::Result<Vec<_>>>() {
                let servers = servers.into_iter().chain([first]).collect();
                return Self { port, canceled, _servers: servers };
            }
        }
        panic!("no port is free at all of {addrs:?}");
    }
}

/// A pooler in session mode that asks this nameserver, with these hosts as databases `db0`, `db1`...
fn start(dns: &Dns, port: u16, hosts: &[&str], settings: &str) -> (Pooler, Setup) {
    let mut setup =
        Setup::trust(&format!("server_login_retry = 0.2\n{}{settings}", dns.settings()));
    let entry = |(n, host): (usize, &&str)| format!("db{n} = host={host} port={port} dbname=x\n");
    setup.databases = hosts.iter().enumerate().map(entry).collect();
    setup.users.push_str("\"first\" \"\"\n\"second\" \"\"\n\"third\" \"\"\n");
    (Pooler::start(&setup), setup)
}

/// The column of SHOW DNS_HOSTS for a name.
fn shown(pooler: &Pooler, name: &str, column: &str) -> String {
    pooler.show("DNS_HOSTS", column, ("hostname", name)).concat()
}

/// A line of SHOW LISTS.
fn listed(pooler: &Pooler, list: &str) -> String {
    pooler.show("LISTS", "items", ("list", list)).concat()
}

#[test]
fn both_families_are_asked_for_and_taken_in_turn() {
    let all = ["127.0.0.1", "127.0.0.2", "::1"];
    let (dns, farm) = (Dns::start(), Farm::start(&all));
    dns.point("a.zone.test", &all);
    let (pooler, _) = start(&dns, farm.port, &["a.zone.test"], "");
    let mut clients: Vec<_> = (0..6).map(|_| pooler.client("db0")).collect();
    let seen: Vec<_> = clients.iter_mut().map(|client| client.value("where")).collect();
    assert_eq!(seen[..3], seen[3..]);
    let mut different = seen[..3].to_vec();
    different.sort();
    assert_eq!(different, all);
    let shape =
        |ip: &String| if ip.contains(':') { format!("[{ip}]:0") } else { format!("{ip}:0") };
    let want: Vec<_> = seen[..3].iter().map(shape).collect();
    assert_eq!(shown(&pooler, "a.zone.test", "addrs"), want.join(","));
    assert_eq!(dns.asked("a.zone.test", A), (1, 0));
    assert_eq!(dns.asked("a.zone.test", AAAA), (1, 0));
    assert_eq!([listed(&pooler, "dns_names"), listed(&pooler, "dns_zones")], ["1", "1"]);
}

#[test]
fn cancel_requests_go_to_the_address_of_their_query() {
    let all = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
    let (dns, farm) = (Dns::start(), Farm::start(&all));
    dns.point("a.test", &all);
    let (pooler, _) = start(&dns, farm.port, &["a.test"], "");
    let mut clients: Vec<_> = (0..3).map(|_| pooler.client("db0")).collect();
    let seen: Vec<_> = clients.iter_mut().map(|client| client.value("where")).collect();
    for which in [1, 1, 0, 2] {
        clients[which].send(&query("sleep"));
        let mut at = pooler.tcp();
        at.send(&clients[which].cancel_request());
        assert_eq!(at.rest(), []);
        assert!(clients[which].until(b'Z').len() > 3);
        let canceled = std::mem::take(&mut *farm.canceled.lock().unwrap());
        assert_eq!(canceled.iter().map(IpAddr::to_string).collect::<Vec<_>>(), [&*seen[which]]);
    }
}

#[test]
fn our_time_to_live_counts_and_each_look_up_begins_with_the_first_address() {
    let (dns, farm) = (Dns::start(), Farm::start(&["127.0.0.1", "127.0.0.2"]));
    for name in ["a.test", "b.test"] {
        dns.point(name, &["127.0.0.2", "127.0.0.1"]);
    }
    let (pooler, setup) = start(&dns, farm.port, &["a.test", "b.test"], "dns_max_ttl = 1\n");
    let first = pooler.client("db0").value("where");
    assert_eq!(shown(&pooler, "a.test", "ttl"), "0", "whole seconds that are left");
    wait_until("it has expired", || {
        pooler.command("RECONNECT");
        pooler.client("db0").value("where");
        dns.asked("a.test", A).0 == 2
    });
    assert_eq!(pooler.client("db0").value("where"), first);
    // A reload changes it for the next look-up.
    let longer = setup.settings.replace("dns_max_ttl = 1", "dns_max_ttl = 1000");
    pooler.rewrite(&Setup { settings: longer, ..setup.clone() });
    pooler.command("RELOAD");
    pooler.client("db1").value("where");
    let ttl: u64 = shown(&pooler, "b.test", "ttl").parse().unwrap();
    assert!((900..1000).contains(&ttl), "{ttl}");
    let none = setup.settings.replace("dns_max_ttl = 1", "dns_max_ttl = 0");
    pooler.rewrite(&Setup { settings: none, ..setup });
    pooler.command("RELOAD");
    assert!(shown(&pooler, "b.test", "ttl").parse::<u64>().unwrap() > 800);
    pooler.command("RECONNECT");
    // What was found before lives a second.
    std::thread::sleep(Duration::from_secs(1));
    let before = dns.asked("a.test", A).0;
    let mut clients: Vec<_> = (0..4).map(|_| pooler.client("db0")).collect();
    let seen: Vec<_> = clients.iter_mut().map(|client| client.value("where")).collect();
    assert_eq!(seen, vec![first; 4], "each connection has its own look-up");
    assert!(dns.asked("a.test", A).0 >= before + 3);
}

#[test]
fn failure_of_each_kind_is_remembered_and_overcome() {
    let farm = Farm::start(&["127.0.0.1"]);
    for (kind, reply) in [
        ("no such name", Reply::Code(NXDOMAIN)),
        ("failure", Reply::Code(SERVFAIL)),
        ("no addresses", Reply::Addresses(vec![])),
        ("nonsense", Reply::Nonsense),
        ("silence", Reply::Silence),
    ] {
        let dns = Dns::start();
        dns.set("a.test", reply);
        let (pooler, setup) = start(&dns, farm.port, &["a.test"], "dns_nxdomain_ttl = 1000\n");
        let mut client = pooler.tcp();
        let hello = [("user", "trusty"), ("database", "db0")];
        client.send(&startup(0, &hello));
        pooler.wait_lines(&["WARNING DNS lookup failed: a.test: result=0"]);
        let asked = dns.asked("a.test", A);
        wait_until(kind, || {
            pooler.count("LOG S db0/trusty closing because: server DNS lookup failed") >= 3
        });
        assert_eq!(pooler.count("WARNING DNS lookup failed: a.test: result=0"), 1, "{kind}");
        assert_eq!(dns.asked("a.test", A), asked, "{kind}: it was asked again");
        assert_eq!(shown(&pooler, "a.test", "addrs"), "", "{kind}");
        assert!(shown(&pooler, "a.test", "ttl").parse::<u64>().unwrap() > 900, "{kind}");
        let cause = pooler.show("WAITING", "detail", ("database", "db0")).concat();
        assert!(cause.contains("server DNS lookup failed"), "{kind}: {cause}");
        // The zone check is one way to try again before that; another name is the other.
        let shorter = setup.settings.replace("dns_nxdomain_ttl = 1000", "dns_nxdomain_ttl = 0.3");
        let databases = setup.databases.replace("a.test", "b.test");
        dns.set("b.test", Reply::Code(SERVFAIL));
        pooler.rewrite(&Setup { settings: shorter, databases, ..setup });
        pooler.command("RELOAD");
        wait_until(kind, || pooler.count("WARNING DNS lookup failed: b.test: result=0") >= 2);
        dns.point("b.test", &["127.0.0.1"]);
        assert!(client.until(b'Z').len() > 3, "{kind}: the client that waited is let in");
        assert_eq!(client.value("where"), "127.0.0.1", "{kind}");
    }
}

#[test]
fn slow_nameserver_holds_up_only_who_waits_for_it() {
    let (dns, farm) = (Dns::start(), Farm::start(&["127.0.0.1"]));
    dns.set("slow.test", Reply::Late(Duration::from_secs(2), ips(&["127.0.0.1"])));
    dns.set("never.test", Reply::Silence);
    let hosts = ["slow.test", "127.0.0.1", "never.test"];
    // It is asked again after one second, and then has two more.
    let patience = dns.settings_with("retrans:1000 retry:3 timeout:1 attempts:3");
    let settings = format!("{patience}server_connect_timeout = 4\n");
    let (pooler, _) = start(&dns, farm.port, &hosts, &settings);
    let hello = |name| startup(0, &[("user", "trusty"), ("database", name)]);
    let (mut slow, mut never) = (pooler.tcp(), pooler.tcp());
    slow.send(&hello("db0"));
    never.send(&hello("db2"));
    wait_until("they wait", || listed(&pooler, "dns_queries") == "2");
    assert_eq!(pooler.show("WAITING", "reason", ("database", "db0")), ["dns"]);
    let mut fast = pooler.client("db1");
    for _ in 0..100 {
        assert_eq!(fast.value("where"), "127.0.0.1");
    }
    assert_eq!(listed(&pooler, "dns_queries"), "2", "the answers are still to come");
    // Shutting the door on one who waits for a name harms nobody.
    drop(never);
    assert!(slow.until(b'Z').len() > 3);
    assert_eq!(slow.value("where"), "127.0.0.1");
    assert!(dns.asked("slow.test", A).0 > 1, "asked again, the first answer counts");
    pooler.wait_lines(&["LOG S db2/trusty closing because: connect timeout"]);
}

#[test]
fn answers_that_are_cut_off_lost_or_roundabout_arrive() {
    let (dns, farm) = (Dns::start(), Farm::start(&["127.0.0.1"]));
    let many: Vec<IpAddr> = (1..=200).map(|last| IpAddr::from([127, 0, 0, last])).collect();
    dns.set("cut.test", Reply::Cut(many));
    dns.set("lossy.test", Reply::Lossy(1, ips(&["127.0.0.1"])));
    dns.set("alias.test", Reply::Alias(ips(&["127.0.0.1"])));
    dns.point("short.search.test", &["127.0.0.1"]);
    let hosts = ["cut.test", "lossy.test", "alias.test", "short", "localhost"];
    let (pooler, _) = start(&dns, farm.port, &hosts, "");
    for (number, host) in hosts.iter().enumerate() {
        let mut client = pooler.client(&format!("db{number}"));
        assert_eq!(client.value("where"), "127.0.0.1", "{host}");
    }
    assert_eq!(dns.asked("cut.test", A), (1, 1));
    assert_eq!(shown(&pooler, "cut.test", "addrs").split(',').count(), 200);
    assert_eq!(dns.asked("lossy.test", A).0, 2);
    assert_eq!(dns.asked("short.search.test", A).0, 1);
    assert_eq!(dns.asked("localhost", A).0, 0, "the hosts file has it");
    assert_eq!(listed(&pooler, "dns_queries"), "0");
}

#[test]
fn connections_to_an_address_that_the_name_has_no_more_are_closed() {
    let (dns, farm) = (Dns::start(), Farm::start(&["127.0.0.1", "127.0.0.2"]));
    dns.point("a.test", &["127.0.0.1"]);
    let hosts = ["a.test", "a.test,a.test", "127.0.0.1", "a.test pool_mode=session"];
    let settings = "dns_max_ttl = 0.2\ndns_nxdomain_ttl = 0.2\npool_mode = transaction\n";
    let (pooler, _) = start(&dns, farm.port, &hosts, settings);
    let mut clients: Vec<_> = (0..4).map(|n| pooler.client(&format!("db{n}"))).collect();
    for client in &mut clients {
        assert_eq!(client.value("where"), "127.0.0.1");
    }
    // Another user's pool opens a connection, which needs a new look-up.
    let look_up = |user: &str| {
        std::thread::sleep(Duration::from_millis(300));
        pooler.login(user, "db0", "").unwrap().0.value("where")
    };
    let closed = |n, why| pooler.count(&format!("LOG S db{n}/trusty closing because: {why}"));
    let changed = "database configuration changed";
    dns.point("a.test", &["127.0.0.1", "127.0.0.2"]);
    look_up("first");
    dns.set("a.test", Reply::Code(SERVFAIL));
    std::thread::sleep(Duration::from_millis(300));
    let mut failing = pooler.tcp();
    failing.send(&startup(0, &[("user", "second"), ("database", "db0")]));
    pooler.wait_lines(&["WARNING DNS lookup failed: a.test: result=0"]);
    std::thread::sleep(Duration::from_millis(400));
    assert!(!pooler.log().contains(changed), "new addresses and failures alone close nothing");
    dns.point("a.test", &["127.0.0.2"]);
    assert!(failing.until(b'Z').len() > 3);
    assert_eq!(look_up("third"), "127.0.0.2");
    wait_until("the idle server is closed", || closed(0, changed) == 1);
    assert_eq!(clients[0].value("where"), "127.0.0.2");
    assert_eq!(clients[1].value("where"), "127.0.0.1", "a list of hosts is another matter");
    assert_eq!(clients[2].value("where"), "127.0.0.1");
    assert_eq!(clients[3].value("where"), "127.0.0.1", "in use");
    assert_eq!(pooler.show("SERVERS", "close_needed", ("database", "db3")), ["1"]);
    clients.remove(3).bye();
    wait_until("the server in use is closed when it is left", || closed(3, "close_needed") == 1);
    assert_eq!([closed(1, changed), closed(2, changed)], [0, 0]);
}

#[test]
fn zones_are_watched_and_a_new_serial_moves_everybody() {
    let (dns, farm) = (Dns::start(), Farm::start(&["127.0.0.1", "127.0.0.2"]));
    dns.point("a.zone.test", &["127.0.0.1"]);
    dns.point("b.ZONE.test", &["127.0.0.1"]);
    dns.point("c.other.test", &["127.0.0.1"]);
    dns.serial("zone.test", 4_294_967_290);
    let hosts = ["a.zone.test", "b.ZONE.test", "c.other.test"];
    let settings = "dns_max_ttl = 1000\npool_mode = transaction\n";
    let (pooler, mut setup) = start(&dns, farm.port, &hosts, settings);
    let mut clients: Vec<_> = (0..3).map(|n| pooler.client(&format!("db{n}"))).collect();
    for client in &mut clients {
        assert_eq!(client.value("where"), "127.0.0.1");
    }
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(dns.asked("zone.test", SOA), (0, 0), "it is switched off");
    setup.settings.push_str("dns_zone_check_period = 0.3\n");
    pooler.rewrite(&setup);
    pooler.command("RELOAD");
    pooler.wait_lines(&["LOG zone 'zone.test' serial changed: old=0 new=4294967290"]);
    wait_until("names are looked up again", || dns.asked("a.zone.test", A).0 == 2);
    wait_until("whatever their case", || dns.asked("b.ZONE.test", A).0 == 2);
    wait_until("the zone without an answer is asked, too", || dns.asked("other.test", SOA).0 > 0);
    assert_eq!(dns.asked("c.other.test", A).0, 1);
    let zones = rows(&pooler.command("SHOW DNS_ZONES")).concat();
    let zones: Vec<_> = zones.into_iter().flatten().collect();
    assert_eq!(zones, ["other.test", "0", "1", "zone.test", "4294967290", "2"]);

    dns.point("a.zone.test", &["127.0.0.2"]);
    dns.serial("zone.test", 4_294_967_289);
    let asked = dns.asked("zone.test", SOA).0;
    wait_until("a smaller serial is seen", || dns.asked("zone.test", SOA).0 >= asked + 2);
    assert_eq!(dns.asked("a.zone.test", A).0, 2);
    dns.serial("zone.test", 5);
    pooler.wait_lines(&[
        "LOG zone 'zone.test' serial changed: old=4294967290 new=5",
        "LOG S db0/trusty closing because: database configuration changed",
    ]);
    assert_eq!(clients[0].value("where"), "127.0.0.2");
    assert_eq!(clients[1].value("where"), "127.0.0.1");
    assert_eq!(pooler.count("LOG S db1/trusty closing because: database configuration changed"), 0);
    assert_eq!(pooler.show("DNS_ZONES", "serial", ("zonename", "zone.test")), ["5"]);
}

#[test]
fn start_without_resolver_configuration_goes_on() {
    let mut setup = Setup::trust("resolv_conf = /nonexistent/resolv.conf\n");
    setup.databases.push_str("byname = host=localhost port=1\n");
    let mut pooler = Pooler::start(&setup);
    pooler.assert_serves("template1");
    assert!(pooler.log().contains(", adns: c-ares 1."), "{}", pooler.log());
}

#[test]
fn process_ends_while_names_are_being_looked_up() {
    let dns = Dns::start();
    dns.set("never.test", Reply::Silence);
    let (mut pooler, _) = start(&dns, 1, &["never.test"], "");
    let mut client = pooler.tcp();
    let hello = [("user", "trusty"), ("database", "db0")];
    client.send(&startup(0, &hello));
    wait_until("it waits", || listed(&pooler, "dns_queries") == "1");
    pooler.signal(nix::sys::signal::Signal::SIGQUIT);
    assert!(pooler.wait_exit().code().is_some());
}
