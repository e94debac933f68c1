use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering;

use fw_testkit::WorkDir;

use super::*;
use crate::record::{Action, Logged};

fn record() -> DropRecord {
    let packet =
        [0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 5, 192, 0, 2, 1, 0, 7, 0, 9, 0, 8, 0, 0];
    DropRecord::new(&Logged {
        action: Action::Drop,
        time: (5, 6),
        input: "vrf1",
        output: "vlan2",
        link_header: &[],
        mark: 0,
        packet: &packet,
    })
}

/// A controller that answers each request by what `answer` says; `None`: it closes the connection.
fn controller(path: &std::path::Path, answer: impl Fn(&str) -> Option<String> + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut line = String::new();
            while stream.read_line(&mut line).is_ok_and(|read| read > 0) {
                let Some(text) = answer(&line) else { break };
                if stream.get_mut().write_all(text.as_bytes()).is_err() {
                    break;
                }
                line.clear();
            }
        }
    });
}

fn enricher(path: &std::path::Path, rate: u32) -> (Enricher, Arc<Figures>) {
    let figures = Arc::new(Figures::default());
    (Enricher::new(path.to_owned(), rate, Arc::clone(&figures), Instant::now()), figures)
}

#[test]
fn what_the_controller_says_becomes_keys_and_shadows_none_of_the_kernels() {
    let directory = WorkDir::new("enrich").unwrap();
    let path = directory.path().join("control.sock");
    controller(&path, |request| {
        let request: serde_json::Value = serde_json::from_str(request).unwrap();
        assert_eq!(request["request"], "enrich");
        let packets = request["packets"].as_array().unwrap();
        assert_eq!(packets[0]["in"], "vrf1");
        assert_eq!(packets[0]["ports"], serde_json::json!([7, 9]));
        let long = "x".repeat(2000);
        let one = serde_json::json!({"policy": "web", "fqdn": "a.example", "hint": long});
        Some(serde_json::json!({"result": vec![one; packets.len()]}).to_string() + "\n")
    });
    let mut tries = 0;
    let records = loop {
        let (mut enricher, figures) = enricher(&path, 1000);
        let mut records = vec![record(); 70];
        enricher.enrich(&mut records, Instant::now());
        if figures.enriched.load(Ordering::Relaxed) == 70 {
            break records;
        }
        // A machine with more to do than this does not answer in time.
        tries += 1;
        assert!(tries < 100);
    };
    for record in &records {
        let fields = record.fields();
        assert_eq!((fields["POLICY"].as_str(), fields["FQDN"].as_str()), ("web", "a.example"));
        assert_eq!((fields["HINT"].len(), fields.contains_key("RULE")), (VALUE, false));
        assert_eq!(fields["SRC"], "10.0.0.5");
    }
}

#[test]
fn a_controller_that_hangs_or_talks_nonsense_costs_one_answer_time_and_then_nothing() {
    for answer in
        [None, Some("nonsense\n"), Some("{\"result\":[]}\n"), Some("{\"error\":\"no\"}\n"), Some("")]
    {
        let directory = WorkDir::new("enrich-bad").unwrap();
        let path = directory.path().join("control.sock");
        controller(&path, move |_| answer.map(str::to_owned));
        let (mut enricher, figures) = enricher(&path, 100_000);
        let begin = Instant::now();
        for _ in 0..100 {
            enricher.enrich(&mut [record()], begin);
        }
        assert_eq!(figures.no_controller.load(Ordering::Relaxed), 100, "{answer:?}");
        assert!(begin.elapsed() < ANSWER * 20, "only the first one waited: {:?}", begin.elapsed());
    }
}

#[test]
fn without_a_controller_and_with_a_full_backlog_nothing_waits() {
    let directory = WorkDir::new("enrich-none").unwrap();
    let path = directory.path().join("control.sock");
    let (mut absent, figures) = enricher(&path, 1000);
    absent.enrich(&mut [record()], Instant::now());
    assert_eq!(figures.no_controller.load(Ordering::Relaxed), 1);
    let _listener = UnixListener::bind(&path).unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = connect_at_once(&path) {
        waiting.push(stream);
        assert!(waiting.len() < 10_000);
    }
    let (mut full, figures) = enricher(&path, 1000);
    full.enrich(&mut [record()], Instant::now());
    assert_eq!(figures.no_controller.load(Ordering::Relaxed), 1);
}

#[test]
fn beyond_the_rate_nobody_is_asked() {
    let begin = Instant::now();
    let mut allowance = Allowance::new(100, begin);
    assert!(allowance.take(100, begin) && !allowance.take(1, begin));
    let later = begin + Duration::from_millis(100);
    assert!(allowance.take(9, later) && !allowance.take(9, later));
    assert!(!Allowance::new(0, begin).take(1, later));
}
