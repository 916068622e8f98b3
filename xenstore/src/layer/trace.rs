//! The layer `trace`: one line in the log for each request, when it is answered.

use alloc::boxed::Box;

use super::{Call, Done, Gate, Layer};
use crate::extension::{Item, View, Why};
use crate::wire::Errno;

/// Most bytes of a path that a line shows.
const SHOWN_MAX: usize = 256;
const NANOSECONDS: u64 = 1_000_000_000;

/// Tells what came of each request: time in seconds, domain, type, path, result, cost.
#[derive(Debug)]
pub(super) struct Trace;

impl Trace {
    pub(super) fn make(item: &Item<'_>) -> Result<Box<dyn Layer>, Why> {
        item.without_parameters()
            .map(|()| Box::new(Self) as Box<dyn Layer>)
    }
}

impl Layer for Trace {
    fn name(&self) -> &'static str {
        "trace"
    }

    fn admit(&mut self, _: &Call<'_>, _: &dyn View) -> Gate {
        Gate::Pass
    }

    fn complete(&mut self, call: &Call<'_>, done: &Done) {
        let (seconds, rest) = (call.now().0 / NANOSECONDS, call.now().0 % NANOSECONDS);
        let name = call.kind().map_or("?", |kind| kind.name());
        let path = match call.path() {
            [] => b"-",
            path => path.get(..SHOWN_MAX).unwrap_or(path),
        };
        log::info!(
            "trace: {seconds}.{rest:09} d{} {name} {} {} {}",
            call.domid(),
            path.escape_ascii(),
            done.error.map_or("OK", Errno::name),
            done.cost
        );
    }
}
