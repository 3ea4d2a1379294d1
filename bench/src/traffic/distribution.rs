//! How often each key is asked for.

use std::fmt;
use std::str::FromStr;

use crate::mix::mix;

/// The skew of a Zipf distribution that nobody gives another.
const DEFAULT_THETA: f64 = 0.99;

/// Written as `uniform`, `zipf` or `zipf:0.8`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Distribution {
    /// All keys alike.
    Uniform,
    /// The n-th most popular key n^theta times less often than the first.
    Zipf(f64),
}

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Distribution, String> {
        match text.split_once(':') {
            None if text == "uniform" => Ok(Distribution::Uniform),
            None if text == "zipf" => Ok(Distribution::Zipf(DEFAULT_THETA)),
            Some(("zipf", theta)) => {
                let theta = theta.parse::<f64>().ok().filter(|theta| *theta > 0.0 && *theta < 1.0);
                theta.map(Distribution::Zipf).ok_or_else(|| "theta lies between 0 and 1".to_owned())
            }
            _ => Err("a distribution is uniform, zipf or zipf:THETA".to_owned()),
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Distribution::Uniform => f.write_str("uniform"),
            Distribution::Zipf(theta) => write!(f, "zipf:{theta}"),
        }
    }
}

/// An endless sequence of keys' numbers, the same for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    keys: u64,
    random: Random,
    zipf: Option<Zipf>,
}

/// The constants of the method of Gray et al., "Quickly generating billion-record synthetic databases" (1994).
#[derive(Clone, Copy, Debug)]
struct Zipf {
    theta: f64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    fn new(theta: f64, keys: u64) -> Zipf {
        let zeta = |keys: u64| (1..=keys).map(|n| (n as f64).powf(-theta)).sum::<f64>();
        let (two, all) = (zeta(2.min(keys)), zeta(keys));
        let eta = (1.0 - (2.0 / keys as f64).powf(1.0 - theta)) / (1.0 - two / all);
        Zipf { theta, alpha: 1.0 / (1.0 - theta), zeta: all, eta }
    }

    /// The rank that a number in 0..1 falls on.
    fn rank(&self, share: f64, keys: u64) -> u64 {
        let at = share * self.zeta;
        if at < 1.0 {
            return 0;
        }
        if at < 1.0 + 0.5_f64.powf(self.theta) {
            return 1;
        }
        let rank = keys as f64 * (self.eta * share - self.eta + 1.0).powf(self.alpha);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the keys")]
        (rank as u64).min(keys - 1)
    }
}

impl Sampler {
    /// A sequence over `keys` keys, at least one.
    pub(crate) fn new(distribution: Distribution, keys: u64, seed: u64) -> Sampler {
        let zipf = match distribution {
            Distribution::Zipf(theta) if keys > 2 => Some(Zipf::new(theta, keys)),
            Distribution::Uniform | Distribution::Zipf(_) => None,
        };
        Sampler { keys: keys.max(1), random: Random::new(seed), zipf }
    }

    /// The next key.
    pub(crate) fn next(&mut self) -> usize {
        let key = match self.zipf {
            None => self.random.next() % self.keys,
            Some(zipf) => {
                // 53 bits are what a float holds exactly.
                let share = (self.random.next() >> 11) as f64 / (1_u64 << 53) as f64;
                zipf.rank(share, self.keys)
            }
        };
        usize::try_from(key).expect("keys are counted in a usize")
    }
}

/// Random numbers that are the same in every run.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(mix(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(distribution: Distribution, keys: usize, draws: usize) -> Vec<f64> {
        let mut sampler = Sampler::new(distribution, keys as u64, 1);
        let mut counts = vec![0.0; keys];
        (0..draws).for_each(|_| counts[sampler.next()] += 1.0);
        counts
    }

    #[test]
    fn distributions_are_read_as_they_are_shown() {
        for text in ["uniform", "zipf:0.8"] {
            assert_eq!(text.parse::<Distribution>().unwrap().to_string(), text);
        }
        assert_eq!("zipf".parse::<Distribution>().unwrap(), Distribution::Zipf(0.99));
        for bad in ["", "zipf:", "zipf:0", "zipf:1", "zipf:x", "normal", "uniform:1"] {
            assert!(bad.parse::<Distribution>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn uniform_asks_for_all_keys_alike() {
        let counts = counts(Distribution::Uniform, 100, 200_000);
        assert!(counts.iter().all(|count| (1700.0..2300.0).contains(count)), "{counts:?}");
    }

    #[test]
    fn zipf_asks_for_the_first_keys_as_often_as_the_law_says() {
        let (keys, draws, theta) = (1000, 400_000, 0.8);
        let counts = counts(Distribution::Zipf(theta), keys, draws);
        let zeta = (1..=keys).map(|n| (n as f64).powf(-theta)).sum::<f64>();
        for rank in [1, 2] {
            let expected = draws as f64 * f64::powf(rank as f64, -theta) / zeta;
            let ratio = counts[rank - 1] / expected;
            assert!((0.95..1.05).contains(&ratio), "rank {rank}: {ratio}");
        }
        // The method is exact for the first two ranks and close for all others together.
        let head = counts[..100].iter().sum::<f64>() / draws as f64;
        let expected = (1..=100).map(|n| (n as f64).powf(-theta)).sum::<f64>() / zeta;
        assert!((head / expected - 1.0).abs() < 0.05, "{head} for {expected}");
    }

    #[test]
    fn few_keys_are_enough() {
        for keys in [1, 2, 3] {
            let mut sampler = Sampler::new(Distribution::Zipf(0.5), keys, 7);
            assert!((0..1000).all(|_| (sampler.next() as u64) < keys));
        }
    }
}
