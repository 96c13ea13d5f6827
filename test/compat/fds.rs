//! SHOW FDS: rows, types, and what each receive brings.

use std::time::Duration;

use crate::rig::fds::Taker;
use crate::rig::pooler::Setup;
use crate::rig::postgres::postgres;
use crate::rig::wire::{tags, Msg};
use crate::transcript::{same, Transcript};

/// Numbers of descriptors and cancel keys differ per run, ports of clients too: what is compared of
/// a row is which row's descriptor `link` names, and whether there is a key.
fn row(msg: &Msg, fds: &[String]) -> String {
    let mut cells: Vec<String> =
        msg.cells().into_iter().map(|cell| cell.unwrap_or_else(|| "NULL".to_owned())).collect();
    cells[7] = match fds.iter().position(|fd| *fd == cells[7]) {
        Some(at) => format!("row {at}"),
        None => cells[7].clone(),
    };
    cells[0] = "fd".to_owned();
    if cells[1] == "client" && cells[4] != "unix" {
        cells[5] = "port".to_owned();
    }
    if cells[6] != "0" {
        cells[6] = "key".to_owned();
    }
    cells.join(" | ")
}

fn note(seen: &mut Transcript, msgs: &[Msg], port: u16) {
    let rows = msgs.iter().filter(|msg| msg.tag == b'D');
    let fds: Vec<String> = rows.map(|msg| msg.cells()[0].clone().unwrap()).collect();
    for msg in msgs {
        match msg.tag {
            b'D' => seen.note(&row(msg, &fds).replace(&port.to_string(), "PORT")),
            _ => seen.take(std::slice::from_ref(msg)),
        }
    }
}

/// A console command; the answer is all there when the first part of it is received.
fn ask(taker: &mut Taker, seen: &mut Transcript, sql: &str, port: u16) {
    taker.ask(sql);
    std::thread::sleep(Duration::from_millis(300));
    let mut msgs = Vec::new();
    for received in taker.answer() {
        let passed = received.passed.is_some();
        seen.note(&format!("{sql}: {}, descriptor: {passed}", tags(&received.msgs)));
        msgs.extend(received.msgs);
    }
    note(seen, &msgs, port);
}

#[test]
fn descriptors_for_a_successor() {
    let place =
        format!("host=127.0.0.1 port={} dbname={}", postgres().port, postgres().new_database());
    let unix = place.replace("127.0.0.1", postgres().folder.to_str().unwrap());
    let setup = Setup {
        databases: format!("shop = {place}\nkiosk = {place} user=trusty\nstall = {unix}\n"),
        settings: "pool_mode = transaction\n".to_owned(),
        users: "\"trusty\" \"\"\n\"postgres\" \"\"\n".to_owned(),
    };
    same(&setup, |pooler, seen| {
        let mut linked = pooler.holder("shop");
        seen.query(&mut linked, "set timezone = 'Asia/Tokyo'; set datestyle = 'German'");
        let mut raw = pooler.login("postgres", "kiosk", "").unwrap().0;
        seen.query(&mut raw, "select 1");
        let mut unix = pooler.unix().login("trusty", "stall", "").unwrap().0;
        seen.query(&mut unix, "begin");
        let _fresh = pooler.client("shop");
        let mut taker = Taker::own_user(pooler);
        let mut admin = pooler.console();
        for suspended in [false, true] {
            if suspended {
                ask(&mut taker, seen, "SUSPEND;", pooler.port);
            }
            ask(&mut taker, seen, "SHOW FDS;", pooler.port);
            note(seen, &admin.query("SHOW FDS;"), pooler.port);
        }
        ask(&mut taker, seen, "RESUME;", pooler.port);
        seen.query(&mut linked, "commit");
    });
}
