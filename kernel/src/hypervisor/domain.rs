//! The two hypercalls by which Xen tells of domains; what their answers mean is decided in `domain_interface`.

use super::abi::{DomainInfo, DomainState, GET_DOMAIN_INFO, GET_DOMAIN_STATE};
use super::hypercall;
use crate::domain_interface::{DomainCalls, InfoAnswer, StateAnswer};
use crate::xen::XenError;

/// Xen itself.
pub(super) struct Hypervisor;

impl DomainCalls for Hypervisor {
    fn domain_state(&mut self, domid: u16) -> Result<StateAnswer, XenError> {
        let mut state = DomainState {
            command: GET_DOMAIN_STATE,
            interface_version: 0,
            domid,
            padding: [0; 3],
            state: 0,
            capabilities: 0,
            must_be_zero: 0,
            unique_id: 0,
            rest: [0; 28],
        };
        // SAFETY: touches no other memory.
        unsafe { hypercall::perform(&mut state) }?;
        Ok(StateAnswer {
            domid: state.domid,
            state: state.state,
            capabilities: state.capabilities,
            unique_id: state.unique_id,
        })
    }

    fn domain_info(&mut self, domid: u16, version: u32) -> Result<InfoAnswer, XenError> {
        let mut info = DomainInfo {
            command: GET_DOMAIN_INFO,
            interface_version: version,
            domid,
            padding: [0; 3],
            found_domid: 0,
            found_padding: 0,
            flags: 0,
            counters: [0; 8],
            ssidref: 0,
            handle: [0; 16],
            rest: [0; 148],
        };
        // SAFETY: touches no other memory.
        unsafe { hypercall::perform(&mut info) }?;
        Ok(InfoAnswer {
            domid: info.found_domid,
            flags: info.flags,
            handle: info.handle,
        })
    }
}
