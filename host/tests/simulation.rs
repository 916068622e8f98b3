//! Runs of the simulation that found something, and some that did not; `simulate` runs many more (docs/simulator.md).

use host::sim;

/// Seeds, with how many steps it took and what was found.
const FOUND: [(u64, u64, &str); 3] = [
    (
        8,
        1000,
        "an event that was half sent and 20 s old was looked at for ever",
    ),
    (
        1161,
        10_000,
        "of a dead domain that owned the root, nodes within its other nodes were told of on their own",
    ),
    (
        24,
        10_000,
        "a lease that a domain had taken for another went with it, and who waited did not have his turn",
    ),
];

#[test]
fn what_was_found_is_not_found_again() {
    for (seed, steps, what) in FOUND {
        if let Err(failure) = sim::run(seed, steps) {
            panic!("{what}\n{failure}");
        }
    }
}

#[test]
fn a_run_is_the_same_each_time() {
    let tables = [(), ()].map(|()| sim::run(4, 3000).map(|coverage| coverage.table()));
    let [first, second] = tables.map(|table| table.unwrap_or_else(|failure| panic!("{failure}")));
    assert_eq!(first, second);
}
