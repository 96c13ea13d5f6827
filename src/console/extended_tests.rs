//! Tests of the extended protocol: packets in, packets out.

use super::fixture::Fixture;
use super::messages::*;

#[test]
fn a_show_has_the_bytes_of_the_protocol() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let packets = [
        parse("", "show timezone"),
        describe("S", ""),
        bind_as("", "", &[1]),
        describe("P", ""),
        execute(""),
        close("P", ""),
        close("S", "never made"),
        message(b'H', &[]),
        sync(),
    ];
    at.throw(boss, &packets.concat());
    let head = |format: u8| {
        let mut out = b"T\0\0\0\x21\0\x01timezone\0\0\0\0\0\0\0\0\0\0\x19\xff\xff".to_vec();
        out.extend(b"\xff\xff\xff\xff\0");
        out.push(format);
        out
    };
    let want = [
        b"1\0\0\0\x04t\0\0\0\x06\0\0".to_vec(),
        head(0),
        b"2\0\0\0\x04".to_vec(),
        head(1),
        b"D\0\0\0\x0d\0\x01\0\0\0\x03GMTC\0\0\0\x09SHOW\0".to_vec(),
        b"3\0\0\0\x043\0\0\0\x04Z\0\0\0\x05I".to_vec(),
    ];
    assert_eq!(at.bytes(boss), want.concat());
}

#[test]
fn every_kind_of_answer_has_its_packets() {
    for (sql, kinds) in [
        ("show version", "12TDCZ"),
        ("SELECT timezone;", "12TDCZ"),
        ("show help", "12nNCZ"),
        ("set datestyle = x", "12nNCZ"),
        ("set log_stats = 0", "12nCZ"),
        ("reconnect", "12nCZ"),
        ("pause one", "12nCZ"),
        ("pause", "12nCZ"),
        ("suspend", "12nCZ"),
        ("", "12nIZ"),
        (" ;\n", "12nIZ"),
        ("resume", "12nEZ"),
        ("set nothing = 1", "12nEZ"),
        ("disable", "12nEZ"),
    ] {
        let mut at = Fixture::new();
        let boss = at.console("boss");
        assert_eq!(answer(&mut at, boss, &[whole(sql)]).0, kinds, "{sql}");
        assert_eq!(answer(&mut at, boss, &[whole("show version")]).0, "12TDCZ", "{sql}");
    }
}

#[test]
fn what_is_no_command_is_refused_by_parse_in_the_words_of_the_simple_protocol() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let long = "x".repeat(16);
    for sql in ["hello", "show", "show x", "SELECT 1", "show state; show lists", "begin", &long] {
        let text = at.refusal(boss, sql);
        let (kinds, errors) = answer(&mut at, boss, &[whole(sql)]);
        assert_eq!((kinds.as_str(), errors), ("EZ", vec![format!("SERROR C08P01 M{text}")]));
    }
    for sql in ["reload x", "shutdown x", "-- x", "set \"\" = 1"] {
        let text = at.refusal(boss, sql);
        let (kinds, errors) = answer(&mut at, boss, &[parse("name", sql), sync()]);
        assert_eq!((kinds.as_str(), errors), ("EZ", vec![format!("SERROR C08P01 M{text}")]));
    }
    at.throw(boss, &parse("", &"-".repeat(451)));
    assert_eq!(at.taken(boss), [("E".into(), "SFATAL C08P01 Mfailure".into())]);
    assert!(at.is_closed(boss));
}

#[test]
fn rights_and_arguments_are_checked_by_execute_and_where_columns_are_asked_for() {
    let mut at = Fixture::new();
    let watcher = at.console("watcher");
    let no = vec!["SERROR C08P01 Madmin access needed".to_owned()];
    for (packets, kinds) in [
        (whole("reload"), "12nEZ"),
        (whole("pause nowhere"), "12nEZ"),
        (whole("set log_stats = 0"), "12nEZ"),
        (whole("show fds"), "12EZ"),
        ([parse("", "show fds"), describe("S", ""), sync()].concat(), "1EZ"),
        ([parse("", "show fds"), bind_as("", "", &[1, 1]), execute(""), sync()].concat(), "12EZ"),
    ] {
        assert_eq!(answer(&mut at, watcher, &[packets]), (kinds.into(), no.clone()));
    }
    assert_eq!(answer(&mut at, watcher, &[whole("show pools")]).0, "12TDCZ");
}

#[test]
fn errors_have_the_codes_and_texts_of_postgresql() {
    let long = "n".repeat(64);
    let value = message(b'B', &[b"\0s\0\0\0\0\x01\0\0\0\x01x\0\0"]);
    let null = message(b'B', &[b"\0s\0\0\0\0\x01\xff\xff\xff\xff\0\0"]);
    for (packets, want) in [
        (vec![bind("", "x")], "C26000 Mprepared statement \"x\" does not exist"),
        (vec![bind("", "")], "C26000 Munnamed prepared statement does not exist"),
        (vec![describe("S", "x")], "C26000 Mprepared statement \"x\" does not exist"),
        (vec![describe("S", "")], "C26000 Munnamed prepared statement does not exist"),
        (vec![describe("P", "x")], "C34000 Mportal \"x\" does not exist"),
        (vec![execute("x")], "C34000 Mportal \"x\" does not exist"),
        (vec![execute("")], "C34000 Mportal \"\" does not exist"),
        (vec![parse("s", "show lists")], "C42P05 Mprepared statement \"s\" already exists"),
        (vec![parse("s", "nonsense")], "C42P05 Mprepared statement \"s\" already exists"),
        (vec![bind("p", "s"), bind("p", "s")], "C42P03 Mcursor \"p\" already exists"),
        (vec![value], "C08P01 Mthe console takes no parameters"),
        (vec![null], "C08P01 Mthe console takes no parameters"),
        (
            vec![bind_as("", "s", &[0; 3])],
            "C08P01 Mbind message has 3 result formats but query has 2 columns",
        ),
        (vec![bind_as("", "s", &[2])], "C22023 Munsupported format code: 2"),
        (vec![bind_as("", "s", &[0, 0xffff])], "C22023 Munsupported format code: -1"),
        (
            vec![parse("", "resume one"), bind("", ""), execute("")],
            "C08P01 Mdatabase one is not paused",
        ),
        (
            vec![parse("", "reconnect"), bind("", ""), execute(""), execute("")],
            "C55000 Mportal \"\" cannot be run",
        ),
        (vec![message(b'P', &[b"no end"])], "C08P01 Minvalid message format"),
        (vec![describe("X", "")], "C08P01 Minvalid DESCRIBE message subtype 88"),
        (vec![close("X", "")], "C08P01 Minvalid CLOSE message subtype 88"),
    ] {
        let mut at = Fixture::new();
        let boss = at.console("boss");
        assert_eq!(answer(&mut at, boss, &[parse("s", "show state"), sync()]).0, "1Z");
        // Nothing behind the error is done or answered before Sync, a simple query neither.
        let rest = [describe("S", "s"), query("show version"), command("pause")].concat();
        let (kinds, errors) = answer(&mut at, boss, &[packets.concat(), rest]);
        assert!(kinds.ends_with('E'), "{want}: {kinds}");
        assert_eq!(errors, [format!("SERROR {want}")]);
        assert_eq!(answer(&mut at, boss, &[message(b'F', &[]), sync()]).0, "Z", "{want}");
        assert_eq!(answer(&mut at, boss, &[query("show version")]).0, "TDCZ", "{want}");
        assert_eq!(at.show(boss, "show state").column("value"), ["yes", "no", "no"]);
    }
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let text = format!("SERROR C42622 Mname \"{}...\" is too long", &long[..63]);
    let packets = [parse(&long, "show lists"), sync()];
    assert_eq!(answer(&mut at, boss, &packets), ("EZ".into(), vec![text.clone()]));
    let packets = [parse("", "show lists"), bind(&long, ""), sync()];
    assert_eq!(answer(&mut at, boss, &packets), ("1EZ".into(), vec![text]));
}

#[test]
fn errors_are_logged_as_those_of_simple_queries() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.log();
    at.throw(boss, &[execute("x"), sync()].concat());
    let text = "portal \"x\" does not exist";
    let log = at.log();
    assert_eq!((log.len(), &*log[0]), (2, &*format!("Error {text}")));
    assert!(log[1].starts_with("Warning C-0x") && log[1].ends_with(&format!(" error: {text}")));
}

#[test]
fn names_live_as_long_as_in_postgresql() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let mut kinds = |packets: &[Vec<u8>]| answer(&mut at, boss, packets).0;
    let version = || parse("v", "show version");
    assert_eq!(kinds(&[version(), bind("p", "v"), sync(), execute("p"), sync()]), "12ZEZ");
    assert_eq!(kinds(&[bind("p", "v"), execute("p"), sync()]), "2DCZ", "the statement has stayed");
    assert_eq!(kinds(&[bind("", "v"), bind("", "v"), execute(""), sync()]), "22DCZ");
    assert_eq!(kinds(&[bind("p", "v"), close("P", "p"), bind("p", "v"), sync()]), "232Z");
    assert_eq!(kinds(&[parse("", "show lists"), parse("", "show state"), sync()]), "11Z");
    assert_eq!(kinds(&[bind("", ""), execute(""), sync()]), "2DDDCZ", "the later one counts");
    assert_eq!(kinds(&[parse("", "show lists"), parse("", "nonsense"), sync()]), "1EZ");
    assert_eq!(kinds(&[bind("", ""), sync()]), "EZ", "the failed one has removed it");
    assert_eq!(kinds(&[parse("", "show lists"), query("show version"), bind("", "")]), "1TDCZE");
    assert_eq!(kinds(&[sync(), bind("p", "v"), query("show version"), execute("p")]), "Z2TDCZE");
    assert_eq!(kinds(&[sync(), bind("p", "v"), close("S", "v"), execute("p"), sync()]), "Z23EZ");
    assert_eq!(kinds(&[bind("p", "v"), sync(), version(), bind("p", "v"), sync()]), "EZ12Z");
}

#[test]
fn a_statement_is_run_afresh_by_each_portal() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.throw(boss, &[parse("s", "show state"), sync()].concat());
    let run = [bind("", "s"), execute(""), sync()].concat();
    at.throw(boss, &run);
    let before = at.bytes(boss);
    at.tag(boss, "pause");
    at.throw(boss, &run);
    assert_ne!(at.bytes(boss), before);
}

#[test]
fn rows_come_in_portions() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let mut kinds = |packets: &[Vec<u8>]| answer(&mut at, boss, packets).0;
    let some = |most| execute_some("", most);
    let begin = || [parse("", "show state"), bind("", "")].concat();
    assert_eq!(kinds(&[begin(), some(2), some(2), some(2), sync()]), "12DDsDCCZ");
    assert_eq!(kinds(&[begin(), some(3), some(3), sync()]), "12DDDsCZ");
    assert_eq!(kinds(&[begin(), some(4), sync()]), "12DDDCZ");
    assert_eq!(kinds(&[begin(), some(1), some(0), sync()]), "12DsDDCZ");
    assert_eq!(kinds(&[begin(), some(1), sync(), some(1), sync()]), "12DsZEZ");
    let two = [bind("a", ""), execute_some("a", 1), bind("b", ""), execute_some("b", 2)];
    let rest = [execute("b"), describe("P", "a"), execute("a"), sync()];
    let all = [vec![parse("", "show state")], two.to_vec(), rest.to_vec()].concat();
    assert_eq!(kinds(&all), "12Ds2DDsDCTDDCZ");
}

#[test]
fn rows_that_are_kept_have_a_bound() {
    let (mut at, boss, server) = with_busy_server();
    at.client("two", "alice");
    let other = at.serve();
    let long = [&b"application_name\0"[..], &[b'x'; 60_000], b"\0"].concat();
    for server in [server, other] {
        at.say(server, b'S', &long);
    }
    at.throw(boss, &parse("s", "show servers"));
    assert_eq!(at.kinds(boss), "1");
    let one = |n: usize| [bind(&n.to_string(), "s"), execute_some(&n.to_string(), 1)].concat();
    // Each keeps the second row.
    let kept = (1..).take_while(|n| answer(&mut at, boss, &[one(*n)]).0 == "2Ds").count();
    assert_eq!(kept, 16 * 1024 * 1024 / 60_000 - 1, "a row has some more bytes");
    assert_eq!(answer(&mut at, boss, &[query("show version"), sync()]).0, "Z");
    assert_eq!(answer(&mut at, boss, &[one(1), one(2)]).0, "2Ds2Ds", "Sync has ended them");
    let full = answer(&mut at, boss, &[sync(), (1..=kept + 1).flat_map(one).collect()]);
    let text = "SERROR C53400 Mtoo many rows of open portals".to_owned();
    assert_eq!((full.0.len(), full.1), (1 + 3 * kept + 4, vec![text]));
}

/// A value in binary, read back as text.
fn decoded(oid: u32, bytes: &[u8]) -> String {
    match oid {
        23 => i32::from_be_bytes(bytes.try_into().unwrap()).to_string(),
        1700 => {
            let words: Vec<u16> =
                bytes.chunks(2).map(|two| u16::from_be_bytes(two.try_into().unwrap())).collect();
            let mut sum = 0_u128;
            for at in 0..=words[1] {
                let digit = words[4..].get(usize::from(at)).copied().unwrap_or(0);
                sum = sum * 10_000 + u128::from(digit);
            }
            assert_eq!((words.len(), words[2], words[3]), (4 + usize::from(words[0]), 0, 0));
            sum.to_string()
        }
        _ => String::from_utf8(bytes.to_vec()).unwrap(),
    }
}

#[test]
fn binary_values_are_those_of_the_text_form() {
    let (mut at, boss, _) = with_busy_server();
    let topics = "pools clients servers databases users lists stats stats_totals stats_averages \
                  totals config version state timezone";
    for topic in topics.split_whitespace() {
        let sql = format!("show {topic}");
        let text = at.show(boss, &sql);
        let oids: Vec<u32> =
            text.columns.iter().map(|c| c.split(' ').nth(1).unwrap().parse().unwrap()).collect();
        at.throw(boss, &[parse("", &sql), bind_as("", "", &[1]), execute(""), sync()].concat());
        let packets = at.raw(boss);
        let rows = packets.iter().filter(|(kind, _)| *kind == b'D').map(|(_, body)| {
            let mut reader = crate::wire::Reader::new(body);
            assert_eq!(usize::from(reader.u16().unwrap()), oids.len());
            let cell = |oid: &u32| match reader.u32().unwrap() {
                u32::MAX => "NULL".to_owned(),
                len => decoded(*oid, reader.bytes(len as usize).unwrap()),
            };
            oids.iter().map(cell).collect::<Vec<String>>()
        });
        let rows: Vec<_> = rows.collect();
        assert_eq!(rows, text.rows, "{topic}");
        assert!(!rows.is_empty(), "{topic}");
    }
}

#[test]
fn simple_replies_are_the_same_bytes_among_extended_ones() {
    for sql in ["show state", "show help", "reconnect", "nonsense", "", "set log_stats=1", "pause"]
    {
        let mut at = Fixture::new();
        let boss = at.console("boss");
        at.run(boss, sql);
        let alone = at.bytes(boss);
        let mut at = Fixture::new();
        let boss = at.console("boss");
        at.throw(boss, &[parse("a", "show state"), bind("", "a"), query(sql), sync()].concat());
        let among = [b"1\0\0\0\x042\0\0\0\x04", &alone[..], b"Z\0\0\0\x05I"].concat();
        assert_eq!(at.bytes(boss), among, "{sql}");
        at.throw(boss, &[query("set nothing=1"), execute("x"), sync()].concat());
        at.bytes(boss);
        at.run(boss, "resume");
        at.bytes(boss);
        at.run(boss, sql);
        assert_eq!(at.bytes(boss), alone, "{sql}");
    }
}

#[test]
fn the_first_command_counts() {
    let mut at = Fixture::new();
    let counts = |at: &mut Fixture| {
        let watcher = at.console("watcher");
        let table = at.show(watcher, "show stats_totals");
        let is_it = |row: &&Vec<String>| row[0] == "pgbouncer";
        let row = table.rows.iter().find(is_it).unwrap();
        (row[2].parse::<u32>().unwrap(), row[3].parse::<u32>().unwrap())
    };
    let boss = at.console("boss");
    assert_eq!(counts(&mut at), (1, 1));
    at.throw(boss, &[parse("", "show lists"), sync()].concat());
    assert_eq!(counts(&mut at), (2, 2));
    at.throw(boss, &[whole("show lists"), whole("show lists"), query("show lists")].concat());
    assert_eq!(counts(&mut at), (4, 4));
}

#[test]
fn without_simple_queries_the_extended_ones_remain() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.core.change_settings(|settings| settings.assign("disable_pqexec", "1", true).is_ok());
    assert_eq!(answer(&mut at, boss, &[whole("show lists")]).0.replace('D', ""), "12TCZ");
    let (kinds, errors) = answer(&mut at, boss, &[whole("show version"), query("show version")]);
    assert_eq!((kinds.as_str(), &*errors[0]), ("12TDCZE", "SFATAL C08P01 MPQexec disallowed"));
    assert!(at.is_closed(boss));
}

#[test]
fn a_function_call_is_refused_when_its_turn_comes() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let (kinds, errors) = answer(&mut at, boss, &[command("reconnect"), message(b'F', &[])]);
    assert_eq!(kinds, "12CEZE");
    let text = "SERROR C08P01 Munsupported packet type for admin console: 70";
    assert_eq!(errors, [text, "SFATAL C08P01 Mbad packet"]);
    assert!(at.is_closed(boss));
}

/// Pseudo-random numbers below a bound.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % bound
    }
}

#[test]
fn any_packets_are_answered_as_the_protocol_says() {
    let words = [
        parse("", "show state"),
        parse("a", "show lists"),
        parse("b", "reconnect"),
        parse("a", ""),
        bind("", ""),
        bind_as("p", "a", &[0, 1]),
        bind("", "b"),
        describe("S", "a"),
        describe("P", ""),
        execute(""),
        execute_some("p", 3),
        close("S", "a"),
        close("P", "p"),
        query("show timezone"),
        query("nonsense"),
        sync(),
        sync(),
    ];
    let mut dice = Dice(7);
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let (mut failed, mut done) = (false, String::new());
    for _ in 0..20_000 {
        let mut packet = words[dice.below(words.len())].clone();
        let is_query = packet[0] == b'Q';
        if !is_query && packet.len() > 5 && dice.below(4) == 0 {
            let place = 5 + dice.below(packet.len() - 5);
            packet[place] = [0, 1, 0xff, b'x'][dice.below(4)];
        }
        at.throw(boss, &packet);
        let kinds = at.kinds(boss);
        match packet[0] {
            b'S' => assert_eq!(kinds, "Z"),
            _ if failed => assert_eq!(kinds, ""),
            b'Q' => assert!(["TDCZ", "EZ"].contains(&&*kinds), "{kinds}"),
            _ => assert!(!kinds.is_empty() && !kinds.contains('Z'), "{kinds}"),
        }
        failed = packet[0] != b'S' && (failed || !is_query && kinds.contains('E'));
        done.extend(kinds.chars().filter(|kind| !done.contains(*kind)).collect::<Vec<_>>());
    }
    for kind in "123tTnDCsIEZ".chars() {
        assert!(done.contains(kind), "{kind} never came");
    }
}
