//! The layer `delay`: requests take longer, by kind, as they do of a store that is far away or busy.

use alloc::boxed::Box;
use core::time::Duration;

use super::scope::{Group, Who};
use super::{Call, Gate, Layer};
use crate::extension::{Item, View, Why, time};

/// A delay for each group of types.
#[derive(Debug, Default)]
pub(super) struct Delay {
    who: Who,
    delays: [Duration; Group::NAMES.len()],
}

impl Delay {
    pub(super) fn make(item: &Item<'_>) -> Result<Box<dyn Layer>, Why> {
        let mut delay = Self::default();
        for (name, value) in item.parameters() {
            match name {
                None | Some("all") => delay.delays = [time(value)?; Group::NAMES.len()],
                Some("who") => delay.who = Who::parse(value)?,
                Some(name) => {
                    let group = Group::parse(name).ok_or("there is no such kind of requests")?;
                    if let Some(place) = delay.delays.get_mut(group.place()) {
                        *place = time(value)?;
                    }
                }
            }
        }
        if delay.delays.iter().all(Duration::is_zero) {
            return Err("it takes how long, such as delay:5ms or delay:read=5ms,write=20ms");
        }
        Ok(Box::new(delay))
    }
}

impl Layer for Delay {
    fn name(&self) -> &'static str {
        "delay"
    }

    fn admit(&mut self, call: &Call<'_>, _: &dyn View) -> Gate {
        let group = self.who.group(call).filter(|_| !call.is_resumed());
        let delay = group.and_then(|group| self.delays.get(group.place()));
        match delay {
            Some(delay) if !delay.is_zero() => Gate::Later(call.now().after(*delay)),
            _ => Gate::Pass,
        }
    }
}
