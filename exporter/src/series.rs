//! Series of one family: label texts in one buffer, with their values.

use std::collections::BTreeMap;

/// Adds label sets one by one, sums equal ones, and keeps the order of the first of each.
///
/// One text buffer and one small entry a series: ten thousand rules are some megabytes, and no tree of them is kept.
#[derive(Clone, Debug)]
pub struct Series<const N: usize> {
    labels: String,
    entries: Vec<Entry<N>>,
    /// Places of entries by hash; equal hashes of different texts have different second numbers.
    places: BTreeMap<(u64, u32), usize>,
    bound: usize,
    left_out: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry<const N: usize> {
    start: usize,
    end: usize,
    values: [u64; N],
    /// Label sets that were added to it.
    times: u64,
}

impl<const N: usize> Series<N> {
    /// At most `bound` label sets are kept.
    pub fn new(bound: usize) -> Self {
        Self { labels: String::new(), entries: Vec::new(), places: BTreeMap::new(), bound, left_out: 0 }
    }

    /// Adds a label set that `write` writes.
    pub fn add(&mut self, values: [u64; N], write: impl FnOnce(&mut Labels<'_>)) {
        self.append(values, 1, |text| write(&mut Labels::new(text)));
    }

    /// Adds all of another one, in its order.
    pub fn merge(&mut self, other: &Self) {
        for entry in &other.entries {
            let labels = other.labels.get(entry.start..entry.end).unwrap_or_default();
            self.append(entry.values, entry.times, |text| text.push_str(labels));
        }
        self.left_out = self.left_out.saturating_add(other.left_out);
    }

    fn append(&mut self, values: [u64; N], times: u64, write: impl FnOnce(&mut String)) {
        let start = self.labels.len();
        write(&mut self.labels);
        let end = self.labels.len();
        let hash = fast_hash(self.labels.get(start..end).unwrap_or_default().as_bytes());
        let mut salt = 0;
        while let Some(place) = self.places.get(&(hash, salt)) {
            if let Some(entry) = self.entries.get_mut(*place)
                && self.labels.get(entry.start..entry.end) == self.labels.get(start..end)
            {
                entry.values = std::array::from_fn(|at| entry.values[at].saturating_add(values[at]));
                entry.times = entry.times.saturating_add(times);
                return self.labels.truncate(start);
            }
            salt += 1;
        }
        if self.entries.len() >= self.bound {
            self.left_out = self.left_out.saturating_add(times);
            return self.labels.truncate(start);
        }
        self.places.insert((hash, salt), self.entries.len());
        self.entries.push(Entry { start, end, values, times });
    }

    /// Gives back what only adding needs.
    pub fn finish(&mut self) {
        self.places = BTreeMap::new();
        self.labels.shrink_to_fit();
        self.entries.shrink_to_fit();
    }

    /// Label sets that did not fit; each rule counts.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Labels and values of a series.
    pub fn get(&self, index: usize) -> Option<(&str, [u64; N])> {
        let entry = self.entries.get(index)?;
        Some((self.labels.get(entry.start..entry.end)?, entry.values))
    }
}

/// FNV-1a, 64 bits.
pub fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// As FNV-1a, of eight bytes at once; for places in memory only, where texts of equal hashes are told apart.
fn fast_hash(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| {
        let product = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        product ^ (product >> 32)
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(0, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    rest.iter().fold(hash, |hash, byte| mix(hash, u64::from(*byte)))
}

/// Writes labels one after the other.
#[derive(Debug)]
pub struct Labels<'a> {
    text: &'a mut String,
    first: bool,
}

impl<'a> Labels<'a> {
    /// Appends to `text`.
    pub fn new(text: &'a mut String) -> Self {
        Self { text, first: true }
    }

    /// Appends `name="value"`. Backslash, quote and line feed are escaped (Prometheus' text format, version 0.0.4).
    pub fn add(&mut self, name: &str, value: &str) {
        let comma = if self.first { "" } else { "," };
        self.first = false;
        for part in [comma, name, "=\""] {
            self.text.push_str(part);
        }
        let mut rest = value;
        while let Some(at) = rest.find(['\\', '"', '\n']) {
            let (plain, behind) = rest.split_at(at);
            self.text.push_str(plain);
            let (escaped, left) = behind.split_at(1);
            self.text.push('\\');
            self.text.push_str(if escaped == "\n" { "n" } else { escaped });
            rest = left;
        }
        self.text.push_str(rest);
        self.text.push('"');
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn read(series: &Series<1>) -> Vec<(String, u64)> {
        (0..series.len())
            .filter_map(|at| series.get(at))
            .map(|(text, [value])| (text.to_owned(), value))
            .collect()
    }

    #[test]
    fn quotes_backslashes_and_line_feeds_are_escaped() {
        let mut text = String::new();
        let mut labels = Labels::new(&mut text);
        labels.add("a", "\"\\\n");
        labels.add("b", "é");
        assert_eq!(text, "a=\"\\\"\\\\\\n\",b=\"é\"");
    }

    #[test]
    fn what_is_over_the_bound_is_counted_and_known_label_sets_go_on_counting() {
        let mut series = Series::<1>::new(2);
        for name in ["a", "b", "c", "a", "c"] {
            series.add([1], |labels| labels.add("n", name));
        }
        assert_eq!(read(&series), [("n=\"a\"".to_owned(), 2), ("n=\"b\"".to_owned(), 1)]);
        assert_eq!(series.left_out(), 2);
    }

    proptest! {
        #[test]
        fn parts_merged_in_order_are_as_one(
            list in prop::collection::vec(("[ab]{0,3}", 0_u64..9), 0..60),
            bound in 0_usize..20,
            at in 0_usize..60,
        ) {
            let of = |list: &[(String, u64)], bound| {
                let mut series = Series::<1>::new(bound);
                for (name, value) in list {
                    series.add([*value], |labels| labels.add("n", name));
                }
                series
            };
            let (first, second) = list.split_at(at.min(list.len()));
            let (whole, mut merged) = (of(&list, bound), Series::new(bound));
            merged.merge(&of(first, 1000));
            merged.merge(&of(second, 1000));
            prop_assert_eq!(read(&merged), read(&whole));
            prop_assert_eq!(merged.left_out(), whole.left_out());
        }

        #[test]
        fn equal_label_sets_are_summed_as_a_map_would(list in prop::collection::vec(("[ab\"\\\\]{0,3}", 0_u64..9), 0..60)) {
            let mut series = Series::<1>::new(1000);
            let mut model = BTreeMap::<String, u64>::new();
            for (name, value) in &list {
                series.add([*value], |labels| labels.add("n", name));
                let mut text = String::new();
                Labels::new(&mut text).add("n", name);
                *model.entry(text).or_default() += value;
            }
            let mut read = read(&series);
            read.sort();
            prop_assert_eq!(read, model.into_iter().collect::<Vec<_>>());
        }
    }
}
