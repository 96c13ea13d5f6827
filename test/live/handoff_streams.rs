//! Physical replication from one of us to the next: the log goes on where it was, no byte is missing
//! and none comes twice.

use std::path::PathBuf;

use crate::replication::{connect, replicating, status, PHYSICAL};
use crate::replication_tools::{run, tool, Background};
use crate::rig::pooler::binary;
use crate::rig::postgres::primary;
use crate::rig::raw::Raw;
use crate::rig::scratch::scratch;
use crate::rig::wait_until;
use crate::rig::wire::{query, rows};

/// A slot that keeps the primary's log while it is to be compared.
struct Keeper(String);

impl Keeper {
    fn new() -> Keeper {
        let name = format!("keep{}", scratch().serial());
        let sql = format!("select pg_create_physical_replication_slot('{name}', true)");
        primary().value("postgres", &sql);
        Keeper(name)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        primary().psql("postgres", &format!("select pg_drop_replication_slot('{}')", self.0));
    }
}

/// The place in the log that PostgreSQL writes as two numbers.
fn place(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}

/// The folder of the primary's log.
fn log_folder() -> PathBuf {
    PathBuf::from(primary().value("postgres", "show data_directory")).join("pg_wal")
}

/// What the primary's files have from there on.
fn written(timeline: u32, from: u64, len: usize) -> Vec<u8> {
    let size: u64 = primary()
        .value("postgres", "select setting from pg_settings where name = 'wal_segment_size'")
        .parse()
        .unwrap();
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let at = from + bytes.len() as u64;
        let (of_file, per_high) = (at / size, (1 << 32) / size);
        let name = format!("{timeline:08X}{:08X}{:08X}", of_file / per_high, of_file % per_high);
        let file = std::fs::read(log_folder().join(name)).unwrap();
        bytes.extend_from_slice(&file[usize::try_from(at % size).unwrap()..]);
    }
    bytes.truncate(len);
    bytes
}

/// What a client that streams the log has of it.
struct Stream {
    client: Raw,
    from: u64,
    bytes: Vec<u8>,
}

impl Stream {
    fn end(&self) -> u64 {
        self.from + self.bytes.len() as u64
    }

    /// Hears one message: a piece that begins where the last one ended, or a sign of life.
    fn hear(&mut self) -> u8 {
        let data = self.client.recv().expect("the stream ended");
        assert_eq!(data.tag, b'd', "{data:?}");
        if data.body[0] == b'w' {
            let at = u64::from_be_bytes(data.body[1..9].try_into().unwrap());
            assert_eq!(at, self.end(), "a gap, or something twice");
            self.bytes.extend_from_slice(&data.body[25..]);
        }
        data.body[0]
    }

    fn hear_until(&mut self, place: u64) {
        while self.end() < place {
            self.hear();
        }
    }

    /// What it says is heard, too.
    fn is_answered(&mut self) {
        self.client.send(&status(true));
        while self.hear() != b'k' {}
    }
}

#[test]
fn a_walreceiver_gets_every_byte_of_the_log_once() {
    let (mut pooler, database) = replicating("");
    let _keeper = Keeper::new();
    let mut client = connect(&pooler, &database, &[PHYSICAL]).0;
    let system = rows(&client.query("IDENTIFY_SYSTEM")).remove(0);
    let (timeline, from) = (system[1].clone().unwrap(), system[2].clone().unwrap());
    pooler.replace(binary());
    client.send(&query(&format!("START_REPLICATION PHYSICAL {from} TIMELINE {timeline}")));
    client.until(b'W');
    let mut stream = Stream { client, from: place(&from), bytes: Vec::new() };
    primary().value(&database, "create table w (a text)");
    let write = || {
        let sql = "insert into w select repeat(md5(i::text), 30) from generate_series(1, 6000) i";
        primary().value(&database, sql);
        place(&primary().value(&database, "select pg_current_wal_flush_lsn()"))
    };
    // Nobody reads: all buffers are full, and a message ends anywhere.
    let end = write();
    for _ in 0..2 {
        pooler.replace(binary());
    }
    stream.hear_until(end);
    stream.is_answered();
    // Now everything is on its way while processes come and go.
    let end = std::thread::scope(|scope| {
        let writer = scope.spawn(|| [(); 4].map(|()| write())[3]);
        for _ in 0..4 {
            let some = stream.end() + 1_500_000;
            stream.hear_until(some);
            pooler.replace(binary());
        }
        writer.join().unwrap()
    });
    stream.hear_until(end);
    stream.is_answered();
    assert_eq!(pooler.show("CLIENTS", "replication", ("state", "active")), ["physical"]);
    let same = written(timeline.parse().unwrap(), stream.from, stream.bytes.len());
    assert!(stream.bytes == same, "the bytes are others");
    assert!(!pooler.log().contains("WARNING"), "{}", pooler.log());
}

#[test]
fn pg_receivewal_goes_on_with_the_same_walsender() {
    let (mut pooler, database) = replicating("");
    let _keeper = Keeper::new();
    let target = scratch().folder();
    let slot = format!("wal{}", scratch().serial());
    run(tool(&pooler, "pg_receivewal", &["--create-slot", "-S", &slot]));
    let at = target.display().to_string();
    let receiver = Background::start(tool(
        &pooler,
        "pg_receivewal",
        &["-D", &at, "-S", &slot, "--synchronous", "--no-loop", "-s", "1"],
    ));
    let sql = format!("select active_pid from pg_replication_slots where slot_name = '{slot}'");
    let walsender = || primary().value("postgres", &sql);
    wait_until("it streams", || !walsender().is_empty());
    let before = walsender();
    let segments = || -> Vec<String> {
        let files = std::fs::read_dir(&target).unwrap().flatten();
        let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.ends_with(".partial")).collect()
    };
    primary().value(&database, "create table w (a int)");
    for round in 1..4 {
        primary().value(&database, "insert into w select generate_series(1, 50000)");
        pooler.replace(binary());
        primary().value(&database, "select pg_switch_wal()");
        wait_until("a whole segment more is there", || segments().len() >= round);
    }
    assert_eq!(walsender(), before);
    receiver.interrupt();
    for name in segments() {
        let same = std::fs::read(target.join(&name)).unwrap()
            == std::fs::read(log_folder().join(&name)).unwrap();
        assert!(same, "{name}");
    }
    run(tool(&pooler, "pg_receivewal", &["--drop-slot", "-S", &slot]));
}
