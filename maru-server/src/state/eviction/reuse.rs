//! How soon what was asked for is asked for again, learnt from every ask, and what that makes an entry worth.
//!
//! Time is the number of keys asked for. It is cut into periods, and of each of the last periods it is known how many of
//! each class were asked for in it and wait to be asked for again. Together with how many came back, and at which age,
//! that gives for each class and age the chance to come back: a life table, in which those that still wait count for as
//! long as they have waited. Three things make few observations go far:
//!
//! - neighbouring ages count too, each step away by half as much;
//! - a class leans on the broader class that it is a part of, as if that had added [`SHARED`] observations to it;
//! - before anything is known the chance is the same for each doubling of the age, so what was asked for longest ago is
//!   worth the least.
//!
//! The worth is the best, over all times to go on waiting, of the chance to come back within that time divided by how long
//! the page is held for it. This is the index that Gittins showed to be the best rule for choosing among waiting things
//! that do not influence each other ("Bandit processes and dynamic allocation indices", 1979).

use super::class::{CLASSES, LEVELS};

/// Periods that are told apart.
const PERIODS: u32 = 256;
/// The shortest and the longest period: 2 to the power of so much, in asks.
const PERIOD_LOGS: [u32; 2] = [2, 12];
/// Periods in the lowest age. The doublings above it, up to all periods, have four ages each.
const PERIODS_IN_FIRST: u32 = 4;
/// Ages that are told apart.
const AGES: usize = 1 + 4 * (PERIODS / PERIODS_IN_FIRST).ilog2() as usize;
/// Where the quarters of a doubling begin, as a power of two is 2^31: at 2^31 times 1, 2^(1/4), 2^(1/2), 2^(3/4).
const MANTISSAS: [u32; 4] = [0x8000_0000, 0x9837_F052, 0xB504_F334, 0xD744_FCCB];
/// What the broader class says counts as much as this many observations of the class itself: some dozens of requests,
/// since what one request asks for comes back together.
const SHARED: f32 = 1000.0;
/// What is taken to be so before anything is known counts as much as this many observations.
const ASSUMED: f32 = 100.0;
/// That chance in the lowest age, which has several doublings in it, and in each of the others.
const ASSUMED_CHANCES: [f32; 2] = [0.3, 0.05];
/// Asks between two computations of what entries are worth.
const REFRESH: u32 = 1000;
/// Periods after which what was learnt counts half.
const HALF_LIFE: u32 = 16 * PERIODS;

/// By class and age.
type Table<T> = [[T; AGES]; CLASSES];

/// What was counted, and the worths that follow.
#[derive(Debug)]
pub(super) struct Reuse {
    now: u32,
    /// Of the asks in a period: a power of two, so that periods stay whole when the number of asks wraps.
    period_log: u32,
    /// By period, as a ring, and class: what was last asked for then.
    waiting: Box<[[u32; CLASSES]; PERIODS as usize]>,
    /// How often something was asked for again at an age.
    came_back: Box<Table<u32>>,
    /// By class: what was not asked for again within all periods.
    gone: [u32; CLASSES],
    worth: Box<Table<f32>>,
    /// Asks until the worths are computed anew.
    stale_in: u32,
    /// Periods until what was learnt is halved.
    halved_in: u32,
}

impl Reuse {
    /// Periods that suit so many entries.
    pub(super) fn new(max_entries: u32) -> Reuse {
        let [shortest, longest] = PERIOD_LOGS;
        let period_log = (max_entries / 21).clamp(1 << shortest, 1 << longest).next_power_of_two().ilog2();
        let mut reuse = Reuse {
            now: 0,
            period_log,
            waiting: Box::new([[0; CLASSES]; PERIODS as usize]),
            came_back: Box::new([[0; AGES]; CLASSES]),
            gone: [0; CLASSES],
            worth: Box::new([[0.0; AGES]; CLASSES]),
            stale_in: REFRESH,
            halved_in: HALF_LIFE,
        };
        reuse.compute();
        reuse
    }

    /// Asks in all periods: 12 to 24 for each entry.
    pub(super) fn span(&self) -> u32 {
        PERIODS << self.period_log
    }

    pub(super) fn now(&self) -> u32 {
        self.now
    }

    /// The age of what was last asked for then.
    pub(super) fn age(&self, last: u32) -> u32 {
        self.now.wrapping_sub(last)
    }

    /// Something is asked for that was of this class when it was last asked for. `false` where that is too long ago to
    /// be known.
    pub(super) fn again(&mut self, class: u8, last: u32) -> bool {
        let is_known = self.periods_since(last) < PERIODS;
        if is_known {
            let waiting = &mut self.waiting[self.place(last)][usize::from(class)];
            *waiting = waiting.saturating_sub(1);
            self.came_back[usize::from(class)][self.bucket(self.age(last))] += 1;
        }
        is_known
    }

    /// Something of this class is asked for; when.
    pub(super) fn asked(&mut self, class: u8) -> u32 {
        self.now = self.now.wrapping_add(1);
        let place = self.place(self.now);
        if self.now.trailing_zeros() >= self.period_log {
            self.begin_period(place);
        }
        self.waiting[place][usize::from(class)] += 1;
        self.stale_in = self.stale_in.saturating_sub(1);
        self.now
    }

    /// A new period takes the place of the oldest.
    fn begin_period(&mut self, place: usize) {
        let oldest = std::mem::replace(&mut self.waiting[place], [0; CLASSES]);
        self.gone.iter_mut().zip(oldest).for_each(|(gone, waiting)| *gone += waiting);
        self.halved_in -= 1;
        if self.halved_in == 0 {
            self.halved_in = HALF_LIFE;
            self.came_back.iter_mut().flatten().chain(&mut self.gone).for_each(|count| *count /= 2);
        }
    }

    /// What an entry of this class is worth that was last asked for then.
    pub(super) fn worth(&self, class: u8, last: u32) -> f32 {
        if self.periods_since(last) >= PERIODS {
            return 0.0;
        }
        self.worth[usize::from(class)][self.bucket(self.age(last))]
    }

    /// Computes the worths anew where they are old.
    pub(super) fn refresh(&mut self) {
        if self.stale_in == 0 {
            self.stale_in = REFRESH;
            self.compute();
        }
    }

    fn compute(&mut self) {
        let (mut back, mut there) = self.counted();
        back.iter_mut().chain(there.iter_mut()).for_each(smooth);
        // What all classes together say, then level by level what the parts of a class say beside it.
        let mut chance = [of_all(&back, &there); CLASSES];
        for parts in LEVELS {
            let size = CLASSES / parts;
            for first in (0..CLASSES).step_by(size) {
                let classes = first..first + size;
                let sum = |table: &Table<f32>, age: usize| {
                    table[classes.clone()].iter().map(|row| row[age]).sum::<f32>()
                };
                let broader = chance[first];
                let own: [f32; AGES] = std::array::from_fn(|age| {
                    (sum(&back, age) + SHARED * broader[age]) / (sum(&there, age) + SHARED)
                });
                chance[classes.clone()].fill(own);
            }
        }
        let lengths = std::array::from_fn(|age| (self.first_age(age + 1) - self.first_age(age)) as f32);
        for (worth, chance) in self.worth.iter_mut().zip(&chance) {
            *worth = std::array::from_fn(|age| best_ratio(chance, &lengths, age));
        }
    }

    /// What came back at each age, and what was there at its beginning: it came back at that age or later, or waits for
    /// so long or longer, or was given up.
    fn counted(&self) -> (Box<Table<f32>>, Box<Table<f32>>) {
        let mut waiting = Box::new([[0; AGES]; CLASSES]);
        for since in 0..PERIODS {
            let before = since << self.period_log;
            let of_this = self.now & ((1 << self.period_log) - 1);
            let age = self.bucket((before + of_this).saturating_sub(1 << (self.period_log - 1)));
            let place = self.place(self.now.wrapping_sub(before));
            for (row, count) in waiting.iter_mut().zip(self.waiting[place]) {
                row[age] += count;
            }
        }
        let mut back = Box::new([[0.0; AGES]; CLASSES]);
        let mut there = back.clone();
        for class in 0..CLASSES {
            let mut longer = self.gone[class];
            for age in (0..AGES).rev() {
                longer += self.came_back[class][age] + waiting[class][age];
                there[class][age] = longer as f32;
                back[class][age] = self.came_back[class][age] as f32;
            }
        }
        (back, there)
    }

    /// The age at which a bucket begins: 0, then as much as four periods, and four equal steps to each doubling.
    fn first_age(&self, bucket: usize) -> u32 {
        let Some(step) = bucket.checked_sub(1) else { return 0 };
        let mantissa = MANTISSAS[step % 4];
        let shift = u32::BITS - 1 - self.first_log() - u32::try_from(step / 4).expect("it is a small number");
        // Rounded up, as an age belongs to the bucket when it is no less.
        mantissa.div_ceil(1 << shift)
    }

    /// The bucket of an age.
    fn bucket(&self, age: u32) -> usize {
        let Some(doublings) = age.checked_ilog2().and_then(|log| log.checked_sub(self.first_log())) else {
            return 0;
        };
        let mantissa = age << age.leading_zeros();
        let quarter = MANTISSAS[1..].iter().filter(|least| mantissa >= **least).count();
        (1 + 4 * doublings as usize + quarter).min(AGES - 1)
    }

    /// The age at which the second bucket begins is 2 to the power of this.
    fn first_log(&self) -> u32 {
        self.period_log + PERIODS_IN_FIRST.ilog2()
    }

    /// Periods between one in which something was asked for and this one.
    fn periods_since(&self, last: u32) -> u32 {
        let period = |ask: u32| ask >> self.period_log;
        period(self.now).wrapping_sub(period(last)) & (u32::MAX >> self.period_log)
    }

    fn place(&self, ask: u32) -> usize {
        ((ask >> self.period_log) % PERIODS) as usize
    }
}

/// The best, over all ages to wait for, of the chance to come back by then to the time that passes, where `lengths` is how
/// long each age lasts.
fn best_ratio(chance: &[f32; AGES], lengths: &[f32; AGES], from: usize) -> f32 {
    let (mut left, mut back, mut held, mut best) = (1.0f32, 0.0f32, 0.0f32, 0.0f32);
    for (chance, length) in chance.iter().zip(lengths).skip(from) {
        let comes = left * chance;
        back += comes;
        held += length * (left - comes / 2.0);
        left -= comes;
        best = best.max(back / held);
    }
    best
}

/// Adds to each age what its neighbours say, each step away by half as much. The lowest age stays by itself: all that is
/// asked for in bursts is in it.
fn smooth(row: &mut [f32; AGES]) {
    let own = *row;
    let mut carried = 0.0;
    for age in 2..AGES {
        carried = (carried + own[age - 1]) / 2.0;
        row[age] += carried;
    }
    carried = 0.0;
    for age in (1..AGES - 1).rev() {
        carried = (carried + own[age + 1]) / 2.0;
        row[age] += carried;
    }
}

/// The chance to come back at each age, of all classes together.
fn of_all(back: &Table<f32>, there: &Table<f32>) -> [f32; AGES] {
    std::array::from_fn(|age| {
        let back = back.iter().map(|row| row[age]).sum::<f32>();
        let there = there.iter().map(|row| row[age]).sum::<f32>();
        (back + ASSUMED * ASSUMED_CHANCES[age.min(1)]) / (there + ASSUMED)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_age_is_in_the_bucket_that_begins_before_it() {
        for entries in [1, 1000, 50_000, 1 << 30] {
            let reuse = Reuse::new(entries);
            for age in (0..4000).chain([65_535, 65_536, reuse.span() - 1]).filter(|age| *age < reuse.span()) {
                let bucket = reuse.bucket(age);
                assert!(
                    reuse.first_age(bucket) <= age && age < reuse.first_age(bucket + 1),
                    "{age} is in {bucket}"
                );
            }
            assert_eq!(reuse.bucket(reuse.span() - 1), AGES - 1);
            assert_eq!(reuse.first_age(AGES), reuse.span());
        }
    }

    /// Asks for things of class 0 again after `after` asks, and for those of class 23 never.
    fn learnt(entries: u32, after: usize) -> Reuse {
        let mut reuse = Reuse::new(entries);
        let mut lasts = vec![None; after / 2];
        for round in 0..40 * after {
            let place = round % lasts.len();
            if let Some(last) = lasts[place] {
                assert!(reuse.again(0, last));
            }
            lasts[place] = Some(reuse.asked(0));
            reuse.asked(23);
        }
        reuse.compute();
        reuse
    }

    #[test]
    fn what_comes_back_is_worth_more_than_what_does_not() {
        let reuse = learnt(256, 1000);
        let last = reuse.now - 10;
        assert!(reuse.worth(0, last) > 5.0 * reuse.worth(23, last));
    }

    #[test]
    fn what_comes_back_after_a_time_is_worth_most_just_before_it() {
        let reuse = learnt(256, 1000);
        let worth = |age| reuse.worth(0, reuse.now - age);
        assert!(worth(900) > 2.0 * worth(10), "{} and {}", worth(900), worth(10));
        assert!(worth(900) > 1.5 * worth(2500), "its time has passed: {} and {}", worth(900), worth(2500));
    }

    #[test]
    fn without_evidence_what_was_asked_for_lately_is_worth_more() {
        let reuse = Reuse::new(1000);
        let worth = reuse.worth[0];
        assert!(worth.windows(2).all(|pair| pair[0] >= pair[1]), "{worth:?}");
        assert!(reuse.worth.iter().all(|other| *other == worth));
    }

    #[test]
    fn what_no_period_knows_any_more_is_worth_nothing() {
        let mut reuse = Reuse::new(1);
        let first = reuse.asked(7);
        for _ in 0..reuse.span() {
            reuse.asked(3);
        }
        assert_eq!(reuse.worth(7, first), 0.0);
        assert!(!reuse.again(7, first));
        assert_eq!(reuse.gone[7], 1);
    }

    #[test]
    fn counting_goes_on_when_the_number_of_asks_wraps() {
        let mut reuse = Reuse::new(64);
        reuse.now = u32::MAX - 20;
        let last = reuse.asked(0);
        (0..40).for_each(|_| _ = reuse.asked(1));
        assert!(reuse.again(0, last));
        assert_eq!(reuse.came_back[0][reuse.bucket(40)], 1);
        assert_eq!(reuse.waiting.iter().map(|row| row[0]).sum::<u32>(), 0);
    }

    #[test]
    fn what_was_learnt_long_ago_counts_half() {
        let mut reuse = learnt(1, 32);
        let before = reuse.came_back[0].iter().sum::<u32>();
        (0..HALF_LIFE << reuse.period_log).for_each(|_| _ = reuse.asked(1));
        let after = reuse.came_back[0].iter().sum::<u32>();
        assert!(after <= before / 2 && after > before / 2 - 30, "{before} and then {after}");
    }
}
