//! Lines out of chunks of bytes, bounded in length.

/// Longest line, in bytes; alerts with payloads have some thousand.
pub const MAX_LINE: usize = 64 * 1024;

/// The part of a line that has come so far.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
    /// Until the next newline nothing is a line of its own.
    skipping: bool,
    too_long: u64,
}

impl Lines {
    /// Takes the next bytes and gives every line that they complete, without its newline; empty ones are left out.
    pub fn feed(&mut self, mut chunk: &[u8], mut take: impl FnMut(&[u8])) {
        while let Some(end) = memchr::memchr(b'\n', chunk) {
            let (line, rest) = chunk.split_at(end);
            chunk = rest.get(1..).unwrap_or_default();
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            if self.partial.len() + line.len() > MAX_LINE {
                self.too_long += 1;
                self.partial.clear();
            } else if self.partial.is_empty() {
                if !line.is_empty() {
                    take(line);
                }
            } else {
                self.partial.extend_from_slice(line);
                take(&self.partial);
                self.partial.clear();
            }
        }
        if self.skipping {
            return;
        }
        if self.partial.len() + chunk.len() > MAX_LINE {
            self.too_long += 1;
            self.partial = Vec::new();
            self.skipping = true;
        } else {
            self.partial.extend_from_slice(chunk);
        }
    }

    /// What comes next does not go on with what came before; true if that cuts a line.
    pub fn restart(&mut self) -> bool {
        self.skipping = false;
        let cut = !self.partial.is_empty();
        self.partial.clear();
        cut
    }

    /// As [`Self::restart`], and what comes next begins in the middle of a line.
    pub fn restart_inside(&mut self) -> bool {
        let cut = self.restart();
        self.skipping = true;
        cut
    }

    /// Bytes of a line that is not complete yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.partial.len()
    }

    /// Lines that were longer than [`MAX_LINE`].
    #[must_use]
    pub fn too_long(&self) -> u64 {
        self.too_long
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed(lines: &mut Lines, chunk: &[u8]) -> Vec<Vec<u8>> {
        let mut got = Vec::new();
        lines.feed(chunk, |line| got.push(line.to_vec()));
        got
    }

    #[test]
    fn a_line_that_is_too_long_costs_itself_and_is_counted_once() {
        let mut lines = Lines::default();
        let long = vec![b'x'; MAX_LINE * 3];
        for chunk in long.chunks(1000) {
            assert!(feed(&mut lines, chunk).is_empty());
            assert!(lines.pending() <= MAX_LINE);
        }
        assert_eq!(feed(&mut lines, b"x\nnext\n"), [b"next"]);
        assert_eq!(lines.too_long(), 1);
        let most = vec![b'y'; MAX_LINE];
        assert!(feed(&mut lines, &most).is_empty());
        assert_eq!(feed(&mut lines, b"\n"), [most]);
        assert_eq!(lines.too_long(), 1);
    }

    #[test]
    fn a_restart_cuts_what_was_not_complete() {
        let mut lines = Lines::default();
        feed(&mut lines, b"half");
        assert!(lines.restart());
        assert_eq!(feed(&mut lines, b"whole\n"), [b"whole"]);
        assert!(!lines.restart_inside());
        assert_eq!(feed(&mut lines, b"rest of one\nanother\n"), [b"another"]);
    }

    proptest! {
        /// However a text is cut into chunks, its lines are those of the text.
        #[test]
        fn chunks_make_no_difference(
            text in "[ab\n]{0,200}", cuts in proptest::collection::vec(0_usize..200, 0..10),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut lines = Lines::default();
            let mut got = Vec::new();
            for pair in cuts.windows(2) {
                got.extend(feed(&mut lines, &text.as_bytes()[pair[0]..pair[1]]));
            }
            let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
            let wanted: Vec<&[u8]> = complete.split('\n').filter(|line| !line.is_empty()).map(str::as_bytes).collect();
            prop_assert_eq!(got, wanted);
            prop_assert_eq!(lines.pending(), text.len() - text.rfind('\n').map_or(0, |at| at + 1));
        }
    }
}
