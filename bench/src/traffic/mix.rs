//! Which operations are asked for, and in what shares.

use std::fmt;
use std::str::FromStr;

/// An operation of the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    /// Ask whether keys exist.
    Exists,
    /// Ask where chunks are.
    Lookup,
    /// Pin chunks, and unpin them without waiting for an answer to that.
    Pin,
    /// Look up and pin a prefix in one step, and unpin it without waiting for an answer to that.
    Acquire,
    /// Make chunks visible.
    Register,
    /// Delete chunks.
    Delete,
    /// Ask for a sign of life, which touches no state.
    Heartbeat,
}

impl Operation {
    const ALL: [(Operation, &str); 7] = [
        (Operation::Exists, "exists"),
        (Operation::Lookup, "lookup"),
        (Operation::Pin, "pin"),
        (Operation::Acquire, "acquire"),
        (Operation::Register, "register"),
        (Operation::Delete, "delete"),
        (Operation::Heartbeat, "heartbeat"),
    ];

    fn named(text: &str) -> Result<Operation, String> {
        let found = Operation::ALL.iter().find(|(_, name)| *name == text);
        found.map(|(operation, _)| *operation).ok_or_else(|| {
            let names = Operation::ALL.map(|(_, name)| name).join(", ");
            format!("{text:?} is no operation; there are {names}")
        })
    }

    /// Whether it takes pages or entries of the connection's own.
    pub(crate) fn uses_stock(self) -> bool {
        matches!(self, Operation::Register | Operation::Delete)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Operation::ALL.iter().find(|(operation, _)| operation == self);
        f.write_str(named.expect("every operation has a name").1)
    }
}

/// Operations with their weights, written as `exists` or `mix:exists=80,acquire=20`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mix(Vec<(Operation, u64)>);

impl From<Operation> for Mix {
    fn from(operation: Operation) -> Mix {
        Mix(vec![(operation, 1)])
    }
}

impl Mix {
    /// The operation that a random number chooses.
    pub(crate) fn choose(&self, random: u64) -> Operation {
        let total = self.0.iter().map(|(_, weight)| weight).sum::<u64>();
        let mut at = random % total;
        for &(operation, weight) in &self.0 {
            if at < weight {
                return operation;
            }
            at -= weight;
        }
        unreachable!("the number is less than the sum of the weights")
    }

    /// Whether any of the operations is like this.
    pub(crate) fn any(&self, is: impl Fn(Operation) -> bool) -> bool {
        self.0.iter().any(|(operation, _)| is(*operation))
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        let Some(parts) = text.strip_prefix("mix:") else {
            return Operation::named(text).map(Mix::from);
        };
        let mut mix = Vec::new();
        for part in parts.split(',') {
            let (name, weight) =
                part.split_once('=').ok_or("a mix is written like mix:exists=80,acquire=20")?;
            let operation = Operation::named(name)?;
            let weight = weight.parse::<u32>().ok().filter(|weight| *weight > 0);
            let weight =
                weight.ok_or_else(|| format!("the weight of {name} has to be a whole number from 1"))?;
            if mix.iter().any(|(other, _)| *other == operation) {
                return Err(format!("{name} is named twice"));
            }
            mix.push((operation, u64::from(weight)));
        }
        Ok(Mix(mix))
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [(operation, _)] = self.0.as_slice() {
            return operation.fmt(f);
        }
        for (n, (operation, weight)) in self.0.iter().enumerate() {
            write!(f, "{}{operation}={weight}", if n == 0 { "mix:" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_operation_or_a_mix_of_them() {
        for text in ["exists", "heartbeat", "mix:exists=80,acquire=20"] {
            assert_eq!(text.parse::<Mix>().unwrap().to_string(), text);
        }
        for bad in ["", "exist", "mix:", "mix:exists", "mix:exists=0", "mix:exists=1,exists=2", "mix:pin=-1"]
        {
            assert!(bad.parse::<Mix>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn weights_are_shares() {
        let mix = "mix:exists=3,acquire=1".parse::<Mix>().unwrap();
        let chosen =
            (0..8).map(|n| mix.choose(n)).filter(|operation| *operation == Operation::Exists).count();
        assert_eq!(chosen, 6);
        assert!(mix.any(|operation| operation == Operation::Acquire) && !mix.any(Operation::uses_stock));
    }
}
