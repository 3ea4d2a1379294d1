//! Lists of which the server gives a bounded number of records at a time.

use crate::error::{ProtocolError, Result};

/// All records of a list. `next` asks for those behind a place, which `place` says of a record; the answer at the list's end has
/// none.
///
/// # Errors
/// Those of `next`, and [`ProtocolError::List`] where the list does not go on: it would have no end.
pub(crate) fn whole_list<T, P: Copy + Default + PartialOrd>(
    place: impl Fn(&T) -> P,
    next: impl Fn(P) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let (mut all, mut after) = (Vec::new(), P::default());
    loop {
        let records = next(after)?;
        let Some(last) = records.last().map(&place) else { return Ok(all) };
        if last <= after {
            return Err(ProtocolError::List.into());
        }
        after = last;
        all.extend(records);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_list_is_read_to_its_end() {
        let numbers = [2, 3, 5, 7, 11];
        let next = |after| Ok(numbers.into_iter().filter(|number| *number > after).take(2).collect());
        assert_eq!(whole_list(|number| *number, next).unwrap(), numbers);
    }

    #[test]
    fn a_list_that_does_not_go_on_is_an_error_not_a_loop() {
        for records in [vec![0], vec![3, 3], vec![5, 2]] {
            let list = whole_list(|number| *number, |_| Ok(records.clone()));
            assert!(matches!(list, Err(Error::Protocol(ProtocolError::List))), "{records:?}: {list:?}");
        }
    }
}
