//! What stands between Xen and the store: this kernel has no processes, no files and no drivers, only rings, ports, domains and time.
//!
//! 1. One loop does everything: collect what is pending, serve, sleep ([`run`], [`dispatch`]). There is one virtual CPU, interrupts are
//!    enabled only while it sleeps, so nothing ever runs beside the loop and nothing needs a lock.
//! 2. Nothing in a shared page is believed. It is read once, as a private copy, and no reference to it can be formed ([`ring`],
//!    [`xen::Page`]).
//! 3. A fault costs the connection that caused it; that domain stays known and has a way back ([`dispatch`]).
//! 4. Everything is bounded: the links of a round, the rounds of a turn, the bytes of a look, the lines of a spell of trouble.
//! 5. Events are hints. What they do not tell, slow sweeps find ([`sweep`], [`domains`]).
//! 6. A domain is its identity, never its domid alone ([`domains`], [`link`]).
//! 7. `unsafe` is in [`hypervisor`] only, and so is every structure of Xen's; the rest asks for what it needs through [`xen::Xen`],
//!    which is why the same dispatcher runs over a machine in memory (the module `fake`).
//! 8. The instance is not the domain: another image follows it, or the same one after a crash, on the state that it leaves ([`run`],
//!    [`update`], [`next_image`]).
//!
//! Dependencies point one way: `boot` → `kernel` → `xenstore`, and `host` → `kernel`, `xenstore`. A test of this crate holds it.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod boot_info;
mod bugs;
pub mod config;
pub mod credit;
pub mod dispatch;
pub mod domain_interface;
pub mod domains;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod hypervisor;
pub mod link;
pub mod next_image;
pub mod ring;
pub mod run;
pub mod sweep;
mod sync;
pub mod update;
pub mod xen;
