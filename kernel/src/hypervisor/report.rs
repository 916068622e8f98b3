//! The domain's last words: what failed, where, and which build it was; then the crash shutdown that Xen reports to the toolstack.
//!
//! `SCHEDOP_shutdown` itself is silent, so the words come first, on every console that works. Nothing here allocates or waits.

use core::fmt::{self, Display};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

use spin::Once;
use x86_64::registers::control::Cr2;

use super::abi::{SHUTDOWN_CRASH, Shutdown};
use super::line::Line;
use super::trap::{Frame, name_of};
use super::{console, early, hypercall, rescue, reserve, start, trap, trial};

static BUILD_ID: Once<&'static [u8]> = Once::new();

/// Reports begun: a report can fail itself.
static REPORTS: AtomicU32 = AtomicU32::new(0);

/// Remembers which build this is.
pub(super) fn start(build_id: &'static [u8]) {
    BUILD_ID.call_once(|| build_id);
}

/// A start-up failure: says `message` on every console that works, then shuts the domain down as crashed.
pub fn crash(message: impl Display) -> ! {
    end_with(|| say(format_args!("ferrostore cannot go on: {message}")))
}

/// A panic of ours: says where, then shuts the domain down as crashed. For the image's panic handler.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    end_with(|| {
        // The place first and alone: writing the message may panic itself.
        if let Some(place) = info.location() {
            say(format_args!("ferrostore PANIC at {place}"));
        }
        say(format_args!("{}", info.message()));
    })
}

/// An exception: says where, with all registers, then shuts the domain down as crashed.
pub(super) fn exception(frame: &Frame) -> ! {
    end_with(|| {
        say(format_args!(
            "ferrostore EXCEPTION {} ({}) at rip {:#x}, error code {:#x}, cr2 {:#x}",
            frame.vector,
            name_of(frame.vector),
            frame.rip,
            frame.error_code,
            Cr2::read_raw(),
        ));
        say(format_args!(
            "rsp {:#x} rflags {:#x} cs {:#x} ss {:#x} rbp {:#x}",
            frame.rsp, frame.rflags, frame.cs, frame.ss, frame.rbp
        ));
        say(format_args!(
            "rax {:#x} rbx {:#x} rcx {:#x} rdx {:#x} rsi {:#x} rdi {:#x}",
            frame.rax, frame.rbx, frame.rcx, frame.rdx, frame.rsi, frame.rdi
        ));
        say(format_args!(
            "r8 {:#x} r9 {:#x} r10 {:#x} r11 {:#x} r12 {:#x} r13 {:#x} r14 {:#x} r15 {:#x}",
            frame.r8, frame.r9, frame.r10, frame.r11, frame.r12, frame.r13, frame.r14, frame.r15
        ));
    })
}

/// Speaks and starts anew, or ends. A report that fails itself leaves one fixed line, and a failure in that leaves none.
fn end_with(speak: impl FnOnce()) -> ! {
    match REPORTS.fetch_add(1, Ordering::Relaxed) {
        0 => {
            console::clear_backlog();
            if let Some(reserve) = reserve::get() {
                reserve.header().reason.clear();
            }
            speak();
            if trial::is_open()
                && let Some(reserve) = reserve::get()
            {
                trial::refuse(reserve);
            }
            say(format_args!("build id {}", Hex(build_id())));
            let why = rescue::restart();
            say(format_args!("ferrostore ends: {why}"));
        }
        1 => {
            early::write(b"ferrostore failed again after a failure\n");
            rescue::restart();
        }
        2 => early::write(b"ferrostore cannot be restarted\n"),
        _ => {}
    }
    stop()
}

/// Ends the domain after a crash from which there is no restart.
pub(super) fn end(why: &str) -> ! {
    say(format_args!("ferrostore ends: {why}"));
    stop()
}

fn say(text: fmt::Arguments<'_>) {
    start::note_reason(text);
    let line = Line::of(text);
    early::write(line.as_bytes());
    console::try_write(line.as_bytes());
}

fn stop() -> ! {
    let mut shutdown = Shutdown {
        reason: SHUTDOWN_CRASH,
    };
    // SAFETY: touches no memory. It returns only where there is no Xen.
    let _ = unsafe { hypercall::perform(&mut shutdown) };
    trap::triple_fault()
}

/// Which build this is; empty before it is known.
pub(super) fn build_id() -> &'static [u8] {
    BUILD_ID.get().copied().unwrap_or_default()
}

/// Bytes as hexadecimal digits.
pub(super) struct Hex(pub(super) &'static [u8]);

impl Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
