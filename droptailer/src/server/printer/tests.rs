use std::sync::Mutex;

use proptest::prelude::*;

use super::*;

/// An output that takes a few bytes at a time, and fails now and then.
#[derive(Clone, Default)]
struct Wayward {
    text: Arc<Mutex<Vec<u8>>>,
    calls: usize,
    /// Up to this call, some fail in a way that is waited after.
    breaks: usize,
}

impl Write for Wayward {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.calls += 1;
        match self.calls % 7 {
            1 => Err(ErrorKind::Interrupted.into()),
            3 if self.calls < self.breaks => Err(ErrorKind::BrokenPipe.into()),
            _ => {
                let count = bytes.len().min(5);
                self.text.lock().unwrap().extend_from_slice(&bytes[..count]);
                Ok(count)
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Wayward {
    fn lines(&self) -> Vec<String> {
        String::from_utf8(self.text.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
    }
}

fn lines(numbers: std::ops::Range<u64>) -> Lines {
    let mut lines = Lines::default();
    numbers.for_each(|number| lines.push(&number.to_string()));
    lines
}

fn with_printer<T>(sessions: usize, work: impl AsyncFnOnce(&Handle, &Metrics) -> T) -> (T, Vec<String>) {
    with_output(Wayward::default(), sessions, work)
}

fn with_output<T>(
    output: Wayward,
    sessions: usize,
    work: impl AsyncFnOnce(&Handle, &Metrics) -> T,
) -> (T, Vec<String>) {
    let metrics = Arc::new(Metrics::new().unwrap());
    let printer = Printer::start(output.clone(), sessions, Arc::clone(&metrics)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = runtime.block_on(async {
        let result = work(&printer.handle(), &metrics).await;
        assert!(printer.end(Duration::from_secs(60)).await);
        result
    });
    (result, output.lines())
}

async fn send(handle: &Handle, session: u8, first: u64, count: u64) -> u64 {
    let turn = handle.turn().await.unwrap();
    handle.print_numbered([session; 16], first, lines(first..first + count), turn).await.unwrap()
}

#[test]
fn a_failing_output_loses_no_byte_and_what_comes_again_is_not_printed_again() {
    let output = Wayward { breaks: 10, ..Wayward::default() };
    let (repeated, printed) = with_output(output, 4, async |handle, metrics| {
        assert_eq!(send(handle, 1, 0, 0).await, 0, "nobody knows it");
        assert_eq!(send(handle, 1, 5, 3).await, 8);
        assert_eq!(send(handle, 1, 5, 3).await, 8);
        assert_eq!(send(handle, 1, 7, 3).await, 10);
        assert_eq!(send(handle, 1, 20, 1).await, 21, "numbers may be left out");
        assert_eq!(send(handle, 1, 0, 0).await, 21);
        let turn = handle.turn().await.unwrap();
        handle.print(lines(99..100), turn).await.unwrap();
        metrics.repeated.get()
    });
    assert_eq!(printed, ["5", "6", "7", "8", "9", "20", "99"]);
    assert_eq!(repeated, 4);
}

#[test]
fn with_too_many_sessions_the_one_silent_longest_is_forgotten_and_counted() {
    let ((), _) = with_printer(2, async |handle, metrics| {
        send(handle, 1, 1, 1).await;
        send(handle, 2, 1, 1).await;
        // Asking is a sign of life.
        assert_eq!(send(handle, 1, 0, 0).await, 2);
        send(handle, 3, 1, 1).await;
        assert_eq!(
            (send(handle, 1, 0, 0).await, send(handle, 2, 0, 0).await, send(handle, 3, 0, 0).await),
            (2, 0, 2)
        );
        assert_eq!((metrics.forgotten.get(), metrics.sessions.get()), (1, 2));
    });
}

#[test]
fn lines_are_written_and_remembered_when_their_sender_stops_waiting() {
    let (next, printed) = with_printer(4, async |handle, _| {
        let turn = handle.turn().await.unwrap();
        let sent = handle.print_numbered([1; 16], 1, lines(1..4), turn);
        // Once polled it is with the printer; nobody waits for the answer.
        tokio::select! {
            biased;
            _ = sent => {}
            () = std::future::ready(()) => {}
        }
        send(handle, 1, 0, 0).await
    });
    assert_eq!((next, printed), (4, vec!["1".to_owned(), "2".to_owned(), "3".to_owned()]));
}

proptest! {
    #[test]
    fn whatever_is_sent_again_every_line_is_printed_once_and_in_order(
        sends in prop::collection::vec((0_u64..10, 0_u64..10), 0..40),
    ) {
        let (end, printed) = with_printer(4, async |handle, _| {
            let mut end = 1;
            for (back, count) in sends {
                let first = u64::max(1, end - u64::min(end, back));
                let next = send(handle, 1, first, count).await;
                end = end.max(first + count);
                assert_eq!(next, if end == 1 { 0 } else { end });
            }
            end
        });
        let expected: Vec<String> = (1..end).map(|number| number.to_string()).collect();
        prop_assert_eq!(printed, expected);
    }
}
