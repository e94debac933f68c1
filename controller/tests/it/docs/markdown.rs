//! As much Markdown as the tests about documents need: code spans, code blocks, links, sections.

use std::path::{Path, PathBuf};

/// A Markdown file, taken apart; lines are numbered from 1.
pub(super) struct Document {
    pub(super) path: PathBuf,
    /// `` `code` `` outside blocks.
    pub(super) spans: Vec<(usize, String)>,
    /// Fenced blocks with the line of their fence.
    pub(super) blocks: Vec<(usize, Block)>,
    /// Targets of `[text](target)`.
    pub(super) links: Vec<(usize, String)>,
}

pub(super) struct Block {
    /// Heading it stands under.
    pub(super) section: String,
    /// Word after the fence.
    pub(super) language: String,
    pub(super) lines: Vec<String>,
}

impl Document {
    pub(super) fn new(path: &Path, text: &str) -> Self {
        let mut document =
            Self { path: path.to_owned(), spans: Vec::new(), blocks: Vec::new(), links: Vec::new() };
        let mut section = String::new();
        let mut open: Option<(usize, Block)> = None;
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let fence = line.trim_start().strip_prefix("```");
            match (&mut open, fence) {
                (Some(_), Some(_)) => document.blocks.extend(open.take()),
                (Some((_, block)), None) => block.lines.push(line.to_owned()),
                (None, Some(language)) => {
                    let language = language.trim().to_owned();
                    open = Some((number, Block { section: section.clone(), language, lines: Vec::new() }));
                }
                (None, None) => {
                    if line.starts_with('#') {
                        section = line.trim_start_matches('#').trim().to_owned();
                    }
                    document.take_line(number, line);
                }
            }
        }
        assert!(open.is_none(), "{}: a code block has no end", path.display());
        document
    }

    fn take_line(&mut self, number: usize, line: &str) {
        let parts: Vec<&str> = line.split('`').collect();
        assert!(parts.len() % 2 == 1, "{}:{number}: a code span has no end", self.path.display());
        for (index, part) in parts.into_iter().enumerate() {
            if index % 2 == 1 {
                self.spans.push((number, part.to_owned()));
                continue;
            }
            for after in part.split("](").skip(1) {
                self.links.extend(after.split_once(')').map(|(target, _)| (number, target.to_owned())));
            }
        }
    }

    /// All words of code, with their lines.
    pub(super) fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        let separator = |c: char| c.is_whitespace() || "\"'()[]{},;|<>=`".contains(c);
        let in_spans = self.spans.iter().map(|(line, text)| (*line, text.as_str()));
        in_spans
            .chain(self.block_lines().map(|(line, text, _)| (line, text)))
            .flat_map(move |(line, text)| text.split(separator).map(move |word| (line, word)))
    }

    /// All commands: spans, and the lines of blocks in a shell's language, pipes taken apart.
    pub(super) fn commands(&self) -> Vec<(usize, ShellCommand)> {
        let mut commands = Vec::new();
        for (line, text) in &self.spans {
            commands.extend(ShellCommand::all(text).into_iter().map(|command| (*line, command)));
        }
        let mut continued = String::new();
        for (line, text, _) in
            self.block_lines().filter(|(_, _, language)| ["sh", "console"].contains(language))
        {
            if let Some(before) = text.strip_suffix('\\') {
                continued.push_str(before);
                continue;
            }
            let whole = std::mem::take(&mut continued) + text;
            commands.extend(ShellCommand::all(&whole).into_iter().map(|command| (line, command)));
        }
        commands
    }

    fn block_lines(&self) -> impl Iterator<Item = (usize, &str, &str)> {
        self.blocks.iter().flat_map(|(start, block)| {
            let lines = block.lines.iter().enumerate();
            lines.map(move |(index, line)| (start + 1 + index, line.as_str(), block.language.as_str()))
        })
    }
}

/// The commands of a block, each with the output shown below it.
pub(super) fn session(block: &Block) -> Vec<(String, String)> {
    let mut session: Vec<(String, String)> = Vec::new();
    for line in &block.lines {
        match (line.strip_prefix("$ "), session.last_mut()) {
            (Some(command), _) => session.push((command.to_owned(), String::new())),
            (None, Some((_, output))) => *output += &format!("{line}\n"),
            (None, None) => panic!("output before any command: {line}"),
        }
    }
    session
}

/// One command of a pipe.
pub(super) struct ShellCommand(String);

impl ShellCommand {
    fn all(text: &str) -> Vec<Self> {
        let text = text.trim_start().trim_start_matches("$ ");
        let before_comment = text.split(" #").next().unwrap_or_default();
        let mut commands = vec![String::new()];
        let mut quote = None;
        for c in before_comment.chars() {
            match (quote, c) {
                (None, '\'' | '"') => quote = Some(c),
                (Some(open), _) if open == c => quote = None,
                (None, '|' | ';' | '&') => {
                    commands.push(String::new());
                    continue;
                }
                _ => {}
            }
            // What stands in quotes is one word, and never a flag.
            let shown = if quote.is_some() && c.is_whitespace() { '_' } else { c };
            commands.last_mut().expect("one from the start").push(shown);
        }
        commands.into_iter().map(Self).collect()
    }

    /// The program and its arguments, without what only starts them.
    pub(super) fn words(&self) -> Vec<&str> {
        let is_prefix = |word: &&str| *word == "sudo" || word.contains('=') && !word.starts_with('-');
        self.0.split_whitespace().skip_while(is_prefix).collect()
    }
}

#[test]
fn spans_blocks_links_and_commands_are_found() {
    let text = "# A\n\nSee [x](y/z.md) and `make demo`.\n## B\n```sh\nsudo a b | c --d 'e | --f' # g\nh \\\n  i\n```\n";
    let document = Document::new(Path::new("t.md"), text);
    assert_eq!(document.links, [(3, "y/z.md".to_owned())]);
    assert_eq!(document.spans, [(3, "make demo".to_owned())]);
    assert_eq!(document.blocks[0].1.section, "B");
    let commands = document.commands();
    let words: Vec<Vec<&str>> = commands.iter().map(|(_, command)| command.words()).collect();
    assert_eq!(words, [vec!["make", "demo"], vec!["a", "b"], vec!["c", "--d", "'e_|_--f'"], vec!["h", "i"]]);
}
