//! How long a client waits for answers by each way to a server: `round_trip ADDRESS… [--ca FILE]`, addresses in turns.
//!
//! A session stays at the address that it is told, also where the server is on the same host.

use std::time::{Duration, Instant};

use maru_client::{Config, Error, KeyDigest, MaruHandler};

/// Keys of a batch.
const BATCH: usize = 512;
/// Rounds, in each of which every address has its turn.
const ROUNDS: usize = 7;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut addresses, mut authority) = (Vec::new(), None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--ca" {
            authority = arguments.next();
        } else {
            addresses.push(argument);
        }
    }
    let handlers = addresses.iter().map(|address| {
        let config = Config::new().address(address.parse()?).stay_on_tcp(true).page_size(4096);
        let config = match &authority {
            Some(path) => config.tls_ca(path),
            None => config,
        };
        MaruHandler::connect(config)
    });
    let handlers = handlers.collect::<Result<Vec<_>, Error>>()?;
    let keys = (0..BATCH as u128).map(|n| KeyDigest::from_bytes(n.to_le_bytes())).collect::<Vec<_>>();
    for handler in &handlers {
        // Where several addresses are of one server, all but the first find them stored.
        let pages = (0..BATCH).map(|_| handler.alloc(64)).collect::<Result<Vec<_>, _>>()?;
        handler.batch_store(&keys, pages)?;
    }

    println!("{:40}{:>12}{:>12}{:>22}", "µs, medians of rounds", "exists", "p99", "acquire of 512 keys");
    let mut medians = vec![[(); 3].map(|()| Vec::new()); handlers.len()];
    for _ in 0..ROUNDS {
        for (handler, medians) in handlers.iter().zip(&mut medians) {
            let exists = times(20_000, || handler.exists(keys[7]).map(drop))?;
            let acquire = times(2_000, || handler.acquire(&keys).map(drop))?;
            for (figures, figure) in
                medians.iter_mut().zip([at(&exists, 50), at(&exists, 99), at(&acquire, 50)])
            {
                figures.push(figure);
            }
        }
    }
    for (address, mut medians) in addresses.iter().zip(medians) {
        medians.iter_mut().for_each(|figures| figures.sort());
        let [exists, p99, acquire] =
            medians.each_ref().map(|figures| figures[ROUNDS / 2].as_secs_f64() * 1e6);
        println!("{address:40}{exists:12.1}{p99:12.1}{acquire:22.1}");
    }
    Ok(())
}

/// How long something takes, each of so many times; sorted.
fn times(count: usize, mut one: impl FnMut() -> Result<(), Error>) -> Result<Vec<Duration>, Error> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        one()?;
        times.push(began.elapsed());
    }
    times.sort();
    Ok(times)
}

fn at(times: &[Duration], percent: usize) -> Duration {
    times[times.len() * percent / 100]
}
