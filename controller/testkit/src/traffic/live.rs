//! Frames that appear at an interface as if its driver had just received them: the kernel makes them itself
//! (`BPF_PROG_TEST_RUN` with live frames, Documentation/bpf/bpf_prog_run.rst), hands each to an XDP program and does
//! what that says. No sender, no cable, and the whole of what becomes of a frame happens in the calling thread.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::net::if_::if_nametoindex;

use crate::Netns;
use crate::topology::Machine;
use crate::traffic::craft::{Crafted, Tag};
use crate::traffic::flood::thread_time;
use crate::traffic::inject::ethernet_header_for;

const OBJ_GET: libc::c_long = 7;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const PROG_TYPE_XDP: u32 = 6;
const LIVE_FRAMES: u32 = 1 << 1;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
/// What NAPI polls at once.
const BATCH: u32 = 64;
/// Longest frame: its words are written by a program of so many instructions.
const LONGEST: usize = 128;
/// Frames of one system call, which no signal interrupts.
const CALL: u64 = 1 << 16;

/// What is done with each frame.
#[derive(Clone, Copy, Debug)]
pub enum Then<'a> {
    /// Dropped at once: what making frames costs.
    Drop,
    /// On into the stack, as at an interface without native XDP; generic XDP and TCX see it there.
    Pass,
    /// What a pinned XDP program says, called as a driver calls it.
    Program(&'a Path),
}

/// Frames at an interface, ready to appear.
#[derive(Debug)]
pub struct Live {
    program: OwnedFd,
    frame: Vec<u8>,
    ifindex: u32,
}

impl Live {
    /// A packet of a machine, at the firewall's end of the machine's cable.
    pub fn new(firewall: &Netns, machine: &Machine, packet: &Crafted, then: Then<'_>) -> Result<Self> {
        let bytes = packet.encode(Tag { run: u32::MAX, id: 0 })?;
        let [bytes] = &bytes[..] else { bail!("a live frame is one packet, not fragments") };
        let frame = [&ethernet_header_for(machine, packet.source.is_ipv6())[..], bytes].concat();
        ensure!(frame.len() <= LONGEST, "a live frame has {LONGEST} bytes at most, this has {}", frame.len());
        let program = match then {
            Then::Drop => load(&[mov(XDP_DROP), EXIT]),
            Then::Pass => restoring(&frame).and_then(|code| load(&code)),
            Then::Program(path) => get(path),
        };
        let program = program.with_context(|| format!("cannot prepare live frames: {then:?}"))?;
        let interface = machine.firewall_interface().as_str();
        let ifindex =
            firewall.run(|| if_nametoindex(interface))?.with_context(|| format!("no {interface}"))?;
        Ok(Self { program, frame, ifindex })
    }

    /// Lets so many frames appear, one right after the other; what the calling thread spent on them. Call it inside the
    /// firewall's namespace.
    pub fn send(&self, frames: u64) -> Result<Duration> {
        let before = thread_time()?;
        let mut left = frames;
        while left > 0 {
            let repeat = left.min(CALL);
            self.call(u32::try_from(repeat)?).context("cannot run live frames")?;
            left -= repeat;
        }
        Ok(thread_time()?.saturating_sub(before))
    }

    /// Lets so many frames appear each second until it is stopped; how many there were each second. Like
    /// interrupts of a network card, this goes before ordinary work: the calling thread becomes one of SCHED_FIFO (and
    /// stays so). They come in bursts, for the kernel takes tens of milliseconds to prepare each call; what the machine
    /// cannot take at all is left out. Call it inside the firewall's namespace.
    pub fn flood(&self, per_second: u64, stop: &AtomicBool) -> Result<f64> {
        take_precedence().context("cannot take precedence")?;
        let begin = Instant::now();
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            let due = u64::try_from(begin.elapsed().as_micros())? * per_second / 1_000_000;
            let frames = due.saturating_sub(sent).min(per_second / 5);
            if frames > 0 {
                self.send(frames)?;
                sent += frames;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        #[allow(clippy::cast_precision_loss, reason = "a rate for people; 52 bits are plenty")]
        let sent = sent as f64;
        Ok(sent / begin.elapsed().as_secs_f64())
    }

    fn call(&self, repeat: u32) -> io::Result<()> {
        let length = u32::try_from(self.frame.len()).map_err(io::Error::other)?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: [u32; 6] = [0, length, 0, self.ifindex, 0, 0];
        let mut attributes = TestRun {
            program: descriptor(&self.program)?,
            data_in_size: length,
            data_in: self.frame.as_ptr() as u64,
            repeat,
            context_size: 24,
            context: context.as_ptr() as u64,
            flags: LIVE_FRAMES,
            batch_size: BATCH,
            ..TestRun::default()
        };
        bpf(PROG_TEST_RUN, &mut attributes).map(drop)
    }
}

/// `union bpf_attr` of BPF_PROG_TEST_RUN (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    data_in_size: u32,
    data_out_size: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size: u32,
    context_out_size: u32,
    context: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// Of BPF_PROG_LOAD, as far as needed.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// Of BPF_OBJ_GET.
#[repr(C)]
#[derive(Default)]
struct ObjGet {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers, offset, immediate }
}

const EXIT: Instruction = instruction(0x95, 0, 0, 0);

/// r0 = value
const fn mov(value: i32) -> Instruction {
    instruction(0xb7, 0, 0, value)
}

/// Writes the frame's words anew and passes it: pages are used again and again, and keep what forwarding has changed
/// in them (the TTL would soon be over).
fn restoring(frame: &[u8]) -> io::Result<Vec<Instruction>> {
    let words = frame.chunks_exact(4);
    let length = i32::try_from(words.len() * 4).map_err(io::Error::other)?;
    let skipped = i16::try_from(words.len()).map_err(io::Error::other)?;
    let mut code = vec![
        instruction(0x61, 0x12, 4, 0),       // r2 = data_end
        instruction(0x61, 0x11, 0, 0),       // r1 = data
        instruction(0xbf, 0x13, 0, 0),       // r3 = r1
        instruction(0x07, 0x03, 0, length),  // r3 += length
        instruction(0x2d, 0x23, skipped, 0), // if r3 > r2 skip what writes
    ];
    for (number, word) in words.enumerate() {
        let offset = i16::try_from(number * 4).map_err(io::Error::other)?;
        let bytes = word.try_into().map_err(io::Error::other)?;
        code.push(instruction(0x62, 0x01, offset, i32::from_ne_bytes(bytes))); // *(u32 *)(r1 + offset) = word
    }
    code.extend([mov(XDP_PASS), EXIT]);
    Ok(code)
}

fn take_precedence() -> io::Result<()> {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: a live structure that is only read; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn load(code: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attributes = ProgLoad {
        kind: PROG_TYPE_XDP,
        instructions: u32::try_from(code.len()).map_err(io::Error::other)?,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..ProgLoad::default()
    };
    bpf(PROG_LOAD, &mut attributes).and_then(owned)
}

fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let mut attributes = ObjGet { path: path.as_ptr() as u64, ..ObjGet::default() };
    bpf(OBJ_GET, &mut attributes).and_then(owned)
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is one of the structures above, which begin as `union bpf_attr` does for their command, with
    // its size; the memory that it points to belongs to the caller and outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let descriptor = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: just opened by the kernel for us and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn descriptor(fd: &OwnedFd) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}
