//! Packets of 100 MB pass through small buffers (pooling 5.1).

use tokio_postgres::types::ToSql;

use crate::drivers::{connect, in_time};
use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;

const HUNDRED_MB: usize = 100_000_000;
const LIMIT_KB: u64 = 60_000;

fn small_buffers() -> (Pooler, String) {
    let settings = "pool_mode = transaction\npkt_buf = 2048\n";
    (Pooler::start(&Setup::trust(settings)), postgres().new_database())
}

#[tokio::test]
async fn parameter_of_100_mb_is_streamed() {
    let (pooler, database) = small_buffers();
    let client = connect(&pooler.dsn("trusty", &database)).await;
    let big = "x".repeat(HUNDRED_MB);
    let values: [&(dyn ToSql + Sync); 1] = [&big];
    let answer = client.query_one("select octet_length($1::text)", &values);
    let row = in_time(answer).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), i32::try_from(HUNDRED_MB).unwrap());
    let peak = pooler.peak_memory_kb();
    assert!(peak < LIMIT_KB, "{peak} kB for a streamed parameter");
}

#[tokio::test]
async fn row_of_100_mb_is_streamed() {
    let (pooler, database) = small_buffers();
    let client = connect(&pooler.dsn("trusty", &database)).await;
    let answer = client.query_one("select repeat('x', 100000000)", &[]);
    let row = in_time(answer).await.unwrap();
    let text: &str = row.get(0);
    assert!(text.len() == HUNDRED_MB && text.bytes().all(|b| b == b'x'));
    let peak = pooler.peak_memory_kb();
    assert!(peak < LIMIT_KB, "{peak} kB for a streamed row");
}

/// A client that does not read must slow its server down instead of filling the pooler.
#[test]
fn result_that_nobody_reads_is_not_collected() {
    let (mut pooler, database) = small_buffers();
    let mut lazy = pooler.client(&database);
    let sql = "select repeat('x', 10000) from generate_series(1, 20000)";
    lazy.send(&crate::rig::wire::query(sql));
    for _ in 0..20 {
        pooler.assert_serves(&database);
    }
    let peak = pooler.peak_memory_kb();
    assert!(peak < LIMIT_KB, "{peak} kB for a result nobody reads");
    let answer = lazy.until(b'Z');
    assert_eq!(answer.len(), 1 + 20_000 + 2, "and all of it comes once the client reads");
}
