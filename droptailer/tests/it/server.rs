//! What the server prints of what clients send.

use std::collections::BTreeMap;
use std::time::Duration;

use fw_droptailer::wire::{Ack, Batch, Drop as Record, DroptailerClient};
use nix::sys::signal::Signal;
use proptest::test_runner::{Config, TestRunner};
use proptest::{prelude::*, sample};
use prost_types::Timestamp;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::rig::{PATIENCE, Server, line, record, runtime};

pub(crate) const REFUSED: &str = "droptailer_server_refused_records_total";

/// A call of Stream.
pub(crate) struct Call {
    pub(crate) batches: mpsc::Sender<Batch>,
    pub(crate) acks: Streaming<Ack>,
}

impl Call {
    pub(crate) async fn open(client: &mut DroptailerClient<Channel>) -> Self {
        let (batches, receiver) = mpsc::channel(1);
        let acks = client.stream(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { batches, acks }
    }

    pub(crate) async fn send(&self, session: u8, first: u64, drops: Vec<Record>) {
        self.batches.send(Batch { session: vec![session; 16], first, drops }).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Result<Option<u64>, Status> {
        let ack = timeout(PATIENCE, self.acks.message()).await.unwrap()?;
        Ok(ack.map(|ack| ack.next))
    }
}

fn records(numbers: std::ops::Range<u64>) -> Vec<Record> {
    numbers.map(record).collect()
}

#[test]
fn every_record_is_one_line_and_is_acknowledged_when_it_is_printed() {
    let server = Server::start("lines", &[]);
    runtime().block_on(async {
        let mut client = server.client().await;
        for number in 0..20_u32 {
            client.push(record(number.into())).await.unwrap();
            assert_eq!(server.lines(number as usize + 1)[number as usize], line(number.into()));
        }
        let mut call = Call::open(&mut client).await;
        call.send(7, 0, Vec::new()).await;
        assert_eq!(call.next().await.unwrap(), Some(0), "nobody knows the session yet");
        for batch in 0..50 {
            let first = 20 + batch * 100;
            call.send(7, first, records(first..first + 100)).await;
            assert_eq!(call.next().await.unwrap(), Some(first + 100));
        }
        drop(call.batches);
        assert_eq!(timeout(PATIENCE, call.acks.message()).await.unwrap().unwrap(), None);
    });
    let expected: Vec<String> = (0..5020).map(line).collect();
    assert_eq!(server.lines(5020), expected);
    assert_eq!(server.metric("droptailer_server_printed_lines_total"), 5020);
    assert!(server.page("/healthz").starts_with("HTTP/1.1 200"));
    assert!(server.page("/").starts_with("HTTP/1.1 404"));
}

#[test]
fn what_is_sent_again_is_not_printed_again_and_a_new_server_knows_nobody() {
    let server = Server::start("again", &[]);
    let runtime = runtime();
    runtime.block_on(async {
        let mut client = server.client().await;
        let mut call = Call::open(&mut client).await;
        call.send(1, 1, records(1..11)).await;
        assert_eq!((call.next().await.unwrap(), call.next().await.unwrap()), (Some(0), Some(11)));
        // The connection breaks, and the client knows of none of the acknowledgements.
        drop((call, client));
        let mut client = server.client().await;
        let mut call = Call::open(&mut client).await;
        call.send(1, 0, Vec::new()).await;
        assert_eq!(call.next().await.unwrap(), Some(11));
        call.send(1, 6, records(6..16)).await;
        assert_eq!(call.next().await.unwrap(), Some(16));
        // Records that the client gave up are left out.
        call.send(1, 100, records(100..101)).await;
        assert_eq!(call.next().await.unwrap(), Some(101));
        // Two streams of one session, as while the server does not know yet that the older one is broken.
        let mut second = Call::open(&mut client).await;
        second.send(1, 100, records(100..103)).await;
        assert_eq!((second.next().await.unwrap(), second.next().await.unwrap()), (Some(101), Some(103)));
        call.send(1, 101, records(101..104)).await;
        assert_eq!(call.next().await.unwrap(), Some(104));
    });
    let expected: Vec<String> = (1..16).chain(100..104).map(line).collect();
    assert_eq!(server.lines(expected.len()), expected);
    assert_eq!(server.metric("droptailer_server_repeated_records_total"), 5 + 1 + 2);
    assert_eq!(server.metric("droptailer_server_sessions"), 1);
    let server = server.start_again(&[]);
    runtime.block_on(async {
        let mut client = server.client().await;
        let mut call = Call::open(&mut client).await;
        call.send(1, 0, Vec::new()).await;
        assert_eq!(call.next().await.unwrap(), Some(0));
    });
}

#[test]
fn any_record_gives_exactly_one_well_formed_line() {
    let server = Server::start("anything", &[]);
    let runtime = runtime();
    let mut client = runtime.block_on(server.client());
    let text =
        || prop_oneof!["(?s).{0,30}", "[\\x00-\\x1f\\u{7f}-\\u{9f}\"\\\\\\u{2028}]{0,8}", "[A-Z]{2,5}"];
    let seconds =
        prop_oneof![any::<i64>(), 0_i64..4_000_000_000, sample::select(vec![i64::MIN, -1, i64::MAX])];
    let time = prop::option::of((seconds, any::<i32>()));
    let strategy = (time, prop::collection::btree_map(text(), text(), 0..12));
    let counted = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&strategy, |(time, fields)| {
        let timestamp = time.map(|(seconds, nanos)| Timestamp { seconds, nanos });
        let sent = Record { timestamp, fields: fields.clone() };
        runtime.block_on(client.clone().push(sent)).unwrap();
        counted.set(counted.get() + 1);
        let count = counted.get();
        let lines = server.lines(count);
        prop_assert_eq!(lines.len(), count);
        let printed = &lines[count - 1];
        prop_assert!(!printed.chars().any(char::is_control), "{:?}", printed);
        let (time, json) = printed.split_at("2020-06-17 13:23:27 +0000 UTC".len());
        prop_assert!(time.ends_with(" +0000 UTC"), "{}", printed);
        let mut expected = fields;
        expected.insert("timestamp".to_owned(), time.to_owned());
        prop_assert_eq!(serde_json::from_str::<BTreeMap<String, String>>(json).unwrap(), expected);
        Ok(())
    });
    outcome.unwrap();
    runtime.block_on(client.push(record(0))).unwrap();
}

#[test]
fn what_is_too_large_or_senseless_is_refused_counted_and_harms_nobody() {
    let server = Server::start("large", &[]);
    let of = |bytes: usize| {
        let mut large = record(0);
        large.fields.insert("LARGE".to_owned(), "x".repeat(bytes));
        large
    };
    runtime().block_on(async {
        let mut client = server.client().await;
        for bytes in [17 << 10, 300 << 10, 10 << 20] {
            let status = client.push(of(bytes)).await.unwrap_err();
            assert_eq!(status.code(), Code::OutOfRange, "{bytes}: {status}");
        }
        assert_eq!(server.metric(&format!("{REFUSED}{{reason=\"size\"}}")), 3);
        client.push(Record::default()).await.unwrap();
        assert_eq!(server.metric("droptailer_server_untimed_records_total"), 1);
        // In a stream the records after it go on.
        let mut call = Call::open(&mut client).await;
        call.send(1, 1, vec![record(1), of(17 << 10), record(2)]).await;
        assert_eq!((call.next().await.unwrap(), call.next().await.unwrap()), (Some(0), Some(4)));
        // A batch that is too large ends its stream, and nothing else.
        call.send(1, 4, (0..20).map(|_| of(15 << 10)).collect()).await;
        assert_eq!(call.next().await.unwrap_err().code(), Code::OutOfRange);
        let mut call = Call::open(&mut client).await;
        call.batches.send(Batch { session: vec![1; 15], first: 1, drops: records(1..2) }).await.unwrap();
        assert_eq!(call.next().await.unwrap_err().code(), Code::InvalidArgument);
        let mut call = Call::open(&mut client).await;
        call.send(1, u64::MAX, records(1..3)).await;
        assert_eq!(call.next().await.unwrap_err().code(), Code::InvalidArgument);
        let mut call = Call::open(&mut client).await;
        call.send(1, 4, Vec::new()).await;
        assert_eq!(call.next().await.unwrap(), Some(4));
        call.send(2, 4, records(4..5)).await;
        assert_eq!(call.next().await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(server.metric(&format!("{REFUSED}{{reason=\"size\"}}")), 5);
        assert_eq!(server.metric(&format!("{REFUSED}{{reason=\"session\"}}")), 3);
        client.push(record(3)).await.unwrap();
    });
    let lines = server.lines(5);
    assert_eq!(lines.len(), 5);
    assert_eq!([&lines[1], &lines[3], &lines[4]], [&line(1), &line(2), &line(3)]);
    assert!(
        lines[2].contains(r#"{"ACTION":"lost","CAUSE":"refused","COUNT":"1","timestamp":"2020"#),
        "{}",
        lines[2]
    );
}

#[test]
fn an_output_that_blocks_holds_clients_up_and_loses_nothing() {
    let server = Server::start("blocked", &[]);
    runtime().block_on(async {
        server.gate.shut();
        let mut client = server.client().await;
        let mut call = Call::open(&mut client).await;
        call.send(1, 0, Vec::new()).await;
        assert_eq!(call.next().await.unwrap(), Some(0));
        // More than a pipe holds.
        let mut sent = 0;
        let mut acknowledged = 0;
        for first in (0..10_000).step_by(500) {
            call.send(1, first + 1, records(first + 1..first + 501)).await;
            sent = first + 500;
            match timeout(Duration::from_secs(1), call.acks.message()).await {
                Ok(ack) => acknowledged = ack.unwrap().unwrap().next - 1,
                Err(_) => break,
            }
        }
        assert!(acknowledged < sent, "the pipe takes everything");
        // The server lives, and says what is the matter.
        assert!(server.page("/healthz").starts_with("HTTP/1.1 200"));
        let page = server.page("/metrics");
        assert!(!page.contains("droptailer_server_output_stalled_seconds 0\n"), "{page}");
        let mut other = server.client().await;
        let waiting = tokio::spawn(async move { other.push(record(0)).await });
        server.gate.open();
        assert_eq!(call.next().await.unwrap(), Some(sent + 1));
        timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
        let mut lines = server.lines(usize::try_from(sent).unwrap() + 1);
        lines.retain(|it| *it != line(0));
        assert_eq!(lines, (1..sent + 1).map(line).collect::<Vec<_>>());
    });
}

#[test]
fn at_its_end_the_server_acknowledges_what_it_printed_and_prints_what_it_took() {
    let mut server = Server::start("end", &[]);
    let acknowledged = runtime().block_on(async {
        let mut client = server.client().await;
        let mut call = Call::open(&mut client).await;
        let mut first = 1;
        let mut last = 0;
        loop {
            let batch = Batch { session: vec![1; 16], first, drops: records(first..first + 50) };
            // After the end of the call there is nobody who takes it.
            if call.batches.send(batch).await.is_err() {
                break;
            }
            first += 50;
            if first == 501 {
                server.signal(Signal::SIGTERM);
            }
            match call.next().await {
                Ok(Some(next)) => last = last.max(next),
                Ok(None) | Err(_) => break,
            }
        }
        while let Ok(Some(next)) = call.next().await {
            last = last.max(next);
        }
        last
    });
    assert!(server.wait().success());
    let lines = server.lines(usize::try_from(acknowledged).unwrap() - 1);
    assert!(acknowledged >= 451, "{acknowledged}");
    assert_eq!(lines, (1..acknowledged).map(line).collect::<Vec<_>>());
}
