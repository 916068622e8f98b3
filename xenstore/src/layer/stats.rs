//! The layer `stats`: how many requests of each type there were, how many failed, and what they cost.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;

use super::{Call, Done, Gate, Layer};
use crate::extension::{Item, View, Why};
use crate::wire::Kind;

/// One more than there are types: the last place is for all others.
const PLACES: usize = Kind::ALL.len() + 1;

/// Sums by type.
#[derive(Debug, Default)]
pub(super) struct Stats {
    sums: [Sum; PLACES],
}

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    count: u64,
    failed: u64,
    cost: u64,
}

impl Stats {
    pub(super) fn make(item: &Item<'_>) -> Result<Box<dyn Layer>, Why> {
        item.without_parameters()
            .map(|()| Box::<Self>::default() as Box<dyn Layer>)
    }
}

impl Layer for Stats {
    fn name(&self) -> &'static str {
        "stats"
    }

    fn admit(&mut self, _: &Call<'_>, _: &dyn View) -> Gate {
        Gate::Pass
    }

    fn complete(&mut self, call: &Call<'_>, done: &Done) {
        let number = call.kind().map(|kind| usize::try_from(kind.number()));
        let place = number.and_then(Result::ok).unwrap_or(PLACES - 1);
        if let Some(sum) = self.sums.get_mut(place) {
            sum.count = sum.count.wrapping_add(1);
            sum.failed = sum.failed.wrapping_add(u64::from(done.error.is_some()));
            sum.cost = sum.cost.wrapping_add(done.cost.into());
        }
    }

    fn report(&self) -> String {
        let names = Kind::ALL.iter().map(|kind| kind.name()).chain(["other"]);
        let seen = names.zip(&self.sums).filter(|(_, sum)| sum.count > 0);
        let line = |(name, sum): (&str, &Sum)| {
            let Sum {
                count,
                failed,
                cost,
            } = sum;
            format!("  {name}: {count} requests, {failed} failed, cost {cost}\n")
        };
        seen.map(line).collect()
    }
}
