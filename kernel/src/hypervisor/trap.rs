//! Exceptions: each ends in a report that names the place; none returns to the code that it interrupted.
//!
//! Every exception switches to an IST stack, because the prebuilt `core` keeps data in the red zone below the stack pointer and
//! because the main stack may be the cause. So do the two interrupts, Xen's upcall and the watch's timer, which return (see `upcall`).

use core::arch::{asm, naked_asm};
use core::cell::UnsafeCell;

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::{lidt, load_tss};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use super::{report, reserve, upcall, watch};

const EXCEPTIONS: usize = 32;
/// The upcall's vector: the first one that is no exception.
pub(super) const UPCALL_VECTOR: u8 = 32;
/// The local APIC's timer, of the watch as of a trial: one of these may come once more after the other was begun.
pub(super) const TIMER_VECTOR: u8 = reserve::TIMER_VECTOR;
const VECTORS: usize = EXCEPTIONS + 2;
/// The last byte of the table of gates.
const GATES_LIMIT: u16 = 543;
const _: () = assert!(GATES_LIMIT as usize + 1 == size_of::<[Gate; VECTORS]>());

const NMI: usize = 2;
const DOUBLE_FAULT: usize = 8;
const MACHINE_CHECK: usize = 18;

/// Bytes of each exception stack: a report needs less than half.
const STACK_SIZE: usize = 16 * 1024;

/// A stack over a page that paging leaves unmapped, so that an overflow faults instead of writing into its neighbour.
#[repr(C, align(4096))]
struct GuardedStack {
    guard: [u8; 4096],
    stack: UnsafeCell<[u8; STACK_SIZE]>,
}

// SAFETY: only the one processor uses it, as a stack; Rust forms no reference to the contents.
unsafe impl Sync for GuardedStack {}

impl GuardedStack {
    const fn new() -> Self {
        Self {
            guard: [0; 4096],
            stack: UnsafeCell::new([0; STACK_SIZE]),
        }
    }

    fn top(&self) -> VirtAddr {
        VirtAddr::from_ptr(self.stack.get()) + STACK_SIZE as u64
    }
}

/// The exception stacks. An NMI, a machine check or a double fault may come while a report runs on the first.
static STACKS: [GuardedStack; 5] = [const { GuardedStack::new() }; 5];
/// That of the interrupts, which never interrupt each other.
const INTERRUPTS: u8 = 4;

/// Which of [`STACKS`] a vector gets.
const fn stack_of(vector: usize) -> u8 {
    match vector {
        NMI => 1,
        DOUBLE_FAULT => 2,
        MACHINE_CHECK => 3,
        _ => 0,
    }
}

/// The pages below the exception stacks, to be unmapped.
pub(super) fn stack_guards() -> impl Iterator<Item = u64> {
    STACKS
        .iter()
        .map(|stack| (&raw const stack.guard).addr() as u64)
}

#[unsafe(link_section = ".sealed")]
static TASK_STATE: Once<TaskStateSegment> = Once::new();
#[unsafe(link_section = ".sealed")]
static SEGMENTS: Once<Segments> = Once::new();
#[unsafe(link_section = ".sealed")]
static GATES: Once<[Gate; VECTORS]> = Once::new();

struct Segments {
    table: GlobalDescriptorTable,
    code: SegmentSelector,
    task_state: SegmentSelector,
}

/// Makes descriptor tables and exception handlers and uses them: the first thing to do, since a fault before it stops the domain without a word.
pub(super) fn start() {
    prepare();
    load();
}

/// Makes the tables, as long as they can be written.
pub(super) fn prepare() {
    let task_state = TASK_STATE.call_once(task_state);
    let segments = SEGMENTS.call_once(|| segments(task_state));
    GATES.call_once(|| gates(segments.code));
}

/// Uses the tables, once.
pub(super) fn load() {
    let (Some(segments), Some(gates)) = (SEGMENTS.get(), GATES.get()) else {
        return;
    };
    segments.table.load();
    // SAFETY: the selector names the 64-bit code segment of the table just loaded.
    unsafe { CS::set_reg(segments.code) };
    for clear in [SS::set_reg, DS::set_reg, ES::set_reg] {
        // SAFETY: in long mode at ring 0 null data selectors are valid, and nothing uses them.
        unsafe { clear(SegmentSelector::NULL) };
    }
    // SAFETY: the selector names the task state segment of the table just loaded.
    unsafe { load_tss(segments.task_state) };
    let pointer = DescriptorTablePointer {
        limit: GATES_LIMIT,
        base: VirtAddr::from_ptr(gates),
    };
    // SAFETY: the table is static, and every present gate leads to a handler that fits its vector.
    unsafe { lidt(&pointer) };
}

fn task_state() -> TaskStateSegment {
    let mut state = TaskStateSegment::new();
    state.interrupt_stack_table = core::array::from_fn(|index| {
        STACKS
            .get(index)
            .map_or(VirtAddr::zero(), GuardedStack::top)
    });
    state
}

fn segments(task_state: &'static TaskStateSegment) -> Segments {
    let mut table = GlobalDescriptorTable::new();
    let code = table.append(Descriptor::kernel_code_segment());
    let task_state = table.append(Descriptor::tss_segment(task_state));
    Segments {
        table,
        code,
        task_state,
    }
}

fn gates(code: SegmentSelector) -> [Gate; VECTORS] {
    let stubs = (exception_stubs as *const ()).addr();
    core::array::from_fn(|vector| {
        if vector == usize::from(UPCALL_VECTOR) {
            return Gate::new((upcall::handler as *const ()).addr(), code, INTERRUPTS);
        }
        if vector == usize::from(TIMER_VECTOR) {
            return Gate::new((watch::handler as *const ()).addr(), code, INTERRUPTS);
        }
        let stub = stubs + vector * STUB_SIZE;
        Gate::new(stub, code, stack_of(vector))
    })
}

/// Ends where there is no Xen to ask: an exception without handlers, which every machine and emulator takes as the end.
pub(super) fn triple_fault() -> ! {
    let nothing = DescriptorTablePointer {
        limit: 0,
        base: VirtAddr::zero(),
    };
    // SAFETY: interrupts are off, and nothing runs after the next instruction.
    unsafe { lidt(&nothing) };
    // SAFETY: it does not return.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// One entry of the interrupt descriptor table (AMD64 manual volume 2, section 4.8.4).
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(super) struct Gate {
    offset_low: u16,
    selector: u16,
    /// 1 to 7, or 0 to stay on the interrupted stack.
    stack: u8,
    /// Present, ring 0, interrupt gate: interrupts stay off.
    kind: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<Gate>() == 16);

impl Gate {
    const PRESENT_INTERRUPT_GATE: u8 = 0x8e;

    fn new(handler: usize, code: SegmentSelector, stack: u8) -> Self {
        Self::to(handler as u64, code.0, stack.saturating_add(1))
    }

    /// To the code at `handler`, on the interrupt stack `stack`, 1 to 7.
    pub(super) const fn to(handler: u64, selector: u16, stack: u8) -> Self {
        let [b0, b1, b2, b3, b4, b5, b6, b7] = handler.to_le_bytes();
        Self {
            offset_low: u16::from_le_bytes([b0, b1]),
            selector,
            stack,
            kind: Self::PRESENT_INTERRUPT_GATE,
            offset_middle: u16::from_le_bytes([b2, b3]),
            offset_high: u32::from_le_bytes([b4, b5, b6, b7]),
            reserved: 0,
        }
    }

    /// As it lies in memory.
    pub(super) const fn words(self) -> [u64; 2] {
        let [o0, o1] = self.offset_low.to_le_bytes();
        let [s0, s1] = self.selector.to_le_bytes();
        let [m0, m1] = self.offset_middle.to_le_bytes();
        let first = u64::from_le_bytes([o0, o1, s0, s1, self.stack, self.kind, m0, m1]);
        [first, self.offset_high as u64]
    }
}

const STUB_SIZE: usize = 16;
/// Bit n: the processor itself pushes an error code for vector n.
const WITH_ERROR_CODE: u32 = 1 << 8 | 0x1f << 10 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;

/// 32 entries of [`STUB_SIZE`] bytes: each makes the stack a [`Frame`]'s end and goes on to [`save_and_report`].
#[unsafe(naked)]
unsafe extern "C" fn exception_stubs() {
    naked_asm!(
        ".set .Lvector, 0",
        ".rept {count}",
        ".balign {size}",
        ".if (({with_error_code} >> .Lvector) & 1) == 0",
        "push 0",
        ".endif",
        "push .Lvector",
        "jmp {next}",
        ".set .Lvector, .Lvector + 1",
        ".endr",
        count = const EXCEPTIONS,
        size = const STUB_SIZE,
        with_error_code = const WITH_ERROR_CODE,
        next = sym save_and_report,
    )
}

#[unsafe(naked)]
unsafe extern "C" fn save_and_report() {
    naked_asm!(
        "push rax", "push rcx", "push rdx", "push rbx", "push rbp", "push rsi", "push rdi",
        "push r8", "push r9", "push r10", "push r11", "push r12", "push r13", "push r14", "push r15",
        "cld",
        "mov rdi, rsp",
        "and rsp, -16",
        "call {report}",
        "ud2",
        report = sym report_exception,
    )
}

extern "C" fn report_exception(frame: &Frame) -> ! {
    report::exception(frame)
}

/// Goes on from the entry of an interrupt that came at work: the stack is a [`Frame`]'s end, all registers are kept.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn save_and_return() {
    naked_asm!(
        "push rax", "push rcx", "push rdx", "push rbx", "push rbp", "push rsi", "push rdi",
        "push r8", "push r9", "push r10", "push r11", "push r12", "push r13", "push r14", "push r15",
        "cld",
        "mov rdi, rsp",
        "mov rbx, rsp",
        "sub rsp, 512",
        "and rsp, -16",
        "fxsave64 [rsp]",
        "call {interrupted}",
        "fxrstor64 [rsp]",
        "mov rsp, rbx",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop r11", "pop r10", "pop r9", "pop r8",
        "pop rdi", "pop rsi", "pop rbp", "pop rbx", "pop rdx", "pop rcx", "pop rax",
        // The vector and the error code.
        "add rsp, 16",
        "iretq",
        interrupted = sym interrupted,
    )
}

/// An interrupt that came at work.
extern "C" fn interrupted(frame: &Frame) {
    let entries = [upcall::handler as *const (), watch::handler as *const ()];
    // Delivered twice, as emulation may: there is no way back to what the first one interrupted.
    let is_lost = entries.iter().any(|entry| entry.addr() as u64 == frame.rip);
    if is_lost {
        report::exception(frame);
    }
    if frame.vector == u64::from(TIMER_VECTOR) {
        watch::tick(frame);
    } else {
        upcall::came_at_work();
    }
}

/// The registers at an exception, as [`save_and_report`] and the processor pushed them.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Frame {
    pub(super) r15: u64,
    pub(super) r14: u64,
    pub(super) r13: u64,
    pub(super) r12: u64,
    pub(super) r11: u64,
    pub(super) r10: u64,
    pub(super) r9: u64,
    pub(super) r8: u64,
    pub(super) rdi: u64,
    pub(super) rsi: u64,
    pub(super) rbp: u64,
    pub(super) rbx: u64,
    pub(super) rdx: u64,
    pub(super) rcx: u64,
    pub(super) rax: u64,
    pub(super) vector: u64,
    pub(super) error_code: u64,
    pub(super) rip: u64,
    pub(super) cs: u64,
    pub(super) rflags: u64,
    pub(super) rsp: u64,
    pub(super) ss: u64,
}

/// What the processor's manual calls a vector.
pub(super) const fn name_of(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        6 => "invalid opcode",
        7 => "no floating point unit",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD error",
        21 => "control protection",
        33 => "work that does not end",
        _ => "exception",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_splits_the_address() {
        let gate = Gate::new(0x1122_3344_5566_7788, SegmentSelector(8), 2);
        assert_eq!(
            (gate.offset_low, gate.offset_middle, gate.offset_high),
            (0x7788, 0x5566, 0x1122_3344)
        );
        assert_eq!((gate.selector, gate.stack, gate.kind), (8, 3, 0x8e));
    }

    #[test]
    fn all_leave_the_stack_and_interrupts_have_their_own() {
        let gates = gates(SegmentSelector(8));
        let (exceptions, interrupts) = gates.split_at(EXCEPTIONS);
        assert!(interrupts.iter().all(|gate| gate.stack == INTERRUPTS + 1));
        assert!(exceptions.iter().all(|gate| (1..=4).contains(&gate.stack)));
        let own = [NMI, DOUBLE_FAULT, MACHINE_CHECK];
        assert!(own.iter().all(|vector| gates[*vector].stack != 1));
    }

    #[test]
    fn guards_are_whole_pages() {
        assert!(stack_guards().all(|address| address % 4096 == 0));
        assert_eq!(stack_guards().count(), 5);
    }
}
