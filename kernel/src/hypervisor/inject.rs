//! Crashes on demand, for tests of what comes after them. Not in the image that is built by default.

use core::arch::asm;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, Ordering};

use super::handover::{Header, Stage};
use super::heap;
use super::start::Handover;

/// The next turn of the loop panics, or does not end.
static IN_LOOP: AtomicBool = AtomicBool::new(false);
static LOOP_HANGS: AtomicBool = AtomicBool::new(false);

/// Crashes in the way that `kind` names; answers whether there is such a way.
pub fn crash(kind: &[u8]) -> bool {
    match kind {
        b"panic" => panic_here("asked for"),
        b"ud2" => invalid_opcode(),
        b"readonly" => write_text(),
        b"stack" => {
            black_box(overflow(0));
        }
        b"memory" => take_all(),
        b"allocator" => heap::panic_inside(),
        b"hang" => hang(),
        b"loop" => IN_LOOP.store(true, Ordering::Relaxed),
        b"loop-hang" => LOOP_HANGS.store(true, Ordering::Relaxed),
        _ => return false,
    }
    true
}

/// Where the loop crashes, if that was asked for.
pub fn in_loop() {
    if IN_LOOP.load(Ordering::Relaxed) {
        panic_here("asked for, in the loop");
    }
    if LOOP_HANGS.load(Ordering::Relaxed) {
        hang();
    }
}

/// What an image that is tried reads of the stream, and with how much memory, if the command line says that it should fail at that.
#[must_use]
pub fn at_import(handover: &Handover) -> &'static [u8] {
    let stream = handover.stream();
    if handover.stage() != Stage::Trial {
        return stream;
    }
    match asked_for(handover.command_line().as_ref()) {
        Some("stream") => stream
            .split_last_chunk::<64>()
            .map_or(stream, |(rest, _)| rest),
        Some("memory") => {
            take_all();
            stream
        }
        _ => stream,
    }
}

fn asked_for(command_line: &str) -> Option<&str> {
    let mut words = command_line.split(' ');
    words.find_map(|word| word.strip_prefix("inject="))
}

/// Does at the first chance what the word `inject=` of the command line says, if this image is tried.
pub(super) fn at_entry(header: &Header) {
    match asked_for(&header.next_command_line.get()) {
        Some("exception") => invalid_opcode(),
        Some("panic") => panic_here("asked for, at entry"),
        Some("hang") => hang(),
        _ => {}
    }
}

#[expect(clippy::panic, reason = "this is what it is for")]
fn panic_here(why: &str) {
    panic!("{why}");
}

fn hang() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

fn invalid_opcode() {
    // SAFETY: the exception's handler does not return.
    unsafe { asm!("ud2") }
}

fn write_text() {
    let text = (crash as *const ()).cast::<u8>().cast_mut();
    // SAFETY: the page is read-only, so that this is an exception whose handler does not return.
    unsafe { text.write_volatile(0) };
}

#[expect(unconditional_recursion, reason = "this is what it is for")]
fn overflow(depth: u64) -> u64 {
    let room = black_box([depth; 64]);
    overflow(depth.wrapping_add(1)).wrapping_add(room.iter().sum())
}

fn take_all() {
    let mut taken = alloc::vec::Vec::new();
    loop {
        taken.push(black_box(alloc::vec![0_u8; 4096]));
    }
}
