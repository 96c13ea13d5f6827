//! The four tables of statistics beside each other, and averages (admin 3.13 and 5).

use std::time::{Duration, Instant};

use crate::rig::pooler::in_transactions;
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{query, rows, Msg};

/// The numbers of all rows, with their row's name.
fn numbers(answer: &[Msg]) -> Vec<(String, Vec<u64>)> {
    let number = |cell: &Option<String>| cell.as_ref().unwrap().parse().unwrap();
    let row =
        |row: Vec<Option<String>>| (row[0].clone().unwrap(), row[1..].iter().map(number).collect());
    rows(answer).into_iter().map(row).collect()
}

fn names(answer: &[Msg]) -> Vec<String> {
    answer[0].cells().into_iter().flatten().collect()
}

#[test]
fn four_tables_tell_the_same() {
    let (pooler, database) = in_transactions("");
    let other = postgres().new_database();
    for database in [&database, &other] {
        let mut client = pooler.client(database);
        (0..20).for_each(|_| drop(client.query("select 1")));
    }
    let mut console = pooler.console();
    let topics = ["STATS", "STATS_TOTALS", "STATS_AVERAGES", "TOTALS"];
    let all: Vec<u8> = topics.iter().flat_map(|topic| query(&format!("SHOW {topic}"))).collect();
    // All in one packet, so usually of one instant; averages change with time.
    wait_until("they agree", || {
        console.send(&all);
        let [stats, totals, averages, sums] = [(); 4].map(|()| console.until(b'Z'));
        let [stats, totals, averages] = [stats, totals, averages].map(|table| numbers(&table));
        let order: Vec<&str> = totals.iter().map(|(name, _)| &**name).collect();
        let mut sorted = vec!["pgbouncer", &database, &other];
        sorted.sort_unstable();
        assert_eq!(order, sorted, "every database with a pool, by name");
        let halves = |n: usize| [&totals[n].1[..], &averages[n].1[..]].concat();
        let agree = (0..3).all(|n| stats[n].1 == halves(n));
        let sums: Vec<u64> = numbers(&sums).into_iter().map(|(_, value)| value[0]).collect();
        let added = |n: usize| -> u64 { totals.iter().map(|(_, row)| row[n]).sum() };
        assert_eq!(sums[..12], (0..12).map(added).collect::<Vec<_>>());
        agree
    });
}

#[test]
fn names_and_types_are_those_of_the_specification() {
    let (pooler, _) = in_transactions("");
    let mut console = pooler.console();
    let base =
        "server_assignment_count xact_count query_count bytes_received bytes_sent xact_time \
                query_time wait_time";
    let prepared = "client_parse_count server_parse_count bind_count client_login_count";
    let with = |prefix: &str, names: &str| -> Vec<String> {
        names.split_whitespace().map(|name| format!("{prefix}{name}")).collect()
    };
    let short =
        |bytes: [&str; 2]| base.replace("bytes_received", bytes[0]).replace("bytes_sent", bytes[1]);
    let database = vec!["database".to_owned()];
    let total = format!("{} {prepared}", short(["received", "sent"]));
    let average = format!("{} {prepared}", short(["recv", "sent"]));
    let tables = [
        ("STATS", [database.clone(), with("total_", &total), with("avg_", &average)].concat()),
        ("STATS_TOTALS", [database.clone(), with("", base), with("", prepared)].concat()),
        ("STATS_AVERAGES", [database, with("", base), with("avg_", prepared)].concat()),
        ("TOTALS", vec!["name".to_owned(), "value".to_owned()]),
    ];
    for (topic, expected) in tables {
        let answer = console.query(&format!("SHOW {topic}"));
        assert_eq!(names(&answer), expected, "{topic}");
        let numeric = answer[0].body.windows(4).filter(|w| *w == 1700_u32.to_be_bytes()).count();
        assert_eq!(numeric, expected.len() - 1, "{topic}");
    }
    let rows: Vec<String> =
        numbers(&console.query("SHOW TOTALS")).into_iter().map(|r| r.0).collect();
    let prepared = "ps_client_parse_count ps_server_parse_count ps_bind_count client_login_count";
    let all = format!("{} {prepared}", short(["client_bytes", "server_bytes"]));
    assert_eq!(rows, [with("total_", &all), with("avg_", &all)].concat());
}

/// A column of a database's row in SHOW STATS.
fn figure(console: &mut Raw, database: &str, columns: &[&str]) -> Vec<u64> {
    let answer = console.query("SHOW STATS");
    let names = names(&answer);
    let all = numbers(&answer);
    let row = &all.iter().find(|(name, _)| name == database).unwrap().1;
    let at = |column: &&str| names.iter().position(|name| name == column).unwrap() - 1;
    columns.iter().map(|column| row[at(column)]).collect()
}

/// True if `amount` over a time between these two gives this average per second.
fn fits(average: u64, amount: u64, [least, most]: [Duration; 2]) -> bool {
    let per_second = |time: Duration| u128::from(amount) * 1_000_000 / time.as_micros();
    (per_second(most)..=per_second(least)).contains(&u128::from(average))
}

#[test]
fn averages_begin_one_second_before_the_start() {
    let launched = Instant::now();
    let (pooler, database) = in_transactions("default_pool_size = 1\n");
    let up = Instant::now();
    let mut client = pooler.client(&database);
    client.query("begin");
    let mut waiter = pooler.waiter(&database, "select 1");
    client.query("select pg_sleep(0.01); commit");
    waiter.until(b'Z');
    for _ in 0..500 {
        client.value("select 1");
    }
    let mut console = pooler.console();
    let earliest = up.elapsed();
    let columns = [
        ("total_query_count", "avg_query_count"),
        ("total_xact_count", "avg_xact_count"),
        ("total_server_assignment_count", "avg_server_assignment_count"),
        ("total_received", "avg_recv"),
        ("total_sent", "avg_sent"),
        ("total_client_login_count", "avg_client_login_count"),
        ("total_query_time", "avg_query_time"),
        ("total_xact_time", "avg_xact_time"),
        ("total_wait_time", "avg_wait_time"),
    ];
    let both: Vec<&str> = columns.iter().flat_map(|(total, average)| [*total, *average]).collect();
    let figures = figure(&mut console, &database, &both);
    let second = Duration::from_secs(1);
    let elapsed = [earliest + second, launched.elapsed() + second];
    for (n, (_, average)) in columns.iter().enumerate().take(6) {
        let (total, got) = (figures[2 * n], figures[2 * n + 1]);
        assert!(fits(got, total, elapsed), "{average}: {got} of {total} in {elapsed:?}");
    }
    let of = |total: usize, unit: usize| figures[2 * total] / figures[2 * unit];
    assert_eq!(figures[13], of(6, 0), "per query");
    assert_eq!(figures[15], of(7, 1), "per transaction");
    assert_eq!(figures[17], of(8, 2), "per assignment");
    assert!(figures[17] > 0, "{figures:?}");
}

#[test]
fn averages_look_back_over_one_to_two_periods() {
    let (pooler, database) = in_transactions("stats_period = 1\n");
    let mut client = pooler.client(&database);
    let mut console = pooler.console();
    let ticks = || pooler.log().matches("LOG stats: ").count();
    // Waits for a new period; the time in which it began.
    let next = || {
        let (count, mut last) = (ticks(), Instant::now());
        wait_until("a new period", || {
            let now = Instant::now();
            let begun = ticks() > count;
            if !begun {
                last = now;
            }
            begun
        });
        [last, Instant::now()]
    };
    let columns = ["avg_query_count", "avg_query_time", "total_query_count", "total_query_time"];
    let begin = loop {
        let begin = next();
        let (before, count) = (figure(&mut console, &database, &columns), ticks());
        (0..200).for_each(|_| drop(client.query("select 1")));
        if ticks() == count {
            break (begin, before);
        }
    };
    let ([earliest, latest], before) = begin;
    next();
    let margin = Duration::from_millis(100);
    let least = latest.elapsed().saturating_sub(margin);
    let count = ticks();
    let after = figure(&mut console, &database, &columns);
    let elapsed = [least, earliest.elapsed() + margin];
    assert_eq!(ticks(), count, "this machine is too slow");
    assert_eq!(after[2] - before[2], 200);
    assert!(fits(after[0], 200, elapsed), "{after:?} in {elapsed:?}");
    assert_eq!(after[1], (after[3] - before[3]) / 200, "of these 200 alone");
    next();
    let later = figure(&mut console, &database, &columns);
    assert_eq!(later[..2], [0, 0], "two periods ago");
    assert_eq!(later[2..], after[2..]);
}
