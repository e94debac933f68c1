//! Patterns with `*`, found by their literal end and start.

use std::collections::BTreeMap;

/// Patterns by the text after their last `*`, then by the text before their first one.
#[derive(Debug, Default)]
pub(super) struct Globs {
    /// Keys are reversed: an end of a name is a start of the reversed name.
    by_end: Prefixes<Prefixes<Vec<Glob>>>,
}

type ByStart = BTreeMap<Box<[u8]>, Vec<Glob>>;

/// What is left of a pattern without its literal start and end.
#[derive(Debug)]
struct Glob {
    id: usize,
    /// Texts between stars, in order; none is empty.
    middle: Vec<Box<str>>,
}

impl Globs {
    /// Patterns with at least one `*`; any case, trailing dot or not.
    pub(super) fn new<'a>(patterns: impl IntoIterator<Item = (usize, &'a str)>) -> Self {
        let mut by_end: BTreeMap<Box<[u8]>, ByStart> = BTreeMap::new();
        for (id, pattern) in patterns {
            let pattern = pattern.strip_suffix('.').unwrap_or(pattern).to_ascii_lowercase();
            let (start, rest) = pattern.split_once('*').unwrap_or((&pattern, ""));
            let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
            let middle = middle.split('*').filter(|text| !text.is_empty()).map(Box::from).collect();
            let by_start = by_end.entry(end.bytes().rev().collect()).or_default();
            by_start.entry(start.bytes().collect()).or_default().push(Glob { id, middle });
        }
        let by_end = by_end.into_iter().map(|(end, by_start)| (end, Prefixes::new(by_start)));
        Self { by_end: Prefixes::new(by_end) }
    }

    /// Calls `each` with the id of every pattern that matches the whole of `name`, lower case and without escapes.
    pub(super) fn each_match(&self, name: &str, mut each: impl FnMut(usize)) {
        if self.by_end.is_empty() {
            return;
        }
        let reversed: Vec<u8> = name.bytes().rev().collect();
        self.by_end.each_prefix_of(&reversed, |end, by_start| {
            by_start.each_prefix_of(name.as_bytes(), |start, globs| {
                let between = name.len().checked_sub(end).and_then(|to| name.get(start..to));
                let Some(between) = between else { return };
                globs.iter().filter(|glob| glob.matches(between)).for_each(|glob| each(glob.id));
            });
        });
    }
}

impl Glob {
    /// Each text is taken where it first occurs: what is left for the later ones is then longest, so that there is
    /// nothing to go back to.
    fn matches(&self, between: &str) -> bool {
        let mut rest = between;
        for text in &self.middle {
            let Some((_, after)) = rest.split_once(&**text) else { return false };
            rest = after;
        }
        true
    }
}

/// Values by key, to be found by everything that their key is a prefix of.
#[derive(Debug)]
struct Prefixes<T> {
    /// Sorted by key. Each knows the longest other key that is a prefix of its own.
    entries: Vec<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    key: Box<[u8]>,
    parent: Option<usize>,
    value: T,
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<T> Prefixes<T> {
    /// From sorted keys, each once.
    fn new(sorted: impl IntoIterator<Item = (Box<[u8]>, T)>) -> Self {
        let mut entries: Vec<Entry<T>> = Vec::new();
        let mut open: Vec<usize> = Vec::new();
        for (key, value) in sorted {
            while open.last().is_some_and(|last| !key.starts_with(&entries[*last].key)) {
                open.pop();
            }
            let parent = open.last().copied();
            open.push(entries.len());
            entries.push(Entry { key, parent, value });
        }
        Self { entries }
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Calls `each` with the length of every key that is a prefix of `text`, and with its value.
    ///
    /// All such keys sort before `text`; of the last key that does so they are prefixes too, or it is one of them. So
    /// they are found by walking up from there.
    fn each_prefix_of(&self, text: &[u8], mut each: impl FnMut(usize, &T)) {
        let mut at = self.entries.partition_point(|entry| *entry.key <= *text).checked_sub(1);
        while let Some(entry) = at.and_then(|at| self.entries.get(at)) {
            if text.starts_with(&entry.key) {
                each(entry.key.len(), &entry.value);
            }
            at = entry.parent;
        }
    }
}
