//! What is free is not resident.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::hint::black_box;

#[global_allocator]
static ALLOCATOR: fw_memory::Allocator = fw_memory::Allocator;

fn resident_kilobytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn what_a_thread_that_rests_has_freed_goes_back_to_the_kernel() {
    fw_memory::give_back_at_once();
    let before = resident_kilobytes();
    let (freed, is_freed) = std::sync::mpsc::channel();
    let (go, rest) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let pieces: Vec<Box<[u8]>> = (0..200_000_usize).map(|n| vec![1; 100 + n % 700].into()).collect();
        let most = resident_kilobytes();
        drop(black_box(pieces));
        freed.send(most).unwrap();
        rest.recv().ok();
    });
    let most = is_freed.recv().unwrap();
    let after = resident_kilobytes();
    assert!(most > before + 60_000, "{before} kB, then {most} kB");
    assert!(after < before + 10_000, "{before} kB, then {most} kB, and {after} kB are left");
    drop(go);
    thread.join().unwrap();
}
