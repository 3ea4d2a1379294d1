//! How latencies are counted on both sides of the wire: the buckets of a histogram, the same for everybody.

/// Buckets for each power of two: a bound is at most an eighth above what its bucket counts.
const STEPS: u64 = 1 << STEP_BITS;
const STEP_BITS: u32 = 3;

/// The bound of the last bucket but one, in powers of two of a nanosecond: 17 s. What takes longer is in the last.
const LAST_POWER: u32 = 34;

/// One of the [`LatencyBucket::COUNT`] buckets of a histogram. It ends with its bound, the next begins above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LatencyBucket(u16);

impl LatencyBucket {
    /// One for each nanosecond up to 8, then as many for each power of two, and the last.
    pub const COUNT: usize = LatencyBucket::LAST as usize + 1;

    #[expect(clippy::cast_possible_truncation, reason = "it is 256")]
    const LAST: u16 = ((LAST_POWER - STEP_BITS + 1) << STEP_BITS) as u16;

    /// The bucket that counts what took so many nanoseconds.
    pub const fn of(ns: u64) -> LatencyBucket {
        let below = ns.saturating_sub(1);
        let index = if below < STEPS {
            below
        } else {
            let power = below.ilog2() - STEP_BITS;
            ((power as u64) << STEP_BITS) + (below >> power)
        };
        if index < LatencyBucket::LAST as u64 {
            #[expect(clippy::cast_possible_truncation, reason = "it is less than the last")]
            LatencyBucket(index as u16)
        } else {
            LatencyBucket(LatencyBucket::LAST)
        }
    }

    /// The bucket that ends with this bound, if one does.
    pub fn ending_at(upper_ns: u64) -> Option<LatencyBucket> {
        Some(LatencyBucket::of(upper_ns)).filter(|bucket| bucket.upper_ns() == upper_ns)
    }

    /// Every bucket, ascending.
    pub fn all() -> impl Iterator<Item = LatencyBucket> + Clone {
        (0..=LatencyBucket::LAST).map(LatencyBucket)
    }

    /// Where it stands among all: less than [`LatencyBucket::COUNT`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The most nanoseconds that it counts; `u64::MAX` for the last.
    pub const fn upper_ns(self) -> u64 {
        if self.0 == LatencyBucket::LAST {
            return u64::MAX;
        }
        let index = self.0 as u64;
        match index >> STEP_BITS {
            0 => index + 1,
            power => ((index & (STEPS - 1)) + STEPS + 1) << (power - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bucket but the last.
    fn bounded() -> impl Iterator<Item = LatencyBucket> {
        LatencyBucket::all().take(LatencyBucket::COUNT - 1)
    }

    #[test]
    fn bounds_grow_and_each_belongs_to_the_bucket_that_it_ends() {
        for (bucket, index) in bounded().zip(0..) {
            assert_eq!(bucket.index(), index);
            assert_eq!(LatencyBucket::of(bucket.upper_ns()), bucket);
            assert_eq!(LatencyBucket::of(bucket.upper_ns() + 1).index(), index + 1);
        }
        assert_eq!(bounded().last().unwrap().upper_ns(), 1 << LAST_POWER);
        assert_eq!(LatencyBucket::of(u64::MAX), LatencyBucket::all().last().unwrap());
        assert_eq!(LatencyBucket::of(0), LatencyBucket::of(1));
    }

    #[test]
    fn a_bound_is_at_most_an_eighth_above_what_its_bucket_counts() {
        for (before, bucket) in bounded().zip(bounded().skip(1)).skip(7) {
            let (least, most) = (before.upper_ns() + 1, bucket.upper_ns());
            assert!(most - least <= least / 8, "{least} to {most}");
        }
    }

    /// Those who show fewer buckets lose nothing but detail.
    #[test]
    fn every_power_of_two_is_a_bound() {
        for power in 0..=LAST_POWER {
            assert!(LatencyBucket::ending_at(1 << power).is_some(), "2^{power}");
        }
    }

    #[test]
    fn what_ends_no_bucket_is_none() {
        for bucket in LatencyBucket::all() {
            assert_eq!(LatencyBucket::ending_at(bucket.upper_ns()), Some(bucket));
        }
        for between in [0, 17, 1001, (1 << LAST_POWER) + 1, u64::MAX - 1] {
            assert_eq!(LatencyBucket::ending_at(between), None, "{between}");
        }
    }
}
