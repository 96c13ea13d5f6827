//! TLS of the load side's clients, and what only TLS is measured for: memory of idle clients and
//! how much a storm of handshakes disturbs everybody else.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mio::Registry;
use openssl::ssl::{
    ErrorCode, Ssl, SslContext, SslMethod, SslMode, SslSessionCacheMode, SslStream, SslVerifyMode,
};

use crate::fake::{sql, Replies};
use crate::histogram::Histogram;
use crate::link::{Family, Got, Link, Place};
use crate::load::{Load, Script};
use crate::measure::pss;
use crate::process::Auth;
use crate::report::{verdict, Spread};
use crate::rig::certs::certs;
use crate::rig::scratch::scratch;
use crate::rig::wire::{query, special, SSL_REQUEST};
use crate::run::{Options, Stand};
use crate::scenario::{Scenario, Target, Variant, Work, OURS, THEIRS};

/// Lines of an ini file with which clients may use TLS; `pair` is a certificate's name.
pub(crate) fn settings(pair: &str) -> String {
    let at = certs().display();
    format!(
        "client_tls_sslmode = prefer\nclient_tls_cert_file = {at}/{pair}.crt\n\
         client_tls_key_file = {at}/{pair}.key\nclient_tls_ca_file = {at}/ca.crt\n"
    )
}

/// Nothing is checked, nothing is resumed: the handshakes are whole, and cheap for the load side.
fn context() -> &'static SslContext {
    static CONTEXT: OnceLock<SslContext> = OnceLock::new();
    CONTEXT.get_or_init(|| {
        let mut context = SslContext::builder(SslMethod::tls_client()).unwrap();
        context.set_verify(SslVerifyMode::NONE);
        context.set_session_cache_mode(SslSessionCacheMode::OFF);
        context.set_mode(SslMode::ENABLE_PARTIAL_WRITE | SslMode::ACCEPT_MOVING_WRITE_BUFFER);
        context.set_read_ahead(true);
        context.build()
    })
}

/// A socket below OpenSSL.
#[derive(Debug)]
struct Below(Link);

impl Read for Below {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.0.recv(into) {
            Got::Bytes(count) => Ok(count),
            Got::Nothing => Err(ErrorKind::WouldBlock.into()),
            Got::End => Ok(0),
        }
    }
}

impl Write for Below {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.send(bytes) {
            0 => Err(ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
enum State {
    Plain(Link),
    /// Waits for the answer to SSLRequest.
    Asked(Link),
    Shaking(SslStream<Below>),
    Open(SslStream<Below>),
    Broken,
}

/// A client's connection, encrypted or not.
#[derive(Debug)]
pub(crate) struct Channel {
    state: State,
}

impl Channel {
    /// Over this link; an encrypted one asks for it at once.
    pub(crate) fn new(link: Link, family: Family) -> Self {
        let state = match family {
            Family::Tcp | Family::Unix => State::Plain(link),
            Family::Tls => {
                link.send(&special(SSL_REQUEST, &[]));
                State::Asked(link)
            }
        };
        Self { state }
    }

    /// Goes on with the handshake; true if it has just ended.
    pub(crate) fn shake(&mut self) -> bool {
        if let State::Asked(link) = &self.state {
            let mut answer = [0; 1];
            if link.recv(&mut answer) == Got::Nothing {
                return false;
            }
            assert_eq!(answer, *b"S");
            let State::Asked(link) = std::mem::replace(&mut self.state, State::Broken) else {
                return false;
            };
            let mut ssl = Ssl::new(context()).unwrap();
            ssl.set_connect_state();
            self.state = State::Shaking(SslStream::new(ssl, Below(link)).unwrap());
        }
        let State::Shaking(stream) = &mut self.state else {
            return false;
        };
        match stream.do_handshake() {
            Err(error) if error.code() == ErrorCode::WANT_READ => false,
            Err(error) => panic!("handshake: {error}"),
            Ok(()) => {
                if let State::Shaking(stream) = std::mem::replace(&mut self.state, State::Broken) {
                    self.state = State::Open(stream);
                }
                true
            }
        }
    }

    /// True as long as nothing may be sent.
    pub(crate) fn is_shaking(&self) -> bool {
        matches!(self.state, State::Asked(_) | State::Shaking(_))
    }

    /// As [`Link::recv`].
    pub(crate) fn recv(&mut self, room: &mut [u8]) -> Got {
        let stream = match &mut self.state {
            State::Plain(link) => return link.recv(room),
            State::Open(stream) => stream,
            _ => return Got::Nothing,
        };
        let mut count = 0;
        while count < room.len() {
            match stream.ssl_read(&mut room[count..]) {
                Ok(more) => count += more,
                Err(_) if count > 0 => break,
                Err(error) if error.code() == ErrorCode::WANT_READ => return Got::Nothing,
                Err(_) => return Got::End,
            }
        }
        Got::Bytes(count)
    }

    /// As [`Link::skip`].
    pub(crate) fn skip(&mut self, room: &mut [u8]) -> Got {
        match &self.state {
            State::Plain(link) => link.skip(room),
            _ => self.recv(room),
        }
    }

    /// As [`Link::send`].
    pub(crate) fn send(&mut self, bytes: &[u8]) -> usize {
        match &mut self.state {
            State::Plain(link) => link.send(bytes),
            State::Open(stream) => stream.ssl_write(bytes).unwrap_or(0),
            _ => 0,
        }
    }

    /// As [`Link::want_write`].
    pub(crate) fn want_write(&mut self, wanted: bool, registry: &Registry, token: usize) {
        match &mut self.state {
            State::Plain(link) | State::Asked(link) => link.want_write(wanted, registry, token),
            State::Shaking(stream) | State::Open(stream) => {
                stream.get_mut().0.want_write(wanted, registry, token);
            }
            State::Broken => {}
        }
    }
}

fn scenario(name: &str, work: Work, clients: usize, share: Option<f64>) -> Scenario {
    Scenario {
        name: name.to_owned(),
        work,
        family: Family::Tls,
        auth: Auth::Trust,
        clients,
        servers: clients.min(20),
        variants: vec![OURS, THEIRS],
        target: Target { cost: share, rate: None },
    }
}

/// Scenarios like the others, but through TLS.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("simple-tls", Work::Simple, 200, Some(0.95)),
        scenario("rows-tls", Work::Rows, 50, None),
        scenario("bulk-tls", Work::Bulk, 4, Some(0.60)),
        scenario("copy-in-tls", Work::CopyIn, 20, None),
        scenario("login-trust-tls", Work::Login, 10, Some(0.85)),
    ]
}

/// So many idle clients are compared with one.
const CLIENTS: usize = 2000;

/// Bytes per client that does nothing, then after each has run a query, then 10 s later.
fn memory_of(variant: &Variant) -> [f64; 3] {
    let replies = Rc::new(Replies::new());
    let mut stand = Stand::new(&scenario("", Work::Simple, 20, None), variant, &replies, &[]);
    let pid = stand.process.pid();
    stand.load.set_script(&Rc::new(Script::new([query(sql::ONE)], &replies)));
    stand.load.connect(1);
    stand.load.once(0..1);
    stand.load.run(Duration::from_secs(1));
    let first = pss(pid);
    let per_client = || (pss(pid) - first) / CLIENTS as f64;
    stand.load.connect(CLIENTS);
    stand.load.run(Duration::from_secs(2));
    let idle = per_client();
    stand.load.once(0..CLIENTS);
    stand.load.run(Duration::from_secs(1));
    let used = per_client();
    stand.load.run(Duration::from_secs(10));
    [idle, used, per_client()]
}

/// The most that an idle TLS client may take, as a share of PgBouncer's.
const MEMORY_SHARE: f64 = 0.65;

/// Measures both poolers, so many times; returns the table.
pub(crate) fn memory(rounds: usize, progress: &mut dyn FnMut(&str)) -> String {
    let mut all = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (variant, figures) in [OURS, THEIRS].iter().zip(&mut all) {
            progress(&format!("{CLIENTS} TLS clients of {}", variant.label));
            figures.push(memory_of(variant));
        }
    }
    let mut text = String::from(
        "| memory of a TLS client (Pss), bytes | pgturnstile | pgbouncer | share | target |\n\
         |---|---|---|---|---|\n",
    );
    let names = ["idle after its login", "after a query", "10 s after a query"];
    for (place, name) in names.into_iter().enumerate() {
        let [ours, theirs] = [0, 1].map(|i: usize| Spread::of(all[i].iter().map(|f| f[place])));
        let share = ours.median / theirs.median;
        let judged = verdict(Some(format!("<= {MEMORY_SHARE}")), || share <= MEMORY_SHARE);
        let (ours, theirs) = (ours.show(), theirs.show());
        writeln!(text, "| {name} | {ours} | {theirs} | {share:.2} | {judged} |").unwrap();
    }
    text
}

/// So many clients log in and out all the time.
const STORM: usize = 200;

/// What the one who only asks sees: without and in the storm; logins per second of the storm.
struct Stall {
    calm: Histogram,
    storm: Histogram,
    rate: f64,
}

fn stall_of(variant: &Variant, options: Options) -> Stall {
    let replies = Rc::new(Replies::new());
    let mut stand = Stand::new(&scenario("", Work::Simple, 20, None), variant, &replies, &[]);
    // Whoever asks does so in plain text.
    stand.load.set_family(Family::Tcp);
    let Place::Tcp(port) = stand.process.place(Family::Tcp) else {
        return Stall { calm: Histogram::default(), storm: Histogram::default(), rate: 0.0 };
    };
    stand.load.set_script(&Rc::new(Script::new([query(sql::ONE)], &replies)));
    stand.load.connect(1);
    let mut measured = |time: Duration| {
        stand.load.start(1);
        stand.load.run(Duration::from_millis(200));
        stand.load.take();
        stand.load.run(time);
        let (_, latency) = stand.load.take();
        stand.load.stop();
        latency
    };
    let calm = measured(options.time);
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    let crowd = std::thread::spawn(move || crowd(port, &told));
    std::thread::sleep(Duration::from_millis(500));
    let storm = measured(options.time);
    over.store(true, Ordering::Relaxed);
    Stall { calm, storm, rate: crowd.join().unwrap() }
}

/// Logs in and out until it is over; returns logins per second. Its thread gives way to that of the
/// one who asks, on whose core it is.
fn crowd(port: u16, over: &AtomicBool) -> f64 {
    let thread = nix::unistd::gettid();
    let _ =
        std::process::Command::new("renice").args(["-n", "19", "-p", &thread.to_string()]).output();
    let replies = Rc::new(Replies::new());
    let (mut load, _) = Load::new(Family::Tls, &scratch().folder(), &replies);
    load.set_pooler(Place::Tcp(port));
    load.connect(STORM);
    load.set_script(&Work::Login.script(&replies));
    load.start(STORM);
    let began = std::time::Instant::now();
    load.take();
    while !over.load(Ordering::Relaxed) {
        load.run(Duration::from_millis(50));
    }
    let (units, _) = load.take();
    units as f64 / began.elapsed().as_secs_f64()
}

/// Measures both poolers, so many times; returns the table.
pub(crate) fn stall(options: Options, progress: &mut dyn FnMut(&str)) -> String {
    let mut text = String::from(
        "| a query's latency, us | TLS logins/s | p50 | p99 | p99.9 | longest |\n\
         |---|---|---|---|---|---|\n",
    );
    for variant in [OURS, THEIRS] {
        let (mut calm, mut storm, mut rates) = (Histogram::default(), Histogram::default(), vec![]);
        for round in 1..=options.rounds {
            progress(&format!("round {round} of {}: {}", options.rounds, variant.label));
            let stall = stall_of(&variant, options);
            calm.merge(&stall.calm);
            storm.merge(&stall.storm);
            rates.push(stall.rate);
        }
        let rate = Spread::of(rates).show();
        let label = variant.label;
        for (what, rate, latency) in
            [("alone", "-", &calm), ("200 TLS clients log in and out", rate.as_str(), &storm)]
        {
            let [p50, p99, p999, longest] = [0.5, 0.99, 0.999, 1.0].map(|s| latency.percentile(s));
            writeln!(
                text,
                "| {label}, {what} | {rate} | {p50:.0} | {p99:.0} | {p999:.0} | {longest:.0} |"
            )
            .unwrap();
        }
    }
    text
}
