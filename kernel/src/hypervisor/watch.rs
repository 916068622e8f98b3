//! The watch: work that does not end is ended where it is, as by an exception, so that one request cannot take the store from all others.
//!
//! The loop says when other work begins ([`look`]). The local APIC's timer comes when it has not for a while; what is at work then goes on, until
//! the timer has found the same work again and the domain has run for [`LIMIT`] meanwhile. Time in which other domains had the processor,
//! or this one was paused, does not count. The timer is pushed forward once in half a [`TICK`], so that requests cost no more for it.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;

use ::log::warn;
use x86_64::instructions::{interrupts, nop};
use x86_64::registers::model_specific::Msr;
use xenstore::Instant;

use super::trap::{Frame, TIMER_VECTOR, save_and_return};
use super::trial::BYTES_A_SECOND;
use super::upcall::{SLEEPER, sleep};
use super::{clock, cpuid, heap, report};

/// The timer comes so long after it was pushed.
const TICK: Duration = Duration::from_secs(1);
/// How long the domain may run between two ticks that find the same work: with the time before the first it is 2.5 to 3 s.
const LIMIT: Duration = Duration::from_millis(1500);
/// Memory in use that allows for a second more: the longest request goes through the whole state once.
const HEAP_A_SECOND: u64 = 32 << 20;

/// The local APIC's registers (`monitor.s` has the same).
const APIC_BASE: Msr = Msr::new(0x1b);
const APIC_SPURIOUS: Msr = Msr::new(0x80f);
pub(super) const APIC_TIMER: Msr = Msr::new(0x832);
const APIC_COUNT: Msr = Msr::new(0x838);
const APIC_DIVIDE: Msr = Msr::new(0x83e);
/// In the base register: switched on, in the mode of register numbers.
const APIC_BY_NUMBERS: u64 = 0xc00;
const APIC_ENABLED: u64 = 0x1ff;
const DIVIDE_BY_128: u64 = 0xa;
pub(super) const TIMER_MASKED: u64 = 1 << 16;
/// Xen's timer has 100 MHz, divided by 128.
pub(super) const TICKS_A_MILLISECOND: u64 = 781;

/// Whether there is a timer, and it is used.
static IS_ON: AtomicBool = AtomicBool::new(false);
/// System time from when on the next look pushes the timer.
static PUSH_AT_NS: AtomicU64 = AtomicU64::new(u64::MAX);
/// How long the domain may run from the first tick on.
static LIMIT_NS: AtomicU64 = AtomicU64::new(0);
/// The same for work that goes through the whole state more than once.
static LONG_LIMIT_NS: AtomicU64 = AtomicU64::new(0);
/// How long it had run at the first tick since the last push; 0 if there was none.
static FIRST_TICK_NS: AtomicU64 = AtomicU64::new(0);

/// Begins to watch, if the processor has an x2APIC. The work that is under way may take as long as the whole state needs.
pub(super) fn start() {
    // A guest is saved and restored, and serves nobody.
    if cfg!(feature = "guest") {
        return;
    }
    if !has_timer() {
        warn!("there is no x2APIC: work that does not end is not ended");
        return;
    }
    for (register, value) in [
        (APIC_SPURIOUS, APIC_ENABLED),
        (APIC_DIVIDE, DIVIDE_BY_128),
        (APIC_TIMER, u64::from(TIMER_VECTOR)),
    ] {
        set(register, value);
    }
    IS_ON.store(true, Ordering::Relaxed);
    allow_all_state();
    go_on();
}

/// The work before has ended, and other work begins.
pub(super) fn look(now: Instant) {
    if now.0 >= PUSH_AT_NS.load(Ordering::Relaxed) {
        LONG_LIMIT_NS.store(limit(BYTES_A_SECOND), Ordering::Relaxed);
        push(now, limit(HEAP_A_SECOND));
    }
}

/// The work under way goes through the whole state more than once: an image is checked, the state is written or read.
pub(super) fn allow_all_state() {
    if IS_ON.load(Ordering::Relaxed) {
        let limit_ns = limit(BYTES_A_SECOND);
        LONG_LIMIT_NS.store(limit_ns, Ordering::Relaxed);
        push(clock::system_time(), limit_ns);
    }
}

/// Watches the last work of an instance that has crashed: it writes the state, and has no heap to ask. Nobody sleeps any more.
pub(super) fn allow_rescue() {
    SLEEPER.store(0, Ordering::Relaxed);
    if IS_ON.load(Ordering::Relaxed) {
        let limit_ns = LONG_LIMIT_NS.load(Ordering::Relaxed);
        push(clock::system_time(), limit_ns);
    }
    go_on();
}

/// Interrupts are on at work, if it is watched.
pub(super) fn go_on() {
    if IS_ON.load(Ordering::Relaxed) {
        // SAFETY: an ordinary call; all handlers are installed since `start`.
        unsafe { enable_interrupts() };
    }
}

/// One place, which `scripts/check-image` knows.
///
/// # Safety
/// The handlers must be installed.
#[unsafe(naked)]
unsafe extern "C" fn enable_interrupts() {
    naked_asm!("sti", "ret")
}

/// Ends the watch: interrupts are off, and no tick is under way.
pub(super) fn stop() {
    if IS_ON.swap(false, Ordering::Relaxed) {
        set(APIC_COUNT, 0);
        // One that has come is taken now.
        nop();
        nop();
    }
    interrupts::disable();
    PUSH_AT_NS.store(u64::MAX, Ordering::Relaxed);
}

/// Whether the local APIC has a timer for us; it is made ready then.
pub(super) fn has_timer() -> bool {
    if !cpuid::has_x2apic() {
        return false;
    }
    let mut base = APIC_BASE;
    // SAFETY: the processor has this register.
    let value = unsafe { base.read() };
    // SAFETY: it has the mode, and nothing of ours uses another.
    unsafe { base.write(value | APIC_BY_NUMBERS) };
    true
}

fn push(now: Instant, limit_ns: u64) {
    LIMIT_NS.store(limit_ns, Ordering::Relaxed);
    FIRST_TICK_NS.store(0, Ordering::Relaxed);
    begin_tick();
    let half_ns = nanoseconds(TICK) / 2;
    PUSH_AT_NS.store(now.0.saturating_add(half_ns), Ordering::Relaxed);
}

fn begin_tick() {
    let ticks = u64::try_from(TICK.as_millis()).unwrap_or(u64::MAX);
    set(APIC_COUNT, ticks.saturating_mul(TICKS_A_MILLISECOND));
}

/// [`LIMIT`], and a second for each `bytes_a_second` in use.
fn limit(bytes_a_second: u64) -> u64 {
    let used = u64::try_from(heap::heap_usage().used).unwrap_or(u64::MAX);
    let more_ms = used.saturating_mul(1000) / bytes_a_second;
    nanoseconds(LIMIT.saturating_add(Duration::from_millis(more_ms)))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn set(mut register: Msr, value: u64) {
    // SAFETY: a register of the local APIC in the mode that `has_timer` set; its timer has a handler (`trap`).
    unsafe { register.write(value) };
}

/// The timer came at work.
pub(super) fn tick(frame: &Frame) {
    if !IS_ON.load(Ordering::Relaxed) {
        return;
    }
    let ran_ns = clock::running_time_ns();
    match FIRST_TICK_NS.load(Ordering::Relaxed) {
        0 => FIRST_TICK_NS.store(ran_ns.max(1), Ordering::Relaxed),
        first if ran_ns.saturating_sub(first) >= LIMIT_NS.load(Ordering::Relaxed) => {
            report::exception(frame)
        }
        _ => {}
    }
    PUSH_AT_NS.store(0, Ordering::Relaxed);
    begin_tick();
}

/// The timer: tells the local APIC that it was heard. It does not wake who sleeps, but the next look pushes it.
///
/// # Safety
/// Only an interrupt gate with a stack of its own may enter it.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn handler() {
    naked_asm!(
        "push rax", "push rcx", "push rdx",
        "xor eax, eax",
        "xor edx, edx",
        "mov ecx, {end_of_interrupt}",
        "wrmsr",
        "pop rdx", "pop rcx", "pop rax",
        "cmp qword ptr [rip + {sleeper}], 0",
        "je 2f",
        "mov qword ptr [rip + {push_at}], 0",
        "mov rsp, [rip + {sleeper}]",
        "jmp {sleep}",
        "2:",
        "push 0",
        "push {vector}",
        "jmp {at_work}",
        end_of_interrupt = const 0x80b,
        sleeper = sym SLEEPER,
        push_at = sym PUSH_AT_NS,
        sleep = sym sleep,
        vector = const TIMER_VECTOR,
        at_work = sym save_and_return,
    )
}
