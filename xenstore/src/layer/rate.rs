//! The layer `rate`: each domain gets so many requests a second; those beyond wait.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use core::time::Duration;

use super::scope::Who;
use super::{Call, Gate, Layer};
use crate::extension::{Item, View, Why, number};
use crate::ids::DomId;
use crate::time::Instant;

/// Requests that a domain may make at once after it made none, unless the word says otherwise.
const BURST: u32 = 20;
/// Most requests a second.
const RATE_MAX: u32 = 1_000_000;

/// How fast requests come.
#[derive(Debug)]
pub(super) struct Rate {
    who: Who,
    /// From one to the next.
    interval: Duration,
    burst: u32,
    /// When each domain will have its whole burst again.
    full_at: BTreeMap<DomId, Instant>,
}

impl Rate {
    pub(super) fn make(item: &Item<'_>) -> Result<Box<dyn Layer>, Why> {
        let wrong = "it takes requests a second, such as rate:200/s";
        let mut parameters = item.parameters();
        let Some((None, rate)) = parameters.next() else {
            return Err(wrong);
        };
        let rate = number(rate.strip_suffix("/s").ok_or(wrong)?, RATE_MAX)?;
        let interval = Duration::from_secs(1).checked_div(rate).ok_or(wrong)?;
        let mut made = Self {
            who: Who::default(),
            interval,
            burst: BURST,
            full_at: BTreeMap::new(),
        };
        for (name, value) in parameters {
            match name {
                Some("who") => made.who = Who::parse(value)?,
                Some("burst") => made.burst = number(value, RATE_MAX)?.max(1),
                _ => return Err("it takes who= and burst= besides"),
            }
        }
        Ok(Box::new(made))
    }
}

impl Layer for Rate {
    fn name(&self) -> &'static str {
        "rate"
    }

    fn admit(&mut self, call: &Call<'_>, _: &dyn View) -> Gate {
        if self.who.group(call).is_none() {
            return Gate::Pass;
        }
        let now = call.now();
        let full_at = self.full_at.entry(call.domid()).or_default();
        let others = self.interval.saturating_mul(self.burst.saturating_sub(1));
        let usable_at = full_at.before(others);
        if usable_at > now {
            return Gate::Later(usable_at);
        }
        *full_at = (*full_at).max(now).after(self.interval);
        Gate::Pass
    }

    fn domain_ended(&mut self, domid: DomId) {
        self.full_at.remove(&domid);
    }
}
