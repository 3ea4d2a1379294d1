//! Histograms as bytes that lose nothing, for serde: the V2 form of HdrHistogram.

use hdrhistogram::serialization::{Deserializer as FromBytes, Serializer as _, V2Serializer};
use serde::{Deserialize, Deserializer, Serializer, de, ser};

use super::recorder::Times;

pub(super) fn serialize<S: Serializer>(times: &Times, serializer: S) -> Result<S::Ok, S::Error> {
    let mut bytes = Vec::new();
    V2Serializer::new().serialize(times, &mut bytes).map_err(ser::Error::custom)?;
    serializer.serialize_bytes(&bytes)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Times, D::Error> {
    let bytes = Vec::<u8>::deserialize(deserializer)?;
    FromBytes::new().deserialize(&mut bytes.as_slice()).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use crate::measure::recorder::Sample;

    #[test]
    fn a_sample_comes_back_as_it_was() {
        let mut sample = Sample::new();
        (0..50).for_each(|power| sample.latency += 1 << power);
        sample.latency.record_n(123_456, u64::MAX >> 20).unwrap();
        sample.unsent = 7;
        let json = serde_json::to_string(&sample).unwrap();
        let back = serde_json::from_str::<Sample>(&json).unwrap();
        assert_eq!((&back.latency, back.unsent), (&sample.latency, 7));
        assert_eq!((back.latency.max(), back.latency.min()), (sample.latency.max(), sample.latency.min()));
        assert!(back.service.is_empty());
    }
}
