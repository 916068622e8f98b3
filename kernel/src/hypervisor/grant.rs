//! Mapping other domains' pages by grant, each at one slot of the window.

use super::abi::{GRANT_OKAY, MAP_FOR_HOST, MapGrant, UnmapGrant};
use super::frames::HeapFrames;
use super::hypercall;
use super::page::SharedPage;
use super::ranges::PAGE_SIZE;
use super::window::{Slot, Window};
use crate::xen::{Page, PageFacts, XenError};
use xenstore::{DomId, GrantRef};

/// `ENOSPC`: no slot is free.
const NO_SPACE: XenError = XenError(28);

/// Another domain's page, mapped. It stays mapped until it is handed to [`unmap`].
#[derive(Debug)]
pub struct MappedPage {
    page: SharedPage,
    slot: Slot,
    handle: u32,
}

impl Page for MappedPage {
    fn load(&self, offset: usize) -> u32 {
        self.page.load(offset)
    }

    fn store(&self, offset: usize, value: u32) {
        self.page.store(offset, value);
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.page.read(offset, into);
    }

    fn write(&self, offset: usize, from: &[u8]) {
        self.page.write(offset, from);
    }
}

/// Maps the page that `domid` granted to us as `grant`.
///
/// # Errors
/// What Xen answered, or that no slot is free; nothing stays mapped.
pub(super) fn map(
    window: &mut Window,
    frames: &HeapFrames,
    domid: DomId,
    grant: GrantRef,
) -> Result<MappedPage, XenError> {
    let slot = window.take_or_grow(frames).ok_or(NO_SPACE)?;
    let mapped = map_at(window, slot, domid, grant);
    if mapped.is_err() {
        window.give_back(slot);
    }
    mapped
}

fn map_at(
    window: &mut Window,
    slot: Slot,
    domid: DomId,
    grant: GrantRef,
) -> Result<MappedPage, XenError> {
    let gfn = window.gfn_of(slot);
    let mut map = MapGrant {
        host_address: gfn.saturating_mul(PAGE_SIZE),
        flags: MAP_FOR_HOST,
        grant: grant.0,
        domid: domid.get(),
        status: 0,
        handle: 0,
        device_address: 0,
    };
    // SAFETY: the page appears at a guest frame of the window, where no memory of ours is.
    unsafe { hypercall::perform(&mut map) }?;
    check(map.status)?;
    let page = window.show(slot, gfn).ok_or(NO_SPACE)?;
    Ok(MappedPage {
        page,
        slot,
        handle: map.handle,
    })
}

/// What the next start of the domain needs to go on with a page: its slot and its handle.
pub(super) fn describe(page: &MappedPage) -> PageFacts {
    let [h0, h1, h2, h3] = page.handle.to_le_bytes();
    let [s0, s1] = page.slot.number().to_le_bytes();
    [h0, h1, h2, h3, s0, s1, 0, 0]
}

/// Goes on with a page that another start of the domain mapped.
///
/// # Errors
/// There is no such slot, or it is taken.
pub(super) fn adopt(
    window: &mut Window,
    frames: &HeapFrames,
    facts: PageFacts,
) -> Result<MappedPage, XenError> {
    let [h0, h1, h2, h3, s0, s1, ..] = facts;
    let number = u16::from_le_bytes([s0, s1]);
    let slot = window.adopt(number, frames).ok_or(NO_SPACE)?;
    let gfn = window.gfn_of(slot);
    let page = window.show(slot, gfn).ok_or(NO_SPACE)?;
    Ok(MappedPage {
        page,
        slot,
        handle: u32::from_le_bytes([h0, h1, h2, h3]),
    })
}

/// Gives a page back.
///
/// # Errors
/// What Xen answered; then the slot is never used again, since the page may still be there.
pub(super) fn unmap(window: &mut Window, page: MappedPage) -> Result<(), XenError> {
    window.hide(page.slot);
    let mut unmap = UnmapGrant {
        host_address: window.gfn_of(page.slot).saturating_mul(PAGE_SIZE),
        device_address: 0,
        handle: page.handle,
        status: 0,
        padding: 0,
    };
    // SAFETY: only the window's guest frame changes, and nobody can reach it any more: `page` was the only way.
    unsafe { hypercall::perform(&mut unmap) }?;
    check(unmap.status)?;
    window.give_back(page.slot);
    Ok(())
}

/// A status is 0 or one of the negative `GNTST_*`.
fn check(status: i16) -> Result<(), XenError> {
    if status == GRANT_OKAY {
        return Ok(());
    }
    Err(XenError(i32::from(status).saturating_abs()))
}
