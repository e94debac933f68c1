//! The eBPF programs of the data path, over the maps of [`maps`]:
//!
//! ```text
//! frame ─ fw_xdp ───── drops what opens a connection that nothing allows, before there is an skb
//!       └ fw_tcx ───── marks what a name allows, and drops like fw_xdp where that is not attached
//!         fw_stamp ─── marks only, behind fw_xdp
//! ```
//! What becomes of a packet is decided by `fw_bpf_common`, which is tested on the host; here is only what reads bytes,
//! maps and the clock.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(unsafe_code, reason = "packet and map memory are raw pointers, checked by the kernel's verifier")]

mod conntrack;
mod frame;
mod maps;
mod report;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{TC_ACT_SHOT, tcx_action_base::TCX_NEXT, xdp_action};
use aya_ebpf::helpers::generated::{
    bpf_skb_load_bytes, bpf_skb_pull_data, bpf_xdp_get_buff_len, bpf_xdp_load_bytes,
};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use fw_bpf_common::{
    HEADERS_USUAL, TAGS_MAX, Tables as _, Unasked, Verdict, counter, is_judged, judge, parse, reach, verdict,
};

use conntrack::Of;
use frame::Linear;
use maps::Maps;
use report::{Dropped, report};

/// The bouncer.
#[xdp]
pub fn fw_xdp(context: XdpContext) -> u32 {
    let length = (context.data_end() - context.data()) as u32;
    bounce(&context, length)
}

/// The bouncer for frames that do not fit into one page (large MTU, native mode only).
#[xdp(frags)]
pub fn fw_xdp_frags(context: XdpContext) -> u32 {
    // SAFETY: the context is the one this program was called with.
    let length = unsafe { bpf_xdp_get_buff_len(context.ctx) } as u32;
    bounce(&context, length)
}

#[inline(always)]
fn bounce(context: &XdpContext, length: u32) -> u32 {
    let frame = Linear::new(context.data(), context.data_end(), length);
    let Some(packet) = parse(&frame, TAGS_MAX) else {
        return xdp_action::XDP_PASS;
    };
    let conntrack = Of::xdp(context.as_ptr());
    // Nothing else is ever dropped, and most packets end here.
    if !is_judged(&packet, &conntrack) {
        return xdp_action::XDP_PASS;
    }
    let Verdict::Bounce(reason) = verdict(&packet, &Maps, &conntrack) else {
        return xdp_action::XDP_PASS;
    };
    let dropped = Dropped { reason, at: counter::XDP, ifindex: context.ingress_ifindex() as u32, length };
    report(&dropped, |head, bytes| {
        // SAFETY: `head` has room for `bytes` bytes (see `report`).
        unsafe { bpf_xdp_load_bytes(context.ctx, 0, head.cast(), bytes) == 0 }
    });
    xdp_action::XDP_DROP
}

/// The stamp, and the bouncer where XDP is not attached.
#[classifier]
pub fn fw_tcx(context: TcContext) -> i32 {
    stamp::<true>(&context)
}

/// The stamp alone.
#[classifier]
pub fn fw_stamp(context: TcContext) -> i32 {
    stamp::<false>(&context)
}

#[inline(always)]
fn stamp<const BOUNCE: bool>(context: &TcContext) -> i32 {
    let skb = context.skb.skb;
    let length = context.len();
    let linear = context.data_end() - context.data();
    if linear < HEADERS_USUAL as usize && linear < length as usize {
        // Headers may lie in pages beside the linear part. Where they cannot be fetched the packet is unreadable. Only
        // what is needed is fetched: a packet whose payload does not begin in its pages is not joined with its
        // neighbours by the receiver's TCP (skb_try_coalesce()), which cost a fifth of the throughput.
        let reach = reach(&Linear::new(context.data(), context.data_end(), length));
        let wanted = if length < reach { length } else { reach };
        if linear < wanted as usize {
            // SAFETY: the context is the one this program was called with; pointers are taken from it afterwards.
            unsafe { bpf_skb_pull_data(skb, wanted) };
        }
    }
    let frame = Linear::new(context.data(), context.data_end(), length);
    // SAFETY: fields of the context this program was called with.
    let (mark, tagged, ifindex) = unsafe { ((*skb).mark, (*skb).vlan_present != 0, (*skb).ingress_ifindex) };
    let tags = if tagged { TAGS_MAX - 1 } else { TAGS_MAX };
    let verdict = if BOUNCE {
        judge(&frame, tags, &Maps, &Of::tcx(context.as_ptr()))
    } else {
        judge(&frame, tags, &Maps, &Unasked)
    };
    let config = Maps.config();
    let (mask, shift) = (config.mark_mask, config.mark_shift & 31);
    // An index that does not fit would be another one's.
    let index = match verdict {
        Verdict::Stamp(index) if ((index << shift) & mask) >> shift == index => index << shift,
        _ => 0,
    };
    context.set_mark((mark & !mask) | index);
    if BOUNCE && let Verdict::Bounce(reason) = verdict {
        let dropped = Dropped { reason, at: counter::TCX, ifindex, length };
        report(&dropped, |head, bytes| {
            // SAFETY: `head` has room for `bytes` bytes (see `report`).
            unsafe { bpf_skb_load_bytes(context.as_ptr(), 0, head.cast(), bytes) == 0 }
        });
        return TC_ACT_SHOT;
    }
    TCX_NEXT
}

/// What an empty program costs: the reference of the benchmarks; never attached.
#[xdp]
pub fn fw_none_xdp(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// What an empty program costs: the reference of the benchmarks; never attached.
#[classifier]
pub fn fw_none_tcx(_context: TcContext) -> i32 {
    TCX_NEXT
}

/// Some helpers are for programs under a licence compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_information: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
