//! Regular expressions over whole names.

use regex::bytes::{RegexBuilder, RegexSet, RegexSetBuilder};

use super::Unusable;

/// Sets of expressions, each anchored at both ends.
#[derive(Debug, Default)]
pub(super) struct Regexes {
    sets: Vec<(Vec<usize>, RegexSet)>,
}

impl Regexes {
    /// Compiles expressions; also says which cannot be used, and why.
    pub(super) fn new<'a>(
        regexes: impl IntoIterator<Item = (usize, &'a str)>,
    ) -> (Self, Vec<(usize, String)>) {
        let mut usable = Vec::new();
        let mut refused = Vec::new();
        for (id, regex) in regexes {
            match anchored(regex) {
                Ok(anchored) => usable.push((id, anchored)),
                Err(reason) => refused.push((id, reason)),
            }
        }
        let mut result = Self::default();
        result.add(&usable, &mut refused);
        (result, refused)
    }

    /// Calls `each` with the id of every expression that matches.
    pub(super) fn each_match(&self, name: &str, mut each: impl FnMut(usize)) {
        for (ids, set) in &self.sets {
            for position in set.matches(name.as_bytes()) {
                ids.get(position).into_iter().for_each(|id| each(*id));
            }
        }
    }

    /// One set if it is small enough, else its halves.
    fn add(&mut self, regexes: &[(usize, String)], refused: &mut Vec<(usize, String)>) {
        if regexes.is_empty() {
            return;
        }
        let set = RegexSetBuilder::new(regexes.iter().map(|(_, text)| text))
            .unicode(false)
            .size_limit(Unusable::REGEX_SIZE * 8)
            .dfa_size_limit(Unusable::REGEX_SIZE * 8)
            .build();
        match set {
            Ok(set) => self.sets.push((regexes.iter().map(|(id, _)| *id).collect(), set)),
            Err(error) if regexes.len() == 1 => refused.push((regexes[0].0, error.to_string())),
            Err(_) => {
                let (first, second) = regexes.split_at(regexes.len() / 2);
                self.add(first, refused);
                self.add(second, refused);
            }
        }
    }
}

/// The expression with anchors. It has to be one by itself: `a)|(?:b` would otherwise escape the group.
fn anchored(regex: &str) -> Result<String, String> {
    let compile =
        |text: &str| RegexBuilder::new(text).unicode(false).size_limit(Unusable::REGEX_SIZE).build();
    compile(regex).map_err(|error| error.to_string())?;
    let anchored = format!(r"\A(?:{regex})\z");
    compile(&anchored).map_err(|error| error.to_string())?;
    Ok(anchored)
}
