//! Parsing a large file again when little of it changed.
//!
//! A file with thousands of policies takes longer to parse than all that follows, and an edit changes one of its
//! documents. So documents whose text is as before keep what was parsed of it. The outcome is that of
//! [`fw_intake::parse`] on the whole file; where that is not certain, the whole file is parsed.

use std::collections::BTreeMap;
use std::sync::Arc;

use fw_intake::{Manifest, ParseError, parse};

/// Files below this size, in bytes, are parsed whole.
const SMALL: usize = 32 * 1024;

/// What was parsed of one file, by the text of its documents.
#[derive(Debug, Default)]
pub(super) struct Documents(BTreeMap<Vec<u8>, Parsed>);

#[derive(Debug)]
struct Parsed {
    /// Line of the file on which the document began, from 0.
    first_line: u64,
    objects: Vec<Arc<Manifest>>,
}

impl Documents {
    /// Parses a file.
    pub(super) fn parse(&mut self, path: &str, bytes: &[u8]) -> Result<Vec<Arc<Manifest>>, ParseError> {
        if bytes.len() >= SMALL
            && let Some(documents) = split(bytes)
            && let Some(objects) = self.parse_each(path, &documents)
        {
            return Ok(objects);
        }
        self.0.clear();
        // The whole file also where a document alone does not parse: its error has the place in the file.
        Ok(parse(path, bytes)?.into_iter().map(Arc::new).collect())
    }

    fn parse_each(&mut self, path: &str, documents: &[(u64, &[u8])]) -> Option<Vec<Arc<Manifest>>> {
        let mut next = BTreeMap::new();
        let mut all = Vec::new();
        for (first_line, text) in documents {
            let objects = match self.0.get(*text) {
                Some(known) => moved(known, *first_line),
                None => {
                    let fresh = parse(path, text).ok()?;
                    moved(
                        &Parsed { first_line: 0, objects: fresh.into_iter().map(Arc::new).collect() },
                        *first_line,
                    )
                }
            };
            all.extend(objects.iter().cloned());
            next.insert(text.to_vec(), Parsed { first_line: *first_line, objects });
        }
        self.0 = next;
        Some(all)
    }
}

/// The objects of a document that now begins on another line.
fn moved(known: &Parsed, first_line: u64) -> Vec<Arc<Manifest>> {
    if known.first_line == first_line {
        return known.objects.clone();
    }
    let moved = |manifest: &Arc<Manifest>| {
        let line = (manifest.line + first_line).saturating_sub(known.first_line);
        Arc::new(Manifest { line, ..Manifest::clone(manifest) })
    };
    known.objects.iter().map(moved).collect()
}

/// The documents of a file with the lines they begin on, each with its `---`. `None`: cannot be told by lines alone.
///
/// A line that begins with `---` separates documents whatever surrounds it (YAML 1.2, c-forbidden). Anchors are left
/// to the whole parse, so that its bound on their expansion is one for the file.
fn split(bytes: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    if bytes.contains(&b'&') || bytes.starts_with(b"\xef\xbb\xbf") {
        return None;
    }
    let mut documents = Vec::new();
    let (mut start, mut first_line) = (0, 0);
    let mut offset = 0;
    for (number, line) in (0_u64..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
        if line.starts_with(b"...") || line.starts_with(b"%") || line.contains(&b'\r') {
            return None;
        }
        if is_separator(line) && offset > 0 {
            documents.push((first_line, bytes.get(start..offset)?));
            (start, first_line) = (offset, number);
        }
        offset += line.len();
    }
    documents.push((first_line, bytes.get(start..)?));
    Some(documents)
}

fn is_separator(line: &[u8]) -> bool {
    line.strip_prefix(b"---").is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn document(name: &str) -> String {
        let filler = "x".repeat(200);
        format!(
            "# {filler}\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  text: |\n    --- not\n    {filler}\n"
        )
    }

    fn file(names: &[String]) -> String {
        names.iter().map(|name| document(name)).collect::<Vec<_>>().join("---\n")
    }

    fn both(
        documents: &mut Documents,
        text: &str,
    ) -> (Result<Vec<Manifest>, ParseError>, Result<Vec<Manifest>, ParseError>) {
        let quick = documents.parse("f.yaml", text.as_bytes());
        let quick = quick.map(|all| all.iter().map(|manifest| Manifest::clone(manifest)).collect());
        (quick, parse("f.yaml", text.as_bytes()))
    }

    fn numbered(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("s{index}")).collect()
    }

    #[test]
    fn an_edit_gives_what_the_whole_parse_gives_and_keeps_the_rest() {
        let mut documents = Documents::default();
        let mut names = numbered(200);
        let first = documents.parse("f.yaml", file(&names).as_bytes()).unwrap();
        names[100] = "changed".to_owned();
        let second = documents.parse("f.yaml", file(&names).as_bytes()).unwrap();
        assert!(Arc::ptr_eq(&first[0], &second[0]) && Arc::ptr_eq(&first[199], &second[199]));
        names.insert(0, "new".to_owned());
        let (quick, whole) = both(&mut documents, &file(&names));
        assert_eq!(quick, whole);
    }

    #[test]
    fn errors_are_those_of_the_whole_parse_with_their_place() {
        let mut documents = Documents::default();
        let good = file(&numbered(200));
        let (quick, _) = both(&mut documents, &good);
        assert!(quick.is_ok());
        for bad in [
            good.replacen("name: s150", "name: [", 1),
            format!("{good}---\n- a list\n"),
            format!("{good}---\n{{"),
            good.replacen("\n---\n", "\n--- text\n", 1),
        ] {
            let (quick, whole) = both(&mut documents, &bad);
            assert!(whole.is_err());
            assert_eq!(quick, whole);
        }
    }

    #[test]
    fn separators_with_content_comments_and_empty_documents_are_as_in_the_whole_parse() {
        let tail = file(&numbered(200));
        for head in [
            "---\n",
            "--- \n",
            "--- # comment\n",
            "---\n---\n---\n",
            "# only a comment\n---\n",
            "---\n# only a comment\n---\n",
            "--- {kind: Service, metadata: {name: x}}\n---\n",
            "a: &x 1\nb: *x\n---\n",
            "%YAML 1.2\n---\n",
            "kind: Service\n...\n---\n",
            "\u{feff}kind: Service\n---\n",
            "kind: Service\r\n---\r\n",
            "-----\n---\n",
        ] {
            let (quick, whole) = both(&mut Documents::default(), &format!("{head}{tail}"));
            assert_eq!(quick, whole, "{head:?}");
        }
    }

    proptest! {
        #[test]
        fn any_sequence_of_edits_gives_what_the_whole_parse_gives(
            edits in proptest::collection::vec((0_usize..150, "[a-z]{1,8}", 0_u8..4), 1..6),
        ) {
            let mut documents = Documents::default();
            let mut names = numbered(150);
            for (at, name, kind) in edits {
                let at = at.min(names.len() - 1);
                match kind {
                    0 => names.insert(at, name),
                    1 => drop(names.remove(at)),
                    2 => names[at] = name,
                    _ => names.swap(0, at),
                }
                let (quick, whole) = both(&mut documents, &file(&names));
                prop_assert_eq!(quick, whole);
            }
        }
    }
}
