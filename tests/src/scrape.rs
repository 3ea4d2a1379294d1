//! What a scraper of the server's metrics sees.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use crate::PATIENCE;

/// The answer to `GET PATH`, with its head.
///
/// # Panics
/// When there is none.
pub fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("metrics are to be had");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers in UTF-8");
    answer
}

/// One series and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// All metrics of a server at one moment.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// The series, in the order of the text.
    pub samples: Vec<Sample>,
    /// The type of each metric.
    pub types: BTreeMap<String, String>,
}

impl Scrape {
    /// Fetches and reads them.
    ///
    /// # Panics
    /// When the text is none of the exposition format.
    pub fn of(address: &str) -> Scrape {
        let answer = get(address, "/metrics");
        let (head, text) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
        Scrape::read(text)
    }

    fn read(text: &str) -> Scrape {
        let mut scrape = Scrape { samples: Vec::new(), types: BTreeMap::new() };
        for line in text.lines() {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                let (name, kind) = declared.split_once(' ').expect("a type names a metric and its kind");
                assert_eq!(scrape.types.insert(name.to_owned(), kind.to_owned()), None, "{name} twice");
            } else if !line.starts_with('#') {
                let sample = read_sample(line).unwrap_or_else(|| panic!("no sample: {line}"));
                scrape.samples.push(sample);
            }
        }
        scrape
    }

    /// The sum over all series of a name that have these labels; 0 where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &&Sample| {
            let carries =
                |(label, value): &(&str, &str)| sample.labels.get(*label).is_some_and(|it| it == value);
            sample.name == name && labels.iter().all(carries)
        };
        self.samples.iter().filter(has).map(|sample| sample.value).sum()
    }
}

/// `name{label="value",…} value`
fn read_sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        value => value.parse().ok()?,
    };
    let Some((name, mut rest)) = series.split_once('{') else {
        return Some(Sample { name: series.to_owned(), labels: BTreeMap::new(), value });
    };
    let mut labels = BTreeMap::new();
    while rest != "}" {
        let (label, quoted) = rest.split_once("=\"")?;
        let (mut text, mut chars) = (String::new(), quoted.char_indices());
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => text.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, char) => text.push(char),
            }
        };
        labels.insert(label.to_owned(), text);
        rest = quoted[end + 1..].trim_start_matches(',');
    }
    Some(Sample { name: name.to_owned(), labels, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_values_are_read_as_they_were_meant() {
        let scrape = Scrape::read(
            "# HELP a A.\n# TYPE a gauge\na 1\na{b=\"c\",d=\"quote \\\" and \\\\ and , and }\"} 2.5\na_bucket{le=\"+Inf\"} +Inf\n",
        );
        assert_eq!(scrape.types["a"], "gauge");
        assert_eq!(scrape.samples[1].labels["d"], "quote \" and \\ and , and }");
        assert_eq!(scrape.sum("a", &[]), 3.5);
        assert_eq!(scrape.sum("a", &[("b", "c")]), 2.5);
        assert_eq!(scrape.sum("a_bucket", &[("le", "+Inf")]), f64::INFINITY);
    }
}
